//! Doorbells, hang-ups and readiness.

use rustix::event::PollFlags;

use super::bench::{Bench, Shape};
use super::conformance;
use super::subjects::Subject;
use super::trace::Ask;

conformance! {
    every:
        a_bell_rung_before_it_is_armed
        a_bell_rung_many_times
        a_bell_rings_again_after_each_look
        a_hangup_is_told_once
        a_shutdown_is_a_hangup
        a_hangup_that_was_before
        readable_is_told_once_for_each_request
        an_end_is_readable
        writable_when_there_is_room
        both_readinesses_are_told_apart
        readable_and_hangup_of_one_socket
        writable_of_a_peer_that_has_shut_down_is_cancelled
        writable_of_many_peers_that_have_shut_down [LITTLE];
    plain:
        a_bell_that_nobody_rings
        writable_of_a_peer_that_has_shut_down
        bytes_are_no_hangup;
}

/// A queue that is full soon.
const LITTLE: Shape = Shape { blocks: 4, block_bytes: 8192, queue_max: 2, provided: 2, spare: 0 };

fn a_bell_that_nobody_rings<S: Subject>(bench: &mut Bench<S>) {
    let bell = bench.bell();
    let doorbell = bench.start(bell, Ask::Doorbell);
    bench.quiet();
    bench.ring(bell);
    bench.enter();
    assert!(bench.find(doorbell).is_some_and(|done| done.more));
    // It is never read, and heard once.
    bench.quiet();
}

fn a_bell_rung_before_it_is_armed<S: Subject>(bench: &mut Bench<S>) {
    let bell = bench.bell();
    bench.ring(bell);
    let doorbell = bench.start(bell, Ask::Doorbell);
    assert!(bench.next(doorbell).more);
}

fn a_bell_rung_many_times<S: Subject>(bench: &mut Bench<S>) {
    let bell = bench.bell();
    let doorbell = bench.start(bell, Ask::Doorbell);
    bench.perform();
    for _ in 0..10 {
        bench.ring(bell);
    }
    assert!(bench.next(doorbell).more);
    // Some of ten may be told together; the engine goes quiet all the same.
    for _ in 0..40 {
        bench.enter();
    }
    while bench.find(doorbell).is_some() {}
    bench.ring(bell);
    assert!(bench.next(doorbell).more);
}

fn a_bell_rings_again_after_each_look<S: Subject>(bench: &mut Bench<S>) {
    let bell = bench.bell();
    let doorbell = bench.start(bell, Ask::Doorbell);
    for _ in 0..20 {
        bench.ring(bell);
        assert!(bench.next(doorbell).more);
    }
}

fn bytes_are_no_hangup<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let hangup = bench.start(line, Ask::Hangup);
    bench.write(line, 100);
    bench.quiet();
    bench.far_close(line);
    assert!(bench.end(hangup) > 0);
}

fn a_hangup_is_told_once<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let hangup = bench.start(line, Ask::Hangup);
    bench.perform();
    bench.far_close(line);
    assert!(bench.end(hangup) > 0);
    bench.quiet();
}

fn a_shutdown_is_a_hangup<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let hangup = bench.start(line, Ask::Hangup);
    let receive = bench.receive(line);
    bench.perform();
    bench.write(line, 20_000);
    bench.far_shut(line);
    assert!(bench.end(hangup) > 0);
    bench.receive_all(receive);
    assert_eq!(bench.end(receive), 0);
}

fn a_hangup_that_was_before<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.far_close(line);
    let hangup = bench.start(line, Ask::Hangup);
    assert!(bench.end(hangup) > 0);
}

fn readable_is_told_once_for_each_request<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let readable = bench.start(line, Ask::Readable);
    bench.quiet();
    bench.write(line, 10);
    assert!(bench.end(readable) > 0);
    bench.quiet();
    // What is there already is told, too.
    let readable = bench.start(line, Ask::Readable);
    assert!(bench.end(readable) > 0);
    bench.quiet();
    let receive = bench.receive(line);
    bench.receive_all(receive);
}

