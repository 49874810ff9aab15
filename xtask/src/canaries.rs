//! `cargo xtask canaries`: bugs put in on purpose, each of which something must find.
//!
//! The bugs are in `tests/canaries.toml`. Each is applied to a copy of the tree and built, and what is to
//! find it is run: that must fail, and say what has failed. On the tree as it is, the same command must pass.

mod finding;
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
use crate::results::Results;
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
    let _lock = scratch::lock()?;
    let start = Instant::now();
    let subjects: Vec<&Canary> = in_order(&chosen);
    ensure!(!subjects.is_empty(), "there is nothing to try: none of these canaries applies");
    let finders: BTreeSet<&Finder> =
        subjects.iter().filter_map(|each| each.finder.as_ref()).collect();
    let finders: Vec<&Finder> = finders.into_iter().collect();

    let jobs = usize::from(arguments.jobs).min(subjects.len().max(1));
    let scratches = (0..jobs).map(Scratch::new).collect::<Result<Vec<_>>>()?;
    println!("{} canaries and {} commands that find them", subjects.len(), finders.len());
    let fingerprint = scratches.first().map_or(0, |scratch| scratch.fingerprint);
    let mut known = scratch::known_to_pass(fingerprint);
    let unknown: Vec<_> =
        finders.iter().copied().filter(|finder| !known.contains_key(&finder.key())).collect();
    let say = |(finder, sound): &(&Finder, Soundness)| match sound {
        Soundness::Passes(_) => format!("passes: {}", finder.text()),
        Soundness::Useless(why) => format!("USELESS: {}: {why}", finder.text()),
    };
    let tried = in_parallel(&scratches, "as it is", &unknown, say, |scratch, finder| {
        Ok((*finder, sound(scratch, finder)?))
    })?;
    let mut sound: BTreeMap<String, Soundness> = BTreeMap::new();
    for (finder, of_finder) in tried {
        if let Soundness::Passes(took) = of_finder {
            known.insert(finder.key(), took);
        }
        sound.insert(finder.key(), of_finder);
    }
    scratch::keep_known(fingerprint, &known)?;
    sound.extend(known.into_iter().map(|(finder, took)| (finder, Soundness::Passes(took))));
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
    /// It passes, within this time.
    Passes(Duration),
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
    let built = scratch::length(&log)?;
    let start = Instant::now();
    let ended = scratch.run(finder.command(), &log, Duration::from_secs(finder.seconds_max()))?;
    let took = start.elapsed();
    let text = scratch::read(&log, built)?;
    // It may have come in the middle of a line of the test program's.
    let skipped = text.lines().find_map(|line| Some(&line[line.find("SKIPPED ")?..]));
    Ok(match (ended, skipped) {
        (Ended::Late, _) => Soundness::Useless("it does not end on the tree as it is".into()),
        (Ended::Failure { signal }, _) => {
            let what = match finding::judge(finder, signal, &text) {
                Ok(found) => found,
                Err(why) => format!("{why}: {}", finding::tail(&text)),
            };
            Soundness::Useless(format!("it fails on the tree as it is: {what}"))
        }
        (Ended::Success, _) if runs(finder.kind, &text) == 0 => {
            Soundness::Useless("it runs nothing".into())
        }
        (Ended::Success, Some(line)) => Soundness::Useless(line.to_owned()),
        (Ended::Success, None) => Soundness::Passes(took),
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
    let limit = Duration::from_secs(canary.seconds.unwrap_or(SECONDS_MAX));
    match sound.get(&finder.key()) {
        Some(&Soundness::Passes(took)) if canary.hangs && took > limit / HANG_FACTOR => {
            return Ok(invalid(format!(
                "the machine is too slow to tell: {:.1} s without the bug, and {:.0} s are a hang",
                took.as_secs_f64(),
                limit.as_secs_f64()
            )));
        }
        Some(Soundness::Passes(_)) => {}
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
    let built_bytes = scratch::length(&log)?;
    let start = Instant::now();
    let ended = scratch.run(finder.command(), &log, limit)?;
    let took = start.elapsed();
    drop(mutated);
    let text = scratch::read(&log, built_bytes)?;
    let (verdict, how) = match ended {
        Ended::Success => (Verdict::Survived, finder.text()),
        Ended::Failure { signal } => match finding::judge(finder, signal, &text) {
            Ok(found) => (Verdict::Found, found),
            Err(why) => {
                let tail = finding::tail(&text);
                (Verdict::Invalid, format!("{why}; the end of {}: {tail}", log.display()))
            }
        },
        // Cargo may have waited for another cargo.
        Ended::Late if !text.contains("Running ") => {
            (Verdict::Invalid, format!("it did not begin: {}", finding::tail(&text)))
        }
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

/// Tests that passed or failed, or runs of the simulation.
fn runs(kind: Kind, text: &str) -> u64 {
    if kind != Kind::Sim {
        let summary = Results::of(text).finish();
        return u64::from(summary.passed) + u64::from(summary.failed);
    }
    let of_line = |line: &str| match line.trim().split('\t').collect::<Vec<_>>()[..] {
        ["sim", "scenario", _, runs, ..] => runs.parse::<u64>().unwrap_or(0),
        _ => 0,
    };
    text.lines().map(of_line).sum()
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
/// What hangs takes that many times as long as it takes without the bug.
const HANG_FACTOR: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_was_run() {
        let tests = "running 3 tests\ntest b ... ignored\n\
                     test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured\n";
        assert_eq!(runs(Kind::Test, tests), 2);
        assert_eq!(runs(Kind::Sim, tests), 0);
        assert_eq!(runs(Kind::Sim, "sim\tscenario\techo\t20\t30\t400\n"), 20);
        let none = "running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured\n";
        assert_eq!(runs(Kind::Loom, none), 0);
    }
}
