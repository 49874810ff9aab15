//! Streams that the kernel had no memory for: they try again after a rest.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{State, StreamCell};
use crate::reactor::Driver;

/// How long a stream rests: whoever asks again at once only makes the kernel look for memory again.
const REST: Duration = Duration::from_millis(10);

/// Receives in a row, without a byte in between, that the kernel may have ended of itself.
pub(super) const RECEIVES_CANCELLED_MAX: u8 = 64;

/// Streams that rest, each once, and when their rests are over. All rest equally long, so the first is due first.
#[derive(Debug, Default)]
pub(crate) struct Rests(VecDeque<(Instant, Rc<StreamCell>)>);

impl Rests {
    /// When the first rest is over.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.0.front().map(|(at, _)| *at)
    }

    /// Takes the first, if its rest is over.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Rc<StreamCell>> {
        if self.next_due()? <= now { self.pop() } else { None }
    }

    /// Takes the first.
    pub(crate) fn pop(&mut self) -> Option<Rc<StreamCell>> {
        self.0.pop_front().map(|(_, stream)| stream)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(feature = "sim")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rc<StreamCell>> {
        self.0.iter().map(|(_, stream)| stream)
    }
}

impl StreamCell {
    /// Tries nothing again for a while.
    pub(super) fn rest(self: &Rc<Self>, state: &mut State, driver: &mut Driver) {
        if !std::mem::replace(&mut state.resting, true) {
            driver.rests.0.push_back((driver.clock.now() + REST, Rc::clone(self)));
        }
    }

    /// The rest is over: the next turn tries again.
    pub(crate) fn rest_is_over(self: Rc<Self>, driver: &mut Driver) {
        {
            let mut state = self.state.borrow_mut();
            state.resting = false;
            // Who waits for room has no poll for it any more.
            driver.wakers.extend(state.writer.take());
        }
        driver.retry.push(self);
    }

