//! Waiting, deadlines, `ready`, and serving by hand while the caller spins.

use std::time::{Duration, Instant};

use rustix::net::SendFlags;

use super::bench::{Bench, Shape};
use super::conformance;
use super::subjects::Subject;
use super::trace::Ask;

conformance! {
    every:
        spinning_goes_on_and_off_in_the_middle [SPINNING]
        many_receives_while_spinning [SPINNING]
        cancelled_while_spinning [SPINNING]
        a_waiting_enter_ends_spinning [SPINNING]
        ends_are_told_while_spinning [SPINNING];
    plain:
        a_deadline_is_reached
        a_deadline_that_has_passed_does_not_wait
        what_is_there_is_not_waited_for
        another_thread_ends_a_wait
        ready_tells_of_what_is_there;
}

/// With blocks to spare: what is served by hand has one of its own.
const SPINNING: Shape =
    Shape { blocks: 12, block_bytes: 16 << 10, queue_max: 64, provided: 8, spare: 3 };

fn a_deadline_is_reached<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    bench.enter();
    let deadline = Instant::now() + Duration::from_millis(30);
    // A wait may end early for no reason, but not all of them.
    for _ in 0..1000 {
        bench.enter_waiting(deadline);
        if Instant::now() >= deadline || !S::REAL {
            break;
        }
    }
    assert!(Instant::now() >= deadline || !S::REAL);
    bench.nothing();
    bench.write(line, 10);
    bench.receive_all(receive);
}

fn a_deadline_that_has_passed_does_not_wait<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.receive(line);
    for _ in 0..3 {
        bench.enter_waiting(Instant::now());
        bench.nothing();
    }
}

fn what_is_there_is_not_waited_for<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    bench.enter();
    bench.write(line, 10);
    bench.enter_waiting(Instant::now() + Duration::from_secs(1000));
    assert!(bench.find(receive).is_some());
    let writable = bench.start(line, Ask::Writable);
    bench.enter_waiting(Instant::now() + Duration::from_secs(1000));
    assert!(bench.find(writable).is_some());
}

fn another_thread_ends_a_wait<S: Subject>(bench: &mut Bench<S>) {
    if !S::REAL {
        // In a simulation nothing happens meanwhile.
        return;
    }
    let bell = bench.bell();
    let doorbell = bench.start(bell, Ask::Doorbell);
    bench.enter();
    let ringer = bench.near(bell).try_clone_to_owned().unwrap();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        rustix::io::write(ringer, &1_u64.to_ne_bytes()).unwrap();
    });
    assert!(bench.next(doorbell).more);
    thread.join().unwrap();
}

fn ready_tells_of_what_is_there<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    bench.enter();
    if S::REAL {
        assert!(!bench.ready(), "nothing is there");
    }
    bench.write(line, 10);
    assert!(bench.ready(), "bytes are there");
    bench.enter();
    assert_eq!(bench.find(receive).expect("it was ready").result, 10);
    // Whoever goes by it alone misses nothing.
    for _ in 0..10 {
        bench.write(line, 1000);
        while !bench.ready() {}
        bench.enter();
        bench.receive_all(receive);
    }
}

fn spinning_goes_on_and_off_in_the_middle<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let mut receive = bench.receive(line);
    for round in 0..12 {
        bench.spin(round % 3 != 0);
        for len in [10, 5000, 1] {
            bench.write(line, len);
            bench.send(line, len, true);
            bench.perform();
            receive = bench.receive_all_again(receive);
            bench.read_all(line);
        }
        // Switched while bytes wait, and before the engine has heard of the last switch.
        bench.write(line, 20_000);
        bench.spin(round % 2 == 0);
        if round % 4 == 1 {
            bench.spin(round % 2 != 0);
        }
        receive = bench.receive_all_again(receive);
    }
}

fn many_receives_while_spinning<S: Subject>(bench: &mut Bench<S>) {
    bench.spin(true);
    let mut receives = Vec::new();
    for _ in 0..6 {
        let line = bench.pair();
        receives.push((line, bench.receive(line)));
        for (line, receive) in &mut receives {
            bench.write(*line, 700);
            bench.send(*line, 300, true);
            bench.perform();
            // A cancel that takes it out of the ring may find that it has just ended.
            *receive = bench.receive_all_again(*receive);
            bench.read_all(*line);
        }
    }
    // Fewer and fewer: those that are left may be served by hand again.
    while let Some((_, receive)) = receives.pop() {
        bench.cancel(receive);
        assert!([-libc::ECANCELED, -libc::EINTR].contains(&bench.end(receive)));
        bench.spin(true);
        for (line, receive) in &mut receives {
            bench.write(*line, 700);
            *receive = bench.receive_all_again(*receive);
        }
    }
}

fn cancelled_while_spinning<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    for begun in [false, true] {
        bench.spin(begun);
        let receive = bench.receive(line);
        bench.perform();
        bench.spin(true);
        bench.write(line, 5000);
        let cancel = bench.cancel(receive);
        bench.end(receive);
        bench.end(cancel);
        bench.provide_all();
        let receive = bench.receive(line);
        bench.receive_all(receive);
        bench.cancel(receive);
        bench.end(receive);
        bench.provide_all();
    }
}

fn a_waiting_enter_ends_spinning<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.spin(true);
    let mut receive = bench.receive(line);
    bench.perform();
    for _ in 0..5 {
        bench.spin(true);
        bench.write(line, 100);
        let far = Instant::now() + Duration::from_secs(20);
        let done = loop {
            match bench.find(receive) {
                Some(done) => break done,
                None => bench.enter_waiting(far),
            }
        };
        if !done.more {
            receive = bench.receive(line);
        }
        rustix::net::send(bench.far(line), &[], SendFlags::NOSIGNAL).unwrap();
        bench.provide_all();
    }
}

fn ends_are_told_while_spinning<S: Subject>(bench: &mut Bench<S>) {
    let (shut, reset) = (bench.pair(), bench.pair());
    bench.spin(true);
    let receives = [bench.receive(shut), bench.receive(reset)];
    bench.write(shut, 3000);
    bench.far_shut(shut);
    bench.send(reset, 10, true);
    bench.perform();
    bench.far_close(reset);
    bench.receive_all(receives[0]);
    assert_eq!(bench.end(receives[0]), 0);
    assert_eq!(bench.end(receives[1]), -libc::ECONNRESET);
}
