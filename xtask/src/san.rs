//! `cargo xtask san`: the tests under AddressSanitizer and ThreadSanitizer.
//!
//! A sanitizer watches what code really does, so it finds what happens in a test, and nothing else. Both
//! are blind on the kernel's side: what io_uring and system calls write and read they do not see.
//! The owners of blocks therefore tell AddressSanitizer which bytes nobody may touch
//! (`ringpost-reactor/src/memory/shadow.rs`).
//!
//! Reports go to files, so that those of child processes and of tests that capture their output count,
//! too. A run fails if a test fails or if there is a report.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use xshell::{Cmd, Shell, cmd};

use crate::fuzz::Outcome;
use crate::run::{observe, observe_silently, root, shell};

/// Arguments of `cargo xtask san`.
#[derive(Debug, clap::Args)]
pub(crate) struct SanArgs {
    /// Runs AddressSanitizer, with the search for leaks; both, if neither is asked for
    #[arg(long)]
    address: bool,
    /// Runs ThreadSanitizer; both, if neither is asked for
    #[arg(long)]
    thread: bool,
    /// Runs only suites with this in their names, whole; if there are none, tests with this in their names
    #[arg(long, value_name = "F")]
    filter: Option<String>,
    /// Runs the long suites whole, too; without it, their parts with the most to find
    #[arg(long)]
    all: bool,
    /// Seeds for the simulation, all scenarios with each
    #[arg(long, default_value_t = SEEDS)]
    seeds: u64,
}

impl Default for SanArgs {
    fn default() -> Self {
        Self { address: false, thread: false, filter: None, all: false, seeds: SEEDS }
    }
}

pub(crate) fn run(arguments: &SanArgs) -> Result<()> {
    match san(arguments)? {
        Outcome::Done => Ok(()),
        Outcome::Impossible(reason) => {
            println!("SKIPPED san: {reason}");
            std::process::exit(SKIPPED);
        }
    }
}

/// Runs what is asked for; an error if there is a finding.
pub(crate) fn san(arguments: &SanArgs) -> Result<Outcome> {
    let both = arguments.address == arguments.thread;
    let mut chosen = Vec::new();
    chosen.extend((both || arguments.address).then_some(Sanitizer::Address));
    chosen.extend((both || arguments.thread).then_some(Sanitizer::Thread));

    let shell = shell()?;
    if let Some(reason) = what_is_missing(&shell, &chosen)? {
        return Ok(Outcome::Impossible(reason));
    }
    let mut rows = Vec::new();
    let start = Instant::now();
    for sanitizer in chosen {
        let has_source = has_std_source(&shell)?;
        if sanitizer == Sanitizer::Thread && !has_source {
            println!(
                "The nightly toolchain lacks rust-src: ThreadSanitizer runs with a standard library \
                 that it does not see through; xtask/tsan.txt says what that costs."
            );
        }
        for suite in asked_for(sanitizer, arguments.filter.as_deref()) {
            rows.extend(run_suite(&shell, sanitizer, suite, arguments, has_source)?);
        }
    }
    ensure!(!rows.is_empty(), "no suite and no test has {:?} in its name", arguments.filter);
    print_table(&rows);
    println!("{} suites in {:.0} s", rows.len(), start.elapsed().as_secs_f64());
    let bad = rows.iter().filter(|row| row.is_bad()).count();
    ensure!(bad == 0, "{bad} suites have failures or findings; above is where the reports are");
    Ok(Outcome::Done)
}

