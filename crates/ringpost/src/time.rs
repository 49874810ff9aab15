//! Waiting for the clock, on the current runtime.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::executor::Inner;

/// Waits for `duration` from the first poll on, or until the runtime that polled it first has ended. Cancel safe.
///
/// # Panics
///
/// Outside of a runtime.
pub async fn sleep(duration: Duration) {
    let now = Inner::current().reactor.now();
    // It may be further than the clock reaches; the end of the runtime ends it all the same.
    sleep_until(now.checked_add(duration).unwrap_or(now + FAR)).await;
}

/// Nobody waits longer: a thousand years.
const FAR: Duration = Duration::from_secs(1000 * 365 * 24 * 60 * 60);

/// Waits until `at`. Cancel safe.
///
/// # Panics
///
/// Outside of a runtime.
pub async fn sleep_until(at: Instant) {
    let sleep = Inner::current().reactor.sleep_until(at);
    sleep.await;
}

/// Waits for `future`, at most `duration` from the first poll on; then drops it. The time is up, too, once the runtime
/// that polled it first has ended.
///
/// # Errors
///
/// [`Elapsed`] if the time is up first.
///
/// # Panics
///
/// Outside of a runtime.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep(duration));
    poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        sleep.as_mut().poll(context).map(|()| Err(Elapsed { duration }))
    })
    .await
}

/// The time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Elapsed {
    /// How long was waited.
    pub duration: Duration,
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not done within {:?}", self.duration)
    }
}

impl std::error::Error for Elapsed {}
