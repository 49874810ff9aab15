//! Spin, then park: how long to watch for work before giving the core away.
//!
//! A parked thread costs a wake-up (tens of microseconds on a virtual machine), a spinning one costs
//! its core. The adaptive policy spends time only where it recently paid: a spin that found work, or a
//! park so short that a spin would have, raises the budget; a spin in vain halves it. When more threads
//! are runnable than there are cores the budget is zero, because then the work spun for may be waiting for
//! this very core.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// How a reactor waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spin {
    /// Park at once: least CPU.
    Never,
    /// Spin while it pays, at most `max` before each park.
    Adaptive {
        /// Longest spin before a park.
        max: Duration,
    },
    /// Never park: least delay, for a core of its own.
    Always,
}

impl Default for Spin {
    /// Adaptive with 50 µs: about what a wake-up costs on a virtual machine.
    fn default() -> Self {
        Self::Adaptive { max: Duration::from_micros(50) }
    }
}

/// Spins in a row that must have found work before the engine is told of it: taking receives out of the
/// ring and back costs about as much as a few of them.
const STEADY_STREAK: u32 = 32;

/// How often the load is looked at, at most.
const LOAD_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Spinner {
    policy: Spin,
    budget: Duration,
    load: Load,
    /// Spins in a row that found work.
    streak: u32,
    steady_streak: u32,
    /// Time since then in spins that something due has ended.
    interrupted: Duration,
    pub(crate) paid: u64,
    pub(crate) unpaid: u64,
}

impl Spinner {
    pub(crate) fn new(policy: Spin) -> Self {
        Self {
            policy,
            budget: Duration::ZERO,
            load: Load::new(),
            streak: 0,
            steady_streak: STEADY_STREAK,
            interrupted: Duration::ZERO,
            paid: 0,
            unpaid: 0,
        }
    }

    /// How long to spin before the next park; `None` means without end.
    pub(crate) fn budget(&mut self) -> Option<Duration> {
        match self.policy {
            Spin::Never => Some(Duration::ZERO),
            Spin::Always => None,
            Spin::Adaptive { .. } if self.budget.is_zero() => Some(Duration::ZERO),
            Spin::Adaptive { .. } if self.load.is_overcommitted() => Some(Duration::ZERO),
            Spin::Adaptive { .. } => Some(self.budget),
        }
    }

    /// True once spinning has paid for so long that the engine may arrange itself for it.
    pub(crate) fn is_steady(&self) -> bool {
        self.policy == Spin::Always || self.streak >= self.steady_streak
    }

    /// True if the policy learns from how long a park lasted.
    pub(crate) fn learns(&self) -> bool {
        matches!(self.policy, Spin::Adaptive { .. })
    }

    /// As on a machine with cores for everybody.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn ignore_load(&mut self) {
        self.load.cores = usize::MAX;
    }

    /// In a simulation: what else the machine has to do decides nothing, and the engine arranges itself for spins, and
    /// back, as often as may be.
    #[cfg(feature = "sim")]
    pub(crate) fn simulate(&mut self) {
        self.ignore_load();
        self.steady_streak = 2;
    }

    /// A spin found work after so long.
    #[inline]
    pub(crate) fn found(&mut self, spent: impl FnOnce() -> Duration) {
        self.paid += 1;
        self.streak = self.streak.saturating_add(1);
        self.interrupted = Duration::ZERO;
        if let Spin::Adaptive { max } = self.policy {
            // Room for twice what it took, with a floor that keeps jitter from ending the streak.
            self.budget = spent().saturating_mul(2).max(max / 4).max(self.budget).min(max);
        }
    }

    /// A spin of the whole budget found nothing.
    pub(crate) fn wasted(&mut self) {
        self.unpaid += 1;
        self.streak = 0;
        self.interrupted = Duration::ZERO;
        self.budget /= 2;
        if let Spin::Adaptive { max } = self.policy
            && self.budget < max / 16
        {
            self.budget = Duration::ZERO;
        }
    }

    /// A spin was ended by something due after `spent`. Some of them are one of the whole budget.
    pub(crate) fn interrupted(&mut self, spent: Duration) {
        self.interrupted += spent;
        if self.interrupted >= self.budget {
            self.wasted();
        }
    }

    /// A park ended with work after `parked`.
    pub(crate) fn parked(&mut self, parked: Duration) {
        if let Spin::Adaptive { max } = self.policy
            && parked < max
        {
            self.budget = self.budget.saturating_add(max / 4).min(max);
        }
    }
}

/// Watches how many threads want to run.
#[derive(Debug)]
struct Load {
    file: Option<File>,
    cores: usize,
    looked: Option<Instant>,
    overcommitted: bool,
}

impl Load {
    fn new() -> Self {
        Self {
            file: File::open("/proc/loadavg").ok(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            looked: None,
            overcommitted: false,
        }
    }

    fn is_overcommitted(&mut self) -> bool {
        let now = Instant::now();
        if self.looked.is_none_or(|at| now.saturating_duration_since(at) >= LOAD_INTERVAL) {
            self.looked = Some(now);
            self.overcommitted = self.runnable().is_some_and(|count| count > self.cores);
        }
        self.overcommitted
    }

    /// The runnable threads of the host: the part before the slash in the fourth field (proc(5)).
    fn runnable(&self) -> Option<usize> {
        let mut text = [0; 128];
        let len = self.file.as_ref()?.read_at(&mut text, 0).ok()?;
        parse_runnable(std::str::from_utf8(&text[..len]).ok()?)
    }
}

fn parse_runnable(text: &str) -> Option<usize> {
    text.split_ascii_whitespace().nth(3)?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(80);

    #[test]
    fn adaptive_budget_follows_what_pays() {
        let mut spinner = Spinner::new(Spin::Adaptive { max: MAX });
        spinner.load.file = None;
        assert_eq!(spinner.budget(), Some(Duration::ZERO));
        // Long parks teach nothing; short ones would have been worth a spin.
        spinner.parked(MAX * 2);
        assert_eq!(spinner.budget(), Some(Duration::ZERO));
        spinner.parked(MAX / 2);
        assert_eq!(spinner.budget(), Some(MAX / 4));
        spinner.found(|| MAX / 2);
        assert_eq!(spinner.budget(), Some(MAX));
        for _ in 0..8 {
            spinner.wasted();
        }
        assert_eq!(spinner.budget(), Some(Duration::ZERO));
    }

    #[test]
    fn a_bound_of_any_length_is_taken() {
        let mut spinner = Spinner::new(Spin::Adaptive { max: Duration::MAX });
        spinner.load.file = None;
        for _ in 0..8 {
            spinner.parked(Duration::from_millis(1));
            spinner.found(|| Duration::ZERO);
        }
        assert_eq!(spinner.budget(), Some(Duration::MAX));
        spinner.wasted();
    }

    #[test]
    fn fixed_policies_do_not_learn() {
        let mut never = Spinner::new(Spin::Never);
        never.found(|| Duration::ZERO);
        never.parked(Duration::ZERO);
        assert_eq!(never.budget(), Some(Duration::ZERO));
        assert_eq!(Spinner::new(Spin::Always).budget(), None);
    }

    #[test]
    fn runnable_threads_are_read() {
        assert_eq!(parse_runnable("0.20 0.18 0.12 3/80 11206\n"), Some(3));
        assert_eq!(parse_runnable("garbage"), None);
        assert!(Load::new().runnable().is_some());
    }
}
