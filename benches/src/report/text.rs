//! The tables, and how figures are written in them.

use std::fmt::Write;

use comfy_table::{Cell as TableCell, CellAlignment, Table, presets};

use super::Report;
use crate::{
    scenario::{Scenario, Workload},
    stats::Verdict,
    summary::{Cell, reference},
};

/// Everything as text.
pub(super) fn tables(report: &Report) -> String {
    let mut out = String::new();
    for (name, text) in report.header() {
        // Writing to a string can't fail.
        let _ = writeln!(out, "{name:<14}{text}");
    }
    for scenario in Scenario::ALL {
        let mut title = Some(format!("\n{}: {}", scenario.name(), scenario.about()));
        for (workload, cells) in report.summary.workloads(scenario) {
            if let Some(title) = title.take() {
                let _ = writeln!(out, "{title}");
            }
            if scenario == Scenario::Sweep {
                let _ = writeln!(out, "{} connections", workload.connections);
            }
            let _ = writeln!(out, "{}", table(workload, cells));
        }
    }
    let _ = write!(out, "\n{}", LEGEND.join("\n"));
    if !report.targets.is_empty() {
        let _ = writeln!(out, "\n\nTargets");
        for target in &report.targets {
            let (mark, figure) = target.outcome();
            let _ = writeln!(out, "  {mark:<7}  {:<66} {figure}", target.promise);
        }
    }
    for failure in &report.failures {
        let _ = write!(out, "\nFAILED: {failure}");
    }
    out
}

/// What the columns mean; also under the page's tables.
pub(super) const LEGEND: [&str; 8] = [
    "vs epoll: messages/s (and p50 in pingpong) as a multiple of hand-written epoll, the better",
    "of level- and edge-triggered; spinning contenders (+spin) are compared with spinning epoll,",
    "the one named ringpost, which spins for a while before it sleeps, with sleeping epoll.",
    "More than one is better, a difference under 15 % is a tie. +-: half the range of the",
    "repetitions. CPU: process time per message, kernel included. One way, the server is the",
    "receiver. far: repetitions that ran while the cores were far apart, left out of the medians",
    "unless somebody in the scenario has no others; used: the medians are of these. What was near",
    "is not compared with what was far.",
];

/// Column headings.
pub(super) fn headings(workload: &Workload) -> Vec<&'static str> {
    let mut headings = vec!["contender", "messages/s", "+-"];
    if workload.is_one_way() {
        headings.push("GB/s");
    } else {
        headings.extend(["p50 µs", "p99 µs", "p99.9 µs"]);
    }
    headings.extend(["server CPU ns", "client CPU ns", "calls/message", "vs epoll"]);
    if workload.scenario == Scenario::Pingpong {
        headings.push("p50 vs epoll");
    }
    headings.push("far");
    headings
}

/// The figures of one contender, in the order of the headings.
pub(super) fn figures(workload: &Workload, cell: &Cell, cells: &[Cell]) -> Vec<String> {
    let mut row = vec![
        cell.contender.clone(),
        count(cell.messages_per_s),
        format!("{:.0} %", cell.spread * 100.0),
    ];
    if workload.is_one_way() {
        row.push(format!("{:.2}", cell.bytes_per_s / 1e9));
    } else {
        row.extend([cell.p50_ns, cell.p99_ns, cell.p999_ns].map(microseconds));
    }
    row.push(nanoseconds(cell.server_cpu_ns));
    row.push(nanoseconds(cell.client_cpu_ns));
    row.push(cell.syscalls.map_or_else(nothing, |calls| {
        if calls < 0.1 { format!("{calls:.4}") } else { format!("{calls:.2}") }
    }));
    let reference = reference(cells, cell);
    row.push(reference.map_or_else(nothing, |epoll| {
        if epoll.contender == cell.contender {
            return "reference".to_owned();
        }
        verdict(Verdict::of(cell.messages_per_s / epoll.messages_per_s))
    }));
    if workload.scenario == Scenario::Pingpong {
        let ratio = reference.and_then(|epoll| Some(epoll.p50_ns? / cell.p50_ns?));
        row.push(ratio.map_or_else(nothing, |ratio| {
            if reference.is_some_and(|epoll| epoll.contender == cell.contender) {
                return "reference".to_owned();
            }
            verdict(Verdict::of(ratio))
        }));
    }
    let all = cell.near_samples + cell.far_samples;
    row.push(match cell.far_samples {
        0 => String::new(),
        far if far == all => "ALL".to_owned(),
        far if cell.far => format!("{far} of {all}, used"),
        far => format!("{far} of {all}"),
    });
    row
}

fn table(workload: &Workload, cells: &[Cell]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(headings(workload));
    for cell in cells {
        let figures = figures(workload, cell, cells);
        table.add_row(figures.into_iter().enumerate().map(|(column, figure)| {
            let alignment = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
            TableCell::new(figure).set_alignment(alignment)
        }));
    }
    table
}

fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Win(ratio) => format!("win {ratio:.2}"),
        Verdict::Tie(ratio) => format!("tie {ratio:.2}"),
        Verdict::Loss(ratio) => format!("LOSS {ratio:.2}"),
    }
}

/// Three significant digits with a unit.
pub(crate) fn count(value: f64) -> String {
    match value {
        value if value >= 1e7 => format!("{:.1} M", value / 1e6),
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e5 => format!("{:.0} k", value / 1e3),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value if value >= 1e3 => format!("{:.2} k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

fn microseconds(value_ns: Option<f64>) -> String {
    value_ns.map_or_else(nothing, |value| {
        let value = value / 1e3;
        if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
    })
}

fn nanoseconds(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn nothing() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_three_digits() {
        let wanted = [
            (68_900_000.0, "68.9 M"),
            (4_020_000.0, "4.02 M"),
            (382_400.0, "382 k"),
            (19_260.0, "19.3 k"),
            (1_234.0, "1.23 k"),
            (12.0, "12"),
        ];
        for (value, text) in wanted {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn losses_are_as_plain_as_wins() {
        assert_eq!(verdict(Verdict::of(1.5)), "win 1.50");
        assert_eq!(verdict(Verdict::of(0.5)), "LOSS 0.50");
        assert_eq!(verdict(Verdict::of(1.0)), "tie 1.00");
    }
}
