//! The receive pool: blocks that the kernel fills and that are lent to readers in place.
//!
//! # Block life
//!
//! ```text
//!   Free --provide--> Kernel --retire--> Leased --last lease gone--> (return queue) --> Free
//!                        \_______________ no lease left at retire _____________________/
//! ```
//!
//! # Invariants
//!
//! * **P1 (one count)** `counts[b]` is the number of [`Lease`]s of block `b`, plus one while the
//!   block is the kernel's. It only rises from zero when the owner provides the block.
//! * **P2 (finished ranges)** A [`Lease`] covers bytes that the kernel has finished writing. The
//!   kernel writes only behind the highest byte delivered from that block, so no lease overlaps a
//!   range that can still change until the count has fallen to zero.
//! * **P3 (region lives)** Each block whose count is above zero holds one strong reference of the
//!   [`PoolShared`]. The region is therefore mapped as long as any lease or the kernel may touch it,
//!   even after the pool itself is gone.
//! * **P4 (conservation)** `free + kernel + leased = blocks`; checked by [`Pool::check`].

use std::fmt;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ringpost_sync::{LeaseCount, ReturnQueue};

use crate::memory::{Region, shadow};
use crate::wake::Inbox;

/// Index of a block in its pool.
pub(crate) type BlockId = u16;

/// What outlives the pool while leases exist.
pub(crate) struct PoolShared {
    region: Region,
    block_bytes: u32,
    counts: Box<[LeaseCount]>,
    returns: ReturnQueue,
    inbox: Arc<Inbox>,
    /// Leased bytes that a reader copied after all.
    copied: AtomicU64,
}

impl PoolShared {
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    pub(crate) fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    pub(crate) fn offset_of(&self, block: BlockId) -> usize {
        block as usize * self.block_bytes as usize
    }

    fn start_of(&self, block: BlockId) -> *const u8 {
        self.region.at(self.offset_of(block)).as_ptr()
    }

    /// Gives up one count of `block`; the last one returns the block to the owner.
    ///
    /// # Safety
    ///
    /// The caller owns one count of `block` in the pool at `this` and does not use it afterwards. `this` is of
    /// `Arc::as_ptr`.
    unsafe fn release(this: NonNull<Self>, block: BlockId) {
        // SAFETY: a count above zero holds a strong reference (P3), so the pool is alive here.
        let shared = unsafe { this.as_ref() };
        if shared.counts[block as usize].release() {
            shadow::forbid(shared.start_of(block), shared.block_bytes as usize);
            if shared.returns.put(block) {
                shared.inbox.notify();
            }
            // SAFETY: the strong reference of this block's non-zero period (P3), made by
            // `Pool::take_free` through `Arc::increment_strong_count`, is given up exactly once:
            // only one release sees the count reach zero (P1).
            unsafe { Arc::decrement_strong_count(this.as_ptr()) };
        }
    }
}

impl fmt::Debug for PoolShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolShared")
            .field("blocks", &self.counts.len())
            .field("block_bytes", &self.block_bytes)
            .finish_non_exhaustive()
    }
}

/// Received bytes, lent in place. May be dropped on any thread; the block goes back to the kernel
/// when its last lease is gone.
pub struct Lease {
    shared: NonNull<PoolShared>,
    data: NonNull<u8>,
    len: u32,
    block: BlockId,
}

// SAFETY: a lease is a shared, read-only view of bytes nobody writes (P2); its count and the return
// queue are made for release on any thread (models of the lease protocol in ringpost-sync).
unsafe impl Send for Lease {}
// SAFETY: as above; `&Lease` only reads.
unsafe impl Sync for Lease {}

