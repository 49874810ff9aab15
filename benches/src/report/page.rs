//! The page: one file that needs nothing else.

use std::fmt::Write;

use anyhow::Result;

use super::{
    Report,
    plot::{latency_plot, sweep_plot, throughput_plot},
    text::{LEGEND, figures, headings},
};
use crate::{contenders, scenario::Scenario};

/// The whole page.
pub(super) fn html(report: &Report) -> Result<String> {
    let mut out = String::new();
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>ringpost benchmarks</title><style>{STYLE}</style></head><body>\n\
         <h1>ringpost benchmarks</h1>\n<dl>"
    )?;
    for (name, text) in report.header() {
        write!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&text))?;
    }
    writeln!(out, "</dl>")?;
    if !report.failures.is_empty() {
        write!(out, "<h2>Failed</h2><ul>")?;
        for failure in &report.failures {
            write!(out, "<li class=\"loss\">{}</li>", escape(failure))?;
        }
        writeln!(out, "</ul>")?;
    }
    targets(&mut out, report)?;
    for scenario in Scenario::ALL {
        section(&mut out, report, scenario)?;
    }
    writeln!(out, "<p class=\"note\">{}</p><h2>Contenders</h2><dl>", escape(&LEGEND.join(" ")))?;
    for contender in contenders::all() {
        write!(out, "<dt>{}</dt><dd>{}</dd>", contender.name(), escape(contender.about()))?;
    }
    writeln!(out, "</dl></body></html>")?;
    Ok(out)
}

fn targets(out: &mut String, report: &Report) -> Result<()> {
    if report.targets.is_empty() {
        return Ok(());
    }
    write!(out, "<h2>Targets</h2><table><tr><th>target</th><th>figure</th><th></th></tr>")?;
    for target in &report.targets {
        let (word, figure) = target.outcome();
        let class = if target.reached { "win" } else { "loss" };
        write!(
            out,
            "<tr><td>{}</td><td>{figure}</td><td class=\"{class}\">{}</td></tr>",
            escape(target.promise),
            word.to_lowercase()
        )?;
    }
    writeln!(out, "</table>")?;
    Ok(())
}

fn section(out: &mut String, report: &Report, scenario: Scenario) -> Result<()> {
    let workloads: Vec<_> = report.summary.workloads(scenario).collect();
    if workloads.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>{}</h2><p>{}</p>", scenario.name(), escape(scenario.about()))?;
    if scenario == Scenario::Sweep {
        writeln!(out, "<figure>{}</figure>", sweep_plot(&workloads)?)?;
    }
    for (workload, cells) in workloads {
        if scenario == Scenario::Sweep {
            writeln!(out, "<h3>{} connections</h3>", workload.connections)?;
        } else {
            writeln!(out, "<figure>{}</figure>", throughput_plot(workload, cells)?)?;
            if let Some(plot) = latency_plot(cells)? {
                writeln!(out, "<figure>{plot}</figure>")?;
            }
        }
        write!(out, "<div class=\"wide\"><table><tr>")?;
        for heading in headings(workload) {
            write!(out, "<th>{}</th>", escape(heading))?;
        }
        write!(out, "</tr>")?;
        for cell in cells {
            write!(out, "<tr>")?;
            for figure in figures(workload, cell, cells) {
                let class = match figure.split(' ').next() {
                    Some("win") => " class=\"win\"",
                    Some("LOSS" | "ALL") => " class=\"loss\"",
                    _ => "",
                };
                write!(out, "<td{class}>{}</td>", escape(&figure))?;
            }
            write!(out, "</tr>")?;
        }
        writeln!(out, "</table></div>")?;
    }
    Ok(())
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

pub(crate) const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;background:#fff;max-width:1000px;\
margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid #d6dbe2}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1.2rem}\
dt{color:#5b6675}dd{margin:0}\
figure{margin:1rem 0}svg{max-width:100%;height:auto}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e6e9ee;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}th{color:#5b6675;font-weight:600}\
.win{color:#11703c}.loss{color:#b3261e;font-weight:600}.note{color:#5b6675}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_can_not_become_markup() {
        assert_eq!(escape("a < b & \"c\""), "a &lt; b &amp; &quot;c&quot;");
    }
}
