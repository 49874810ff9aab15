//! Ring set-up: which flags, how large, and what to do when the kernel refuses.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io_uring::IoUring;

use super::buffers::BufferRing;
use super::sys::BUFFER_RING_INCREMENTAL;
use super::{KernelRing, Ring, Uring};
use crate::pool::PoolShared;

/// How a ring is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Submission entries asked for; halved on ENOMEM down to [`ENTRIES_MIN`].
    pub(crate) entries: u32,
    /// Many receives share a block (Linux 6.12).
    pub(crate) incremental: bool,
    /// Enter through an index registered with the thread (Linux 5.18).
    pub(crate) register_ring: bool,
}

/// Fewest submission entries that the engine still works with.
const ENTRIES_MIN: u32 = 16;
/// Completion entries for each submission entry. Receives are multishot, so completions outnumber
/// submissions; what does not fit all the same is fetched from the kernel's overflow list.
const COMPLETIONS_PER_SUBMISSION: u32 = 4;
/// How long to wait for memory of rings that were closed: by another process, such as one that this one has
/// taken over from; by this process. And the pauses between two looks.
const MEMORY_WAIT_MAX: Duration = Duration::from_millis(250);
const OWN_MEMORY_WAIT_MAX: Duration = Duration::from_secs(2);
const MEMORY_PAUSE_MIN: Duration = Duration::from_millis(1);
const MEMORY_PAUSE_MAX: Duration = Duration::from_millis(16);

/// This process has closed a ring.
static HAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Notes that a ring of this process is being closed.
pub(super) fn closes() {
    HAS_CLOSED.store(true, Ordering::Relaxed);
}

impl Setup {
    /// Makes the ring and registers a buffer ring for the blocks of `pool`.
    ///
    /// Both count against RLIMIT_MEMLOCK, for all processes of the user, and closing a ring gives nothing
    /// back at once: the kernel does that on a work queue, some milliseconds later. So a refusal for want of
    /// memory counts only if it lasts.
    pub(crate) fn build(&self, pool: Arc<PoolShared>) -> io::Result<Uring> {
        let own = HAS_CLOSED.load(Ordering::Relaxed);
        let give_up = Instant::now() + if own { OWN_MEMORY_WAIT_MAX } else { MEMORY_WAIT_MAX };
        let mut pause = MEMORY_PAUSE_MIN;
        loop {
            let built = self.build_with(&pool, |entries, no_sqarray| {
                Self::attempt(entries, no_sqarray).map(KernelRing::new)
            });
            match built {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                    if Instant::now() >= give_up {
                        return Err(error);
                    }
                }
                result => return result,
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(MEMORY_PAUSE_MAX);
        }
    }

    /// Once, with a ring that `attempt` makes: from a number of submission entries, and whether to leave out
    /// the index array.
    pub(crate) fn build_with<R: Ring>(
        &self,
        pool: &Arc<PoolShared>,
        attempt: impl FnMut(u32, bool) -> io::Result<R>,
    ) -> io::Result<Uring<R>> {
        let mut ring = self.ring(attempt)?;
        let blocks = pool.region().len() / pool.block_bytes() as usize;
        let blocks =
            u16::try_from(blocks).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let flags = if self.incremental { BUFFER_RING_INCREMENTAL } else { 0 };
        let buffers = BufferRing::register(&mut ring, blocks, flags)?;
        Ok(Uring::new(ring, buffers, Arc::clone(pool), self))
    }

    /// Asks for less until it is granted.
    fn ring<R>(&self, mut attempt: impl FnMut(u32, bool) -> io::Result<R>) -> io::Result<R> {
        let mut entries = self.entries.next_power_of_two();
        // NO_SQARRAY (Linux 6.6) saves an indirection; everything else is required (6.1).
        let mut no_sqarray = true;
        loop {
            match attempt(entries, no_sqarray) {
                Ok(ring) => return Ok(ring),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINVAL) if no_sqarray => no_sqarray = false,
                    Some(libc::ENOMEM) if entries > ENTRIES_MIN => entries /= 2,
                    _ => return Err(error),
                },
            }
        }
    }

    fn attempt(entries: u32, no_sqarray: bool) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_clamp()
            .setup_cqsize(entries * COMPLETIONS_PER_SUBMISSION)
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag();
        if no_sqarray {
            builder.setup_no_sqarray();
        }
        builder.build(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of entries, and whether the index array is to be left out.
    type Attempts = Vec<(u32, bool)>;

    /// What set-up asks for, in turn, of a kernel that answers like this, and what comes of it.
    fn asked(
        entries: u32,
        mut answer: impl FnMut(u32, bool) -> Result<(), i32>,
    ) -> (Attempts, Result<(), Option<i32>>) {
        let mut asked = Vec::new();
        let setup = Setup { entries, incremental: true, register_ring: true };
        let outcome = setup.ring(|entries, no_sqarray| {
            asked.push((entries, no_sqarray));
            answer(entries, no_sqarray).map_err(io::Error::from_raw_os_error)
        });
        (asked, outcome.map_err(|error| error.raw_os_error()))
    }

    #[test]
    fn a_kernel_that_has_everything_is_asked_once() {
        assert_eq!(asked(1000, |_, _| Ok(())), (vec![(1024, true)], Ok(())));
    }

    #[test]
    fn an_old_kernel_is_asked_without_what_it_may_lack() {
        let old = |_, no_sqarray| if no_sqarray { Err(libc::EINVAL) } else { Ok(()) };
        assert_eq!(asked(64, old), (vec![(64, true), (64, false)], Ok(())));
        let (attempts, outcome) = asked(64, |_, _| Err(libc::EINVAL));
        assert_eq!((attempts.len(), outcome), (2, Err(Some(libc::EINVAL))));
    }

    #[test]
    fn little_memory_makes_a_small_ring() {
        let little =
            |most| move |entries, _| if entries > most { Err(libc::ENOMEM) } else { Ok(()) };
        let (attempts, outcome) = asked(1024, little(16));
        assert_eq!(outcome, Ok(()));
        let sizes: Vec<_> = attempts.iter().map(|(entries, _)| *entries).collect();
        assert_eq!(sizes, [1024, 512, 256, 128, 64, 32, 16]);
        let (attempts, outcome) = asked(1024, little(8));
        assert_eq!((attempts.last(), outcome), (Some(&(16, true)), Err(Some(libc::ENOMEM))));
        // Old and short of memory at once.
        let both = |entries, no_sqarray| match (entries, no_sqarray) {
            (33.., _) => Err(libc::ENOMEM),
            (_, true) => Err(libc::EINVAL),
            _ => Ok(()),
        };
        let expected = vec![(128, true), (64, true), (32, true), (32, false)];
        assert_eq!(asked(128, both), (expected, Ok(())));
    }

    #[test]
    fn other_refusals_are_told_at_once() {
        for errno in [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::EMFILE, libc::ENFILE] {
            assert_eq!(asked(64, |_, _| Err(errno)), (vec![(64, true)], Err(Some(errno))));
        }
    }
}
