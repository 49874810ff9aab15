//! Raw memory that the kernel may read or write: receive regions and outbound blocks.
//!
//! # Invariants
//!
//! * **R1 (region)** A [`Region`] is one mapping of `len` bytes at a fixed address, alive until the
//!   `Region` is dropped. No reference to the whole of it is ever formed; every slice is derived
//!   from the base pointer and covers a range whose writer has finished.
//! * **O1 (outbound)** An [`OutboundBlock`] exclusively owns `capacity` bytes; with a capacity of zero it owns nothing.
//!   Bytes in `start..end` are initialised, and those in `end..zeroed` are zero. While a send that names the block is
//!   in flight the block itself is owned by the operation's slot, so nothing can write to it.

mod fork;
mod map;
pub(crate) mod shadow;
#[cfg(all(test, ringpost_asan))]
mod shadow_tests;

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use bytes::Bytes;

pub(crate) use self::fork::ForkMark;
use self::map::Map;
use self::shadow::Writable;
use crate::outbound::Payload;

/// A page-aligned anonymous mapping that receive blocks are cut from.
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
    /// Keeps the mapping alive; its bytes are only reached through `base`.
    _map: Map,
}

// SAFETY: the region is plain memory; who may touch which range is governed by the pool's block
// ownership (invariant R1), not by the thread that holds this value.
unsafe impl Send for Region {}
// SAFETY: as above; `Region` itself offers only pointer arithmetic and reads of finished ranges.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` zeroed bytes. With `dont_fork` a forked child does not inherit them, which memory
    /// that the kernel has pinned needs: copy-on-write after a fork would give the parent other pages
    /// than the kernel holds.
    pub(crate) fn new(len: usize, dont_fork: bool) -> io::Result<Self> {
        let mut map = Map::new(len, dont_fork)?;
        Ok(Self { base: map.base()?, len, _map: map })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Pointer to the byte at `offset`, for the kernel or for a slice of a finished range.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.len, "offset {offset} beyond region of {} bytes", self.len);
        // SAFETY: `offset <= len`, so the result stays within (or one past) the mapping (R1).
        unsafe { self.base.add(offset) }
    }

    /// The range as memory to receive into, for the engine that performs the receive itself.
    ///
    /// # Safety
    ///
    /// No other reference to any byte of the range exists while the result is alive: the range must
    /// belong to a block that is the engine's and lie behind everything already delivered from it.
    pub(crate) unsafe fn writable(&self, offset: usize, len: usize) -> Writable<'_> {
        assert!(len <= self.len - offset.min(self.len), "range beyond region");
        let start = self.at(offset).cast::<MaybeUninit<u8>>();
        // SAFETY: the range is inside the mapping (asserted) and exclusively ours by this function's
        // contract; MaybeUninit<u8> has no validity requirement.
        Writable::new(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) })
    }
}

#[cfg(ringpost_asan)]
impl Drop for Region {
    /// The addresses are used again, for other things.
    fn drop(&mut self) {
        shadow::allow(self.base.as_ptr(), self.len);
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Up to eight bytes of framing in front of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Zero from `len` on.
    bytes: [u8; Self::BYTES_MAX],
    /// At most `BYTES_MAX`.
    len: u8,
}

impl Prefix {
    /// Most bytes of a prefix.
    pub const BYTES_MAX: usize = 8;

    /// No framing.
    pub const NONE: Self = Self { bytes: [0; Self::BYTES_MAX], len: 0 };

    /// The eight bytes of `word`, little-endian.
    #[inline]
    pub const fn word(word: u64) -> Self {
        Self { bytes: word.to_le_bytes(), len: 8 }
    }

    /// The first `len` of the eight little-endian bytes of `word`; the others are zero already.
    #[inline(always)]
    pub const fn front(word: u64, len: usize) -> Self {
        debug_assert!(len >= Self::BYTES_MAX || word >> (8 * len) == 0);
        #[expect(clippy::cast_possible_truncation, reason = "at most eight")]
        let len = if len < Self::BYTES_MAX { len as u8 } else { 8 };
        Self { bytes: word.to_le_bytes(), len }
    }

