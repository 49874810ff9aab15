//! Sleep and wake-up in one atomic word.

use std::fmt;

use crate::mutation::{self, Mutation};
use crate::primitive::{AtomicU32, Ordering};

/// Tells one consumer that producers have published something, and tells the producer whether the
/// consumer sleeps.
///
/// ```text
/// producer                          consumer
///   publish the item                  loop {
///   if word.notify() {                    word.take();
///       ring the doorbell                 drain what was published
///   }                                     if word.park() {
///                                             block until the doorbell rings, or anything else
///                                             word.unpark();
///                                         }
///                                     }
/// ```
///
/// # Invariants
///
/// 1. *One word, read-modify-writes only.* All steps are totally ordered by the modification order
///    of the word. A `notify` comes before a `park`, which then refuses; or after it, and then the
///    producer sees the consumer parked and rings. There is no third case, and so no `SeqCst`
///    fence.
/// 2. *Publication.* `notify` releases, `take` acquires. Every write to the word is a
///    read-modify-write, so each `notify` heads a release sequence that no step breaks: whoever
///    acquires the word sees what every earlier `notify` published, also when several producers
///    notified since the last `take`.
/// 3. *One ring per parked period.* Only the `notify` that finds the consumer parked and no
///    notification pending returns true. The notification stays pending until the consumer,
///    no longer parked, takes it.
/// 4. *Stickiness.* Only the consumer clears the notification, in `take`. One that arrives
///    while the consumer is awake makes its next `park` refuse.
///
/// # Why there is no sequence number
///
/// A consumer that compares counts (published, seen) needs a sequence, and then a bound against its
/// wrap-around. This consumer compares nothing: it asks for "something since I last took", which is
/// one bit, set and cleared by read-modify-writes. Setting it twice is the same as once and there
/// is nothing to wrap. A producer that was slow to ring can ring in a later parked period; that is
/// a spurious wake-up, which the loop above takes in its stride.
pub struct WakeWord {
    word: AtomicU32,
}

impl WakeWord {
    /// A consumer that is awake, nothing pending.
    #[must_use]
    pub fn new() -> Self {
        Self { word: AtomicU32::new(0) }
    }

    /// Producer, after it has published its item. True: the consumer is parked and this call must
    /// ring the doorbell.
    ///
    /// Exactly one call per parked period returns true.
    #[must_use = "true means that the doorbell must be rung"]
    #[inline]
    pub fn notify(&self) -> bool {
        self.publish().must_ring()
    }

    /// Consumer, before it blocks. False: a notification is pending; do not block, the consumer
    /// counts as awake.
    #[must_use = "false means that the consumer must not block"]
    #[inline]
    pub fn park(&self) -> bool {
        // Relaxed: nothing is published here, and what was published is acquired by `take`.
        let before = self.word.fetch_or(PARKED, Ordering::Relaxed);
        if before & NOTIFIED == 0 || mutation::active(Mutation::ParkIgnoresPending) {
            return true;
        }
        // While both bits were set nobody was told to ring: see `Before::must_ring`.
        self.unpark();
        false
    }

    /// Consumer, after it has blocked, whatever woke it. Keeps a pending notification.
    #[inline]
    pub fn unpark(&self) {
        let mut cleared = PARKED;
        if mutation::active(Mutation::UnparkForgetsPending) {
            cleared |= NOTIFIED;
        }
        self.word.fetch_and(!cleared, Ordering::Relaxed);
    }

    /// Consumer, before it drains what producers have published: takes the notification. True if
    /// there was one.
    ///
    /// What was published before any notification up to here is visible afterwards.
    #[inline]
    pub fn take(&self) -> bool {
        self.clear(NOTIFIED) & NOTIFIED != 0
    }

    /// Whether a notification is pending. For the consumer's spin loop: orders nothing.
    #[must_use]
    #[inline]
    pub fn is_notified(&self) -> bool {
        self.word.load(Ordering::Relaxed) & NOTIFIED != 0
    }

    /// Whether the consumer is parked. For statistics: it may have changed already.
    #[must_use]
    #[inline]
    pub fn is_parked(&self) -> bool {
        self.word.load(Ordering::Relaxed) & PARKED != 0
    }

    /// Consumer: no longer parked and the notification taken, in one step.
    #[inline]
    pub(crate) fn reset(&self) {
        self.clear(NOTIFIED | PARKED);
    }

    /// Producer: `notify`, and what the word held before.
    #[inline]
    pub(crate) fn publish(&self) -> Before {
        if mutation::active(Mutation::NotifySkipsWhenPending) && self.is_notified() {
            return Before(NOTIFIED);
        }
        let ordering =
            mutation::unless(Mutation::NotifyRelaxed, Ordering::Release, Ordering::Relaxed);
        Before(self.word.fetch_or(NOTIFIED, ordering))
    }

