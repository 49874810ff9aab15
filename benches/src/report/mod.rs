//! What a run leaves: tables on the terminal, JSON lines, and a page with plots.

pub(crate) mod page;
pub(crate) mod plot;
pub(crate) mod text;

use std::{
    ffi::OsString,
    fmt::Write,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

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
pub(crate) fn print(report: &Report) -> Result<()> {
    say(&text::tables(report))
}

/// Prints a text. Whoever no longer reads it may do so.
pub(crate) fn say(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("printing"),
        _ => Ok(()),
    }
}

/// Prints scenarios and contenders.
pub(crate) fn list() -> Result<()> {
    let mut lines = vec!["Scenarios:".to_owned()];
    for scenario in Scenario::ALL {
        lines.push(format!("  {:<21}{}", scenario.name(), scenario.about()));
    }
    lines.push("Contenders:".to_owned());
    for contender in contenders::all() {
        lines.push(format!("  {:<21}{}", contender.name(), contender.about()));
        let names: Vec<_> = contender.scenarios().iter().map(|scenario| scenario.name()).collect();
        lines.push(format!("  {:<21}in {}", "", names.join(", ")));
    }
    say(&lines.join("\n"))
}

/// Writes one JSON object per sample.
pub(crate) fn write_lines(path: &Path, lines: &[Line]) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{}", serde_json::to_string(line)?)?;
    }
    write(path, &text)
}

/// Writes the page.
pub(crate) fn write_page(path: &Path, report: &Report) -> Result<()> {
    write(path, &page::html(report)?)
}

/// Makes sure that a file can be written later, and leaves what it holds.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).with_context(|| format!("writing {}", path.display()))
}

/// Writes a file whole, or leaves what it held. What is no file, or is reached by a link (a pipe, a terminal,
/// `/dev/stdout`), or lies where no other can be made, is written in place.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    if is_file && replace(path, text).is_ok() {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Puts a new file with this text in the place of one, with its permissions.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = OsString::from(path);
    beside.push(".new");
    let replaced = fs::write(&beside, text)
        .and_then(|()| fs::set_permissions(&beside, fs::metadata(path)?.permissions()))
        .and_then(|()| fs::rename(&beside, path));
    replaced.inspect_err(|_| {
        // There may be none.
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_written_whole_or_left() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("results.jsonl");
        check_writable(&path)?;
        write(&path, "first")?;
        check_writable(&path)?;
        assert_eq!(fs::read_to_string(&path)?, "first");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        write(&path, "second")?;
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(&path)?, "second");
        assert_eq!(fs::read_dir(directory.path())?.count(), 1, "nothing beside it");
        // Not the link itself.
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link)?;
        write(&link, "third")?;
        assert!(fs::symlink_metadata(&link)?.is_symlink());
        assert_eq!(fs::read_to_string(&path)?, "third");
        let missing = directory.path().join("none/results.jsonl");
        for error in [check_writable(&missing), write(&missing, "x")] {
            let text = format!("{:#}", error.expect_err("there is no such directory"));
            assert!(text.contains("none/results.jsonl"), "{text}");
        }
        Ok(())
    }
}
