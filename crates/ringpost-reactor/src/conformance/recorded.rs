//! Traces of real runs: recorded afresh on each engine, read back from their text, and judged; committed
//! ones from the reference machine; and broken ones, which the referee must refuse.

use super::bench::{Bench, MUCH, Shape};
use super::referee::Referee;
use super::skip;
use super::subjects::Subject;
use super::trace::{self, Ask, Event};

/// A scenario, and how the bench is set up for it.
pub(super) type Scenario<S> = (&'static str, Shape, fn(&mut Bench<S>));

/// What is recorded: the shapes of traffic that the reactor makes.
pub(super) fn scenarios<S: Subject>() -> Vec<Scenario<S>> {
    let usual = Shape::default();
    let few = Shape { provided: 2, block_bytes: 8192, ..usual };
    vec![
        ("echo", usual, echo),
        ("backpressure", usual, backpressure),
        ("half-close", usual, half_close),
        ("cancel", usual, cancel),
        ("starvation", few, starvation),
        ("accept", usual, accept),
        ("readiness", usual, readiness),
        ("crowd", Shape { blocks: 32, provided: 32, ..usual }, crowd),
    ]
}

/// Requests and answers, of growing lengths.
fn echo<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    for len in [64, 64, 1000, 9000, 20_000, 1] {
        bench.write(line, len);
        bench.receive_all(receive);
        bench.send(line, len, true);
        bench.perform();
        bench.read_all(line);
    }
}

/// A reader that is slower than its writer.
fn backpressure<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let silent = bench.send(line, MUCH, true);
    assert!(bench.end(silent) > 0);
    let refused = bench.send(line, 1000, true);
    assert_eq!(bench.end(refused), -libc::EAGAIN);
    let waiting = bench.send(line, 150_000, false);
    bench.quiet();
    while bench.referee().is_live(waiting) {
        bench.read(line, 40_000);
        bench.enter();
    }
    bench.find(waiting).expect("it has ended");
    bench.read_all(line);
    bench.fill(line);
    let parts = bench.start(line, Ask::SendParts { lens: vec![100, 0, 3000], silent: false });
    bench.quiet();
    bench.read_all(line);
    assert!(bench.end(parts) > 0);
}

fn half_close<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let hangup = bench.start(line, Ask::Hangup);
    let receive = bench.receive(line);
    bench.enter();
    bench.write(line, 5000);
    bench.far_shut(line);
    bench.receive_all(receive);
    assert_eq!(bench.end(receive), 0);
    assert!(bench.end(hangup) > 0);
    bench.send(line, 3000, true);
    bench.perform();
    bench.read(line, 1000);
    // With bytes unread.
    bench.far_close(line);
    bench.provide_all();
    let receive = bench.receive(line);
    assert_eq!(bench.end(receive), -libc::ECONNRESET);
    let send = bench.send(line, 10, true);
    assert_eq!(bench.end(send), -libc::EPIPE);
}

fn cancel<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    for len in [0, 100, 20_000] {
        let receive = bench.receive(line);
        bench.enter();
        bench.write(line, len);
        let cancel = bench.cancel(receive);
        bench.end(receive);
        bench.end(cancel);
        bench.provide_all();
    }
    let receive = bench.receive(line);
    bench.receive_all(receive);
    let (writable, listener) = (bench.pair(), bench.listener());
    bench.fill(writable);
    for (line, ask) in [(writable, Ask::Writable), (listener, Ask::Accept)] {
        let target = bench.start(line, ask);
        bench.enter();
        let cancel = bench.cancel(target);
        assert_eq!(bench.end(target), -libc::ECANCELED);
        assert_eq!(bench.end(cancel), 0);
        let late = bench.cancel(target);
        assert_eq!(bench.end(late), -libc::ENOENT);
    }
}

fn starvation<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.write(line, 30_000);
    let receive = bench.receive(line);
    assert_eq!(bench.end(receive), -libc::ENOBUFS);
    bench.provide();
    bench.provide();
    let receive = bench.receive(line);
    bench.receive_all(receive);
}

fn accept<S: Subject>(bench: &mut Bench<S>) {
    let listener = bench.listener();
    let mut clients = vec![bench.connect(listener)];
    let accept = bench.start(listener, Ask::Accept);
    for round in 1..5 {
        for _ in 0..round {
            clients.push(bench.connect(listener));
        }
        bench.enter();
        while bench.find(accept).is_some() {
            drop(bench.accepted());
        }
    }
}

