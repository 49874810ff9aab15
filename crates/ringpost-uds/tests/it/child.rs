//! Child processes: this very test program, started again to play one role.
//!
//! A parent talks to a child in lines: commands on its standard input, answers on its standard output.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ringpost_uds::{Address, BindOptions, Bound, peer_credentials};
use rustix::fs::Mode;

use crate::support::become_user;

/// A child process that obeys the commands of [`obey`]. Killed on drop.
pub(crate) struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the child through another program, such as `unshare`, that executes its arguments.
    pub(crate) fn start_with(wrapper: &[&str]) -> Self {
        let program = std::env::current_exe().expect("own path");
        let mut words = wrapper.iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        words.push(program.into());
        let mut process = Command::new(&words[0])
            .args(&words[1..])
            .args(["--exact", "child::obey", "--nocapture", "--quiet"])
            .env(ROLE, "obey")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a child");
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, input, output }
    }

    pub(crate) fn send(&mut self, command: &str) {
        writeln!(self.input, "{command}").expect("the child reads");
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).expect("the child writes text");
            assert_ne!(length, 0, "the child has ended");
            // libtest prints lines of its own, and does not end all of them.
            if let Some((_, answer)) = line.trim_end().split_once(MARK) {
                return answer.to_owned();
            }
        }
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.answer()
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The child's side: obeys commands until its input ends. As a test of its own it does nothing.
///
/// The words of a command: `umask 077`, `user 1000`, `bind 600 PATH` (answers `won` or the error),
/// `race NANOSECONDS PATH` (the same at that moment of the monotonic clock), `drop`, `connect PATH`
/// (answers with the credentials of the server), `descriptors` (answers with how many are open).
#[test]
fn obey() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let mut bound: Option<Bound> = None;
    let mut connected: Vec<OwnedFd> = Vec::new();
    for line in std::io::stdin().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let answer = match words[..] {
            ["umask", mask] => {
                let mask = u32::from_str_radix(mask, 8).expect("octal");
                rustix::process::umask(Mode::from_raw_mode(mask));
                "done".to_owned()
            }
            ["user", id] => {
                let id = id.parse().expect("number");
                become_user(id, id);
                "done".to_owned()
            }
            ["bind", mode, path] => {
                let mode = u32::from_str_radix(mode, 8).expect("octal");
                bind(Path::new(path), mode, &mut bound)
            }
            ["race", nanoseconds, path] => {
                spin_until(nanoseconds.parse().expect("number"));
                bind(Path::new(path), 0o600, &mut bound)
            }
            ["drop"] => {
                bound = None;
                connected.clear();
                "done".to_owned()
            }
            ["connect", path] => match ringpost_uds::connect(&Address::from(Path::new(path))) {
                Ok(socket) => {
                    let credentials = peer_credentials(socket.as_fd()).expect("connected");
                    connected.push(socket);
                    format!("{credentials} overflow={}", credentials.is_overflow())
                }
                Err(error) => error.to_string(),
            },
            ["descriptors"] => {
                std::fs::read_dir("/proc/self/fd").expect("/proc").count().to_string()
            }
            _ => panic!("unknown command {line:?}"),
        };
        let mut output =
            File::from(std::io::stdout().as_fd().try_clone_to_owned().expect("a free descriptor"));
        output.write_all(format!("{MARK}{answer}\n").as_bytes()).expect("the parent reads");
    }
}

/// The monotonic clock, which all processes share, in nanoseconds.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).expect("positive") * 1_000_000_000
        + u64::try_from(time.tv_nsec).expect("positive")
}

/// Waits, for at most five seconds, until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn spin_until(nanoseconds: u64) {
    while now() < nanoseconds {
        std::hint::spin_loop();
    }
}

fn bind(path: &Path, mode: u32, bound: &mut Option<Bound>) -> String {
    match ringpost_uds::bind(&Address::from(path), &BindOptions::new().mode(mode)) {
        Ok(new) => {
            *bound = Some(new);
            "won".to_owned()
        }
        Err(error) if error.is_address_in_use() => format!("in use: {error}"),
        Err(error) => format!("failed: {error}"),
    }
}

const ROLE: &str = "RINGPOST_UDS_ROLE";
const MARK: &str = "answer: ";
