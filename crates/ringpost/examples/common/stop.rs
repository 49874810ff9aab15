//! Ending on a signal.

use std::io;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use ringpost::OneshotReceiver;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long open connections may take to finish once the program is to end.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// Ready once the program is to end. Every task, on whichever runtime, waits for a clone of its own.
pub(crate) type Stop = Shared<OneshotReceiver<()>>;

/// Catches SIGTERM and SIGINT from now on.
///
/// A thread waits for them, because a signal handler may do next to nothing. The oneshot wakes
/// whoever waits for the stop, whatever runtime it is on.
pub(crate) fn on_signals() -> io::Result<Stop> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (stop, stopped) = ringpost::oneshot();
    thread::Builder::new().name("signals".into()).spawn(move || {
        signals.forever().next();
        // Fails if nobody is left to stop.
        let _ = stop.send(());
    })?;
    Ok(stopped.shared())
}
