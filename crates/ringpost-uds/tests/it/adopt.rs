//! Descriptors from outside: what they are, and what they are taken over as.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use ringpost_uds::{
    AdoptError, Descriptor, SocketKind, adopt_connection, adopt_datagram, adopt_listener,
};
use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::support::{bind, connect, directory, is_socket, names};

/// One descriptor of each sort, and its words.
fn assortment(directory: &std::path::Path) -> Vec<(OwnedFd, &'static str)> {
    let unix = |kind| rustix::net::socket(AddressFamily::UNIX, kind, None).expect("a socket");
    let pair = |kind| {
        let flags = SocketFlags::empty();
        rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).expect("a pair").0
    };
    let bound = unix(SocketType::STREAM);
    let address = rustix::net::SocketAddrUnix::new(directory.join("bound")).expect("short");
    rustix::net::bind(&bound, &address).expect("bind");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let tcp_client = TcpStream::connect(tcp.local_addr().expect("bound")).expect("connect");
    let tcp6 = rustix::net::socket(AddressFamily::INET6, SocketType::STREAM, None);
    let netlink = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None);
    let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
    let path_only = rustix::fs::open(directory, OFlags::PATH, rustix::fs::Mode::empty());
    let mut list = vec![
        (UnixListener::bind(directory.join("l")).expect("bind").into(), LISTENING),
        (UnixStream::pair().expect("pair").0.into(), CONNECTED),
        (unix(SocketType::STREAM), "an unconnected Unix-domain stream socket"),
        (bound, "an unconnected Unix-domain stream socket"),
        (pair(SocketType::SEQPACKET), "a connected Unix-domain packet socket"),
        (pair(SocketType::DGRAM), "a connected Unix-domain datagram socket"),
        (
            UnixDatagram::bind(directory.join("d")).expect("bind").into(),
            "an unconnected Unix-domain datagram socket",
        ),
        // Before its server, whose end would end it.
        (tcp_client.into(), "a connected IPv4 stream socket"),
        (tcp.into(), "a listening IPv4 stream socket"),
        (
            UdpSocket::bind("127.0.0.1:0").expect("a port").into(),
            "an unconnected IPv4 datagram socket",
        ),
        (std::fs::File::create(directory.join("file")).expect("create").into(), "a regular file"),
        (std::fs::File::open(directory).expect("open").into(), "a directory"),
        (std::fs::File::open("/dev/null").expect("open").into(), "a device"),
        (reader, "a named pipe"),
        (
            rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).expect("eventfd"),
            "an object of unknown kind",
        ),
    ];
    list.extend(tcp6.ok().map(|socket| (socket, "an unconnected IPv6 stream socket")));
    list.extend(netlink.ok().map(|socket| (socket, "a connected family-16 other socket")));
    // A handle that is good for no operation; the kernel says so.
    list.push((path_only.expect("open"), "Bad file descriptor"));
    list
}

const LISTENING: &str = "a listening Unix-domain stream socket";
const CONNECTED: &str = "a connected Unix-domain stream socket";

fn check(adopt: fn(OwnedFd, SocketKind) -> Result<OwnedFd, AdoptError>, fits: &str) {
    let directory = directory();
    let mut adopted = 0;
    for (descriptor, words) in assortment(directory.path()) {
        let number = descriptor.as_raw_fd();
        let before = rustix::fs::fcntl_getfl(&descriptor).expect("open");
        match adopt(descriptor, SocketKind::Stream) {
            Ok(socket) => {
                assert_eq!(words, fits);
                assert_eq!(socket.as_raw_fd(), number);
                let flags = rustix::fs::fcntl_getfl(&socket).expect("open");
                assert!(flags.contains(OFlags::NONBLOCK));
                let flags = rustix::io::fcntl_getfd(&socket).expect("open");
                assert!(flags.contains(FdFlags::CLOEXEC));
                adopted += 1;
            }
            Err(error) => {
                assert_ne!(words, fits, "{error}");
                let text = error.to_string();
                assert!(text.contains(words), "{text:?} does not contain {words:?}");
                assert!(text.contains(fits), "{text:?} does not say what it takes");
                assert_eq!(error.wanted().to_string(), fits);
                if let Some(found) = error.found() {
                    assert_eq!(found.to_string(), words);
                }
                let back = error.into_socket();
                assert_eq!(back.as_raw_fd(), number, "the very descriptor");
                assert_eq!(rustix::fs::fcntl_getfl(&back).expect("open"), before, "untouched");
            }
        }
    }
    assert_eq!(adopted, 1);
    let socket = UnixDatagram::unbound().expect("a socket").into();
    let refused = adopt(socket, SocketKind::Datagram).expect_err("neither listening nor connected");
    assert!(matches!(refused.found(), Some(Descriptor::Socket { .. })), "{refused}");
}

