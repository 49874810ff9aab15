//! A PostgreSQL server of our own, for one test program: a fresh cluster in a directory of its own that
//! listens on a Unix-domain socket only.
//!
//! PostgreSQL refuses to run as root, so that a test that is root starts it as the user `postgres` through
//! setpriv(1). The server ends with the [`Server`], and with the test program however that ends.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringpost_testkit::child::skip;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The port, which is part of the socket's name.
pub const PORT: u16 = 5432;

/// The name of the superuser; it needs no password.
pub const USER: &str = "postgres";

/// The database that every cluster has.
pub const DATABASE: &str = "postgres";

/// Connections that a server takes, unless a setting says otherwise.
pub const CONNECTIONS_MAX: u32 = 200;

/// A running server. It ends, and its files go, when this is dropped.
#[derive(Debug)]
pub struct Server {
    programs: PathBuf,
    pid: Pid,
    /// Dropped to end the server.
    keep: Option<Sender<()>>,
    guard: Option<JoinHandle<()>>,
    /// Goes last.
    directory: TempDir,
}

impl Server {
    /// Starts a server; `settings` are parameters of postgresql.conf. `None`, reported as a skip of
    /// `test`, if PostgreSQL is not installed.
    ///
    /// # Panics
    ///
    /// If it is installed and does not start; the server's log is shown.
    pub fn start(test: &str, settings: &[(&str, &str)]) -> Option<Self> {
        let Some(programs) = programs() else {
            skip(test, NOT_HERE);
            return None;
        };
        let account = match Account::choose() {
            Ok(account) => account,
            Err(reason) => {
                skip(test, reason);
                return None;
            }
        };
        let directory = tempfile::Builder::new().prefix("ringpost-pg-").tempdir().expect("a place");
        account.give(directory.path());
        create_cluster(&programs, &account, directory.path());
        let command = server(&programs, &account, directory.path(), settings);
        let (keep, ended) = channel();
        let (started, start) = channel();
        // The kernel sends the signal for the death of a parent when the *thread* that started the
        // child ends (prctl(2), PR_SET_PDEATHSIG): this one lives as long as the server is to live.
        let guard = thread::Builder::new()
            .name("postgres".into())
            .spawn(move || guard(command, &started, &ended))
            .expect("start a thread");
        let pid = start.recv().expect("the guard tells").expect("PostgreSQL starts");
        let server = Self { programs, pid, keep: Some(keep), guard: Some(guard), directory };
        server.wait_ready();
        Some(server)
    }

    /// The server that the tests of this program that run at the same time share; it ends with the
    /// last of them. `None` as [`Server::start`].
    ///
    /// # Panics
    ///
    /// As [`Server::start`].
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::start(test, &[])?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// The directory of the socket: what PGHOST is to be set to.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.directory().join(format!(".s.PGSQL.{PORT}"))
    }

    /// The server's process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A program of PostgreSQL, such as `psql` or `pgbench`, that connects to `host` by default: the
    /// server's [directory](Server::directory), or one with a socket of the same name that leads to it.
    pub fn program(&self, name: &str, host: &Path) -> Command {
        let mut command = Command::new(self.programs.join(name));
        without_settings(&mut command)
            .env("PGHOST", host)
            .env("PGPORT", PORT.to_string())
            .env("PGUSER", USER)
            .env("PGDATABASE", DATABASE);
        command
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        log(self.directory())
    }

    fn wait_ready(&self) {
        let end = Instant::now() + START_MAX;
        // The eighth line tells the state since PostgreSQL 10; a file half written has none.
        while !fs::read_to_string(self.directory().join("data/postmaster.pid"))
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|state| state.trim() == "ready"))
        {
            let running = self.guard.as_ref().is_some_and(|guard| !guard.is_finished());
            assert!(running, "PostgreSQL has ended:\n{}", self.log());
            assert!(Instant::now() < end, "not ready in {START_MAX:?}:\n{}", self.log());
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keep.take());
        if let Some(guard) = self.guard.take() {
            // Its panic has been printed, and this may be the end of a test that fails anyway.
            let _ = guard.join();
        }
    }
}

/// Starts the server, says so, and ends it once nobody keeps it.
fn guard(mut command: Command, started: &Sender<io::Result<Pid>>, ended: &Receiver<()>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            // Whoever waits for it shows the error.
            let _ = started.send(Err(error));
            return;
        }
    };
    let pid = Pid::from_child(&child);
    let _ = started.send(Ok(pid));
    loop {
        match ended.recv_timeout(WATCH_PAUSE) {
            Err(RecvTimeoutError::Disconnected) => break,
            // A server that ends by itself is seen by whoever waits for it.
            _ if child.try_wait().is_ok_and(|status| status.is_some()) => return,
            _ => {}
        }
    }
    // Fast: open sessions are ended. Immediate: as after a crash; only for a server that hangs.
    for signal in [Signal::INT, Signal::QUIT, Signal::KILL] {
        let _ = kill_process(pid, signal);
        if wait(&mut child, STOP_MAX).is_some() {
            return;
        }
    }
    panic!("PostgreSQL with process id {pid:?} does not end");
}

