//! One processor for client, server and a busy neighbour that comes first: everything is slow, and nothing
//! is late for the library's own limits, lost or stuck, however the runtimes wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringpost::{Connection, EngineChoice, Listener, Spin};
use ringpost_testkit::child::{self, say};
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::rig::{self, ask, builder, place};
use rustix::process::nice;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::roles;

on_both_engines_alone!(never_spinning, adaptive, always_spinning);

fn never_spinning(engine: EngineChoice) {
    starve(engine, "never", 100);
}

fn adaptive(engine: EngineChoice) {
    starve(engine, "adaptive", 100);
}

/// Each waits in a loop, on the processor that the other needs: the kernel alone gets them on.
fn always_spinning(engine: EngineChoice) {
    starve(engine, "always", 20);
}

/// Longest presence of the neighbour: without it, they finish at once.
const NEIGHBOUR_MAX: Duration = Duration::from_secs(4);

fn starve(engine: EngineChoice, spin: &str, count: u64) {
    let (_directory, path) = place();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            share_a_processor();
            let start = Instant::now();
            while !over.load(Ordering::Relaxed) && start.elapsed() < NEIGHBOUR_MAX {
                std::hint::spin_loop();
            }
        });
        let count = count.to_string();
        let mut server = roles::start("starved-server", engine, &path, &[spin, &count]);
        assert_eq!(server.hear(), "listening");
        let mut client = roles::start("starved-client", engine, &path, &[spin, &count]);
        let answer = client.hear();
        let served = server.hear();
        over.store(true, Ordering::Relaxed);
        assert_eq!(answer, "all came back");
        assert_eq!(served, "served");
        assert!(client.wait(child::LIMIT).success());
        assert!(server.wait(child::LIMIT).success());
    });
}

/// The lowest processor that this process may use.
fn share_a_processor() {
    let allowed = sched_getaffinity(None).expect("own affinity");
    let first = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).expect("at least one");
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).expect("a subset of what is allowed");
}

/// What a child does first.
fn be_starved() {
    share_a_processor();
    // Against the neighbour, 15 of 1039 parts of the processor's time (sched(7)).
    nice(19).expect("anybody may");
}

fn spin(word: &str) -> Spin {
    match word {
        "never" => Spin::Never,
        "always" => Spin::Always,
        _ => Spin::default(),
    }
}

pub(crate) fn serve(engine: EngineChoice, path: &str, how: &str, count: u64) {
    be_starved();
    let runtime = builder(engine).spin(spin(how)).build().expect("a runtime");
    rig::run(&runtime, async {
        let mut listener = Listener::bind(path).expect("bind");
        say("listening");
        let mut connection = listener.accept().await.expect("accept");
        for _ in 0..count {
            let message = connection.recv().await.expect("a message").expect("no end");
            connection.send_message(message).await.expect("the client reads");
        }
        assert!(connection.recv().await.expect("a proper end").is_none());
        connection.shutdown().await.expect("the client reads");
    });
    say("served");
}

pub(crate) fn converse(engine: EngineChoice, path: &str, how: &str, count: u64) {
    be_starved();
    let runtime = builder(engine).spin(spin(how)).build().expect("a runtime");
    // Starved or not, the same outcome of what is tried at the start.
    assert_eq!(runtime.engine().reason, ringpost::EngineReason::ForcedByBuilder);
    rig::run(&runtime, async {
        let mut connection = Connection::connect(path).await.expect("connect");
        for sequence in 0..count {
            ask(&mut connection, sequence, 1000).await;
        }
        connection.shutdown().await.expect("the server reads");
        assert!(connection.recv().await.expect("a proper end").is_none());
    });
    say("all came back");
}
