//! Who has which receive blocks: the engine's own, those of receives by hand, and the rest.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Reactor, Wait};
use crate::capabilities::EngineChoice;
use crate::config::Config;
use crate::conformance::skip;
use crate::spin::Spin;
use crate::stream::Stream;

const PATIENCE: Duration = Duration::from_secs(20);

fn uring(spin: Spin) -> Reactor {
    let config = Config { engine: EngineChoice::Uring, spin, ..Config::default() };
    Reactor::new(config).expect("io_uring")
}

/// Whether blocks are shared here (Linux 6.12); says that `test` is skipped if not.
fn shares_blocks(reactor: &Reactor, test: &str) -> bool {
    let shares = reactor.core.driver.borrow().engine.shares_blocks();
    if !shares {
        skip(&format!("reactor::blocks_tests::{test}: no incremental buffers"));
    }
    shares
}

fn pair(reactor: &Reactor) -> (Stream, UnixStream) {
    let (near, far) = UnixStream::pair().expect("a pair");
    near.set_nonblocking(true).expect("a socket");
    (reactor.adopt_stream(near.into()), far)
}

fn turn(reactor: &Reactor, wait: Duration) {
    reactor.turn(Wait::Until(Instant::now() + wait)).expect("it goes on");
}

/// Turns until so many bytes have come.
fn receive(reactor: &Reactor, stream: &Stream, bytes: usize) {
    let give_up = Instant::now() + PATIENCE;
    let mut received = 0;
    while received < bytes {
        turn(reactor, Duration::from_millis(5));
        while let Some(chunk) = stream.try_receive() {
            received += chunk.len();
        }
        assert!(Instant::now() < give_up, "{received} of {bytes} bytes came");
    }
}

fn is_by_hand(reactor: &Reactor) -> bool {
    reactor.core.driver.borrow().engine.is_direct()
}

/// Once the pool has starved, the engine has more blocks than at first, but not those that others need.
#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn after_starving_nothing_is_copied() {
    let reactor = uring(Spin::Never);
    if !shares_blocks(&reactor, "after_starving_nothing_is_copied") {
        return;
    }
    let plain: Vec<_> = (0..60).map(|_| pair(&reactor)).collect();
    let (near, mut far) = UnixStream::pair().expect("a pair");
    near.set_nonblocking(true).expect("a socket");
    let with_descriptors = reactor.adopt_stream_with_descriptors(near.into(), 64);
    let take_all = || {
        for (near, _) in &plain {
            while near.try_receive().is_some() {}
        }
    };
    for (_, far) in &plain {
        far.set_nonblocking(true).expect("a socket");
    }
    for _ in 0..200 {
        for (_, far) in &plain {
            while (&*far).write(&[0; 65_536]).is_ok() {}
        }
        reactor.turn(Wait::No).expect("it goes on");
        take_all();
    }
    assert!(reactor.stats().receives_starved > 0, "the pool has starved");
    for _ in 0..200 {
        reactor.turn(Wait::No).expect("it goes on");
        take_all();
    }
    let copied = |far: &mut UnixStream| {
        let before = reactor.stats().bytes_copied;
        for _ in 0..100 {
            far.write_all(&[1; 1000]).expect("room");
            receive(&reactor, &with_descriptors, 1000);
        }
        reactor.stats().bytes_copied - before
    };
    // What the engine has beyond its part goes back as it is used up.
    copied(&mut far);
    for (near, far) in &plain {
        far.set_nonblocking(false).expect("a socket");
        (&*far).write_all(&[0; 65_536]).expect("it reads");
        receive(&reactor, near, 65_536);
    }
    assert_eq!(copied(&mut far), 0);
}

/// Rounds until receives are served by hand.
fn rounds_until_by_hand(reactor: &Reactor, stream: &Stream, far: &mut UnixStream) -> u32 {
    let mut rounds = 0;
    while !is_by_hand(reactor) {
        far.write_all(&[7; 64]).expect("room");
        receive(reactor, stream, 64);
        rounds += 1;
        assert!(rounds < 10_000, "never");
    }
    rounds
}

/// A third connection comes and goes, as a park does: the block of the engine's own is still there.
#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn by_hand_again_after_a_third_connection() {
    let reactor = uring(Spin::Always);
    let (stream, mut far) = pair(&reactor);
    if !shares_blocks(&reactor, "by_hand_again_after_a_third_connection") {
        return;
    }
    rounds_until_by_hand(&reactor, &stream, &mut far);
    for _ in 0..3 {
        let others = [pair(&reactor), pair(&reactor)];
        for _ in 0..3 {
            turn(&reactor, Duration::from_millis(1));
        }
        assert!(!is_by_hand(&reactor), "there are too many");
        drop(others);
        for _ in 0..20 {
            turn(&reactor, Duration::from_millis(1));
        }
        let rounds = rounds_until_by_hand(&reactor, &stream, &mut far);
        assert!(rounds < 100, "{rounds} rounds");
    }
}
