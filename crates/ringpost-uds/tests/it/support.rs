//! What the tests share.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use ringpost_uds::{Address, BindError, BindOptions, Bound};
use seccompiler::{BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule};
use tempfile::TempDir;

pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new().prefix("uds-").tempdir().expect("a temporary directory")
}

/// A directory that every user may enter and read.
pub(crate) fn open_directory() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("ours");
    directory
}

/// Binds with default options.
pub(crate) fn bind(path: &Path) -> Result<Bound, BindError> {
    ringpost_uds::bind(&Address::from(path), &BindOptions::new())
}

pub(crate) fn connect(path: &Path) -> Result<OwnedFd, ringpost_uds::ConnectError> {
    ringpost_uds::connect(&Address::from(path))
}

/// Leaves a socket with nobody behind it at the path, as a killed server does.
pub(crate) fn leave_stale(path: &Path) {
    drop(std::os::unix::net::UnixListener::bind(path).expect("bind"));
    assert!(is_socket(path));
    await_closed(path);
}

/// Waits until nobody has the socket at the path any more that was closed here: a child that another test starts
/// holds all that was open until it has become another program.
pub(crate) fn await_closed(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(path).is_ok() {
        assert!(Instant::now() < deadline, "somebody still listens at {}", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

pub(crate) fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).expect("metadata").mode() & 0o7777
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .expect("read the directory")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A path of exactly `length` bytes under `base`, its directories made, its last component `name`
/// bytes long.
pub(crate) fn path_of_length(base: &Path, length: usize, name: usize) -> PathBuf {
    let mut path = base.to_path_buf();
    let mut rest = length - base.as_os_str().len() - 1 - name;
    while rest > 0 {
        let component = rest.min(101) - 1;
        // A component of no bytes would not lengthen the path; the one before takes its place.
        let component = if rest - component - 1 == 1 { component - 1 } else { component };
        path.push("d".repeat(component));
        rest -= component + 1;
    }
    std::fs::create_dir_all(&path).expect("make directories");
    path.push("n".repeat(name));
    assert_eq!(path.as_os_str().len(), length);
    path
}

/// Runs `body` as another user, in a thread, whose identity is its own.
pub(crate) fn as_user<T: Send>(uid: u32, gid: u32, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_user(uid, gid);
            body()
        });
        thread.join().expect("the body does not panic")
    })
}

/// Changes the user of the calling thread for good.
pub(crate) fn become_user(uid: u32, gid: u32) {
    use rustix::thread::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[]).expect("root may");
    rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root may");
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
}

/// Whether the test can do what only root can; if not, says so past libtest's capture, where
/// `cargo xtask test` counts it as skipped.
pub(crate) fn root_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Whether the test can have namespaces of its own, such as `--mount`; containers often forbid it even
/// to root. If not, says so.
pub(crate) fn namespace_or_skip(test: &str, options: &[&str]) -> bool {
    if !root_or_skip(test) {
        return false;
    }
    let probe = std::process::Command::new("unshare").args(options).arg("true").output();
    let allowed = probe.is_ok_and(|output| output.status.success());
    if !allowed {
        skip(test, &format!("`unshare {}` is missing or not allowed", options.join(" ")));
    }
    allowed
}

/// Reports a test as skipped.
pub(crate) fn skip(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}

pub(crate) const NOBODY: u32 = 12_345;

/// Makes the kernel refuse a system call on this thread, for good, if all conditions hold for its arguments.
pub(crate) fn refuse_call(call: libc::c_long, conditions: Vec<SeccompCondition>, errno: i32) {
    let rules = if conditions.is_empty() {
        Vec::new()
    } else {
        vec![SeccompRule::new(conditions).expect("valid")]
    };
    let rules = [(call, rules)].into_iter().collect();
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a short filter");
    seccompiler::apply_filter(&program).expect("the kernel takes the filter");
}
