//! The protocols on real threads: more of them, and more items, than a model checker can take.
//!
//! Every wait is bounded; a lost wake-up shows as a panic after [`WAIT_MAX`].
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the protocols are used from outside, on std's threads"
)]

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringpost_sync::{
    Canceled, Doorbell, LeaseCount, Mailbox, OneshotSender, PushError, ReturnQueue, Shutdown,
    oneshot,
};

const WAIT_MAX: Duration = Duration::from_secs(30);

/// An eventfd made of std.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
    rings: AtomicU64,
    /// What is rung under ThreadSanitizer, which does not see std take a contended lock.
    seen: AtomicBool,
}

impl Bell {
    fn wait(&self) {
        if cfg!(ringpost_tsan) {
            let end = Instant::now() + WAIT_MAX;
            while !self.seen.swap(false, Ordering::Acquire) {
                assert!(Instant::now() < end, "a wake-up was lost");
                thread::yield_now();
            }
            return;
        }
        let rung = self.rung.lock().unwrap();
        let (mut rung, wait) =
            self.changed.wait_timeout_while(rung, WAIT_MAX, |rung| !*rung).unwrap();
        assert!(!wait.timed_out(), "a wake-up was lost");
        *rung = false;
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::Relaxed);
        if cfg!(ringpost_tsan) {
            self.seen.store(true, Ordering::Release);
            return;
        }
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// The reactor's loop. Returns how often it parked, when the mailbox is sealed and empty.
fn consume<T>(mailbox: &Mailbox<T, Bell>, mut each: impl FnMut(T)) -> u64 {
    let mut parks = 0;
    loop {
        mailbox.wake().take();
        let last = mailbox.is_sealed();
        while let Some(item) = mailbox.pop() {
            each(item);
        }
        if last {
            mailbox.close();
            return parks;
        }
        if mailbox.wake().park() {
            parks += 1;
            mailbox.doorbell().wait();
            mailbox.wake().unpark();
        }
    }
}

fn push_all<T>(mailbox: &Mailbox<T, Bell>, items: impl Iterator<Item = T>) {
    for mut item in items {
        while let Err(refused) = mailbox.push(item) {
            assert!(refused.is_full(), "nobody closes the mailbox");
            item = refused.into_inner();
            thread::yield_now();
        }
    }
}

#[test]
fn every_item_once_and_in_order_of_its_producer() {
    const PRODUCERS: usize = 4;
    const ITEMS: usize = if cfg!(miri) { 60 } else { 20_000 };
    let mailbox = Arc::new(Mailbox::new(16, Bell::default()));
    let handles = Arc::new(Shutdown::new());
    let threads: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            handles.add();
            let (mailbox, handles) = (Arc::clone(&mailbox), Arc::clone(&handles));
            thread::spawn(move || {
                push_all(&mailbox, (0..ITEMS).map(|item| (producer, item)));
                handles.release(&mailbox);
            })
        })
        .collect();
    handles.release(&mailbox);

    let mut next = [0; PRODUCERS];
    let parks = consume(&mailbox, |(producer, item): (usize, usize)| {
        assert_eq!(item, next[producer]);
        next[producer] += 1;
    });
    assert_eq!(next, [ITEMS; PRODUCERS]);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(mailbox.doorbell().rings.load(Ordering::Relaxed) <= parks, "one ring a parked period");
    assert!(matches!(mailbox.push((0, 0)), Err(PushError::Closed((0, 0)))));
}

