//! How often receivers that are full and can't be polled for room are tried again.

use std::time::{Duration, Instant};

/// Longest rest of a lane, unless many rest.
pub(crate) const REST_MAX: Duration = Duration::from_millis(10);
/// Time from one lane that has rested for long to the next, with many of them: 10,000 tries a second at most, however
/// many receivers do not read.
const PACE: Duration = Duration::from_micros(100);
/// Where a try takes so long that this many would take longer than that, the pace is so many tries: they take a
/// quarter of the thread's time.
const TRIES: u32 = 4;
/// What one try counts for at most: the thread may have been preempted meanwhile.
const TRY_COST_MAX: Duration = Duration::from_millis(1);
/// Weight of what was known against what is new.
const KNOWN_WEIGHT: u32 = 15;

/// The pace of the tries of all sockets of a reactor.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// What a try that is refused takes, over the last ones.
    try_cost: Duration,
    /// The last refusal, if nothing but tries was done since.
    last: Option<Instant>,
}

impl Pace {
    /// What comes next is no try, or not only one.
    pub(crate) fn interrupt(&mut self) {
        self.last = None;
    }

    /// A try was refused just now.
    pub(crate) fn refused(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let cost = now.saturating_duration_since(last).min(TRY_COST_MAX);
            self.try_cost = (self.try_cost * KNOWN_WEIGHT + cost) / (KNOWN_WEIGHT + 1);
        }
    }

    /// How long who has rested for long rests in a crowd of so many.
    pub(crate) fn rest_of(&self, crowd: usize) -> Duration {
        let pace = PACE.max(self.try_cost * TRIES);
        REST_MAX.max(pace.saturating_mul(u32::try_from(crowd).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pace after so many refusals in a row, so far apart.
    fn after(refusals: u32, apart: Duration) -> Pace {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for refusal in 0..refusals {
            pace.refused(start + apart * refusal);
        }
        pace
    }

    #[test]
    fn a_crowd_is_tried_at_a_pace() {
        let pace = after(1000, Duration::from_micros(3));
        assert_eq!(pace.rest_of(0), REST_MAX);
        assert_eq!(pace.rest_of(100), REST_MAX);
        assert_eq!(pace.rest_of(1000), PACE * 1000);
        assert!(pace.rest_of(usize::MAX) > Duration::from_secs(24 * 60 * 60));
    }

    #[test]
    fn slow_tries_take_a_part_of_the_time() {
        const COST: Duration = Duration::from_micros(300);
        let pace = after(200, COST);
        let part = (COST * 1000).div_duration_f64(pace.rest_of(1000));
        assert!((0.24..0.27).contains(&part), "{part}");
        // Faster again.
        let mut pace = pace;
        pace.interrupt();
        let start = Instant::now() + Duration::from_secs(1);
        for refusal in 0..200 {
            pace.refused(start + Duration::from_micros(3) * refusal);
        }
        assert_eq!(pace.rest_of(1000), PACE * 1000);
    }

    #[test]
    fn what_lies_between_tries_is_not_their_cost() {
        let mut pace = after(100, Duration::from_micros(3));
        pace.interrupt();
        let later = Instant::now() + Duration::from_secs(5);
        pace.refused(later);
        assert_eq!(pace.rest_of(1000), PACE * 1000);
        // A thread that was preempted for a second once.
        pace.refused(later + Duration::from_secs(1));
        assert!(pace.rest_of(1000) < PACE * 3000, "{:?}", pace.rest_of(1000));
    }
}
