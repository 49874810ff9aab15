//! What the guard removes, and what a killed process leaves.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::child::{Peer, eventually};
use crate::support::{await_closed, bind, connect, directory, is_socket, names};

#[test]
fn drop_removes_only_its_own_socket() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    std::fs::remove_file(&path).expect("remove");
    assert!(!bound.guard().is_in_place());
    let other = UnixListener::bind(&path).expect("bind");
    assert!(!bound.guard().is_in_place());
    drop(bound);
    assert_eq!(names(directory.path()), ["app.sock"], "the other's socket stays, the lock goes");
    connect(&path).expect("the other's");
    drop(other);
}

#[test]
fn drop_leaves_a_file_that_took_the_place() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    std::fs::remove_file(&path).expect("remove");
    std::fs::write(&path, "precious").expect("write");
    drop(bound);
    assert_eq!(std::fs::read(&path).expect("read"), b"precious");
}

#[test]
fn drop_after_the_socket_was_removed() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    std::fs::remove_file(&path).expect("remove");
    drop(bound);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn drop_without_the_lock_removes_nothing() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    std::fs::remove_file(directory.path().join("app.sock.lock")).expect("remove");
    // The lock is free now, and yet the socket is not: whoever starts finds it alive.
    assert!(bind(&path).expect_err("alive").is_address_in_use());
    drop(bound);
    assert_eq!(names(directory.path()), ["app.sock"]);
    drop(bind(&path).expect("stale"));
    assert!(names(directory.path()).is_empty());
}

#[test]
fn drop_after_the_directory_was_moved() {
    let directory = directory();
    let old = directory.path().join("old");
    std::fs::create_dir(&old).expect("make");
    let bound = bind(&old.join("app.sock")).expect("free");
    let new = directory.path().join("new");
    std::fs::rename(&old, &new).expect("move");
    assert!(bound.guard().is_in_place());
    drop(bound);
    assert!(names(&new).is_empty());
}

#[test]
fn guard_and_socket_go_separate_ways() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let (socket, guard) = bind(&path).expect("free").into_parts();
    drop(socket);
    assert!(guard.is_in_place());
    assert!(bind(&path).expect_err("the lock is held").is_address_in_use());
    drop(guard);
    assert!(names(directory.path()).is_empty());

    let (socket, guard) = bind(&path).expect("free").into_parts();
    drop(guard);
    assert!(names(directory.path()).is_empty());
    drop(socket);
}

#[test]
fn killed_owner_is_succeeded() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    for _ in 0..5 {
        let mut child = Peer::start();
        assert_eq!(child.ask(&format!("bind 600 {}", path.display())), "won");
        let error = bind(&path).expect_err("the child has it");
        assert!(error.to_string().contains(&format!("by process {}", child.id())), "{error}");
        child.kill();
        assert!(is_socket(&path), "left behind");
        let refused = connect(&path).expect_err("nobody there");
        assert_eq!(refused.kind(), ringpost_uds::ConnectErrorKind::Refused);
    }
    let bound = bind(&path).expect("stale");
    connect(&path).expect("listens");
    drop(bound);
    assert!(names(directory.path()).is_empty());
}

/// The kernel may end the socket of a killed owner some time after its lock. So who finds its record waits for
/// it, but not for ever: it may be another's.
#[test]
fn killed_owner_is_awaited() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let socket = UnixListener::bind(&path).expect("free");
    std::fs::write(directory.path().join("app.sock.lock"), "pid 1\n").expect("write");
    let start = Instant::now();
    assert!(bind(&path).expect_err("it lives").is_address_in_use());
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
    drop(socket);
    await_closed(&path);
    drop(bind(&path).expect("stale"));
    assert!(names(directory.path()).is_empty());
}

#[test]
fn killed_at_any_moment_leaves_nothing_in_the_way() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..40 {
        let mut child = Peer::start();
        assert_eq!(child.ask("umask 022"), "done");
        child.send(&format!("bind 600 {}", path.display()));
        // From before the first step to after the last.
        std::thread::sleep(Duration::from_micros(rng.u64(0..400)));
        child.kill();
        let bound = bind(&path).expect("whatever was left is replaced");
        connect(&path).expect("listens");
        assert_eq!(names(directory.path()), ["app.sock", "app.sock.lock"]);
        drop(bound);
        assert!(names(directory.path()).is_empty());
    }
}

#[test]
fn descriptors_are_all_given_back() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("write");
    let mut child = Peer::start();
    child.ask("descriptors");
    let before = child.ask("descriptors");
    for _ in 0..20 {
        assert_eq!(child.ask(&format!("bind 660 {}", path.display())), "won");
        assert!(child.ask(&format!("bind 660 {}", path.display())).starts_with("in use"));
        assert!(child.ask(&format!("bind 660 {}", file.display())).starts_with("failed"));
        assert!(child.ask(&format!("bind 660 {}/x", file.display())).starts_with("failed"));
        assert!(child.ask(&format!("connect {}", path.display())).contains("process"));
        assert!(child.ask(&format!("connect {}", file.display())).contains("regular"));
        assert_eq!(child.ask("drop"), "done");
    }
    assert_eq!(child.ask("descriptors"), before);
    eventually("the directory is empty", || names(directory.path()) == ["file"]);
}