/// The suites that have `filter` in their names; if none has, it is of tests, and they may be in any.
fn asked_for(sanitizer: Sanitizer, filter: Option<&str>) -> Vec<&'static Suite> {
    let named = filter.is_some_and(|filter| SUITES.iter().any(|suite| suite.name.contains(filter)));
    let is_asked = |suite: &&Suite| {
        suite.sanitizers.contains(&sanitizer)
            && (!named || filter.is_none_or(|filter| suite.name.contains(filter)))
    };
    SUITES.iter().filter(is_asked).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sanitizer {
    Address,
    Thread,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Thread => "thread",
        }
    }

    fn runtime(self) -> &'static str {
        match self {
            Self::Address => "_rt.asan.a",
            Self::Thread => "_rt.tsan.a",
        }
    }

    fn flags(self, has_source: bool) -> String {
        let flags = match self {
            Self::Address => "-Zsanitizer=address --cfg ringpost_asan",
            Self::Thread if has_source => "-Zsanitizer=thread --cfg ringpost_tsan",
            // The standard library of the toolchain is built without it.
            Self::Thread => {
                "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg ringpost_tsan"
            }
        };
        format!("{flags} -Cforce-frame-pointers=yes")
    }

    /// Options of the runtime, with reports in files that begin with `log`.
    fn options(self, log: &Path) -> Vec<(&'static str, String)> {
        let log = log.display();
        match self {
            Self::Address => vec![(
                "ASAN_OPTIONS",
                format!("detect_leaks=1:detect_stack_use_after_return=1:log_path={log}"),
            )],
            Self::Thread => vec![(
                "TSAN_OPTIONS",
                format!(
                    "suppressions={}:die_after_fork=0:log_path={log}",
                    root().join("xtask/tsan.txt").display()
                ),
            )],
        }
    }
}

/// What is tested in one go.
struct Suite {
    name: &'static str,
    work: Work,
    sanitizers: &'static [Sanitizer],
    excluded: &'static [Exclusion],
    /// Parts of the names of the tests that run unless all are asked for; none means that all run.
    usually: &'static [&'static str],
}

enum Work {
    /// Given to `cargo test`.
    Tests(&'static [&'static str]),
    /// The simulation, for as many seeds as are asked for.
    Seeds,
}

/// Tests that are not run, and why.
struct Exclusion {
    /// Part of their names.
    tests: &'static str,
    sanitizers: &'static [Sanitizer],
    reason: &'static str,
}

/// What became of a suite.
#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    sanitizer: &'static str,
    suite: &'static str,
    passed: u64,
    failed: u64,
    /// Tests that said that they cannot run here; they are among the passed.
    gave_up: u64,
    excluded: usize,
    /// Tests that were not chosen.
    left_out: usize,
    findings: usize,
    seconds: u64,
}

impl Row {
    fn is_bad(&self) -> bool {
        self.failed > 0 || self.findings > 0
    }

    fn line(&mut self, line: &str) {
        let line = line.trim();
        let fields: Vec<_> = line.split('\t').collect();
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += number_before(result, " passed");
            self.failed += number_before(result, " failed");
        } else if line.starts_with("SKIPPED ") {
            self.gave_up += 1;
        } else if let ["sim", "scenario", _, runs, ..] = fields[..] {
            self.passed += runs.parse::<u64>().unwrap_or(0);
        } else if let ["sim", "failures", count] = fields[..] {
            let failed = count.parse().unwrap_or(0);
            self.failed += failed;
            self.passed -= failed.min(self.passed);
        }
    }
}

