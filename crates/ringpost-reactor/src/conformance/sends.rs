//! Sends: silent and told, plain and gathered, whole, short and refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bench::{Bench, MUCH};
use super::conformance;
use super::subjects::Subject;
use super::trace::{Ask, Line};
use crate::engine::Token;

conformance! {
    every:
        a_short_silent_send_tells_how_much
        a_send_waits_for_room
        a_send_to_a_closed_peer_is_a_broken_pipe
        a_send_after_shutdown_is_a_broken_pipe
        a_send_that_waits_hears_of_the_close
        gathered_sends_of_any_shape
        a_long_gathered_send
        bytes_go_both_ways;
    plain:
        a_send_waits_for_a_peer_that_has_shut_down
        a_silent_send_that_fits_says_nothing
        a_refused_silent_send_says_so_at_once
        a_short_silent_send_says_so_at_once
        a_told_send_that_fits_is_told_whole
        sends_of_nothing;
}

/// Sends until `len` bytes have been taken; the far end reads on.
fn send_whole<S: Subject>(bench: &mut Bench<S>, line: Line, len: usize) {
    let mut rest = len;
    while rest > 0 {
        let token = bench.send(line, rest, false);
        while bench.referee().is_live(token) {
            bench.enter();
            bench.read_all(line);
        }
        let taken = bench.end(token);
        rest -= usize::try_from(taken).expect("nothing is broken");
    }
}

/// It ends with room or with the peer, and not before.
fn a_send_waits_for_a_peer_that_has_shut_down<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.fill(line);
    bench.far_shut(line);
    let send = bench.send(line, 1000, false);
    bench.quiet();
    bench.read_all(line);
    assert!(bench.end(send) > 0);
    bench.fill(line);
    let send = bench.send(line, 1000, false);
    bench.quiet();
    bench.far_close(line);
    assert_eq!(bench.end(send), -libc::EPIPE);
}

/// Performs a silent send; its result, if it is told.
fn silently<S: Subject>(bench: &mut Bench<S>, line: Line, len: usize) -> Option<i32> {
    let token = bench.send(line, len, true);
    bench.enter();
    bench.find(token).map(|done| done.result)
}

fn a_silent_send_that_fits_says_nothing<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    for len in [1, 100, 5000, 60_000] {
        assert_eq!(silently(bench, line, len), None);
        bench.quiet();
        assert_eq!(bench.read_all(line), len);
    }
    let token = bench.start(line, Ask::SendParts { lens: vec![10, 2000, 1], silent: true });
    bench.enter();
    assert!(!bench.referee().is_live(token));
    assert_eq!(bench.read_all(line), 2011);
}

fn a_short_silent_send_says_so_at_once<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let taken = silently(bench, line, MUCH).expect("that much never fits");
    assert!(taken > 0 && usize::try_from(taken).unwrap() < MUCH, "{taken}");
    assert_eq!(bench.read_all(line), usize::try_from(taken).unwrap());
    let token = bench.start(line, Ask::SendParts { lens: vec![MUCH / 4; 4], silent: true });
    bench.enter();
    let taken = bench.find(token).expect("that much never fits").result;
    assert!(taken > 0 && usize::try_from(taken).unwrap() < MUCH, "{taken}");
    assert_eq!(bench.read_all(line), usize::try_from(taken).unwrap());
}

fn a_refused_silent_send_says_so_at_once<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.fill(line);
    assert_eq!(silently(bench, line, 100), Some(-libc::EAGAIN));
    let token = bench.start(line, Ask::SendParts { lens: vec![50, 50], silent: true });
    bench.enter();
    assert_eq!(bench.find(token).expect("it does not fit").result, -libc::EAGAIN);
    bench.read_all(line);
    assert_eq!(silently(bench, line, 100), None);
}

fn a_short_silent_send_tells_how_much<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    for _ in 0..4 {
        let filled = bench.fill(line);
        assert_eq!(bench.read_all(line), filled);
    }
}

fn a_told_send_that_fits_is_told_whole<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let token = bench.send(line, 5000, false);
    assert_eq!(bench.end(token), 5000);
    let parts = bench.start(line, Ask::SendParts { lens: vec![3000, 7], silent: false });
    assert_eq!(bench.end(parts), 3007);
}

