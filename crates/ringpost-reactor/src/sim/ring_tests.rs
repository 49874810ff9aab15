//! What scenarios on a simulated ring do not show: a ring that can't be used any more, and what the ring
//! itself must find.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use io_uring::{opcode, types};

use super::{
    Choices, Fault, Machine, Odometer, Rates, RingMachine, Seeded, SimulatedRing, Simulation,
};
use crate::config::Config;
use crate::engine::{Engine, EngineError, Request, Token};
use crate::memory::Prefix;
use crate::pool::Pool;
use crate::reactor::{Reactor, Wait};
use crate::stream::{Inbound, Stream, StreamError};
use crate::uring::{Ring, Uring};
use crate::wake::Inbox;

fn machine(shares_blocks: bool, ring: RingMachine) -> Machine {
    let plain = Machine::choose(&mut Odometer::new());
    Machine { shares_blocks, block_bytes: 4096, blocks: 4, ring: Some(ring), ..plain }
}

fn simulation(choices: impl Choices + 'static, shares_blocks: bool) -> Simulation {
    Simulation::new(choices, machine(shares_blocks, RingMachine::default()))
}

fn pair(reactor: &Reactor) -> (Stream, Stream) {
    let (left, right) = UnixStream::pair().unwrap();
    (reactor.adopt_stream(left.into()), reactor.adopt_stream(right.into()))
}

