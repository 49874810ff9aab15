//! `cargo xtask soak`: a mixed load for minutes over real sockets between real processes, which is flat or fails.
//!
//! ```text
//! run ─► trial (an engine) ─► process: server ─► services
//!   │      │ every second     process: clients, one of each kind; the one that is killed again and again
//!   │      ▼
//!   │    samples (census from within, footprint from outside)
//!   ▼      ▼
//! report ◄─ verdict: always, trends after a warm-up, what is left at the end
//! ```
//!
//! Every message is numbered and stamped for its connection and direction ([`stamp`]), and checked by whoever
//! receives it. A connection first says whose it is and how it means to end ([`introduction`]); any other error, a
//! loss, a swap or a wrong byte ends the soak at once, with client, connection and position.
//!
//! It lives in the benchmarks because it is one: processes started from the same program, histograms, plots, JSON
//! lines, a page. It is no test of `tests`: those end within seconds, and say yes or no about one behaviour.
//!
//! Both engines run one after the other. At the same time, two servers and twenty-six clients would share two
//! cores, and delays and CPU time would be those of the other load.
//!
//! The server is not replaced (hot restart) while it is loaded: a new process has a state of its own, so no figure
//! of a run could be compared from part to part. `tests/tests/it/restart` loads restarts.

mod census;
mod clients;
mod control;
mod introduction;
mod order;
mod plot;
mod process;
mod report;
mod server;
mod services;
mod stamp;
mod trial;
mod verdict;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use self::{
    order::Engine,
    report::Report,
    trial::{Record, Trial},
};
use crate::{
    interrupt::Interrupt,
    machine::Machine,
    report::{check_writable, say, write},
    runner,
};

pub(crate) use self::order::run as run_role;

/// The command line of a soak.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How long each engine is loaded
    #[arg(long, value_name = "M", default_value = "3", value_parser = positive_minutes)]
    minutes: f64,
    /// Which engine; both run one after the other
    #[arg(long, value_name = "ENGINE", default_value = "both")]
    engine: Engines,
    /// Decides what the clients choose from; chosen by chance, and printed, if it is not given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write the JSON lines to this file instead of target/soak/soak.jsonl, and the page beside it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Engines {
    Uring,
    Epoll,
    Both,
}

impl Engines {
    fn chosen(self) -> &'static [Engine] {
        match self {
            Self::Uring => &[Engine::Uring],
            Self::Epoll => &[Engine::Epoll],
            Self::Both => &[Engine::Uring, Engine::Epoll],
        }
    }
}

fn positive_minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.05..=1440.0).contains(&minutes) => Ok(minutes),
        _ => Err("expected minutes from 0.05 to 1440".to_owned()),
    }
}

/// Soaks the chosen engines. An error if one was not flat.
pub(crate) fn run(options: &Options) -> Result<()> {
    let json = match &options.json {
        Some(path) => path.clone(),
        None => runner::directory("soak")?.join("soak.jsonl"),
    };
    let page = json.with_extension("html");
    ensure!(page != json, "{}: the page would be written there", json.display());
    // Whether they can be written is to be known now.
    check_writable(&json)?;
    check_writable(&page)?;
    let interrupt = Interrupt::install()?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    say(&format!("seed {seed}: the same choices again with --seed {seed}"))?;
    let mut report = Report::new(Machine::inspect(), seed, options.minutes);
    for &engine in options.engine.chosen() {
        let length = Duration::from_secs_f64(options.minutes * 60.0);
        let trial = Trial { engine, seed, length };
        let progress = progress(engine, length);
        let mut samples = Vec::new();
        let outcome = trial.run(&interrupt, &progress, &mut samples);
        progress.finish_and_clear();
        match outcome {
            Ok(record) => report.add(&Record { samples, ..record }),
            Err(error) => report.add_failure(engine, format!("{error:#}"), samples),
        }
        if interrupt.is_raised() {
            break;
        }
    }
    if interrupt.is_raised() && report.is_empty() {
        bail!("interrupted before anything was measured; all processes have been ended");
    }
    let written = report
        .lines()
        .and_then(|lines| write(&json, &lines))
        .and_then(|()| report.page())
        .and_then(|text| write(&page, &text));
    report.print()?;
    written?;
    say(&format!("\n{}\n{}", json.display(), page.display()))?;
    if interrupt.is_raised() {
        bail!(
            "interrupted; all processes have been ended, and the report covers what was until then"
        );
    }
    match report.complaints() {
        0 => Ok(()),
        count => bail!("{count} figures are not flat, or failed; seed {seed}"),
    }
}

fn progress(engine: Engine, length: Duration) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} s {msg}")
        .expect("the template is a constant");
    ProgressBar::new(length.as_secs()).with_style(style).with_prefix(engine.name())
}
