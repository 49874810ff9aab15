//! A bounded queue of items for one reactor, with wake-up and an end.

use std::{error, fmt};

use crate::doorbell::Doorbell;
use crate::mutation::{self, Mutation};
use crate::primitive::{ArrayQueue, CachePadded};
use crate::wake::WakeWord;

/// Carries items from any thread to one consumer, and wakes the consumer if it sleeps.
///
/// Shared in an `Arc` by the reactor and its handles. While the reactor is awake a push is one
/// queue operation and one read-modify-write; only the first push that finds it parked rings the
/// doorbell. The consumer follows the loop of [`WakeWord`].
///
/// # How it ends
///
/// - [`seal`](Self::seal) ends the intake. Whatever was accepted before is still delivered: the
///   consumer, once [`is_sealed`](Self::is_sealed) is true, pops until there is nothing left and
///   goes.
/// - [`close`](Self::close) is the consumer going. What is still queued is dropped.
///
/// A push that passed the check for the seal and lost the race afterwards returns `Ok`. It notifies
/// after it has queued its item, on the same word that `close` marks, so one of the two comes
/// first: if it is the push, `close` finds the item; if it is `close`, the push learns of it and
/// empties the queue itself. No item is ever stuck in a queue that nobody looks at: what waits for
/// it (a [`oneshot`](crate::oneshot()) inside) learns of its end while handles are still alive.
pub struct Mailbox<T, D: Doorbell> {
    queue: ArrayQueue<T>,
    // Producers write this word, the queue's indices have cache lines of their own.
    wake: CachePadded<WakeWord>,
    doorbell: D,
}

impl<T, D: Doorbell> Mailbox<T, D> {
    /// A mailbox with room for `capacity` items.
    ///
    /// # Panics
    ///
    /// If `capacity` is zero.
    #[must_use]
    pub fn new(capacity: usize, doorbell: D) -> Self {
        Self { queue: ArrayQueue::new(capacity), wake: CachePadded::new(WakeWord::new()), doorbell }
    }

    /// Queues an item and wakes the consumer if it is parked. Any thread.
    ///
    /// `Ok` means that the item will be popped or dropped, not that it was popped.
    ///
    /// # Errors
    ///
    /// Both give the item back: [`PushError::Full`] if the mailbox has no room now,
    /// [`PushError::Closed`] if it accepts nothing any more.
    #[inline]
    pub fn push(&self, item: T) -> Result<(), PushError<T>> {
        if self.wake.refuses() {
            return Err(PushError::Closed(item));
        }
        self.queue.push(item).map_err(PushError::Full)?;
        let before = self.wake.publish();
        if before.must_ring() {
            self.doorbell.ring();
        }
        if before.closed() && !mutation::active(Mutation::LatePushKeepsItem) {
            self.discard();
        }
        Ok(())
    }

    /// Takes the next item. For the consumer, after [`WakeWord::take`].
    #[inline]
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    /// Wakes the consumer without an item. Any thread.
    #[inline]
    pub fn notify(&self) {
        if self.wake.notify() {
            self.doorbell.ring();
        }
    }

    /// Ends the intake and wakes the consumer, which still receives what was accepted. Any thread.
    ///
    /// The mark and the notification are one step, so a consumer that was woken by it sees it.
    pub fn seal(&self) {
        if mutation::active(Mutation::SealAfterWake) {
            self.notify();
            self.wake.seal();
            return;
        }
        if self.wake.seal().must_ring() {
            self.doorbell.ring();
        }
    }

    /// Whether the intake has ended.
    ///
    /// The consumer asks before it drains: if true, the pops that follow find everything that was
    /// accepted before the seal, and it may leave afterwards.
    #[must_use]
    #[inline]
    pub fn is_sealed(&self) -> bool {
        self.wake.is_sealed()
    }

    /// The consumer is going: ends the intake and drops what is still queued. May be repeated.
    pub fn close(&self) {
        if self.wake.close().must_ring() {
            self.doorbell.ring();
        }
        self.discard();
    }

    /// How many items the mailbox has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// The word with which the consumer parks and takes notifications.
    #[must_use]
    #[inline]
    pub fn wake(&self) -> &WakeWord {
        &self.wake
    }

    /// The doorbell that this mailbox rings.
    #[must_use]
    #[inline]
    pub fn doorbell(&self) -> &D {
        &self.doorbell
    }

    /// Drops what is queued. The queue allows several consumers, so the consumer's last pops,
    /// `close` and late pushes may all be at it.
    #[cold]
    fn discard(&self) {
        while self.queue.pop().is_some() {}
    }
}

