//! `cargo xtask sim`: ringpost on a simulated kernel with faults, by seed.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use xshell::cmd;

use crate::run::{observe, run as run_command, shell};

/// Arguments of `cargo xtask sim`.
#[derive(Debug, clap::Args)]
pub(crate) struct SimArgs {
    /// Seeds to run, all scenarios with each; 1000 unless said otherwise, 10 with --sweep
    #[arg(long, conflicts_with = "seed")]
    seeds: Option<u64>,
    /// First seed, to run others than last time
    #[arg(long, default_value_t = 0, conflicts_with = "seed")]
    first: u64,
    /// Runs only this seed, and says what happened
    #[arg(long)]
    seed: Option<u64>,
    /// Runs only this scenario; can be given several times
    #[arg(long)]
    scenario: Vec<String>,
    /// Drops everything everywhere: each public operation at each of its waits, each part of a script at each
    /// step; without faults, and with those of the seeds
    #[arg(long, conflicts_with = "scenario")]
    sweep: bool,
    /// Sweeps only this operation or script
    #[arg(long, requires = "sweep")]
    operation: Option<String>,
}

impl SimArgs {
    /// Enough to see that it works.
    pub(crate) fn smoke() -> Self {
        Self {
            seeds: None,
            first: 0,
            seed: None,
            scenario: Vec::new(),
            sweep: false,
            operation: None,
        }
    }

    fn seeds(&self) -> u64 {
        self.seeds.unwrap_or(if self.sweep { SWEEP_SEEDS } else { SEEDS })
    }
}