    /// The first `len` bytes of `bytes`; all of them if there are fewer.
    #[inline]
    pub const fn new(bytes: [u8; Self::BYTES_MAX], len: usize) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "at most eight")]
        let len = if len < Self::BYTES_MAX { len as u8 } else { 8 };
        // Blocks store all eight, and what is behind `len` becomes the beginning of a zeroed body.
        let kept = if len == 8 { u64::MAX } else { (1 << (8 * len)) - 1 };
        let bytes = (u64::from_le_bytes(bytes) & kept).to_le_bytes();
        Self { bytes, len }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    /// Number of bytes.
    #[inline]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// True if there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Capacities of outbound blocks by class, bytes: a reply or a greeting; a page; what one batched send
/// carries. A large block starts on a page boundary and lacks the last bytes of its last page, see
/// [`COPY_HAZARD_BYTES`].
const CLASS_BYTES: [usize; 3] = [512, 4 * 1024, 64 * 1024 - COPY_HAZARD_BYTES];
/// Some processors (AMD EPYC with FSRM, measured) take 16 times as long for `rep movsb`, with which
/// the kernel copies, if the target's offset in its page is 1 to 31 bytes above the source's. The
/// kernel fills whole pages of socket buffers so that they end where the send ends: one that ends in
/// the last 31 bytes of a page of ours is such a copy. Full blocks never do. A whole cache line, so that
/// the next kind of processor may be a little worse.
const COPY_HAZARD_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
/// Blocks of each class kept for reuse: 512 KiB, 4 MiB and 4 MiB.
const CLASS_KEPT_MAX: [usize; 3] = [1024, 1024, 64];
/// Capacity of a block of the largest class, bytes.
pub(crate) const OUTBOUND_LARGE_BYTES: usize = CLASS_BYTES[2];

/// How large the blocks are that an outbound queue takes. Follows the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct BlockClass(u8);

impl BlockClass {
    /// The largest class.
    pub(crate) const LARGE: Self = Self(2);

    /// The class to take after a block of this one was too small.
    pub(crate) fn grown(self) -> Self {
        Self((self.0 + 1).min(Self::LARGE.0))
    }

    /// The class to take after a block left with `bytes` in it: a smaller one if that would have held
    /// four times as many.
    pub(crate) fn after(self, bytes: usize) -> Self {
        match self.0.checked_sub(1) {
            Some(smaller) if bytes * 4 <= CLASS_BYTES[usize::from(smaller)] => Self(smaller),
            _ => self,
        }
    }
}

/// A buffer that messages are written to once and that the kernel then reads.
pub(crate) struct OutboundBlock {
    base: NonNull<u8>,
    capacity: u32,
    start: u32,
    end: u32,
    /// Not behind `end` unless something was zeroed ahead.
    zeroed: u32,
}

/// A message that is being filled in place. Should that panic, what has been written does not count as zero.
struct Filling<'block> {
    zeroed: &'block mut u32,
    end: u32,
    finished: bool,
}

impl Drop for Filling<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.finished {
            *self.zeroed = self.end;
        }
    }
}

/// Bytes that [`OutboundBlock::append_with`] zeroes ahead at most: what the nearest cache holds well.
const ZEROED_AHEAD_BYTES_MAX: u32 = 4096;

// SAFETY: the block exclusively owns its allocation (O1).
unsafe impl Send for OutboundBlock {}

impl OutboundBlock {
    /// The longest body that a block holds behind a prefix, bytes: the result of its send is an `i32`.
    const BODY_BYTES_MAX: usize = i32::MAX as usize - Prefix::BYTES_MAX;

    /// True if there are blocks that hold a body of `len` bytes behind a prefix.
    #[inline]
    pub(crate) fn can_hold(len: usize) -> bool {
        len <= Self::BODY_BYTES_MAX
    }