fn readiness<S: Subject>(bench: &mut Bench<S>) {
    let (line, bell) = (bench.pair(), bench.bell());
    let doorbell = bench.start(bell, Ask::Doorbell);
    bench.fill(line);
    let writable = bench.start(line, Ask::Writable);
    let readable = bench.start(line, Ask::Readable);
    bench.quiet();
    bench.ring(bell);
    bench.write(line, 10);
    assert!(bench.next(doorbell).more);
    assert!(bench.end(readable) > 0);
    bench.read_all(line);
    assert!(bench.end(writable) > 0);
    bench.ring(bell);
    bench.far_close(line);
    let readable = bench.start(line, Ask::Readable);
    assert!(bench.next(doorbell).more);
    assert!(bench.end(readable) > 0);
}

/// Many connections at once, in turns of different lengths.
fn crowd<S: Subject>(bench: &mut Bench<S>) {
    let lines: Vec<_> = (0..12).map(|_| bench.pair()).collect();
    let receives: Vec<_> = lines.iter().map(|&line| bench.receive(line)).collect();
    bench.enter();
    for round in 1..4 {
        for &line in &lines {
            bench.write(line, 400 * round + line);
            bench.send(line, 30 * round, true);
        }
        for (&line, &receive) in lines.iter().zip(&receives) {
            bench.receive_all(receive);
            bench.read_all(line);
        }
    }
}

/// Records a scenario on an engine; `None` if it can't be had here.
pub(super) fn record<S: Subject>((name, shape, play): Scenario<S>) -> Option<Vec<Event>> {
    let mut bench = match Bench::<S>::new(shape, 0) {
        Ok(bench) => bench,
        Err(reason) => {
            skip(&format!("{name} on {}: {reason}", S::NAME));
            return None;
        }
    };
    play(&mut bench);
    bench.finish();
    Some(std::mem::take(&mut bench.trace))
}

/// Traces of the reference machine (Linux 6.18). Made anew by a test, see there.
pub(super) const COMMITTED: &[(&str, &str)] = &[
    ("epoll echo", include_str!("traces/epoll-echo.txt")),
    ("epoll backpressure", include_str!("traces/epoll-backpressure.txt")),
    ("epoll half-close", include_str!("traces/epoll-half-close.txt")),
    ("epoll cancel", include_str!("traces/epoll-cancel.txt")),
    ("epoll starvation", include_str!("traces/epoll-starvation.txt")),
    ("epoll accept", include_str!("traces/epoll-accept.txt")),
    ("epoll readiness", include_str!("traces/epoll-readiness.txt")),
    ("uring echo", include_str!("traces/uring-echo.txt")),
    ("uring backpressure", include_str!("traces/uring-backpressure.txt")),
    ("uring half-close", include_str!("traces/uring-half-close.txt")),
    ("uring cancel", include_str!("traces/uring-cancel.txt")),
    ("uring starvation", include_str!("traces/uring-starvation.txt")),
    ("uring accept", include_str!("traces/uring-accept.txt")),
    ("uring readiness", include_str!("traces/uring-readiness.txt")),
    ("uring crowd", include_str!("traces/uring-crowd.txt")),
    ("uring-plain echo", include_str!("traces/uring-plain-echo.txt")),
    ("uring-plain half-close", include_str!("traces/uring-plain-half-close.txt")),
];

#[cfg(test)]
mod tests {
    use super::super::subjects::{OnEpoll, UringPlain, UringShared};
    use super::*;

    fn read_back<S: Subject>(file: &str) {
        for scenario in scenarios::<S>() {
            let name = scenario.0;
            let Some(events) = record(scenario) else { return };
            let text = trace::write(&events);
            if let Some(folder) = std::env::var_os("RINGPOST_TRACES") {
                // To make the committed ones anew.
                let path = std::path::Path::new(&folder).join(format!("{file}-{name}.txt"));
                std::fs::write(path, format!("# {name} on {}, Linux 6.18\n{text}", S::NAME))
                    .unwrap();
            }
            assert_eq!(trace::read(&text).unwrap(), events, "{name}");
            assert_eq!(Referee::judge(&events).unwrap().live(), 0, "{name}");
        }
    }

    #[test]
    fn epoll_is_recorded() {
        read_back::<OnEpoll>("epoll");
    }

    #[test]
    fn uring_is_recorded() {
        read_back::<UringShared>("uring");
        read_back::<UringPlain>("uring-plain");
    }

    #[test]
    fn committed_traces_keep_the_contract() {
        for (name, text) in COMMITTED {
            let events = trace::read(text).unwrap();
            let referee = Referee::judge(&events).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(referee.live(), 0, "{name}");
        }
    }

    /// The trace `name` with one line changed is refused for this reason.
    #[track_caller]
    fn refused(name: &str, change: impl Fn(&mut Vec<String>), reason: &str) {
        let (_, text) = COMMITTED.iter().find(|(known, _)| *known == name).expect("a trace");
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        change(&mut lines);
        let verdict = Referee::judge(&trace::read(&lines.join("\n")).unwrap());
        let error = verdict.expect_err("it should be refused");
        assert!(error.contains(reason), "{error}");
    }

