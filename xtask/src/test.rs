//! `cargo xtask test`: everything that is a test, and one line with the sums at the end.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use crate::results::{Results, Summary, named};
use crate::run::{Deadline, TookTooLong, folder_of, observe, root, run as run_command, shell};

/// The product as it is shipped, and all tests that it starts as programs: what is built with the simulation has its
/// checks within.
pub(crate) const SHIPPED: &[&str] = &["--workspace", "--exclude", "ringpost-sim"];
/// The simulation, and who has tests only where it is.
pub(crate) const SIMULATED: &[&str] =
    &["--package", "ringpost-sim", "--package", "ringpost-reactor"];

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
    let examples = cmd!(shell, "cargo build --locked --examples").args(SHIPPED);
    run_command(examples, deadline.left())?;
    // With packages named, cargo refuses to test the library of none.
    let has_library = arguments.package.is_empty()
        || arguments.package.iter().any(|package| has_library(package));
    let programs: &[&str] =
        if has_library { &["--lib", "--bins", "--tests"] } else { &["--bins", "--tests"] };
    let selected: Vec<&str> =
        arguments.package.iter().flat_map(|package| ["--package", package]).collect();
    let selected = if selected.is_empty() { SHIPPED } else { &selected };
    let mut calls = vec![(selected, programs)];
    if arguments.package.is_empty() {
        calls.push((SIMULATED, programs));
    }
    // `--all-targets` would leave out the documentation tests, hence another call.
    if has_library && arguments.runs_tests() {
        calls.push((selected, &["--doc"]));
    }
    for (selected, targets) in calls {
        let (of_call, is_late) = cargo_test(&shell, selected, targets, arguments, deadline)?;
        counts += of_call;
        if is_late {
            return Ok(counts);
        }
    }
    let whole = arguments.package.is_empty() && arguments.arguments.is_empty();
    if whole && arguments.runs_tests() {
        counts += check_corpus(&counts.replayed, &crate::fuzz::targets(&root())?);
    }
    ensure!(!(arguments.runs_tests() && counts.is_nothing()), "{}", arguments.why_nothing());
    Ok(counts)
}

impl TestArgs {
    /// Whether anything is more than built, or asked for its name.
    fn runs_tests(&self) -> bool {
        !self.no_run && !self.arguments.iter().any(|argument| argument == "--list")
    }

    fn why_nothing(&self) -> String {
        let of = match &self.package[..] {
            [] => "the workspace".to_owned(),
            packages => packages.join(", "),
        };
        match &self.arguments[..] {
            [] => format!("nothing was tested: {of} has no tests"),
            words => format!("nothing was tested: `{}` leaves no test of {of}", words.join(" ")),
        }
    }
}

/// Whether a package has a library; one that is not known is cargo's to refuse.
fn has_library(package: &str) -> bool {
    let folder = folder_of(package);
    !folder.is_dir() || folder.join("src/lib.rs").is_file()
}

/// What became of tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
    /// Fuzz targets whose stored inputs were replayed.
    replayed: BTreeSet<String>,
    /// What was printed of the failures.
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

    fn is_nothing(&self) -> bool {
        self.passed == 0 && self.failed == 0 && self.skipped == 0
    }
}