/// `None` if nothing of the suite is asked for.
fn run_suite(
    shell: &Shell,
    sanitizer: Sanitizer,
    suite: &'static Suite,
    arguments: &SanArgs,
    has_source: bool,
) -> Result<Option<Row>> {
    let filter = arguments.filter.as_deref().filter(|filter| !suite.name.contains(filter));
    let cargo = |subcommand: &str| {
        let target = format!("target/san-{}", sanitizer.name());
        let mut command = cmd!(shell, "cargo +nightly {subcommand} --locked --target {TARGET}")
            .args(["--target-dir", &target]);
        if has_source {
            command = command.arg("-Zbuild-std");
        }
        // Backtraces are made under a lock of std's, see tsan.txt.
        let backtrace = if sanitizer == Sanitizer::Address { "1" } else { "0" };
        command.env("RUSTFLAGS", sanitizer.flags(has_source)).env("RUST_BACKTRACE", backtrace)
    };
    let mut row = Row { sanitizer: sanitizer.name(), suite: suite.name, ..Row::default() };
    let command = match suite.work {
        Work::Seeds if filter.is_some() => return Ok(None),
        Work::Seeds => {
            let build = cargo("build").args(["--package", "ringpost-sim"]);
            crate::run::run(build, BUILD_TIME_MAX)?;
            let seeds = arguments.seeds.to_string();
            cargo("run").args(["--package", "ringpost-sim", "--", "--seeds", &seeds])
        }
        Work::Tests(of) => {
            let names = list(cargo("test").args(of))?;
            let excluded = exclusions(sanitizer, suite, &names)?;
            let chosen = match filter {
                Some(_) => filter.as_slice(),
                None if arguments.all || arguments.filter.is_some() => &[],
                None => suite.usually,
            };
            let is_chosen =
                |name: &&String| chosen.is_empty() || chosen.iter().any(|part| name.contains(part));
            if !names.iter().any(|name| is_chosen(&name)) {
                return Ok(None);
            }
            row.left_out = names.iter().filter(|name| !is_chosen(name)).count();
            row.excluded = print_exclusions(suite, &excluded, &names);
            let mut command = cargo("test").args(of).args(["--no-fail-fast", "--"]).args(chosen);
            for exclusion in excluded {
                command = command.args(["--skip", exclusion.tests]);
            }
            if sanitizer == Sanitizer::Thread {
                // What is captured goes through a lock of std's, see tsan.txt.
                command = command.arg("--nocapture");
            }
            command
        }
    };

    let log = log_folder(sanitizer, suite)?;
    let command = sanitizer
        .options(&log.join("report"))
        .into_iter()
        .fold(command, |command, (name, value)| command.env(name, value));
    let start = Instant::now();
    let ended = observe(command, RUN_TIME_MAX, |line| row.line(line));
    row.seconds = start.elapsed().as_secs();
    row.findings = show_reports(&log)?;
    // A program that crashed or was killed has counted nothing.
    let succeeded = match ended {
        Ok(status) => status.success(),
        Err(error) => {
            println!("FAILED {}: {error:#}", suite.name);
            false
        }
    };
    row.failed = row.failed.max(u64::from(!succeeded));
    Ok(Some(row))
}

/// Builds tests, and asks for their names.
fn list(command: Cmd<'_>) -> Result<Vec<String>> {
    // What runs while it is asked for its name leaks nothing, but is not asked for that either.
    let command = command.args(["--", "--list", "--format", "terse"]);
    let command = command.env("ASAN_OPTIONS", "detect_leaks=0");
    let mut names = Vec::new();
    let mut last = Vec::new();
    let status = observe_silently(command, BUILD_TIME_MAX, |line| {
        if let Some(name) = line.strip_suffix(": test") {
            names.push(name.to_owned());
        } else {
            last.push(line.to_owned());
        }
    })?;
    if !status.success() {
        let from = last.len().saturating_sub(LINES_SHOWN_MAX);
        bail!("the tests could not be built:\n{}", last[from..].join("\n"));
    }
    Ok(names)
}

/// What is left out of a suite. One that names no test is out of date.
fn exclusions<'suite>(
    sanitizer: Sanitizer,
    suite: &'suite Suite,
    names: &[String],
) -> Result<Vec<&'suite Exclusion>> {
    let mut chosen = Vec::new();
    for exclusion in suite.excluded {
        if exclusion.sanitizers.contains(&sanitizer) {
            let exists = names.iter().any(|name| name.contains(exclusion.tests));
            ensure!(exists, "{}: there is no test {} to leave out", suite.name, exclusion.tests);
            chosen.push(exclusion);
        }
    }
    Ok(chosen)
}

/// Says what is left out. The number of tests.
fn print_exclusions(suite: &Suite, excluded: &[&Exclusion], names: &[String]) -> usize {
    let mut count = 0;
    for Exclusion { tests, reason, .. } in excluded {
        let matching = names.iter().filter(|name| name.contains(tests)).count();
        println!("EXCLUDED {}, {tests} ({matching}): {reason}", suite.name);
        count += matching;
    }
    count
}