impl<T, D: Doorbell> fmt::Debug for Mailbox<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("capacity", &self.queue.capacity())
            .field("wake", &*self.wake)
            .finish_non_exhaustive()
    }
}

/// Why an item was not accepted. Gives it back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PushError<T> {
    /// No room now; try again when the consumer has taken some.
    Full(T),
    /// Nothing is accepted any more.
    Closed(T),
}

impl<T> PushError<T> {
    /// The item that was not accepted.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(item) | Self::Closed(item) => item,
        }
    }

    /// Whether a later attempt may succeed.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

// By hand: items need no `Debug` for the error to be one.
impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> fmt::Display for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the mailbox is full",
            Self::Closed(_) => "the mailbox is closed",
        })
    }
}

impl<T> error::Error for PushError<T> {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::primitive::{Arc, AtomicU32, Ordering};

    #[derive(Default)]
    struct Rings(AtomicU32);

    impl Doorbell for Rings {
        fn ring(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn rings<T>(mailbox: &Mailbox<T, Rings>) -> u32 {
        mailbox.doorbell().0.load(Ordering::Relaxed)
    }

    #[test]
    fn rings_only_for_a_parked_consumer() {
        let mailbox = Mailbox::new(4, Rings::default());
        mailbox.push(1).unwrap();
        assert_eq!(rings(&mailbox), 0);
        assert!(mailbox.wake().take());
        assert!(mailbox.wake().park());
        mailbox.push(2).unwrap();
        mailbox.push(3).unwrap();
        mailbox.notify();
        assert_eq!(rings(&mailbox), 1);
        mailbox.wake().unpark();
        assert!(mailbox.wake().take());
        assert_eq!([mailbox.pop(), mailbox.pop(), mailbox.pop()], [Some(1), Some(2), Some(3)]);
        assert_eq!(mailbox.pop(), None);
    }

    #[test]
    fn full_gives_the_item_back() {
        let mailbox = Mailbox::new(1, Rings::default());
        assert_eq!(mailbox.capacity(), 1);
        mailbox.push("first").unwrap();
        let refused = mailbox.push("second").unwrap_err();
        assert!(refused.is_full());
        assert_eq!(refused.into_inner(), "second");
        assert_eq!(mailbox.pop(), Some("first"));
        mailbox.push("third").unwrap();
    }

    #[test]
    fn sealed_delivers_and_closed_drops() {
        let item = Arc::new(());
        let mailbox = Mailbox::new(4, Rings::default());
        for _ in 0..3 {
            mailbox.push(Arc::clone(&item)).unwrap();
        }
        assert!(!mailbox.is_sealed());
        mailbox.seal();
        assert!(mailbox.is_sealed());
        let refused = mailbox.push(Arc::clone(&item)).unwrap_err();
        assert_eq!(refused, PushError::Closed(Arc::clone(&item)));
        assert!(!refused.is_full());
        assert_eq!(mailbox.capacity(), 4);
        drop(refused);
        assert!(mailbox.pop().is_some(), "accepted before the seal");
        assert_eq!(Arc::strong_count(&item), 3);
        mailbox.close();
        mailbox.close();
        assert_eq!(Arc::strong_count(&item), 1, "closed with two items queued");
        assert_eq!(mailbox.pop(), None);
    }

    #[test]
    fn a_push_that_lost_the_race_with_close_cleans_up() {
        let item = Arc::new(());
        let mailbox = Mailbox::new(4, Rings::default());
        // What `push` does after its check, with `close` in between.
        assert!(!mailbox.wake.refuses());
        mailbox.close();
        mailbox.queue.push(Arc::clone(&item)).unwrap();
        assert!(mailbox.wake.publish().closed());
        mailbox.discard();
        assert_eq!(Arc::strong_count(&item), 1);
    }

    #[test]
    fn shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        // An item needs only `Send`.
        shared::<Mailbox<std::cell::Cell<u32>, Rings>>();
        shared::<WakeWord>();
    }

    #[test]
    fn shows_itself() {
        let mailbox = Mailbox::<u32, _>::new(2, Rings::default());
        assert!(format!("{mailbox:?}").starts_with("Mailbox { capacity: 2, wake: WakeWord"));
        assert_eq!(PushError::Full(()).to_string(), "the mailbox is full");
        assert_eq!(format!("{:?}", PushError::Closed(())), "Closed(..)");
    }
}
