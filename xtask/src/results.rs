//! What the test programs of `cargo test` print, and what became of their tests.
//!
//! A test may start its own program again and print what that printed, with a result line like the program's own.
//! So cargo starts each program through a line of shell that names it first ([`named`]), and of the results up to the
//! next name the program's own is the last one that is of as many tests as the program said to run. Names and results
//! are all on standard output, in the order in which they were written; cargo's own words come another way, sooner or
//! later.

use std::collections::{BTreeSet, VecDeque};

use xshell::Cmd;

/// Has cargo name each test program before it runs. Not for documentation tests, whose results are all their own.
pub(crate) fn named(cargo: Cmd<'_>) -> Cmd<'_> {
    let script = format!("echo \"{NAME_MARK}$0\"; exec \"$0\" \"$@\"");
    // A TOML literal, in which nothing needs an escape.
    let runner = format!("target.\"cfg(unix)\".runner = [\"sh\", \"-c\", '{script}']");
    cargo.args(["--config", &runner])
}

/// What became of the tests of some programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) passed: u32,
    /// Tests, and programs that ended without a result.
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
    /// Tests that found at run time that they cannot run here; they are among the passed.
    pub(crate) gave_up: u32,
    /// Fuzz targets whose stored inputs were replayed.
    pub(crate) replayed: BTreeSet<String>,
    /// What was printed of the failures.
    pub(crate) failures: Vec<String>,
}

/// Reads what cargo and the test programs print, line by line.
#[derive(Debug, Default)]
pub(crate) struct Results {
    summary: Summary,
    /// The names of tests that gave up. What a child says of it may be printed by its parent once more.
    gave_up: BTreeSet<String>,
    program: Option<Program>,
}

/// A program that runs, or has ended and no other has begun.
#[derive(Debug, Default)]
struct Program {
    /// Empty of documentation tests.
    name: String,
    tests: Option<u32>,
    result: Option<Sums>,
    /// Tests that were said to run for long, and have not ended.
    slow: BTreeSet<String>,
    /// What it printed since its first `failures:`; there may be some of its children.
    told: Vec<String>,
    is_telling: bool,
    /// How much of it is before its last result.
    told_before_result: usize,
    /// Panics that were told elsewhere: with `--nocapture`.
    panics: Vec<String>,
    last: VecDeque<String>,
}

/// The numbers of a result line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sums {
    passed: u32,
    failed: u32,
    ignored: u32,
    measured: u32,
}

impl Results {
    /// What a whole output says.
    pub(crate) fn of(output: &str) -> Self {
        let mut results = Self::default();
        output.lines().for_each(|line| results.line(line));
        results
    }

    pub(crate) fn line(&mut self, line: &str) {
        let line = without_colour(line);
        let line = line.trim_end();
        let words = line.trim_start();
        if let Some(name) = words.strip_prefix(NAME_MARK) {
            self.begin(name);
        } else if let Some(skipped) = words.strip_prefix("SKIPPED ") {
            let name = skipped.split_once(": ").map_or(skipped, |(name, _)| name);
            self.gave_up.insert(name.to_owned());
        } else if let Some(tests) = announced(words) {
            if self.program.as_ref().is_none_or(Program::is_followed) {
                self.begin("");
            }
            self.program().tests.get_or_insert(tests);
        } else if line.starts_with("error") || words.starts_with("process didn't exit successfully")
        {
            keep(&mut self.summary.failures, line);
        } else if let Some((test, outcome)) = test_line(words) {
            self.program().slow.remove(test);
            let target = (outcome == "ok").then(|| replayed_target(test)).flatten();
            self.summary.replayed.extend(target.map(str::to_owned));
        }
        self.program().line(line);
    }

    /// What runs, for somebody who asks why it takes so long.
    pub(crate) fn running(&self) -> Option<String> {
        let program = self.program.as_ref()?;
        if program.result.is_some() || (program.name.is_empty() && program.tests.is_none()) {
            return None;
        }
        let name = if program.name.is_empty() { "documentation tests" } else { &program.name };
        let slow: Vec<&str> = program.slow.iter().map(String::as_str).collect();
        Some(match &slow[..] {
            [] => name.to_owned(),
            slow => format!("{name}: {}", slow.join(", ")),
        })
    }

    pub(crate) fn finish(mut self) -> Summary {
        self.end();
        let gave_up = u32::try_from(self.gave_up.len()).unwrap_or(u32::MAX);
        Summary { gave_up: gave_up.min(self.summary.passed), ..self.summary }
    }

    fn program(&mut self) -> &mut Program {
        self.program.get_or_insert_default()
    }

    fn begin(&mut self, name: &str) {
        self.end();
        self.program = Some(Program { name: name.to_owned(), ..Program::default() });
    }