impl Lease {
    /// The leased bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the range lies in the region, is initialised (zeroed mapping, then written by the
        // receive), finished (P2) and mapped while this lease holds its count (P3).
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len as usize) }
    }

    /// Number of leased bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True if no bytes are left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the first `bytes` bytes from the view.
    ///
    /// # Panics
    ///
    /// If `bytes` is more than [`Lease::len`].
    #[inline]
    pub fn advance(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        assert!(bytes <= self.len, "advance beyond the lease");
        // SAFETY: `bytes <= len`, so the result stays within the leased range or one past it.
        self.data = unsafe { self.data.add(bytes as usize) };
        self.len -= bytes;
    }

    /// A second lease of `range` of these bytes.
    ///
    /// # Panics
    ///
    /// If the range is not within the lease.
    #[inline]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "range beyond the lease");
        let len = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
        // SAFETY: this lease holds a strong reference of the pool through its count (P3).
        let shared = unsafe { self.shared.as_ref() };
        shared.counts[self.block as usize].acquire();
        // SAFETY: `range.start <= len`, as asserted.
        let data = unsafe { self.data.add(range.start) };
        Self { shared: self.shared, data, len, block: self.block }
    }

    /// Counts `bytes` of leased memory that the reader copied after all
    /// ([`Stats::bytes_copied`](crate::Stats::bytes_copied)).
    pub fn count_copied(&self, bytes: usize) {
        // SAFETY: this lease holds a strong reference of the pool through its count (P3).
        let shared = unsafe { self.shared.as_ref() };
        shared.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Takes `next` into this lease if it continues it in memory; gives it back otherwise.
    pub fn try_extend(&mut self, next: Self) -> Result<(), Self> {
        if self.block != next.block
            || self.shared != next.shared
            || self.data.as_ptr().wrapping_add(self.len as usize) != next.data.as_ptr()
        {
            return Err(next);
        }
        // Both lie in one block, whose size fits u32.
        self.len += next.len;
        Ok(())
    }
}

impl Deref for Lease {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.slice(0..self.len())
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: each lease owns exactly one count, given up here and nowhere else.
        unsafe { PoolShared::release(self.shared, self.block) };
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("block", &self.block).field("len", &self.len).finish()
    }
}

/// Where a block is, from the owner's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    Kernel,
    Leased,
}

/// The owner's side of the pool.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<PoolShared>,
    places: Box<[Place]>,
    /// Blocks that something was lent from since they were last free.
    lent: Box<[bool]>,
    /// Of the blocks with the kernel, those that something was lent from.
    kernel_lent: usize,
    /// Last in, first out: the most recently used block is the one whose lines are in the cache.
    free: Vec<BlockId>,
    kernel: usize,
    leased: usize,
    /// Fewest free + kernel blocks seen.
    low_water: usize,
}

impl Pool {
    pub(crate) fn new(blocks: u16, block_bytes: u32, inbox: Arc<Inbox>) -> io::Result<Self> {
        let region = Region::new(blocks as usize * block_bytes as usize, false)?;
        shadow::forbid(region.at(0).as_ptr(), region.len());
        let shared = Arc::new(PoolShared {
            region,
            block_bytes,
            counts: (0..blocks).map(|_| LeaseCount::new()).collect(),
            returns: ReturnQueue::new(blocks as usize),
            inbox,
            copied: AtomicU64::new(0),
        });
        Ok(Self {
            shared,
            places: vec![Place::Free; blocks as usize].into(),
            lent: vec![false; blocks as usize].into(),
            kernel_lent: 0,
            free: (0..blocks).rev().collect(),
            kernel: 0,
            leased: 0,
            low_water: blocks as usize,
        })
    }

    pub(crate) fn shared(&self) -> &Arc<PoolShared> {
        &self.shared
    }

