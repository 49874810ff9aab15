//! A running example.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use ringpost::{EngineChoice, Runtime};
use ringpost_testkit::child::skip;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// An example as a child process. Killed and reaped on drop.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    output: Receiver<String>,
    errors: Receiver<String>,
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Finished {
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed since the lines that were read before.
    pub(crate) output: Vec<String>,
    pub(crate) errors: Vec<String>,
}

impl Program {
    pub(crate) fn start(name: &'static str, arguments: &[&str]) -> Self {
        Self::start_with(name, arguments, &[])
    }

    /// With additions to the environment.
    pub(crate) fn start_with(
        name: &'static str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        Self::start_file(&executable(name), name, arguments, environment)
    }

    /// From a copy of its executable.
    pub(crate) fn start_file(
        file: &Path,
        name: &'static str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut child = Command::new(file)
            .args(arguments)
            .env_remove("RINGPOST_ENGINE")
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start an example");
        let output = lines(child.stdout.take().expect("piped"));
        let errors = lines(child.stderr.take().expect("piped"));
        Self { name, child, output, errors }
    }

    /// The next line on standard output.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.output.recv_timeout(LIMIT).unwrap_or_else(|error| {
            let errors: Vec<String> = self.errors.try_iter().collect();
            panic!("{} printed no line: {error}; errors: {errors:#?}", self.name)
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // Not reaped yet, so the number is still its own.
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("our child is there");
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        let end = Instant::now() + LIMIT;
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                None => panic!("{} did not end: {:#?}", self.name, rest(&self.errors)),
            }
        };
        Finished { code: status.code(), output: rest(&self.output), errors: rest(&self.errors) }
    }

    /// Sends the signal and waits for an orderly end, which leaves nothing at `path`.
    #[track_caller]
    pub(crate) fn finish_by(self, signal: Signal, path: &Path) -> Finished {
        self.signal(signal);
        let finished = self.finish();
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        let left: Vec<PathBuf> = std::fs::read_dir(path.parent().expect("in a directory"))
            .expect("readable")
            .map(|entry| entry.expect("readable").path())
            .filter(|left| left.to_string_lossy().starts_with(&*path.to_string_lossy()))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        finished
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that is ready, at the path `server.sock` in a directory of its own.
#[derive(Debug)]
pub(crate) struct Server {
    // Dropped in this order: the program before its directory.
    pub(crate) program: Program,
    pub(crate) path: PathBuf,
    _directory: TempDir,
}

impl Server {
    pub(crate) fn start(name: &'static str, arguments: &[&str]) -> Self {
        Self::start_with(name, arguments, &[])
    }

    #[track_caller]
    pub(crate) fn start_with(
        name: &'static str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("server.sock");
        let mut all = vec!["--path", path.to_str().expect("UTF-8")];
        all.extend(arguments);
        let program = Program::start_with(name, &all, environment);
        let ready = program.line();
        assert!(ready.starts_with(&format!("ready: {} (", path.display())), "{ready}");
        Self { program, path, _directory: directory }
    }

    /// Sends the signal and waits for an orderly end.
    #[track_caller]
    pub(crate) fn finish_by(self, signal: Signal) -> Finished {
        self.program.finish_by(signal, &self.path)
    }
}

/// The engines that this host has, as the examples' `--engine` takes them.
pub(crate) fn engines() -> &'static [&'static str] {
    static ENGINES: OnceLock<&[&str]> = OnceLock::new();
    ENGINES.get_or_init(|| match Runtime::builder().engine(EngineChoice::Uring).build() {
        Ok(_) => &["uring", "epoll"],
        Err(error) => {
            skip("examples with --engine uring", &error.to_string());
            &["epoll"]
        }
    })
}

/// `cargo test` builds the examples, into a directory beside the one of the tests.
pub(crate) fn executable(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/test");
    let path = profile.join("examples").join(name);
    assert!(
        path.exists(),
        "{} is missing; run `cargo test -p ringpost`, or build it with `cargo build --examples`",
        path.display()
    );
    path
}

/// Reads on a thread of its own, which ends with the stream.
fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// All lines up to the end of the stream; those that are there if it does not end.
fn rest(lines: &Receiver<String>) -> Vec<String> {
    std::iter::from_fn(|| lines.recv_timeout(Duration::from_secs(1)).ok()).collect()
}
