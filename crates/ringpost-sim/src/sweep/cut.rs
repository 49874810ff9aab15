//! Dropping a future at a place that is chosen beforehand.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use ringpost::yield_now;

/// How the future goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// As soon as it has said that it waits; at wait 0 without ever having been polled.
    Waiting,
    /// Once it has been woken, in place of being polled again.
    Woken,
    /// After some turns in which it was not polled, whether it was woken or not.
    Later,
}

impl When {
    pub(crate) const ALL: [Self; 3] = [Self::Waiting, Self::Woken, Self::Later];
}

/// Turns that a future is left alone for.
const LATER_TURNS: u32 = 6;

/// Drops one future, the first that comes to the chosen wait. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Cut {
    wait: u32,
    when: When,
    seen: Rc<Cell<u32>>,
    done: Rc<Cell<bool>>,
}

impl Cut {
    /// Waits are counted over all futures that [`Cut::run`] runs, from 1 on; 0 is before the first poll.
    pub(crate) fn new(wait: u32, when: When) -> Self {
        let wait = if when == When::Waiting { wait } else { wait.max(1) };
        Self { wait, when, seen: Rc::default(), done: Rc::default() }
    }

    /// Drops none.
    pub(crate) fn never() -> Self {
        Self::new(u32::MAX, When::Woken)
    }

    /// A future was dropped.
    pub(crate) fn is_done(&self) -> bool {
        self.done.get()
    }

    /// Runs a future to its end, or drops it at the chosen wait: `None`.
    pub(crate) async fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        if self.is_done() {
            return Some(future.await);
        }
        if self.wait == 0 && self.when == When::Waiting {
            self.done.set(true);
            return None;
        }
        let mut future = Some(Box::pin(future));
        let mut rest = None;
        let mut chosen = false;
        poll_fn(|context| {
            if let Some(rest) = &mut rest {
                let rest: &mut Pin<Box<dyn Future<Output = ()>>> = rest;
                return rest.as_mut().poll(context).map(|()| None);
            }
            if chosen {
                return Poll::Ready(None);
            }
            if let Some(future) = &mut future
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                return Poll::Ready(Some(value));
            }
            self.seen.set(self.seen.get() + 1);
            if self.seen.get() != self.wait {
                return Poll::Pending;
            }
            self.done.set(true);
            chosen = true;
            match self.when {
                When::Waiting => Poll::Ready(None),
                When::Woken => Poll::Pending,
                When::Later => {
                    let turns = async {
                        for _ in 0..LATER_TURNS {
                            yield_now().await;
                        }
                    };
                    let mut turns: Pin<Box<dyn Future<Output = ()>>> = Box::pin(turns);
                    let pending = turns.as_mut().poll(context).is_pending();
                    rest = Some(turns);
                    if pending { Poll::Pending } else { Poll::Ready(None) }
                }
            }
        })
        .await
    }
}

/// Runs futures of an operation that may be repeated until one comes to its end.
macro_rules! persist {
    ($cut:expr, $future:expr) => {
        loop {
            if let Some(value) = $cut.run($future).await {
                break value;
            }
        }
    };
}
pub(crate) use persist;