#[test]
fn only_a_listening_stream_is_a_listener() {
    check(adopt_listener, LISTENING);
}

#[test]
fn only_a_connected_stream_is_a_connection() {
    check(adopt_connection, CONNECTED);
}

#[test]
fn packets_are_adopted_as_such() {
    let pair = |kind| {
        let flags = SocketFlags::empty();
        rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).expect("a pair").0
    };
    adopt_connection(pair(SocketType::SEQPACKET), SocketKind::SeqPacket).expect("fits");
    adopt_connection(pair(SocketType::DGRAM), SocketKind::Datagram).expect("fits");
    adopt_connection(pair(SocketType::DGRAM), SocketKind::SeqPacket).expect_err("another kind");
    let directory = directory();
    let options = ringpost_uds::BindOptions::new().kind(SocketKind::SeqPacket);
    let address = directory.path().join("app.sock").into();
    let (socket, _guard) = ringpost_uds::bind(&address, &options).expect("free").into_parts();
    adopt_listener(socket, SocketKind::SeqPacket).expect("fits");
}

#[test]
fn datagrams_are_adopted_bound_or_connected() {
    let directory = directory();
    let mut adopted = 0;
    for (descriptor, words) in assortment(directory.path()) {
        let number = descriptor.as_raw_fd();
        match adopt_datagram(descriptor) {
            Ok(socket) => {
                assert!(words.ends_with("Unix-domain datagram socket"), "{words}");
                let flags = rustix::fs::fcntl_getfl(&socket).expect("open");
                assert!(flags.contains(OFlags::NONBLOCK));
                let flags = rustix::io::fcntl_getfd(&socket).expect("open");
                assert!(flags.contains(FdFlags::CLOEXEC));
                adopted += 1;
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(words), "{text:?} does not contain {words:?}");
                assert!(text.ends_with("Unix-domain datagram socket") || error.found().is_none());
                assert_eq!(error.into_socket().as_raw_fd(), number, "the very descriptor");
            }
        }
    }
    assert_eq!(adopted, 2, "one is bound, one is connected");
    assert!(is_socket(&directory.path().join("d")), "the path is theirs");
}

/// A connection whose peer has sent and gone is still one, with something to read.
#[test]
fn a_connection_outlives_its_peer() {
    let (one, other) = UnixStream::pair().expect("pair");
    rustix::io::write(&other, b"last words").expect("room");
    drop(other);
    let socket = adopt_connection(one.into(), SocketKind::Stream).expect("connected once");
    assert_eq!(rustix::io::read(&socket, &mut [0; 16]), Ok(10));
}

#[test]
fn paths_of_others_stay() {
    let directory = directory();
    let path = directory.path().join("theirs");
    let socket = UnixListener::bind(&path).expect("bind");
    drop(adopt_listener(socket.into(), SocketKind::Stream).expect("listens"));
    assert!(is_socket(&path));
    std::fs::remove_file(&path).expect("remove");
    let (socket, guard) = bind(&path).expect("free").into_parts();
    let copy = adopt_listener(socket, SocketKind::Stream).expect("ours");
    connect(&path).expect("listens");
    drop(guard);
    drop(copy);
    assert!(names(directory.path()).is_empty());
}
