//! Whether a finder that failed has found something, or only failed.
//!
//! Cargo fails with the same number for a test that failed, a full disk and a typing error. So what counts is what the
//! finder said: a test of its own failed, a run of its own did, or its program crashed.

use super::list::{Finder, Kind};
use crate::results::test_line;

/// What was found; if nothing was, why the finder may have failed.
pub(super) fn judge(finder: &Finder, signal: Option<i32>, text: &str) -> Result<String, String> {
    if text.lines().any(|line| line.starts_with("error: could not compile")) {
        return Err("cargo failed".into());
    }
    if let Some(line) = text.lines().find(|line| MACHINE.iter().any(|part| line.contains(part))) {
        return Err(format!("the machine is at fault: {}", line.trim()));
    }
    let how = |else_said: String| description(text).unwrap_or(else_said);
    if let Some(signal) = signal.or_else(|| signal_told(text)) {
        return match CRASHES.iter().find(|(number, _)| *number == signal) {
            Some((_, name)) => Ok(how(format!("it crashed: {name}"))),
            None => Err(format!("it was ended by signal {signal}")),
        };
    }
    match first_failed(finder, text) {
        // Of loom, which shows nothing.
        Some(_) if finder.kind == Kind::Loom && text.contains("exceeded maximum") => {
            Err("loom gave up".into())
        }
        Some(name) => Ok(how(name.to_owned())),
        None => Err("it failed, and nothing of what it runs did".into()),
    }
}

/// The first test or run of the finder's own that failed.
fn first_failed<'text>(finder: &Finder, text: &'text str) -> Option<&'text str> {
    let is_ours = |name: &&str| finder.is_ours(name);
    let lines = || text.lines().map(str::trim_end);
    if finder.kind == Kind::Sim {
        let label = |line: &'text str| line.strip_prefix("FAILED ");
        return lines().filter_map(label).find(is_ours);
    }
    // What tests print besides may be in the middle of a line of libtest's, and then the list has the name.
    let of_line = |line: &'text str| match test_line(line.trim_start()) {
        Some((name, outcome)) => outcome.ends_with("FAILED").then_some(name),
        None => line.strip_prefix("    ").filter(|name| name.contains("::") && !name.contains(' ')),
    };
    let says_so = text.lines().any(|line| line.starts_with("test result: FAILED."));
    lines().filter_map(of_line).find(is_ours).filter(|_| says_so)
}

/// The signal that ended a test program, as cargo tells it: "(signal: 6, SIGABRT: process abort signal)".
fn signal_told(text: &str) -> Option<i32> {
    let line = text.lines().find(|line| line.contains("process didn't exit successfully: "))?;
    let (_, told) = line.rsplit_once(" (signal: ")?;
    told.split([',', ')']).next()?.parse().ok()
}

/// What a finder said of what it found: of a simulation the scenario and the seed, else the test, and
/// then what was wrong.
pub(super) fn description(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim);
    let found = lines.find(|line| {
        let of_sim =
            line.starts_with("FAILED ") || line.contains(", seed ") && line.contains(": panicked");
        of_sim || line.contains(" panicked at ") || line.starts_with("loom\tsurvived")
    })?;
    let place = found.strip_prefix("FAILED ").unwrap_or(found);
    let place = match place.split_once(" panicked at ") {
        // The number of the thread is different every time.
        Some((thread, at)) => format!("{} {}", thread.split(" (").next().unwrap_or(thread), at),
        None => place.to_owned(),
    };
    let message = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let message = match message.split_once("panicked at ") {
        Some(_) => lines.next().unwrap_or_default(),
        None => message,
    };
    Some(short(&format!("{place} {message}")))
}

/// The end of what was printed, on one line.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() { "nothing was said".into() } else { last.join(" | ") }
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(HOW_CHARS_MAX).collect()
}

/// Signals of a program's own making.
const CRASHES: &[(i32, &str)] =
    &[(4, "SIGILL"), (6, "SIGABRT"), (7, "SIGBUS"), (8, "SIGFPE"), (11, "SIGSEGV")];

/// What is printed when a machine lacks something, which no canary takes away. A test whose process of its own is
/// killed was killed by somebody else: the kernel, which has no memory left.
const MACHINE: &[&str] =
    &["No space left on device", "Disk quota exceeded", "failed in its own process: signal: 9"];

const HOW_CHARS_MAX: usize = 160;

