//! `cargo xtask san`: the tests under AddressSanitizer and ThreadSanitizer.
//!
//! A sanitizer watches what code really does, so it finds what happens in a test, and nothing else. Both
//! are blind on the kernel's side: what io_uring and system calls write and read they do not see.
//! The owners of blocks therefore tell AddressSanitizer which bytes nobody may touch
//! (`ringpost-reactor/src/memory/shadow.rs`).
//!
//! Reports go to files, so that those of child processes and of tests that capture their output count,
//! too. A run fails if a test fails or if there is a report.

mod suites;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use xshell::{Cmd, Shell, cmd};

use self::suites::{Exclusion, SUITES, Suite, Work};
use crate::fuzz::Outcome;
use crate::results::{Results, Summary, named};
use crate::run::{compiler_flags, observe, observe_silently, root, shell};

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
    #[arg(long, default_value_t = SEEDS, value_parser = clap::value_parser!(u64).range(1..))]
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
    // Better now than after a build of minutes.
    quoted(&root())?;
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
    ensure!(
        !rows.is_empty(),
        "nothing was run: no suite and no test has {:?} in its name, or all that have are left out",
        arguments.filter.as_deref().unwrap_or_default()
    );
    print_table(&rows);
    println!("{} suites in {:.0} s", rows.len(), start.elapsed().as_secs_f64());
    let bad = rows.iter().filter(|row| row.is_bad()).count();
    ensure!(
        bad == 0,
        "{bad} suites have failures or findings, or ran nothing; above is where the reports are"
    );
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
    fn options(self, log: &Path) -> Result<(&'static str, String)> {
        let log = quoted(log)?;
        Ok(match self {
            Self::Address => (
                "ASAN_OPTIONS",
                format!("detect_leaks=1:detect_stack_use_after_return=1:log_path={log}"),
            ),
            Self::Thread => {
                let silent = quoted(&root().join("xtask/tsan.txt"))?;
                ("TSAN_OPTIONS", format!("suppressions={silent}:die_after_fork=0:log_path={log}"))
            }
        })
    }
}

/// A path as the value of an option. The runtimes part options at spaces, commas and colons, but not in quotes.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not text", path.display()))?;
    if !text.contains([' ', '\t', '\n', '\r', ',', ':', '"', '\'']) {
        return Ok(text.to_owned());
    }
    let quote = ['"', '\''].into_iter().find(|quote| !text.contains(*quote));
    let quote = quote.with_context(|| {
        format!("the sanitizers can't be told a path that has both kinds of quotes: {text}")
    })?;
    Ok(format!("{quote}{text}{quote}"))
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
    /// Whether there is something to mend, or nothing was run.
    fn is_bad(&self) -> bool {
        self.failed > 0 || self.findings > 0 || self.passed == 0
    }

    /// Reads what the simulation prints.
    fn line_of_seeds(&mut self, line: &str) {
        let fields: Vec<_> = line.trim().split('\t').collect();
        if let ["sim", "scenario", _, runs, ..] = fields[..] {
            self.passed += runs.parse::<u64>().unwrap_or(0);
        } else if let ["sim", "failures", count] = fields[..] {
            let failed = count.parse().unwrap_or(0);
            self.failed += failed;
            self.passed -= failed.min(self.passed);
        }
    }

    fn add(&mut self, tests: &Summary) {
        self.passed += u64::from(tests.passed);
        self.failed += u64::from(tests.failed);
        self.gave_up += u64::from(tests.gave_up);
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
        let (variable, flags) = compiler_flags(&sanitizer.flags(has_source));
        command.env(variable, flags).env("RUST_BACKTRACE", backtrace)
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
            let runs = |name: &&String| is_chosen(name) && !is_excluded(name, &excluded);
            if !names.iter().any(|name| runs(&name)) {
                return Ok(None);
            }
            let command = named(cargo("test")).args(of).args(["--no-fail-fast", "--"]);
            let mut command = command.args(chosen);
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
    let (variable, options) = sanitizer.options(&log.join("report"))?;
    let command = command.env(variable, options);
    let mut results = Results::default();
    let start = Instant::now();
    let ended = observe(command, RUN_TIME_MAX, |line| match suite.work {
        Work::Tests(_) => results.line(line),
        Work::Seeds => row.line_of_seeds(line),
    });
    row.add(&results.finish());
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

fn is_excluded(name: &str, excluded: &[&Exclusion]) -> bool {
    excluded.iter().any(|exclusion| name.contains(exclusion.tests))
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
    use super::suites::BOTH;
    use super::*;

    #[test]
    fn adds_up_tests_and_seeds() {
        let mut row = Row::default();
        row.add(&Summary { passed: 11, failed: 1, gave_up: 1, ..Summary::default() });
        for line in ["sim\tscenario\techo\t20\t30\t400", "noise", "sim\tfailures\t2"] {
            row.line_of_seeds(line);
        }
        let expected = Row { passed: 29, failed: 3, gave_up: 1, ..Row::default() };
        assert_eq!(row, expected);
        assert!(row.is_bad());
    }

    #[test]
    fn nothing_is_no_success() {
        assert!(Row::default().is_bad());
        assert!(!Row { passed: 1, ..Row::default() }.is_bad());
        let excluded = &Exclusion { tests: "a::b", sanitizers: BOTH, reason: "" };
        assert!(is_excluded("it::a::b_c", &[excluded]));
        assert!(!is_excluded("it::a::c", &[excluded]));
    }

    #[test]
    fn paths_are_one_option() {
        let quoted = |path: &str| quoted(Path::new(path)).ok();
        assert_eq!(quoted("/a/b-c_d.txt").as_deref(), Some("/a/b-c_d.txt"));
        assert_eq!(quoted("/a b/c").as_deref(), Some("\"/a b/c\""));
        assert_eq!(quoted("/a:b/c,d").as_deref(), Some("\"/a:b/c,d\""));
        assert_eq!(quoted("/a\"b").as_deref(), Some("'/a\"b'"));
        assert_eq!(quoted("/a\"b'"), None);
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
