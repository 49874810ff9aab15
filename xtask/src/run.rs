//! Running other programs: said before, streamed meanwhile, and with an end.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
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
/// started are killed.
pub(crate) fn observe(
    command: Cmd<'_>,
    limit: Duration,
    observer: impl FnMut(&str) + Send,
) -> Result<ExitStatus> {
    watch(command, limit, Echo::Yes, observer)
}

/// As [`observe`], but shows nothing of what the command prints.
pub(crate) fn observe_silently(
    command: Cmd<'_>,
    limit: Duration,
    observer: impl FnMut(&str) + Send,
) -> Result<ExitStatus> {
    watch(command, limit, Echo::No, observer)
}

/// Whether what a command prints is printed here as well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Echo {
    Yes,
    No,
}

fn watch(
    command: Cmd<'_>,
    limit: Duration,
    echo: Echo,
    mut observer: impl FnMut(&str) + Send,
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
    let observer = Mutex::new(&mut observer as &mut (dyn FnMut(&str) + Send));
    let (done, ended) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| pass(stdout, &mut std::io::stdout(), echo, &observer));
        scope.spawn(|| pass(stderr, &mut std::io::stderr(), echo, &observer));
        // Holds `done` as long as the command runs; the answer itself comes from `wait`.
        scope.spawn(move || done.send(child.wait()));
        match ended.recv_timeout(limit) {
            Ok(status) => Ok(status?),
            Err(RecvTimeoutError::Timeout) => {
                kill_tree(id);
                bail!("`{text}` took longer than {} s and was killed", limit.as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => bail!("nobody waits for `{text}`"),
        }
    })
}

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
}

fn pass(
    from: impl Read,
    to: &mut impl Write,
    echo: Echo,
    observer: &Mutex<&mut (dyn FnMut(&str) + Send)>,
) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(from.read_until(b'\n', &mut line), Ok(length) if length > 0) {
        if echo == Echo::Yes {
            // Whoever reads our output may have gone; the command is still to be observed.
            let _ = to.write_all(&line).and_then(|()| to.flush());
        }
        let text = String::from_utf8_lossy(&line);
        if let Ok(mut observer) = observer.lock() {
            observer(text.trim_end());
        }
        line.clear();
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
        let text = error.expect_err("killed").to_string();
        assert!(text.contains("took longer than 0 s and was killed"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(10), "the background process lives on");
    }
}
