//! Child processes that can't be left behind: every wait has an end, and a dropped child is ended.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{interrupt::Interrupt, role::Order};

/// This program itself, also if another one has taken its path meanwhile.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// A process of a sample.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    what: &'static str,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
    interrupt: Interrupt,
}

impl Process {
    pub(crate) fn start(what: &'static str, order: &Order, interrupt: &Interrupt) -> Result<Self> {
        let mut child = Command::new(OWN_PROGRAM)
            .arg("role")
            .arg(serde_json::to_string(order)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting the {what}"))?;
        let lines = child.stdout.take().map(read_lines).context("pipe to the child")?;
        let errors = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut text = String::new();
                // What can't be read is missing from an error message, that is all.
                let _ = stderr.read_to_string(&mut text);
                text
            })
        });
        Ok(Self { child, what, lines, errors, interrupt: interrupt.clone() })
    }

    pub(crate) fn pid(&self) -> Result<i32> {
        self.child.id().try_into().context("process id")
    }

    /// The next line that the process prints.
    pub(crate) fn line(&mut self, within: Duration) -> Result<String> {
        let end = Instant::now() + within;
        loop {
            self.interrupt.check()?;
            match self
                .lines
                .recv_timeout(PATIENCE.min(end.saturating_duration_since(Instant::now())))
            {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Disconnected) => bail!(self.failure("ended early")),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= end => {
                    bail!(self.failure("took too long"))
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits until the process has ended, and requires that it succeeded.
    pub(crate) fn finish(mut self, within: Duration) -> Result<()> {
        let end = Instant::now() + within;
        // It closes its output when it ends; there is no need to poll before that.
        loop {
            self.interrupt.check()?;
            match self.lines.recv_timeout(PATIENCE) {
                Err(RecvTimeoutError::Disconnected) => break,
                Ok(_) | Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Ok(_) | Err(RecvTimeoutError::Timeout) => bail!(self.failure("took too long")),
            }
        }
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().context("waiting for a child")? {
                ensure!(status.success(), self.failure(&format!("failed with {status}")));
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!(self.failure("did not end"))
    }

    /// Ends the process and describes what went wrong with it.
    fn failure(&mut self, how: &str) -> String {
        self.end();
        let errors = self.errors.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let errors = errors.trim();
        let separator = if errors.is_empty() { "" } else { ": " };
        format!("the {} {how}{separator}{errors}", self.what)
    }

    fn end(&mut self) {
        // It may have ended by itself, which both calls report as an error or take as success.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// How long an interruption may go unnoticed.
const PATIENCE: Duration = Duration::from_millis(200);
