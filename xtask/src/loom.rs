//! `cargo xtask loom`: the models of `ringpost-sync`, and their twins.
//!
//! A model must hold in every execution that loom explores. A twin is the same model over a
//! protocol that is wrong in one way; if loom finds nothing wrong with it, the model proves
//! nothing, and the run fails. The table of both comes from the test binary itself. Each entry runs
//! in a process of its own, and leaves its output below `target/loom/log`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use xshell::{Cmd, Shell, cmd};

use crate::run::{compiler_flags, kill_tree, root, run as run_command, shell};

/// Arguments of `cargo xtask loom`.
#[derive(Debug, clap::Args)]
pub(crate) struct LoomArgs {
    /// Runs only this model and its twins; can be given several times
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// How many times threads may be interrupted in one execution; large models stay at 2, and
    /// below 3 not every twin is caught
    #[arg(long, value_name = "N", default_value_t = PREEMPTIONS)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=8))]
    preemptions: u8,
    /// How long one model may take
    #[arg(long, value_name = "N", default_value_t = ENTRY_SECONDS_MAX)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Shows the models and their twins, and runs none
    #[arg(long)]
    list: bool,
}

impl Default for LoomArgs {
    fn default() -> Self {
        Self {
            model: Vec::new(),
            preemptions: PREEMPTIONS,
            seconds: ENTRY_SECONDS_MAX,
            list: false,
        }
    }
}

pub(crate) fn run(arguments: &LoomArgs) -> Result<()> {
    let shell = shell()?;
    let mut catalogue = build(&shell)?;
    catalogue.choose(&arguments.model)?;
    if arguments.list {
        for model in &catalogue.models {
            println!("{:<4} {}", model.name(), model.shows);
            for twin in &model.twins {
                println!("       {twin}");
            }
        }
        return Ok(());
    }

    // The lint that keeps std's concurrent types out of the protocols bites in this build only.
    let clippy = cmd!(shell, "cargo clippy --locked --package ringpost-sync --lib --tests");
    run_command(with_loom(clippy).args(["--quiet", "--", "-D", "warnings"]), BUILD_TIME_MAX)?;

    let start = Instant::now();
    let entries = catalogue.entries();
    let outcomes = run_all(&catalogue.binary, &entries, arguments)?;
    let failed = print_table(&catalogue, &entries, &outcomes);
    println!(
        "{} models and {} twins in {:.0} s, at most {} preemptions",
        catalogue.models.len(),
        entries.len() - catalogue.models.len(),
        start.elapsed().as_secs_f64(),
        arguments.preemptions
    );
    ensure!(failed == 0, "{failed} of {} entries failed; see {LOG_FOLDER}", entries.len());
    Ok(())
}

/// The models, each with its twins: bugs of the protocols that [`run`] must find.
pub(crate) fn twins() -> Result<Vec<(String, Vec<String>)>> {
    let models = build(&shell()?)?.models;
    Ok(models.into_iter().map(|model| (model.name().to_owned(), model.twins)).collect())
}

/// Builds the tests with loom, and asks them what there is.
fn build(shell: &Shell) -> Result<Catalogue> {
    let test = || {
        let test = cmd!(shell, "cargo test --locked --package ringpost-sync --lib --profile loom");
        with_loom(test).arg("--quiet")
    };
    run_command(test().arg("--no-run"), BUILD_TIME_MAX)?;

    let log = log("catalogue")?;
    let mut command: Command =
        test().args(["--", "--exact", "models::catalogue", "--nocapture"]).into();
    let status = wait_logged(&mut command, &log, Duration::from_secs(60))?;
    ensure!(status.is_some_and(|status| status.success()), "no catalogue; see {}", log.display());
    let mut catalogue = Catalogue::default();
    read(&log)?.lines().try_for_each(|line| catalogue.line(line))?;
    ensure!(catalogue.binary.is_file(), "the models did not say where they are");
    ensure!(!catalogue.models.is_empty(), "there are no models");
    for model in &catalogue.models {
        ensure!(!model.twins.is_empty(), "{} has no twin that it must fail with", model.name());
    }
    Ok(catalogue)
}

