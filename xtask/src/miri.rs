//! `cargo xtask miri`: what needs no kernel, interpreted.
//!
//! Miri checks every access against the rules of the language: provenance, alignment, initialisation,
//! borrows and data races, with the weak memory that processors may show. It knows no io_uring and hardly
//! a socket. So regions take their memory from the allocator there (`memory/map.rs`), rustix calls libc,
//! and what is interpreted is the wire format, the concurrent protocols, and the parts of the reactor that
//! handle memory. Tests that cannot run there say so: `cfg_attr(miri, ignore = "...")`.
//!
//! Addresses are exposed (`expose_provenance`) only where they go to the kernel, and come back as numbers
//! that are never made into pointers; strict provenance permits that.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xshell::{Cmd, Shell, cmd};

use crate::fuzz::Outcome;
use crate::run::{compiler_flags, observe, shell};

/// Arguments of `cargo xtask miri`.
#[derive(Debug, clap::Args)]
pub(crate) struct MiriArgs {
    /// Seeds of the concurrent parts: each schedules threads and delays stores in another way
    #[arg(long, default_value_t = SEEDS, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    seeds: u32,
    /// Runs only suites with this in their names
    #[arg(long, value_name = "F")]
    filter: Option<String>,
    /// Runs the same tests as programs, with the code that is there for Miri: this finds mistakes in that
    /// code, and nothing that Miri finds
    #[arg(long)]
    native: bool,
}

impl Default for MiriArgs {
    fn default() -> Self {
        Self { seeds: SEEDS, filter: None, native: false }
    }
}

pub(crate) fn run(arguments: &MiriArgs) -> Result<()> {
    match miri(arguments)? {
        Outcome::Done => Ok(()),
        Outcome::Impossible(reason) => {
            println!("SKIPPED miri: {reason}");
            std::process::exit(SKIPPED);
        }
    }
}

/// Runs what is asked for; an error if there is a finding.
pub(crate) fn miri(arguments: &MiriArgs) -> Result<Outcome> {
    let shell = shell()?;
    if !arguments.native
        && let Some(reason) = what_is_missing(&shell)
    {
        return Ok(Outcome::Impossible(reason));
    }
    let is_chosen =
        |suite: &&Suite| arguments.filter.as_ref().is_none_or(|filter| suite.name.contains(filter));
    let mut rows = Vec::new();
    for suite in SUITES.iter().filter(is_chosen) {
        rows.push(run_suite(&shell, suite, arguments)?);
    }
    ensure!(!rows.is_empty(), "no suite has {:?} in its name", arguments.filter);
    println!("\n{:<12} {:>7} {:>7} {:>8} {:>8}", "suite", "passed", "failed", "ignored", "seconds");
    for Row { suite, passed, failed, ignored, seconds } in &rows {
        println!("{suite:<12} {passed:>7} {failed:>7} {ignored:>8} {seconds:>8}");
    }
    if arguments.native {
        println!("Nothing was interpreted: these were ordinary programs.");
    }
    let bad = rows.iter().filter(|row| row.is_bad()).count();
    ensure!(bad == 0, "{bad} suites have failures, or ran no test");
    Ok(Outcome::Done)
}

/// What is run in one go.
struct Suite {
    name: &'static str,
    /// Given to `cargo miri test`.
    tests: &'static [&'static str],
    /// Given to the test programs.
    arguments: &'static [&'static str],
    /// It has threads, whose order is chosen by seeds.
    concurrent: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    suite: &'static str,
    passed: u64,
    failed: u64,
    ignored: u64,
    seconds: u64,
}

impl Row {
    /// Whether something failed, or nothing was interpreted.
    fn is_bad(&self) -> bool {
        self.failed > 0 || self.passed == 0
    }

    fn line(&mut self, line: &str) {
        let Some(result) = line.trim().strip_prefix("test result: ") else { return };
        let mut number = 0;
        for word in result.split_whitespace() {
            match word.trim_end_matches(';') {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                word => number = word.parse().unwrap_or(0),
            }
        }
    }
}