fn a_send_waits_for_room<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.fill(line);
    let token = bench.send(line, 100, false);
    bench.perform();
    bench.quiet();
    assert!(bench.referee().is_live(token), "it does not fit, and ended");
    bench.read_all(line);
    assert!(bench.end(token) > 0);
    bench.fill(line);
    let parts = bench.start(line, Ask::SendParts { lens: vec![40, 60], silent: false });
    bench.perform();
    bench.quiet();
    assert!(bench.referee().is_live(parts), "it does not fit, and ended");
    bench.read_all(line);
    assert!(bench.end(parts) > 0);
    send_whole(bench, line, 1 << 20);
}

/// Registers a flag that SIGPIPE would set; the signal is ignored otherwise.
fn broken_pipes() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(libc::SIGPIPE, Arc::clone(&flag)).unwrap();
    flag
}

#[track_caller]
fn breaks<S: Subject>(bench: &mut Bench<S>, line: Line) {
    let signalled = broken_pipes();
    for silent in [true, false] {
        let token = bench.send(line, 100, silent);
        assert_eq!(bench.end(token), -libc::EPIPE);
        let token = bench.start(line, Ask::SendParts { lens: vec![5, 5], silent });
        assert_eq!(bench.end(token), -libc::EPIPE);
    }
    assert!(!signalled.load(Ordering::Relaxed), "SIGPIPE was raised");
}

fn a_send_to_a_closed_peer_is_a_broken_pipe<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.far_close(line);
    breaks(bench, line);
}

fn a_send_after_shutdown_is_a_broken_pipe<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let token = bench.send(line, 500, false);
    assert!(bench.end(token) > 0);
    bench.near_shut(line);
    breaks(bench, line);
}

fn a_send_that_waits_hears_of_the_close<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.fill(line);
    let token = bench.send(line, 100, false);
    bench.perform();
    bench.far_close(line);
    let result = bench.end(token);
    assert!([-libc::EPIPE, -libc::ECONNRESET].contains(&result), "{result}");
}

fn gathered_sends_of_any_shape<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let shapes = [
        vec![7],
        vec![1, 1],
        vec![0, 9],
        vec![9, 0],
        vec![0, 5, 0, 0, 3000, 0],
        vec![1; 128],
        (0..128).map(|part| part % 3 * 100).collect(),
        vec![20_000, 1, 20_000],
    ];
    for lens in shapes {
        for silent in [true, false] {
            let ask = Ask::SendParts { lens: lens.clone(), silent };
            let token = bench.start(line, ask);
            bench.perform();
            // Sent in small pieces, it may fill the socket.
            while bench.referee().is_live(token) {
                bench.enter();
                bench.read_all(line);
            }
            if !silent {
                assert!(bench.end(token) > 0);
            }
            bench.read_all(line);
            assert_eq!(bench.referee().unread(line), 0);
        }
    }
}

/// More than fits, gathered: whatever is taken of it is a front part.
fn a_long_gathered_send<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let ask = Ask::SendParts { lens: vec![30_000; 40], silent: false };
    let token = bench.start(line, ask);
    let mut read = 0;
    while bench.referee().is_live(token) {
        bench.enter();
        read += bench.read_all(line);
    }
    let taken = usize::try_from(bench.end(token)).unwrap();
    read += bench.read_all(line);
    assert_eq!(read, taken);
}

fn sends_of_nothing<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    assert_eq!(silently(bench, line, 0), None);
    let token = bench.send(line, 0, false);
    assert_eq!(bench.end(token), 0);
    let parts = |silent| Ask::SendParts { lens: vec![0, 0], silent };
    let token = bench.start(line, parts(true));
    bench.enter();
    assert!(!bench.referee().is_live(token));
    let token = bench.start(line, parts(false));
    assert_eq!(bench.end(token), 0);
    let _: Token = bench.send(line, 10, true);
    bench.enter();
    assert_eq!(bench.read_all(line), 10);
}

fn bytes_go_both_ways<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    for len in [1, 4096, 16 << 10, 70_000, 3] {
        bench.write(line, len);
        bench.send(line, len, true);
        bench.perform();
        bench.read_all(line);
        bench.receive_all(receive);
    }
}
