//! `cargo xtask fuzz`: the fuzz targets, each for a while.
//!
//! New inputs go to a folder below `target`, so that a run leaves the stored corpus as it is.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use xshell::{Cmd, Shell, cmd};

use crate::run::{TookTooLong, observe, observe_silently, root, run as run_command, shell};

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// How long each target runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Runs only this target; can be given several times
    #[arg(long)]
    target: Vec<String>,
}

impl FuzzArgs {
    /// All targets, for a few seconds each.
    pub(crate) fn smoke() -> Self {
        Self { seconds: 5, target: Vec::new() }
    }
}

pub(crate) fn run(arguments: &FuzzArgs) -> Result<()> {
    match fuzz(arguments)? {
        Outcome::Done => Ok(()),
        Outcome::Impossible(reason) => bail!("cannot fuzz here: {reason}"),
    }
}

/// What became of a run in which no target crashed.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All targets ran.
    Done,
    /// This machine cannot do it, for this reason.
    Impossible(String),
}

pub(crate) fn fuzz(arguments: &FuzzArgs) -> Result<Outcome> {
    let shell = shell()?;
    let all = targets(&root())?;
    if all.is_empty() {
        return Ok(Outcome::Impossible("fuzz/fuzz_targets has no targets".into()));
    }
    for target in &arguments.target {
        ensure!(all.contains(target), "there is no target {target}; there are {}", all.join(", "));
    }
    let chosen = if arguments.target.is_empty() { &all } else { &arguments.target };

    if cmd!(shell, "c++ --version").quiet().ignore_stderr().read().is_err() {
        return Ok(Outcome::Impossible(
            "libFuzzer takes a C++ compiler (c++), and none is here".into(),
        ));
    }
    let Some(toolchain) = Toolchain::find(&shell) else {
        let reason = "neither a nightly toolchain nor RUSTC_BOOTSTRAP=1 gives -Z options";
        return Ok(Outcome::Impossible(reason.into()));
    };
    println!("fuzzing with {}", toolchain.name());
    // cargo-fuzz itself has no --locked.
    let fetch = cmd!(shell, "cargo fetch --locked --manifest-path fuzz/Cargo.toml");
    if let Outcome::Impossible(why) = install(&shell)? {
        return Ok(Outcome::Impossible(why));
    }
    if let Outcome::Impossible(why) = online(fetch, FETCH_TIME_MAX)? {
        return Ok(Outcome::Impossible(why));
    }
    run_command(toolchain.fuzz(&shell).arg("build"), BUILD_TIME_MAX)?;

    let mut crashed = Vec::new();
    let mut table = Vec::new();
    for target in chosen {
        let figures = run_target(&shell, &toolchain, target, arguments.seconds)?;
        if let Some(crash) = &figures.crash {
            crashed.push(format!("{target}: {crash}"));
        }
        table.push((target, figures));
    }
    println!(
        "{:<18} {:>12} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8}  crash",
        "target", "executions", "exec/s", "CPU s", "edges", "features", "inputs", "KB"
    );
    for (target, figures) in &table {
        println!(
            "{target:<18} {:>12} {:>8.0} {:>8.1} {:>8} {:>9} {:>8} {:>8}  {}",
            figures.executions,
            figures.executions as f64 / figures.time.as_secs_f64().max(0.001),
            figures.processor_time.as_secs_f64(),
            figures.coverage,
            figures.features,
            figures.inputs,
            figures.input_bytes.div_ceil(1024),
            figures.crash.as_deref().unwrap_or("none")
        );
    }
    if !crashed.is_empty() {
        bail!("crashing inputs:\n{}", crashed.join("\n"));
    }
    Ok(Outcome::Done)
}

/// The compiler that builds with instrumentation, which only unstable options do.
#[derive(Debug)]
enum Toolchain {
    Nightly,
    Bootstrap,
}

impl Toolchain {
    fn find(shell: &Shell) -> Option<Self> {
        let works = |command: Cmd<'_>| command.quiet().ignore_stderr().read().is_ok();
        if works(cmd!(shell, "cargo +nightly --version"))
            && works(cmd!(shell, "rustc +nightly --version"))
        {
            return Some(Self::Nightly);
        }
        works(cmd!(shell, "rustc -Z help").env("RUSTC_BOOTSTRAP", "1")).then_some(Self::Bootstrap)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Nightly => "the nightly toolchain",
            Self::Bootstrap => "the stable toolchain and RUSTC_BOOTSTRAP=1, as there is no nightly",
        }
    }

    fn fuzz<'a>(&self, shell: &'a Shell) -> Cmd<'a> {
        match self {
            Self::Nightly => cmd!(shell, "cargo +nightly fuzz"),
            Self::Bootstrap => cmd!(shell, "cargo fuzz").env("RUSTC_BOOTSTRAP", "1"),
        }
        // It would take the place of the flags that cargo-fuzz sets, and nothing would be instrumented.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
    }
}