    /// The index of the n-th line that contains `part`.
    #[track_caller]
    fn nth(lines: &[String], n: usize, part: &str) -> usize {
        let mut found = lines.iter().enumerate().filter(|(_, line)| line.contains(part));
        found.nth(n).expect("such a line").0
    }

    #[test]
    fn a_completion_for_nobody_is_refused() {
        for name in ["epoll echo", "uring echo"] {
            let change = |lines: &mut Vec<String>| {
                let at = nth(lines, 1, "staged");
                lines.insert(at, "done 77.3 0".into());
            };
            refused(name, change, "an operation that there is not");
        }
    }

    #[test]
    fn two_ends_are_refused() {
        for name in ["epoll half-close", "uring half-close", "uring-plain half-close"] {
            let change = |lines: &mut Vec<String>| {
                let at = nth(lines, 0, "-104");
                let again = lines[at].split(" 0 in").next().unwrap().to_owned();
                lines.insert(at + 1, again);
            };
            refused(name, change, "told after its end");
        }
    }

    #[test]
    fn a_silent_send_that_is_told_later_is_refused() {
        for name in ["epoll backpressure", "uring backpressure"] {
            let change = |lines: &mut Vec<String>| {
                // The completion goes behind the end of its enter, and behind the next one.
                let at = nth(lines, 0, "done");
                let told = lines.remove(at);
                let next = nth(lines, 1, "staged");
                lines.insert(next, told);
            };
            refused(name, change, "told after its end");
        }
    }

    #[test]
    fn a_silent_send_that_is_told_whole_is_refused() {
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 0, "done");
            let name = lines[at].split(' ').nth(1).unwrap().to_owned();
            lines[at] = format!("done {name} {MUCH}");
        };
        refused("uring backpressure", change, "a silent send that is whole");
    }

    #[test]
    fn more_bytes_than_offered_are_refused() {
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 0, "done");
            let name = lines[at].split(' ').nth(1).unwrap().to_owned();
            lines[at] = format!("done {name} {}", MUCH + 1);
        };
        refused("epoll backpressure", change, "more was taken than was offered");
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        for name in ["epoll echo", "uring echo", "uring-plain echo"] {
            let change = |lines: &mut Vec<String>| {
                let at = nth(lines, 0, "64 more 64 in");
                lines[at] = lines[at].replace("64 more 64 in", "63 more 64 in");
            };
            refused(name, change, "lengths");
            let change = |lines: &mut Vec<String>| {
                let at = nth(lines, 0, "64 more 64 in");
                lines[at] = lines[at].replace("64 more 64 in", "65 more 65 in");
            };
            refused(name, change, "more was received than was written");
        }
    }

    #[test]
    fn bytes_in_another_order_are_refused() {
        for name in ["epoll echo", "uring echo", "uring-plain echo"] {
            let change = |lines: &mut Vec<String>| {
                let at = nth(lines, 1, "64 more 64 in");
                lines[at] = lines[at].replace("from 64", "from 0");
            };
            refused(name, change, "bytes in another order");
            let change = |lines: &mut Vec<String>| {
                let at = nth(lines, 1, "64 more 64 in");
                lines[at] = lines[at].replace("from 64", &format!("from {}", u64::MAX));
            };
            refused(name, change, "other bytes than were written");
        }
    }

    #[test]
    fn blocks_out_of_turn_are_refused() {
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 1, "64 more 64 in");
            lines[at] = lines[at].replace("at 64", "at 128");
        };
        refused("uring echo", change, "not behind what was delivered");
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 0, "64 more 64 in");
            lines[at] = lines[at].replace(" last", "");
        };
        refused("uring-plain echo", change, "a plain block is used once");
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 0, "surrender");
            let shorter = lines[at].rsplit_once(' ').unwrap().0.to_owned();
            lines[at] = shorter;
        };
        refused("epoll echo", change, "blocks are missing");
    }

    #[test]
    fn an_end_before_its_time_is_refused() {
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 0, "write 0 5000");
            lines[at] = "write 0 5001".into();
        };
        refused("uring half-close", change, "an end before all bytes");
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 0, "far-shut");
            lines.remove(at);
        };
        refused("epoll half-close", change, "an end that nobody has made");
    }

    #[test]
    fn something_before_the_enter_is_refused() {
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 0, "enter");
            lines.remove(at);
            let at = nth(lines, 0, "staged");
            lines.remove(at);
        };
        refused("epoll backpressure", change, "performed before the enter");
    }

    #[test]
    fn a_connection_from_nowhere_is_refused() {
        let change = |lines: &mut Vec<String>| {
            let at = nth(lines, 0, "more");
            let again = lines[at].clone();
            for _ in 0..20 {
                lines.insert(at, again.clone());
            }
        };
        refused("uring accept", change, "more accepted than connected");
    }
}
