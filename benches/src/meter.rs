//! The clock of a sample: phases, what is read at their borders, and what is counted in them.
//!
//! ```text
//! warm-up ──► measured ──► counted ──► done
//!             messages/s   system calls
//!             latency      per message
//!             CPU time
//! ```
//!
//! It lives in the client process, and whoever drives the traffic moves it: the first worker that
//! sees a deadline pass makes the transition, so that no extra thread wakes up on a machine whose
//! cores are both busy. The server does not take part: its CPU time and its system calls are read
//! from outside. Counting system calls slows them down, so it has a phase of its own.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{sys::ProcessClock, syscalls::SyscallCounter};

/// Lengths of the phases.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Timing {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    pub(crate) counted: Duration,
}

impl Timing {
    /// Phases around a measured phase of this length.
    pub(crate) fn measuring(measured: Duration) -> Self {
        let warm_up = (measured / 5).clamp(Duration::from_millis(30), Duration::from_millis(200));
        let counted = (measured / 5).clamp(Duration::from_millis(20), Duration::from_millis(100));
        Self { warm_up, measured, counted }
    }

    pub(crate) fn total(&self) -> Duration {
        self.warm_up + self.measured + self.counted
    }

    fn of(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::WarmUp => Some(self.warm_up),
            Phase::Measured => Some(self.measured),
            Phase::Counted => Some(self.counted),
            Phase::Done => None,
        }
    }
}

/// Where a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    WarmUp,
    Measured,
    Counted,
    Done,
}

/// What a client found out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClientReport {
    pub(crate) messages: u64,
    pub(crate) elapsed_ns: u64,
    pub(crate) server_cpu_ns: u64,
    pub(crate) client_cpu_ns: u64,
    /// System calls of the server per message; none where they can't be counted.
    pub(crate) syscalls_per_message: Option<f64>,
    pub(crate) p50_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    pub(crate) p999_ns: Option<u64>,
    /// Round-trip time by quantile; empty for one-way traffic.
    pub(crate) quantiles: Vec<(f64, u64)>,
}

/// Shared by all workers of a client.
#[derive(Debug)]
pub(crate) struct Meter {
    origin: Instant,
    timing: Timing,
    tracepoint: Option<u64>,
    server_pid: i32,
    server_clock: ProcessClock,
    client_clock: ProcessClock,
    phase: AtomicU8,
    /// End of the phase, in nanoseconds from `origin`.
    deadline_ns: AtomicU64,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    border: Border,
    measured: Option<Border>,
    counter: Option<(SyscallCounter, u64)>,
    syscalls: Option<u64>,
    failure: Option<anyhow::Error>,
    messages: [u64; PHASES],
    round_trips: Histogram<u64>,
}

/// The clocks at the border of two phases, or the differences between two borders.
#[derive(Clone, Copy, Debug, Default)]
struct Border {
    elapsed_ns: u64,
    server_cpu_ns: u64,
    client_cpu_ns: u64,
}