fn with_loom(command: Cmd<'_>) -> Cmd<'_> {
    let (variable, flags) = compiler_flags("--cfg loom");
    command.args(["--target-dir", "target/loom"]).env(variable, flags)
}

/// What the test binary tells about itself.
#[derive(Debug, Default)]
struct Catalogue {
    binary: PathBuf,
    models: Vec<Model>,
}

#[derive(Debug)]
struct Model {
    /// The module that holds its tests.
    path: String,
    shows: String,
    twins: Vec<String>,
}

impl Catalogue {
    fn line(&mut self, line: &str) -> Result<()> {
        match fields(line).as_slice() {
            [] => {}
            ["binary", path] => self.binary = PathBuf::from(path),
            ["model", path, shows] => {
                let (path, shows) = ((*path).to_owned(), (*shows).to_owned());
                self.models.push(Model { path, shows, twins: Vec::new() });
            }
            ["twin", name] => {
                let model = self.models.last_mut().context("a twin without a model")?;
                model.twins.push((*name).to_owned());
            }
            _ => bail!("the models say something unknown: {line}"),
        }
        Ok(())
    }

    /// Keeps the models with these names; all, if there are none.
    fn choose(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            if !self.models.iter().any(|model| model.name().eq_ignore_ascii_case(name)) {
                let known: Vec<_> = self.models.iter().map(Model::name).collect();
                bail!("there is no model {name}; there are {}", known.join(", "));
            }
        }
        let is_chosen =
            |model: &Model| names.iter().any(|name| model.name().eq_ignore_ascii_case(name));
        self.models.retain(|model| names.is_empty() || is_chosen(model));
        Ok(())
    }

    /// All models, then all twins: what takes long is started first.
    fn entries(&self) -> Vec<Entry<'_>> {
        let models = self.models.iter().map(|model| Entry { model, twin: None });
        let twins = self.models.iter().flat_map(|model| {
            model.twins.iter().map(move |twin| Entry { model, twin: Some(twin) })
        });
        models.chain(twins).collect()
    }
}

impl Model {
    fn name(&self) -> &str {
        self.path.rsplit("::").next().unwrap_or(&self.path)
    }
}

/// One test of the binary.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    model: &'a Model,
    twin: Option<&'a str>,
}

impl Entry<'_> {
    fn test(&self) -> String {
        format!("{}::{}", self.model.path, self.twin.unwrap_or("holds"))
    }

    /// What loom must say.
    fn expected(&self) -> Verdict {
        if self.twin.is_some() { Verdict::Caught } else { Verdict::Holds }
    }
}

#[derive(Debug)]
struct Outcome {
    verdict: Verdict,
    executions: Option<u64>,
    /// What was wrong.
    found: String,
    time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// No execution of the model fails.
    Holds,
    /// Loom found the fault of a twin.
    Caught,
    /// Loom did not find the fault of a twin.
    Survived,
    /// An execution of a model fails, or the process went wrong.
    Failed,
    /// The process was killed because it took too long.
    Late,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Caught => "caught",
            Self::Survived => "SURVIVED",
            Self::Failed => "FAILED",
            Self::Late => "TOO LONG",
        }
    }
}

/// Runs all entries, as many at a time as there are processors. Outcomes are in the order of the
/// entries.
fn run_all(binary: &Path, entries: &[Entry<'_>], arguments: &LoomArgs) -> Result<Vec<Outcome>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(entries.len()));
    let work = || -> Result<()> {
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(entry) = entries.get(index)
        {
            let test = entry.test();
            let log = log(&test.replace("::", "-"))?;
            let outcome = run_entry(binary, entry, &log, arguments)?;
            println!(
                "{test:<45} {:<9} {:>6.1} s",
                outcome.verdict.word(),
                outcome.time.as_secs_f64()
            );
            let mut outcomes = outcomes.lock().map_err(|_| anyhow!("another worker panicked"))?;
            outcomes.push((index, outcome));
        }
        Ok(())
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(anyhow!("a worker panicked")))
        })
    })?;
    let mut outcomes = outcomes.into_inner().map_err(|_| anyhow!("a worker panicked"))?;
    outcomes.sort_by_key(|&(index, _)| index);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

