//! `cargo xtask ci`: what continuous integration does, and nothing else does it.

use std::time::{Duration, Instant};

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::fuzz::{FuzzArgs, Outcome};
use crate::loom::LoomArgs;
use crate::run::{root, run as run_command, shell};
use crate::sim::SimArgs;
use crate::test::{Counts, SHIPPED, SIMULATED, TestArgs, finish};

/// Arguments of `cargo xtask ci`.
#[derive(Debug, clap::Args)]
pub(crate) struct CiArgs {}

pub(crate) fn run(_: &CiArgs) -> Result<()> {
    let shell = shell()?;
    let mut steps = Steps::default();
    steps.run("fmt", || fmt(&shell));
    steps.run("tidy", || checked(crate::tidy::check));
    steps.run("clippy", || {
        let flags = ["--", "-D", "warnings"];
        checked(|| {
            for selected in [SHIPPED, SIMULATED] {
                let clippy = cmd!(shell, "cargo clippy --all-targets --locked");
                run_command(clippy.args(selected).args(flags), STEP_TIME_MAX)?;
            }
            Ok(())
        })
    });
    steps.run("doc", || {
        checked(|| {
            run_command(
                cmd!(shell, "cargo doc --workspace --no-deps --locked --document-private-items")
                    .env("RUSTDOCFLAGS", "-D warnings"),
                STEP_TIME_MAX,
            )
        })
    });
    steps.run("test", || crate::test::test(&TestArgs::default()));
    steps.run("loom", || checked(|| crate::loom::run(&LoomArgs::default())));
    steps.run("sim", || checked(|| crate::sim::run(&SimArgs::smoke())));
    steps.run("benches", || {
        checked(|| {
            run_command(
                cmd!(shell, "cargo build --release --locked --package ringpost-bench"),
                STEP_TIME_MAX,
            )
        })
    });
    steps.run("fuzz", || match crate::fuzz::fuzz(&FuzzArgs::smoke())? {
        Outcome::Done => Ok(Counts::passed()),
        Outcome::Impossible(reason) => {
            println!("fuzzing is skipped: {reason}");
            Ok(Counts::skipped())
        }
    });
    steps.report()
}

/// The steps so far. One that fails does not keep the next from running: who reads the report wants
/// all of it.
#[derive(Debug, Default)]
struct Steps {
    done: Vec<(&'static str, Duration, Counts)>,
}

impl Steps {
    fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<Counts>) {
        println!("== {name}");
        let start = Instant::now();
        let counts = step().unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            Counts::failed(format!("{name}: {error:#}"))
        });
        self.done.push((name, start.elapsed(), counts));
    }

    fn report(&self) -> ! {
        let mut sum = Counts::default();
        println!(
            "\n{:<10} {:>8}  outcome (a step other than `test` counts as one)",
            "step", "seconds"
        );
        for (name, time, counts) in &self.done {
            println!("{name:<10} {:>8.1}  {counts}", time.as_secs_f64());
            sum += counts.clone();
        }
        finish(&sum)
    }
}

fn checked(step: impl FnOnce() -> Result<()>) -> Result<Counts> {
    step().map(|()| Counts::passed())
}

fn fmt(shell: &Shell) -> Result<Counts> {
    run_command(cmd!(shell, "cargo fmt --all --check"), STEP_TIME_MAX)?;
    if root().join("fuzz/Cargo.toml").is_file() {
        let fuzz = cmd!(shell, "cargo fmt --check --manifest-path fuzz/Cargo.toml");
        run_command(fuzz, STEP_TIME_MAX)?;
    }
    Ok(Counts::passed())
}

/// For one step; most take a fraction of it.
const STEP_TIME_MAX: Duration = Duration::from_secs(8 * 60);