    pub(crate) fn blocks(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn free_blocks(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn kernel_blocks(&self) -> usize {
        self.kernel
    }

    pub(crate) fn leased_blocks(&self) -> usize {
        self.leased
    }

    pub(crate) fn copied_bytes(&self) -> u64 {
        self.shared.copied.load(Ordering::Relaxed)
    }

    pub(crate) fn low_water_blocks(&self) -> usize {
        self.low_water
    }

    /// Takes a free block for the kernel.
    pub(crate) fn take_free(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        debug_assert_eq!(self.places[block as usize], Place::Free);
        self.places[block as usize] = Place::Kernel;
        self.lent[block as usize] = false;
        self.kernel += 1;
        self.shared.counts[block as usize].acquire();
        let raw = Arc::as_ptr(&self.shared);
        // SAFETY: `raw` comes from a live Arc; the count taken here is the block's own strong
        // reference (P3), given up in `PoolShared::release`.
        unsafe { Arc::increment_strong_count(raw) };
        Some(block)
    }

    /// Blocks that nothing is lent from.
    pub(crate) fn unlent_blocks(&self) -> usize {
        self.free.len() + self.kernel - self.kernel_lent
    }

    pub(crate) fn is_lent(&self, block: BlockId) -> bool {
        self.lent[block as usize]
    }

    /// True if bytes of `block` may be lent, see [`Pool::may_use`]. What is reserved is asked for if it matters.
    #[inline]
    pub(crate) fn may_lend(&self, block: BlockId, reserved: impl FnOnce(&Self) -> usize) -> bool {
        self.is_lent(block) || self.may_use(reserved(self))
    }

    /// True if another block may be lent, or held by somebody else than the engine: the last quarter of the pool never
    /// is, so that receiving can go on whatever readers hold on to. `reserved` more blocks are of no use to
    /// whoever asks.
    pub(crate) fn may_use(&self, reserved: usize) -> bool {
        self.unlent_blocks().saturating_sub(reserved) * 4 > self.places.len()
    }

    /// A lease of bytes that the kernel has just delivered from `block`.
    #[inline(always)]
    pub(crate) fn lease(&mut self, block: BlockId, offset: u32, len: u32) -> Lease {
        assert_eq!(self.places[block as usize], Place::Kernel, "delivery from a foreign block");
        let end = u64::from(offset) + u64::from(len);
        assert!(end <= u64::from(self.shared.block_bytes), "delivery beyond the block");
        if !std::mem::replace(&mut self.lent[block as usize], true) {
            self.kernel_lent += 1;
        }
        self.shared.counts[block as usize].acquire();
        let data = self.shared.region.at(self.shared.offset_of(block) + offset as usize);
        shadow::hand_out(data.as_ptr(), len as usize);
        Lease { shared: self.pointer(), data, len, block }
    }

    /// The pool as leases refer to it: with the whole of the `Arc`, whose count the last release of a block gives up,
    /// and not only with what is in it, as a reference would be.
    fn pointer(&self) -> NonNull<PoolShared> {
        NonNull::new(Arc::as_ptr(&self.shared).cast_mut()).expect("an `Arc` is not null")
    }

    /// A copy of bytes that the kernel has just delivered from `block`.
    pub(crate) fn copy(&mut self, block: BlockId, offset: u32, len: u32) -> Bytes {
        let (lent, kernel_lent) = (self.lent[block as usize], self.kernel_lent);
        let lease = self.lease(block, offset, len);
        let bytes = Bytes::copy_from_slice(&lease);
        shadow::take_back(lease.data.as_ptr(), lease.len());
        drop(lease);
        // The lease is gone.
        self.lent[block as usize] = lent;
        self.kernel_lent = kernel_lent;
        bytes
    }

    /// The kernel is done with `block`; it becomes free once its last lease is gone.
    pub(crate) fn retire(&mut self, block: BlockId) {
        assert_eq!(self.places[block as usize], Place::Kernel, "retired twice");
        self.places[block as usize] = Place::Leased;
        self.kernel -= 1;
        self.kernel_lent -= usize::from(self.lent[block as usize]);
        self.leased += 1;
        self.low_water = self.low_water.min(self.free.len() + self.kernel);
        // SAFETY: the kernel's count, taken in `take_free`, is given up exactly once: the place has
        // just left `Kernel`.
        unsafe { PoolShared::release(self.pointer(), block) };
    }

    /// Moves returned blocks to the free list. True if there were any.
    #[inline]
    pub(crate) fn collect_returns(&mut self) -> bool {
        if self.leased == 0 {
            return false;
        }
        let mut any = false;
        while let Some(block) = self.shared.returns.take() {
            debug_assert_eq!(self.places[block as usize], Place::Leased);
            self.places[block as usize] = Place::Free;
            self.leased -= 1;
            self.free.push(block);
            any = true;
        }
        any
    }

    /// Before parking with receives that wait for blocks: false if some were returned meanwhile.
    pub(crate) fn declare_starved(&self) -> bool {
        self.shared.returns.declare_starved()
    }

    /// Checks conservation (P4).
    pub(crate) fn check(&self) {
        assert_eq!(
            self.free.len() + self.kernel + self.leased,
            self.places.len(),
            "receive blocks lost or doubled: free {} kernel {} leased {}",
            self.free.len(),
            self.kernel,
            self.leased
        );
    }
}

impl Drop for Pool {
    /// Blocks still in the kernel's hands keep their count and with it the region (P3): memory that a
    /// late write could reach is leaked, never freed.
    fn drop(&mut self) {
        if self.kernel > 0 {
            tracing::warn!(blocks = self.kernel, "receive blocks left with the kernel are leaked");
            shadow::leak(Arc::as_ptr(&self.shared));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(blocks: u16) -> Pool {
        Pool::new(blocks, 4096, Arc::new(Inbox::for_test())).unwrap()
    }

    #[test]
    fn block_returns_after_its_last_lease() {
        let mut pool = pool(2);
        let block = pool.take_free().unwrap();
        let first = pool.lease(block, 0, 10);
        let second = first.slice(2..4);
        pool.retire(block);
        pool.check();
        assert!(!pool.collect_returns());
        drop(first);
        assert!(!pool.collect_returns());
        std::thread::spawn(move || drop(second)).join().unwrap();
        assert!(pool.collect_returns());
        assert_eq!(pool.free_blocks(), 2);
        pool.check();
    }

    #[test]
    fn the_last_quarter_is_never_lent() {
        let mut pool = pool(8);
        let blocks: Vec<_> = (0..8).map(|_| pool.take_free().unwrap()).collect();
        let mut kept = Vec::new();
        // A little of each, before any is finished.
        for &block in &blocks {
            if pool.may_lend(block, |_| 0) {
                kept.push(pool.lease(block, 0, 1));
            } else {
                assert_eq!(*pool.copy(block, 0, 1), [0]);
            }
        }
        assert_eq!((kept.len(), pool.unlent_blocks()), (6, 2));
        assert!(pool.may_lend(blocks[0], |_| 0), "more of what is lent costs nothing");
        blocks.iter().for_each(|&block| pool.retire(block));
        assert!(pool.collect_returns());
        assert_eq!((pool.free_blocks(), pool.unlent_blocks()), (2, 2));
        drop(kept);
        pool.collect_returns();
        assert!(pool.may_lend(blocks[0], |_| 0));
        pool.check();
    }

    #[test]
    fn adjacent_leases_join() {
        let mut pool = pool(1);
        let block = pool.take_free().unwrap();
        let mut first = pool.lease(block, 0, 10);
        let second = pool.lease(block, 10, 5);
        let apart = pool.lease(block, 16, 5);
        first.try_extend(second).unwrap();
        assert_eq!(first.len(), 15);
        let apart = first.try_extend(apart).unwrap_err();
        pool.retire(block);
        drop((first, apart));
        assert!(pool.collect_returns());
    }

    #[test]
    fn lease_outlives_pool() {
        let mut pool = pool(1);
        let block = pool.take_free().unwrap();
        let lease = pool.lease(block, 0, 4096);
        let weak = Arc::downgrade(pool.shared());
        pool.retire(block);
        drop(pool);
        assert!(weak.upgrade().is_some());
        assert_eq!(lease.as_slice(), [0; 4096]);
        drop(lease);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "leaks on purpose, which Miri reports")]
    fn blocks_of_the_kernel_are_leaked_with_the_pool() {
        let mut pool = pool(1);
        let _block = pool.take_free().unwrap();
        let weak = Arc::downgrade(pool.shared());
        drop(pool);
        assert!(weak.upgrade().is_some());
    }
}