/// An empty folder for reports.
fn log_folder(sanitizer: Sanitizer, suite: &Suite) -> Result<PathBuf> {
    let folder = root()
        .join(format!("target/san-{}/reports", sanitizer.name()))
        .join(suite.name.replace(' ', "-"));
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Shows how each report begins, and where it is. The number of findings.
fn show_reports(folder: &Path) -> Result<usize> {
    let mut findings = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text);
        let count = count_findings(&text);
        if count > 0 {
            findings += count;
            println!("FINDING {}", path.display());
            text.lines().take(LINES_SHOWN_MAX).for_each(|line| println!("    {line}"));
        }
    }
    Ok(findings)
}

/// One report may tell of several; what it is made of besides is one finding, too.
fn count_findings(report: &str) -> usize {
    let heads =
        ["ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer", "FATAL:"];
    let count = report.lines().filter(|line| heads.iter().any(|head| line.contains(head))).count();
    match count {
        0 => usize::from(!report.trim().is_empty()),
        count => count,
    }
}

fn print_table(rows: &[Row]) {
    println!(
        "\n{:<10} {:<14} {:>7} {:>7} {:>8} {:>9} {:>9} {:>9} {:>8}",
        "sanitizer",
        "suite",
        "passed",
        "failed",
        "skipped",
        "excluded",
        "left out",
        "findings",
        "seconds"
    );
    for row in rows {
        let Row {
            sanitizer, suite, failed, gave_up, excluded, left_out, findings, seconds, ..
        } = row;
        let passed = row.passed.saturating_sub(*gave_up);
        println!(
            "{sanitizer:<10} {suite:<14} {passed:>7} {failed:>7} {gave_up:>8} {excluded:>9} \
             {left_out:>9} {findings:>9} {seconds:>8}"
        );
    }
}

/// The number that stands before `word`, as in "3 passed; 1 failed".
fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split_once(word).map_or("", |(before, _)| before);
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Why it cannot be done here, if so.
fn what_is_missing(shell: &Shell, chosen: &[Sanitizer]) -> Result<Option<String>> {
    if !(cfg!(target_arch = "x86_64") && cfg!(target_env = "gnu")) {
        return Ok(Some(format!("the sanitizers are set up for {TARGET} only")));
    }
    let version = cmd!(shell, "rustc +nightly --version").quiet().ignore_stderr().read();
    if version.is_err() || cmd!(shell, "cargo +nightly --version").quiet().read().is_err() {
        return Ok(Some(
            "sanitizers take a nightly toolchain: rustup toolchain install nightly".into(),
        ));
    }
    let folder = cmd!(shell, "rustc +nightly --print target-libdir --target {TARGET}").quiet();
    let folder = folder.read()?;
    for sanitizer in chosen {
        let mut files = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
        let is_there = files.any(|file| {
            file.is_ok_and(|file| file.file_name().to_string_lossy().ends_with(sanitizer.runtime()))
        });
        if !is_there {
            let name = sanitizer.name();
            return Ok(Some(format!(
                "the nightly toolchain has no runtime of the {name} sanitizer"
            )));
        }
    }
    Ok(None)
}

/// Whether the standard library can be built, too.
fn has_std_source(shell: &Shell) -> Result<bool> {
    let root = cmd!(shell, "rustc +nightly --print sysroot").quiet().read()?;
    Ok(Path::new(&root).join("lib/rustlib/src/rust/library/Cargo.lock").exists())
}

const BOTH: &[Sanitizer] = &[Sanitizer::Address, Sanitizer::Thread];
const ADDRESS: &[Sanitizer] = &[Sanitizer::Address];

