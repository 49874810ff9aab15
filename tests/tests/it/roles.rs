//! What child processes do: each role is a function, chosen by the first word.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ringpost::{Connection, ConnectionOptions, EngineChoice};
use ringpost_testkit::child::{self, Child, say, told};
use ringpost_testkit::pattern;
use ringpost_testkit::peer::{RawPeer, greeting, message};
use ringpost_tests::privileges::{allow_descriptors, become_member};
use ringpost_tests::rig;

/// Starts a child in a role.
pub(crate) fn start(role: &str, words: &[&str]) -> Child {
    let mut all = vec![role];
    all.extend(words);
    Child::start(concat!(module_path!(), "::play"), &all)
}

/// The child's side. As a test of its own it does nothing.
#[test]
fn play() {
    let Some(words) = child::role() else { return };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["clients", path, count] => clients(path.as_ref(), count.parse().expect("a number")),
        ["writer", path, hex, greets] => writer(path.as_ref(), &from_hex(hex), greets == "greets"),
        ["sender", path, engine, count] => sender(path, engine, count.parse().expect("a number")),
        ["generation", path, engine, ref settings @ ..] => {
            crate::restart::generation::play(path, engine, settings);
        }
        ["user", path, id] => user(path, id.parse().expect("a number"), &[]),
        ["member", path, id, group] => {
            user(path, id.parse().expect("a number"), &[group.parse().expect("a number")]);
        }
        _ => panic!("no such role: {words:?}"),
    }
}

/// Once told to start, opens connections, asks once on each, and keeps them until told to close.
fn clients(path: &Path, count: usize) {
    assert_eq!(told().as_deref(), Some("start"));
    assert!(allow_descriptors(count as u64 + 500), "descriptors");
    let mut peers = Vec::with_capacity(count);
    for sequence in 0..count as u64 {
        // A full backlog is no failure: the server accepts.
        let mut peer = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break RawPeer::new(stream),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        peer.send(&greeting());
        peer.send(&message(&pattern::payload(sequence, 64)));
        peers.push(peer);
    }
    for (sequence, peer) in (0..).zip(&mut peers) {
        peer.read_hello();
        pattern::check(sequence, 64, &peer.read_message());
    }
    if told().as_deref() == Some("close") {
        drop(peers);
        say("closed");
        told();
    }
}

/// For each length, opens a connection and writes so many bytes of a script; then waits to be killed.
fn writer(path: &Path, script: &[u8], greets: bool) {
    let mut peers = Vec::new();
    for len in 0..=script.len() {
        let mut peer = RawPeer::connect(path);
        peer.send(&script[..len]);
        if greets {
            peer.read_hello();
        }
        peers.push(peer);
    }
    say("written");
    told();
}

/// Sends messages, waits until the kernel has them, and dies.
fn sender(path: &str, engine: &str, count: u64) {
    let engine = if engine == "uring" { EngineChoice::Uring } else { EngineChoice::Epoll };
    rig::block_on(engine, async {
        let mut connection = Connection::connect(path).await.expect("connect");
        for sequence in 0..count {
            let fill = |bytes: &mut [u8]| pattern::fill(sequence, bytes);
            connection.send_with(1000, fill).await.expect("the server reads");
        }
        connection.flush().await.expect("the server reads");
        say("flushed");
        let pid = rustix::process::getpid();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("to ourselves");
    });
}

/// Connects as another user, says hello, and tells what became of it.
fn user(path: &str, user: u32, groups: &[u32]) {
    become_member(user, groups);
    rig::block_on(EngineChoice::Epoll, async {
        let options = ConnectionOptions::new();
        let mut connection = match Connection::connect_with(path, options).await {
            Ok(connection) => connection,
            Err(error) => return say(&format!("not connected: {error}")),
        };
        say(&std::process::id().to_string());
        // The server may have closed; receiving says why.
        let _ = connection.send(b"hello").await;
        match connection.recv().await {
            Ok(Some(answer)) => say(&format!("answered: {}", String::from_utf8_lossy(&answer))),
            Ok(None) => say("ended"),
            Err(error) => say(&format!("failed: {error}")),
        }
    });
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(digits).collect()
}
