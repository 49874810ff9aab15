//! Accepts.

use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::net::{RecvFlags, SendFlags};

use super::bench::Bench;
use super::conformance;
use super::subjects::Subject;
use super::trace::Ask;

conformance! {
    every:
        many_before_and_after
        what_is_accepted_works
        a_listener_that_was_shut_down;
    plain: waits_for_a_connection;
}

fn many_before_and_after<S: Subject>(bench: &mut Bench<S>) {
    let listener = bench.listener();
    let mut clients = Vec::new();
    for _ in 0..150 {
        clients.push(bench.connect(listener));
    }
    let accept = bench.start(listener, Ask::Accept);
    for round in 0..4 {
        for _ in 0..if round == 0 { 150 } else { 7 } {
            let done = bench.next(accept);
            assert!(done.more && done.result >= 0, "{done:?}");
            drop(bench.accepted());
        }
        for _ in 0..7 {
            clients.push(bench.connect(listener));
        }
    }
}

fn what_is_accepted_works<S: Subject>(bench: &mut Bench<S>) {
    let listener = bench.listener();
    let accept = bench.start(listener, Ask::Accept);
    let client = bench.connect(listener);
    assert!(bench.next(accept).result >= 0);
    let served = bench.accepted();
    assert!(rustix::fs::fcntl_getfl(&served).unwrap().contains(OFlags::NONBLOCK));
    assert!(rustix::io::fcntl_getfd(&served).unwrap().contains(FdFlags::CLOEXEC));
    rustix::net::send(&client, b"hello", SendFlags::NOSIGNAL).unwrap();
    let mut bytes = [0; 9];
    assert_eq!(rustix::net::recv(&served, &mut bytes, RecvFlags::DONTWAIT).unwrap().1, 5);
}

fn waits_for_a_connection<S: Subject>(bench: &mut Bench<S>) {
    let listener = bench.listener();
    let accept = bench.start(listener, Ask::Accept);
    bench.quiet();
    let _client = bench.connect(listener);
    bench.enter();
    assert!(bench.find(accept).is_some_and(|done| done.more && done.result >= 0));
    bench.quiet();
}

/// It ends, or hears nothing more; but nobody is kept busy by it.
fn a_listener_that_was_shut_down<S: Subject>(bench: &mut Bench<S>) {
    let listener = bench.listener();
    let accept = bench.start(listener, Ask::Accept);
    bench.perform();
    rustix::net::shutdown(bench.near(listener), rustix::net::Shutdown::Both).unwrap();
    let deadline = Instant::now() + Duration::from_millis(50);
    let mut enters = 0;
    while bench.referee().is_live(accept) && (Instant::now() < deadline && S::REAL || enters < 20) {
        bench.enter_waiting(deadline);
        enters += 1;
    }
    assert!(enters <= 20, "a wait ended {enters} times for nothing");
    match bench.find(accept) {
        Some(done) => assert_eq!((done.result, done.more), (-libc::EINVAL, false)),
        None => println!("{}: a listener that was shut down is told nothing", S::NAME),
    }
}
