//! `cargo xtask canaries`: bugs put in on purpose, each of which something must find.
//!
//! The bugs are in `tests/canaries.toml`. Each is applied to a copy of the tree and built, and what is to
//! find it is run: that must fail. On the tree as it is, the same command must pass.

mod list;
mod scratch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::list::check;
use self::list::{Canary, Finder, Kind, List};
use self::scratch::{Ended, Scratch};
use crate::run::root;

/// Arguments of `cargo xtask canaries`.
#[derive(Debug, clap::Args)]
pub(crate) struct CanariesArgs {
    /// Tries only this canary; can be given several times
    #[arg(long, value_name = "NAME")]
    canary: Vec<String>,
    /// Shows the canaries, and tries none
    #[arg(long)]
    list: bool,
    /// How many to try at a time, each in a tree of its own
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
}

pub(crate) fn run(arguments: &CanariesArgs) -> Result<()> {
    let list = List::read(&root())?;
    let chosen = list.choose(&arguments.canary)?;
    if arguments.list {
        print_list(&chosen);
        return Ok(());
    }
    let start = Instant::now();
    let subjects: Vec<&Canary> = in_order(&chosen);
    let finders: BTreeSet<&Finder> =
        subjects.iter().filter_map(|each| each.finder.as_ref()).collect();
    let finders: Vec<&Finder> = finders.into_iter().collect();

    let jobs = usize::from(arguments.jobs).min(subjects.len().max(1));
    let scratches = (0..jobs).map(Scratch::new).collect::<Result<Vec<_>>>()?;
    println!("{} canaries and {} commands that find them", subjects.len(), finders.len());
    let say = |(finder, sound): &(String, Soundness)| match sound {
        Soundness::Passes => format!("passes: {finder}"),
        Soundness::Useless(why) => format!("USELESS: {finder}: {why}"),
    };
    let fingerprint = scratches.first().map_or(0, |scratch| scratch.fingerprint);
    let known = scratch::known_to_pass(fingerprint);
    let unknown: Vec<_> =
        finders.iter().copied().filter(|finder| !known.contains(&finder.text())).collect();
    let sound = in_parallel(&scratches, "as it is", &unknown, say, |scratch, finder| {
        Ok((finder.text(), sound(scratch, finder)?))
    })?;
    let known = known.into_iter().map(|finder| (finder, Soundness::Passes));
    let sound: BTreeMap<String, Soundness> = known.chain(sound).collect();
    let passing = sound.iter().filter(|(_, sound)| matches!(sound, Soundness::Passes));
    scratch::keep_known(fingerprint, passing.map(|(finder, _)| finder))?;
    let say = |(canary, outcome): &(&Canary, Outcome)| row(canary, outcome);
    let outcomes = in_parallel(&scratches, "canaries", &subjects, say, |scratch, canary| {
        Ok((*canary, attempt(scratch, canary, &sound)?))
    })?;
    let outcomes = outcomes.into_iter().map(|(canary, outcome)| (canary.name.as_str(), outcome));
    let outcomes: BTreeMap<&str, Outcome> = outcomes.collect();

    let missed = print_table(&chosen, &outcomes);
    if arguments.canary.is_empty() {
        print_twins(&crate::loom::twins()?);
    }
    let found = outcomes.len() - missed;
    println!(
        "{found} of {} canaries found, {} do not apply, in {:.0} s",
        outcomes.len(),
        chosen.len() - outcomes.len(),
        start.elapsed().as_secs_f64()
    );
    ensure!(missed == 0, "{missed} canaries were not found; output is in {}", scratch::LOG_FOLDER);
    Ok(())
}

/// What a finder does on the tree as it is.
#[derive(Debug)]
enum Soundness {
    /// It passes.
    Passes,
    /// It can't tell anything, for this reason.
    Useless(String),
}