    /// Allocates a block of `capacity` bytes: page-aligned if it is large, else cache-line aligned.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let capacity_u32 = u32::try_from(capacity).expect("what no block holds is queued apart");
        assert!(capacity > 0, "an outbound block holds at least one byte");
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a non-zero size (asserted above).
        let raw = unsafe { alloc(layout) };
        let Some(base) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { base, capacity: capacity_u32, start: 0, end: 0, zeroed: 0 }
    }

    /// No memory, without room for anything.
    pub(crate) const fn none() -> Self {
        Self { base: NonNull::dangling(), capacity: 0, start: 0, end: 0, zeroed: 0 }
    }

    fn layout(capacity: usize) -> Layout {
        let align = if capacity >= OUTBOUND_LARGE_BYTES { PAGE_BYTES } else { 64 };
        Layout::from_size_align(capacity, align).expect("a capacity below 4 GiB is a valid layout")
    }

    /// Empties the block and makes it start at `offset`: blocks that all start on a page boundary
    /// would compete for the same cache sets.
    pub(crate) fn reset(&mut self, offset: usize) {
        let offset = u32::try_from(offset).unwrap_or(0);
        debug_assert!(offset < self.capacity);
        self.start = offset;
        self.end = offset;
        self.zeroed = offset;
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Bytes written and not yet taken by the kernel.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where in the block the next byte goes.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        self.end as usize
    }

    /// Bytes that can still be appended.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        (self.capacity - self.end) as usize
    }

    /// Pointer and length of the unsent bytes, for an operation that owns the block.
    #[inline]
    pub(crate) fn pending(&self) -> (*const u8, u32) {
        // SAFETY: `start <= end <= capacity` (O1).
        let ptr = unsafe { self.base.add(self.start as usize) };
        (ptr.as_ptr(), self.end - self.start)
    }

    /// The unsent bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        let (ptr, len) = self.pending();
        // SAFETY: bytes in `start..end` are initialised and exclusively owned (O1).
        unsafe { std::slice::from_raw_parts(ptr, len as usize) }
    }

    /// A send that names the block is in flight: nobody touches its bytes.
    #[inline(always)]
    pub(crate) fn seal(&self) {
        shadow::seal(self.base.as_ptr(), self.capacity());
    }

    /// That send has ended.
    #[inline(always)]
    pub(crate) fn unseal(&self) {
        shadow::unseal(self.base.as_ptr());
    }

    /// Marks `bytes` at the front as taken by the kernel.
    pub(crate) fn advance(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        assert!(bytes <= self.end - self.start, "kernel took more than was offered");
        self.start += bytes;
    }

    /// Room that [`OutboundBlock::append`] asks for: the prefix is stored as a whole word.
    #[inline]
    pub(crate) fn fits(&self, body_bytes: usize) -> bool {
        // An empty body needs the prefix's room, too.
        body_bytes.saturating_add(self.end as usize + Prefix::BYTES_MAX) <= self.capacity as usize
    }

    /// Appends `prefix` and `body`. The caller has checked [`OutboundBlock::fits`].
    #[inline]
    pub(crate) fn append(&mut self, prefix: Prefix, body: &[u8]) {
        assert!(self.try_append(prefix, body, self.capacity()), "append beyond the block");
    }

    /// Appends `prefix` and `body` if they [fit](OutboundBlock::fits) a block that ends at `end_max`. False if they do
    /// not.
    #[inline(always)]
    pub(crate) fn try_append(&mut self, prefix: Prefix, body: &[u8], end_max: usize) -> bool {
        // No slice is so long that this overflows.
        let needed_end = self.end as usize + Prefix::BYTES_MAX + body.len();
        if needed_end > self.capacity().min(end_max) {
            return false;
        }
        // SAFETY: `end <= capacity` (O1).
        let target = unsafe { self.base.add(self.end as usize) }.as_ptr();
        // SAFETY: eight bytes from `end` on lie inside the allocation (`needed_end`) and are ours alone
        // (O1); the pointer is as aligned as an array of bytes needs.
        unsafe { target.cast::<[u8; Prefix::BYTES_MAX]>().write(prefix.bytes) };
        // SAFETY: `prefix.len <= 8`, so the target stays inside the allocation.
        let target = unsafe { target.add(prefix.len as usize) };
        // SAFETY: `body.len()` bytes behind the prefix lie inside the allocation (`needed_end`) and are ours
        // alone (O1); the source is a distinct borrowed slice.
        unsafe { std::ptr::copy_nonoverlapping(body.as_ptr(), target, body.len()) };
        #[expect(clippy::cast_possible_truncation, reason = "the room of a block fits u32")]
        let body_bytes = body.len() as u32;
        self.end += u32::from(prefix.len) + body_bytes;
        true
    }

    /// Appends `prefix` and `len` bytes that `fill` writes in place; they are zero at first, so that
    /// nothing from an earlier message can leak when `fill` leaves some untouched.
    #[inline]
    pub(crate) fn append_with(&mut self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) {
        let refused = self.try_append_with(prefix, len, self.capacity(), fill);
        assert!(refused.is_none(), "append beyond the block");
    }

    /// The same if it [fits](OutboundBlock::fits) a block that ends at `end_max`; else gives `fill` back.
    #[inline(always)]
    pub(crate) fn try_append_with<F: FnOnce(&mut [u8])>(
        &mut self,
        prefix: Prefix,
        len: usize,
        end_max: usize,
        fill: F,
    ) -> Option<F> {
        let needed_end = len.saturating_add(self.end as usize + Prefix::BYTES_MAX);
        if needed_end > self.capacity().min(end_max) {
            return Some(fill);
        }
        #[expect(clippy::cast_possible_truncation, reason = "the room of a block fits u32")]
        let end = self.end + u32::from(prefix.len) + len as u32;
        if end > self.zeroed {
            self.zero(end);
        }
        // SAFETY: `end <= capacity` (O1).
        let target = unsafe { self.base.add(self.end as usize) }.as_ptr();
        // SAFETY: as in `try_append`. What the word has behind the prefix is zero.
        unsafe { target.cast::<[u8; Prefix::BYTES_MAX]>().write(prefix.bytes) };
        // SAFETY: as in `try_append`.
        let target = unsafe { target.add(prefix.len as usize) };
        // SAFETY: `len` bytes behind the prefix lie inside the allocation (`needed_end`), are ours, and are
        // zero since `end <= zeroed` (O1).
        let slice = unsafe { std::slice::from_raw_parts_mut(target, len) };
        let mut filling = Filling { zeroed: &mut self.zeroed, end: self.end, finished: false };
        fill(slice);
        filling.finished = true;
        drop(filling);
        self.end = end;
        None
    }

    /// Makes the bytes up to `end`, which are within the capacity, zero, and three times as many more as there are in
    /// the block: zeroing for each of many small messages costs more than their bytes.
    #[cold]
    fn zero(&mut self, end: u32) {
        let from = self.zeroed.max(self.end);
        let ahead = (self.end - self.start).saturating_mul(3).min(ZEROED_AHEAD_BYTES_MAX);
        let until = end.saturating_add(ahead).min(self.capacity);
        // SAFETY: `from <= until <= capacity` (O1): `zeroed` and `end` are not beyond it either.
        let target = unsafe { self.base.add(from as usize) }.as_ptr();
        // SAFETY: the bytes up to `until` lie inside the allocation, and are ours (O1).
        unsafe { std::ptr::write_bytes(target, 0, (until - from) as usize) };
        self.zeroed = until;
    }
}

