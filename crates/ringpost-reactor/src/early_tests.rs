//! Waking up early on the real kernel, below the reactor.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::any_engine::AnyEngine;
use crate::capabilities::EngineChoice;
use crate::config::Config;
use crate::early::{EarlyWakes, WATCHED_MAX};
use crate::engine::kept::{Kept, Plan};
use crate::engine::{Engine, Token};
use crate::epoll::Epoll;
use crate::pool::Pool;
use crate::wake::Inbox;

/// Every wait ends after this.
const PATIENCE: Duration = Duration::from_secs(20);
const QUESTION: &[u8; 100] = &[7; 100];

/// A peer that reads the question, and answers long after.
fn late_peer(far: UnixStream) -> thread::JoinHandle<UnixStream> {
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        rustix::io::read(&far, &mut [0; QUESTION.len()]).unwrap();
        // Long enough for a busy machine.
        thread::sleep(Duration::from_millis(300));
        rustix::io::write(&far, b"answer").unwrap();
        far
    })
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn a_wait_goes_on_until_the_answer_is_there() {
    // In this order: a ring that goes interrupts the thread it was on.
    for choice in [EngineChoice::Epoll, EngineChoice::Uring] {
        let config = Config { engine: choice, ..Config::default() };
        let (engine, mut pool, _report) =
            AnyEngine::choose(&config, &Arc::new(Inbox::for_test())).unwrap();
        let mut kept = Kept::new(engine);
        kept.engine.provide(pool.take_free().unwrap());
        let (near, far) = UnixStream::pair().unwrap();
        let near = Rc::new(OwnedFd::from(near));
        kept.push(Token::new(0, 0), &near, &Plan::Receive).unwrap();
        assert!(kept.enter(false, None).unwrap().is_empty());
        rustix::io::write(&*near, QUESTION).unwrap();
        let peer = late_peer(far);
        let batch = kept.enter(true, Some(Instant::now() + PATIENCE)).unwrap();
        assert_eq!(batch.len(), 1, "{choice:?}");
        assert_eq!(batch[0].result, 6);
        drop(peer.join().unwrap());
        let wakes = kept.engine.early_wakes();
        assert_eq!(wakes, EarlyWakes { paid: 0, unpaid: 1 }, "{choice:?}");
    }
}

/// What is said of a watch comes together with the end of a receive that leaves the ring, to be tried by hand: it has to
/// be armed again before the thread waits.
#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn a_receive_that_leaves_the_ring_is_not_left_out() {
    let config = Config { engine: EngineChoice::Uring, ..Config::default() };
    let (engine, mut pool, _report) =
        AnyEngine::choose(&config, &Arc::new(Inbox::for_test())).unwrap();
    let mut kept = Kept::new(engine);
    kept.engine.provide(pool.take_free().unwrap());
    let (near, far) = UnixStream::pair().unwrap();
    kept.push(Token::new(0, 0), &Rc::new(near.into()), &Plan::Receive).unwrap();
    assert!(kept.enter(false, None).unwrap().is_empty());
    kept.engine.spin(true);
    kept.engine.provide(pool.take_free().unwrap());
    // A thread that has just spun is not watched.
    kept.engine.spin(false);
    let peer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        rustix::io::write(&far, b"bytes").unwrap();
        far
    });
    let deadline = Instant::now() + PATIENCE;
    let mut batch = Vec::new();
    while batch.is_empty() && Instant::now() < deadline {
        batch = kept.enter(true, Some(deadline)).unwrap();
    }
    assert!(Instant::now() < deadline, "the wait went on");
    assert_eq!(batch[0].result, 5);
    drop(peer.join().unwrap());
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn epoll_watches_whoever_receives_and_nobody_else() {
    let mut pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
    let mut kept = Kept::new(Epoll::new(Arc::clone(pool.shared())).unwrap());
    kept.engine.provide(pool.take_free().unwrap());
    let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
    let (mut peers, mut sockets) = (Vec::new(), Vec::new());
    for (slot, (near, far)) in pairs.into_iter().enumerate() {
        let near = Rc::new(OwnedFd::from(near));
        kept.push(Token::new(slot, 0), &near, &Plan::Receive).unwrap();
        peers.push(far);
        sockets.push(near);
    }
    let park = |kept: &mut Kept<Epoll>| {
        kept.enter(true, Some(Instant::now() + Duration::from_millis(1))).unwrap()
    };
    assert_eq!(kept.engine.watched(), 0, "nobody has parked");
    assert!(park(&mut kept).is_empty());
    assert_eq!(kept.engine.watched(), 3);
    // Bytes alone are no peer that has read, and room to begin with is none either.
    rustix::io::write(&peers[2], b"bytes").unwrap();
    assert_eq!(park(&mut kept).len(), 1);
    assert_eq!(kept.engine.early_wakes(), EarlyWakes::default());
    // One is cancelled, one ends.
    kept.push(Token::new(3, 0), &sockets[0], &Plan::Cancel(Token::new(0, 0))).unwrap();
    assert_eq!(park(&mut kept).len(), 2);
    assert_eq!(kept.engine.watched(), 2);
    drop(peers.remove(1));
    assert_eq!(park(&mut kept).len(), 1);
    assert_eq!(kept.engine.watched(), 1);
    assert!(park(&mut kept).is_empty());
    assert_eq!(kept.engine.watched(), 1);
    // One more, and then too many.
    for slot in 10..=10 + WATCHED_MAX {
        let (near, far) = UnixStream::pair().unwrap();
        kept.push(Token::new(slot, 0), &Rc::new(near.into()), &Plan::Receive).unwrap();
        peers.push(far);
        park(&mut kept);
        let receives = slot - 10 + 2;
        let watched = if receives > WATCHED_MAX { 0 } else { receives };
        assert_eq!(kept.engine.watched(), watched);
    }
}
