//! Takes all samples of a plan, then writes the report.

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    cli::Options,
    contenders::Contender,
    interrupt::Interrupt,
    machine::Machine,
    pace::Pace,
    plan::{Plan, Round},
    probe::Probe,
    report::{self, Report},
    results::Line,
    sample::Sampler,
    summary::Summary,
    syscalls::{self, SyscallCounter},
    targets,
};

/// Measures what the options ask for.
pub(crate) fn run(options: &Options) -> Result<()> {
    let plan = Plan::new(options)?;
    // Whether they can be written is to be known now.
    let directory = directory("bench")?;
    let json = options.json.clone().unwrap_or_else(|| directory.join("results.jsonl"));
    let page = directory.join("report.html");
    report::check_writable(&json)?;
    report::check_writable(&page)?;
    let interrupt = Interrupt::install()?;
    // Its number may be known where it can't be counted.
    let counted = syscalls::tracepoint().and_then(|number| {
        let own = i32::try_from(std::process::id())?;
        SyscallCounter::attach(number, own).map(|_| number)
    });
    let (tracepoint, counting) = match counted {
        Ok(number) => (Some(number), "perf counter on raw_syscalls:sys_enter".to_owned()),
        Err(error) => (None, format!("not counted ({error:#})")),
    };
    let samples = plan.samples();
    let mut run = Run {
        sampler: Sampler {
            timing: plan.pace.timing(),
            tracepoint,
            interrupt: interrupt.clone(),
            probe: Probe::new(),
        },
        start: Instant::now(),
        samples_left: samples,
        retries_left: plan.retries,
        pace: plan.pace,
        lines: Vec::new(),
        failures: Vec::new(),
        progress: progress(samples),
    };
    let mut interrupted = false;
    for round in &plan.rounds {
        run.round(round, plan.retries_per_sample);
        interrupted = interrupt.is_raised();
        if interrupted {
            break;
        }
    }
    run.progress.finish_and_clear();
    if interrupted && run.lines.is_empty() {
        bail!("interrupted before anything was measured");
    }
    run.mark_far();

    let summary = Summary::new(&run.lines);
    let report = Report {
        machine: Machine::inspect(),
        command: command(),
        measured_range: run.pace.measured_range(),
        warm_up: run.sampler.timing.warm_up,
        repetitions: options.repetitions,
        counting,
        probe_best_ns: run.sampler.probe.best_ns(),
        targets: targets::check(&summary),
        failures: run.failures,
        summary,
    };
    let written =
        report::write_lines(&json, &run.lines).and_then(|()| report::write_page(&page, &report));
    report::print(&report)?;
    written?;
    report::say(&format!("\n{}\n{}", json.display(), page.display()))?;
    if interrupted {
        bail!("interrupted; the report covers what was measured until then");
    }
    if !report.failures.is_empty() {
        bail!("{} samples failed", report.failures.len());
    }
    Ok(())
}

#[derive(Debug)]
struct Run {
    sampler: Sampler,
    pace: Pace,
    start: Instant,
    samples_left: usize,
    retries_left: usize,
    lines: Vec<Line>,
    failures: Vec<String>,
    progress: ProgressBar,
}

impl Run {
    /// Takes the samples of a workload, contender after contender, then again.
    fn round(&mut self, round: &Round, retries_per_sample: usize) {
        for repetition in 0..round.repetitions {
            // The same for all contenders of a repetition.
            let left = self.samples_left.saturating_add(self.retries_left);
            self.pace.adapt(self.start.elapsed(), left);
            self.sampler.timing = self.pace.timing();
            for contender in &round.contenders {
                let result = self.sample(round, *contender, repetition, retries_per_sample);
                if self.sampler.interrupt.is_raised() {
                    return;
                }
                if let Err(error) = result {
                    self.failures.push(format!(
                        "{} in {}: {error:#}",
                        contender.name(),
                        round.workload.scenario.name()
                    ));
                }
                self.samples_left = self.samples_left.saturating_sub(1);
                self.progress.inc(1);
            }
        }
    }

    fn sample(
        &mut self,
        round: &Round,
        contender: &dyn Contender,
        repetition: usize,
        retries: usize,
    ) -> Result<()> {
        let name = contender.name();
        let workload = &round.workload;
        self.progress.set_message(format!("{} {name}", workload.scenario.name()));
        let mut attempts = 0;
        let sample = loop {
            attempts += 1;
            let sample = self.sampler.take(name, workload)?;
            self.pace.count();
            let again = self.sampler.probe.is_far(sample.probes_ns)
                && attempts <= retries
                && self.retries_left > 0
                && self.pace.has_time(self.start.elapsed());
            if !again {
                break sample;
            }
            self.retries_left -= 1;
        };
        let line = Line::new(workload, name, repetition, attempts, sample.probes_ns, sample.report);
        self.lines.push(line);
        Ok(())
    }

    /// Marks the samples that were far, now that the best probe of the whole run is known.
    fn mark_far(&mut self) {
        for line in &mut self.lines {
            line.far = self.sampler.probe.is_far([line.probe_before_ns, line.probe_after_ns]);
        }
    }
}

fn progress(samples: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} (eta {eta}) {msg}")
        .expect("the template is a constant");
    // Drawn between samples only: a ticking thread would disturb them.
    ProgressBar::new(samples as u64).with_style(style).with_elapsed(Duration::ZERO)
}

/// A directory in the target directory that this program was built in.
pub(crate) fn directory(name: &str) -> Result<PathBuf> {
    let program = env::current_exe().context("own path")?;
    let target = program.ancestors().nth(2).context("the program lies in a target directory")?;
    let directory = target.join(name);
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// How to do the same again, for a shell.
fn command() -> String {
    let quoted = |word: OsString| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,%@".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let words = env::args_os().skip(1).map(quoted);
    words.fold("cargo xtask bench".to_owned(), |line, word| line + " " + &word)
}