/// What libFuzzer told about a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    coverage: u64,
    features: u64,
    crash: Option<String>,
    /// How long it ran, start and replay of the corpus included.
    time: Duration,
    /// What its process and those of cargo used of it.
    processor_time: Duration,
    /// Inputs stored in the project or found on this machine, after the run.
    inputs: usize,
    input_bytes: u64,
}

impl Figures {
    /// A target that ran nothing shows nothing. One that crashed says no numbers at its end.
    fn check(&self, target: &str) -> Result<()> {
        let is_empty = self.executions == 0 && self.crash.is_none();
        ensure!(!is_empty, "the target {target} has executed nothing");
        Ok(())
    }

    fn line(&mut self, line: &str) {
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.crash = Some(path.trim().to_owned());
        } else if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = count.trim().parse().unwrap_or(0);
        } else if line.starts_with('#') {
            let mut words = line.split_whitespace();
            while let Some(word) = words.next() {
                let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
                match word {
                    "cov:" => self.coverage = number(words.next()).unwrap_or(self.coverage),
                    "ft:" => self.features = number(words.next()).unwrap_or(self.features),
                    _ => {}
                }
            }
        }
    }
}

fn run_target(shell: &Shell, toolchain: &Toolchain, target: &str, seconds: u64) -> Result<Figures> {
    let found = root().join("target/fuzz-corpus").join(target);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let mut command = toolchain.fuzz(shell).args(["run", target]).arg(&found);
    let stored = root().join("fuzz/corpus").join(target);
    if stored.is_dir() {
        command = command.arg(&stored);
    }
    let limit = format!("-max_total_time={seconds}");
    command = command.args(["--", &limit, "-timeout=10", "-print_final_stats=1"]);

    // libFuzzer prints a line for each input it keeps: tens of thousands that bury everything else.
    let mut figures = Figures::default();
    let mut last = VecDeque::with_capacity(LINES_SHOWN_MAX);
    let (start, processor_start) = (Instant::now(), children_time()?);
    let status =
        observe_silently(command, Duration::from_secs(seconds) + RUN_TIME_EXTRA, |line| {
            figures.line(line);
            if last.len() == LINES_SHOWN_MAX {
                last.pop_front();
            }
            last.push_back(line.to_owned());
        })?;
    figures.time = start.elapsed();
    figures.processor_time = children_time()?.saturating_sub(processor_start);
    for folder in [&found, &stored] {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            figures.inputs += 1;
            figures.input_bytes += entry?.metadata()?.len();
        }
    }
    if !status.success() || figures.crash.is_some() {
        last.iter().for_each(|line| println!("{line}"));
    }
    if !status.success() && figures.crash.is_none() {
        bail!("the target {target} failed without a crashing input: {status}");
    }
    figures.check(target)?;
    Ok(figures)
}

/// Processor time of all processes that this one has started and waited for, and of those that they have:
/// `cutime` and `cstime` of proc_pid_stat(5).
fn children_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    let ticks = ticks_of_children(&stat).context("/proc/self/stat has another form")?;
    Ok(Duration::from_millis(ticks * (1000 / TICKS_PER_SECOND)))
}

fn ticks_of_children(stat: &str) -> Option<u64> {
    // "id (name) state ...", where the name may hold anything; the state is field 3.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(field(16)? + field(17)?)
}

/// USER_HZ, in which the kernel tells times to programs; 100 on all architectures that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// The names of the fuzz targets.
pub(crate) fn targets(root: &Path) -> Result<Vec<String>> {
    let manifest = root.join("fuzz/Cargo.toml");
    if !manifest.is_file() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&manifest)?;
    let manifest: Manifest = toml::from_str(&text).context("fuzz/Cargo.toml")?;
    let mut names: Vec<String> = manifest.bin.into_iter().map(|target| target.name).collect();
    names.sort();
    for entry in std::fs::read_dir(root.join("fuzz/fuzz_targets"))? {
        let path: PathBuf = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem()
        {
            let is_known = names.iter().any(|known| name == known.as_str());
            ensure!(is_known, "fuzz/Cargo.toml does not have the target {}", path.display());
        }
    }
    Ok(names)
}

/// The part of `fuzz/Cargo.toml` that names the targets.
#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    bin: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// Sees to it that cargo-fuzz is here, if it can be had.
fn install(shell: &Shell) -> Result<Outcome> {
    if cmd!(shell, "cargo fuzz --version").quiet().ignore_stderr().read().is_ok() {
        return Ok(Outcome::Done);
    }
    println!("cargo-fuzz is missing; installing it");
    online(cmd!(shell, "cargo install cargo-fuzz --locked"), BUILD_TIME_MAX)
}

