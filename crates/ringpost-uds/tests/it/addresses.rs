//! Addresses of each kind of socket: long paths, abstract names, names that the kernel chooses.

use std::os::fd::{AsFd, OwnedFd};

use ringpost_uds::{
    Address, BindError, BindOptions, Bound, ConnectErrorKind, SocketKind, autobind, connect_kind,
};
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix};

use crate::child::eventually;
use crate::support::{directory, leave_stale, names, path_of_length};

const KINDS: [SocketKind; 3] = [SocketKind::Stream, SocketKind::SeqPacket, SocketKind::Datagram];

/// A bound socket of the kind at the address, and one connected to it that reaches it.
fn works(address: &Address, kind: SocketKind) -> (Bound, OwnedFd) {
    let bound = ringpost_uds::bind(address, &BindOptions::new().kind(kind)).expect("free");
    let client = reaches(&bound, address, kind);
    (bound, client)
}

/// Connects to the address and sends; the bound socket, or what it accepts, receives and, where there is
/// a connection, answers.
fn reaches(bound: &Bound, address: &Address, kind: SocketKind) -> OwnedFd {
    let client = connect_kind(address, kind).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
    rustix::net::send(&client, b"ping", SendFlags::NOSIGNAL).expect("room");
    if kind == SocketKind::Datagram {
        assert_eq!(receive(bound), b"ping");
        return client;
    }
    let accepted = rustix::net::accept(bound).expect("it waits");
    assert_eq!(receive(&accepted), b"ping");
    rustix::net::send(&accepted, b"pong", SendFlags::NOSIGNAL).expect("room");
    assert_eq!(receive(&client), b"pong");
    client
}

fn receive(socket: impl AsFd) -> Vec<u8> {
    let mut bytes = [0; 16];
    let mut length = 0;
    eventually("something arrives", || {
        let received = rustix::net::recv(&socket, &mut bytes[..], RecvFlags::DONTWAIT);
        received.is_ok_and(|(received, _)| {
            length = received;
            true
        })
    });
    bytes[..length].to_vec()
}

/// The name that the kernel has for a socket.
fn kernel_name(socket: impl AsFd) -> Vec<u8> {
    let address = rustix::net::getsockname(socket).expect("bound");
    let address = SocketAddrUnix::try_from(address).expect("a Unix-domain socket");
    address.abstract_name().expect("an abstract name").to_vec()
}

/// A name of `length` bytes that no other test has, with every kind of byte in it.
fn unique_name(length: usize) -> Vec<u8> {
    let mut name = format!("\u{fe}{}.{:x}.", std::process::id(), fastrand::u64(..)).into_bytes();
    name[0] = 0xff;
    assert!(name.len() < length);
    name.resize_with(length, || fastrand::u8(..));
    name
}

#[test]
fn paths_of_all_lengths_for_each_kind() {
    for kind in KINDS {
        for length in [50, 106, 107, 108, 109, 200, 1000, 4085] {
            let directory = directory();
            let path = path_of_length(directory.path(), length, 8);
            let address = Address::from(path.as_path());
            let (bound, client) = works(&address, kind);
            assert!(bound.guard().is_in_place());
            let again = ringpost_uds::bind(&address, &BindOptions::new().kind(kind));
            assert!(again.expect_err("in use").is_address_in_use());
            drop((bound, client));
            assert!(names(path.parent().expect("has one")).is_empty(), "{kind:?} {length}");
            leave_stale_at(&path);
            drop(works(&address, kind));
        }
    }
}

/// A stale socket at a path that may be too long for the system call.
fn leave_stale_at(path: &std::path::Path) {
    let short = tempfile::tempdir_in("/tmp").expect("a directory");
    leave_stale(&short.path().join("s"));
    std::fs::rename(short.path().join("s"), path).expect("the same file system");
}

#[test]
fn abstract_names_are_bytes() {
    for kind in KINDS {
        for length in [40, 106, 107] {
            let name = unique_name(length);
            let address = Address::Abstract(name.clone());
            let (bound, _client) = works(&address, kind);
            assert_eq!(kernel_name(&bound), name, "{kind:?}: not a byte more or less");
        }
    }
}

/// The kernel compares names with their length: padding would make a name of our own that only we know.
#[test]
fn trailing_nul_makes_another_name() {
    for kind in KINDS {
        let plain = unique_name(60);
        let mut padded = plain.clone();
        padded.push(0);
        let (plain, padded) = (Address::Abstract(plain), Address::Abstract(padded));
        let (first, _client) = works(&plain, kind);
        let missing = connect_kind(&padded, kind).expect_err("nobody has this one");
        assert_eq!(missing.kind(), ConnectErrorKind::Missing);
        assert!(
            missing.to_string().contains("\\x00: no server with sockets of this kind"),
            "{missing}"
        );
        let (second, _client) = works(&padded, kind);
        drop(reaches(&first, &plain, kind));
        drop((first, second));
    }
}

#[test]
fn abstract_names_beyond_the_limit() {
    for length in [108, 109, 5000] {
        let mut name = b"app\n".to_vec();
        name.resize(length, b'x');
        let address = Address::Abstract(name);
        let expected = format!("has {length} bytes, and at most 107");
        let error = ringpost_uds::bind(&address, &BindOptions::new()).expect_err("too long");
        assert!(matches!(error, BindError::Address(_)), "{error}");
        let error = error.to_string();
        assert!(error.contains("@app\\nxxx") && error.contains(&expected), "{error}");
        let error = ringpost_uds::connect(&address).expect_err("too long");
        assert_eq!(error.kind(), ConnectErrorKind::PathTooLong);
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

#[test]
fn abstract_name_in_use() {
    let address = Address::Abstract(unique_name(50));
    let (_bound, _client) = works(&address, SocketKind::Stream);
    let error = ringpost_uds::bind(&address, &BindOptions::new()).expect_err("in use");
    assert!(error.is_address_in_use());
    assert!(error.to_string().contains("the address @\\xff"), "{error}");
}

#[test]
fn the_kernel_chooses_a_name() {
    for kind in KINDS {
        let options = BindOptions::new().kind(kind);
        let first = autobind(&options).expect("a million names");
        let second = autobind(&options).expect("a million names");
        for bound in [&first, &second] {
            let Address::Abstract(name) = bound.address() else { panic!("{:?}", bound.address()) };
            assert_eq!(name.len(), 5, "{name:?}");
            assert_eq!(&kernel_name(bound), name);
            drop(reaches(bound, bound.address(), kind));
            let text = bound.address().to_string();
            assert_eq!(text.parse::<Address>().expect("as told"), *bound.address());
        }
        assert_ne!(first.address(), second.address());
        let address = first.address().clone();
        drop(first);
        let error = connect_kind(&address, kind).expect_err("gone with its socket");
        assert!(error.is_no_server(), "{error}");
    }
    let error = autobind(&BindOptions::new().mode(0o7777)).expect_err("senseless");
    assert!(error.to_string().contains("0o7777 is not a socket mode"), "{error}");
}
