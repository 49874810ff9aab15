//! Faults that the loom models must find.
//!
//! A model that passes shows nothing unless it fails when the protocol is wrong. The protocols
//! therefore ask this module at the places where an ordering or a re-check matters. Outside
//! `all(test, loom)` the answer is a constant and no trace is left in the machine code.

use crate::primitive::Ordering;

/// One way in which a protocol can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A producer's notification does not publish what it wrote before.
    NotifyRelaxed,
    /// A producer that finds a notification pending leaves the word alone.
    NotifySkipsWhenPending,
    /// Every producer that finds the consumer parked rings, not only the first.
    NotifyRingsAlways,
    /// The consumer takes a notification without acquiring what was published.
    TakeRelaxed,
    /// The consumer blocks although a notification is pending.
    ParkIgnoresPending,
    /// The consumer throws a pending notification away when it wakes.
    UnparkForgetsPending,
    /// A push that raced with `close` leaves its item in the queue.
    LatePushKeepsItem,
    /// `close` does not acquire what was pushed before it.
    CloseRelaxed,
    /// The consumer learns of the seal without acquiring what was pushed before it.
    SealedRelaxed,
    /// `seal` does not wake the consumer.
    SealSilent,
    /// The handle count wakes the consumer first and seals the mailbox after that.
    SealAfterWake,
    /// A lease is counted with a load and a store.
    LeaseAcquireSplit,
    /// A lease is given up with a load and a store.
    LeaseReleaseSplit,
    /// A lease is given up without releasing the reads that were made under it.
    LeaseReleaseRelaxed,
    /// The last lease is given up without acquiring the reads made under the others.
    LeaseNoFence,
    /// A returned block is announced before it is in the queue.
    ReturnAnnouncedEarly,
    /// The owner takes the announcement but does not look at the queue again.
    ReturnNoRecheck,
    /// The owner sleeps without blocks although one was returned.
    StarvedIgnoresReturn,
    /// The sender looks for a waker before it stores the value, not after.
    SendWakesEarly,
    /// A sender that is dropped wakes nobody.
    DropWakesNobody,
    /// A waker that replaces another is not stored.
    PollKeepsOldWaker,
    /// The receiver stores its waker without looking for a value in the same critical section.
    PollNoRecheck,
}

/// Whether the protocol is to be wrong in this way.
#[cfg(not(all(test, loom)))]
#[inline(always)]
pub(crate) const fn active(_mutation: Mutation) -> bool {
    false
}

#[cfg(all(test, loom))]
pub(crate) use selection::{active, select};

/// The ordering, or `Relaxed` if the protocol is to be wrong in this way.
#[inline(always)]
pub(crate) fn unless(mutation: Mutation, ordering: Ordering, weakened: Ordering) -> Ordering {
    if active(mutation) { weakened } else { ordering }
}

#[cfg(all(test, loom))]
mod selection {
    use std::cell::Cell;

    use super::Mutation;

    // Loom runs all threads of a model on the thread that started it.
    thread_local! {
        static SELECTED: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    pub(crate) fn active(mutation: Mutation) -> bool {
        SELECTED.get() == Some(mutation)
    }

    /// Makes the protocols wrong in one way, for models started on this thread.
    pub(crate) fn select(mutation: Mutation) {
        SELECTED.set(Some(mutation));
    }
}