fn run_entry(
    binary: &Path,
    entry: &Entry<'_>,
    log: &Path,
    arguments: &LoomArgs,
) -> Result<Outcome> {
    let mut command = Command::new(binary);
    command.args(["--exact", &entry.test(), "--nocapture", "--test-threads=1"]);
    // Whoever sets these for loom wants less than everything explored.
    for variable in ["LOOM_MAX_DURATION", "LOOM_MAX_PERMUTATIONS", "LOOM_CHECKPOINT_FILE"] {
        command.env_remove(variable);
    }
    command.env("LOOM_MAX_PREEMPTIONS", arguments.preemptions.to_string());

    let start = Instant::now();
    let status = wait_logged(&mut command, log, Duration::from_secs(arguments.seconds))?;
    let time = start.elapsed();
    Ok(judge(entry, status, &read(log)?, time))
}

/// Runs a command, at most this long, with its output in a file. `None` if it was killed.
fn wait_logged(
    command: &mut Command,
    log: &Path,
    time_max: Duration,
) -> Result<Option<ExitStatus>> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let start = Instant::now();
    let mut child = command.spawn().context("cannot start the models")?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > time_max {
            // A twin explores in a process of its own.
            kill_tree(child.id());
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn log(name: &str) -> Result<PathBuf> {
    let folder = root().join(LOG_FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(name).with_extension("txt"))
}

fn read(log: &Path) -> Result<String> {
    let bytes = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The outcome of a test, from how its process ended and what it printed.
fn judge(entry: &Entry<'_>, status: Option<ExitStatus>, text: &str, time: Duration) -> Outcome {
    let failed = |verdict, found: String| Outcome { verdict, executions: None, found, time };
    let Some(status) = status else {
        return failed(Verdict::Late, String::new());
    };
    let report = text.lines().find_map(|line| match fields(line).as_slice() {
        [word, executions, found] => {
            Some(((*word).to_owned(), executions.parse::<u64>().ok()?, (*found).to_owned()))
        }
        _ => None,
    });
    let Some((word, executions, found)) = report else {
        let panic = text.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
        return failed(Verdict::Failed, panic.map_or_else(|| status.to_string(), str::to_owned));
    };
    let verdict = match word.as_str() {
        // One execution is no concurrency.
        "holds" if executions > 1 => Verdict::Holds,
        // What fails before the first one has nothing to do with the twin.
        "caught" if executions > 0 => Verdict::Caught,
        "survived" => Verdict::Survived,
        _ => Verdict::Failed,
    };
    let agrees = status.success() == (verdict == entry.expected());
    let verdict = if agrees { verdict } else { Verdict::Failed };
    Outcome { verdict, executions: Some(executions), found, time }
}

/// How many entries are not as they must be.
fn print_table(catalogue: &Catalogue, entries: &[Entry<'_>], outcomes: &[Outcome]) -> usize {
    let row = |name: &str, outcome: &Outcome, says: &str| {
        let executions = outcome.executions.map_or_else(|| "?".into(), |count| count.to_string());
        let (verdict, time) = (outcome.verdict.word(), outcome.time.as_secs_f64());
        println!("{name:<32} {verdict:<9} {executions:>10} {time:>7.1}  {says}");
    };
    println!(
        "\n{:<32} {:<9} {:>10} {:>7}  what it shows, or what was found",
        "model, twin", "verdict", "executions", "seconds"
    );
    for model in &catalogue.models {
        let of_model =
            entries.iter().zip(outcomes).filter(|(entry, _)| entry.model.path == model.path);
        for (entry, outcome) in of_model {
            match entry.twin {
                None if outcome.found.is_empty() => row(model.name(), outcome, &model.shows),
                None => row(model.name(), outcome, &outcome.found),
                Some(twin) => row(&format!("     {twin}"), outcome, &outcome.found),
            }
        }
    }
    let wrong = |(entry, outcome): &(&Entry<'_>, &Outcome)| outcome.verdict != entry.expected();
    entries.iter().zip(outcomes).filter(wrong).count()
}

/// The fields of a line that the models print for this program; none for any other line.
fn fields(line: &str) -> Vec<&str> {
    line.strip_prefix("loom\t").map_or_else(Vec::new, |rest| rest.split('\t').collect())
}

const PREEMPTIONS: u8 = 3;
const ENTRY_SECONDS_MAX: u64 = 120;
const BUILD_TIME_MAX: Duration = Duration::from_secs(8 * 60);
const LOG_FOLDER: &str = "target/loom/log";

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn catalogue() -> Catalogue {
        let mut catalogue = Catalogue::default();
        let lines = [
            "running 1 test",
            "loom\tbinary\t/bin/true",
            "loom\tmodel\tmodels::l1\tno wake-up is lost",
            "loom\ttwin\ttake_relaxed",
            "loom\tmodel\tmodels::l2\tone ring",
            "loom\ttwin\tnotify_rings_always",
            "loom\ttwin\ttake_relaxed",
        ];
        for line in lines {
            catalogue.line(line).expect("known");
        }
        catalogue
    }

    #[test]
    fn reads_the_catalogue() {
        let mut catalogue = catalogue();
        let tests: Vec<_> = catalogue.entries().iter().map(Entry::test).collect();
        let expected = [
            "models::l1::holds",
            "models::l2::holds",
            "models::l1::take_relaxed",
            "models::l2::notify_rings_always",
            "models::l2::take_relaxed",
        ];
        assert_eq!(tests, expected);
        assert!(catalogue.line("loom\tnonsense").is_err());
        assert!(catalogue.choose(&["l3".into()]).is_err());
        catalogue.choose(&["L2".into()]).expect("exists");
        assert_eq!(catalogue.entries().len(), 3);
    }

    #[test]
    fn only_the_expected_verdict_counts() {
        let catalogue = catalogue();
        let [model, _, twin, ..] = catalogue.entries()[..] else { panic!("entries") };
        let (success, failure) = (ExitStatus::from_raw(0), ExitStatus::from_raw(101 << 8));
        let aborted = ExitStatus::from_raw(6);
        let verdict = |entry: &Entry<'_>, status, text: &str| {
            judge(entry, status, text, Duration::ZERO).verdict
        };
        assert_eq!(
            verdict(&model, Some(success), "test ...\nloom\tholds\t9\t\nok"),
            Verdict::Holds
        );
        assert_eq!(verdict(&model, Some(success), "loom\tholds\t1\t"), Verdict::Failed);
        assert_eq!(verdict(&model, Some(success), "running 0 tests"), Verdict::Failed);
        assert_eq!(verdict(&model, Some(failure), "loom\tholds\t9\t"), Verdict::Failed);
        assert_eq!(verdict(&model, Some(failure), "x panicked at y\ndeadlock"), Verdict::Failed);
        assert_eq!(verdict(&model, None, "loom\tholds\t9\t"), Verdict::Late);
        assert_eq!(verdict(&twin, Some(success), "loom\tcaught\t9\tdeadlock"), Verdict::Caught);
        assert_eq!(verdict(&twin, Some(success), "loom\tcaught\t0\tno file"), Verdict::Failed);
        assert_eq!(verdict(&twin, Some(failure), "loom\tsurvived\t9\t"), Verdict::Survived);
        assert_eq!(verdict(&twin, Some(failure), "loom\tlimit\t9\tbranches"), Verdict::Failed);
        assert_eq!(verdict(&twin, Some(aborted), "loom\tcaught\t9\tdeadlock"), Verdict::Failed);
    }

    #[test]
    fn ends_what_does_not_end() {
        let name = format!("ringpost-xtask-loom-{}.txt", std::process::id());
        let log = std::env::temp_dir().join(name);
        let mut command = Command::new("sh");
        let command = command.args(["-c", "sleep 61 & echo $!; wait"]);
        let status = wait_logged(command, &log, Duration::from_millis(300)).expect("starts");
        assert!(status.is_none());
        // Nor does what it has started go on, but for the moment that dying takes.
        let child = read(&log).expect("written").trim().to_owned();
        assert!(!child.is_empty(), "it was killed before it started anything");
        let goes_on = || {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(')').map_or("", |(_, rest)| rest.trim_start());
            !state.is_empty() && !state.starts_with(['Z', 'X'])
        };
        let start = Instant::now();
        while goes_on() {
            assert!(start.elapsed() < Duration::from_secs(30), "the twin's process lives on");
            thread::sleep(Duration::from_millis(5));
        }
        fs::remove_file(&log).expect("it is ours");
    }
}