/// Runs a finder on the tree as it is, where there is nothing to find.
fn sound(scratch: &Scratch, finder: &Finder) -> Result<Soundness> {
    let log = scratch.log(&format!("as-it-is-{:08x}", finder.number()))?;
    let built = scratch.run(finder.build(), &log, BUILD_TIME_MAX)?;
    if built != Ended::Success {
        return Ok(Soundness::Useless("it does not build on the tree as it is".into()));
    }
    let ended = scratch.run(finder.command(), &log, Duration::from_secs(finder.seconds_max()))?;
    let text = scratch::read(&log)?;
    let skipped = text.lines().find(|line| line.starts_with("SKIPPED "));
    Ok(match ended {
        Ended::Late => Soundness::Useless("it does not end on the tree as it is".into()),
        Ended::Failure => {
            let what = finding(&text).unwrap_or_else(|| "nothing was said".into());
            Soundness::Useless(format!("it fails on the tree as it is: {what}"))
        }
        Ended::Success if finder.kind != Kind::Sim && tests_run(&text) == 0 => {
            Soundness::Useless("it runs no test".into())
        }
        Ended::Success => match skipped {
            Some(line) => Soundness::Useless(line.to_owned()),
            None => Soundness::Passes,
        },
    })
}

#[derive(Debug)]
struct Outcome {
    verdict: Verdict,
    built: Duration,
    took: Duration,
    how: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Found,
    /// The finder passes.
    Survived,
    /// The finder runs on, and that is not how this bug shows.
    Late,
    /// The canary or its finder is wrong, so that nothing is known.
    Invalid,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Survived => "SURVIVED",
            Self::Late => "TOO LONG",
            Self::Invalid => "INVALID",
        }
    }
}

/// Puts a canary into the tree, and has it looked for.
fn attempt(
    scratch: &Scratch,
    canary: &Canary,
    sound: &BTreeMap<String, Soundness>,
) -> Result<Outcome> {
    let finder = canary.finder.as_ref().context("a canary that applies has a finder")?;
    let invalid = |how: String| Outcome {
        verdict: Verdict::Invalid,
        built: Duration::ZERO,
        took: Duration::ZERO,
        how,
    };
    match sound.get(&finder.text()) {
        Some(Soundness::Passes) => {}
        Some(Soundness::Useless(why)) => return Ok(invalid(why.clone())),
        None => bail!("nobody has tried `{}`", finder.text()),
    }
    let mutated = scratch.mutate(canary)?;
    let log = scratch.log(&canary.name)?;
    let start = Instant::now();
    let ended = scratch.run(finder.build(), &log, BUILD_TIME_MAX)?;
    let built = start.elapsed();
    if ended != Ended::Success {
        return Ok(invalid(format!("it does not build; see {}", log.display())));
    }
    let limit = Duration::from_secs(canary.seconds.unwrap_or(SECONDS_MAX));
    let start = Instant::now();
    let ended = scratch.run(finder.command(), &log, limit)?;
    let took = start.elapsed();
    drop(mutated);
    let text = scratch::read(&log)?;
    let (verdict, how) = match ended {
        Ended::Success => (Verdict::Survived, finder.text()),
        Ended::Failure if compiles_no_more(&text) => {
            (Verdict::Invalid, format!("cargo failed; see {}", log.display()))
        }
        Ended::Failure => (Verdict::Found, finding(&text).unwrap_or_else(|| "it crashed".into())),
        Ended::Late if canary.hangs => (Verdict::Found, "it hangs".into()),
        Ended::Late => (Verdict::Late, finder.text()),
    };
    Ok(Outcome { verdict, built, took, how })
}

/// Canaries that can be tried, those that change the same crate one after another: what one has changed the
/// next one builds anew.
fn in_order<'a>(chosen: &[&'a Canary]) -> Vec<&'a Canary> {
    let mut subjects: Vec<_> =
        chosen.iter().copied().filter(|canary| canary.finder.is_some()).collect();
    subjects.sort_by_key(|canary| {
        let package = canary.edit.first().and_then(|edit| edit.file.rsplit_once("/src/"));
        (canary.finder.as_ref().map(Finder::build), package.map(|(package, _)| package.to_owned()))
    });
    subjects
}

/// Does the work for each item, one at a time in each scratch tree.
fn in_parallel<T: Sync + Named, R: Send>(
    scratches: &[Scratch],
    what: &'static str,
    items: &[T],
    say: impl Fn(&R) -> String + Sync,
    work: impl Fn(&Scratch, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let progress = progress(items.len(), what);
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let worker = |scratch: &Scratch| -> Result<()> {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            progress.set_message(item.name());
            let result = work(scratch, item).with_context(|| item.name())?;
            progress.inc(1);
            progress.suspend(|| println!("{}", say(&result)));
            results.lock().map_err(|_| anyhow!("another worker panicked"))?.push(result);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> =
            scratches.iter().map(|scratch| scope.spawn(|| worker(scratch))).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(anyhow!("a worker panicked")))
        })
    })?;
    progress.finish_and_clear();
    results.into_inner().map_err(|_| anyhow!("a worker panicked"))
}

