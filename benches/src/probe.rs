//! How far apart the processors are right now.
//!
//! Virtual processors move between physical ones, and with them the cost of everything that passes
//! from one to the other, by a factor of several. The probe is the cheapest thing that does: a word
//! in shared memory goes back and forth between two threads on two processors. Samples that were
//! taken in the far state are repeated, and marked if that does not help.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::thread::CpuSet;

/// Measures round trips and remembers the best one.
#[derive(Debug)]
pub(crate) struct Probe {
    processors: Option<[usize; 2]>,
    best_ns: Option<f64>,
}

impl Probe {
    /// Takes a few measurements to know what near is.
    pub(crate) fn new() -> Self {
        let mut probe = Self { processors: two_processors(), best_ns: None };
        for _ in 0..CALIBRATION_ROUNDS {
            probe.measure();
            thread::sleep(CALIBRATION_PAUSE);
        }
        probe
    }

    /// Nanoseconds of one round trip; none if there are no two processors to use.
    pub(crate) fn measure(&mut self) -> Option<f64> {
        let now = round_trip(self.processors?)?;
        self.best_ns = Some(self.best_ns.map_or(now, |best| best.min(now)));
        Some(now)
    }

    pub(crate) fn best_ns(&self) -> Option<f64> {
        self.best_ns
    }

    /// Whether a sample between these two measurements ran in the far state.
    pub(crate) fn is_far(&self, around_ns: [Option<f64>; 2]) -> bool {
        let worst = around_ns.into_iter().flatten().reduce(f64::max);
        matches!((worst, self.best_ns), (Some(worst), Some(best)) if worst > FAR_TIMES_BEST * best)
    }
}

fn two_processors() -> Option<[usize; 2]> {
    let allowed = rustix::thread::sched_getaffinity(None).ok()?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|&number| allowed.is_set(number));
    Some([allowed.next()?, allowed.next()?])
}

/// The best of many short runs: a thread that loses its processor in one of them does not matter.
fn round_trip(processors: [usize; 2]) -> Option<f64> {
    let word = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let start = Barrier::new(2);
    let pin = |processor| {
        let mut set = CpuSet::new();
        set.set(processor);
        let pinned = rustix::thread::sched_setaffinity(None, &set).is_ok();
        start.wait();
        pinned
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(processors[1]);
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) {
                let asked = word.load(Ordering::Acquire);
                if asked > answered {
                    answered = asked + 1;
                    word.store(answered, Ordering::Release);
                }
            }
        });
        // On a thread of its own: the affinity of the caller stays as it is.
        let asker = scope.spawn(|| {
            let pinned = pin(processors[0]);
            let start = Instant::now();
            let mut end = start + PATIENCE;
            let mut asked = 1;
            let mut best: Option<f64> = None;
            'runs: loop {
                let begun = Instant::now();
                for _ in 0..TRIPS_PER_RUN {
                    word.store(asked, Ordering::Release);
                    let mut polls = 0_u32;
                    while word.load(Ordering::Acquire) != asked + 1 {
                        polls += 1;
                        if polls.is_multiple_of(4096) && Instant::now() > end {
                            break 'runs;
                        }
                    }
                    asked += 2;
                }
                let trip = begun.elapsed().as_secs_f64() * 1e9 / f64::from(TRIPS_PER_RUN);
                best = Some(best.map_or(trip, |best| best.min(trip)));
                end = start + MEASURED;
                if Instant::now() > end {
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
            // Not one run ended: it takes this long at least, which is as far as can be.
            best.or_else(|| Some(PATIENCE.as_secs_f64() * 1e9 / f64::from(TRIPS_PER_RUN)))
                .filter(|_| pinned)
        });
        asker.join().ok().flatten()
    })
}

const MEASURED: Duration = Duration::from_millis(3);
/// How long the first run may take, in case the processors are busy.
const PATIENCE: Duration = Duration::from_millis(15);
const TRIPS_PER_RUN: u32 = 100;
const CALIBRATION_ROUNDS: u32 = 8;
const CALIBRATION_PAUSE: Duration = Duration::from_millis(5);
const FAR_TIMES_BEST: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_is_relative_to_the_best_seen() {
        let probe = Probe { processors: None, best_ns: Some(130.0) };
        assert!(!probe.is_far([Some(150.0), Some(250.0)]));
        assert!(probe.is_far([Some(150.0), Some(600.0)]));
        assert!(!probe.is_far([None, None]));
    }

    #[test]
    fn without_two_processors_nothing_is_far() {
        let mut probe = Probe { processors: None, best_ns: None };
        assert_eq!(probe.measure(), None);
        assert!(!probe.is_far([Some(1e6), None]));
    }
}
