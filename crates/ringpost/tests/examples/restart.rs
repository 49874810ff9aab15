//! The server that is replaced while it serves.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select};
use ringpost::Connection;
use ringpost_testkit::peer;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use crate::clients::{block_on, connect, plain, write_until_stuck};
use crate::program::{Finished, Program, engines, executable};

/// Where its sockets are.
struct Place {
    _directory: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("server.sock");
        Self { _directory: directory, path }
    }

    fn start(&self, arguments: &[&str]) -> Program {
        let path = self.path.to_str().expect("UTF-8");
        Program::start("restart", &[&["--path", path], arguments].concat())
    }
}

/// The process that says that it serves as this generation.
#[track_caller]
fn ready(program: &Program, generation: u32) -> Pid {
    let line = program.line();
    let (_, said) = line.split_once(&format!("generation {generation}, process ")).expect(&line);
    Pid::from_raw(said.parse().expect("a number")).expect("not zero")
}

/// A process that was started by one of ours. Ended on drop, if it has not.
struct Grandchild(OwnedFd);

impl Grandchild {
    fn new(process: Pid) -> Self {
        Self(pidfd_open(process, PidfdFlags::empty()).expect("it serves"))
    }

    fn signal(&self, signal: Signal) {
        // It may have ended; the descriptor stays with it all the same.
        let _ = pidfd_send_signal(&self.0, signal);
    }
}

impl Drop for Grandchild {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

async fn asks(connection: &mut Connection, text: &str) {
    connection.send(text.as_bytes()).await.expect("open");
    let answer = connection.recv().await.expect("no error").expect("an answer");
    assert_eq!(&answer[..], text.as_bytes());
}

#[test]
fn a_second_instance_takes_over() {
    for engine in engines() {
        let place = Place::new();
        let mut current = place.start(&["--engine", engine]);
        ready(&current, 1);
        block_on(async {
            for generation in 2..=4 {
                let mut client = connect(&place.path).await;
                asks(&mut client, "before").await;
                let next = place.start(&["--engine", engine, "--takeover"]);
                // The old one asks the client to leave, and serves it until it does.
                {
                    let (sender, receiver) = client.halves();
                    match select(pin!(receiver.recv()), pin!(sender.peer_going_away())).await {
                        Either::Left((other, _)) => panic!("{other:?}"),
                        Either::Right(_) => {}
                    }
                }
                ready(&next, generation);
                asks(&mut client, "after").await;
                client.shutdown().await.expect("open");
                assert!(client.recv().await.expect("no error").is_none(), "a clean end");
                let finished = std::mem::replace(&mut current, next).finish();
                assert_eq!(finished.code, Some(0), "{finished:#?}");
            }
            asks(&mut connect(&place.path).await, "served").await;
        });
        current.finish_by(Signal::TERM, &place.path);
    }
}

#[test]
fn connections_move() {
    for engine in engines() {
        let place = Place::new();
        let mut current = place.start(&["--engine", engine]);
        ready(&current, 1);
        block_on(async {
            let mut client = connect(&place.path).await;
            for generation in 2..=4 {
                asks(&mut client, "before").await;
                let flags = ["--engine", engine, "--takeover", "--keep-connections"];
                let next = place.start(&flags);
                ready(&next, generation);
                // The old one ends although the client stays.
                let finished = std::mem::replace(&mut current, next).finish();
                assert_eq!(finished.code, Some(0), "{finished:#?}");
                asks(&mut client, "after").await;
                assert!(!client.halves().1.peer_is_going_away());
            }
        });
        current.finish_by(Signal::TERM, &place.path);
    }
}

#[test]
fn a_client_that_does_not_read_stays() {
    let place = Place::new();
    let old = place.start(&["--drain-ms", "100"]);
    ready(&old, 1);
    let mut greedy = plain(&place.path);
    greedy.write_all(&peer::greeting()).expect("room");
    write_until_stuck(&greedy, &peer::message(b"0123456").repeat(4096));
    block_on(async {
        let mut client = connect(&place.path).await;
        asks(&mut client, "before").await;
        let next = place.start(&["--takeover", "--keep-connections"]);
        ready(&next, 2);
        asks(&mut client, "after").await;
        // It holds nobody up, and is cut when the drain is over.
        let finished = old.finish();
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        assert!(finished.errors.iter().any(|line| line.contains("1 connections")), "{finished:#?}");
        drop(client);
        next.finish_by(Signal::TERM, &place.path);
    });
}

/// Its clients may take long to leave; whoever stops the program does not wait for them.
#[test]
fn a_replaced_instance_can_be_stopped() {
    let place = Place::new();
    let old = place.start(&["--drain-ms", "3600000"]);
    ready(&old, 1);
    block_on(async {
        let mut client = connect(&place.path).await;
        asks(&mut client, "before").await;
        let next = place.start(&["--takeover"]);
        ready(&next, 2);
        asks(&mut client, "after").await;
        old.signal(Signal::TERM);
        let finished = old.finish();
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        drop(client);
        asks(&mut connect(&place.path).await, "served").await;
        next.finish_by(Signal::TERM, &place.path);
    });
}

/// A new instance takes over from `first`, serves, and is ended. How `first` has ended.
#[track_caller]
fn hang_up(place: &Place, first: Program) -> Finished {
    first.signal(Signal::HUP);
    // The new one has the same standard output.
    let second = Grandchild::new(ready(&first, 2));
    block_on(async { asks(&mut connect(&place.path).await, "served").await });
    second.signal(Signal::TERM);
    let finished = first.finish();
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    finished
}

#[test]
fn a_hangup_replaces_it_and_a_failure_does_not() {
    let place = Place::new();
    let first = place.start(&[]);
    ready(&first, 1);
    block_on(async {
        let mut client = connect(&place.path).await;
        asks(&mut client, "before").await;
        let failing = place.start(&["--takeover", "--fail"]).finish();
        assert_eq!(failing.code, Some(1), "{failing:#?}");
        asks(&mut client, "still there").await;
        client.shutdown().await.expect("open");
        assert!(client.recv().await.expect("no error").is_none());
    });
    let finished = hang_up(&place, first);
    assert!(finished.errors.iter().any(|line| line.starts_with("not replaced: ")), "{finished:#?}");
    ringpost_testkit::patience::eventually("the path is free", Duration::from_secs(10), || {
        !place.path.exists()
    });
}

/// As an installer or a build does it: the file of the running version has no name any more.
#[test]
fn a_hangup_starts_what_has_taken_its_place() {
    let place = Place::new();
    let file = place.path.with_extension("program");
    let install = || {
        let new = file.with_extension("new");
        std::fs::copy(executable("restart"), &new).expect("a copy");
        std::fs::rename(&new, &file).expect("renamed");
    };
    install();
    let path = place.path.to_str().expect("UTF-8");
    let first = Program::start_file(&file, "restart", &["--path", path], &[]);
    ready(&first, 1);
    install();
    hang_up(&place, first);
}

#[test]
fn without_a_server_there_is_nothing_to_take_over() {
    let place = Place::new();
    let finished = place.start(&["--takeover"]).finish();
    assert_eq!(finished.code, Some(1), "{finished:#?}");
    assert!(finished.errors[0].contains("there is no such path"), "{finished:#?}");
}
