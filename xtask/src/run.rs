//! Running other programs: said before, streamed meanwhile, and with an end.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use xshell::{Cmd, Shell};

/// A shell in the root of the workspace.
pub(crate) fn shell() -> Result<Shell> {
    let shell = Shell::new()?;
    shell.change_dir(root());
    Ok(shell)
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let package = env!("CARGO_MANIFEST_DIR");
    PathBuf::from(package).parent().expect("xtask is a folder of the workspace").to_path_buf()
}

/// Where a package of the workspace is, if there is one with this name.
pub(crate) fn folder_of(package: &str) -> PathBuf {
    match package {
        "ringpost-bench" => root().join("benches"),
        "ringpost-tests" => root().join("tests"),
        "xtask" => root().join("xtask"),
        other => root().join("crates").join(other),
    }
}

/// A variable and its value that give the compiler these flags, behind those that the environment has for it.
pub(crate) fn compiler_flags(flags: &str) -> (&'static str, String) {
    let given = |name| std::env::var(name).ok();
    join_flags(given("CARGO_ENCODED_RUSTFLAGS"), given("RUSTFLAGS"), flags)
}

/// Cargo looks only at the first of the two that is set, even to nothing.
fn join_flags(
    encoded: Option<String>,
    plain: Option<String>,
    flags: &str,
) -> (&'static str, String) {
    if let Some(given) = encoded {
        let words = given.split('\x1f').filter(|word| !word.is_empty());
        let words: Vec<&str> = words.chain(flags.split_whitespace()).collect();
        return ("CARGO_ENCODED_RUSTFLAGS", words.join("\x1f"));
    }
    let given = plain.unwrap_or_default();
    ("RUSTFLAGS", format!("{given} {flags}").trim().to_owned())
}

/// Runs a command to its end and fails if it does, or if it takes longer than `limit`.
pub(crate) fn run(command: Cmd<'_>, limit: Duration) -> Result<()> {
    let text = command.to_string();
    let status = observe(command, limit, |_| {})?;
    if !status.success() {
        bail!("`{text}` failed: {status}");
    }
    Ok(())
}

/// Runs a command to its end, passes its output through, and shows each line of it to `observer`.
///
/// Fails if the command cannot be started, or takes longer than `limit`, upon which it and all it
/// started are killed; the error is a [`TookTooLong`] then.
pub(crate) fn observe(
    command: Cmd<'_>,
    limit: Duration,
    observer: impl FnMut(&str),
) -> Result<ExitStatus> {
    watch(command, limit, Echo::Yes, observer)
}

/// As [`observe`], but shows nothing of what the command prints.
pub(crate) fn observe_silently(
    command: Cmd<'_>,
    limit: Duration,
    observer: impl FnMut(&str),
) -> Result<ExitStatus> {
    watch(command, limit, Echo::No, observer)
}

/// A command was killed at the end of its time.
#[derive(Debug)]
pub(crate) struct TookTooLong {
    command: String,
    limit: Duration,
}

impl fmt::Display for TookTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, limit } = self;
        write!(f, "`{command}` took longer than {} s and was killed", limit.as_secs())
    }
}

impl std::error::Error for TookTooLong {}

/// Whether what a command prints is printed here as well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Echo {
    Yes,
    No,
}

/// What happens while a command runs.
enum Event {
    /// It printed a line, which ends as it did.
    Line(Stream, Vec<u8>),
    /// It ended; who has its output may go on printing.
    Ended(std::io::Result<ExitStatus>),
}

#[derive(Clone, Copy)]
enum Stream {
    Output,
    Errors,
}