    fn end(&mut self) {
        let Some(program) = self.program.take() else { return };
        let failures = &mut self.summary.failures;
        if let Some(sums) = program.result {
            self.summary.passed += sums.passed;
            self.summary.failed += sums.failed;
            self.summary.ignored += sums.ignored;
            if sums.failed > 0 {
                let told = &program.told[..program.told_before_result];
                told.iter().for_each(|line| keep(failures, line));
                if !told.iter().any(|line| is_panic(line)) {
                    program.panics.iter().for_each(|line| keep(failures, line));
                }
            }
        } else if !program.name.is_empty() || program.tests.is_some() {
            self.summary.failed += 1;
            program.told.iter().for_each(|line| keep(failures, line));
            failures.push(format!(
                "{} ended without a result: crashed, or killed; the last it printed:",
                if program.name.is_empty() { "a test program" } else { &program.name }
            ));
            failures.extend(program.last.into_iter().map(|line| format!("    {line}")));
        }
    }
}

impl Program {
    /// Whether the next number of tests is of another program. With a name, a name would say so.
    fn is_followed(&self) -> bool {
        self.name.is_empty() && (self.result.is_some() || self.tests.is_none())
    }

    fn line(&mut self, line: &str) {
        if self.last.len() == LAST_LINES_MAX {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        if line == "failures:" {
            self.is_telling = true;
        }
        if self.is_telling {
            self.told.push(line.to_owned());
        } else if is_panic(line) || self.panics.last().is_some_and(|line| is_panic(line)) {
            self.panics.push(line.to_owned());
        }
        if let Some(test) = line.strip_prefix("test ")
            && let Some((test, _)) = test.split_once(" has been running for over ")
        {
            self.slow.insert(test.to_owned());
        }
        if let Some(sums) = line.strip_prefix("test result: ").map(Sums::read)
            && self.tests.is_none_or(|tests| tests == sums.all())
        {
            self.result = Some(sums);
            self.told_before_result = self.told.len().saturating_sub(1);
        }
    }
}

impl Sums {
    fn read(text: &str) -> Self {
        Self {
            passed: number_before(text, " passed"),
            failed: number_before(text, " failed"),
            ignored: number_before(text, " ignored"),
            measured: number_before(text, " measured"),
        }
    }

    fn all(self) -> u32 {
        self.passed + self.failed + self.ignored + self.measured
    }
}

/// Keeps a line of what failed: all up to a bound, and beyond it what tells most.
fn keep(failures: &mut Vec<String>, line: &str) {
    let follows_panic = failures.last().is_some_and(|last| is_panic(last));
    if failures.len() < FAILURE_LINES_MAX || is_panic(line) || follows_panic {
        failures.push(line.to_owned());
    }
}

fn is_panic(line: &str) -> bool {
    line.contains(" panicked at ")
}

/// The number of "running 3 tests".
fn announced(line: &str) -> Option<u32> {
    let rest = line.strip_prefix("running ")?;
    let number = rest.strip_suffix(" tests").or_else(|| rest.strip_suffix(" test"))?;
    number.parse().ok()
}

/// A test and what became of it.
pub(crate) fn test_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.split_once(" ... ")
}

/// Tests that replay stored inputs are in a module of that name, and have the name of the fuzz target.
fn replayed_target(test: &str) -> Option<&str> {
    let (module, target) = test.rsplit_once("::")?;
    module.ends_with("corpus").then_some(target)
}

