//! Processes that stand still (SIGSTOP) and go on (SIGCONT): nothing is lost, others are not delayed, timers
//! fire once and in order, and a stall during start-up changes nothing.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use ringpost::{Connection, EngineChoice, Listener, Spin, sleep, spawn};
use ringpost_testkit::Signal;
use ringpost_testkit::trace::{Step, Traced};
use ringpost_testkit::{child, pattern};
use ringpost_tests::rig::{Bystander, blocking, builder, place, run};
use ringpost_tests::{on_both_engines, on_both_engines_alone};

use crate::roles;

on_both_engines!(
    a_peer_for_five_seconds,
    the_process_itself,
    a_stall_in_start_up,
    a_server_on_its_way,
);
on_both_engines_alone!(a_peer_again_and_again);

/// Messages that a peer sends in these tests, and their length.
pub(crate) const COUNT: u64 = 20_000;
pub(crate) const LEN: usize = 500;

/// The peer is stopped in the middle of its messages: they pause and go on, and all of them come.
fn a_peer_for_five_seconds(engine: EngineChoice) {
    stop_a_peer(engine, &[Duration::from_secs(5)]);
}

fn a_peer_again_and_again(engine: EngineChoice) {
    stop_a_peer(engine, &[Duration::from_millis(30); 20]);
}

fn stop_a_peer(engine: EngineChoice, stops: &[Duration]) {
    let (_directory, path) = place();
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let mut listener = Listener::bind(&path).expect("bind");
        let child = roles::start("talker", engine, &path, &[]);
        let mut connection = listener.accept().await.expect("accept");
        let mut next = 0;
        for (round, stop) in stops.iter().enumerate() {
            // Somewhere in the middle.
            let share = (round as u64 + 1) * COUNT / (stops.len() as u64 + 1);
            while next < share {
                receive(&mut connection, &mut next).await;
            }
            child.signal(Signal::SIGSTOP);
            let start = Instant::now();
            let mut checks = 0;
            while start.elapsed() < *stop {
                bystander.check().await;
                checks += 1;
                sleep(Duration::from_millis(5)).await;
            }
            assert!(checks > 0, "the others were served");
            // What it had sent before it was stopped is there; what is sent to it waits.
            child.signal(Signal::SIGCONT);
        }
        while next < COUNT {
            receive(&mut connection, &mut next).await;
        }
        connection.shutdown().await.expect("it reads");
        assert!(connection.recv().await.expect("a proper end").is_none());
        let child = blocking(move || {
            let mut child = child;
            assert_eq!(child.hear(), "all came back");
            child
        });
        drop(child.await);
        bystander.check().await;
    });
}

/// Receives the next message and sends it back.
async fn receive(connection: &mut Connection, next: &mut u64) {
    let message = connection.recv().await.expect("a message").expect("no end");
    pattern::check(*next, LEN, &message);
    *next += 1;
    connection.send_message(message).await.expect("it reads");
}

/// Suspended with everything that it waits for: each timer fires once, in order, and none is too early.
fn the_process_itself(engine: EngineChoice) {
    let (_directory, path) = place();
    let mut child = roles::start("sleeper", engine, &path, &[]);
    assert_eq!(child.hear(), "asleep");
    for _ in 0..3 {
        child.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(400));
        child.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(child.hear(), "each once and in order");
    assert!(child.wait(child::LIMIT).success());
}

