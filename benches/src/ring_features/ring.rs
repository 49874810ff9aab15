//! One ring, set up as the reactor does it, with every feature under comparison as a switch, and
//! its receive blocks.
//!
//! # Invariants
//!
//! * **M1** What a pushed entry points to stays alive and in place until the ring has been dropped:
//!   rings are declared before the memory they use, and dropping one cancels what is in flight.
//! * **M2** A block's bytes are looked at only after the kernel has delivered them and before the
//!   block is provided again, and only the delivered range.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, ensure};
use io_uring::types::{CancelBuilder, Timespec};
use io_uring::{IoUring, cqueue, squeue};

use super::sys::{self, Region};

/// What a ring is made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// Completions are worked on inside `enter` only (`DEFER_TASKRUN`); otherwise on any way out of
    /// the kernel (`COOP_TASKRUN`).
    pub(super) defer: bool,
    /// Enter through an index registered with the thread.
    pub(super) registered: bool,
    pub(super) no_iowait: bool,
}

impl Setup {
    /// What the reactor does.
    pub(super) const PROJECT: Self = Self { defer: true, registered: true, no_iowait: true };
}

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Done {
    /// Number of bytes, or the error.
    pub(super) fn bytes(&self) -> Result<usize> {
        let error = || std::io::Error::from_raw_os_error(-self.result);
        usize::try_from(self.result).map_err(|_| error()).context("an operation failed")
    }

    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }
}

/// A ring, its way of entering, and a count of the calls.
pub(super) struct Ring {
    ring: IoUring,
    enter_fd: RawFd,
    flags: u32,
    registered: Option<u32>,
    no_iowait: bool,
    staged: u32,
    pub(super) enters: u64,
}