fn receive(stream: &Stream) -> Poll<Result<Inbound, StreamError>> {
    stream.poll_receive(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_ring_that_fails_ends_every_stream_and_frees_nothing_in_flight() {
    for seed in 0..200 {
        let simulation = simulation(Seeded::new(seed), seed % 2 == 0);
        let reactor = Reactor::simulated(Config::default(), &simulation).unwrap();
        let (left, right) = pair(&reactor);
        let mut rates = Rates::NONE;
        rates.set(Fault::EnterFails, 32);
        rates.set(Fault::PartialEnter, 64);
        rates.set(Fault::Held, 64);
        simulation.set_rates(rates);
        let error = loop {
            left.append(Prefix::NONE, &[7; 3000]);
            match reactor.turn(Wait::No) {
                Ok(()) => while right.try_receive().is_some() {},
                Err(EngineError::Fatal { call, source }) => {
                    assert_eq!(call, "io_uring_enter");
                    break source.raw_os_error().unwrap();
                }
            }
        };
        assert!([libc::EBADR, libc::EBADFD, libc::EFAULT].contains(&error));
        while right.try_receive().is_some() {}
        let ended = receive(&right);
        let expected = StreamError::Kernel { errno: error };
        assert!(matches!(ended, Poll::Ready(Err(error)) if error == expected), "{ended:?}");
        assert_eq!(left.has_room(), Err(expected));
        // The kernel may still have them, so their memory is not given back.
        let enters = simulation.enters();
        drop((left, right, reactor));
        assert_eq!(simulation.enters(), enters, "a ring that has failed was entered");
        assert!(simulation.operations_left() > 0, "seed {seed}");
    }
}

/// Notes that it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_ring_that_fails_during_shutdown_leaves_nobody_waiting() {
    for seed in 0..200 {
        let simulation = simulation(Seeded::new(seed), seed % 2 == 0);
        let reactor = Reactor::simulated(Config::default(), &simulation).unwrap();
        let (left, right) = pair(&reactor);
        let name = format!("ring-tests-{}-{seed}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listening = UnixListener::bind_addr(&address).unwrap();
        let listener = reactor.adopt_listener(listening.into());
        reactor.turn(Wait::No).unwrap();
        let [reader, writer, server] = [(); 3].map(|()| Arc::new(Woken::default()));
        let [reads, writes, accepts] =
            [&reader, &writer, &server].map(|woken| Waker::from(Arc::clone(woken)));
        assert!(listener.poll_accept(&mut Context::from_waker(&accepts)).is_pending());
        assert!(right.poll_receive(&mut Context::from_waker(&reads)).is_pending());
        left.append(Prefix::NONE, &[7; 3000]);
        assert!(left.poll_flushed(&mut Context::from_waker(&writes)).is_pending());
        let mut rates = Rates::NONE;
        rates.set(Fault::EnterFails, 128);
        rates.set(Fault::PartialEnter, 64);
        rates.set(Fault::Held, 64);
        simulation.set_rates(rates);
        reactor.shutdown();
        assert!(reader.0.load(Ordering::Relaxed), "seed {seed}: the reader waits");
        assert!(writer.0.load(Ordering::Relaxed), "seed {seed}: the writer waits");
        assert!(server.0.load(Ordering::Relaxed), "seed {seed}: the server waits");
        while right.try_receive().is_some() {}
        let ended = receive(&right);
        assert!(matches!(ended, Poll::Ready(Err(_) | Ok(Inbound::EndOfFile))), "{ended:?}");
        let enters = simulation.enters();
        drop((left, right, listener, reactor));
        assert_eq!(simulation.enters(), enters, "a ring that has failed was entered");
    }
}

/// An engine with one receive in flight, and the other end of its socket.
fn receiving(shares_blocks: bool) -> (Uring<SimulatedRing>, Pool, OwnedFd, OwnedFd) {
    let simulation = simulation(Odometer::new(), shares_blocks);
    let mut pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
    let mut engine = simulation.ring_engine(&pool).unwrap();
    for _ in 0..2 {
        engine.provide(pool.take_free().unwrap());
    }
    let (left, right) = UnixStream::pair().unwrap();
    let receive = Request::Receive { fd: left.as_raw_fd() };
    // SAFETY: blocks outlive the engine here (pool invariant P3), and the socket stays open.
    unsafe { engine.push(Token::new(0, 0), receive) }.unwrap();
    (engine, pool, left.into(), right.into())
}

fn failure(action: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(action)).expect_err("nothing was found");
    *panic.downcast::<String>().expect("a message")
}

#[test]
fn bytes_are_where_the_ring_says() {
    for shares_blocks in [true, false] {
        let (mut engine, mut pool, _left, right) = receiving(shares_blocks);
        for message in [&b"first"[..], b"second message"] {
            rustix::io::write(&right, message).unwrap();
            let mut batch = Vec::new();
            while batch.is_empty() {
                engine.enter(false, None).unwrap();
                engine.reap(&mut batch);
            }
            let received = batch[0].received.unwrap();
            assert_eq!(received.last, !shares_blocks);
            let lease = pool.lease(received.block, received.offset, received.len);
            assert_eq!(lease.as_slice(), message);
        }
        assert_eq!(engine.surrender_after_cancel(), if shares_blocks { 2 } else { 0 });
    }
}

impl Uring<SimulatedRing> {
    /// Ends the receive, and counts what is left.
    fn surrender_after_cancel(&mut self) -> usize {
        let cancel = Request::Cancel { target: Token::new(0, 0), fd: -1 };
        // SAFETY: a cancel points to no memory.
        unsafe { self.push(Token::new(1, 0), cancel) }.unwrap();
        self.enter(false, None).unwrap();
        self.reap(&mut Vec::new());
        self.surrender_blocks().len()
    }
}

#[test]
fn a_block_that_is_in_the_ring_twice_is_found() {
    let (mut engine, pool, _left, _right) = receiving(true);
    let what = failure(|| {
        engine.provide(0);
        engine.enter(false, None).unwrap();
    });
    assert!(what.contains("twice") || what.contains("assertion"), "{what}");
    drop((engine, pool));
}

#[test]
fn an_entry_that_ringpost_does_not_build_is_found() {
    let pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
    let (left, _right) = UnixStream::pair().unwrap();
    let fd = types::Fd(left.as_fd().as_raw_fd());
    let data = [0_u8; 4];
    let entries = [
        opcode::Nop::new().build(),
        opcode::Recv::new(fd, std::ptr::null_mut(), 0).build(),
        opcode::Send::new(fd, data.as_ptr(), 4).build(),
        opcode::RecvMulti::new(fd, 7).build(),
        opcode::PollAdd::new(fd, libc::EPOLLIN.cast_unsigned()).multi(true).build(),
        opcode::AcceptMulti::new(fd).build(),
    ];
    for entry in entries {
        let (world, machine) = (simulation(Odometer::new(), true).world, RingMachine::default());
        let ring = SimulatedRing::attempt(&world, &machine, pool.shared(), 8, true);
        let mut ring = ring.unwrap();
        // SAFETY: it is refused before anybody looks at what it points to.
        failure(|| assert!(unsafe { ring.push(&entry) }.is_ok()));
    }
}

#[test]
fn completions_beyond_the_queue_are_flushed_by_an_enter() {
    let ring = RingMachine { completions_max: 2, ..RingMachine::default() };
    let simulation = Simulation::new(Odometer::new(), machine(true, ring));
    let pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
    let mut engine = simulation.ring_engine(&pool).unwrap();
    for slot in 0..7 {
        let cancel = Request::Cancel { target: Token::new(99, 0), fd: -1 };
        // SAFETY: a cancel points to no memory.
        unsafe { engine.push(Token::new(slot, 0), cancel) }.unwrap();
    }
    engine.enter(false, None).unwrap();
    let mut batch = Vec::new();
    engine.reap(&mut batch);
    let slots: Vec<_> = batch.iter().map(|done| done.token.slot()).collect();
    assert_eq!(slots, [0, 1, 2, 3, 4, 5, 6]);
    assert!(batch.iter().all(|done| done.result == -libc::ENOENT && !done.more));
}
