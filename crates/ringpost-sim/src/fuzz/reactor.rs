//! Scenarios with the choices of an input in place of a seed.

use ringpost::sim::FromBytes;

use crate::run::run;
use crate::scenarios::{self, End};
use crate::seam::Seam;

/// Runs a scenario; every decision in it, of the kernel as of the scenario, is taken from the input.
///
/// Input: the scenario, and whether the io_uring engine is part of the run; then the choices.
///
/// # Panics
///
/// If anything is wrong in the run or at its end.
pub fn reactor(data: &[u8]) {
    let (first, choices) = data.split_first().unwrap_or((&0, &[]));
    let seam = Seam::ALL[usize::from(*first >> 7) % Seam::ALL.len()];
    let scenario = &scenarios::ALL[usize::from(*first & 0x7F) % scenarios::ALL.len()];
    if scenario.end == End::Leaked {
        // What is leaked on purpose would count as found.
        return;
    }
    fastrand::seed(0);
    let outcome = run(scenario, seam, Box::new(FromBytes::new(choices.to_vec())));
    if let Some(failure) = outcome.failure {
        let trace = failure.trace.join("\n  ");
        // Panics of runs print nothing by themselves.
        eprintln!("{}: {}\n{}\n  {trace}", scenario.name, failure.message, failure.machine);
        panic!("{}: {}", scenario.name, failure.message);
    }
}
