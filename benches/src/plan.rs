//! Which samples are taken, in which order, and how long each of them is.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    cli::Options,
    contenders::{self, Contender},
    pace::{MEASURED, Pace},
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
    pub(crate) pace: Pace,
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
        let pace = match options.seconds {
            Some(seconds) => Pace::fixed(Duration::from_secs_f64(seconds)),
            None if options.quick => Pace::quick(samples + samples / QUICK_SAMPLES_PER_RETRY),
            None => Pace::fixed(MEASURED),
        };
        let retries = if options.quick { samples / QUICK_SAMPLES_PER_RETRY } else { usize::MAX };
        let retries_per_sample = if options.quick { 1 } else { 2 };
        Ok(Self { rounds, pace, retries, retries_per_sample })
    }

    pub(crate) fn samples(&self) -> usize {
        self.rounds.iter().map(|round| round.contenders.len() * round.repetitions).sum()
    }
}

const QUICK_SAMPLES_PER_RETRY: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

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