/// A process that stands still while it builds a runtime, for longer than any patience of the library, at
/// each of its system calls in turn: it gets the same engine with the same capabilities as without.
fn a_stall_in_start_up(engine: EngineChoice) {
    const STALL: Duration = Duration::from_millis(250);
    /// Stalled at once, so that this takes seconds and not minutes.
    const TOGETHER: u32 = 16;
    let (_directory, path) = place();
    let undisturbed = {
        let mut child = roles::start("builder", engine, &path, &[]);
        child.line("thread");
        child.tell("go");
        child.hear()
    };
    let mut calls = 0;
    let mut ended = false;
    while !ended {
        // Each child has a tracer of its own, which is a thread.
        let tracers: Vec<_> = (0..TOGETHER)
            .map(|index| {
                let (path, expected) = (path.clone(), undisturbed.clone());
                std::thread::spawn(move || {
                    let child = roles::start("builder", engine, &path, &[]);
                    let Ok(mut traced) = Traced::seize(child) else {
                        child::skip(
                            "faults::stopped::a_stall_in_start_up",
                            "ptrace is not allowed",
                        );
                        return true;
                    };
                    let step = traced.steps(calls + index);
                    if step == Step::Ended {
                        return true;
                    }
                    std::thread::sleep(STALL);
                    let found = traced.release().hear();
                    assert_eq!(found, expected, "stalled before call {}", calls + index);
                    false
                })
            })
            .collect();
        for tracer in tracers {
            ended |= tracer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        calls += TOGETHER;
    }
    println!("{calls} calls; {undisturbed}");
}

/// A server stands still before each of its system calls in turn, until it can be reached: whoever finds its
/// socket at the path can connect to it, and a socket that nobody is behind is there until it is replaced.
fn a_server_on_its_way(engine: EngineChoice) {
    for leftover in [false, true] {
        let (_directory, path) = place();
        if leftover {
            drop(UnixListener::bind(&path).expect("bind"));
        }
        let number = || std::fs::symlink_metadata(&path).ok().map(|found| found.ino());
        let before = number();
        let child = roles::start("server", engine, &path, &[]);
        let Ok(mut traced) = Traced::seize(child) else {
            return child::skip("stopped::a_server_on_its_way", "ptrace is not allowed");
        };
        let mut calls = 0;
        let connected = loop {
            assert_eq!(traced.step(), Step::Stopped, "it serves until it is told to end");
            let there = number();
            if there != before {
                assert!(there.is_some(), "what was there is gone before call {calls}");
                break UnixStream::connect(&path);
            }
            calls += 1;
        };
        traced.kill();
        connected.unwrap_or_else(|error| panic!("found before call {calls}: {error}"));
        assert!(calls > 5, "a start has {calls} system calls");
    }
}

/// The talker's side: sends its messages, and takes them back.
pub(crate) fn talk(engine: EngineChoice, path: &str) {
    let runtime = builder(engine).build().expect("a runtime");
    run(&runtime, async {
        let (mut sender, mut receiver) = Connection::connect(path).await.expect("connect").split();
        let sending = spawn(async move {
            for sequence in 0..COUNT {
                let fill = |bytes: &mut [u8]| pattern::fill(sequence, bytes);
                sender.send_with(LEN, fill).await.expect("the server reads");
            }
            sender.shutdown().await.expect("the server reads");
        });
        for sequence in 0..COUNT {
            let message = receiver.recv().await.expect("a message").expect("no end");
            pattern::check(sequence, LEN, &message);
        }
        assert!(receiver.recv().await.expect("a proper end").is_none());
        sending.await.expect("no panic");
    });
    child::say("all came back");
}

/// The sleeper's side: timers around the moments at which it is stopped.
pub(crate) fn nap(engine: EngineChoice) {
    const TIMERS: u64 = 300;
    let runtime = builder(engine).build().expect("a runtime");
    run(&runtime, async {
        let fired = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let start = Instant::now();
        // Made in another order than they are due.
        for index in (0..TIMERS).map(|index| index * 7 % TIMERS) {
            let fired = std::rc::Rc::clone(&fired);
            spawn(async move {
                let due = start + Duration::from_millis(200 + index * 4);
                ringpost::sleep_until(due).await;
                assert!(Instant::now() >= due, "too early");
                fired.borrow_mut().push(index);
            });
        }
        // All of them have asked for their timer before the process is stopped.
        ringpost::yield_now().await;
        ringpost::yield_now().await;
        child::say("asleep");
        until_all(&fired, TIMERS).await;
        sleep(Duration::from_millis(20)).await;
        let expected: Vec<u64> = (0..TIMERS).collect();
        assert_eq!(*fired.borrow(), expected);
    });
    child::say("each once and in order");
}

async fn until_all(fired: &std::cell::RefCell<Vec<u64>>, count: u64) {
    while (fired.borrow().len() as u64) < count {
        sleep(Duration::from_millis(5)).await;
    }
}

/// The builder's side: builds a runtime, and tells what it got.
pub(crate) fn build(engine: EngineChoice) {
    ringpost_testkit::trace::offer();
    let runtime = builder(engine).build();
    child::say(&match runtime {
        Ok(runtime) => format!("{} {:?}", runtime.engine(), runtime.engine().capabilities),
        Err(error) => format!("failed: {error}"),
    });
}
