//! Blocks on their way back to the reactor that owns them.

use std::fmt;

use crate::mutation::{self, Mutation};
use crate::primitive::{ArrayQueue, CachePadded};
use crate::wake::WakeWord;

/// Brings blocks, whose last lease was dropped on any thread, back to their owner.
///
/// Normally the owner looks here once a turn and nobody is woken. Only an owner that has run out of
/// blocks and is about to sleep asks to be woken, with [`declare_starved`](Self::declare_starved).
///
/// # Invariants
///
/// 1. A block is in the queue at most once (whoever returns it gave up the last lease,
///    [`LeaseCount`](crate::LeaseCount)), and the queue has room for every block: a return can't
///    fail.
/// 2. "Something was returned" and "the owner starves" live in one [`WakeWord`], as notified and
///    parked: a return comes before the declaration, which then refuses, or after it, and then the
///    return is told to wake the owner.
///
/// The queue outlives the owner as long as leases do. What is returned then stays in it.
pub struct ReturnQueue {
    queue: ArrayQueue<u16>,
    word: CachePadded<WakeWord>,
}

impl ReturnQueue {
    /// The way back for a pool of `blocks` blocks.
    ///
    /// # Panics
    ///
    /// If `blocks` is zero or more than a `u16` can number.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        assert!(blocks <= BLOCKS_MAX, "blocks are numbered with a u16");
        Self { queue: ArrayQueue::new(blocks), word: CachePadded::new(WakeWord::new()) }
    }

    /// Returns a block. Any thread, after its last lease was given up. True: the owner starves and
    /// must be woken.
    ///
    /// # Panics
    ///
    /// If more blocks are returned than there are, which means that one was returned twice.
    #[must_use = "true means that the owner must be woken"]
    #[inline]
    pub fn put(&self, block: u16) -> bool {
        let early = mutation::active(Mutation::ReturnAnnouncedEarly) && self.word.notify();
        assert!(self.queue.push(block).is_ok(), "a block was returned twice");
        if mutation::active(Mutation::ReturnAnnouncedEarly) { early } else { self.word.notify() }
    }

    /// Owner: takes the next returned block.
    ///
    /// `None` ends a declared starvation if something had been returned since: declare
    /// again before the next sleep.
    #[inline]
    pub fn take(&self) -> Option<u16> {
        let block = self.queue.pop();
        if block.is_some() || !self.word.is_notified() {
            return block;
        }
        self.word.reset();
        if mutation::active(Mutation::ReturnNoRecheck) {
            return None;
        }
        // A block may have arrived between the first look and the reset, which acquired it.
        self.queue.pop()
    }

    /// Owner, before it sleeps without blocks. False: something was returned meanwhile; take it
    /// instead of sleeping.
    #[must_use = "false means that blocks can be taken"]
    #[inline]
    pub fn declare_starved(&self) -> bool {
        self.word.park() || mutation::active(Mutation::StarvedIgnoresReturn)
    }
}

impl fmt::Debug for ReturnQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReturnQueue")
            .field("blocks", &self.queue.capacity())
            .field("starved", &self.word.is_parked())
            .finish_non_exhaustive()
    }
}

const BLOCKS_MAX: usize = 1 << 16;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_starved_owner_is_woken_once() {
        let returns = ReturnQueue::new(4);
        assert_eq!(returns.take(), None);
        assert!(returns.declare_starved());
        assert!(returns.put(2));
        assert!(!returns.put(1), "the owner was told");
        assert_eq!([returns.take(), returns.take(), returns.take()], [Some(2), Some(1), None]);
        assert!(!returns.put(3), "the starvation has ended");
    }

    #[test]
    fn starvation_is_refused_while_blocks_wait() {
        let returns = ReturnQueue::new(2);
        assert!(!returns.put(0));
        assert!(!returns.declare_starved());
        assert_eq!(returns.take(), Some(0));
        // The announcement is still there; it costs one more look and no wake-up.
        assert!(!returns.declare_starved());
        assert_eq!(returns.take(), None);
        assert!(returns.declare_starved());
        assert!(returns.declare_starved(), "may be repeated");
    }

    #[test]
    fn misuse_panics() {
        let returns = ReturnQueue::new(1);
        assert!(!returns.put(0));
        assert!(catch_unwind(AssertUnwindSafe(|| returns.put(0))).is_err());
        assert!(catch_unwind(|| ReturnQueue::new(BLOCKS_MAX + 1)).is_err());
        assert!(catch_unwind(|| ReturnQueue::new(0)).is_err());
    }

    #[test]
    fn shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<ReturnQueue>();
        assert_eq!(
            format!("{:?}", ReturnQueue::new(3)),
            "ReturnQueue { blocks: 3, starved: false, .. }"
        );
    }
}