fn progress(count: usize, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {elapsed} {msg}")
        .expect("the template is a constant");
    let progress = ProgressBar::new(count as u64).with_style(style).with_prefix(what);
    progress.enable_steady_tick(Duration::from_secs(1));
    progress
}

/// What a progress bar shows.
trait Named {
    fn name(&self) -> String;
}

impl Named for &Finder {
    fn name(&self) -> String {
        self.text()
    }
}

impl Named for &Canary {
    fn name(&self) -> String {
        self.name.clone()
    }
}

/// What a finder said of what it found: of a simulation the scenario and the seed, else the test, and
/// then what was wrong.
fn finding(text: &str) -> Option<String> {
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
    let whole = format!("{place} {message}");
    Some(whole.chars().filter(|c| !c.is_control()).take(HOW_CHARS_MAX).collect())
}

/// Tests that passed or failed.
fn tests_run(text: &str) -> usize {
    let is_test = |line: &&str| {
        line.trim_start().starts_with("test ") && (line.ends_with("ok") || line.ends_with("FAILED"))
    };
    text.lines().filter(is_test).count()
}

/// Whether cargo gave up before anything ran.
fn compiles_no_more(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("error: could not compile"))
}

fn print_list(chosen: &[&Canary]) {
    for canary in chosen {
        let seen = canary.seen.as_deref().map(|seen| format!(" ({seen})")).unwrap_or_default();
        println!("{:<36} {}{seen}", canary.name, canary.bug);
        match (&canary.finder, &canary.not_applicable) {
            (Some(finder), _) => println!("{:<36} {}", "", finder.text()),
            (None, Some(why)) => println!("{:<36} does not apply: {why}", ""),
            (None, None) => {}
        }
    }
}

/// Prints the table, and returns how many were not found.
fn print_table(chosen: &[&Canary], outcomes: &BTreeMap<&str, Outcome>) -> usize {
    println!(
        "\n{:<36} {:<12} {:<9} {:>7} {:>7}  how",
        "canary", "finder", "verdict", "built s", "found s"
    );
    for canary in chosen {
        if let Some(outcome) = outcomes.get(canary.name.as_str()) {
            println!("{}", row(canary, outcome));
        }
    }
    for canary in chosen {
        if let Some(why) = &canary.not_applicable {
            println!("{:<36} does not apply: {why}", canary.name);
        }
    }
    outcomes.values().filter(|outcome| outcome.verdict != Verdict::Found).count()
}

fn row(canary: &Canary, outcome: &Outcome) -> String {
    let Outcome { verdict, built, took, how } = outcome;
    format!(
        "{:<36} {:<12} {:<9} {:>7.1} {:>7.1}  {how}",
        canary.name,
        canary.finder.as_ref().map_or("", |finder| finder.kind.word()),
        verdict.word(),
        built.as_secs_f64(),
        took.as_secs_f64()
    )
}

/// The canaries of the models, which have a command of their own.
fn print_twins(twins: &[(String, Vec<String>)]) {
    println!("\nfound by `cargo xtask loom`:");
    for (model, twins) in twins {
        println!("{model:<36} {}", twins.join(", "));
    }
}

const BUILD_TIME_MAX: Duration = Duration::from_secs(10 * 60);
/// How long a finder may take if the canary does not say.
const SECONDS_MAX: u64 = 60;
const HOW_CHARS_MAX: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_found() {
        let test = "\
running 1 test
test ops::tests::stale ... FAILED

thread 'ops::tests::stale' (4711) panicked at crates/a/src/ops.rs:3:9:
assertion failed: x
note: run with
";
        assert_eq!(
            finding(test).as_deref(),
            Some("thread 'ops::tests::stale' crates/a/src/ops.rs:3:9: assertion failed: x")
        );
        assert_eq!(tests_run(test), 1);
        let sim =
            "\nFAILED bulk, seed 7, after 300 enters\npanicked at a.rs:1:2:\nit is stuck\nMachine";
        assert_eq!(finding(sim).as_deref(), Some("bulk, seed 7, after 300 enters it is stuck"));
        assert_eq!(finding("running 0 tests\n"), None);
    }
}
