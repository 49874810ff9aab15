//! L7 and L8: leases and the way back.
//!
//! The bytes of a block are loom cells without content: loom reports every access that
//! does not happen-before, or after, a conflicting one, and nothing is dereferenced.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::bell::Bell;
use super::harness::Explorer;
use crate::{LeaseCount, Mailbox, ReturnQueue};

/// L7. The owner reuses a block after the last of its readers, on whichever thread that was.
pub(super) fn return_after_last_reader(explorer: &Explorer) {
    // Two readers of one block; both clone their lease.
    explorer.check(|| {
        let pool = Pool::new(0);
        let readers = lend::<2>(&pool, 0).map(|lease| {
            thread::spawn(move || {
                let clone = lease.clone();
                lease.read();
                drop(lease);
                clone.read();
            })
        });
        assert_eq!(pool.take_or_sleep(), 0);
        pool.write(0);
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(pool.returns.take(), None, "a block comes back once");
    });
    // Two blocks, each with a reader; the owner wants both back.
    explorer.check(|| {
        let pool = Pool::new(0);
        let readers = [0, 1].map(|block| {
            let [lease] = lend(&pool, block);
            thread::spawn(move || lease.read())
        });
        let first = pool.take_or_sleep();
        pool.write(first);
        let second = pool.take_or_sleep();
        pool.write(second);
        assert_eq!(first + second, 1, "each block comes back once");
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(pool.returns.take(), None);
    });
    // The owner sleeps on its mailbox, as the reactor does.
    explorer.check(|| {
        let pool = Pool::new(0);
        let [lease] = lend(&pool, 0);
        let reader = thread::spawn(move || lease.read());
        let other = thread::spawn({
            let pool = Arc::clone(&pool);
            move || pool.mailbox.notify()
        });
        assert_eq!(pool.take_or_sleep(), 0);
        pool.write(0);
        reader.join().unwrap();
        other.join().unwrap();
    });
}

/// L8. The reactor goes while leases are out on two threads.
pub(super) fn outlives_reactor(explorer: &Explorer) {
    explorer.check(|| {
        let pool = Pool::new(BLOCKS);
        let [one, two] = lend(&pool, 0);
        let [three] = lend(&pool, 1);
        let readers = [
            thread::spawn(move || one.read()),
            thread::spawn(move || {
                two.read();
                drop(two);
                three.read();
            }),
        ];
        pool.mailbox.close();
        drop(pool); // unmapped by whoever is last: see `Pool::drop`
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

struct Pool {
    leases: [LeaseCount; BLOCKS],
    bytes: [UnsafeCell<()>; BLOCKS],
    returns: ReturnQueue,
    mailbox: Mailbox<(), Bell>,
    /// How many blocks lie in `returns` when the pool goes: those that nobody has taken.
    returned_at_end: usize,
}

impl Pool {
    fn new(returned_at_end: usize) -> Arc<Self> {
        Arc::new(Self {
            leases: [LeaseCount::new(), LeaseCount::new()],
            bytes: [UnsafeCell::new(()), UnsafeCell::new(())],
            returns: ReturnQueue::new(BLOCKS),
            mailbox: Mailbox::new(BLOCKS, Bell::new()),
            returned_at_end,
        })
    }

    /// The kernel fills the block.
    fn write(&self, block: u16) {
        self.bytes[usize::from(block)].with_mut(|_| ());
    }

    /// The reactor's loop when it has no block left.
    fn take_or_sleep(&self) -> u16 {
        loop {
            self.mailbox.wake().take();
            if let Some(block) = self.returns.take() {
                // No look at the count here: its acquire would hide an ordering that `release`
                // lacks.
                return block;
            }
            if self.returns.declare_starved() && self.mailbox.wake().park() {
                self.mailbox.doorbell().wait();
                self.mailbox.wake().unpark();
            }
        }
    }
}

/// Fills a block and leases it `N` times.
fn lend<const N: usize>(pool: &Arc<Pool>, block: u16) -> [Lease; N] {
    pool.write(block);
    pool.leases[usize::from(block)].acquire_many(u32::try_from(N).unwrap());
    [(); N].map(|()| Lease { pool: Arc::clone(pool), block })
}

impl Drop for Pool {
    /// The memory is unmapped.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // the model has failed already
        }
        for (leases, bytes) in self.leases.iter().zip(&self.bytes) {
            assert_eq!(leases.count(), 0);
            bytes.with_mut(|_| ());
        }
        let mut returned = Vec::new();
        while let Some(block) = self.returns.take() {
            assert!(!returned.contains(&block), "block {block} came back twice");
            returned.push(block);
        }
        assert_eq!(returned.len(), self.returned_at_end, "a block got lost");
    }
}

struct Lease {
    pool: Arc<Pool>,
    block: u16,
}

impl Lease {
    fn read(&self) {
        self.pool.bytes[usize::from(self.block)].with(|_| ());
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.pool.leases[usize::from(self.block)].acquire();
        Self { pool: Arc::clone(&self.pool), block: self.block }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let last = self.pool.leases[usize::from(self.block)].release();
        if last && self.pool.returns.put(self.block) {
            self.pool.mailbox.notify();
        }
    }
}

const BLOCKS: usize = 2;