fn watch(
    command: Cmd<'_>,
    limit: Duration,
    echo: Echo,
    mut observer: impl FnMut(&str),
) -> Result<ExitStatus> {
    let text = command.to_string();
    println!("$ {text}");
    let mut child = Command::from(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{text}`"))?;
    let id = child.id();
    let stdout = child.stdout.take().context("piped above")?;
    let stderr = child.stderr.take().context("piped above")?;
    let (sender, events) = mpsc::sync_channel(EVENTS_WAITING_MAX);
    // Nobody joins these: what the command left behind may keep its output open for ever.
    let (of_output, of_errors) = (sender.clone(), sender.clone());
    thread::spawn(move || pass(stdout, Stream::Output, &of_output));
    thread::spawn(move || pass(stderr, Stream::Errors, &of_errors));
    let has_ended = Arc::new(AtomicBool::new(false));
    let says_so = Arc::clone(&has_ended);
    thread::spawn(move || {
        let status = child.wait();
        says_so.store(true, Ordering::Release);
        sender.send(Event::Ended(status))
    });

    let mut line = |stream, line: &[u8]| {
        if echo == Echo::Yes {
            print(stream, line);
        }
        observer(String::from_utf8_lossy(line).trim_end());
    };
    let deadline = Deadline::after(limit);
    let status = loop {
        match events.recv_timeout(deadline.left()) {
            Ok(Event::Ended(status)) => break Some(status?),
            Ok(Event::Line(stream, bytes)) => line(stream, &bytes),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("nobody waits for `{text}`"),
        }
        // Asked after each line, as some print all the time. One that has ended is late only because its lines
        // were slow to be read.
        if deadline.is_over() && !has_ended.load(Ordering::Acquire) {
            break None;
        }
    };
    if status.is_none() {
        kill_tree(id);
    }
    if !read_on(&events, line) {
        eprintln!("what `{text}` started keeps its output open, and is not waited for");
    }
    status.ok_or_else(|| TookTooLong { command: text, limit }.into())
}

/// Passes on what was printed before the end. False if there was no end of it.
fn read_on(events: &Receiver<Event>, mut line: impl FnMut(Stream, &[u8])) -> bool {
    // Whoever reads our own output may make us wait, and that must not cost lines: only waiting for others counts.
    let mut wait_left = READ_ON_MAX;
    let mut bytes_left = READ_ON_BYTES_MAX;
    while bytes_left > 0 {
        let start = Instant::now();
        match events.recv_timeout(wait_left) {
            Ok(Event::Line(stream, bytes)) => {
                wait_left = wait_left.saturating_sub(start.elapsed());
                bytes_left = bytes_left.saturating_sub(bytes.len());
                line(stream, &bytes);
            }
            Ok(Event::Ended(_)) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
    false
}

fn pass(from: impl Read, stream: Stream, events: &SyncSender<Event>) {
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        let read = from.read_until(b'\n', &mut line);
        if !matches!(read, Ok(length) if length > 0) {
            return;
        }
        if events.send(Event::Line(stream, line)).is_err() {
            return;
        }
    }
}

/// Whoever reads our output may have gone; the command is still to be observed.
fn print(stream: Stream, line: &[u8]) {
    let _ = match stream {
        Stream::Output => {
            std::io::stdout().write_all(line).and_then(|()| std::io::stdout().flush())
        }
        Stream::Errors => std::io::stderr().write_all(line),
    };
}

/// How long a command's output is waited for when the command has ended.
const READ_ON_MAX: Duration = Duration::from_secs(2);

/// More than the pipes of a command can hold at its end.
const READ_ON_BYTES_MAX: usize = 1 << 20;

/// Lines that are read ahead.
const EVENTS_WAITING_MAX: usize = 1024;

/// A moment after which nothing may run any more, shared by several commands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }
}

/// Kills a process and its descendants. A process group would be simpler, but would take Ctrl-C away
/// from the commands.
pub(crate) fn kill_tree(root: u32) {
    let parents = parents();
    let mut condemned = vec![root];
    let mut next = 0;
    while let Some(&process) = condemned.get(next) {
        condemned.extend(parents.iter().filter(|&(_, &of)| of == process).map(|(&id, _)| id));
        next += 1;
    }
    for process in condemned {
        if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The parent of each process.
fn parents() -> HashMap<u32, u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            // "id (name) state parent ...", where the name may hold anything.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((id, parent))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xshell::cmd;

    #[test]
    fn passes_lines_and_status() {
        let shell = shell().expect("shell");
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; exit 3";
        let status = observe(cmd!(shell, "sh -c {script}"), Duration::from_secs(10), |line| {
            lines.push(line.to_owned());
        });
        assert_eq!(status.expect("starts").code(), Some(3));
        lines.sort();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn ends_what_does_not_end() {
        let shell = shell().expect("shell");
        let start = Instant::now();
        let script = "sleep 61 & sleep 62; wait";
        let error = run(cmd!(shell, "sh -c {script}"), Duration::from_millis(200));
        let error = error.expect_err("killed");
        assert!(error.is::<TookTooLong>());
        let text = error.to_string();
        assert!(text.contains("took longer than 0 s and was killed"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(10), "the background process lives on");
    }

    /// Each script leaves a process that has another parent by the end, and keeps the output.
    #[test]
    fn does_not_wait_for_what_is_left_behind() {
        let shell = shell().expect("shell");
        let start = Instant::now();
        let mut lines = Vec::new();
        let script = "(sleep 20 &); echo one";
        let status = observe(cmd!(shell, "sh -c {script}"), Duration::from_secs(10), |line| {
            lines.push(line.to_owned());
        });
        assert!(status.expect("starts").success());
        assert_eq!(lines, ["one"]);

        let script = "(sleep 20 &); sleep 63";
        let error = run(cmd!(shell, "sh -c {script}"), Duration::from_millis(200));
        assert!(error.expect_err("killed").is::<TookTooLong>());

        let script = "(yes | head -c 100000000 &); exec sleep 0.1";
        observe_silently(cmd!(shell, "sh -c {script}"), Duration::from_secs(10), |_| {})
            .expect("starts");
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    }

    #[test]
    fn what_prints_all_the_time_has_an_end() {
        let shell = shell().expect("shell");
        let error = observe_silently(cmd!(shell, "yes"), Duration::from_millis(300), |_| {});
        assert!(error.expect_err("killed").is::<TookTooLong>());
    }

    #[test]
    fn flags_are_added_where_cargo_looks() {
        let some = |text: &str| Some(text.to_owned());
        let plain = |flags: &str| ("RUSTFLAGS", flags.to_owned());
        let encoded = |flags: &str| ("CARGO_ENCODED_RUSTFLAGS", flags.to_owned());
        assert_eq!(join_flags(None, None, "--cfg loom"), plain("--cfg loom"));
        assert_eq!(join_flags(None, some("-g"), "--cfg loom"), plain("-g --cfg loom"));
        assert_eq!(join_flags(some(""), some("-g"), "--cfg loom"), encoded("--cfg\x1floom"));
        assert_eq!(join_flags(some("-g\x1f-O"), None, "-Zx"), encoded("-g\x1f-O\x1f-Zx"));
    }
}
