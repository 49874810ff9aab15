//! A server process with a directory of its own.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::privileges::NOBODY;

/// Longest start or end of a server.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A directory for a server. Where the test is root, it belongs to the user that the server runs as.
#[derive(Debug)]
pub struct Home {
    directory: TempDir,
    user: Option<u32>,
}

impl Home {
    /// A new one.
    ///
    /// # Panics
    ///
    /// If there is no place for one.
    pub fn new() -> Self {
        // Short: a server may not take long socket paths.
        let directory = tempfile::Builder::new().prefix("rp-").tempdir().expect("a directory");
        let user = rustix::process::geteuid().is_root().then_some(NOBODY);
        chown(directory.path(), user, user).expect("root may");
        Self { directory, user }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command that runs in it, as a user without rights where the test is root: many servers refuse to
    /// run as root. The program ends with SIGTERM when the thread that started it ends, however that is
    /// (prctl(2), PR_SET_PDEATHSIG).
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        // Set after the change of user, which clears it.
        command.args(["--pdeathsig", "TERM"]);
        if let Some(user) = self.user {
            command.args([format!("--reuid={user}"), format!("--regid={user}")]);
            command.args(["--clear-groups", "--no-new-privs"]);
        }
        command.arg("--").arg(program).current_dir(self.path());
        command.env("HOME", self.path()).env("LC_ALL", "C.UTF-8");
        // MariaDB takes what it finds in a shared one for its own and removes it.
        command.env("TMPDIR", self.path());
        // Keys such as ctrl-C are for the test alone.
        command.process_group(0);
        command
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

/// A running server. On drop it is asked to end, and killed if it does not.
#[derive(Debug)]
pub struct Service {
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts a server, whose output goes to the file `log`, and waits until `ready`.
    ///
    /// # Panics
    ///
    /// If it does not start; shows its log.
    #[track_caller]
    pub fn start(command: &mut Command, log: PathBuf, mut ready: impl FnMut() -> bool) -> Self {
        let output = File::create(&log).expect("a directory of our own");
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut service = Self { child, log };
        let end = Instant::now() + LIMIT;
        while !ready() {
            if let Some(status) = service.child.try_wait().expect("it is our child") {
                panic!("{command:?} ended: {status}\n{}", service.log());
            }
            assert!(Instant::now() < end, "{command:?} is not ready:\n{}", service.log());
            thread::sleep(Duration::from_millis(5));
        }
        service
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Waits for its end, which comes by itself.
    ///
    /// # Panics
    ///
    /// If it does not come in time.
    #[track_caller]
    pub fn wait(mut self) -> ExitStatus {
        self.ended().unwrap_or_else(|| panic!("a server did not end:\n{}", self.log()))
    }

    /// Asks it to end with SIGTERM and waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not come in time.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.end().unwrap_or_else(|| panic!("a server did not end:\n{}", self.log()))
    }

    fn end(&mut self) -> Option<ExitStatus> {
        if let Some(status) = self.child.try_wait().expect("it is our child") {
            return Some(status);
        }
        // Not reaped yet, so the number is still its own.
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("our child is there");
        self.ended()
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.end().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
