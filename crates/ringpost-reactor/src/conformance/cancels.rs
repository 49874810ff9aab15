//! Cancels of every kind of operation in every state.

use super::bench::{Bench, MUCH};
use super::conformance;
use super::subjects::Subject;
use super::trace::{Ask, Line};
use crate::engine::Token;

conformance! {
    every:
        in_the_batch_that_starts_it
        while_it_waits
        after_its_end
        of_nobody
        of_an_older_use_of_the_slot
        twice
        with_bytes_waiting
        with_connections_waiting
        of_a_gathered_send_that_waits;
    plain:
        tells_both_in_one_enter
        of_a_send_in_the_middle;
}

/// One of each kind that waits for ever, with what it works on.
fn waiting<S: Subject>(bench: &mut Bench<S>) -> Vec<(Line, Ask)> {
    let (listener, bell) = (bench.listener(), bench.bell());
    let mut all = vec![(listener, Ask::Accept), (bell, Ask::Doorbell)];
    for ask in [Ask::Receive, Ask::Hangup, Ask::Readable] {
        all.push((bench.pair(), ask));
    }
    for ask in [
        Ask::Writable,
        Ask::Send { len: 100, silent: false },
        Ask::SendParts { lens: vec![50, 50], silent: false },
    ] {
        let line = bench.pair();
        bench.fill(line);
        all.push((line, ask));
    }
    all
}

/// Ended by a cancel, with nothing done: of itself, too, if it was running.
#[track_caller]
fn ends_cancelled<S: Subject>(bench: &mut Bench<S>, target: Token, cancel: Token) {
    let result = bench.end(target);
    // In a race, what it waited for may be told.
    let running = S::ROUNDS > 1 && [-libc::EINTR, 1].contains(&result.min(1));
    assert!(result == -libc::ECANCELED || running, "{result}");
    let hint = bench.end(cancel);
    assert!([0, -libc::ENOENT, -libc::EALREADY].contains(&hint), "{hint}");
}

fn in_the_batch_that_starts_it<S: Subject>(bench: &mut Bench<S>) {
    for (line, ask) in waiting(bench) {
        let target = bench.start(line, ask);
        let cancel = bench.cancel(target);
        ends_cancelled(bench, target, cancel);
    }
    bench.quiet();
}

fn while_it_waits<S: Subject>(bench: &mut Bench<S>) {
    let all = waiting(bench);
    let targets: Vec<_> = all.into_iter().map(|(line, ask)| bench.start(line, ask)).collect();
    bench.perform();
    bench.quiet();
    for target in targets {
        let cancel = bench.cancel(target);
        ends_cancelled(bench, target, cancel);
    }
    bench.quiet();
}

fn tells_both_in_one_enter<S: Subject>(bench: &mut Bench<S>) {
    for (line, ask) in waiting(bench) {
        let target = bench.start(line, ask);
        bench.enter();
        let cancel = bench.cancel(target);
        bench.enter();
        assert_eq!(bench.find(target).expect("it has ended").result, -libc::ECANCELED);
        assert_eq!(bench.find(cancel).expect("it has ended").result, 0);
    }
}

fn after_its_end<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    bench.far_shut(line);
    assert_eq!(bench.end(receive), 0);
    let cancel = bench.cancel(receive);
    assert_eq!(bench.end(cancel), -libc::ENOENT);
    let writable = bench.start(line, Ask::Writable);
    assert!(bench.end(writable) > 0);
    let cancel = bench.cancel(writable);
    assert_eq!(bench.end(cancel), -libc::ENOENT);
}

fn of_nobody<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    for nobody in [Token::new(1 << 20, 0), Token::new(0, 77)] {
        let cancel = bench.start(line, Ask::Cancel(nobody));
        assert_eq!(bench.end(cancel), -libc::ENOENT);
    }
    // A cancel can't be cancelled: it has ended.
    let cancel = bench.start(line, Ask::Cancel(Token::new(1 << 20, 1)));
    bench.end(cancel);
    let again = bench.cancel(cancel);
    assert_eq!(bench.end(again), -libc::ENOENT);
}

fn of_an_older_use_of_the_slot<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let old = bench.receive(line);
    bench.cancel(old);
    bench.end(old);
    bench.perform();
    while bench.referee().live() > 0 {
        bench.enter();
    }
    let new = bench.receive(line);
    assert_eq!(old.slot(), new.slot());
    let cancel = bench.start(line, Ask::Cancel(old));
    assert_eq!(bench.end(cancel), -libc::ENOENT);
    bench.write(line, 100);
    bench.receive_all(new);
}

fn twice<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    bench.perform();
    let (first, second) = (bench.cancel(receive), bench.cancel(receive));
    ends_cancelled(bench, receive, first);
    assert!(bench.end(second) <= 0);
    bench.quiet();
}

/// What was not delivered stays for the next receive.
fn with_bytes_waiting<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    for armed in [false, true] {
        let receive = bench.receive(line);
        if armed {
            bench.perform();
        }
        bench.write(line, 30_000);
        let cancel = bench.cancel(receive);
        bench.end(receive);
        bench.end(cancel);
        bench.provide_all();
        let receive = bench.receive(line);
        bench.receive_all(receive);
        bench.cancel(receive);
        bench.end(receive);
    }
}

fn with_connections_waiting<S: Subject>(bench: &mut Bench<S>) {
    let listener = bench.listener();
    let accept = bench.start(listener, Ask::Accept);
    bench.perform();
    let _clients: Vec<_> = (0..5).map(|_| bench.connect(listener)).collect();
    let cancel = bench.cancel(accept);
    let mut accepted = 0;
    loop {
        let done = bench.next(accept);
        accepted += usize::from(done.result >= 0);
        if !done.more {
            break;
        }
    }
    bench.end(cancel);
    let accept = bench.start(listener, Ask::Accept);
    while accepted < 5 {
        assert!(bench.next(accept).result >= 0);
        accepted += 1;
    }
}

/// A send that has sent a part says so; the rest was not sent.
fn of_a_send_in_the_middle<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let send = bench.send(line, MUCH, false);
    bench.perform();
    for _ in 0..3 {
        bench.enter();
        bench.read(line, 60_000);
    }
    let cancel = bench.cancel(send);
    let taken = bench.end(send);
    assert!(taken > 0 && usize::try_from(taken).unwrap() < MUCH, "{taken}");
    bench.end(cancel);
    bench.read_all(line);
    let send = bench.send(line, 100, false);
    assert!(bench.end(send) > 0);
}

fn of_a_gathered_send_that_waits<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.fill(line);
    let send = bench.start(line, Ask::SendParts { lens: vec![100; 10], silent: false });
    bench.perform();
    let cancel = bench.cancel(send);
    ends_cancelled(bench, send, cancel);
}
