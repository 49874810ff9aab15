//! Which samples are taken, in which order, and how long each of them is.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    cli::Options,
    contenders::{self, Contender},
    scenario::{Scenario, Workload},
};

/// A workload and those who take part in it.
pub(crate) struct Round {
    pub(crate) workload: Workload,
    pub(crate) contenders: Vec<&'static dyn Contender>,
    pub(crate) repetitions: usize,
}

/// Everything that one run of the program measures.
pub(crate) struct Plan {
    pub(crate) rounds: Vec<Round>,
    pub(crate) measured: Duration,
    /// How many samples may be taken again because the processors were far apart.
    pub(crate) retries: usize,
    pub(crate) retries_per_sample: usize,
}

impl Plan {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        for name in &options.contenders {
            contenders::by_name(name)?;
        }
        let chosen = |contender: &dyn Contender| {
            options.contenders.is_empty()
                || options.contenders.iter().any(|name| name == contender.name())
        };
        let mut rounds = Vec::new();
        for scenario in Scenario::ALL {
            if !options.scenarios.is_empty() && !options.scenarios.contains(&scenario) {
                continue;
            }
            let contenders: Vec<_> = contenders::all()
                .into_iter()
                .filter(|contender| chosen(*contender) && contender.scenarios().contains(&scenario))
                .collect();
            if contenders.is_empty() {
                continue;
            }
            // The plot over connections shows the shape; it needs no repetitions for that.
            let repetitions = match scenario {
                Scenario::Sweep if options.quick => 1,
                _ => options.repetitions,
            };
            for workload in scenario.workloads(options.quick) {
                rounds.push(Round { workload, contenders: contenders.clone(), repetitions });
            }
        }
        let samples: usize =
            rounds.iter().map(|round| round.contenders.len() * round.repetitions).sum();
        ensure!(samples > 0, "none of the chosen contenders takes part in the chosen scenarios");
        let measured = match options.seconds {
            Some(seconds) => Duration::from_secs_f64(seconds),
            None if options.quick => quick_measured(samples),
            None => MEASURED,
        };
        let retries = if options.quick { samples / QUICK_SAMPLES_PER_RETRY } else { usize::MAX };
        let retries_per_sample = if options.quick { 1 } else { 2 };
        Ok(Self { rounds, measured, retries, retries_per_sample })
    }

    pub(crate) fn samples(&self) -> usize {
        self.rounds.iter().map(|round| round.contenders.len() * round.repetitions).sum()
    }
}

/// The longest measured phase with which this many samples keep to the limit of a quick run.
fn quick_measured(samples: usize) -> Duration {
    let with_retries = samples + samples / QUICK_SAMPLES_PER_RETRY;
    let with_retries = u32::try_from(with_retries).unwrap_or(u32::MAX).max(1);
    let each = (QUICK_LIMIT / with_retries).saturating_sub(OVERHEAD);
    // A fifth of it each goes to the warm-up and to the counting of system calls.
    (each * 5 / 7).clamp(QUICK_LEAST, MEASURED)
}

const MEASURED: Duration = Duration::from_millis(1000);
/// A quick run ends within 90 seconds, with some of that left for a slower machine.
const QUICK_LIMIT: Duration = Duration::from_secs(75);
const QUICK_LEAST: Duration = Duration::from_millis(40);
const QUICK_SAMPLES_PER_RETRY: usize = 6;
/// Per sample: two processes, two probes, counters on up to 64 threads.
const OVERHEAD: Duration = Duration::from_millis(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_keeps_to_its_limit() {
        for samples in [1, 50, 125, 220, 300] {
            let timing = crate::meter::Timing::measuring(quick_measured(samples));
            let each = timing.total() + OVERHEAD;
            let all =
                each * u32::try_from(samples + samples / QUICK_SAMPLES_PER_RETRY).unwrap_or(0);
            assert!(all < Duration::from_secs(85), "{samples} samples take {all:?}");
        }
    }

    #[test]
    fn names_are_checked() {
        let options =
            Options { contenders: vec!["nobody".to_owned()], repetitions: 1, ..Options::default() };
        assert!(Plan::new(&options).is_err());
    }

    #[test]
    fn a_selection_is_kept() -> Result<()> {
        let options = Options {
            scenarios: vec![Scenario::Stream],
            contenders: vec!["tokio".to_owned(), "blocking".to_owned()],
            repetitions: 2,
            ..Options::default()
        };
        let plan = Plan::new(&options)?;
        assert_eq!(plan.samples(), 2, "blocking does not stream");
        assert_eq!(plan.rounds[0].contenders[0].name(), "tokio");
        Ok(())
    }
}