    /// Ends the intake, in the same step as a notification.
    pub(crate) fn seal(&self) -> Before {
        let mut set = SEALED | NOTIFIED;
        if mutation::active(Mutation::SealSilent) {
            set = SEALED;
        }
        let before = Before(self.word.fetch_or(set, Ordering::Release));
        if mutation::active(Mutation::SealSilent) { Before(NOTIFIED) } else { before }
    }

    /// Ends the intake and says that the consumer will not look again.
    ///
    /// Acquires what was published before any earlier notification. A producer that notifies later
    /// finds [`Before::closed`].
    pub(crate) fn close(&self) -> Before {
        let ordering =
            mutation::unless(Mutation::CloseRelaxed, Ordering::AcqRel, Ordering::Release);
        Before(self.word.fetch_or(SEALED | CLOSED | NOTIFIED, ordering))
    }

    /// Whether the intake has ended. If so, what was published before that is visible.
    #[inline]
    pub(crate) fn is_sealed(&self) -> bool {
        let ordering =
            mutation::unless(Mutation::SealedRelaxed, Ordering::Acquire, Ordering::Relaxed);
        self.word.load(ordering) & SEALED != 0
    }

    /// Whether the intake has ended. For a producer that is about to publish: orders nothing.
    #[inline]
    pub(crate) fn refuses(&self) -> bool {
        self.word.load(Ordering::Relaxed) & SEALED != 0
    }

    #[inline]
    fn clear(&self, bits: u32) -> u32 {
        let ordering =
            mutation::unless(Mutation::TakeRelaxed, Ordering::Acquire, Ordering::Relaxed);
        self.word.fetch_and(!bits, ordering)
    }
}

impl Default for WakeWord {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WakeWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word.load(Ordering::Relaxed);
        f.debug_struct("WakeWord")
            .field("parked", &(word & PARKED != 0))
            .field("notified", &(word & NOTIFIED != 0))
            .field("sealed", &(word & SEALED != 0))
            .field("closed", &(word & CLOSED != 0))
            .finish()
    }
}

/// What the word held just before a producer's step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before(u32);

impl Before {
    /// Whether the producer has to ring: the consumer is parked and nobody was told yet.
    #[inline]
    pub(crate) fn must_ring(self) -> bool {
        if mutation::active(Mutation::NotifyRingsAlways) {
            return self.0 & PARKED != 0;
        }
        self.0 & (PARKED | NOTIFIED) == PARKED
    }

    /// Whether the consumer had said that it will not look again.
    #[inline]
    pub(crate) fn closed(self) -> bool {
        self.0 & CLOSED != 0
    }
}

/// The consumer blocks or is about to. Set and cleared by the consumer.
const PARKED: u32 = 1 << 0;
/// Something was published. Set by producers, cleared by the consumer.
const NOTIFIED: u32 = 1 << 1;
/// No more items are accepted. Never cleared.
const SEALED: u32 = 1 << 2;
/// The consumer is gone. Never cleared, comes with `SEALED`.
const CLOSED: u32 = 1 << 3;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn first_notification_of_a_parked_period_rings() {
        let word = WakeWord::new();
        assert!(!word.is_notified());
        assert!(word.park());
        assert!(word.is_parked() && !word.is_notified());
        assert!(word.notify());
        assert!(!word.notify(), "one ring per parked period");
        word.unpark();
        assert!(word.is_notified(), "unpark keeps the notification");
        assert!(!word.notify(), "nobody is parked");
        assert!(word.take());
        assert!(!word.take());
        assert!(word.park());
        assert!(word.notify(), "a new period, a new ring");
    }

    #[test]
    fn pending_notification_refuses_the_park() {
        let word = WakeWord::new();
        assert!(!word.notify());
        assert!(!word.park());
        assert!(!word.is_parked(), "a refused park leaves the consumer awake");
        assert!(word.is_notified(), "a refused park keeps the notification");
        assert!(word.take());
        assert!(word.park());
    }

    #[test]
    fn ending_the_intake_is_a_notification() {
        for end in [WakeWord::seal, WakeWord::close] {
            let word = WakeWord::new();
            assert!(word.park());
            assert!(end(&word).must_ring());
            word.unpark();
            assert!(word.is_sealed());
            assert!(word.take());
            assert!(word.is_sealed(), "the end of the intake is for good");
        }
        let word = WakeWord::new();
        assert!(!word.seal().closed());
        assert!(!word.publish().closed());
        assert!(!word.close().closed());
        assert!(word.publish().closed());
    }

    #[test]
    fn debug_names_the_bits() {
        let word = WakeWord::new();
        assert!(word.park());
        let shown = format!("{word:?}");
        assert_eq!(
            shown,
            "WakeWord { parked: true, notified: false, sealed: false, closed: false }"
        );
    }
}
