//! The processes of a soak, seen from the one that started them. A dropped one is ended, by its id.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::{
    census::Census,
    order::{Order, Said, told},
};
use crate::{interrupt::Interrupt, process::OWN_PROGRAM, sys::ProcessClock};

/// How often a wait looks around.
const PATIENCE: Duration = Duration::from_millis(5);
/// Longest wait for a process that has nothing else to do than to answer.
pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

/// A running process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    input: Option<ChildStdin>,
    said: Receiver<String>,
    errors: Option<JoinHandle<String>>,
    clock: ProcessClock,
    /// Seen by the parent, or it would end it again.
    ended: bool,
}

/// What the kernel says about a process.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Footprint {
    pub(crate) resident_kib: u64,
    pub(crate) anonymous_kib: u64,
    pub(crate) locked_kib: u64,
    pub(crate) pinned_kib: u64,
    pub(crate) threads: u64,
    /// CPU time since its start.
    pub(crate) cpu_ns: u64,
}

impl Process {
    pub(crate) fn start(name: &str, order: &Order) -> Result<Self> {
        let mut child = Command::new(OWN_PROGRAM)
            .arg("soak-role")
            .arg(serde_json::to_string(order)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let (sender, said) = channel();
        let output = child.stdout.take().context("pipe to the child")?;
        // Both threads end with the child.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let errors = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = String::new();
                // What can't be read is missing from an error message, that is all.
                let _ = stderr.read_to_string(&mut text);
                text
            })
        });
        let input = child.stdin.take();
        let pid = i32::try_from(child.id()).context("process id")?;
        let clock = ProcessClock::of(pid).with_context(|| format!("CPU clock of {name}"));
        let clock = match clock {
            Ok(clock) => clock,
            Err(error) => {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        Ok(Self { name: name.to_owned(), child, input, said, errors, clock, ended: false })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("the process has been let go")?;
        // A process that has ended says why on its standard error; that is asked for later.
        let _ = writeln!(input, "{line}");
        Ok(())
    }

    /// What it says next.
    pub(crate) fn hear(&mut self, within: Duration, interrupt: &Interrupt) -> Result<Said> {
        let end = Instant::now() + within;
        loop {
            interrupt.check()?;
            match self.said.recv_timeout(PATIENCE) {
                Ok(line) => {
                    return serde_json::from_str(&line)
                        .with_context(|| format!("{} said {line:?}", self.name));
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} did not answer within {within:?}: it hangs", self.name)
                }
                Err(RecvTimeoutError::Disconnected) => bail!(self.reason().unwrap_or_default()),
            }
        }
    }

    /// Asks for a look from within and takes one from outside.
    pub(crate) fn sample(&mut self, interrupt: &Interrupt) -> Result<(Census, Footprint)> {
        self.tell(told::SAMPLE)?;
        match self.hear(ANSWER_WAIT_MAX, interrupt)? {
            Said::Sample(census) => Ok((*census, self.footprint()?)),
            other => bail!("{} said {other:?} instead of a sample", self.name),
        }
    }

    fn footprint(&self) -> Result<Footprint> {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.pid());
            fs::read_to_string(&path).with_context(|| format!("{}: {path}", self.name))
        };
        let (memory, status) = (read("smaps_rollup")?, read("status")?);
        Ok(Footprint {
            resident_kib: field(&memory, "Rss:"),
            anonymous_kib: field(&memory, "Anonymous:"),
            locked_kib: field(&status, "VmLck:"),
            pinned_kib: field(&status, "VmPin:"),
            threads: field(&status, "Threads:"),
            cpu_ns: self.clock.now_ns().with_context(|| format!("CPU clock of {}", self.name))?,
        })
    }

    /// Whether it still runs. Forgets nothing that it said.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?;
        self.ended |= status.is_some();
        Ok(status)
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.try_wait()? {
            None => Ok(()),
            Some(_) => bail!(self.reason().unwrap_or_default()),
        }
    }

    /// Waits for the end, and requires that it is a good one.
    pub(crate) fn finish(mut self, within: Duration, interrupt: &Interrupt) -> Result<()> {
        let end = Instant::now() + within;
        while self.try_wait()?.is_none() {
            interrupt.check()?;
            ensure!(Instant::now() < end, "{} did not end within {within:?}", self.name);
            thread::sleep(PATIENCE);
        }
        let status = self.child.wait()?;
        ensure!(status.success(), self.reason().unwrap_or_default());
        match self.said.try_recv() {
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Ok(()),
            Ok(line) => bail!("{} said {line:?} at its end", self.name),
        }
    }

    pub(crate) fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("process id")?;
        kill_process(pid, Signal::TERM).with_context(|| format!("SIGTERM to {}", self.name))
    }

    /// Waits for the end of the process, which is near, and says why it came. Once; then there is nothing to say.
    pub(crate) fn reason(&mut self) -> Option<String> {
        let errors = self.errors.take()?;
        let status = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        self.ended = true;
        let errors = errors.join().unwrap_or_default();
        Some(format!("{} ended early ({status}): {}", self.name, errors.trim()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended by itself, which both calls report as an error or take as success.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The number after `name` at the beginning of a line; 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Ids of all children of this process, reaped or not.
pub(crate) fn children() -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir("/proc/self/task").context("own threads")? {
        let path = thread?.path().join("children");
        // A thread that has ended meanwhile has none.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        children.extend(text.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files_are_found() {
        let text = "Name:\tx\nVmLck:\t     12 kB\nThreads:\t3\n";
        assert_eq!(
            (field(text, "VmLck:"), field(text, "Threads:"), field(text, "None:")),
            (12, 3, 0)
        );
    }
}
