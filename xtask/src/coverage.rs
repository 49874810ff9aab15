//! `cargo xtask coverage`: which lines of ringpost-frame the stored inputs of the fuzz targets reach by
//! themselves, and, on request, which lines of the other crates their tests reach.
//!
//! cargo-llvm-cov measures. It needs `llvm-cov` and `llvm-profdata` of the LLVM version that the compiler has:
//! from the toolchain's component `llvm-tools`, from `LLVM_COV` and `LLVM_PROFDATA`, or from the system.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use xshell::{Cmd, Shell, cmd};

use crate::run::{folder_of, observe_silently, run as run_command, shell};

/// Arguments of `cargo xtask coverage`.
#[derive(Debug, clap::Args)]
pub(crate) struct CoverageArgs {
    /// Runs the tests of these packages as well, and tells what they reach; can be given several times
    #[arg(long, short)]
    package: Vec<String>,
    /// Prints the lines that were not reached
    #[arg(long)]
    missing: bool,
}

pub(crate) fn run(arguments: &CoverageArgs) -> Result<()> {
    let shell = shell()?;
    install(&shell)?;
    let tools = Tools::find(&shell)?;
    println!("measuring with {}", tools.cover.display());

    let corpus = ["--package", "ringpost-testkit", "--test", "it", "--", "frame_corpus"];
    let corpus = measure(&shell, &tools, &corpus)?;
    let files: Lines = of_crate(&corpus, "ringpost-frame");
    print("ringpost-frame, by the stored inputs of the fuzz targets", &files, arguments.missing);
    let sum = sum(&files);
    ensure!(sum.all > 0, "nothing was measured of ringpost-frame");

    if !arguments.package.is_empty() {
        let mut tests = Vec::new();
        for package in &arguments.package {
            tests.extend(["--package", package]);
        }
        let tests = measure(&shell, &tools, &tests)?;
        for package in &arguments.package {
            let files = of_crate(&tests, package);
            ensure!(!files.is_empty(), "nothing was measured of {package}");
            print(&format!("{package}, by the tests"), &files, arguments.missing);
        }
    }
    if sum.percent() < FRAME_PERCENT_MIN {
        bail!(
            "the stored inputs reach {:.1} % of the lines of ringpost-frame, less than \
             {FRAME_PERCENT_MIN} %; `--missing` shows which they don't",
            sum.percent()
        );
    }
    Ok(())
}

/// What the stored inputs reach of ringpost-frame at least.
const FRAME_PERCENT_MIN: f64 = 95.0;

/// The programs of LLVM that read what instrumented programs write.
struct Tools {
    cover: PathBuf,
    merge: PathBuf,
}

impl Tools {
    fn find(shell: &Shell) -> Result<Self> {
        let version = cmd!(shell, "rustc -vV").quiet().read()?;
        let major = llvm_major(&version).context("rustc -vV names no LLVM version")?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let sysroot = cmd!(shell, "rustc --print sysroot").quiet().read()?;
        let component =
            Path::new(&sysroot).join("lib/rustlib").join(host.unwrap_or_default()).join("bin");
        let system = PathBuf::from(format!("/usr/lib/llvm-{major}/bin"));
        let given = ["LLVM_COV", "LLVM_PROFDATA"].map(std::env::var_os);
        let mut candidates = Vec::new();
        if let [Some(cover), Some(merge)] = given {
            candidates.push(Self { cover: cover.into(), merge: merge.into() });
        }
        for folder in [component, system] {
            candidates
                .push(Self { cover: folder.join("llvm-cov"), merge: folder.join("llvm-profdata") });
        }
        // On the search path, with the version in the name and without.
        for suffix in [format!("-{major}"), String::new()] {
            candidates.push(Self {
                cover: format!("llvm-cov{suffix}").into(),
                merge: format!("llvm-profdata{suffix}").into(),
            });
        }
        let mut others = Vec::new();
        for tools in candidates {
            let [cover, merge] = [&tools.cover, &tools.merge].map(|tool| tool_major(tool));
            if cover == Some(major) && merge == Some(major) {
                return Ok(tools);
            }
            if let (Some(cover), _) | (_, Some(cover)) = (cover, merge) {
                others.push(format!("{} is of {cover}", tools.cover.display()));
            }
        }
        bail!(
            "llvm-cov and llvm-profdata of LLVM {major} are needed, which is rustc's, and are not here{}{}\n\
             get them with one of\n  \
             rustup component add llvm-tools\n  \
             apt-get install llvm-{major}\n\
             or set LLVM_COV and LLVM_PROFDATA to their paths",
            if others.is_empty() { "" } else { ": " },
            others.join(", ")
        );
    }
}

/// The LLVM version of the compiler.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

/// The LLVM version of a tool; none if it does not run.
fn tool_major(tool: &Path) -> Option<u32> {
    let output = Command::new(tool).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, version) = text.split_once("LLVM version ")?;
    version.split(['.', ' ', '\n']).next()?.parse().ok()
}

fn install(shell: &Shell) -> Result<()> {
    if cmd!(shell, "cargo llvm-cov --version").quiet().ignore_stderr().read().is_ok() {
        return Ok(());
    }
    println!("cargo-llvm-cov is missing; installing it");
    run_command(cmd!(shell, "cargo install cargo-llvm-cov --locked"), BUILD_TIME_MAX)
}

/// How often each line was reached, by file.
type Lines = BTreeMap<String, BTreeMap<u32, u64>>;

