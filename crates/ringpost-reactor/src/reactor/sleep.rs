//! Waiting for an instant.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::Core;
use crate::timers::TimerId;

/// Ready at an instant, or once its reactor has been shut down. Dropping it removes the timer.
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    core: Rc<Core>,
    at: Instant,
    timer: Option<TimerId>,
}

impl Sleep {
    pub(super) fn new(core: Rc<Core>, at: Instant) -> Self {
        Self { core, at, timer: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        // Nobody would tell of the time any more.
        if this.core.clock.now() >= this.at || this.core.closed.get() {
            return Poll::Ready(());
        }
        let mut driver = this.core.driver.borrow_mut();
        let replaced = this.timer.map(|id| driver.timers.replace(id, context.waker()));
        if let Some(Ok(replaced)) = replaced {
            // Without a borrow: it may drop what belongs to this reactor.
            drop(driver);
            drop(replaced);
        } else {
            this.timer = driver.timers.add(this.at, context.waker().clone());
            if this.timer.is_none() {
                // Too many timers: look again next turn rather than never.
                driver.wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.timer
            && let Ok(mut driver) = self.core.driver.try_borrow_mut()
        {
            let waker = driver.timers.remove(id);
            drop(driver);
            drop(waker);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("at", &self.at).finish_non_exhaustive()
    }
}
