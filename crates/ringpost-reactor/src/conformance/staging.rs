//! What `push`, `enter` and `staged` promise.

use super::bench::Bench;
use super::conformance;
use super::subjects::Subject;
use super::trace::Ask;
use crate::engine::Token;

conformance! {
    every:
        a_full_queue_refuses_and_each_request_is_performed_once
        receive_and_cancel_in_one_batch_go_in_order
        sends_of_many_sockets_are_all_performed;
    plain:
        nothing_happens_before_enter
        staged_counts_what_is_left
        one_enter_performs_all;
}

/// Requests that fill the queue of any engine.
const MANY: usize = 5000;

fn nothing_happens_before_enter<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.write(line, 100);
    let receive = bench.receive(line);
    bench.send(line, 50, true);
    let writable_line = bench.pair();
    let writable = bench.start(writable_line, Ask::Writable);
    bench.reap_only();
    bench.nothing();
    assert_eq!(bench.read_all(line), 0, "sent before the enter");
    bench.enter();
    assert_eq!(bench.read_all(line), 50);
    assert_eq!(bench.next(receive).result, 100);
    assert!(bench.end(writable) > 0);
}

fn staged_counts_what_is_left<S: Subject>(bench: &mut Bench<S>) {
    assert_eq!(bench.staged(), 0);
    for count in 1..=5 {
        let line = bench.pair();
        bench.send(line, 10, true);
        assert_eq!(bench.staged(), count);
    }
    bench.enter();
    assert_eq!(bench.staged(), 0);
}

/// Without a fault nothing is left, whatever it was.
fn one_enter_performs_all<S: Subject>(bench: &mut Bench<S>) {
    let lines: Vec<_> = (0..20).map(|_| bench.pair()).collect();
    for &line in &lines {
        bench.receive(line);
        bench.send(line, 10, true);
    }
    bench.enter();
    assert_eq!(bench.staged(), 0);
    for line in lines {
        assert_eq!(bench.read_all(line), 10);
    }
}

fn a_full_queue_refuses_and_each_request_is_performed_once<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let nobody = Token::new(1 << 20, 3);
    let mut pushed = Vec::new();
    let mut refused = false;
    while pushed.len() < MANY && !refused {
        match bench.push(line, Ask::Cancel(nobody)) {
            Some(token) => pushed.push(token),
            None => refused = true,
        }
    }
    assert!(refused, "{MANY} requests fit");
    bench.perform();
    for token in pushed {
        assert_eq!(bench.end(token), -libc::ENOENT);
    }
    bench.nothing();
    // And then there is room.
    let token = bench.start(line, Ask::Cancel(nobody));
    assert_eq!(bench.end(token), -libc::ENOENT);
}

fn receive_and_cancel_in_one_batch_go_in_order<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    for _ in 0..3 {
        let receive = bench.receive(line);
        let cancel = bench.cancel(receive);
        assert!([-libc::ECANCELED, -libc::EINTR].contains(&bench.end(receive)));
        assert!(bench.end(cancel) <= 0);
    }
    bench.write(line, 1000);
    let receive = bench.receive(line);
    bench.receive_all(receive);
}

fn sends_of_many_sockets_are_all_performed<S: Subject>(bench: &mut Bench<S>) {
    let lines: Vec<_> = (0..40).map(|_| bench.pair()).collect();
    for round in 1..4 {
        for &line in &lines {
            bench.send(line, 100 * round, true);
        }
        bench.perform();
    }
    // `finish` compares what was taken with what arrives.
}