/// Whom the server runs as.
struct Account {
    /// The user and group to change to, if this process is root.
    ids: Option<(u32, u32)>,
}

impl Account {
    fn choose() -> Result<Self, &'static str> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { ids: None });
        }
        let users = fs::read_to_string("/etc/passwd").map_err(|_| "there are no users")?;
        let id = |user: &str| {
            let mut fields = users.lines().map(|line| line.split(':'));
            let mut fields = fields.find(|fields| fields.clone().next() == Some(user))?;
            Some((fields.nth(2)?.parse().ok()?, fields.next()?.parse().ok()?))
        };
        match ["postgres", "nobody"].into_iter().find_map(id) {
            Some(ids) => Ok(Self { ids: Some(ids) }),
            None => Err("root may not run PostgreSQL, and there is no user postgres or nobody"),
        }
    }

    fn give(&self, directory: &Path) {
        if let Some((uid, gid)) = self.ids {
            std::os::unix::fs::chown(directory, Some(uid), Some(gid)).expect("root may");
        }
    }

    /// A program that runs as this account, and ends when the thread that started it ends.
    fn command(&self, program: &Path, directory: &Path) -> Command {
        let mut command = Command::new("setpriv");
        // Set after the change of user, which clears it. SIGQUIT is the server's immediate shutdown.
        command.args(["--pdeathsig", "QUIT"]);
        if let Some((uid, gid)) = self.ids {
            command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
            command.args(["--clear-groups", "--no-new-privs"]);
        }
        command.arg("--").arg(program);
        without_settings(&mut command).current_dir(directory).stdin(Stdio::null());
        // Keys such as ctrl-C are for the test alone.
        command.process_group(0);
        command
    }
}

fn create_cluster(programs: &Path, account: &Account, directory: &Path) {
    let mut command = account.command(&programs.join("initdb"), directory);
    command.args(["--pgdata=data", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
    command.arg(format!("--username={USER}"));
    let (output, errors) = outputs(directory);
    let mut child = command.stdout(output).stderr(errors).spawn().expect("setpriv is there");
    let status = wait(&mut child, START_MAX);
    if status.is_none() {
        // It may end just now.
        let _ = child.kill();
        let _ = child.wait();
    }
    let done = status.is_some_and(|status| status.success());
    assert!(done, "initdb failed, {status:?}:\n{}", log(directory));
}

fn server(
    programs: &Path,
    account: &Account,
    directory: &Path,
    settings: &[(&str, &str)],
) -> Command {
    let mut command = account.command(&programs.join("postgres"), directory);
    command.args(["-D", "data", "-p", &PORT.to_string()]);
    let place = directory.to_str().expect("a name in ASCII");
    let connections = CONNECTIONS_MAX.to_string();
    let own = [
        ("listen_addresses", ""),
        ("unix_socket_directories", place),
        ("max_connections", &connections),
        ("fsync", "off"),
        ("synchronous_commit", "off"),
        ("full_page_writes", "off"),
        ("autovacuum", "off"),
    ];
    for (name, value) in own.iter().chain(settings) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let (output, errors) = outputs(directory);
    command.stdout(output).stderr(errors);
    command
}

/// What a program prints goes to the log.
fn outputs(directory: &Path) -> (File, File) {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))
        .expect("the directory is ours");
    file.flush().expect("it is open");
    (file.try_clone().expect("there are descriptors"), file)
}

fn log(directory: &Path) -> String {
    fs::read_to_string(directory.join("log")).unwrap_or_default()
}

/// Takes settings of the user away, which tests must not depend on.
fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG") || name.starts_with("LC_")) {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C").env("TZ", "UTC")
}

/// Where PostgreSQL's programs are: on the PATH, or the newest of Debian's places.
pub fn programs() -> Option<PathBuf> {
    let has_all = |place: &PathBuf| {
        ["initdb", "postgres", "psql", "pgbench"].iter().all(|name| place.join(name).is_file())
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(place) = std::env::split_paths(&path).find(has_all) {
        return Some(place);
    }
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let mut places: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, place)| has_all(place))
        .collect();
    places.sort();
    places.pop().map(|(_, place)| place)
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(PAUSE);
    }
}

/// Longest time to create a cluster, and to start a server.
const START_MAX: Duration = Duration::from_secs(30);

/// Longest wait after each signal.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Why tests are skipped where it is not installed.
pub const NOT_HERE: &str = "no PostgreSQL server; on Debian: apt-get install postgresql";

const PAUSE: Duration = Duration::from_millis(2);

/// Between two looks whether the server has ended by itself.
const WATCH_PAUSE: Duration = Duration::from_millis(100);
