//! Readiness requests on the real kernel, the same tests on each engine.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::any_engine::AnyEngine;
use crate::capabilities::EngineChoice;
use crate::config::Config;
use crate::engine::{Completion, Engine, Request, Token};
use crate::ops::{Ops, Owner};
use crate::wake::Inbox;

/// Every wait ends after this.
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    engine: AnyEngine,
    ops: Ops,
}

impl Rig {
    fn start(&mut self, request: Request) -> Token {
        self.ops.start(&mut self.engine, Owner::Cancel, request).unwrap()
    }

    /// What completes without waiting.
    fn poll(&mut self) -> Vec<Completion> {
        let mut batch = Vec::new();
        self.engine.enter(false, None).unwrap();
        self.engine.reap(&mut batch);
        self.engine.settle();
        batch
    }

    /// Waits until something completes.
    fn wait(&mut self) -> Vec<Completion> {
        let deadline = Instant::now() + PATIENCE;
        let mut batch = Vec::new();
        while batch.is_empty() {
            assert!(Instant::now() < deadline, "nothing completed in time");
            self.engine.enter(true, Some(deadline)).unwrap();
            self.engine.reap(&mut batch);
        }
        self.engine.settle();
        batch
    }

    /// Waits for the one completion of `token`, which is its last; gives its result.
    fn result_of(&mut self, token: Token) -> i32 {
        let batch = self.wait();
        assert_eq!(batch.len(), 1, "{batch:?}");
        assert_eq!(batch[0].token, token);
        assert!(!batch[0].more);
        batch[0].result
    }
}

fn each_engine(test: impl Fn(&mut Rig, SocketType)) {
    for choice in [EngineChoice::Uring, EngineChoice::Epoll] {
        for kind in [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM] {
            eprintln!("engine {choice:?}, {kind:?}");
            let config = Config { engine: choice, ..Config::default() };
            let inbox = Arc::new(Inbox::for_test());
            let (engine, _pool, _report) = AnyEngine::choose(&config, &inbox).unwrap();
            test(&mut Rig { engine, ops: Ops::default() }, kind);
        }
    }
}

fn socket_pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap()
}

fn readable(socket: &OwnedFd) -> Request {
    Request::Readable { fd: socket.as_raw_fd() }
}

fn writable(socket: &OwnedFd) -> Request {
    Request::Writable { fd: socket.as_raw_fd() }
}

