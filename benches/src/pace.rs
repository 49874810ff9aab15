//! How long samples are. Those of a quick run become shorter where they take longer than planned, so that the run
//! keeps to its time on a slow machine, too.

use std::time::Duration;

use crate::meter::Timing;

/// The length of the samples to come.
#[derive(Debug)]
pub(crate) struct Pace {
    measured: Duration,
    /// What a whole run may take; none for one that takes its time.
    limit: Option<Duration>,
    taken: usize,
    /// What the phases of the samples taken so far were planned to take.
    planned: Duration,
    longest: Duration,
}

impl Pace {
    /// Every sample has a measured phase of this length.
    pub(crate) fn fixed(measured: Duration) -> Self {
        Self { measured, limit: None, taken: 0, planned: Duration::ZERO, longest: measured }
    }

    /// A quick run of this many samples, those included that are taken again.
    pub(crate) fn quick(samples: usize) -> Self {
        let measured = measured_within(QUICK_LIMIT, samples, OVERHEAD);
        Self { limit: Some(QUICK_LIMIT), ..Self::fixed(measured) }
    }

    /// The phases of the samples to come.
    pub(crate) fn timing(&self) -> Timing {
        Timing::measuring(self.measured)
    }

    /// The longest measured phase of the run, and the shortest so far.
    pub(crate) fn measured_range(&self) -> [Duration; 2] {
        [self.longest, self.measured]
    }

    /// A sample was taken.
    pub(crate) fn count(&mut self) {
        self.taken += 1;
        self.planned += self.timing().total();
    }

    /// Shortens what is to come so that `left` more samples fit what `elapsed` leaves of the time.
    pub(crate) fn adapt(&mut self, elapsed: Duration, left: usize) {
        let Some(limit) = self.limit else { return };
        let taken = u32::try_from(self.taken).unwrap_or(u32::MAX);
        let overhead = elapsed.saturating_sub(self.planned).checked_div(taken).unwrap_or_default();
        let measured = measured_within(limit.saturating_sub(elapsed), left, overhead.max(OVERHEAD));
        self.measured = self.measured.min(measured);
    }

    /// False once a quick run has no time to take samples again.
    pub(crate) fn has_time(&self, elapsed: Duration) -> bool {
        self.limit.is_none_or(|limit| elapsed < limit)
    }
}

/// The longest measured phase with which this many samples take no longer than `time`.
fn measured_within(time: Duration, samples: usize, overhead: Duration) -> Duration {
    let samples = u32::try_from(samples).unwrap_or(u32::MAX).max(1);
    let each = (time / samples).saturating_sub(overhead);
    // A fifth of it each goes to the warm-up and to the counting of system calls.
    (each * 5 / 7).clamp(QUICK_LEAST, MEASURED)
}

/// The measured phase where nothing asks for another one.
pub(crate) const MEASURED: Duration = Duration::from_millis(1000);
/// A quick run ends within 90 seconds; some of that is for samples that can't be any shorter.
const QUICK_LIMIT: Duration = Duration::from_secs(75);
const QUICK_LEAST: Duration = Duration::from_millis(40);
/// Per sample, at least: two processes, two probes, counters on up to 64 threads.
const OVERHEAD: Duration = Duration::from_millis(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a quick run of `samples` takes with this overhead, adapted after every 8 samples.
    fn run(samples: usize, overhead: Duration) -> (Duration, Pace) {
        let mut pace = Pace::quick(samples);
        let mut elapsed = Duration::ZERO;
        for sample in 0..samples {
            if sample.is_multiple_of(8) {
                pace.adapt(elapsed, samples - sample);
            }
            elapsed += pace.timing().total() + overhead;
            pace.count();
        }
        (elapsed, pace)
    }

    #[test]
    fn a_quick_run_keeps_to_its_limit() {
        for samples in [1, 50, 125, 220, 300, 350] {
            let (elapsed, pace) = run(samples, OVERHEAD);
            assert!(elapsed < Duration::from_secs(80), "{samples} samples take {elapsed:?}");
            let [longest, shortest] = pace.measured_range();
            assert!(shortest > longest / 2, "{longest:?} to {shortest:?}");
        }
    }

    #[test]
    fn a_quick_run_on_a_slow_machine_has_shorter_samples() {
        for (samples, overhead_ms) in [(50, 1000), (220, 150), (350, 100)] {
            let overhead = Duration::from_millis(overhead_ms);
            let (elapsed, pace) = run(samples, overhead);
            let unpaced = (Pace::quick(samples).timing().total() + overhead)
                * u32::try_from(samples).expect("few");
            assert!(unpaced > Duration::from_secs(85), "{samples} samples take {unpaced:?} anyway");
            assert!(elapsed < Duration::from_secs(85), "{samples} samples take {elapsed:?}");
            let [longest, shortest] = pace.measured_range();
            assert!(shortest < longest && shortest >= QUICK_LEAST, "{longest:?} to {shortest:?}");
            assert!(pace.has_time(Duration::from_secs(74)) && !pace.has_time(QUICK_LIMIT));
        }
    }

    #[test]
    fn a_run_that_takes_its_time_is_as_asked_for() {
        let mut pace = Pace::fixed(MEASURED);
        pace.count();
        pace.adapt(Duration::from_secs(1000), 1000);
        assert_eq!(pace.measured_range(), [MEASURED; 2]);
        assert!(pace.has_time(Duration::from_secs(1000)));
    }
}