#[test]
fn a_close_leaves_no_request_without_an_answer() {
    for _ in 0..if cfg!(miri) { 3 } else { 200 } {
        let mailbox = Arc::new(Mailbox::<OneshotSender<u32>, _>::new(4, Bell::default()));
        let submitters: Vec<_> = (0..3)
            .map(|_| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || {
                    loop {
                        let (sender, receiver) = oneshot();
                        match mailbox.push(sender) {
                            Ok(()) => match receiver.blocking_recv(Some(WAIT_MAX)) {
                                Ok(answer) => assert_eq!(answer, 42),
                                Err(gone) => assert_eq!(gone.to_string(), Canceled.to_string()),
                            },
                            Err(PushError::Full(_)) => thread::yield_now(),
                            Err(PushError::Closed(_)) => return,
                        }
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            mailbox.wake().take();
            while let Some(request) = mailbox.pop() {
                request.send(42).unwrap();
            }
            thread::yield_now();
        }
        mailbox.close();
        for submitter in submitters {
            submitter.join().unwrap();
        }
    }
}

#[test]
fn blocks_come_back_once_and_wake_a_starved_owner() {
    const BLOCKS: u16 = 4;
    const ROUNDS: usize = if cfg!(miri) { 60 } else { 20_000 };
    struct Pool {
        leases: Vec<LeaseCount>,
        lent: Vec<AtomicBool>,
        returns: ReturnQueue,
        mailbox: Mailbox<(), Bell>,
    }
    let pool = Arc::new(Pool {
        leases: (0..BLOCKS).map(|_| LeaseCount::new()).collect(),
        lent: (0..BLOCKS).map(|_| AtomicBool::new(false)).collect(),
        returns: ReturnQueue::new(BLOCKS.into()),
        mailbox: Mailbox::new(1, Bell::default()),
    });
    // Readers, each with a mailbox for leases.
    let readers: Vec<_> = (0..2).map(|_| Arc::new(Mailbox::new(8, Bell::default()))).collect();
    let threads: Vec<_> = readers
        .iter()
        .map(|reader| {
            let (reader, pool) = (Arc::clone(reader), Arc::clone(&pool));
            thread::spawn(move || {
                consume(&reader, |block: u16| {
                    assert!(pool.lent[usize::from(block)].load(Ordering::Relaxed));
                    if pool.leases[usize::from(block)].release() {
                        pool.lent[usize::from(block)].store(false, Ordering::Relaxed);
                        if pool.returns.put(block) {
                            pool.mailbox.notify();
                        }
                    }
                });
            })
        })
        .collect();

    let free = Cell::new((0..BLOCKS).collect::<Vec<_>>());
    for _ in 0..ROUNDS {
        let mut blocks = free.take();
        while blocks.is_empty() {
            pool.mailbox.wake().take();
            blocks.extend(std::iter::from_fn(|| pool.returns.take()));
            if blocks.is_empty() && pool.returns.declare_starved() && pool.mailbox.wake().park() {
                pool.mailbox.doorbell().wait();
                pool.mailbox.wake().unpark();
            }
        }
        let block = blocks.pop().unwrap();
        free.set(blocks);
        let was_lent = pool.lent[usize::from(block)].swap(true, Ordering::Relaxed);
        assert!(!was_lent, "block {block} came back while it was lent");
        pool.leases[usize::from(block)].acquire_many(2);
        for reader in &readers {
            push_all(reader, [block].into_iter());
        }
    }
    for (reader, thread) in readers.iter().zip(threads) {
        reader.seal();
        thread.join().unwrap();
    }
    let mut back = free.take();
    back.extend(std::iter::from_fn(|| pool.returns.take()));
    back.sort_unstable();
    assert_eq!(back, (0..BLOCKS).collect::<Vec<_>>(), "every block is accounted for");
}

#[test]
fn oneshots_deliver_across_threads() {
    let (requests, answers) = std::sync::mpsc::sync_channel(4);
    let thread = thread::spawn(move || {
        for (number, sender) in answers {
            if number % 3 == 0 {
                drop::<OneshotSender<u32>>(sender);
            } else {
                sender.send(number).unwrap();
            }
        }
    });
    for number in 0..if cfg!(miri) { 60 } else { 10_000 } {
        let (sender, receiver) = oneshot();
        requests.send((number, sender)).unwrap();
        assert_eq!(
            receiver.blocking_recv(Some(WAIT_MAX)).ok(),
            (number % 3 != 0).then_some(number)
        );
    }
    drop(requests);
    thread.join().unwrap();
}
