//! What a soak leaves: a table, JSON lines, and a page with plots.

use std::fmt::Write;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use super::{
    clients::Kind,
    order::Engine,
    plot::{Series, plot},
    trial::{Record, SERVER, Sample},
    verdict::{self, Verdict},
};
use crate::{
    machine::Machine,
    report::{
        page::{STYLE, escape},
        say,
        text::count,
    },
};

/// Everything that is reported.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    seed: u64,
    minutes: f64,
    engines: Vec<Outcome>,
}

#[derive(Debug)]
struct Outcome {
    engine: Engine,
    /// In words.
    load: String,
    verdicts: Vec<Verdict>,
    samples: Vec<Sample>,
    failure: Option<String>,
}

/// A line of the JSON file.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line<'a> {
    Sample(&'a Sample),
    Verdict {
        engine: Engine,
        #[serde(flatten)]
        verdict: &'a Verdict,
    },
    Failure {
        engine: Engine,
        reason: &'a str,
    },
}

impl Report {
    pub(crate) fn new(machine: Machine, seed: u64, minutes: f64) -> Self {
        Self { machine, seed, minutes, engines: Vec::new() }
    }

    /// Adds a trial that came to its end.
    pub(crate) fn add(&mut self, record: &Record) {
        let (before, after) = (&record.before, &record.after);
        let load = format!(
            "{} messages on {} connections at the server; {} clients killed, {} connections cut off, {} \
             without an introduction, {} descriptors at the start and {} at the end",
            count((after.messages - before.messages) as f64),
            count(after.connections_made as f64),
            record.killed,
            after.cut_off,
            after.strangers,
            before.descriptors,
            after.descriptors
        );
        self.engines.push(Outcome {
            engine: record.engine,
            load,
            verdicts: verdict::judge(record),
            samples: record.samples.clone(),
            failure: None,
        });
    }

    /// Adds a trial that failed on its way.
    pub(crate) fn add_failure(&mut self, engine: Engine, reason: String, samples: Vec<Sample>) {
        let load = "not finished".to_owned();
        let failure = Some(reason);
        self.engines.push(Outcome { engine, load, verdicts: Vec::new(), samples, failure });
    }

    /// What is not as it should be.
    pub(crate) fn complaints(&self) -> usize {
        let of = |outcome: &Outcome| {
            let verdicts = outcome.verdicts.iter();
            let bad = verdicts.filter(|verdict| verdict.complaint.is_some()).count();
            bad + usize::from(outcome.failure.is_some())
        };
        self.engines.iter().map(of).sum()
    }

    /// Whether there is no sample of any engine.
    pub(crate) fn is_empty(&self) -> bool {
        self.engines.iter().all(|outcome| outcome.samples.is_empty())
    }

    pub(crate) fn print(&self) -> Result<()> {
        let header = self.header();
        let mut lines: Vec<_> =
            header.iter().map(|(name, text)| format!("{name:<14}{text}")).collect();
        for outcome in &self.engines {
            lines.push(format!("\n{}: {}", outcome.engine.name(), outcome.load));
            if !outcome.verdicts.is_empty() {
                lines.push(table(&outcome.verdicts).to_string());
                lines.push(rest(&outcome.verdicts));
            }
            lines.extend(outcome.failure.iter().map(|failure| format!("FAILED: {failure}")));
            for verdict in &outcome.verdicts {
                if let Some(complaint) = &verdict.complaint {
                    let Verdict { process, what, .. } = verdict;
                    lines.push(format!("NOT FLAT: {process}, {what}: {complaint}"));
                }
            }
        }
        say(&lines.join("\n"))
    }

    fn header(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::from(self.machine.lines());
        lines.push(("Load", format!("{} minutes an engine, seed {}", self.minutes, self.seed)));
        lines
    }

    pub(crate) fn lines(&self) -> Result<String> {
        let mut text = String::new();
        for outcome in &self.engines {
            let engine = outcome.engine;
            for sample in &outcome.samples {
                writeln!(text, "{}", serde_json::to_string(&Line::Sample(sample))?)?;
            }
            for verdict in &outcome.verdicts {
                writeln!(text, "{}", serde_json::to_string(&Line::Verdict { engine, verdict })?)?;
            }
            if let Some(reason) = &outcome.failure {
                writeln!(text, "{}", serde_json::to_string(&Line::Failure { engine, reason })?)?;
            }
        }
        Ok(text)
    }

    pub(crate) fn page(&self) -> Result<String> {
        let mut out = String::new();
        write!(
            out,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>ringpost soak</title><style>{STYLE}</style></head><body>\n<h1>ringpost soak</h1>\n<dl>"
        )?;
        for (name, text) in self.header() {
            write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&text))?;
        }
        writeln!(out, "</dl>")?;
        for outcome in &self.engines {
            section(&mut out, outcome)?;
        }
        writeln!(out, "</body></html>")?;
        Ok(out)
    }
}

