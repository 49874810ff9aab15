//! The answer to one request.

use std::future::Future;
use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};
use std::{error, fmt, mem};

use crate::mutation::{self, Mutation};
use crate::primitive::{Arc, Mutex, MutexGuard};

/// A channel for a single value between two threads or tasks.
///
/// Each side holds the lock for a few instructions. Wakers are called, and wakers and values are
/// dropped, outside of it; only the clone of a waker happens inside, and one that panics leaves the
/// slot whole. A lock-free slot would save one atomic operation per side and cost this crate its
/// `forbid(unsafe_code)`.
///
/// ```
/// let (sender, receiver) = ringpost_sync::oneshot();
/// std::thread::spawn(move || sender.send(7));
/// assert_eq!(receiver.blocking_recv(None), Ok(7));
/// ```
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let slot = Arc::new(Slot { state: Mutex::new(State::Waiting(None)) });
    (OneshotSender { slot: Arc::clone(&slot) }, OneshotReceiver { slot })
}

/// Sends the value. Dropped without sending, it tells the receiver [`Canceled`].
pub struct OneshotSender<T> {
    slot: Arc<Slot<T>>,
}

impl<T> OneshotSender<T> {
    /// Sends the value and wakes the receiver.
    ///
    /// `Ok` means that the receiver was there; it may still be dropped before it looks, and the
    /// value with it.
    ///
    /// # Errors
    ///
    /// Gives the value back if the receiver is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        if mutation::active(Mutation::SendWakesEarly) {
            self.slot.wake_waiting();
        }
        let mut state = self.slot.lock();
        let State::Waiting(waker) = &mut *state else {
            return Err(value); // the drop of `self` that follows changes nothing
        };
        let waker = waker.take();
        *state = State::Sent(value);
        drop(state);
        if let Some(waker) = waker
            && !mutation::active(Mutation::SendWakesEarly)
        {
            waker.wake();
        }
        Ok(())
    }

    /// Whether the receiver is gone. If so, [`send`](Self::send) will fail.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(*self.slot.lock(), State::Over)
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        let State::Waiting(waker) = &mut *state else {
            return;
        };
        let waker = waker.take();
        *state = State::Over;
        drop(state);
        if let Some(waker) = waker
            && !mutation::active(Mutation::DropWakesNobody)
        {
            waker.wake();
        }
    }
}

impl<T> fmt::Debug for OneshotSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneshotSender").finish_non_exhaustive()
    }
}

/// Receives the value: a future, or [`blocking_recv`](Self::blocking_recv) without a runtime.
///
/// # Cancel safety
///
/// Polling takes the value only when it returns it. Dropping the receiver drops a value that was
/// sent, and makes a later [`send`](OneshotSender::send) fail.
#[must_use = "futures do nothing unless polled"]
pub struct OneshotReceiver<T> {
    slot: Arc<Slot<T>>,
}

impl<T> Future for OneshotReceiver<T> {
    type Output = Result<T, Canceled>;

    /// Only the waker of the latest poll is woken. Polled again after it was ready, it is
    /// [`Canceled`].
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.slot.lock();
        if mutation::active(Mutation::PollNoRecheck) && matches!(*state, State::Waiting(_)) {
            drop(state);
            if let State::Waiting(waker) = &mut *self.slot.lock() {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        if let State::Waiting(waker) = &mut *state {
            let known = waker.as_ref().is_some_and(|known| known.will_wake(cx.waker()));
            let kept = waker.is_some() && mutation::active(Mutation::PollKeepsOldWaker);
            let replaced = if known || kept { None } else { waker.replace(cx.waker().clone()) };
            drop(state);
            drop(replaced); // foreign code, outside the lock
            return Poll::Pending;
        }
        let done = mem::replace(&mut *state, State::Over);
        drop(state);
        Poll::Ready(match done {
            State::Sent(value) => Ok(value),
            State::Waiting(_) | State::Over => Err(Canceled),
        })
    }
}

impl<T> Drop for OneshotReceiver<T> {
    fn drop(&mut self) {
        let rest = mem::replace(&mut *self.slot.lock(), State::Over);
        drop(rest); // foreign code, outside the lock
    }
}

impl<T> fmt::Debug for OneshotReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneshotReceiver").finish_non_exhaustive()
    }
}

/// The sender was dropped without sending, or the value was received before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canceled;

impl fmt::Display for Canceled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was canceled before it was answered")
    }
}

impl error::Error for Canceled {}

#[cfg(not(all(test, loom)))]
pub use blocking::BlockingRecvError;

#[cfg(not(all(test, loom)))]
mod blocking {
    use std::task::Wake;
    use std::thread::{self, Thread};
    use std::time::{Duration, Instant};

    use super::*;

    impl<T> OneshotReceiver<T> {
        /// Blocks this thread until the value is there, at most for `timeout` if there is one.
        ///
        /// For threads without a runtime. Never call it on the thread of the reactor that is to
        /// send.
        ///
        /// # Errors
        ///
        /// [`BlockingRecvError::Canceled`] if the sender is gone, [`BlockingRecvError::TimedOut`]
        /// if the time is up. A value that is sent later goes back to its sender.
        pub fn blocking_recv(mut self, timeout: Option<Duration>) -> Result<T, BlockingRecvError> {
            let start = Instant::now();
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            let mut context = Context::from_waker(&waker);
            loop {
                if let Poll::Ready(done) = Pin::new(&mut self).poll(&mut context) {
                    return done.map_err(|Canceled| BlockingRecvError::Canceled);
                }
                // A wake-up between the poll and here makes the park return at once.
                let Some(timeout) = timeout else {
                    thread::park();
                    continue;
                };
                let left = timeout.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return self.give_up();
                }
                thread::park_timeout(left);
            }
        }

