//! Running a client program to its end, with its input, and with all that it prints.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longest run of a client: a guard against hangs, far above what any of them takes.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What a program left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub output: Vec<u8>,
    /// What it wrote to standard error.
    pub errors: Vec<u8>,
}

impl Outcome {
    /// Standard output as text.
    ///
    /// # Panics
    ///
    /// If it is none.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.output).expect("text")
    }

    /// Whether standard output has this somewhere.
    pub fn contains(&self, part: &str) -> bool {
        self.output.windows(part.len()).any(|window| window == part.as_bytes())
    }

    /// The same with another word in the place of each `word` that was written to standard error, such as
    /// a path that differs and says nothing.
    pub fn with_errors_about(mut self, word: &str, instead: &str) -> Self {
        self.errors = String::from_utf8_lossy(&self.errors).replace(word, instead).into_bytes();
        self
    }

    /// Standard output as text, if the program ended well.
    ///
    /// # Panics
    ///
    /// If it did not, or printed no text.
    #[track_caller]
    pub fn successful(&self) -> &str {
        assert!(self.status.success(), "{self}");
        self.text()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        write!(f, "{}\n{}\n{}", self.status, shown(&self.output), shown(&self.errors))
    }
}

/// A client program that runs. Killed on drop.
#[derive(Debug)]
pub struct Client {
    child: Child,
    input: Option<JoinHandle<()>>,
    output: Option<JoinHandle<Vec<u8>>>,
    errors: Option<JoinHandle<Vec<u8>>>,
}

impl Client {
    /// Starts a program and writes `input` to its standard input, which then ends.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    #[track_caller]
    pub fn start(command: &mut Command, input: impl Into<Vec<u8>>) -> Self {
        Self::start_open(command, input).0
    }

    /// The same, but its standard input stays open until the other value is dropped.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    #[track_caller]
    pub fn start_open(command: &mut Command, input: impl Into<Vec<u8>>) -> (Self, Open) {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.into();
        let (open, closed) = channel();
        let input = thread::spawn(move || {
            // A client that fails early does not read all of it.
            let _ = stdin.write_all(&input);
            // Until nobody is there to send.
            let _: Result<(), _> = closed.recv();
        });
        let output = read_all(child.stdout.take().expect("piped"));
        let errors = read_all(child.stderr.take().expect("piped"));
        let client = Self { child, input: Some(input), output: Some(output), errors: Some(errors) };
        (client, Open(open))
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// If it has been waited for.
    pub fn signal(&self, signal: rustix::process::Signal) {
        // Not reaped yet, so the number is still its own.
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("our child is there");
    }

    /// Whether it has ended.
    ///
    /// # Panics
    ///
    /// If the kernel does not know it.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for the end.
    ///
    /// # Panics
    ///
    /// If it does not come in time.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        let end = Instant::now() + LIMIT;
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                None => {
                    self.kill();
                    let (output, errors) = self.printed();
                    let text = String::from_utf8_lossy(&output[..output.len().min(2000)]);
                    let errors = String::from_utf8_lossy(&errors);
                    panic!("a client did not end within {LIMIT:?}: {text}\n{errors}");
                }
            }
        };
        let (output, errors) = self.printed();
        Outcome { status, output, errors }
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn printed(&mut self) -> (Vec<u8>, Vec<u8>) {
        let joined = |thread: Option<JoinHandle<Vec<u8>>>| {
            thread.map(|thread| thread.join().expect("reading")).unwrap_or_default()
        };
        if let Some(input) = self.input.take() {
            input.join().expect("writing");
        }
        (joined(self.output.take()), joined(self.errors.take()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Keeps the standard input of a client open.
#[derive(Debug)]
pub struct Open(#[expect(dead_code, reason = "dropped, it tells")] Sender<()>);

/// Runs a program to its end with this input.
///
/// # Panics
///
/// If it can't be started or does not end in time.
#[track_caller]
pub fn run(command: &mut Command, input: impl Into<Vec<u8>>) -> Outcome {
    Client::start(command, input).finish()
}

/// Checks that both went the same way: the same end, the same output, the same errors.
///
/// # Panics
///
/// If they differ; shows where.
#[track_caller]
pub fn assert_same(what: &str, direct: &Outcome, forwarded: &Outcome) {
    if direct == forwarded {
        return;
    }
    let same =
        |left: &[u8], right: &[u8]| left.iter().zip(right).take_while(|(a, b)| a == b).count();
    panic!(
        "{what}: the outputs differ after {} of {} and {} bytes\ndirect: {direct}\nforwarded: {forwarded}",
        same(&direct.output, &forwarded.output),
        direct.output.len(),
        forwarded.output.len(),
    );
}

fn read_all(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is what there is.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}