impl Meter {
    /// Starts the warm-up. System calls are counted if the number of their tracepoint is known.
    pub(crate) fn start(
        timing: Timing,
        server_pid: i32,
        tracepoint: Option<u64>,
    ) -> Result<Arc<Self>> {
        let meter = Self {
            origin: Instant::now(),
            timing,
            tracepoint,
            server_pid,
            server_clock: ProcessClock::of(server_pid).context("CPU clock of the server")?,
            client_clock: ProcessClock::of(0).context("own CPU clock")?,
            phase: AtomicU8::new(Phase::WarmUp as u8),
            deadline_ns: AtomicU64::new(nanoseconds(timing.warm_up)),
            ledger: Mutex::new(Ledger {
                border: Border::default(),
                measured: None,
                counter: None,
                syscalls: None,
                failure: None,
                messages: [0; PHASES],
                round_trips: round_trips(),
            }),
        };
        Ok(Arc::new(meter))
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::WarmUp,
            1 => Phase::Measured,
            2 => Phase::Counted,
            _ => Phase::Done,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.origin);
        nanoseconds(elapsed) >= self.deadline_ns.load(Ordering::Relaxed)
    }

    /// Ends the phase `from`, unless another worker has done so.
    #[cold]
    fn advance(&self, from: Phase) {
        let mut ledger = self.lock();
        if self.phase() != from {
            return;
        }
        let next = match self.cross(from, &mut ledger) {
            Ok(next) => next,
            Err(error) => {
                ledger.failure = Some(error);
                Phase::Done
            }
        };
        let deadline_ns = self
            .timing
            .of(next)
            .map_or(u64::MAX, |length| nanoseconds(self.origin.elapsed()) + nanoseconds(length));
        self.deadline_ns.store(deadline_ns, Ordering::Relaxed);
        self.phase.store(next as u8, Ordering::Release);
    }

    fn cross(&self, from: Phase, ledger: &mut Ledger) -> Result<Phase> {
        Ok(match from {
            Phase::WarmUp => {
                ledger.border = self.border()?;
                Phase::Measured
            }
            Phase::Measured => {
                let end = self.border()?;
                let start = ledger.border;
                ledger.measured = Some(Border {
                    elapsed_ns: end.elapsed_ns - start.elapsed_ns,
                    server_cpu_ns: end.server_cpu_ns - start.server_cpu_ns,
                    client_cpu_ns: end.client_cpu_ns - start.client_cpu_ns,
                });
                let Some(tracepoint) = self.tracepoint else { return Ok(Phase::Done) };
                let counter = SyscallCounter::attach(tracepoint, self.server_pid)?;
                let before = counter.total()?;
                ledger.counter = Some((counter, before));
                Phase::Counted
            }
            Phase::Counted => {
                if let Some((counter, before)) = ledger.counter.take() {
                    ledger.syscalls = Some(counter.total()? - before);
                }
                Phase::Done
            }
            Phase::Done => Phase::Done,
        })
    }

    fn border(&self) -> Result<Border> {
        Ok(Border {
            elapsed_ns: nanoseconds(self.origin.elapsed()),
            server_cpu_ns: self.server_clock.now_ns().context("CPU clock of the server")?,
            client_cpu_ns: self.client_clock.now_ns().context("own CPU clock")?,
        })
    }

    /// Sums up, after all recorders have been finished.
    pub(crate) fn report(&self) -> Result<ClientReport> {
        let mut ledger = self.lock();
        if let Some(failure) = ledger.failure.take() {
            return Err(failure);
        }
        let measured = ledger.measured.context("the measured phase was not finished")?;
        let messages = ledger.messages[Phase::Measured as usize];
        anyhow::ensure!(messages > 0, "no message was counted");
        let counted = ledger.messages[Phase::Counted as usize];
        let trips = &ledger.round_trips;
        let quantile = |quantile| (!trips.is_empty()).then(|| trips.value_at_quantile(quantile));
        Ok(ClientReport {
            messages,
            elapsed_ns: measured.elapsed_ns,
            server_cpu_ns: measured.server_cpu_ns,
            client_cpu_ns: measured.client_cpu_ns,
            syscalls_per_message: ledger
                .syscalls
                .filter(|_| counted > 0)
                .map(|calls| calls as f64 / counted as f64),
            p50_ns: quantile(0.5),
            p99_ns: quantile(0.99),
            p999_ns: quantile(0.999),
            quantiles: QUANTILES
                .into_iter()
                .filter_map(|at| quantile(at).map(|value| (at, value)))
                .collect(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // A worker that panicked fails the sample anyway.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one worker (a thread, a task, or a whole single-threaded client) counts.
#[derive(Debug)]
pub(crate) struct Recorder {
    meter: Arc<Meter>,
    phase: Phase,
    messages: [u64; PHASES],
    round_trips: Histogram<u64>,
    every: u32,
    until_next: u32,
}

impl Recorder {
    /// A recorder that keeps one round trip of `every`.
    pub(crate) fn new(meter: Arc<Meter>, every: u32) -> Self {
        Self {
            phase: meter.phase(),
            meter,
            messages: [0; PHASES],
            round_trips: round_trips(),
            every,
            until_next: every,
        }
    }

    /// Counts a reply that was in the caller's hands at `now`, to a request handed over at `sent`.
    pub(crate) fn reply(&mut self, sent: Instant, now: Instant) {
        self.messages[self.phase as usize] += 1;
        if self.phase == Phase::Measured {
            self.until_next -= 1;
            if self.until_next == 0 {
                self.until_next = self.every;
                let trip = now.saturating_duration_since(sent);
                self.round_trips.saturating_record(nanoseconds(trip));
            }
        }
    }

    /// Counts messages sent one way.
    fn sent(&mut self, count: u64) {
        self.messages[self.phase as usize] += count;
    }

    /// Moves the clock; call it once per turn with the time that was read anyway. False means that
    /// the sample is over and the connection has to be closed.
    pub(crate) fn turn(&mut self, now: Instant) -> bool {
        if self.meter.is_over(now) {
            self.meter.advance(self.phase);
        }
        self.phase = self.meter.phase();
        self.phase != Phase::Done
    }

    /// Hands the counts in.
    pub(crate) fn finish(self) {
        let mut ledger = self.meter.lock();
        for (total, own) in ledger.messages.iter_mut().zip(self.messages) {
            *total += own;
        }
        if let Err(error) = ledger.round_trips.add(self.round_trips) {
            ledger.failure = Some(error.into());
        }
    }
}

/// The phases of one-way traffic, which end when the receiver has acknowledged all of it.
#[derive(Debug)]
pub(crate) struct OneWayPhases {
    recorder: Recorder,
    unacknowledged: u64,
}

impl OneWayPhases {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self { recorder, unacknowledged: 0 }
    }

    /// Whether there is a phase to send in.
    pub(crate) fn is_open(&self) -> bool {
        self.recorder.phase != Phase::Done
    }

    /// Whether the phase still has time for more messages. Reads the clock.
    pub(crate) fn has_time(&self) -> bool {
        !self.recorder.meter.is_over(Instant::now())
    }

    pub(crate) fn sent(&mut self, count: u64) {
        self.unacknowledged += count;
    }

    /// Ends the phase.
    pub(crate) fn acknowledged(&mut self) {
        self.recorder.sent(self.unacknowledged);
        self.unacknowledged = 0;
        self.recorder.meter.advance(self.recorder.phase);
        self.recorder.phase = self.recorder.meter.phase();
    }

    pub(crate) fn finish(self) {
        self.recorder.finish();
    }
}

fn round_trips() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_TRIP_NS, 3).expect("the bounds are constants")
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const PHASES: usize = Phase::Done as usize + 1;
const LONGEST_TRIP_NS: u64 = 10_000_000_000;
const QUANTILES: [f64; 12] =
    [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999];

#[cfg(test)]
mod tests {
    use super::*;

    fn own_pid() -> i32 {
        rustix::process::getpid().as_raw_nonzero().get()
    }

    fn meter() -> Result<Arc<Meter>> {
        let timing = Timing {
            warm_up: Duration::from_millis(5),
            measured: Duration::from_millis(20),
            counted: Duration::from_millis(5),
        };
        Meter::start(timing, own_pid(), None)
    }

    #[test]
    fn only_the_measured_phase_counts() -> Result<()> {
        let meter = meter()?;
        let mut recorder = Recorder::new(Arc::clone(&meter), 1);
        let trip = Duration::from_micros(3);
        let start = Instant::now();
        recorder.reply(start, start + trip);
        assert!(recorder.turn(start + Duration::from_millis(6)));
        for _ in 0..10 {
            recorder.reply(start, start + trip);
        }
        assert!(!recorder.turn(Instant::now() + Duration::from_secs(1)));
        recorder.reply(start, start + trip);
        recorder.finish();
        let report = meter.report()?;
        assert_eq!(report.messages, 10);
        assert_eq!(report.p50_ns, Some(3_001), "the bucket's upper end");
        assert_eq!(report.syscalls_per_message, None);
        Ok(())
    }

    #[test]
    fn one_way_counts_what_was_acknowledged() -> Result<()> {
        let meter = meter()?;
        let mut phases = OneWayPhases::new(Recorder::new(Arc::clone(&meter), 1));
        let mut rounds = 0;
        while phases.is_open() {
            phases.sent(5);
            phases.acknowledged();
            rounds += 1;
        }
        phases.finish();
        assert_eq!(rounds, 2, "warm-up and measured");
        assert_eq!(meter.report()?.messages, 5);
        assert_eq!(meter.report()?.p50_ns, None);
        Ok(())
    }

    #[test]
    fn an_unfinished_sample_has_no_report() -> Result<()> {
        assert!(meter()?.report().is_err());
        Ok(())
    }
}