/// Everything that is tested. The wire format has no threads.
const SUITES: &[Suite] = &[
    Suite {
        name: "frame",
        work: Work::Tests(&["--package", "ringpost-frame", "--lib", "--tests"]),
        sanitizers: ADDRESS,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "sync",
        work: Work::Tests(&["--package", "ringpost-sync", "--lib", "--tests"]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "reactor",
        work: Work::Tests(&[
            "--package",
            "ringpost-reactor",
            "--features",
            "sim",
            "--lib",
            "--tests",
        ]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "uds",
        work: Work::Tests(&["--package", "ringpost-uds", "--lib", "--tests"]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "ringpost",
        work: Work::Tests(&["--package", "ringpost", "--lib"]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "end to end",
        work: Work::Tests(&["--package", "ringpost-tests", "--test", "it"]),
        sanitizers: BOTH,
        excluded: END_TO_END,
        usually: USUALLY,
    },
    Suite {
        name: "kept seeds",
        work: Work::Tests(&["--package", "ringpost-sim", "--tests"]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite { name: "simulation", work: Work::Seeds, sanitizers: BOTH, excluded: &[], usually: &[] },
];

/// What is not run end to end.
const END_TO_END: &[Exclusion] = &[
    Exclusion {
        tests: "connections::ten_thousand_idle",
        sanitizers: BOTH,
        reason: "counts bytes of memory for a connection, and allocations have red zones",
    },
    Exclusion {
        tests: "datagrams::nothing_is_left_behind",
        sanitizers: BOTH,
        reason: "measures that memory does not grow, and what is freed is kept in quarantine",
    },
    Exclusion {
        tests: "seqpackets::nothing_is_left_behind",
        sanitizers: BOTH,
        reason: "measures that memory does not grow, and what is freed is kept in quarantine",
    },
    Exclusion {
        tests: "backpressure::a_slow_reader",
        sanitizers: BOTH,
        reason: "needs a sender that is faster than its reader, and the sender is instrumented",
    },
    Exclusion {
        tests: "runtime_end::a_thousand_in_flight",
        sanitizers: BOTH,
        reason: "measures that memory does not grow, as above; and a thousand operations do not always \
                 end within the second that a runtime waits for them, what is left is leaked on \
                 purpose, and the test counts descriptors",
    },
];

/// What runs end to end unless everything is asked for: where memory and threads change hands.
const USUALLY: &[&str] = &[
    "threads::",
    "runtime_end::",
    "payload_owners::",
    "restart::",
    "outside::",
    "spinning::",
    "dropped_futures::",
    "passing::",
    "seqpackets::",
];

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Seeds of the simulation.
const SEEDS: u64 = 20;

/// What the process exits with if nothing could be run.
const SKIPPED: i32 = 77;

/// The beginning of a report.
const LINES_SHOWN_MAX: usize = 60;

const BUILD_TIME_MAX: Duration = Duration::from_secs(15 * 60);

/// One suite.
const RUN_TIME_MAX: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_tests_and_seeds() {
        let mut row = Row::default();
        for line in [
            "test result: ok. 8 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished",
            "SKIPPED access::other_user: needs root",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "sim\tscenario\techo\t20\t30\t400",
            "sim\tfailures\t2",
        ] {
            row.line(line);
        }
        let expected = Row { passed: 29, failed: 3, gave_up: 1, ..Row::default() };
        assert_eq!(row, expected);
        assert!(row.is_bad());
    }

    #[test]
    fn counts_findings() {
        assert_eq!(count_findings(""), 0);
        assert_eq!(count_findings("==1==ERROR: AddressSanitizer: use-after-poison on 0x1\n#0"), 1);
        let races = "WARNING: ThreadSanitizer: data race\nx\nWARNING: ThreadSanitizer: data race";
        assert_eq!(count_findings(races), 2);
        assert_eq!(count_findings("unexpected memory mapping"), 1);
    }

    #[test]
    fn a_filter_is_of_suites_first() {
        let names = |filter| -> Vec<_> {
            asked_for(Sanitizer::Thread, filter).iter().map(|suite| suite.name).collect()
        };
        assert_eq!(names(Some("simulation")), ["simulation"]);
        assert_eq!(names(Some("runtime_end::")), names(None));
        // The wire format has no threads.
        assert_eq!(names(Some("frame")), [""; 0]);
    }

    #[test]
    fn an_exclusion_without_a_test_is_out_of_date() {
        let excluded = &[Exclusion { tests: "a::b", sanitizers: BOTH, reason: "" }];
        let suite =
            Suite { name: "s", work: Work::Seeds, sanitizers: BOTH, excluded, usually: &[] };
        let names = |name: &str| vec![name.to_owned()];
        assert!(exclusions(Sanitizer::Thread, &suite, &names("a::b_c")).is_ok());
        assert!(exclusions(Sanitizer::Thread, &suite, &names("b::a")).is_err());
    }
}
