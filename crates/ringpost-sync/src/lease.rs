//! How many leases of one receive block are out.

use std::fmt;

use crate::mutation::{self, Mutation};
use crate::primitive::{AtomicU32, Ordering, fence};

/// The leases of one receive block: the block may be used again when the last one is given up.
///
/// # Invariants
///
/// 1. A count that is zero belongs to the owner (the reactor), which alone may raise it from there.
///    Everyone else holds a lease while they [`acquire`](Self::acquire) another.
/// 2. Exactly one [`release`](Self::release) brings the count to zero and is told so.
/// 3. Whatever was read under any lease happens-before the return of that release: each gives up
///    its lease with `Release`, the decrements form one release sequence, and the last one acquires
///    it.
pub struct LeaseCount {
    count: AtomicU32,
}

impl LeaseCount {
    /// The count of a block that nobody has leased.
    #[must_use]
    pub fn new() -> Self {
        Self { count: AtomicU32::new(0) }
    }

    /// Counts one more lease. The caller holds one already, or is the owner.
    ///
    /// # Panics
    ///
    /// If there are more than 2³¹ leases of one block, which only leaking them can bring about.
    #[inline]
    pub fn acquire(&self) {
        self.acquire_many(1);
    }

    /// Counts `leases` more leases in one step. The caller holds one already, or is the owner.
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire).
    #[inline]
    pub fn acquire_many(&self, leases: u32) {
        assert!(leases <= LEASES_MAX, "more leases than a block can have");
        // Relaxed: whoever is given the new lease is given it through something that orders.
        let before = if mutation::active(Mutation::LeaseAcquireSplit) {
            let before = self.count.load(Ordering::Relaxed);
            self.count.store(before + leases, Ordering::Relaxed);
            before
        } else {
            self.count.fetch_add(leases, Ordering::Relaxed)
        };
        // As far below the wrap-around as there is room for calls that are past the addition.
        assert!(before <= LEASES_MAX, "more leases than a block can have");
    }

    /// Gives up one lease. True: it was the last, everything read under the others has happened,
    /// and the caller returns the block to its owner.
    ///
    /// # Panics
    ///
    /// If there is no lease to give up.
    #[must_use = "true means that the block must be returned"]
    #[inline]
    pub fn release(&self) -> bool {
        let ordering =
            mutation::unless(Mutation::LeaseReleaseRelaxed, Ordering::Release, Ordering::Relaxed);
        let before = if mutation::active(Mutation::LeaseReleaseSplit) {
            let before = self.count.load(Ordering::Relaxed);
            self.count.store(before.wrapping_sub(1), ordering);
            before
        } else {
            self.count.fetch_sub(1, ordering)
        };
        assert!(before != 0, "a lease was given up twice");
        if before != 1 {
            return false;
        }
        if cfg!(ringpost_tsan) {
            // ThreadSanitizer does not understand fences; this is the same, and stronger.
            self.count.load(Ordering::Acquire);
        } else if !mutation::active(Mutation::LeaseNoFence) {
            fence(Ordering::Acquire);
        }
        true
    }

    /// How many leases are out. Exact for the owner while it is zero; otherwise it may have
    /// changed.
    #[must_use]
    #[inline]
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }
}

impl Default for LeaseCount {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LeaseCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeaseCount").field(&self.count.load(Ordering::Relaxed)).finish()
    }
}

const LEASES_MAX: u32 = u32::MAX / 2;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn the_last_release_is_told() {
        let leases = LeaseCount::new();
        leases.acquire();
        leases.acquire_many(2);
        assert_eq!(leases.count(), 3);
        assert_eq!([(); 3].map(|()| leases.release()), [false, false, true]);
        assert_eq!(leases.count(), 0);
        leases.acquire();
        assert!(leases.release(), "a block can be leased again");
        assert_eq!(format!("{leases:?}"), "LeaseCount(0)");
    }

    #[test]
    fn misuse_panics() {
        assert!(catch_unwind(|| LeaseCount::new().release()).is_err());
        assert!(catch_unwind(|| LeaseCount::new().acquire_many(LEASES_MAX + 1)).is_err());
        let full = catch_unwind(|| {
            let leases = LeaseCount::new();
            leases.acquire_many(LEASES_MAX);
            leases.acquire();
            leases.acquire();
        });
        assert!(full.is_err());
    }

    #[test]
    fn shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<LeaseCount>();
    }
}
