//! Everything concurrent that this crate is made of, from std and crossbeam or from loom.
//!
//! The switch is `all(test, loom)`: `--cfg loom` reaches every crate of a build, but only the
//! tests of this one may run on loom's types, which panic outside a model.
//!
//! # What the models do not cover
//!
//! Loom sees its own types only, so under loom crossbeam's `ArrayQueue` is replaced by a model of
//! it with the same interface. The model promises *less* than crossbeam does: a pop is sure to find
//! an item only if the push happens-before it, and a push is sure to find room only if the pop that
//! made it happens-before it. (Crossbeam adds `SeqCst` fences that make "empty" and "full"
//! linearizable; no protocol here relies on that.) Crossbeam's own implementation, its unsafe slots
//! and its cache padding are thus not checked here; it is covered by its own tests and by this
//! crate's stress tests.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the facade")]

pub(crate) use crossbeam::utils::CachePadded;

#[cfg(not(all(test, loom)))]
pub(crate) use {
    crossbeam::queue::ArrayQueue,
    std::sync::atomic::{AtomicU32, Ordering, fence},
    std::sync::{Arc, Mutex, MutexGuard},
};

#[cfg(all(test, loom))]
pub(crate) use {
    loom::sync::atomic::{AtomicU32, Ordering, fence},
    loom::sync::{Arc, Mutex, MutexGuard},
    queue_model::ArrayQueue,
};

#[cfg(all(test, loom))]
mod queue_model {
    use std::fmt;
    use std::sync::{Mutex, PoisonError};

    use loom::sync::atomic::{AtomicUsize, Ordering};

    /// A bounded queue for many producers and consumers, after crossbeam's: each slot has a stamp
    /// that says whose turn it is.
    ///
    /// The stamps and both indices are loom atomics, so that loom explores every stale view of
    /// them. The values lie in std mutexes, which loom does not see and which are therefore no
    /// source of ordering; they are never contended, since loom only switches threads at its own
    /// operations. Indices don't wrap: no model makes that many operations.
    pub(crate) struct ArrayQueue<T> {
        head: AtomicUsize,
        tail: AtomicUsize,
        slots: Box<[Slot<T>]>,
    }

    struct Slot<T> {
        /// `index` when free for the push with that index, `index + 1` when full for that pop.
        stamp: AtomicUsize,
        value: Mutex<Option<T>>,
    }

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            assert!(capacity > 0, "a queue holds at least one item");
            let slot = |index| Slot { stamp: AtomicUsize::new(index), value: Mutex::new(None) };
            Self {
                head: AtomicUsize::new(0),
                tail: AtomicUsize::new(0),
                slots: (0..capacity).map(slot).collect(),
            }
        }

        pub(crate) fn capacity(&self) -> usize {
            self.slots.len()
        }

        pub(crate) fn push(&self, value: T) -> Result<(), T> {
            loop {
                let tail = self.tail.load(Ordering::Relaxed);
                let slot = &self.slots[tail % self.slots.len()];
                let stamp = slot.stamp.load(Ordering::Acquire);
                if stamp < tail {
                    return Err(value); // the item of the previous lap is still there
                }
                if stamp == tail && advance(&self.tail, tail) {
                    slot.put(value);
                    slot.stamp.store(tail + 1, Ordering::Release);
                    return Ok(());
                }
                loom::thread::yield_now();
            }
        }

        pub(crate) fn pop(&self) -> Option<T> {
            loop {
                let head = self.head.load(Ordering::Relaxed);
                let slot = &self.slots[head % self.slots.len()];
                let stamp = slot.stamp.load(Ordering::Acquire);
                if stamp == head && self.tail.load(Ordering::Relaxed) == head {
                    return None;
                }
                if stamp == head + 1 && advance(&self.head, head) {
                    let value = slot.take();
                    slot.stamp.store(head + self.slots.len(), Ordering::Release);
                    return Some(value);
                }
                loom::thread::yield_now(); // a push is between its reservation and its stamp
            }
        }
    }

    impl<T> Slot<T> {
        fn put(&self, value: T) {
            let before = self.value.lock().unwrap_or_else(PoisonError::into_inner).replace(value);
            assert!(before.is_none(), "a push overwrote an item");
        }

        fn take(&self) -> T {
            let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
            value.expect("a pop won a slot without an item")
        }
    }

    impl<T> fmt::Debug for ArrayQueue<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("ArrayQueue").field("capacity", &self.capacity()).finish_non_exhaustive()
        }
    }

    fn advance(index: &AtomicUsize, from: usize) -> bool {
        index.compare_exchange(from, from + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