fn run_suite(shell: &Shell, suite: &'static Suite, arguments: &MiriArgs) -> Result<Row> {
    let command = if arguments.native {
        let command =
            cmd!(shell, "cargo test --locked --no-fail-fast --target-dir target/cfg-miri");
        let (variable, flags) = compiler_flags("--cfg miri");
        command.env(variable, flags)
    } else {
        let command = cmd!(shell, "cargo +nightly miri test --locked --no-fail-fast");
        interpreted(command, suite, arguments.seeds)
    };
    let command = command.args(suite.tests).arg("--").args(suite.arguments);
    let mut row = Row { suite: suite.name, ..Row::default() };
    let start = Instant::now();
    let status = observe(command, RUN_TIME_MAX, |line| row.line(line))?;
    row.seconds = start.elapsed().as_secs();
    // Miri ends a program at the first finding.
    row.failed = row.failed.max(u64::from(!status.success()));
    Ok(row)
}

fn interpreted<'shell>(command: Cmd<'shell>, suite: &Suite, seeds: u32) -> Cmd<'shell> {
    let mut flags = FLAGS.to_owned();
    if suite.concurrent {
        flags += &format!(" -Zmiri-many-seeds=0..{seeds}");
    }
    command.args(["--target-dir", "target/miri"]).env("MIRIFLAGS", flags).env("PROPTEST_CASES", "4")
}

/// Why nothing can be interpreted here, if so.
fn what_is_missing(shell: &Shell) -> Option<String> {
    let works = |command: Cmd<'_>| command.quiet().ignore_stderr().read().is_ok();
    if !works(cmd!(shell, "rustc +nightly --version")) {
        return Some(
            "Miri takes a nightly toolchain: rustup toolchain install nightly --component miri \
             --component rust-src"
                .into(),
        );
    }
    if !works(cmd!(shell, "cargo +nightly miri --version")) {
        return Some(
            "the nightly toolchain has no Miri: rustup +nightly component add miri rust-src; \
             `cargo xtask miri --native` runs the same tests without it"
                .into(),
        );
    }
    None
}

/// Strict provenance: no pointer is made of a number. Symbolic alignment: no access is aligned by luck.
/// Without isolation, tests may read the vectors that lie beside them, and the clock.
const FLAGS: &str =
    "-Zmiri-strict-provenance -Zmiri-symbolic-alignment-check -Zmiri-disable-isolation";

/// What is interpreted.
const SUITES: &[Suite] = &[
    Suite {
        name: "frame",
        tests: &["--package", "ringpost-frame", "--lib", "--tests"],
        arguments: &[],
        concurrent: false,
    },
    Suite {
        name: "sync",
        tests: &["--package", "ringpost-sync", "--lib", "--tests"],
        arguments: &[],
        concurrent: true,
    },
    Suite {
        name: "leases",
        tests: &["--package", "ringpost-reactor", "--features", "sim", "--lib"],
        arguments: &["pool::"],
        concurrent: true,
    },
    Suite {
        name: "reactor",
        tests: &["--package", "ringpost-reactor", "--features", "sim", "--lib"],
        // Engines of a kernel, or simulated ones on its sockets.
        arguments: &["--skip", "pool::", "--skip", "conformance::"],
        concurrent: false,
    },
];

/// Seeds of a concurrent suite.
const SEEDS: u32 = 16;

/// What the process exits with if nothing could be run.
const SKIPPED: i32 = 77;

/// One suite. Interpreting takes a hundred times as long as running, or more.
const RUN_TIME_MAX: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_results() {
        let mut row = Row::default();
        row.line("test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 9 filtered out");
        row.line("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured");
        row.line("test a ... ok");
        assert_eq!(row, Row { passed: 13, failed: 2, ignored: 3, ..Row::default() });
        assert!(row.is_bad());
    }

    #[test]
    fn nothing_is_no_success() {
        let mut row = Row::default();
        row.line("test result: ok. 0 passed; 0 failed; 3 ignored; 0 measured; 9 filtered out");
        assert!(row.is_bad());
        row.line("test result: ok. 1 passed; 0 failed; 3 ignored; 0 measured; 9 filtered out");
        assert!(!row.is_bad());
    }
}