impl Drop for OutboundBlock {
    fn drop(&mut self) {
        if self.capacity == 0 {
            return;
        }
        self.unseal();
        shadow::allow(self.base.as_ptr(), self.capacity());
        // SAFETY: allocated in `with_capacity` with this very layout and not freed before (O1).
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity as usize)) };
    }
}

impl fmt::Debug for OutboundBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboundBlock")
            .field("capacity", &self.capacity)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Places at which page-sized blocks start in turn, to spread them over the cache sets; a quarter of a page is given up
/// at most.
const COLOURS: usize = 8;
const COLOUR_STEP_BYTES: usize = 128;
const PAGE_CLASS: usize = 1;

/// What the longest body that a block of this class holds leaves of it, bytes.
#[inline]
const fn taken_bytes(class: usize) -> usize {
    Prefix::BYTES_MAX + if class == PAGE_CLASS { COLOURS * COLOUR_STEP_BYTES } else { 0 }
}

/// Free lists of outbound blocks, so that steady traffic allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct OutboundBlocks {
    free: [Vec<OutboundBlock>; 3],
    colour: usize,
    /// Payloads of others that have been sent or given up, to be dropped when nothing is borrowed. As
    /// many as one turn finishes.
    released: Vec<Bytes>,
    /// Blocks taken from the allocator since the start.
    pub(crate) allocated: u64,
}