impl From<Summary> for Counts {
    fn from(summary: Summary) -> Self {
        let Summary { passed, failed, ignored, gave_up, replayed, failures } = summary;
        Self { passed: passed - gave_up, failed, skipped: ignored + gave_up, replayed, failures }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.replayed.extend(other.replayed);
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// What became of these tests, and whether they were killed because the time was over.
fn cargo_test(
    shell: &Shell,
    selected: &[&str],
    targets: &[&str],
    arguments: &TestArgs,
    deadline: Deadline,
) -> Result<(Counts, bool)> {
    let mut command =
        cmd!(shell, "cargo test --locked --no-fail-fast").args(selected).args(targets);
    if arguments.no_run {
        command = command.arg("--no-run");
    }
    if targets != ["--doc"] {
        command = named(command);
    }
    command = command.arg("--").args(&arguments.arguments);

    let mut results = Results::default();
    match observe(command, deadline.left(), |line| results.line(line)) {
        Ok(status) => Ok((count(results, status.success(), arguments.runs_tests()), false)),
        Err(error) if error.is::<TookTooLong>() => Ok((count_late(results), true)),
        Err(error) => Err(error),
    }
}

fn count(results: Results, success: bool, runs_tests: bool) -> Counts {
    if !runs_tests && success {
        return Counts::default();
    }
    let mut counts = Counts::from(results.finish());
    if !success && counts.failed == 0 {
        counts += Counts::failed("cargo failed before or outside the tests".into());
    }
    counts
}

/// What is known of tests that were killed. The program that ran then has failed.
fn count_late(results: Results) -> Counts {
    let running = results.running();
    let mut counts = Counts::from(results.finish());
    if running.is_none() {
        counts.failed += 1;
    }
    let running =
        running.map_or_else(|| "no test program ran".into(), |name| format!("{name} ran"));
    counts.failures.push(format!(
        "error: the tests were killed: all of them may take {} s together; {running} then",
        TIME_MAX.as_secs()
    ));
    counts
}

/// Stored inputs that nobody replays would give false comfort.
fn check_corpus(replayed: &BTreeSet<String>, targets: &[String]) -> Counts {
    println!("corpus replay: {} of {} fuzz targets", replayed.len(), targets.len());
    let missing: Vec<&str> =
        targets.iter().filter(|name| !replayed.contains(*name)).map(String::as_str).collect();
    if missing.is_empty() {
        return Counts::default();
    }
    Counts::failed(format!(
        "no test replays the stored inputs of these fuzz targets, in a module `...corpus`: {}",
        missing.join(", ")
    ))
}

/// All of it, from a clean clone on two cores.
const TIME_MAX: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(output: &str, success: bool) -> String {
        count(Results::of(output), success, true).to_string()
    }

    #[test]
    fn counts_those_that_gave_up_as_skipped() {
        let output = "\
== test program target/debug/deps/it-2
running 11 tests
SKIPPED credentials::other_user: needs root
SKIPPED ring::multishot: needs a newer kernel
test result: ok. 10 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s
";
        assert_eq!(counted(output, true), "8 passed, 0 failed, 3 skipped");
    }

    #[test]
    fn a_crash_and_a_failed_build_are_failures() {
        let output = "\
== test program target/debug/deps/it-2
running 11 tests
test a ... ok
error: test failed, to rerun pass `-p a --test it`
";
        assert_eq!(counted(output, false), "0 passed, 1 failed, 0 skipped");
        assert_eq!(
            counted("error: could not compile `a`\n", false),
            "0 passed, 1 failed, 0 skipped"
        );
    }

    #[test]
    fn what_is_killed_is_counted_and_told() {
        let output = "\
== test program target/debug/deps/a-1
running 7 tests
test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
== test program target/debug/deps/it-2
running 11 tests
test a::b has been running for over 60 seconds
";
        let counts = count_late(Results::of(output));
        assert_eq!(counts.to_string(), "7 passed, 1 failed, 0 skipped");
        let error = counts.failures.last().expect("an error");
        assert!(error.contains("900 s together; target/debug/deps/it-2: a::b ran"), "{error}");
        let counts = count_late(Results::of("   Compiling a v0.1.0\n"));
        assert_eq!(counts.to_string(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn nothing_is_no_success() {
        let output = "\
== test program target/debug/deps/it-2
running 0 tests
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 11 filtered out; finished in 0.00s
";
        assert!(count(Results::of(output), true, true).is_nothing());
        let arguments = TestArgs { arguments: vec!["nosuch".into()], ..TestArgs::default() };
        assert!(arguments.why_nothing().contains("`nosuch` leaves no test of the workspace"));
        assert!(arguments.runs_tests());
        let lists = TestArgs { arguments: vec!["--list".into()], ..TestArgs::default() };
        assert!(!lists.runs_tests());
    }

    #[test]
    fn each_fuzz_target_is_replayed() {
        let targets = ["decoder", "hello"].map(str::to_owned);
        let replayed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(check_corpus(&replayed(&["decoder", "hello"]), &targets), Counts::default());
        let counts = check_corpus(&replayed(&["decoder"]), &targets);
        assert_eq!(counts.failed, 1);
        assert!(counts.failures[0].ends_with(": hello"), "{counts:?}");
        let known = crate::fuzz::targets(&root()).expect("the fuzz targets");
        assert!(known.iter().any(|name| name == "decoder"), "{known:?}");
    }
}
