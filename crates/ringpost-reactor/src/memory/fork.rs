//! Noticing that this process is a child of the one that built the reactor.
//!
//! A forked child has copies of the reactor's memory and descriptors and must use neither: the sockets, the
//! epoll set and the ring are its parent's, and the ring's memory is not even mapped (MADV_DONTFORK). So in
//! a child the reactor has ended: it says so to whoever asks, and asks nothing of the kernel.

use std::io;

use memmap2::MmapMut;
use rustix::mm::{Advice, madvise};

/// A page that a child finds wiped (MADV_WIPEONFORK, Linux 4.14): looking at it takes no system call.
#[derive(Debug)]
pub(crate) struct ForkMark {
    /// None where the kernel does not wipe, and for a reactor that has nothing of the kernel's.
    page: Option<MmapMut>,
}

const PAGE_BYTES: usize = 4096;
const ORIGINAL: u8 = 1;

impl ForkMark {
    /// Marks the calling process.
    pub(crate) fn new() -> io::Result<Self> {
        let mut page = MmapMut::map_anon(PAGE_BYTES)?;
        let start = page.as_mut_ptr().cast();
        // SAFETY: the range is the mapping, which nobody else knows and which is all zero now, so that a
        // child's zeroes are a state that it has had.
        let advised = unsafe { madvise(start, PAGE_BYTES, Advice::LinuxWipeOnFork) };
        if let Err(error) = advised {
            tracing::debug!(%error, "a fork of this process would go unnoticed");
            return Ok(Self { page: None });
        }
        page[0] = ORIGINAL;
        Ok(Self { page: Some(page) })
    }

    /// Marks nothing.
    pub(crate) fn none() -> Self {
        Self { page: None }
    }

    /// True in a child that was forked since.
    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        self.page.as_ref().is_some_and(|page| page[0] != ORIGINAL)
    }
}
