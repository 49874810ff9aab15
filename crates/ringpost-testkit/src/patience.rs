//! Waiting with an end.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Runs `body` on a thread of its own and waits for it, at most `limit` long. A body that hangs keeps its
/// thread; the caller goes on and fails.
///
/// # Panics
///
/// With the body's panic, or if the time is up.
pub fn bounded<T: Send + 'static>(
    name: &str,
    limit: Duration,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = channel();
    let thread = thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let value = body();
            // The receiver is gone if the time was up.
            let _ = sender.send(());
            value
        })
        .expect("start a thread");
    match receiver.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => panic!("{name} did not end within {limit:?}"),
        // Ended, or panicked.
        _ => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
    }
}

/// Waits, at most `limit` long, until `condition` holds.
///
/// # Panics
///
/// If it never does.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
