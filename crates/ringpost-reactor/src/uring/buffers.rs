//! The provided-buffer ring: how receive blocks are handed to the kernel.
//!
//! # Invariants
//!
//! * **B1** The ring is `entries` (a power of two) 16-byte entries in memory that the kernel has
//!   pinned; it is written only through raw pointers, because entry 0 also holds the tail that the
//!   kernel reads, and the kernel moves the address of a partly used entry.
//! * **B2** There are at least as many entries as blocks and each block is in the ring at most once,
//!   so an entry being written has been consumed.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use super::Ring;
use crate::memory::Region;
use crate::pool::BlockId;

/// One entry as the kernel reads it (`struct io_uring_buf`).
#[repr(C)]
struct Entry {
    address: u64,
    len: u32,
    block: u16,
    tail: u16,
}

const _: () = assert!(size_of::<Entry>() == 16);

/// The buffer group all receives use.
pub(super) const GROUP: u16 = 0;

#[derive(Debug)]
pub(super) struct BufferRing {
    pub(super) memory: Region,
    mask: u16,
    tail: u16,
}

impl BufferRing {
    /// Allocates a ring for `blocks` blocks and registers it with `ring`.
    pub(super) fn register(ring: &mut impl Ring, blocks: u16, flags: u16) -> io::Result<Self> {
        let entries = blocks
            .checked_next_power_of_two()
            .filter(|&entries| entries <= 1 << 15)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let memory = Region::new(entries as usize * size_of::<Entry>(), true)?;
        let address = memory.at(0).as_ptr().expose_provenance() as u64;
        // SAFETY: the region holds `entries` entries and is dropped only after the ring has been
        // closed: `Uring` declares the ring before the buffer ring.
        unsafe { ring.register_buffers(address, entries, GROUP, flags)? };
        Ok(Self { memory, mask: entries - 1, tail: 0 })
    }

    fn entry(&self, index: u16) -> NonNull<Entry> {
        self.memory.at((index & self.mask) as usize * size_of::<Entry>()).cast()
    }

    /// Adds `len` bytes at `address` as `block`.
    pub(super) fn add(&mut self, block: BlockId, address: NonNull<u8>, len: u32) {
        let entry = self.entry(self.tail).as_ptr();
        let address = address.as_ptr().expose_provenance() as u64;
        // SAFETY: `entry` points to an entry inside the region (B1); no reference is formed.
        let address_field = unsafe { &raw mut (*entry).address };
        // SAFETY: as above.
        let len_field = unsafe { &raw mut (*entry).len };
        // SAFETY: as above.
        let block_field = unsafe { &raw mut (*entry).block };
        // SAFETY: valid and aligned, and the kernel does not read the entry before the tail covers it
        // (B2).
        unsafe { address_field.write_volatile(address) };
        // SAFETY: as above.
        unsafe { len_field.write_volatile(len) };
        // SAFETY: as above.
        unsafe { block_field.write_volatile(block) };
        self.tail = self.tail.wrapping_add(1);
        self.publish();
    }

    /// Makes everything added visible to the kernel.
    fn publish(&self) {
        let first = self.entry(0).as_ptr();
        // SAFETY: the tail lies in the reserved field of entry 0 (io_uring_register(2),
        // IORING_REGISTER_PBUF_RING); in bounds and aligned.
        let tail = unsafe { &raw mut (*first).tail };
        // SAFETY: aligned, valid while `self.memory` lives, and only ever accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail) };
        tail.store(self.tail, Ordering::Release);
    }
}