/// The number that stands before `word`, as in "3 passed; 1 failed".
fn number_before(text: &str, word: &str) -> u32 {
    let before = text.split_once(word).map_or("", |(before, _)| before);
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

/// What stands before the name of a test program.
const NAME_MARK: &str = "== test program ";

/// What is kept of the failures of one command, but for panics.
const FAILURE_LINES_MAX: usize = 400;

/// What is kept of a program that ends without a result.
const LAST_LINES_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(output: &str) -> Summary {
        Results::of(output).finish()
    }

    fn counts(output: &str) -> (u32, u32, u32, u32) {
        let Summary { passed, failed, ignored, gave_up, .. } = summary(output);
        (passed, failed, ignored, gave_up)
    }

    #[test]
    fn sums_over_programs() {
        let output = "\
     Running unittests src/lib.rs (target/debug/deps/a-1)
== test program target/debug/deps/a-1
running 8 tests
test a ... ok
test result: ok. 8 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
\x1b[1m\x1b[92m     Running\x1b[0m tests/it/main.rs (target/debug/deps/it-2)
== test program target/debug/deps/it-2
running 15 tests
test result: FAILED. 10 passed; 2 failed; 3 ignored; 0 measured; 5 filtered out; finished in 1s
";
        assert_eq!(counts(output), (18, 2, 3, 0));
        let documentation = "\
   Doc-tests a
running 2 tests
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
   Doc-tests b
running 1 test
test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        assert_eq!(counts(documentation), (3, 0, 1, 0));
    }

    /// What a test's child printed is part of what is told of its failure.
    #[test]
    fn results_of_children_do_not_count() {
        let output = "\
== test program target/debug/deps/it-2
running 3 tests
test a ... ok
test b::uring ... FAILED
test c ... ok

failures:

---- b::uring stdout ----

running 1 test

thread 'it::b::uring' (7) panicked at tests/it/b.rs:5:9:
10268 tries, at most 3820
test b::uring ... FAILED

failures:

failures:
    b::uring

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.60s


thread 'b::uring' (3) panicked at crates/ringpost-testkit/src/child.rs:58:5:
it::b::uring failed in its own process: exit status: 101

failures:
    b::uring

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2.00s

== test program target/debug/deps/other-3
running 0 tests
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 2.00s
";
        assert_eq!(counts(output), (2, 1, 0, 0));
        let kept = summary(output).failures;
        for part in ["10268 tries", "child.rs:58:5", "failed in its own process"] {
            assert!(kept.iter().any(|line| line.contains(part)), "{part}: {kept:?}");
        }
        assert!(!kept.iter().any(|line| line.contains("... ok")), "{kept:?}");
    }

    /// With `--nocapture` and one test, nothing but its place tells a program's result from its child's.
    #[test]
    fn the_last_result_is_the_own_one() {
        let child = "
running 1 test
SKIPPED it::b::uring: needs root
test b::uring ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.60s
";
        let own = "\
test b::uring ... FAILED

failures:

failures:
    b::uring

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out; finished in 2.00s
";
        let panic = "thread 'b::uring' (3) panicked at tests/it/b.rs:5:9:\nnot the same\n";
        let skipped = "SKIPPED it::b::uring: needs root\n";
        let begin = "== test program target/debug/deps/it-2\n\nrunning 1 test\n";
        let program = format!("{begin}{skipped}{child}{child}{panic}{own}");
        assert_eq!(counts(&format!("{program}{program}")), (0, 2, 0, 0));
        let kept = summary(&program).failures;
        assert!(kept.iter().any(|line| line.contains("not the same")), "{kept:?}");

        // It counts once that a test gave up, however often it is said.
        let passed = own.replace("FAILED. 0 passed; 1 failed", "ok. 1 passed; 0 failed");
        assert_eq!(counts(&format!("{begin}{skipped}{child}{passed}")), (1, 0, 0, 1));
    }

    #[test]
    fn a_program_without_a_result_has_failed() {
        let output = "\
== test program target/debug/deps/it-2
running 4 tests
test a ... ok
running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
free(): invalid pointer
error: test failed, to rerun pass `-p a --test it`
== test program target/debug/deps/other-3
running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        assert_eq!(counts(output), (1, 1, 0, 0));
        let kept = summary(output).failures;
        assert!(kept.iter().any(|line| line.contains("invalid pointer")), "{kept:?}");
        assert!(kept.iter().any(|line| line.contains("to rerun pass")), "{kept:?}");
    }

    #[test]
    fn keeps_every_panic() {
        let mut output = "== test program a\nrunning 900 tests\nfailures:\n".to_owned();
        for number in 0..900 {
            output += &format!(
                "noise\nthread 't' ({number}) panicked at a.rs:1:1:\nwhy {number}\nnote: x\n"
            );
        }
        output += "test result: FAILED. 0 passed; 900 failed; 0 ignored; 0 measured\n";
        let kept = summary(&output).failures;
        assert!((0..900).all(|number| kept.contains(&format!("why {number}"))));
        assert!(kept.len() < FAILURE_LINES_MAX + 2 * 900, "{}", kept.len());
    }

    #[test]
    fn says_what_runs() {
        let mut results = Results::default();
        assert_eq!(results.running(), None);
        for line in [
            "== test program target/debug/deps/it-2",
            "running 3 tests",
            "test a ... ok",
            "test b has been running for over 60 seconds",
            "test c has been running for over 60 seconds",
            "test b ... ok",
        ] {
            results.line(line);
        }
        assert_eq!(results.running().as_deref(), Some("target/debug/deps/it-2: c"));
        results.line("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(results.running(), None);
    }

    #[test]
    fn sees_what_is_replayed() {
        let output = "\
test frame_corpus::decoder ... ok
test corpus::addresses ... ok
test corpus::hello ... FAILED
test corpus_of::greetings ... ok
";
        let replayed: Vec<_> = summary(output).replayed.into_iter().collect();
        assert_eq!(replayed, ["addresses", "decoder"]);
    }
}