fn an_end_is_readable<S: Subject>(bench: &mut Bench<S>) {
    for armed in [false, true] {
        let line = bench.pair();
        let before = armed.then(|| bench.start(line, Ask::Readable));
        bench.perform();
        bench.far_close(line);
        let readable = before.unwrap_or_else(|| bench.start(line, Ask::Readable));
        assert!(bench.end(readable) > 0);
    }
}

fn writable_when_there_is_room<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let writable = bench.start(line, Ask::Writable);
    assert!(bench.end(writable) > 0);
    bench.fill(line);
    let writable = bench.start(line, Ask::Writable);
    bench.quiet();
    bench.read_all(line);
    assert!(bench.end(writable) > 0);
    bench.quiet();
    bench.far_close(line);
    let writable = bench.start(line, Ask::Writable);
    assert!(bench.end(writable) > 0);
}

fn both_readinesses_are_told_apart<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.fill(line);
    let readable = bench.start(line, Ask::Readable);
    let writable = bench.start(line, Ask::Writable);
    bench.perform();
    bench.write(line, 10);
    assert!(bench.end(readable) > 0);
    bench.read_all(line);
    assert!(bench.end(writable) > 0);
    bench.quiet();
}

fn readable_and_hangup_of_one_socket<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let hangup = bench.start(line, Ask::Hangup);
    let readable = bench.start(line, Ask::Readable);
    bench.perform();
    bench.write(line, 10);
    assert!(bench.end(readable) > 0);
    bench.far_close(line);
    assert!(bench.end(hangup) > 0);
    let readable = bench.start(line, Ask::Readable);
    assert!(bench.end(readable) > 0);
    bench.quiet();
}

/// Without room nothing is told, whatever the kernel's polls report of their own accord.
fn writable_of_a_peer_that_has_shut_down<S: Subject>(bench: &mut Bench<S>) {
    for armed in [false, true] {
        let line = bench.pair();
        bench.fill(line);
        let before = armed.then(|| bench.start(line, Ask::Writable));
        bench.perform();
        bench.far_shut(line);
        let writable = before.unwrap_or_else(|| bench.start(line, Ask::Writable));
        bench.quiet();
        bench.read_all(line);
        assert!(tells(bench.end(writable), PollFlags::OUT));
        bench.fill(line);
        let writable = bench.start(line, Ask::Writable);
        bench.quiet();
        bench.far_close(line);
        let ended = bench.end(writable);
        assert!(ended > 0 && (!S::REAL || tells(ended, PollFlags::HUP)), "{ended:#x}");
        bench.quiet();
    }
}

fn tells(result: i32, what: PollFlags) -> bool {
    result > 0 && result & i32::from(what.bits()) != 0
}

/// At every moment of such a wait, and another for the same socket afterwards.
fn writable_of_a_peer_that_has_shut_down_is_cancelled<S: Subject>(bench: &mut Bench<S>) {
    for enters in 0..6 {
        let line = bench.pair();
        bench.fill(line);
        bench.far_shut(line);
        let writable = bench.start(line, Ask::Writable);
        for _ in 0..enters {
            bench.enter();
        }
        let cancel = bench.cancel(writable);
        // A simulated cancel may come too late.
        let ended = bench.end(writable);
        assert!(!S::REAL || ended == -libc::ECANCELED, "{ended}");
        bench.end(cancel);
        let writable = bench.start(line, Ask::Writable);
        for _ in 0..enters {
            bench.enter();
        }
        bench.read_all(line);
        assert!(bench.end(writable) > 0);
    }
}

/// Many at a time, more than a small queue takes at once.
fn writable_of_many_peers_that_have_shut_down<S: Subject>(bench: &mut Bench<S>) {
    let waits: Vec<_> = (0..10)
        .map(|_| {
            let line = bench.pair();
            bench.fill(line);
            bench.far_shut(line);
            (line, bench.start(line, Ask::Writable))
        })
        .collect();
    for _ in 0..3 {
        bench.enter();
    }
    for (index, (line, writable)) in waits.into_iter().enumerate() {
        if index % 3 == 0 {
            let cancel = bench.cancel(writable);
            bench.end(cancel);
        } else {
            bench.read_all(line);
        }
        bench.end(writable);
    }
}
