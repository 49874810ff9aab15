//! The seam between the engine and the kernel's ring: what is said over it, and the ring that says it.
//!
//! Everything above, entry building, block accounting, overflow, hand-over between ring and hand, is
//! [`Uring`](super::Uring), which does not know whose ring it has. A simulated one is behind the feature `sim`.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::IoUring;
use io_uring::squeue::Entry;

use super::sys;
use crate::engine::QueueFull;

/// One completion queue entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Completed {
    /// Of the entry that it answers.
    pub(crate) user_data: u64,
    /// Bytes, a descriptor, zero, or a negated error number.
    pub(crate) result: i32,
    /// `IORING_CQE_F_*`.
    pub(crate) flags: u32,
}

/// A submission and a completion queue, and the calls that go with them.
pub(crate) trait Ring {
    /// Puts an entry into the submission queue.
    ///
    /// # Safety
    ///
    /// What the entry points to stays valid and, unless it is received into, unchanged until the entry's
    /// terminal completion; for one that is silent in success, until the kernel has taken it.
    unsafe fn push(&mut self, entry: &Entry) -> Result<(), QueueFull>;

    /// Entries that the kernel has not taken.
    fn queued(&self) -> usize;

    /// io_uring_enter(2) with an optional relative timeout: how many entries were taken, or the error
    /// number. `flags` are `IORING_ENTER_*`, apart from those that name the ring and the timeout.
    fn enter(
        &mut self,
        submit: u32,
        want: u32,
        flags: u32,
        timeout: Option<Duration>,
    ) -> Result<u32, i32>;

    /// Takes everything out of the completion queue, oldest first.
    fn drain(&mut self, each: impl FnMut(Completed));

    /// True if there are completions in the queue.
    fn has_completed(&mut self) -> bool;

    /// True if an enter would bring completions: of deferred task work, or some that did not fit.
    fn must_enter(&mut self) -> bool;

    /// True if there are completions that did not fit.
    fn has_overflowed(&mut self) -> bool;

    /// Registers a buffer ring (`IORING_REGISTER_PBUF_RING`).
    ///
    /// # Safety
    ///
    /// `entries` entries of 16 bytes at `address` stay valid until this ring has been dropped.
    unsafe fn register_buffers(
        &mut self,
        address: u64,
        entries: u16,
        group: u16,
        flags: u16,
    ) -> io::Result<()>;

    /// Takes a buffer ring back: no receive can start on it afterwards.
    fn unregister_buffers(&mut self, group: u16) -> io::Result<()>;

    /// Registers the ring with the calling thread, which enters through its index from then on (Linux 5.18).
    fn register_ring(&mut self) -> io::Result<()>;

    /// True if an enter may say that the wait is not one for a disk (Linux 6.15).
    fn has_no_iowait(&self) -> bool;

    /// The time by which deadlines are meant.
    fn now(&self) -> Instant;
}

/// A ring of this machine's kernel.
pub(crate) struct KernelRing {
    ring: IoUring,
    /// What `enter` names the ring by: its descriptor, or an index.
    enter_fd: i32,
    enter_flags: u32,
    registered: Option<u32>,
}

impl KernelRing {
    pub(super) fn new(ring: IoUring) -> Self {
        let enter_fd = ring.as_raw_fd();
        Self { ring, enter_fd, enter_flags: 0, registered: None }
    }
}

impl Ring for KernelRing {
    #[inline]
    unsafe fn push(&mut self, entry: &Entry) -> Result<(), QueueFull> {
        // SAFETY: the caller keeps what the entry points to alive and unchanged (contract of this
        // function).
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.map_err(|_| QueueFull)
    }

    #[inline]
    fn queued(&self) -> usize {
        // SAFETY: this thread is the only one that uses the queue (the ring is not Sync and nothing
        // holds another view of it), so no second `SubmissionQueue` is alive.
        unsafe { self.ring.submission_shared() }.len()
    }

    #[inline]
    fn enter(
        &mut self,
        submit: u32,
        want: u32,
        flags: u32,
        timeout: Option<Duration>,
    ) -> Result<u32, i32> {
        sys::enter(self.enter_fd, submit, want, flags | self.enter_flags, timeout)
    }

    #[inline]
    fn drain(&mut self, mut each: impl FnMut(Completed)) {
        for entry in self.ring.completion() {
            each(Completed {
                user_data: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
            });
        }
    }

    #[inline]
    fn has_completed(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    #[inline]
    fn must_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow()
    }

    #[inline]
    fn has_overflowed(&mut self) -> bool {
        self.ring.submission().cq_overflow()
    }

    unsafe fn register_buffers(
        &mut self,
        address: u64,
        entries: u16,
        group: u16,
        flags: u16,
    ) -> io::Result<()> {
        // SAFETY: valid until the ring is dropped, by contract.
        unsafe {
            self.ring.submitter().register_buf_ring_with_flags(address, entries, group, flags)
        }
    }

    fn unregister_buffers(&mut self, group: u16) -> io::Result<()> {
        self.ring.submitter().unregister_buf_ring(group)
    }

    fn register_ring(&mut self) -> io::Result<()> {
        let index = sys::register_ring_fd(self.ring.as_raw_fd())?;
        self.registered = Some(index);
        if let Ok(index) = i32::try_from(index) {
            self.enter_fd = index;
            self.enter_flags = sys::ENTER_REGISTERED_RING;
        }
        Ok(())
    }

    fn has_no_iowait(&self) -> bool {
        self.ring.params().is_feature_no_iowait()
    }

    #[inline]
    fn now(&self) -> Instant {
        Instant::now()
    }
}

impl Drop for KernelRing {
    fn drop(&mut self) {
        super::setup::closes();
        if let Some(index) = self.registered
            && let Err(error) = sys::unregister_ring_fd(self.ring.as_raw_fd(), index)
        {
            tracing::warn!(%error, "the ring stays registered until its thread ends");
        }
    }
}