/// Runs a command that downloads. It is impossible if it failed for want of a network, and only then.
fn online(command: Cmd<'_>, limit: Duration) -> Result<Outcome> {
    let text = command.to_string();
    let mut lines = Vec::new();
    let ended = observe(command, limit, |line| lines.push(line.trim().to_owned()));
    let is_offline = std::env::var("CARGO_NET_OFFLINE").is_ok_and(|value| value == "true");
    match (ended, why_offline(&lines, is_offline)) {
        (Ok(status), _) if status.success() => Ok(Outcome::Done),
        (_, Some(why)) => Ok(Outcome::Impossible(format!("`{text}` has no network: {why}"))),
        (Ok(status), None) => bail!("`{text}` failed: {status}"),
        (Err(error), None) if error.is::<TookTooLong>() && !has_built(&lines) => {
            Ok(Outcome::Impossible(format!("no network, or a slow one: {error}")))
        }
        (Err(error), None) => Err(error),
    }
}

/// What cargo, which failed, said of the network. Once it builds, the network is not why.
fn why_offline(lines: &[String], is_offline: bool) -> Option<&str> {
    if has_built(lines) {
        return None;
    }
    let says_so = |line: &&String| {
        OFFLINE.iter().any(|words| line.contains(words))
            || is_offline && line.contains("could not find `cargo-fuzz` in registry")
    };
    lines.iter().find(says_so).map(String::as_str)
}

fn has_built(lines: &[String]) -> bool {
    lines.iter().any(|line| line.starts_with("Compiling "))
}

/// What cargo says without a network: its own words, and those of the library that it downloads with.
const OFFLINE: &[&str] = &[
    "you may wish to retry without `--offline`",
    "Could not resolve ",
    "Couldn't resolve ",
    "Could not connect to ",
    "Couldn't connect to ",
    "Connection timed out",
    "Resolving timed out",
    "Network is unreachable",
    "CONNECT tunnel failed",
];

const FETCH_TIME_MAX: Duration = Duration::from_secs(3 * 60);

const BUILD_TIME_MAX: Duration = Duration::from_secs(8 * 60);

/// The end of what a target that crashed has printed.
const LINES_SHOWN_MAX: usize = 120;

/// For starting, replaying the corpus and minimising a crash.
const RUN_TIME_EXTRA: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_figures() {
        let mut figures = Figures::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#4096\tpulse  cov: 57 ft: 61 corp: 9/20b lim: 43 exec/s: 2048 rss: 31Mb",
            "#9000\tDONE   cov: 58 ft: 62 corp: 9/20b lim: 43 exec/s: 900 rss: 31Mb",
            "stat::number_of_executed_units: 9000",
        ] {
            figures.line(line);
        }
        let expected =
            Figures { executions: 9000, coverage: 58, features: 62, ..Figures::default() };
        assert_eq!(figures, expected);
    }

    #[test]
    fn finds_the_crashing_input() {
        let mut figures = Figures::default();
        figures.line("artifact_prefix='fuzz/artifacts/a/'; Test unit written to fuzz/a/crash-1");
        assert_eq!(figures.crash.as_deref(), Some("fuzz/a/crash-1"));
    }

    #[test]
    fn reads_the_time_of_children() {
        let stat = "7 (a) b) (c) R 1 7 7 0 -1 4194304 100 200 0 0 11 12 130 14 20 0 1 0 99 1 2";
        assert_eq!(ticks_of_children(stat), Some(144));
        assert_eq!(ticks_of_children("7 (a) R 1"), None);
    }

    #[test]
    fn no_folder_no_targets() {
        assert!(targets(Path::new("/nonexistent")).expect("no error").is_empty());
    }

    #[test]
    fn a_target_that_executes_nothing_fails() {
        let mut figures = Figures::default();
        figures.line("stat::number_of_executed_units: 0");
        assert!(figures.check("decoder").is_err());
        figures.line("stat::number_of_executed_units: 1");
        assert!(figures.check("decoder").is_ok());
    }

    #[test]
    fn only_a_missing_network_is_one() {
        let why = |text: &str, is_offline| {
            let lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
            why_offline(&lines, is_offline).map(str::to_owned)
        };
        let unreachable = "\
    Updating crates.io index
error: download of config.json failed

Caused by:
  failed to download from `https://index.crates.io/config.json`

Caused by:
  [7] Could not connect to server (Failed to connect to 127.0.0.1 port 1 after 0 ms)
";
        assert!(why(unreachable, false).is_some_and(|why| why.starts_with("[7] Could not")));
        let nameless = "  [5] Could not resolve proxy name (Could not resolve proxy: a.invalid)";
        assert!(why(nameless, false).is_some());
        let missing = "error: could not find `cargo-fuzz` in registry `crates-io` with version `*`";
        assert!(why(missing, true).is_some());
        assert_eq!(why(missing, false), None);

        let broken =
            format!("   Compiling libc v0.2.1\nerror: could not compile `libc`\n{nameless}");
        assert_eq!(why(&broken, false), None);
        let locked =
            "error: cannot update the lock file fuzz/Cargo.lock because --locked was passed";
        assert_eq!(why(locked, false), None);
    }
}
