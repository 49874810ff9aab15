//! A buffer ring from the kernel's side.
//!
//! # Invariants
//!
//! * **G1** From registration to the end of the ring, `address` is the start of `mask + 1` entries
//!   (contract of `Ring::register_buffers`).
//! * **G2** An entry between `head` and the tail names memory of the pool that nobody else touches; it was
//!   checked when the tail passed it.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::SCRIBBLE_BYTES;
use super::world::World;
use crate::memory::shadow::Writable;
use crate::pool::{BlockId, PoolShared};

/// `struct io_uring_buf` (io_uring_register(2)); the tail is that of entry 0.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Raw {
    address: u64,
    len: u32,
    block: u16,
    tail: u16,
}

const _: () = assert!(size_of::<Raw>() == 16);

/// `IOU_PBUF_RING_INC`.
const INCREMENTAL: u16 = 2;

/// A registered buffer ring.
pub(super) struct Group {
    pool: Arc<PoolShared>,
    pub(super) id: u16,
    address: usize,
    mask: u16,
    pub(super) incremental: bool,
    head: u16,
    /// The tail when it was last looked at.
    tail: u16,
    pattern: u8,
}

impl Group {
    pub(super) fn new(
        pool: &Arc<PoolShared>,
        id: u16,
        address: u64,
        entries: u16,
        flags: u16,
    ) -> Self {
        let address = usize::try_from(address).unwrap_or(0);
        let pool = Arc::clone(pool);
        let incremental = flags & INCREMENTAL != 0;
        let mask = entries - 1;
        Self { pool, id, address, mask, incremental, head: 0, tail: 0, pattern: 0 }
    }

    fn entry(&self, index: u16) -> *mut Raw {
        let offset = (index & self.mask) as usize * size_of::<Raw>();
        ptr::with_exposed_provenance_mut(self.address + offset)
    }

    fn read(&self, index: u16) -> Raw {
        // SAFETY: the entry lies in the ring (G1).
        unsafe { self.entry(index).read_volatile() }
    }

    /// Looks at the tail, and at the entries that are new.
    pub(super) fn look(&mut self, world: &World) {
        // SAFETY: entry 0 lies in the ring (G1); no reference is formed.
        let tail = unsafe { &raw mut (*self.entry(0)).tail };
        // SAFETY: aligned, valid (G1), and only ever accessed atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail) }.load(Ordering::Acquire);
        if tail.wrapping_sub(self.head) > self.mask + 1 {
            return world.fail("the tail of the buffer ring has overtaken its head");
        }
        while self.tail != tail {
            let Raw { address, len, block, .. } = self.read(self.tail);
            let room = usize::try_from(address).ok().and_then(|start| {
                let base = self.pool.region().at(self.pool.offset_of(block)).addr().get();
                start.checked_sub(base)
            });
            let block_bytes = self.pool.block_bytes();
            let whole = room.is_some_and(|offset| offset + len as usize == block_bytes as usize);
            if !whole || len == 0 {
                return world.fail("a buffer is not the rest of its block");
            }
            if self.blocks().any(|held| held == block) {
                return world.fail("a block is in the buffer ring twice");
            }
            self.tail = self.tail.wrapping_add(1);
            self.scribble(self.tail.wrapping_sub(1), usize::MAX);
        }
    }

    /// Blocks in the ring, oldest first, as of the last look.
    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockId> {
        self.indices().map(|index| self.read(index).block)
    }

    /// Bytes of a block in the ring that have been written.
    pub(super) fn written(&self, block: BlockId) -> Option<u32> {
        let entry = self.indices().map(|index| self.read(index)).find(|raw| raw.block == block)?;
        Some(self.pool.block_bytes() - entry.len)
    }

    fn indices(&self) -> impl Iterator<Item = u16> + use<> {
        let Self { head, tail, .. } = *self;
        (0..tail.wrapping_sub(head)).map(move |offset| head.wrapping_add(offset))
    }

    /// Bytes of room in the buffer that comes next.
    pub(super) fn room_bytes(&self) -> Option<usize> {
        (self.head != self.tail).then(|| self.read(self.head).len as usize)
    }

    /// The first `len` bytes of that room.
    pub(super) fn room(&self, len: usize) -> Writable<'_> {
        self.memory(self.head, len)
    }

    fn memory(&self, index: u16, len: usize) -> Writable<'_> {
        let Raw { address, len: room, .. } = self.read(index);
        let region = self.pool.region();
        let start = usize::try_from(address).unwrap_or(0) - region.at(0).addr().get();
        // SAFETY: the entry is between head and tail, so its memory is the kernel's alone (G2).
        unsafe { region.writable(start, len.min(room as usize)) }
    }

    /// Writes something else to memory that nobody may look at.
    pub(super) fn scribble_all(&mut self) {
        for index in self.indices() {
            self.scribble(index, SCRIBBLE_BYTES);
        }
    }

    fn scribble(&mut self, index: u16, len: usize) {
        self.pattern = self.pattern.wrapping_mul(5).wrapping_add(0x3B);
        let pattern = self.pattern;
        self.memory(index, len).fill(MaybeUninit::new(pattern));
    }

    /// The buffer that comes next, which stays where it is.
    pub(super) fn next(&self) -> Option<BlockId> {
        (self.head != self.tail).then(|| self.read(self.head).block)
    }

    /// Takes the next buffer out.
    pub(super) fn take(&mut self) -> Option<BlockId> {
        let block = self.next()?;
        self.head = self.head.wrapping_add(1);
        Some(block)
    }

    /// `len` bytes were written to the next buffer: which block it is of, and whether it has more room.
    /// As the kernel does, moves the start of what is left (`io_kbuf_inc_commit`).
    pub(super) fn commit(&mut self, len: usize) -> Option<(BlockId, bool)> {
        let Raw { address, len: room, block, .. } = self.read(self.head);
        let left = room - u32::try_from(len).unwrap_or(room).min(room);
        if !self.incremental || left == 0 {
            return self.take().map(|block| (block, false));
        }
        let entry = self.entry(self.head);
        // SAFETY: the entry lies in the ring (G1); no reference is formed.
        let address_field = unsafe { &raw mut (*entry).address };
        // SAFETY: as above.
        let len_field = unsafe { &raw mut (*entry).len };
        // SAFETY: valid and aligned; the owner does not touch an entry that the tail covers.
        unsafe { address_field.write_volatile(address + len as u64) };
        // SAFETY: as above.
        unsafe { len_field.write_volatile(left) };
        Some((block, true))
    }
}
