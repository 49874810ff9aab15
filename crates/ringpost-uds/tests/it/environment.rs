//! File systems that say no: nothing half-made stays, and the error names the path.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::libc;
use ringpost_uds::BindError;

use crate::child::Peer;
use crate::support::{
    NOBODY, as_user, bind, directory, leave_stale, names, namespace_or_skip, refuse_call,
    root_or_skip,
};

/// Starts a child in a mount namespace of its own, with a file system mounted at `target`.
fn with_mount(target: &Path, options: &str) -> Peer {
    let script =
        format!("mount -t tmpfs -o {options} tmpfs '{}' && exec \"$0\" \"$@\"", target.display());
    Peer::start_with(&["unshare", "--mount", "sh", "-c", &script])
}

#[test]
fn unwritable_directory() {
    if !root_or_skip("environment::unwritable_directory") {
        return;
    }
    let directory = directory();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("set");
    let path = directory.path().join("app.sock");
    let error = as_user(NOBODY, NOBODY, || bind(&path).map(|_| ())).expect_err("not theirs");
    let expected = format!("cannot open the lock file {}.lock: permission denied", path.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(names(directory.path()).is_empty());
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).expect("set");
    let error = as_user(NOBODY, NOBODY, || bind(&path).map(|_| ())).expect_err("not theirs");
    assert!(error.to_string().contains("permission denied"), "{error}");
}

/// A directory that its owner has made read-only; root would not notice.
#[test]
fn read_only_directory_of_ones_own() {
    if !root_or_skip("environment::read_only_directory_of_ones_own") {
        return;
    }
    let directory = directory();
    let set = |mode| {
        std::fs::set_permissions(directory.path(), Permissions::from_mode(mode)).expect("root may");
    };
    std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("root may");
    let path = directory.path().join("app.sock");
    for (mode, words) in [
        (0o500, "creating a name takes write permission on its directory"),
        (0o600, "entering each directory on the way takes execute permission"),
    ] {
        set(mode);
        let error = as_user(NOBODY, NOBODY, || bind(&path).map(drop)).expect_err("read-only");
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains(words), "{text}");
    }
    // With a stale socket in it, which cannot be replaced there.
    set(0o700);
    as_user(NOBODY, NOBODY, || leave_stale(&path));
    set(0o500);
    let error = as_user(NOBODY, NOBODY, || bind(&path).map(drop)).expect_err("read-only");
    assert!(error.to_string().contains("permission denied"), "{error}");
    set(0o700);
    assert_eq!(names(directory.path()), ["app.sock"]);
    drop(as_user(NOBODY, NOBODY, || bind(&path)).expect("may again"));
    assert!(names(directory.path()).is_empty());
}

/// A directory mounted read-only into a container: clients connect, servers can't start.
#[test]
fn read_only_mount_of_a_live_directory() {
    let test = "environment::read_only_mount_of_a_live_directory";
    if !namespace_or_skip(test, &["--mount"]) {
        return;
    }
    let (outside, inside) = (directory(), directory());
    let bound = bind(&outside.path().join("app.sock")).expect("free");
    let script = format!(
        "mount --bind '{0}' '{1}' && mount -o remount,ro,bind '{1}' && exec \"$0\" \"$@\"",
        outside.path().display(),
        inside.path().display()
    );
    let mut child = Peer::start_with(&["unshare", "--mount", "sh", "-c", &script]);
    let path = inside.path().join("app.sock");
    let answer = child.ask(&format!("connect {}", path.display()));
    assert!(answer.starts_with("process"), "{answer}");
    for name in ["app.sock", "other.sock"] {
        let path = inside.path().join(name);
        let answer = child.ask(&format!("bind 600 {}", path.display()));
        assert!(answer.contains("mounted read-only"), "{answer}");
        assert!(answer.contains(&path.display().to_string()), "{answer}");
    }
    drop(bound);
    let answer = child.ask(&format!("connect {}", path.display()));
    assert!(answer.contains("there is no such path"), "{answer}");
}

