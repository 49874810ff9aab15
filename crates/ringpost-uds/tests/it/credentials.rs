//! Who the kernel says the peer is.

use std::os::unix::net::UnixStream;

use ringpost_uds::{AccessPolicy, BindOptions, peer_credentials};

use crate::child::{Peer, eventually};
use crate::support::{bind, directory, namespace_or_skip, root_or_skip};

#[test]
fn own_process_through_a_socketpair() {
    let (one, _other) = UnixStream::pair().expect("pair");
    let credentials = peer_credentials(&one).expect("connected");
    assert_eq!(credentials.pid, Some(std::process::id()));
    assert_eq!(credentials.uid, rustix::process::geteuid().as_raw());
    assert_eq!(credentials.gid, rustix::process::getegid().as_raw());
    AccessPolicy::anyone().same_user().check(&credentials).expect("it is us");
}

#[test]
fn unconnected_socket_has_no_peer() {
    let fd = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .expect("socket");
    let error = peer_credentials(&fd).expect_err("nobody there");
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
}

#[test]
fn child_with_another_user() {
    if !root_or_skip("credentials::child_with_another_user") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
        .expect("set");
    let path = directory.path().join("app.sock");
    let address = ringpost_uds::Address::from(path.as_path());
    let bound = ringpost_uds::bind(&address, &BindOptions::new().mode(0o666)).expect("free");
    let mut child = Peer::start();
    assert_eq!(child.ask("user 4711"), "done");
    let seen_by_child = child.ask(&format!("connect {}", path.display()));
    let expected = format!("process {} (uid 0, gid 0) overflow=false", std::process::id());
    assert_eq!(seen_by_child, expected);

    let accepted = rustix::net::accept(&bound).expect("one waits");
    let credentials = peer_credentials(&accepted).expect("connected");
    assert_eq!(credentials.pid, Some(child.id()));
    assert_eq!((credentials.uid, credentials.gid), (4711, 4711));
    assert!(!credentials.is_overflow());
    AccessPolicy::anyone().allow_uid(4711).check(&credentials).expect("allowed");
    let denied = AccessPolicy::anyone().same_user().check(&credentials).expect_err("denied");
    let expected = format!(
        "process {} (uid 4711, gid 4711) may not connect: allowed are only uid 0",
        child.id()
    );
    assert_eq!(denied.to_string(), expected);
}

#[test]
fn peer_outside_the_pid_namespace() {
    if !namespace_or_skip("credentials::peer_outside_the_pid_namespace", &["--pid", "--fork"]) {
        return;
    }
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    let mut child = Peer::start_with(&["unshare", "--pid", "--fork", "--kill-child"]);
    let answer = child.ask(&format!("connect {}", path.display()));
    assert_eq!(answer, "a process outside this pid namespace (uid 0, gid 0) overflow=false");
    eventually("the connection arrives", || rustix::net::accept(&bound).is_ok());
}

#[test]
fn peer_outside_the_user_namespace() {
    if !namespace_or_skip("credentials::peer_outside_the_user_namespace", &["--user"]) {
        return;
    }
    let directory = directory();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
        .expect("set");
    let path = directory.path().join("app.sock");
    let address = ringpost_uds::Address::from(path.as_path());
    let bound = ringpost_uds::bind(&address, &BindOptions::new().mode(0o666)).expect("free");
    let mut child = Peer::start_with(&["unshare", "--user"]);
    let answer = child.ask(&format!("connect {}", path.display()));
    let expected = format!("process {} (uid 65534, gid 65534) overflow=true", std::process::id());
    assert_eq!(answer, expected);
    drop(bound);
}
