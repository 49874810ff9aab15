//! SIGKILL before every system call of a handover, of the successor and of the predecessor: either there is a
//! server, or the next one starts at once, whatever was left. (At the steps of the protocol, with what is
//! told then: [`super::failures`].)
//!
//! Of the predecessor's system calls every third is taken, and all with `RINGPOST_FAULTS=all`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringpost::EngineChoice;
use ringpost_testkit::child::{Child, LIMIT, skip};
use ringpost_testkit::peer::{greeting, message};
use ringpost_testkit::trace::{Step, Traced};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::place;

use super::generation::start;

on_both_engines!(a_successor, a_predecessor);

const QUESTION: &[u8] = b"a question";

/// Asks whoever listens at the path on a new connection; false if that ends without an answer.
fn ask(path: &str) -> bool {
    let Ok(mut peer) = UnixStream::connect(path) else { return false };
    peer.set_read_timeout(Some(LIMIT)).expect("a socket");
    let words = [&greeting()[..], &message(QUESTION)].concat();
    let mut answer = Vec::new();
    let mut bytes = [0; 256];
    if peer.write_all(&words).is_err() {
        return false;
    }
    loop {
        match peer.read(&mut bytes) {
            Ok(count @ 1..) => answer.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("neither an answer nor an end within {LIMIT:?}");
            }
            Ok(_) | Err(_) => return false,
        }
        if answer.windows(QUESTION.len()).any(|window| window == QUESTION) {
            return true;
        }
    }
}

/// A generation that serves.
#[track_caller]
fn serving(path: &str, engine: EngineChoice, settings: &[&str]) -> Child {
    let mut child = start(path, engine, settings);
    let line = child.hear();
    assert!(line.starts_with("serving"), "{line}");
    child
}

/// The successor is killed: the predecessor serves on, or has ended because it had handed over.
fn a_successor(engine: EngineChoice) {
    /// Kills in a row of a successor that had taken over, before the sweep ends.
    const TAKEN_OVER: u32 = 10;
    let (_directory, path) = place();
    let path = path.to_str().expect("text");
    let mut old = serving(path, engine, &[]);
    let (mut calls, mut taken) = (0, 0);
    while taken < TAKEN_OVER {
        let child = start(path, engine, &["led"]);
        let Ok(mut traced) = Traced::seize(child) else {
            return skip("it::restart::killed::a_successor", "ptrace is not allowed");
        };
        // Once it serves it makes no calls without clients.
        let over = AtomicBool::new(false);
        let step = thread::scope(|scope| {
            let clients = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(50));
                    let _ = UnixStream::connect(path);
                }
            });
            let step = traced.steps(calls);
            over.store(true, Ordering::Relaxed);
            // ThreadSanitizer sees a join, but not how a scope ends.
            clients.join().expect("no panic");
            step
        });
        traced.kill();
        assert_eq!(step, Step::Stopped, "it serves until it is told to end");
        let end = Instant::now() + LIMIT;
        let served = loop {
            assert!(Instant::now() < end, "neither served nor ended after {calls} calls");
            if ask(path) {
                break true;
            }
            if !old.is_running() {
                break false;
            }
        };
        if served {
            // Whether the predecessor has committed by then is a matter of its own pace.
            taken = 0;
        } else {
            taken += 1;
            old = serving(path, engine, &[]);
            assert!(ask(path), "the next one serves");
        }
        calls += 1;
    }
    println!("{calls} calls");
    assert!(calls > 40, "a take-over has {calls} system calls");
}

/// The predecessor is killed: the successor serves, alone or as if there had been none, or says why it does not,
/// and the next one serves.
fn a_predecessor(engine: EngineChoice) {
    let (_directory, path) = place();
    let path = path.to_str().expect("text");
    let mut outcomes = std::collections::BTreeMap::new();
    let all = std::env::var("RINGPOST_FAULTS").is_ok_and(|value| value == "all");
    let stride: usize = if all { 1 } else { 3 };
    println!("every {stride}. system call; all with RINGPOST_FAULTS=all");
    // The engines begin at different ones.
    let first = if engine == EngineChoice::Epoll { stride / 2 } else { 0 };
    for calls in (first..).step_by(stride) {
        let old = serving(path, engine, &["led-serving"]);
        let Ok(mut traced) = Traced::seize(old) else {
            return skip("it::restart::killed::a_predecessor", "ptrace is not allowed");
        };
        let mut next = start(path, engine, &[]);
        let step = traced.steps(calls.try_into().expect("few"));
        traced.kill();
        let line = next.hear();
        let words: String = line.split(": ").next().expect("a first part").to_owned();
        if !line.starts_with("serving") {
            next = serving(path, engine, &[]);
        }
        assert!(ask(path), "after {line}");
        *outcomes.entry(words).or_insert(0) += 1;
        next.kill();
        if step == Step::Ended {
            println!("{calls} calls: {outcomes:#?}");
            assert!(calls > 30, "a handover has {calls} system calls");
            return;
        }
    }
}