pub(crate) fn run(arguments: &SimArgs) -> Result<()> {
    let shell = shell()?;
    let build = cmd!(shell, "cargo build --release --locked --package ringpost-sim");
    run_command(build.args(CHECKED), BUILD_TIME_MAX)?;

    let start = Instant::now();
    let processes = if arguments.seed.is_some() { 1 } else { PROCESSES };
    let sums = thread::scope(|scope| {
        let running: Vec<_> =
            (0..processes).map(|index| scope.spawn(move || part(arguments, index))).collect();
        let mut sums = Sums::default();
        for process in running {
            match process.join() {
                Ok(part) => sums += part?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<_, anyhow::Error>(sums)
    })?;
    if sums.crashed && sums.scenarios.is_empty() {
        bail!("nothing was run; above is why");
    }
    sums.print(start.elapsed());
    ensure!(sums.runs() > 0, "nothing was run: no seeds, or no scenario or operation of that name");
    if sums.failures == 0 && sums.crashed {
        bail!("a process ended early, and its seeds do not count; above is the run it died in");
    }
    if sums.failures > 0 {
        bail!("{} runs failed; above is how to repeat them", sums.failures);
    }
    Ok(())
}

/// Runs every `PROCESSES`th seed, one process after the other until all are done or one has failed.
fn part(arguments: &SimArgs, index: u64) -> Result<Sums> {
    if let Some(seed) = arguments.seed {
        return process(arguments, seed, 1);
    }
    let mut first = arguments.first + index;
    let mut left = (arguments.seeds() + PROCESSES - 1 - index) / PROCESSES;
    let mut sums = Sums::default();
    while left > 0 && sums.failures == 0 && !sums.crashed {
        let seeds = left.min(SEEDS_OF_A_PROCESS_MAX);
        sums += process(arguments, first, seeds)?;
        first += seeds * PROCESSES;
        left -= seeds;
    }
    Ok(sums)
}

/// Runs seeds `PROCESSES` apart in a process of their own: a run has the whole process to itself.
fn process(arguments: &SimArgs, first: u64, seeds: u64) -> Result<Sums> {
    let shell = shell()?;
    let (first, seeds, step) = (first.to_string(), seeds.to_string(), PROCESSES.to_string());
    let mut command = cmd!(shell, "cargo run --quiet --release --locked --package ringpost-sim")
        .args(CHECKED)
        .args(["--", "--seed", &first, "--seeds", &seeds, "--step", &step]);
    for scenario in &arguments.scenario {
        command = command.args(["--scenario", scenario]);
    }
    if arguments.sweep {
        command = command.arg("--sweep");
        command = command.args(arguments.operation.iter().flat_map(|name| ["--operation", name]));
    } else if arguments.seed.is_some() {
        command = command.arg("--trace");
    }
    let mut sums = Sums::default();
    let status = observe(command, RUN_TIME_MAX, |line| sums.line(line))?;
    sums.crashed |= !status.success();
    Ok(sums)
}

/// What the processes have counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    /// Runs, enters and microseconds, by scenario.
    scenarios: BTreeMap<String, [u64; 3]>,
    faults: BTreeMap<String, u64>,
    failures: u64,
    crashed: bool,
}

impl Sums {
    fn line(&mut self, line: &str) {
        let fields: Vec<_> = line.split('\t').collect();
        let number = |text: &str| text.parse().unwrap_or(0);
        match fields[..] {
            ["sim", "scenario", name, runs, enters, microseconds] => {
                let sums = self.scenarios.entry(name.into()).or_default();
                for (sum, text) in sums.iter_mut().zip([runs, enters, microseconds]) {
                    *sum += number(text);
                }
            }
            ["sim", "fault", name, count] => {
                *self.faults.entry(name.into()).or_default() += number(count);
            }
            ["sim", "failures", count] => self.failures += number(count),
            _ => {}
        }
    }

    fn runs(&self) -> u64 {
        self.scenarios.values().map(|[runs, ..]| runs).sum()
    }

    fn print(&self, time: Duration) {
        println!("\n{:<20} {:>9} {:>12} {:>12}", "scenario", "runs", "enters", "ms a run");
        let mut runs = 0;
        let mut seeds = 0;
        for (name, &[count, enters, microseconds]) in &self.scenarios {
            let milliseconds = to_f64(microseconds) / 1000.0 / to_f64(count.max(1));
            println!("{name:<20} {count:>9} {enters:>12} {milliseconds:>12.2}");
            runs += count;
            seeds = seeds.max(count);
        }
        println!("\n{:<20} {:>9}", "fault", "times");
        for (name, count) in &self.faults {
            println!("{name:<20} {count:>9}");
        }
        let minutes = time.as_secs_f64() / 60.0;
        println!(
            "\n{runs} runs of {} scenarios with {seeds} seeds in {:.1} s: {:.0} seeds a minute, {} \
             failures",
            self.scenarios.len(),
            time.as_secs_f64(),
            to_f64(seeds) / minutes,
            self.failures
        );
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        for (name, counts) in other.scenarios {
            let sums = self.scenarios.entry(name).or_default();
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        for (name, count) in other.faults {
            *self.faults.entry(name).or_default() += count;
        }
        self.failures += other.failures;
        self.crashed |= other.crashed;
    }
}

/// For figures to look at.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

/// Assertions and overflows are checked, which takes a few hundredths of the time: a canary that one of them finds is
/// found by this command, too.
const CHECKED: [&str; 2] = ["--config", "xtask/sim.toml"];
/// Seeds unless said otherwise, for scenarios and for sweeps: each of these plays some 30,000 runs.
const SEEDS: u64 = 1000;
const SWEEP_SEEDS: u64 = 10;
/// Seeds of a process, at most: engines that fail leak what the kernel may still use, some 400 KiB a seed.
const SEEDS_OF_A_PROCESS_MAX: u64 = 1000;
/// Processes at once.
const PROCESSES: u64 = 2;
const BUILD_TIME_MAX: Duration = Duration::from_secs(8 * 60);
const RUN_TIME_MAX: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_what_processes_print() {
        let mut sums = Sums::default();
        for line in ["noise", "sim\tscenario\techo\t2\t30\t400", "sim\tfault\theld\t7"] {
            sums.line(line);
        }
        let mut other = Sums::default();
        for line in ["sim\tscenario\techo\t1\t5\t6", "sim\tfault\theld\t1", "sim\tfailures\t1"] {
            other.line(line);
        }
        sums += other;
        assert_eq!(sums.scenarios["echo"], [3, 35, 406]);
        assert_eq!((sums.faults["held"], sums.failures, sums.crashed), (8, 1, false));
    }
}