fn section(out: &mut String, outcome: &Outcome) -> Result<()> {
    writeln!(out, "<h2>{}</h2><p>{}</p>", outcome.engine.name(), escape(&outcome.load))?;
    if let Some(failure) = &outcome.failure {
        writeln!(out, "<p class=\"loss\">{}</p>", escape(failure))?;
    }
    for (title, series) in figures(&outcome.samples) {
        if let Some(picture) = plot(title, &series)? {
            writeln!(out, "<figure>{picture}</figure>")?;
        }
    }
    if outcome.verdicts.is_empty() {
        return Ok(());
    }
    write!(out, "<div class=\"wide\"><table><tr>")?;
    for heading in HEADINGS {
        write!(out, "<th>{heading}</th>")?;
    }
    write!(out, "</tr>")?;
    for verdict in &outcome.verdicts {
        let class = if verdict.complaint.is_some() { "loss" } else { "win" };
        write!(out, "<tr>")?;
        for (column, text) in row(verdict).iter().enumerate() {
            let class = if column == HEADINGS.len() - 1 { class } else { "" };
            write!(out, "<td class=\"{class}\">{}</td>", escape(text))?;
        }
        write!(out, "</tr>")?;
    }
    writeln!(out, "</table></div>")?;
    Ok(())
}

/// What is drawn, over time.
fn figures(samples: &[Sample]) -> Vec<(&'static str, Vec<Series>)> {
    let of = |process: &str| -> Vec<&Sample> {
        samples.iter().filter(|sample| sample.process == process).collect()
    };
    let (server, pingpong) = (of(SERVER), of(Kind::Pingpong.name()));
    let line = |own: &[&Sample], name: &str, value: &dyn Fn(&Sample) -> f64| Series {
        name: name.to_owned(),
        points: own.iter().map(|sample| (sample.seconds, value(sample))).collect(),
    };
    let rates = verdict::rates(&server);
    let given = |name: &str, values: &[f64]| Series {
        name: name.to_owned(),
        points: server.iter().map(|sample| sample.seconds).zip(values.iter().copied()).collect(),
    };
    let memory =
        |name: &'static str| line(&of(name), name, &|sample| sample.footprint.anonymous_kib as f64);
    let names = std::iter::once(SERVER).chain(Kind::LASTING.map(Kind::name));
    vec![
        (
            "server: descriptors and connections",
            vec![
                line(&server, "descriptors", &|s| s.census.descriptors as f64),
                line(&server, "connections", &|s| s.census.connections_open as f64),
                line(&server, "lingering", &|s| s.census.connections_lingering as f64),
            ],
        ),
        ("anonymous memory, KiB", names.map(memory).collect()),
        (
            "server: receive blocks",
            vec![
                line(&server, "free", &|s| s.census.pool_blocks_free as f64),
                line(&server, "with the engine", &|s| s.census.pool_blocks_kernel as f64),
                line(&server, "lent", &|s| s.census.pool_blocks_leased as f64),
            ],
        ),
        (
            "server: operations and timers",
            vec![
                line(&server, "operations", &|s| s.census.operations_in_flight as f64),
                line(&server, "timers", &|s| s.census.timers_pending as f64),
            ],
        ),
        ("server: messages/s", vec![given("messages/s", &rates.messages)]),
        ("server: CPU time per message, ns", vec![given("CPU ns", &rates.cpu_ns)]),
        (
            "round trip, µs",
            vec![
                line(&pingpong, "p50", &|s| s.census.p50_ns as f64 / 1e3),
                line(&pingpong, "p99", &|s| s.census.p99_ns as f64 / 1e3),
                line(&pingpong, "p99.9", &|s| s.census.p999_ns as f64 / 1e3),
            ],
        ),
    ]
}

/// Whether a verdict is worth a line on the terminal. The page and the JSON lines have all.
fn is_shown(verdict: &Verdict) -> bool {
    verdict.complaint.is_some() || SHOWN.contains(&verdict.process.as_str())
}

/// What the table leaves out, in words.
fn rest(verdicts: &[Verdict]) -> String {
    let hidden = verdicts.iter().filter(|verdict| !is_shown(verdict)).count();
    format!("and {hidden} more figures, of the other clients, which are flat")
}

fn table(verdicts: &[Verdict]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(HEADINGS);
    for verdict in verdicts.iter().filter(|verdict| is_shown(verdict)) {
        table.add_row(row(verdict).into_iter().enumerate().map(|(column, text)| {
            let is_figure = (2..5).contains(&column);
            let side = if is_figure { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(text).set_alignment(side)
        }));
    }
    table
}

fn row(verdict: &Verdict) -> [String; 6] {
    let figure = |value: f64| {
        if value.is_finite() { format!("{value:.0}") } else { String::new() }
    };
    [
        verdict.process.clone(),
        verdict.what.to_owned(),
        figure(verdict.start),
        figure(verdict.middle),
        figure(verdict.end),
        if verdict.complaint.is_some() { "NOT FLAT" } else { "flat" }.to_owned(),
    ]
}

/// Processes whose figures are on the terminal even if they are flat.
const SHOWN: [&str; 3] = [SERVER, "pingpong", "all"];
const HEADINGS: [&str; 6] = ["process", "what", "start", "middle", "end", "verdict"];
