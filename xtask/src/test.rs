//! `cargo xtask test`: everything that is a test, and one line with the sums at the end.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::run::{Deadline, observe, root, run as run_command, shell};

/// Arguments of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct TestArgs {
    /// Builds the tests without running them
    #[arg(long)]
    no_run: bool,
    /// Tests only this package; can be given several times
    #[arg(long, short)]
    package: Vec<String>,
    /// Given to the test programs, such as a part of the names of the tests to run
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &TestArgs) -> Result<()> {
    let counts = test(arguments)?;
    finish(&counts)
}

/// Prints what failed once more, as thousands of lines may have come since, and the sums as the last
/// line of all; ends with the status that they mean.
pub(crate) fn finish(counts: &Counts) -> ! {
    if !counts.failures.is_empty() {
        println!("\nwhat failed:");
        counts.failures.iter().for_each(|line| println!("{line}"));
    }
    println!("{counts}");
    std::process::exit(i32::from(counts.failed > 0));
}

/// Runs the tests and counts; an error means that there is nothing to count.
pub(crate) fn test(arguments: &TestArgs) -> Result<Counts> {
    let shell = shell()?;
    let deadline = Deadline::after(TIME_MAX);
    let mut counts = Counts::default();
    // Tests start the examples as programs. With targets named, `cargo test` makes them tests only.
    let examples = cmd!(shell, "cargo build --locked --workspace --examples");
    run_command(examples, deadline.left())?;
    // `--all-targets` would leave out the documentation tests, hence two calls.
    // With packages named, cargo refuses to test the library of none.
    let has_library = arguments.package.is_empty()
        || arguments.package.iter().any(|package| has_library(package));
    let programs: &[&str] =
        if has_library { &["--lib", "--bins", "--tests"] } else { &["--bins", "--tests"] };
    for targets in [programs, &["--doc"]] {
        if targets == ["--doc"] && (arguments.no_run || !has_library) {
            continue;
        }
        counts += cargo_test(&shell, targets, arguments, deadline)?;
    }
    let whole = arguments.package.is_empty() && arguments.arguments.is_empty();
    if whole && !arguments.no_run {
        counts += check_corpus(&counts);
    }
    Ok(counts)
}

/// Whether a package has a library; one that is not known is cargo's to refuse.
fn has_library(package: &str) -> bool {
    let folder = match package {
        "ringpost-bench" => root().join("benches"),
        "ringpost-tests" => root().join("tests"),
        "xtask" => root().join("xtask"),
        other => root().join("crates").join(other),
    };
    !folder.is_dir() || folder.join("src/lib.rs").is_file()
}

/// What became of tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
    /// Tests that replay stored inputs of the fuzz targets; part of the others.
    replays: u32,
    /// What was printed of the failures: at most [`FAILURE_LINES_MAX`] lines of each command.
    failures: Vec<String>,
}

impl Counts {
    pub(crate) fn passed() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    pub(crate) fn failed(why: String) -> Self {
        Self { failed: 1, failures: vec![why], ..Self::default() }
    }