impl Ring {
    pub(super) fn new(setup: Setup) -> Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .setup_cqsize(4 * ENTRIES)
            .setup_submit_all()
            .setup_single_issuer()
            .setup_taskrun_flag()
            .setup_no_sqarray();
        if setup.defer {
            builder.setup_defer_taskrun();
        } else {
            builder.setup_coop_taskrun();
        }
        let ring = builder.build(ENTRIES).context("making a ring")?;
        let fd = ring.as_raw_fd();
        let registered = if setup.registered {
            Some(sys::register_ring_fd(fd).context("registering the ring with its thread")?)
        } else {
            None
        };
        let (enter_fd, flag) = match registered {
            Some(index) => (i32::try_from(index)?, sys::ENTER_REGISTERED_RING),
            None => (fd, 0),
        };
        let no_iowait = setup.no_iowait && ring.params().is_feature_no_iowait();
        ensure!(no_iowait == setup.no_iowait, "the kernel lacks NO_IOWAIT");
        let flags = sys::ENTER_GETEVENTS | flag;
        Ok(Self { ring, enter_fd, flags, registered, no_iowait, staged: 0, enters: 0 })
    }

    /// Stages an entry.
    ///
    /// # Safety
    ///
    /// What the entry points to stays valid until its completion or until this ring is dropped (M1).
    #[inline]
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: handed on to the caller.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.context("the submission queue is full")?;
        self.staged += 1;
        Ok(())
    }

    /// Submits everything, runs what is due, and waits for `want` completions.
    #[inline]
    pub(super) fn enter(&mut self, want: u32) -> Result<()> {
        let iowait = if want > 0 && self.no_iowait { sys::ENTER_NO_IOWAIT } else { 0 };
        let entered = sys::enter(self.enter_fd, self.staged, want, self.flags | iowait);
        self.entered(entered)
    }

    /// Waits for `want` completions, or for one once `min_wait_us` have passed.
    pub(super) fn enter_min_wait(&mut self, want: u32, min_wait_us: u32) -> Result<()> {
        let flags = self.flags | if self.no_iowait { sys::ENTER_NO_IOWAIT } else { 0 };
        let staged = self.staged;
        let entered = sys::enter_min_wait(self.enter_fd, staged, want, flags, min_wait_us);
        self.entered(entered)
    }

    /// Submits without running anything.
    pub(super) fn submit(&mut self) -> Result<()> {
        let flags = self.flags & !sys::ENTER_GETEVENTS;
        let entered = sys::enter(self.enter_fd, self.staged, 0, flags);
        self.entered(entered)
    }

    #[inline]
    fn entered(&mut self, entered: std::io::Result<u32>) -> Result<()> {
        self.enters += 1;
        match entered {
            Ok(submitted) => self.staged -= submitted,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => {}
            Err(error) => return Err(error).context("io_uring_enter"),
        }
        Ok(())
    }

    /// Whether entering would bring completions.
    #[inline]
    pub(super) fn flagged(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// Whether the kernel has taken all that was staged.
    pub(super) fn is_submitted(&self) -> bool {
        self.staged == 0
    }

    #[inline]
    pub(super) fn next(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        Some(Done { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() })
    }

    /// Moves all completions to `batch`, which it empties first.
    #[inline]
    pub(super) fn reap(&mut self, batch: &mut Vec<Done>) {
        batch.clear();
        batch.extend(self.ring.completion().map(|entry| Done {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
    }

    pub(super) fn register_files(&self, files: &[RawFd]) -> Result<()> {
        self.ring.submitter().register_files(files).context("registering files")
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    pub(super) fn has_min_wait(&self) -> bool {
        self.ring.params().is_feature_min_timeout()
    }

    pub(super) fn has_bundles(&self) -> bool {
        self.ring.params().is_feature_recvsend_bundle()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Nothing may write to memory that goes next (M1). "Nothing to cancel" is fine.
        let patience = Timespec::new().sec(1);
        let _ = self.ring.submitter().register_sync_cancel(Some(patience), CancelBuilder::any());
        let _ = self.enter(0);
        if let Some(index) = self.registered {
            let _ = sys::unregister_ring_fd(self.ring.as_raw_fd(), index);
        }
    }
}

const ENTRIES: u32 = 256;

/// How receive memory is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) block_bytes: u32,
    /// Blocks in the kernel's hands; one that has been read goes back at once.
    pub(super) kept: u16,
    /// Many receives share a block (`IOU_PBUF_RING_INC`).
    pub(super) incremental: bool,
}

impl Shape {
    pub(super) const fn plain(block_kib: u32, kept: u16) -> Self {
        Self { block_bytes: block_kib * 1024, kept, incremental: false }
    }

    pub(super) const fn incremental(block_kib: u32, kept: u16) -> Self {
        Self { block_bytes: block_kib * 1024, kept, incremental: true }
    }

    /// What the reactor does.
    pub(super) const PROJECT: Self = Self::incremental(128, 4);
}

/// An entry of a provided-buffer ring (`struct io_uring_buf`): address, length, block, and in the
/// first entry the ring's tail.
const ENTRY_BYTES: usize = 16;
const LEN_AT: usize = 8;
const BLOCK_AT: usize = 12;
const TAIL_AT: usize = 14;

/// Receive blocks and the ring through which the kernel gets them. Declare after the [`Ring`].
#[derive(Debug)]
pub(super) struct Blocks {
    entries: Region,
    memory: Region,
    shape: Shape,
    tail: u16,
    /// Bytes delivered into each block since it was provided (incremental).
    written: Vec<usize>,
    /// Blocks in the order the kernel uses them.
    order: VecDeque<u16>,
}

impl Blocks {
    /// Provides `shape.kept` blocks to `ring`.
    pub(super) fn new(ring: &Ring, shape: Shape) -> Result<Self> {
        ensure!(shape.kept.is_power_of_two(), "the number of blocks must be a power of two");
        let count = usize::from(shape.kept);
        let entries = Region::new(count * ENTRY_BYTES)?;
        let memory = Region::new(count * shape.block_bytes as usize)?;
        let address = entries.at(0).expose_provenance() as u64;
        let flags = if shape.incremental { sys::BUFFER_RING_INCREMENTAL } else { 0 };
        // SAFETY: the region holds `kept` entries and is dropped after the ring (M1).
        let registered = unsafe {
            ring.ring.submitter().register_buf_ring_with_flags(address, shape.kept, GROUP, flags)
        };
        registered.context("registering receive blocks")?;
        let written = vec![0; count];
        let order = VecDeque::with_capacity(count);
        let mut blocks = Self { entries, memory, shape, tail: 0, written, order };
        (0..shape.kept).for_each(|block| blocks.provide(block));
        Ok(blocks)
    }

    /// Shows `sink` what a receive has delivered, and provides the blocks that are used up again.
    /// A bundle goes on in the blocks that follow in ring order.
    #[inline]
    pub(super) fn take(&mut self, done: &Done, mut sink: impl FnMut(&[u8])) -> Result<()> {
        let len = done.bytes()?;
        let block = cqueue::buffer_select(done.flags).context("a receive without a block")?;
        let block_bytes = self.shape.block_bytes as usize;
        ensure!(self.order.front() == Some(&block), "the kernel used blocks out of order");
        if self.shape.incremental {
            let at = self.written[usize::from(block)];
            ensure!(len <= block_bytes - at, "the kernel delivered beyond a block");
            let start = usize::from(block) * block_bytes + at;
            // SAFETY: just delivered, not yet provided again (M2).
            sink(unsafe { self.memory.bytes(start, len) });
            self.written[usize::from(block)] = at + len;
            if at + len == block_bytes {
                self.order.pop_front();
                self.provide(block);
            }
            return Ok(());
        }
        let mut rest = len;
        while rest > 0 {
            let block = self.order.pop_front().context("a bundle of more blocks than provided")?;
            let part = rest.min(block_bytes);
            // SAFETY: just delivered, not yet provided again (M2).
            sink(unsafe { self.memory.bytes(usize::from(block) * block_bytes, part) });
            self.provide(block);
            rest -= part;
        }
        Ok(())
    }

    fn provide(&mut self, block: u16) {
        let index = usize::from(self.tail & (self.shape.kept - 1));
        let entry = index * ENTRY_BYTES;
        let start = usize::from(block) * self.shape.block_bytes as usize;
        let address = self.memory.at(start).expose_provenance() as u64;
        // SAFETY: the entry lies in the region; the kernel has consumed it, as there are as many
        // entries as blocks, and does not read it before the tail covers it.
        unsafe { self.entries.at(entry).cast::<u64>().write_volatile(address) };
        let len = self.shape.block_bytes;
        // SAFETY: as above.
        unsafe { self.entries.at(entry + LEN_AT).cast::<u32>().write_volatile(len) };
        // SAFETY: as above.
        unsafe { self.entries.at(entry + BLOCK_AT).cast::<u16>().write_volatile(block) };
        self.written[usize::from(block)] = 0;
        self.order.push_back(block);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: aligned, in bounds, alive as long as the region, and only ever accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(self.entries.at(TAIL_AT).cast()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// The buffer group of all receives.
pub(super) const GROUP: u16 = 0;