impl OutboundBlocks {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A block that fits `bytes` behind a prefix, of `class` or larger.
    #[inline]
    pub(crate) fn take(&mut self, bytes: usize, class: BlockClass) -> OutboundBlock {
        let fits = |class: &usize| bytes.saturating_add(taken_bytes(*class)) <= CLASS_BYTES[*class];
        let Some(class) = (class.0.into()..CLASS_BYTES.len()).find(fits) else {
            self.allocated += 1;
            return OutboundBlock::with_capacity(bytes + Prefix::BYTES_MAX);
        };
        let mut block = match self.free[class].pop() {
            Some(block) => {
                shadow::hand_out(block.base.as_ptr(), block.capacity());
                block
            }
            None => {
                self.allocated += 1;
                OutboundBlock::with_capacity(CLASS_BYTES[class])
            }
        };
        let mut offset = 0;
        if class == PAGE_CLASS {
            self.colour = (self.colour + 1) % COLOURS;
            offset = self.colour * COLOUR_STEP_BYTES;
        }
        block.reset(offset);
        block
    }

    /// Takes a payload that is not needed any more. Bytes of others are put aside: their destructor may
    /// be code of the user's, which must find nothing borrowed.
    pub(crate) fn release(&mut self, payload: Payload) {
        if let Payload::Bytes(bytes) = payload {
            self.released.push(bytes);
        }
    }

