//! Child processes: the running test program, started again.
//!
//! Two uses. [`isolated`] runs the body of a test in a process of its own, for tests that count
//! descriptors, change limits or install filters. [`Child`] plays a named role against the parent;
//! they talk in lines, over the child's standard input and output.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Longest wait for a line or an end of a child; sanitizers slow it down, and some machines take three times as long as
/// others.
pub const LIMIT: Duration =
    Duration::from_secs(if cfg!(any(ringpost_asan, ringpost_tsan)) { 150 } else { 90 });

/// Runs `body` in a process of its own that runs only the test `test`, which calls this.
///
/// `test` is `concat!(module_path!(), "::name")`. `environment` is added to the child's.
///
/// # Panics
///
/// If the child fails; its output is shown.
pub fn isolated(test: &str, environment: &[(&str, &str)], body: impl FnOnce()) {
    isolated_through(&[], test, environment, body);
}

/// Like [`isolated`], through another program, such as `unshare`, that executes its arguments.
///
/// # Panics
///
/// As [`isolated`].
pub fn isolated_through(
    wrapper: &[&str],
    test: &str,
    environment: &[(&str, &str)],
    body: impl FnOnce(),
) {
    if std::env::var(ISOLATED).is_ok_and(|name| name == test) {
        return body();
    }
    let mut command = again(wrapper, test);
    command.env(ISOLATED, test).envs(environment.iter().copied());
    let mut child = Child::spawn(command);
    drop(child.input.take());
    let status = child.wait(LIMIT);
    let lines: Vec<String> = child.lines.iter().collect();
    for line in lines.iter().filter(|line| line.starts_with("SKIPPED ")) {
        print_past_capture(line);
    }
    // Told here, to be seen with `--nocapture` or on a failure.
    println!("{}", lines.join("\n"));
    assert!(status.success(), "{test} failed in its own process: {status}");
    assert!(
        lines.iter().any(|line| line.contains("1 passed")),
        "no test has the name {test} in this program"
    );
}

/// Reports a test as skipped, past libtest's capture.
pub fn skip(test: &str, reason: &str) {
    print_past_capture(&format!("SKIPPED {test}: {reason}"));
}

fn print_past_capture(line: &str) {
    let mut errors = std::io::stderr();
    errors.write_all(format!("{line}\n").as_bytes()).expect("standard error is open");
}

/// A child that plays a role. Killed on drop.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    input: Option<std::process::ChildStdin>,
    lines: Receiver<String>,
    readers: [JoinHandle<()>; 2],
}

/// Longest wait for those who read what a child has said: somebody else may hold its output open.
const READERS_WAIT_MAX: Duration = Duration::from_secs(1);

impl Child {
    /// Starts the test `test` of this program, which calls [`role`], with these words.
    pub fn start(test: &str, words: &[&str]) -> Self {
        Self::start_through(&[], test, words)
    }

    /// Like [`Child::start`], through another program, such as `unshare`, that executes its arguments.
    pub fn start_through(wrapper: &[&str], test: &str, words: &[&str]) -> Self {
        let mut command = again(wrapper, test);
        command.env(ROLE, words.join("\n"));
        Self::spawn(command)
    }

    /// Starts any program, whose output is read with [`Child::line`].
    ///
    /// # Panics
    ///
    /// If it can't be started.
    pub fn spawn(mut command: Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start a child");
        let (sender, lines) = channel();
        let output = process.stdout.take().expect("piped");
        let errors = process.stderr.take().expect("piped");
        let other = sender.clone();
        // Both end with the child, or with the one who holds its output open.
        let readers = [
            thread::spawn(move || pass_on(output, &sender)),
            thread::spawn(move || pass_on(errors, &other)),
        ];
        Self { input: process.stdin.take(), process, lines, readers }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a line.
    ///
    /// # Panics
    ///
    /// If the child is gone.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("the child's input is open");
        writeln!(input, "{line}").expect("the child reads");
    }

    /// The next line that the child [said](say).
    ///
    /// # Panics
    ///
    /// If the child ends or stays silent; what it printed otherwise is shown.
    #[track_caller]
    pub fn hear(&mut self) -> String {
        // libtest prints lines of its own, and does not end all of them.
        self.find(|line| line.split_once(MARK).map(|(_, said)| said.to_owned()))
    }

    /// The next line of its output or its errors that has `start` in it, from there on.
    ///
    /// # Panics
    ///
    /// If the child ends or stays silent; what it printed otherwise is shown.
    #[track_caller]
    pub fn line(&mut self, start: &str) -> String {
        self.find(|line| line.find(start).map(|at| line[at..].to_owned()))
    }

    #[track_caller]
    fn find(&mut self, wanted: impl Fn(&str) -> Option<String>) -> String {
        let end = Instant::now() + LIMIT;
        let mut others = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match wanted(&line) {
                    Some(found) => return found,
                    None => others.push(line),
                },
                Err(RecvTimeoutError::Timeout) => panic!("the child is silent: {others:#?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the child has ended: {others:#?}"),
            }
        }
    }

    /// Sends the child a signal.
    ///
    /// # Panics
    ///
    /// If it has ended and that has been seen.
    pub fn signal(&self, signal: Signal) {
        // Not reused before `wait` or `kill` has seen its end.
        let pid = Pid::from_raw(i32::try_from(self.id()).expect("a process id"));
        nix::sys::signal::kill(pid, signal).expect("it is our child");
    }

    /// Kills the child with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// True until the child's end.
    ///
    /// # Panics
    ///
    /// If the kernel does not tell.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("it is our child").is_none()
    }

    /// Waits for the child's end.
    ///
    /// # Panics
    ///
    /// If it does not come in time.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.try_wait().expect("it is our child") {
                return status;
            }
            if Instant::now() >= end {
                self.kill();
                let lines: Vec<String> = self.lines.try_iter().collect();
                panic!("the child did not end within {limit:?}: {lines:#?}");
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // Whoever counts descriptors afterwards must not find theirs.
        let end = Instant::now() + READERS_WAIT_MAX;
        while !self.readers.iter().all(JoinHandle::is_finished) && Instant::now() < end {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

/// The child's side: the words that it was started with; `None` in an ordinary run of the test.
pub fn role() -> Option<Vec<String>> {
    let words = std::env::var(ROLE).ok()?;
    Some(words.split('\n').map(str::to_owned).collect())
}

/// Says a line to the parent.
///
/// # Panics
///
/// If the parent is gone.
pub fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{MARK}{line}").expect("the parent reads");
    output.flush().expect("the parent reads");
}

/// Waits for a line from the parent; `None` when it has closed.
///
/// # Panics
///
/// If the line is no text.
pub fn told() -> Option<String> {
    std::io::stdin().lines().next().map(|line| line.expect("text"))
}

/// This program again, to run one test.
fn again(wrapper: &[&str], test: &str) -> Command {
    let (_, name) = test.split_once("::").expect("a path with the name of the program in front");
    let mut words: Vec<OsString> = wrapper.iter().map(OsString::from).collect();
    words.push(std::env::current_exe().expect("own path").into());
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env_remove(ISOLATED)
        .env_remove(ROLE);
    command
}

fn pass_on(stream: impl std::io::Read, lines: &std::sync::mpsc::Sender<String>) {
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
            return;
        }
    }
}

const ISOLATED: &str = "RINGPOST_TEST_ISOLATED";
const ROLE: &str = "RINGPOST_TEST_ROLE";
const MARK: &str = "said: ";
