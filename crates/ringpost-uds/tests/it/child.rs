//! Child processes: this very test program, started again to play one role.
//!
//! A parent talks to a child in lines: commands on its standard input, answers on its standard output.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use ringpost_uds::{
    AccessPolicy, Address, BindError, BindOptions, Bound, PeerCredentials, peer_credentials,
    peer_process,
};
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
/// `apart 600 PATH` (the same in a thread with descriptors of its own, for a moment; answers with the mode, too),
/// `own USER PATH` (the same with mode 600 for this user and group),
/// `race NANOSECONDS PATH` (the same at that moment of the monotonic clock), `drop`, `connect PATH`
/// (answers with the credentials of the server), `accept` (answers with those of the client, what is known
/// of its process, and which rules let it in), `reuse PATH` (see [`reuse_a_number`]), `descriptors`
/// (answers with how many are open).
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
            ["apart", mode, path] => {
                let mode = u32::from_str_radix(mode, 8).expect("octal");
                bind_apart(Path::new(path), mode)
            }
            ["own", user, path] => {
                let address = Address::from(Path::new(path));
                let user = user.parse().expect("number");
                let options = BindOptions::new().mode(0o600).uid(user).gid(user);
                answer_bind(ringpost_uds::bind(&address, &options), &mut bound)
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
            ["accept"] => {
                let bound = bound.as_ref().expect("bound");
                let mut accepted = None;
                eventually("a connection arrives", || {
                    accepted = rustix::net::accept(bound).ok();
                    accepted.is_some()
                });
                let socket = accepted.expect("just checked");
                let credentials = peer_credentials(&socket).expect("connected");
                format!("{credentials}; {}; {}", held(&socket), admitted(&credentials))
            }
            ["reuse", path] => reuse_a_number(Path::new(path)),
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

/// What the pidfd of a peer says.
fn held(socket: &OwnedFd) -> String {
    match peer_process(socket) {
        Ok(process) => {
            let look = process.inspect(|directory| std::fs::read_to_string(directory.join("comm")));
            let look = look.map_err(|error| error.to_string());
            format!("pid {:?} alive {:?} {look:?}", process.pid_for_logs(), process.is_alive())
        }
        Err(error) => error.to_string(),
    }
}

/// The rules that let a peer in.
fn admitted(peer: &PeerCredentials) -> String {
    let anyone = AccessPolicy::anyone;
    let rules = [
        anyone(),
        anyone().same_user(),
        anyone().allow_uid(65_534),
        anyone().allow_gid(65_534),
        anyone().allow_supplementary_gid(65_534),
        anyone().allow_gid(0),
    ];
    let groups = || Ok(vec![0, 65_534]);
    let admitted = rules.iter().filter(|rule| rule.check_with_groups(peer, groups).is_ok());
    format!("{:?}", admitted.map(AccessPolicy::to_string).collect::<Vec<_>>())
}

/// Serves a process that ends, and lets another one have its number. Takes a pid namespace of its own.
fn reuse_a_number(path: &Path) -> String {
    let bound = ringpost_uds::bind(&Address::from(path), &BindOptions::new()).expect("free");
    let mut client = Peer::start();
    client.ask(&format!("connect {}", path.display()));
    let socket = rustix::net::accept(&bound).expect("it waits");
    let process = peer_process(&socket).expect("known");
    let number = client.id();
    assert_eq!(process.pid_for_logs(), Some(number));
    client.kill();
    for _ in 0..100 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).expect("root may");
        let mut other = Command::new("sleep").arg("60").spawn().expect("start");
        let reused = other.id() == number;
        let exists = Path::new(&format!("/proc/{number}")).exists();
        let alive = process.is_alive();
        let inspected = process.inspect(|directory| std::fs::metadata(directory).map(drop));
        other.kill().expect("it runs");
        other.wait().expect("ours");
        if reused {
            let inspected = inspected.map_err(|error| error.to_string());
            return format!("exists {exists} alive {alive:?} {inspected:?}");
        }
    }
    "never reused".to_owned()
}

/// The monotonic clock, which all processes share, in nanoseconds.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).expect("positive") * 1_000_000_000
        + u64::try_from(time.tv_nsec).expect("positive")
}

/// Waits, for at most twenty seconds, until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
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
    let options = BindOptions::new().mode(mode);
    answer_bind(ringpost_uds::bind(&Address::from(path), &options), bound)
}

fn bind_apart(path: &Path, mode: u32) -> String {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES).expect("anybody may");
            // So that the numbers that follow are not in use elsewhere.
            let _files: Vec<File> =
                (0..50).map(|_| File::open("/dev/null").expect("open")).collect();
            let mut bound = None;
            let answer = bind(path, mode, &mut bound);
            let found = std::fs::symlink_metadata(path).map(|found| found.mode() & 0o777);
            format!("{answer} with {:o}", found.unwrap_or(0))
        });
        thread.join().expect("no panic")
    })
}

fn answer_bind(result: Result<Bound, BindError>, bound: &mut Option<Bound>) -> String {
    match result {
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
