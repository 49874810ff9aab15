//! Clocks around the part of a loop that is to be measured, and statistics of the outcomes.

use std::sync::OnceLock;
use std::time::Instant;

use super::sys;

/// What one variant did in one round, per message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// CPU nanoseconds.
    pub(super) cpu: f64,
    /// Wall-clock nanoseconds.
    pub(super) wall: f64,
    /// `io_uring_enter` calls.
    pub(super) enters: f64,
    /// Median round trip or wake-up time in nanoseconds.
    pub(super) latency: f64,
    /// CPU nanoseconds of the other thread.
    pub(super) other: f64,
}

impl Sample {
    pub(super) const NOTHING: Self = Self {
        cpu: f64::NAN,
        wall: f64::NAN,
        enters: f64::NAN,
        latency: f64::NAN,
        other: f64::NAN,
    };
}

/// Which figure of a sample is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    Cpu,
    Wall,
    Latency,
    Other,
}

impl Measure {
    pub(super) fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Cpu => sample.cpu,
            Self::Wall => sample.wall,
            Self::Latency => sample.latency,
            Self::Other => sample.other,
        }
    }
}

/// Sums up the wall and CPU time of sections of one thread.
#[derive(Debug)]
pub(super) struct Stopwatch {
    clock: libc::clockid_t,
    started: Option<(u64, Instant)>,
    cpu: u64,
    wall: u64,
    sections: u64,
}

impl Stopwatch {
    pub(super) fn thread() -> Self {
        Self::on(libc::CLOCK_THREAD_CPUTIME_ID)
    }

    /// Measures the CPU time of all threads.
    pub(super) fn process() -> Self {
        Self::on(libc::CLOCK_PROCESS_CPUTIME_ID)
    }

    fn on(clock: libc::clockid_t) -> Self {
        Self { clock, started: None, cpu: 0, wall: 0, sections: 0 }
    }

    #[inline]
    pub(super) fn start(&mut self) {
        self.started = Some((sys::cpu_ns(self.clock), Instant::now()));
    }

    #[inline]
    pub(super) fn stop(&mut self) {
        let now = Instant::now();
        let cpu = sys::cpu_ns(self.clock);
        if let Some((cpu_before, before)) = self.started.take() {
            self.cpu += cpu - cpu_before;
            self.wall += nanoseconds(before, now);
            self.sections += 1;
        }
    }

    /// The sample of `messages` messages, without what reading the clocks has cost.
    pub(super) fn sample(&self, messages: u64, enters: u64) -> Sample {
        let (cpu_overhead, wall_overhead) = overhead();
        let sections = self.sections as f64;
        let messages = messages as f64;
        Sample {
            cpu: (self.cpu as f64 - sections * cpu_overhead) / messages,
            wall: (self.wall as f64 - sections * wall_overhead) / messages,
            enters: enters as f64 / messages,
            ..Sample::NOTHING
        }
    }
}

/// What an empty section shows on both clocks.
fn overhead() -> (f64, f64) {
    static OVERHEAD: OnceLock<(f64, f64)> = OnceLock::new();
    *OVERHEAD.get_or_init(|| {
        let empty = || {
            let mut watch = Stopwatch::thread();
            watch.start();
            watch.stop();
            (watch.cpu as f64, watch.wall as f64)
        };
        let sections: Vec<_> = (0..2000).map(|_| empty()).collect();
        let cpu = quantile(sections.iter().map(|section| section.0), 0.5);
        let wall = quantile(sections.iter().map(|section| section.1), 0.5);
        (cpu, wall)
    })
}

pub(super) fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// The value below which the share `at` of the values lies; NaN for none.
pub(super) fn quantile(values: impl IntoIterator<Item = f64>, at: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let place = at.clamp(0.0, 1.0) * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 <= place <= last"
    )]
    let index = place as usize;
    let next = values[(index + 1).min(last)];
    values[index] + (next - values[index]) * place.fract()
}

pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        assert!(median([]).is_nan());
        assert_eq!(median([7.0, f64::NAN]), 7.0);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(quantile([0.0, 1.0, 2.0, 3.0, 4.0], 0.25), 1.0);
    }
}
