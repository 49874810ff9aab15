//! What a run leaves: tables on the terminal, JSON lines, and a page with plots.

pub(crate) mod page;
pub(crate) mod plot;
pub(crate) mod text;

use std::{fmt::Write, fs, path::Path, time::Duration};

use anyhow::{Context, Result};

use crate::{
    contenders, machine::Machine, results::Line, scenario::Scenario, summary::Summary,
    targets::Target,
};

/// Everything that is reported.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) command: String,
    pub(crate) warm_up: Duration,
    /// Of the measured phases: the longest, and the shortest.
    pub(crate) measured_range: [Duration; 2],
    pub(crate) repetitions: usize,
    /// How system calls were counted, or why not.
    pub(crate) counting: String,
    pub(crate) probe_best_ns: Option<f64>,
    pub(crate) targets: Vec<Target>,
    pub(crate) failures: Vec<String>,
    pub(crate) summary: Summary,
}

impl Report {
    /// Name and text of the lines above the figures.
    fn header(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::from(self.machine.lines());
        let probe = self.probe_best_ns.map_or_else(
            || "not possible with one processor".to_owned(),
            |best| format!("shared-memory round trip {best:.0} ns at best; more than twice is far"),
        );
        lines.push(("Cores", probe));
        let measured = match self.measured_range.map(|time| time.as_millis()) {
            [longest, shortest] if longest == shortest => format!("{longest} ms"),
            [longest, shortest] => format!("{longest} to {shortest} ms (to end in time)"),
        };
        lines.push((
            "Samples",
            format!(
                "{} each, interleaved, medians shown; {} ms warm-up, {measured} measured",
                self.repetitions,
                self.warm_up.as_millis(),
            ),
        ));
        lines.push(("System calls", format!("{}, in a separate phase", self.counting)));
        lines.push(("Repeat", self.command.clone()));
        lines
    }
}

/// Prints tables, failures and targets.
pub(crate) fn print(report: &Report) {
    println!("{}", text::tables(report));
}

/// Prints scenarios and contenders.
pub(crate) fn list() {
    println!("Scenarios:");
    for scenario in Scenario::ALL {
        println!("  {:<18}{}", scenario.name(), scenario.about());
    }
    println!("Contenders:");
    for contender in contenders::all() {
        println!("  {:<18}{}", contender.name(), contender.about());
        let names: Vec<_> = contender.scenarios().iter().map(|scenario| scenario.name()).collect();
        println!("  {:<18}in {}", "", names.join(", "));
    }
}

/// Writes one JSON object per sample.
pub(crate) fn write_lines(path: &Path, lines: &[Line]) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{}", serde_json::to_string(line)?)?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Writes the page.
pub(crate) fn write_page(path: &Path, report: &Report) -> Result<()> {
    fs::write(path, page::html(report)?).with_context(|| format!("writing {}", path.display()))
}
