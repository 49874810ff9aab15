//! What the machine does meanwhile: round trips over a bare pair of sockets between two threads, as often as a
//! connection of the soak has one.
//!
//! Delays and rates of the soak are judged as multiples of these, because others use the machine, too: when it is
//! busy both get worse, and when ringpost gets worse only its own do.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const BYTES: usize = 64;
const PAUSE: Duration = Duration::from_millis(2);
const LONGEST_TRIP_NS: u64 = 60_000_000_000;

/// Two threads that exchange messages until this is dropped.
#[derive(Debug)]
pub(crate) struct Control {
    round_trips: Arc<Mutex<Histogram<u64>>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    since: Instant,
}

/// What was measured since the last time.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) control_per_s: f64,
    pub(crate) control_p50_ns: u64,
}

impl Control {
    pub(crate) fn start() -> Result<Self> {
        let (mut near, mut far) = UnixStream::pair().context("a pair of sockets")?;
        let histogram = Histogram::new_with_bounds(1, LONGEST_TRIP_NS, 3)?;
        let round_trips = Arc::new(Mutex::new(histogram));
        let over = Arc::new(AtomicBool::new(false));
        let (own_trips, own_over) = (Arc::clone(&round_trips), Arc::clone(&over));
        let asking = thread::Builder::new().name("control".into()).spawn(move || {
            let mut bytes = [7; BYTES];
            while !own_over.load(Ordering::Relaxed) {
                let start = Instant::now();
                // Neither fails while both threads live.
                if near.write_all(&bytes).and_then(|()| near.read_exact(&mut bytes)).is_err() {
                    return;
                }
                let trip = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                own_trips.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(trip);
                thread::sleep(PAUSE);
            }
        })?;
        let answering = thread::Builder::new().name("control".into()).spawn(move || {
            let mut bytes = [0; BYTES];
            // Until the other end is closed.
            while far.read_exact(&mut bytes).and_then(|()| far.write_all(&bytes)).is_ok() {}
        })?;
        Ok(Self { round_trips, over, threads: vec![asking, answering], since: Instant::now() })
    }

    pub(crate) fn take(&mut self) -> Reference {
        let mut trips = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
        let reference = Reference {
            control_per_s: trips.len() as f64 / self.since.elapsed().as_secs_f64(),
            control_p50_ns: trips.value_at_quantile(0.5),
        };
        trips.reset();
        self.since = Instant::now();
        reference
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of theirs has been printed.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_counted_once() -> Result<()> {
        let mut control = Control::start()?;
        let mut reference = control.take();
        while reference.control_p50_ns == 0 {
            thread::sleep(PAUSE);
            reference = control.take();
        }
        assert!(reference.control_per_s > 0.0);
        Ok(())
    }
}