    pub(crate) fn skipped() -> Self {
        Self { skipped: 1, ..Self::default() }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.replays += other.replays;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

fn cargo_test(
    shell: &Shell,
    targets: &[&str],
    arguments: &TestArgs,
    deadline: Deadline,
) -> Result<Counts> {
    let mut command = cmd!(shell, "cargo test --locked --no-fail-fast").args(targets);
    if arguments.package.is_empty() {
        command = command.arg("--workspace");
    }
    for package in &arguments.package {
        command = command.args(["--package", package]);
    }
    if arguments.no_run {
        command = command.arg("--no-run");
    }
    command = command.arg("--").args(&arguments.arguments);

    let mut tally = Tally::default();
    let status = observe(command, deadline.left(), |line| tally.line(line))?;
    Ok(tally.finish(status.success(), arguments.no_run))
}

/// Stored inputs that nobody replays would give false comfort.
fn check_corpus(counts: &Counts) -> Counts {
    let stored =
        std::fs::read_dir(root().join("fuzz/corpus")).is_ok_and(|mut e| e.next().is_some());
    match (stored, counts.replays) {
        (false, _) => Counts::default(),
        (true, 0) => Counts::failed(
            "fuzz/corpus has inputs, and no test replays them: no test with `corpus` in its \
                 name has run"
                .into(),
        ),
        (true, replays) => {
            println!("corpus replay: {replays} tests");
            Counts::default()
        }
    }
}

/// Reads what cargo and the test programs print.
#[derive(Debug, Default)]
struct Tally {
    counts: Counts,
    /// Tests that found at run time that they cannot run here, and passed without a finding.
    gave_up: u32,
    started: u32,
    ended: u32,
    /// The lines that come now tell of failures.
    failing: bool,
}

impl Tally {
    fn line(&mut self, line: &str) {
        let line = without_colour(line);
        self.keep(&line);
        let line = line.trim();
        if line.starts_with("Running ") && line.ends_with(')') {
            self.started += 1;
        } else if line.starts_with("SKIPPED ") {
            self.gave_up += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.ended += 1;
            self.counts.passed += number_before(result, " passed");
            self.counts.failed += number_before(result, " failed");
            self.counts.skipped += number_before(result, " ignored");
        } else if line.starts_with("test ") && line.contains("corpus") && line.ends_with("... ok") {
            self.counts.replays += 1;
        }
    }

    /// Keeps what a test program prints from `failures:` to its result, and cargo's own errors.
    fn keep(&mut self, line: &str) {
        self.failing = match line.trim_end() {
            "failures:" => true,
            line => self.failing && !line.starts_with("test result: "),
        };
        let kept = &mut self.counts.failures;
        if (self.failing || line.starts_with("error")) && kept.len() < FAILURE_LINES_MAX {
            kept.push(line.to_owned());
        }
    }

    fn finish(mut self, success: bool, no_run: bool) -> Counts {
        let moved = self.gave_up.min(self.counts.passed);
        self.counts.passed -= moved;
        self.counts.skipped += moved;
        let lost = if no_run { 0 } else { self.started.saturating_sub(self.ended) };
        if lost > 0 {
            let failure =
                format!("{lost} test programs ended without a result: crashed, or killed");
            self.counts.failures.push(failure);
            self.counts.failed += lost;
        }
        if !success && self.counts.failed == 0 {
            self.counts += Counts::failed("cargo failed before or outside the tests".into());
        }
        self.counts
    }
}

/// The number that stands before `word`, as in "3 passed; 1 failed".
fn number_before(text: &str, word: &str) -> u32 {
    let Some((before, _)) = text.split_once(word) else {
        return 0;
    };
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Removes the escape sequences that set colours.
fn without_colour(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    text + rest
}

/// What is printed again of one command's failures.
const FAILURE_LINES_MAX: usize = 400;

/// All of it, from a clean clone on two cores.
const TIME_MAX: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str, success: bool) -> String {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.line(line));
        tally.finish(success, false).to_string()
    }

    #[test]
    fn sums_over_programs() {
        let output = "\
     Running unittests src/lib.rs (target/debug/deps/a-1)
test a ... ok
test result: ok. 8 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
\x1b[1m\x1b[92m     Running\x1b[0m tests/it/main.rs (target/debug/deps/it-2)
test result: FAILED. 10 passed; 2 failed; 3 ignored; 0 measured; 5 filtered out; finished in 1s
   Doc-tests a
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        assert_eq!(tally(output, false), "20 passed, 2 failed, 3 skipped");
    }

    #[test]
    fn counts_those_that_gave_up_as_skipped() {
        let output = "\
     Running tests/it/main.rs (target/debug/deps/it-2)
SKIPPED credentials::other_user: needs root
SKIPPED ring::multishot: needs a newer kernel
test result: ok. 10 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s
";
        assert_eq!(tally(output, true), "8 passed, 0 failed, 3 skipped");
    }

    #[test]
    fn a_crash_and_a_failed_build_are_failures() {
        let output = "\
     Running tests/it/main.rs (target/debug/deps/it-2)
test a ... ok
error: test failed, to rerun pass `-p a --test it`
";
        assert_eq!(tally(output, false), "0 passed, 1 failed, 0 skipped");
        assert_eq!(tally("error: could not compile `a`\n", false), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn keeps_what_was_printed_of_failures() {
        let output = "\
running 2 tests
test a ... FAILED
test b ... ok

failures:

---- a stdout ----
thread 'a' panicked at src/a.rs:1:1:

failures:
    a

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s
error: test failed, to rerun pass `-p a --lib`
test c ... ok
";
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.line(line));
        let kept = tally.finish(false, false).failures;
        assert!(kept.iter().any(|line| line.contains("panicked at src/a.rs")), "{kept:?}");
        assert!(kept.iter().any(|line| line.contains("to rerun pass")), "{kept:?}");
        assert!(!kept.iter().any(|line| line.contains("... ok")), "{kept:?}");
    }

    #[test]
    fn sees_replays() {
        let mut tally = Tally::default();
        tally.line("test decoder::replays_the_corpus ... ok");
        tally.line("test decoder::corpus_of_greetings ... FAILED");
        assert_eq!(tally.counts.replays, 1);
    }
}
