//! Where the bytes of a [`Region`](super::Region) come from.
//!
//! From the kernel, page-aligned and zeroed. Miri knows no mappings, and there nothing is shared with a
//! kernel: the allocator's memory does as well.

use std::io;
use std::ptr::NonNull;

/// Owns `len` bytes at an address that does not change.
#[cfg(not(miri))]
#[derive(Debug)]
pub(super) struct Map(memmap2::MmapRaw);

#[cfg(not(miri))]
impl Map {
    pub(super) fn new(len: usize, dont_fork: bool) -> io::Result<Self> {
        // No reference is formed to it (R1).
        let map = memmap2::MmapRaw::from(memmap2::MmapMut::map_anon(len)?);
        if dont_fork {
            map.advise(memmap2::Advice::DontFork)?;
        }
        Ok(Self(map))
    }

    pub(super) fn base(&mut self) -> io::Result<NonNull<u8>> {
        NonNull::new(self.0.as_mut_ptr()).ok_or_else(|| io::Error::other("mapping at address zero"))
    }
}

/// As above, of the allocator.
#[cfg(miri)]
#[derive(Debug)]
pub(super) struct Map {
    base: NonNull<u8>,
    layout: std::alloc::Layout,
}

#[cfg(miri)]
impl Map {
    pub(super) fn new(len: usize, _dont_fork: bool) -> io::Result<Self> {
        let layout = std::alloc::Layout::from_size_align(len, super::PAGE_BYTES)
            .ok()
            .filter(|layout| layout.size() > 0)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the size is not zero.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        Ok(Self { base: NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?, layout })
    }

    pub(super) fn base(&mut self) -> io::Result<NonNull<u8>> {
        Ok(self.base)
    }
}

#[cfg(miri)]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and not freed before.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}
