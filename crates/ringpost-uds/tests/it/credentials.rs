//! Who the kernel says the peer is.

use std::os::unix::net::UnixStream;

use ringpost_uds::{AccessPolicy, Address, BindOptions, peer_credentials};

use crate::child::{Peer, eventually};
use crate::support::{
    as_user, bind, connect, directory, namespace_or_skip, open_directory, root_or_skip,
};

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
    let address = Address::from(path.as_path());
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

/// A server inside a user namespace, where only root has a number: what it sees of those outside.
#[test]
fn peer_without_a_number_in_the_user_namespace() {
    let test = "credentials::peer_without_a_number_in_the_user_namespace";
    let options = ["--user", "--map-root-user"];
    if !namespace_or_skip(test, &options) {
        return;
    }
    let directory = open_directory();
    let path = directory.path().join("app.sock");
    let mut server = Peer::start_with(&[&["unshare"], &options[..]].concat());
    assert_eq!(server.ask(&format!("bind 666 {}", path.display())), "won");

    let stranger = as_user(4711, 4711, || connect(&path).expect("mode 666"));
    let answer = server.ask("accept");
    assert!(answer.contains("(uid 65534, gid 65534)"), "{answer}");
    assert!(answer.ends_with("; [\"anyone\"]"), "every rule refuses it: {answer}");
    drop(stranger);

    // Its group has a number, and yet nobody knows who it is.
    let half_known = as_user(4711, 0, || connect(&path).expect("mode 666"));
    let answer = server.ask("accept");
    assert!(answer.contains("(uid 65534, gid 0)"), "{answer}");
    assert!(answer.ends_with("; [\"anyone\"]"), "every rule refuses it: {answer}");
    drop(half_known);

    // Its user has a number; a rule about the overflow group lets it in no more than others.
    let known = as_user(0, 4711, || connect(&path).expect("mode 666"));
    let answer = server.ask("accept");
    assert!(answer.contains("(uid 0, gid 65534)"), "{answer}");
    assert!(answer.ends_with("; [\"anyone\", \"uid 0\"]"), "{answer}");
    drop(known);
}

/// A client inside a user namespace: its server, outside, sees the number that it has out here.
#[test]
fn peer_inside_another_user_namespace() {
    let test = "credentials::peer_inside_another_user_namespace";
    if !namespace_or_skip(test, &["--user"]) {
        return;
    }
    let directory = open_directory();
    let path = directory.path().join("app.sock");
    let address = Address::from(path.as_path());
    let bound = ringpost_uds::bind(&address, &BindOptions::new().mode(0o666)).expect("free");
    let mut child = Peer::start_with(&["unshare", "--user"]);
    let answer = child.ask(&format!("connect {}", path.display()));
    let expected = format!("process {} (uid 65534, gid 65534) overflow=true", std::process::id());
    assert_eq!(answer, expected, "the child sees nobody");

    let accepted = rustix::net::accept(&bound).expect("one waits");
    let credentials = peer_credentials(&accepted).expect("connected");
    assert_eq!((credentials.uid, credentials.gid), (0, 0), "its numbers out here");
    AccessPolicy::anyone().same_user().check(&credentials).expect("known");
}

#[test]
fn no_credentials_over_tcp() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let client =
        std::net::TcpStream::connect(server.local_addr().expect("bound")).expect("connect");
    let error = peer_credentials(&client).expect_err("not a Unix-domain socket");
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
}