        /// The time is up. A value may have come since the last look; from here on it goes back.
        pub(super) fn give_up(self) -> Result<T, BlockingRecvError> {
            let rest = mem::replace(&mut *self.slot.lock(), State::Over);
            match rest {
                State::Sent(value) => Ok(value),
                State::Waiting(_) => Err(BlockingRecvError::TimedOut),
                State::Over => Err(BlockingRecvError::Canceled),
            }
        }
    }

    /// Why a blocking receive ended without a value.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum BlockingRecvError {
        /// The sender was dropped without sending.
        Canceled,
        /// The time was up.
        TimedOut,
    }

    impl fmt::Display for BlockingRecvError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Canceled => Canceled.fmt(f),
                Self::TimedOut => f.write_str("the request was not answered in time"),
            }
        }
    }

    impl error::Error for BlockingRecvError {}

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
}

struct Slot<T> {
    state: Mutex<State<T>>,
}

enum State<T> {
    /// Nothing sent yet; the waker of the latest poll.
    Waiting(Option<Waker>),
    /// Sent and not received.
    Sent(T),
    /// Received, or one of the sides is gone.
    Over,
}

impl<T> Slot<T> {
    /// The slot is whole at every point under the lock that can panic, so poison says nothing.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // ThreadSanitizer does not see std take a contended lock, unless std is built for it.
        #[cfg(ringpost_tsan)]
        loop {
            match self.state.try_lock() {
                Ok(state) => return state,
                Err(std::sync::TryLockError::Poisoned(poisoned)) => {
                    return PoisonError::into_inner(poisoned);
                }
                Err(std::sync::TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        #[cfg(not(ringpost_tsan))]
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only for the mutation that wakes too early.
    fn wake_waiting(&self) {
        let waker = match &mut *self.lock() {
            State::Waiting(waker) => waker.take(),
            State::Sent(_) | State::Over => None,
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn poll<T>(receiver: &mut OneshotReceiver<T>) -> Poll<Result<T, Canceled>> {
        Pin::new(receiver).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn delivers_once() {
        let (sender, mut receiver) = oneshot();
        assert_eq!(poll(&mut receiver), Poll::Pending);
        assert!(!sender.is_closed());
        sender.send(7).unwrap();
        assert_eq!(poll(&mut receiver), Poll::Ready(Ok(7)));
        assert_eq!(poll(&mut receiver), Poll::Ready(Err(Canceled)));
    }

    #[test]
    fn tells_that_a_side_is_gone() {
        let (sender, mut receiver) = oneshot::<u32>();
        drop(sender);
        assert_eq!(poll(&mut receiver), Poll::Ready(Err(Canceled)));
        assert_eq!(Canceled.to_string(), "the request was canceled before it was answered");

        let (sender, receiver) = oneshot();
        drop(receiver);
        assert!(sender.is_closed());
        assert_eq!(sender.send(7), Err(7));
    }

    #[test]
    fn drops_an_unreceived_value_once() {
        let value = Arc::new(());
        let (sender, receiver) = oneshot();
        sender.send(Arc::clone(&value)).unwrap();
        assert_eq!(Arc::strong_count(&value), 2);
        drop(receiver);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn blocks_until_sent_canceled_or_late() {
        let (sender, receiver) = oneshot();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            sender.send(7)
        });
        assert_eq!(receiver.blocking_recv(None), Ok(7));
        thread.join().unwrap().unwrap();

        let (sender, receiver) = oneshot::<u32>();
        let late = receiver.blocking_recv(Some(Duration::from_millis(20)));
        assert_eq!(late, Err(BlockingRecvError::TimedOut));
        assert_eq!(sender.send(7), Err(7), "a late value goes back");

        let (sender, receiver) = oneshot::<u32>();
        drop(sender);
        assert_eq!(receiver.blocking_recv(None), Err(BlockingRecvError::Canceled));

        let (sender, receiver) = oneshot();
        sender.send(7).unwrap();
        assert_eq!(receiver.blocking_recv(Some(Duration::ZERO)), Ok(7), "there already");
    }

    #[test]
    fn what_came_just_before_the_end_of_the_time_is_received() {
        let (sender, mut receiver) = oneshot();
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut receiver).poll(&mut context).is_pending());
        sender.send(7).unwrap();
        assert_eq!(receiver.give_up(), Ok(7));
        let (sender, mut receiver) = oneshot::<u32>();
        assert!(Pin::new(&mut receiver).poll(&mut context).is_pending());
        drop(sender);
        assert_eq!(receiver.give_up(), Err(BlockingRecvError::Canceled));
    }

    #[test]
    fn sent_between_threads() {
        fn sent<T: Send + Sync>() {}
        sent::<OneshotSender<std::cell::Cell<u32>>>();
        sent::<OneshotReceiver<std::cell::Cell<u32>>>();
    }
}
