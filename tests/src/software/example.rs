//! The examples, as programs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use ringpost::EngineChoice;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longest wait for a line or the end of an example.
pub const LIMIT: Duration = Duration::from_secs(20);

/// An example that runs. Killed on drop.
#[derive(Debug)]
pub struct Example {
    child: Child,
    /// Standard output and standard error.
    lines: Receiver<String>,
}

impl Example {
    /// Starts a command, and waits for its line that begins with `ready: `.
    ///
    /// # Panics
    ///
    /// If it does not come; shows what came instead.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .env_remove("RINGPOST_ENGINE")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (sender, lines) = channel();
        let output = child.stdout.take().expect("piped");
        let errors = child.stderr.take().expect("piped");
        let other = sender.clone();
        let pass = |line: std::io::Result<String>, sender: &std::sync::mpsc::Sender<String>| {
            // Nobody listens any more once the example is dropped.
            line.is_ok_and(|line| sender.send(line).is_ok())
        };
        // Both end with the child.
        thread::spawn(move || BufReader::new(output).lines().all(|line| pass(line, &sender)));
        thread::spawn(move || BufReader::new(errors).lines().all(|line| pass(line, &other)));
        let example = Self { child, lines };
        example.expect_line("ready: ");
        example
    }

    /// Waits for a line that begins so.
    ///
    /// # Panics
    ///
    /// If it does not come; shows what came instead.
    #[track_caller]
    pub fn expect_line(&self, start: &str) -> String {
        let end = Instant::now() + LIMIT;
        let mut others = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(start) => return line,
                Ok(line) => others.push(line),
                Err(error) => panic!("no line {start:?}: {error}: {others:#?}"),
            }
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end with SIGTERM, and checks that it ends well and had nothing to complain of.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("our child is there");
        let end = Instant::now() + LIMIT;
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                None => panic!("an example does not end"),
            }
        };
        let lines: Vec<String> = self.lines.iter().collect();
        assert!(status.success() && lines.is_empty(), "{status}: {lines:#?}");
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The `forward` example between clients and a server that speaks a protocol of its own.
#[derive(Debug)]
pub struct Forwarder {
    // Dropped in this order: the program before its directory.
    example: Example,
    directory: TempDir,
    path: PathBuf,
}

impl Forwarder {
    /// Starts one in front of the server at `to`, at a socket of the same name in another directory.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    pub fn start(engine: EngineChoice, to: &Path) -> Self {
        Self::start_with(engine, to, &[])
    }

    /// The same, with more arguments.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    pub fn start_with(engine: EngineChoice, to: &Path, arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("rp-").tempdir().expect("a directory");
        let path = directory.path().join(to.file_name().expect("a path to a socket"));
        let example = Example::start(
            command("forward")
                .args(["--profile", "bytes", "--engine", engine_word(engine)])
                .args(arguments)
                .arg("--listen")
                .arg(&path)
                .arg("--to")
                .arg(to),
        );
        Self { example, directory, path }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of its socket.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.example.id()
    }

    /// Ends it, and checks that it ends well, had nothing to complain of, and leaves nothing behind.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn stop(self) {
        self.example.stop();
        let left: Vec<_> = std::fs::read_dir(self.directory.path()).expect("readable").collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// A command that starts an example.
///
/// # Panics
///
/// If it has not been built: `cargo test` of one package does not build another's examples.
pub fn command(name: &str) -> Command {
    let own = std::env::current_exe().expect("own path");
    // target/PROFILE/deps/test, or target/PROFILE/program.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join("examples").join(name));
    let path = found.into_iter().find(|path| path.exists()).unwrap_or_else(|| {
        panic!("{name} is missing; build it with `cargo build --package ringpost --examples`")
    });
    Command::new(path)
}

/// What the examples' `--engine` takes.
pub fn engine_word(engine: EngineChoice) -> &'static str {
    match engine {
        EngineChoice::Uring => "uring",
        EngineChoice::Epoll => "epoll",
        _ => "auto",
    }
}