    /// There is nothing left to try again.
    pub(super) fn end_rest(self: &Rc<Self>, state: &mut State, driver: &mut Driver) {
        if std::mem::take(&mut state.resting) {
            driver.rests.0.retain(|(_, stream)| !Rc::ptr_eq(stream, self));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;

    use super::*;
    use crate::capabilities::EngineChoice;
    use crate::config::Config;
    use crate::engine::{Completion, Token};
    use crate::memory::Prefix;
    use crate::outbound::Payload;
    use crate::reactor::{Reactor, Wait};
    use crate::stream::{Receive, Stream, StreamError};

    /// Every wait ends after this.
    const PATIENCE: Duration = Duration::from_secs(20);
    /// Of a rest, and of waits that end for nothing.
    const SYSTEM_CALLS_MAX: u64 = 30;
    const BYTES: &[u8] = b"kept while it rests";

    /// A stream whose send of [`BYTES`] has just been refused for want of memory.
    struct Rig {
        reactor: Reactor,
        stream: Stream,
        far: UnixStream,
        start: Instant,
    }

    impl Rig {
        fn new(engine: EngineChoice) -> Self {
            let config = Config { engine, ..Config::default() };
            Self::of(config, -libc::ENOMEM, |stream| stream.append(Prefix::NONE, BYTES))
        }

        fn of(config: Config, result: i32, append: impl FnOnce(&Stream)) -> Self {
            let reactor = Reactor::new(config).unwrap();
            let (near, far) = UnixStream::pair().unwrap();
            far.set_nonblocking(true).unwrap();
            let stream = reactor.adopt_stream(near.into());
            reactor.turn(Wait::No).unwrap();
            append(&stream);
            let memory = {
                let mut state = stream.cell.state.borrow_mut();
                let memory = state.outbound.take(&mut reactor.core.blocks.borrow_mut()).unwrap();
                state.sending_bytes = memory.len();
                state.sending = true;
                memory
            };
            let start = Instant::now();
            {
                let mut driver = reactor.core.driver.borrow_mut();
                stream.cell.sent(&reactor.core, &mut driver, memory, result);
            }
            Self { reactor, stream, far, start }
        }

        fn arrived(&self) -> Option<Vec<u8>> {
            let mut bytes = vec![0; 100];
            match (&self.far).read(&mut bytes) {
                Ok(count) => Some(bytes[..count].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) => panic!("{error}"),
            }
        }

        /// Turns until something has arrived: what it is, and the system calls that it took.
        fn arrives(&self) -> (Vec<u8>, u64) {
            let before = self.reactor.stats().system_calls;
            loop {
                if let Some(bytes) = self.arrived() {
                    return (bytes, self.reactor.stats().system_calls - before);
                }
                assert!(self.start.elapsed() < PATIENCE, "nothing arrived in time");
                self.reactor.turn(Wait::Until(self.start + PATIENCE)).unwrap();
            }
        }
    }

    fn each_engine(test: impl Fn(Rig)) {
        for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
            eprintln!("engine {engine:?}");
            test(Rig::new(engine));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_send_without_memory_rests_and_is_repeated() {
        each_engine(|rig| {
            let mut context = Context::from_waker(Waker::noop());
            assert!(rig.stream.poll_flushed(&mut context).is_pending());
            for _ in 0..3 {
                rig.reactor.turn(Wait::No).unwrap();
                rig.reactor.core.driver.borrow_mut().retry.push(Rc::clone(&rig.stream.cell));
                assert!(rig.arrived().is_none() || rig.start.elapsed() >= REST, "no rest");
            }
            let (bytes, calls) = rig.arrives();
            assert_eq!(bytes, BYTES);
            assert!(rig.start.elapsed() >= REST);
            assert!(calls <= SYSTEM_CALLS_MAX, "{calls} system calls while it rested");
            for _ in 0..3 {
                rig.reactor.turn(Wait::No).unwrap();
            }
            assert!(rig.stream.poll_flushed(&mut context).is_ready());
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_send_that_nobody_has_cancelled_is_repeated() {
        for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
            let config = Config { engine, ..Config::default() };
            let append = |stream: &Stream| stream.append(Prefix::NONE, BYTES);
            let rig = Rig::of(config, -libc::ECANCELED, append);
            // With nobody waiting the reactor would sleep over a silent send.
            let mut context = Context::from_waker(Waker::noop());
            assert!(rig.stream.poll_flushed(&mut context).is_pending());
            assert_eq!(rig.arrives().0, BYTES);
            assert!(rig.start.elapsed() >= REST);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_receive_without_memory_goes_on() {
        each_engine(|rig| {
            let Rig { reactor, stream, .. } = &rig;
            let mut context = Context::from_waker(Waker::noop());
            while stream.poll_stopped(&mut context).is_pending() {
                reactor.turn(Wait::Until(Instant::now() + REST)).unwrap();
            }
            stream.cell.state.borrow_mut().stopping = false;
            let (token, result) = (Token(0), -libc::ENOMEM);
            let done = Completion { token, result, more: false, received: None };
            stream.cell.received(&reactor.core, &mut reactor.core.driver.borrow_mut(), done);
            (&rig.far).write_all(BYTES).unwrap();
            let start = Instant::now();
            while stream.try_receive().is_none() {
                assert!(start.elapsed() < PATIENCE, "nothing arrived in time");
                reactor.turn(Wait::Until(start + PATIENCE)).unwrap();
            }
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_dropped_stream_sends_what_rested() {
        each_engine(|rig| {
            let Rig { reactor, stream, far, start } = rig;
            let weak = Rc::downgrade(&stream.cell);
            drop(stream);
            let mut received = Vec::new();
            while (&far).read_to_end(&mut received).is_err() {
                assert!(start.elapsed() < PATIENCE, "no end in time");
                reactor.turn(Wait::Until(start + PATIENCE)).unwrap();
            }
            assert_eq!(received, BYTES);
            for _ in 0..10 {
                reactor.turn(Wait::No).unwrap();
            }
            assert_eq!((weak.strong_count(), reactor.stats().connections_lingering), (0, 0));
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_stream_that_is_given_up_rests_no_more() {
        each_engine(|rig| {
            let mut driver = rig.reactor.core.driver.borrow_mut();
            assert!(!driver.rests.is_empty());
            rig.stream.cell.give_up(&rig.reactor.core, &mut driver);
            assert!(driver.rests.is_empty());
        });
    }

    /// Ends the receive as the kernel does that has no memory to wait with, and waits until it is armed anew. False
    /// if that was the end of the stream.
    fn receives_again(reactor: &Reactor, stream: &Stream) -> bool {
        let start = Instant::now();
        let armed = || match stream.cell.state.borrow().receive {
            Receive::Armed(token) => Some(token),
            _ => None,
        };
        let token = armed().unwrap();
        reactor.core.driver.borrow_mut().cancel(token, stream.cell.raw_fd());
        while armed().is_none_or(|now| now == token) {
            assert!(start.elapsed() < PATIENCE, "nothing happened in time");
            reactor.turn(Wait::Until(Instant::now() + REST)).unwrap();
            if stream.cell.state.borrow().end.is_some() {
                return false;
            }
        }
        assert!(start.elapsed() >= REST);
        true
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_receive_that_nobody_has_cancelled_goes_on() {
        for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
            let reactor = Reactor::new(Config { engine, ..Config::default() }).unwrap();
            let (near, far) = UnixStream::pair().unwrap();
            let stream = reactor.adopt_stream(near.into());
            reactor.turn(Wait::No).unwrap();
            // Each takes a rest, so that most of them are taken as given.
            let times = 3;
            let most_are_over = || {
                let cancelled = RECEIVES_CANCELLED_MAX - 3;
                stream.cell.state.borrow_mut().receives_cancelled = cancelled;
            };
            for _ in 0..2 {
                most_are_over();
                assert!((0..times).all(|_| receives_again(&reactor, &stream)));
                (&far).write_all(BYTES).unwrap();
                while stream.try_receive().is_none() {
                    reactor.turn(Wait::Until(Instant::now() + PATIENCE)).unwrap();
                }
            }
            assert_eq!(stream.cell.state.borrow().receives_cancelled, 0);
            most_are_over();
            let lasts = (0..=times).take_while(|_| receives_again(&reactor, &stream)).count();
            assert_eq!(lasts, times);
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(Err(error)) = stream.poll_receive(&mut context) else {
                panic!("the stream goes on")
            };
            assert_eq!(error, StreamError::Kernel { errno: libc::ECANCELED });
        }
    }

    thread_local! {
        /// For a payload, which must be `Send` as a whole.
        static REACTOR: RefCell<Option<Reactor>> = const { RefCell::new(None) };
        static DROPPED: Cell<bool> = const { Cell::new(false) };
    }

    struct Owner;

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            BYTES
        }
    }

    impl Drop for Owner {
        fn drop(&mut self) {
            REACTOR.with_borrow(|reactor| reactor.as_ref().map(Reactor::stats));
            DROPPED.set(true);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn payloads_that_are_given_up_may_use_the_reactor_as_they_go() {
        for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
            let config = Config { engine, linger_ms_max: 0, ..Config::default() };
            let payload = Payload::Bytes(Bytes::from_owner(Owner));
            let rig = Rig::of(config, -libc::ENOMEM, |stream| {
                stream.append_shared(Prefix::NONE, payload)
            });
            REACTOR.set(Some(rig.reactor.clone()));
            DROPPED.set(false);
            drop(rig.stream);
            for _ in 0..3 {
                rig.reactor.turn(Wait::No).unwrap();
            }
            assert!(DROPPED.get());
            REACTOR.set(None);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn what_rests_is_still_sent_when_the_reactor_ends() {
        each_engine(|rig| {
            // What was accepted meanwhile waits for it.
            rig.stream.append(Prefix::NONE, b", and more");
            rig.reactor.shutdown();
            assert_eq!(rig.arrived().unwrap(), [BYTES, b", and more"].concat());
        });
    }
}