    /// True if something was put aside.
    #[inline]
    pub(crate) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// What was put aside, to be dropped by who has borrowed nothing.
    pub(crate) fn take_released(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.released)
    }

    /// Takes the empty list back, to spare an allocation.
    pub(crate) fn reuse_list(&mut self, list: Vec<Bytes>) {
        if self.released.is_empty() {
            self.released = list;
        }
    }

    #[inline]
    pub(crate) fn give_back(&mut self, block: OutboundBlock) {
        let class = CLASS_BYTES.iter().position(|bytes| *bytes == block.capacity());
        if let Some(class) = class
            && self.free[class].len() < CLASS_KEPT_MAX[class]
        {
            shadow::take_back(block.base.as_ptr(), block.capacity());
            self.free[class].push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_appends_and_advances() {
        let mut blocks = OutboundBlocks::new();
        let mut block = blocks.take(10, BlockClass::default());
        block.append(Prefix::new(*b"head....", 4), b"body");
        block.append_with(Prefix::NONE, 3, |bytes| {
            assert_eq!(bytes, [0, 0, 0]);
            bytes[0] = b'x';
        });
        assert_eq!(block.as_slice(), b"headbodyx\0\0");
        block.advance(4);
        assert_eq!(block.as_slice(), b"bodyx\0\0");
        blocks.give_back(block);
        assert!(blocks.take(10, BlockClass::default()).is_empty());
        assert_eq!(blocks.allocated, 1);
    }

    /// A block of `class` that is full of old bytes, taken anew.
    fn used_block(blocks: &mut OutboundBlocks, bytes: usize, class: BlockClass) -> OutboundBlock {
        let mut block = blocks.take(bytes, class);
        let most = block.room() - Prefix::BYTES_MAX;
        block.append_with(Prefix::word(u64::MAX), most, |bytes| bytes.fill(0xFF));
        blocks.give_back(block);
        let block = blocks.take(bytes, class);
        assert_eq!(blocks.allocated, 1, "it is the same one");
        block
    }

    #[test]
    fn what_is_filled_in_place_is_zero_at_first() {
        let mut lengths = [0, 1, 7, 64, 0, 300, 3, 4000, 1, 9000].into_iter().cycle();
        for class in [BlockClass::default(), BlockClass::default().grown(), BlockClass::LARGE] {
            let mut blocks = OutboundBlocks::new();
            let mut block = used_block(&mut blocks, 100, class);
            for round in 0..1000_usize {
                let len = lengths.next().unwrap();
                let prefix = Prefix::new([0xAA; 8], round % 9);
                if !block.fits(len) {
                    break;
                }
                if round % 4 == 3 {
                    block.append(prefix, &vec![0xBB; len]);
                    continue;
                }
                block.append_with(prefix, len, |bytes| {
                    assert!(bytes.iter().all(|byte| *byte == 0), "{class:?} {round} {len}");
                    bytes.fill(0xCC);
                });
                if round % 5 == 1 {
                    block.advance(block.len());
                }
            }
        }
    }

    #[test]
    fn what_a_panic_leaves_does_not_count_as_zero() {
        let mut block = OutboundBlocks::new().take(100, BlockClass::LARGE);
        for _ in 0..3 {
            block.append_with(Prefix::word(7), 64, |bytes| bytes.fill(1));
        }
        let before = block.as_slice().to_vec();
        let panics = std::panic::AssertUnwindSafe(|| {
            block.append_with(Prefix::word(7), 64, |bytes| {
                bytes.fill(2);
                panic!("half way");
            });
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(block.as_slice(), before, "nothing was accepted");
        block.append_with(Prefix::word(7), 64, |bytes| assert_eq!(bytes, [0; 64]));
    }

    #[test]
    fn few_messages_zero_little() {
        let mut blocks = OutboundBlocks::new();
        let mut block = used_block(&mut blocks, 100, BlockClass::LARGE);
        let first = block.end;
        block.append_with(Prefix::word(7), 64, |_| {});
        assert_eq!(block.zeroed, first + 8 + 64);
        for _ in 0..500 {
            block.append_with(Prefix::word(7), 64, |_| {});
            let ahead = block.zeroed - block.end;
            assert!(ahead <= 3 * (block.end - first) && ahead <= ZEROED_AHEAD_BYTES_MAX);
        }
    }

    #[test]
    fn a_prefix_has_nothing_behind_its_end() {
        for len in 0..=9 {
            let prefix = Prefix::new([0xFF; 8], len);
            assert_eq!(prefix.len(), len.min(8));
            assert!(prefix.bytes[prefix.len()..].iter().all(|byte| *byte == 0));
            assert!(prefix.as_slice().iter().all(|byte| *byte == 0xFF));
        }
    }

    #[test]
    fn few_free_blocks_are_kept() {
        let mut blocks = OutboundBlocks::new();
        for (class, kept) in CLASS_KEPT_MAX.into_iter().enumerate() {
            let taken: Vec<_> = (0..=kept)
                .map(|_| blocks.take(CLASS_BYTES[class] / 2 + 1, BlockClass::default()))
                .collect();
            taken.into_iter().for_each(|block| blocks.give_back(block));
            assert_eq!(blocks.free[class].len(), kept);
        }
    }

    #[test]
    fn no_full_block_ends_where_the_kernel_copies_slowly() {
        const SLOW_BYTES: usize = 32;
        // Interpreted, each takes seconds.
        for body in (0..200).step_by(if cfg!(miri) { 67 } else { 1 }) {
            let mut block = OutboundBlocks::new().take(body, BlockClass::LARGE);
            while block.fits(body) {
                block.append(Prefix::word(7), &vec![0; body]);
            }
            let (start, len) = block.pending();
            assert_eq!(start.addr() % PAGE_BYTES, 0);
            let end = (start.addr() + len as usize) % PAGE_BYTES;
            assert!(end <= PAGE_BYTES - SLOW_BYTES, "{body}: ends at {end}");
        }
    }

    #[test]
    fn a_full_block_fits_no_empty_body() {
        let mut blocks = OutboundBlocks::new();
        let mut block = blocks.take(10, BlockClass::default());
        while block.fits(0) {
            block.append(Prefix::word(7), &[]);
        }
        assert!(block.room() < Prefix::BYTES_MAX);
    }

    /// What fits is taken and nothing else, whoever writes it, wherever in the block, also if that may end earlier.
    #[test]
    fn what_is_tried_is_taken_if_it_fits() {
        let mut blocks = OutboundBlocks::new();
        for end_max in [0, 7, 8, 9, 100, 511, 512, 513, usize::MAX] {
            for before in [0, 1, 400, 496, 504] {
                let fresh = |blocks: &mut OutboundBlocks| {
                    let mut block = blocks.take(504, BlockClass::default());
                    block.append(Prefix::NONE, &vec![1; before]);
                    block
                };
                let whole = fresh(&mut blocks);
                for len in (0..=120).chain(500..=520) {
                    let end = whole.end() + Prefix::BYTES_MAX + len;
                    let fits = end <= whole.capacity().min(end_max);
                    let context = format!("{before} and {len} bytes up to {end_max}");
                    assert!(!fits || whole.fits(len), "{context}");
                    let body = vec![7; len];
                    let [mut copied, mut filled] = [fresh(&mut blocks), fresh(&mut blocks)];
                    let prefix = Prefix::word(9);
                    assert_eq!(copied.try_append(prefix, &body, end_max), fits, "{context}");
                    let called = std::cell::Cell::new(false);
                    let refused = filled.try_append_with(prefix, len, end_max, |bytes| {
                        called.set(true);
                        bytes.copy_from_slice(&body);
                    });
                    assert_eq!((refused.is_none(), called.get()), (fits, fits), "{context}");
                    assert_eq!(copied.as_slice(), filled.as_slice(), "{context}");
                    assert_eq!(copied.len() - before, if fits { 8 + len } else { 0 }, "{context}");
                    blocks.give_back(copied);
                    blocks.give_back(filled);
                }
                blocks.give_back(whole);
            }
        }
        let mut none = OutboundBlock::none();
        assert!(!none.try_append(Prefix::NONE, &[], usize::MAX));
        for len in [0, usize::MAX] {
            let refused =
                none.try_append_with(Prefix::NONE, len, usize::MAX, |_| panic!("no room"));
            assert!(refused.is_some());
        }
    }

    #[test]
    fn no_block_is_asked_to_hold_more_than_it_can_count() {
        let most = OutboundBlock::BODY_BYTES_MAX;
        for (len, held) in [(0, true), (1 << 30, true), (most, true), (most + 1, false)] {
            assert_eq!(OutboundBlock::can_hold(len), held, "{len}");
            assert_eq!(i32::try_from(len + Prefix::BYTES_MAX).is_ok(), held, "{len}");
        }
        assert!(!OutboundBlock::can_hold(usize::MAX));
    }

    #[test]
    fn blocks_fit_what_is_asked() {
        let mut blocks = OutboundBlocks::new();
        for bytes in [0, 1, 504, 505, 3064, 3065, 4096, 65464, 65465, 1 << 20] {
            let block = blocks.take(bytes, BlockClass::default());
            assert!(block.fits(bytes), "{bytes}");
            let most = block.room() - Prefix::BYTES_MAX;
            assert!(block.fits(most) && !block.fits(most + 1), "{bytes}");
        }
    }
}