#[test]
fn lock_of_another_user() {
    if !root_or_skip("environment::lock_of_another_user") {
        return;
    }
    let directory = directory();
    let path = directory.path().join("app.sock");
    std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("root may");
    // As a server leaves it that ran as root and was killed.
    let lock = directory.path().join("app.sock.lock");
    std::fs::write(&lock, "pid 1\n").expect("write");
    std::fs::set_permissions(&lock, Permissions::from_mode(0o600)).expect("set");
    let error = as_user(NOBODY, NOBODY, || bind(&path).map(|_| ())).expect_err("not theirs");
    let BindError::LockForeign { path: named, owner: 0 } = &error else { panic!("{error}") };
    assert_eq!(named, &lock);
    let expected = format!(
        "the lock file {} belongs to user 0, and this process may not open it; start as that user, or \
         make sure that their server has ended and remove the lock file and the socket",
        lock.display()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(names(directory.path()), ["app.sock.lock"]);
    std::fs::remove_file(&lock).expect("the remedy");
    as_user(NOBODY, NOBODY, || bind(&path).map(|_| ())).expect("free");
}

#[test]
fn read_only_file_system() {
    if !namespace_or_skip("environment::read_only_file_system", &["--mount"]) {
        return;
    }
    let directory = directory();
    let mut child = with_mount(directory.path(), "ro");
    let path = directory.path().join("app.sock");
    let answer = child.ask(&format!("bind 600 {}", path.display()));
    assert!(answer.contains("mounted read-only"), "{answer}");
    assert!(answer.contains(&path.display().to_string()), "{answer}");
}

#[test]
fn full_file_system() {
    if !namespace_or_skip("environment::full_file_system", &["--mount"]) {
        return;
    }
    let directory = directory();
    let path = directory.path().join("app.sock");
    // The root takes one inode; the second is for the lock file, and the socket needs a third.
    for (inodes, works) in [(1, false), (2, false), (3, true)] {
        let mut child = with_mount(directory.path(), &format!("nr_inodes={inodes}"));
        let before = child.ask("descriptors");
        let answer = child.ask(&format!("bind 600 {}", path.display()));
        if works {
            assert_eq!(answer, "won");
        } else {
            assert!(answer.contains("the file system is full"), "{answer}");
            assert_eq!(child.ask("descriptors"), before);
        }
        let view = format!("/proc/{}/root{}", child.id(), directory.path().display());
        let expected: &[&str] = if works { &["app.sock", "app.sock.lock"] } else { &[] };
        assert_eq!(names(Path::new(&view)), expected);
    }
}

#[test]
fn no_space_for_the_record_is_no_obstacle() {
    if !namespace_or_skip("environment::no_space_for_the_record_is_no_obstacle", &["--mount"]) {
        return;
    }
    let directory = directory();
    let path = directory.path().join("app.sock");
    let mut child = with_mount(directory.path(), "nr_blocks=1");
    let view = format!("/proc/{}/root{}", child.id(), directory.path().display());
    assert_eq!(child.ask("umask 022"), "done");
    std::fs::write(Path::new(&view).join("ballast"), [0; 4096]).expect("the only block");
    assert_eq!(child.ask(&format!("bind 600 {}", path.display())), "won");
}

/// A file system without locks, such as a network's that has lost its server.
#[test]
fn without_locks_nothing_is_left() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let refused = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse_call(libc::SYS_flock, Vec::new(), libc::ENOLCK);
            bind(&path).map(drop)
        });
        thread.join().expect("no panic")
    });
    let text = refused.expect_err("there are no locks").to_string();
    let expected = format!("cannot lock {}.lock: the file system cannot do this", path.display());
    assert!(text.starts_with(&expected), "{text}");
    assert!(names(directory.path()).is_empty());
    // One that was there before stays.
    let kept = directory.path().join("app.sock.lock");
    std::fs::write(&kept, "").expect("write");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse_call(libc::SYS_flock, Vec::new(), libc::ENOLCK);
            bind(&path).map(drop)
        });
        thread.join().expect("no panic").expect_err("there are no locks");
    });
    assert!(kept.exists());
}