/// Runs tests and reads which lines they have reached.
fn measure(shell: &Shell, tools: &Tools, tests: &[&str]) -> Result<Lines> {
    let with_tools = |command: Cmd<'_>| -> Result<Vec<String>> {
        let command = command.env("LLVM_COV", &tools.cover).env("LLVM_PROFDATA", &tools.merge);
        let text = command.to_string();
        let mut lines = Vec::new();
        let status = observe_silently(command, RUN_TIME_MAX, |line| lines.push(line.to_owned()))?;
        let failures = lines
            .iter()
            .filter(|line| ["error", "panicked", "FAILED"].iter().any(|word| line.contains(word)));
        let failures: Vec<&str> = failures.take(FAILURES_MAX).map(String::as_str).collect();
        ensure!(status.success(), "`{text}` failed: {status}\n{}", failures.join("\n"));
        Ok(lines)
    };
    // A report of its own, because one of the run leaves out crates whose tests have not run.
    with_tools(cmd!(shell, "cargo llvm-cov clean --profraw-only"))?;
    with_tools(cmd!(shell, "cargo llvm-cov --locked --no-report").args(tests))?;
    let mut lines = Lines::new();
    let mut file = String::new();
    for line in with_tools(cmd!(shell, "cargo llvm-cov report --lcov"))? {
        if let Some(path) = line.strip_prefix("SF:") {
            file = path.to_owned();
        } else if let Some((line, count)) = line.strip_prefix("DA:").and_then(parse_line) {
            *lines.entry(file.clone()).or_default().entry(line).or_default() += count;
        }
    }
    Ok(lines)
}

/// "number,count" of a line that has code.
fn parse_line(text: &str) -> Option<(u32, u64)> {
    let mut fields = text.split(',');
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The sources of a crate, without their tests.
fn of_crate(lines: &Lines, package: &str) -> Lines {
    let sources = folder_of(package).join("src");
    let sources = format!("{}/", sources.display());
    let mut files = Lines::new();
    for (path, counts) in lines {
        let Some(name) = path.strip_prefix(&sources) else { continue };
        if name.ends_with("tests.rs") || name.contains("tests/") {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let end = tests_begin(&text);
        let counts = counts.iter().filter(|(line, _)| **line < end);
        files.insert(name.to_owned(), counts.map(|(line, count)| (*line, *count)).collect());
    }
    files
}

/// The line at which the tests of a file begin; they are its last part.
fn tests_begin(text: &str) -> u32 {
    let line = text.lines().position(|line| line == "#[cfg(test)]");
    line.and_then(|line| u32::try_from(line + 1).ok()).unwrap_or(u32::MAX)
}

/// Lines with code, and how many of them were reached.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sum {
    reached: usize,
    all: usize,
}

impl Sum {
    fn of(counts: &BTreeMap<u32, u64>) -> Self {
        let reached = counts.values().filter(|count| **count > 0).count();
        Self { reached, all: counts.len() }
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer lines than 2^52")]
    fn percent(self) -> f64 {
        if self.all == 0 { 100.0 } else { 100.0 * self.reached as f64 / self.all as f64 }
    }
}

fn sum(files: &Lines) -> Sum {
    files.values().map(Sum::of).fold(Sum::default(), |sum, file| Sum {
        reached: sum.reached + file.reached,
        all: sum.all + file.all,
    })
}

fn print(title: &str, files: &Lines, missing: bool) {
    println!("\n{title}\n{:<36} {:>7} {:>7} {:>8}", "file", "lines", "reached", "%");
    let row = |name: &str, sum: Sum| {
        println!("{name:<36} {:>7} {:>7} {:>8.1}", sum.all, sum.reached, sum.percent());
    };
    for (name, counts) in files {
        row(name, Sum::of(counts));
        if missing {
            let lines = counts.iter().filter(|(_, count)| **count == 0);
            let lines: Vec<String> = lines.map(|(line, _)| line.to_string()).collect();
            if !lines.is_empty() {
                println!("    not reached: {}", lines.join(" "));
            }
        }
    }
    row("all", sum(files));
}

const BUILD_TIME_MAX: Duration = Duration::from_secs(8 * 60);

const RUN_TIME_MAX: Duration = Duration::from_secs(8 * 60);

/// Lines shown of tests that fail.
const FAILURES_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        assert_eq!(llvm_major("rustc 1.95.0\nhost: x\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.95.0"), None);
        assert_eq!(tool_major(Path::new("/nonexistent")), None);
    }

    #[test]
    fn leaves_tests_out() {
        assert_eq!(tests_begin("fn a() {}\n\n#[cfg(test)]\nmod tests {}\n"), 3);
        assert_eq!(tests_begin("fn a() {}\n"), u32::MAX);
    }

    #[test]
    fn finds_packages_wherever_they_are() {
        let path = |source: &str| crate::run::root().join(source).display().to_string();
        let counts = BTreeMap::from([(1, 1)]);
        let paths = ["benches/src/main.rs", "crates/ringpost/src/lib.rs", "xtask/src/run.rs"];
        let lines = Lines::from(paths.map(|name| (path(name), counts.clone())));
        for package in ["ringpost-bench", "ringpost", "xtask"] {
            assert_eq!(of_crate(&lines, package).len(), 1, "{package}");
        }
        assert!(of_crate(&lines, "ringpost-sim").is_empty());
    }

    #[test]
    fn counts_lines() {
        assert_eq!(parse_line("12,3"), Some((12, 3)));
        assert_eq!(parse_line("12,3,abc"), Some((12, 3)));
        assert_eq!(parse_line("x,3"), None);
        let counts = BTreeMap::from([(1, 0), (2, 5), (3, 1), (9, 2)]);
        let sum = Sum::of(&counts);
        assert_eq!(sum, Sum { reached: 3, all: 4 });
        assert!((sum.percent() - 75.0).abs() < 1e-9);
    }
}