const TAIL_LINES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: &str = "\
running 1 test
test ops::tests::stale ... FAILED

thread 'ops::tests::stale' (4711) panicked at crates/a/src/ops.rs:3:9:
assertion failed: x
note: run with

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
error: test failed, to rerun pass `-p a --lib`
";

    fn finder(kind: &str, run: &str) -> Finder {
        let text = format!("kind = {kind:?}\nrun = {run:?}\n");
        toml::from_str(&text).expect("a finder")
    }

    #[test]
    fn a_failed_test_is_a_finding() {
        let expected = "thread 'ops::tests::stale' crates/a/src/ops.rs:3:9: assertion failed: x";
        let ours = finder("test", "--package a --lib -- ops::");
        assert_eq!(judge(&ours, None, TEST).as_deref(), Ok(expected));
        // In a shared output a line may be in two.
        let parted = TEST.replace(
            "test ops::tests::stale ... FAILED\n",
            "test ops::tests::stale ... SKIPPED x: y\nFAILED\n\nfailures:\n    ops::tests::stale\n",
        );
        assert_eq!(judge(&ours, None, &parted).as_deref(), Ok(expected));
        let others = finder("test", "--package a --lib -- pool::");
        assert!(judge(&others, None, TEST).is_err());
        let loom = finder("loom", "l1");
        let held = TEST.replace("ops::tests::stale", "models::l1::holds");
        assert!(judge(&loom, None, &held).is_ok());
        let limit =
            held.replace("assertion failed: x", "Model exceeded maximum number of branches");
        assert!(judge(&loom, None, &limit).is_err());
    }

    #[test]
    fn a_failure_alone_is_no_finding() {
        let ours = finder("test", "--package a --lib -- ops::");
        let none = "running 1 test\ntest ops::tests::stale ... ok\n\
                    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        for text in [
            "",
            none,
            "error: failed to write `/a/b`: No space left on device (os error 28)\n",
            "error: could not compile `a` (lib test) due to 1 previous error\n",
            "error: test failed, to rerun pass `-p a --lib`\n\nCaused by:\n  \
             process didn't exit successfully: `/a/deps/a-1 ops::` (exit status: 1)\n",
            "error: test failed, to rerun pass `-p a --lib`\n\nCaused by:\n  \
             process didn't exit successfully: `/a/deps/a-1 ops::` (signal: 9, SIGKILL: kill)\n",
            &TEST.replace(
                "assertion failed: x",
                "it::a failed in its own process: signal: 9 (SIGKILL)",
            ),
            &TEST.replace("assertion failed: x", "called on Err: No space left on device"),
        ] {
            assert!(judge(&ours, None, text).is_err(), "{text}");
        }
        assert!(judge(&ours, Some(15), TEST).is_err());
    }

    #[test]
    fn a_crash_is_a_finding() {
        let ours = finder("test", "--package a --lib -- ops::");
        let text = "running 1 test\nerror: test failed, to rerun pass `-p a --lib`\n\nCaused by:\n  \
                    process didn't exit successfully: `/a/deps/a-1` (signal: 11, SIGSEGV: invalid \
                    memory reference)\n";
        assert_eq!(judge(&ours, None, text).as_deref(), Ok("it crashed: SIGSEGV"));
        // Cargo has become what it runs.
        let sim = finder("sim", "--scenario bulk --seeds 5");
        assert_eq!(judge(&sim, Some(6), "").as_deref(), Ok("it crashed: SIGABRT"));
    }

    #[test]
    fn a_failed_run_is_a_finding() {
        let text =
            "\nFAILED bulk, seed 7, after 300 enters\npanicked at a.rs:1:2:\nit is stuck\nMachine";
        let sim = finder("sim", "--scenario bulk --seeds 5");
        let expected = "bulk, seed 7, after 300 enters it is stuck";
        assert_eq!(judge(&sim, None, text).as_deref(), Ok(expected));
        assert!(judge(&finder("sim", "--scenario echo"), None, text).is_err());
        assert!(judge(&sim, None, "there is no scenario bulk; there are echo\n").is_err());
    }

    #[test]
    fn says_how_it_ended() {
        assert_eq!(description("running 0 tests\n"), None);
        assert_eq!(tail(""), "nothing was said");
        assert_eq!(tail("a\nb\n\n  c\nd\ne\n"), "b | c | d | e");
    }
}