fn send(socket: &OwnedFd) -> rustix::io::Result<usize> {
    rustix::net::send(socket, &[7; 1000], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

fn receive(socket: &OwnedFd) -> rustix::io::Result<usize> {
    let mut bytes = [0; 1000];
    rustix::net::recv(socket, &mut bytes, RecvFlags::DONTWAIT).map(|(_, count)| count)
}

/// Sends until the socket takes no more.
fn fill(socket: &OwnedFd) -> usize {
    let mut sent = 0;
    while send(socket).is_ok() {
        sent += 1;
    }
    assert!(sent > 0);
    sent
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn readable_is_told_once_for_each_request() {
    each_engine(|rig, kind| {
        let (near, far) = socket_pair(kind);
        for _ in 0..3 {
            let token = rig.start(readable(&near));
            assert!(rig.poll().is_empty(), "nothing is there yet");
            send(&far).unwrap();
            assert!(rig.result_of(token) & libc::POLLIN as i32 != 0);
            send(&far).unwrap();
            assert!(rig.poll().is_empty(), "told although nobody asked");
            // What is there already is told, too.
            let token = rig.start(readable(&near));
            assert!(rig.result_of(token) & libc::POLLIN as i32 != 0);
            while receive(&near).is_ok() {}
        }
    });
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn the_end_of_a_peer_is_readable() {
    each_engine(|rig, kind| {
        let (near, far) = socket_pair(kind);
        let token = rig.start(readable(&near));
        assert!(rig.poll().is_empty());
        // A datagram socket does not hear of its peer's end (unix(7)), but of its own shutdown.
        if kind == SocketType::DGRAM {
            rustix::net::shutdown(&near, rustix::net::Shutdown::Read).unwrap();
        }
        drop(far);
        assert!(rig.result_of(token) > 0);
    });
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn writable_is_told_once_there_is_room() {
    each_engine(|rig, kind| {
        let (near, far) = socket_pair(kind);
        let token = rig.start(writable(&near));
        assert!(rig.result_of(token) & libc::POLLOUT as i32 != 0);
        fill(&near);
        let token = rig.start(writable(&near));
        assert!(rig.poll().is_empty(), "the socket is full");
        while receive(&far).is_ok() {}
        assert!(rig.result_of(token) & libc::POLLOUT as i32 != 0);
        send(&near).unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn a_full_receiver_of_datagrams_is_told_when_it_has_room() {
    each_engine(|rig, kind| {
        if kind != SocketType::DGRAM {
            return;
        }
        // Connected one way only: now net.unix.max_dgram_qlen counts, not the buffer of the sender.
        let new = || rustix::net::socket(AddressFamily::UNIX, kind, None).unwrap();
        let (near, far) = (new(), new());
        let name = format!("ringpost-readiness-{}", std::process::id());
        let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        rustix::net::bind(&far, &address).unwrap();
        rustix::net::connect(&near, &address).unwrap();
        let sent = fill(&near);
        let token = rig.start(writable(&near));
        assert!(rig.poll().is_empty(), "the receiver is full with {sent} datagrams");
        receive(&far).unwrap();
        assert!(rig.result_of(token) & libc::POLLOUT as i32 != 0);
        send(&near).unwrap();
    });
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn both_readinesses_of_one_socket_are_told_apart() {
    each_engine(|rig, kind| {
        let (near, far) = socket_pair(kind);
        fill(&near);
        let read = rig.start(readable(&near));
        let write = rig.start(writable(&near));
        assert!(rig.poll().is_empty());
        send(&far).unwrap();
        assert!(rig.result_of(read) & libc::POLLIN as i32 != 0);
        while receive(&far).is_ok() {}
        assert!(rig.result_of(write) & libc::POLLOUT as i32 != 0);
    });
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn cancelled_readiness_ends() {
    each_engine(|rig, kind| {
        let (near, far) = socket_pair(kind);
        fill(&near);
        for request in [readable(&near), writable(&near)] {
            let token = rig.start(request);
            assert!(rig.poll().is_empty());
            let cancel = rig.start(Request::Cancel { target: token, fd: near.as_raw_fd() });
            let mut ends = rig.wait();
            while ends.len() < 2 {
                ends.extend(rig.wait());
            }
            let result = |token| ends.iter().find(|end| end.token == token).unwrap().result;
            assert_eq!(result(token), -libc::ECANCELED);
            assert_eq!(result(cancel), 0);
        }
        send(&far).unwrap();
        while receive(&far).is_ok() {}
        assert!(rig.poll().is_empty(), "told after the end");
        // A cancel that comes too late finds nothing.
        let token = rig.start(readable(&near));
        assert!(rig.result_of(token) > 0);
        let cancel = rig.start(Request::Cancel { target: token, fd: near.as_raw_fd() });
        assert_eq!(rig.result_of(cancel), -libc::ENOENT);
    });
}

/// Asked for anew before the engine has settled, as a dispatcher does, and after.
#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn readiness_can_be_asked_for_at_any_time() {
    each_engine(|rig, kind| {
        let (near, far) = socket_pair(kind);
        let mut token = rig.start(readable(&near));
        for round in 0..6 {
            send(&far).unwrap();
            let mut batch = Vec::new();
            while batch.is_empty() {
                rig.engine.enter(true, Some(Instant::now() + PATIENCE)).unwrap();
                rig.engine.reap(&mut batch);
            }
            assert_eq!((batch.len(), batch[0].token), (1, token));
            while receive(&near).is_ok() {}
            if round % 2 == 0 {
                token = rig.start(readable(&near));
                rig.engine.settle();
            } else {
                rig.engine.settle();
                token = rig.start(readable(&near));
            }
            assert!(rig.poll().is_empty());
        }
        // The other direction in between.
        let write = rig.start(writable(&near));
        assert!(rig.result_of(write) > 0);
        send(&far).unwrap();
        assert!(rig.result_of(token) > 0);
    });
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn a_descriptor_number_used_again_is_watched_anew() {
    each_engine(|rig, kind| {
        for _ in 0..3 {
            let (near, far) = socket_pair(kind);
            let token = rig.start(readable(&near));
            send(&far).unwrap();
            assert!(rig.result_of(token) > 0);
        }
    });
}
