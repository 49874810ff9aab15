//! Runs scenarios by seed; `cargo xtask sim` starts some of these at once.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use ringpost_sim::scenarios::{self, Scenario};
use ringpost_sim::{Outcome, Seam, run_seed};

/// Simulates ringpost on a kernel with faults
#[derive(Debug, Parser)]
struct Arguments {
    /// First seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of seeds
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Distance from one seed to the next
    #[arg(long, default_value_t = 1)]
    step: u64,
    /// Runs only this scenario, or with /ring behind its name the one on a ring; can be given several times
    #[arg(long)]
    scenario: Vec<String>,
    /// Failures after which no more are looked for
    #[arg(long, default_value_t = 10)]
    failures_max: usize,
    /// Prints the last steps of runs that end well, too
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut chosen: Vec<(&Scenario, Seam)> = Vec::new();
    for name in &arguments.scenario {
        let Some(found) = Seam::find(name) else {
            let names: Vec<_> = scenarios::ALL.iter().map(|scenario| scenario.name).collect();
            eprintln!("there is no scenario {name}; there are {}", names.join(", "));
            return ExitCode::FAILURE;
        };
        chosen.push(found);
    }
    if chosen.is_empty() {
        for &seam in Seam::ALL {
            chosen.extend(scenarios::ALL.iter().map(|scenario| (scenario, seam)));
        }
    }

    let mut figures = vec![Figures::default(); chosen.len()];
    let mut faults: Vec<(&'static str, u64)> = Vec::new();
    let mut failures = 0;
    'seeds: for number in 0..arguments.seeds {
        let seed = arguments.seed + number * arguments.step;
        for (&(scenario, seam), figures) in chosen.iter().zip(&mut figures) {
            let start = Instant::now();
            let outcome = run_seed(scenario, seam, seed);
            figures.runs += 1;
            figures.enters += outcome.enters;
            figures.microseconds += start.elapsed().as_micros();
            faults.resize(outcome.faults.len(), ("", 0));
            for (sum, (fault, count)) in faults.iter_mut().zip(&outcome.faults) {
                *sum = (fault.name(), sum.1 + count);
            }
            report(&name_of(scenario, seam), seed, &outcome, arguments.trace);
            failures += usize::from(outcome.failure.is_some());
            if failures >= arguments.failures_max {
                break 'seeds;
            }
        }
    }
    // One field after another, for whoever adds up.
    for (&(scenario, seam), figures) in chosen.iter().zip(&figures) {
        let name = name_of(scenario, seam);
        let Figures { runs, enters, microseconds } = figures;
        println!("sim\tscenario\t{name}\t{runs}\t{enters}\t{microseconds}");
    }
    for (name, count) in faults {
        println!("sim\tfault\t{name}\t{count}");
    }
    println!("sim\tfailures\t{failures}");
    if failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[derive(Debug, Clone, Default)]
struct Figures {
    runs: u64,
    enters: u64,
    microseconds: u128,
}

fn name_of(scenario: &Scenario, seam: Seam) -> String {
    format!("{}{}", scenario.name, seam.suffix())
}

fn report(name: &str, seed: u64, outcome: &Outcome, trace: bool) {
    if let Some(failure) = &outcome.failure {
        println!("\nFAILED {name}, seed {seed}, after {} enters", outcome.enters);
        println!("{}\n{}", failure.message, failure.machine);
        failure.trace.iter().for_each(|line| println!("  {line}"));
        println!("again: cargo xtask sim --seed {seed} --scenario {name}");
    } else if trace {
        println!("{name}, seed {seed}: {} enters", outcome.enters);
    }
}
