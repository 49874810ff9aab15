//! Descriptors on a stream: received with the bytes that they belong to, and sent with calls of our own.
//!
//! Receiving: a poll tells that there is something, and then recvmsg(2) is called. Descriptors are
//! attached to the first byte that was sent with them, and a receive ends with the bytes of that send that
//! fit (unix(7)). So each receive brings the descriptors of one send at most, and they belong to a
//! byte within what it brought. They are kept with that window until a frame claims them by the
//! position of its first byte.
//!
//! Sending: descriptors never wait in the outbound queue. What is queued is sent first; then sendmsg(2)
//! takes the descriptors with the first bytes of their frame, or refuses, and the caller knows. Only
//! bytes are left to be queued.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use rustix::io::Errno;

use super::{Receive, State, Stream, StreamCell, StreamError};
use crate::ancillary::{self, Descriptors, Rights, let_descriptors_pass};
use crate::by_hand::{Attempt, Delivery, send_now};
use crate::chunk::Chunk;
use crate::engine::{Request, Token};
use crate::memory::Prefix;
use crate::ops::Owner;
use crate::reactor::{Core, Driver};
use crate::stats::add;

/// Receives for one readiness, so that a busy connection can't starve the rest.
const RECEIVES_PER_EVENT_MAX: usize = 16;

/// What a stream that takes descriptors keeps.
#[derive(Debug)]
pub(super) struct Intake {
    /// Not claimed yet, oldest first.
    arrived: VecDeque<Arrived>,
    /// Descriptors in `arrived`.
    held: usize,
    /// Receiving pauses from here on.
    held_max: usize,
    /// Bytes received since the start.
    received_bytes: u64,
    /// A poll for room in the socket is under way. It counts as the send in flight, of no bytes.
    writable: Option<Token>,
}

/// Descriptors, and where in the stream the byte lies that they came with.
#[derive(Debug)]
pub(super) struct Arrived {
    start: u64,
    end: u64,
    /// `None`: the kernel could not give us all of them.
    descriptors: Option<Vec<OwnedFd>>,
}

/// What came with a frame.
#[derive(Debug)]
#[non_exhaustive]
pub enum DescriptorClaim {
    /// These.
    Whole(Vec<OwnedFd>),
    /// Some, but this process could not take all of them (MSG_CTRUNC, recvmsg(2)); they are closed.
    Lost,
    /// None.
    Missing,
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescriptorSendError {
    /// The kernel does not pass these descriptors now. The stream goes on.
    Refused {
        /// The error number.
        errno: i32,
    },
    /// The stream can't send any more.
    Ended(StreamError),
}

impl Stream {
    pub(crate) fn adopt_with_descriptors(
        core: &Rc<Core>,
        socket: OwnedFd,
        held_max: usize,
    ) -> Self {
        let_descriptors_pass(socket.as_fd(), true);
        let intake = Intake {
            arrived: VecDeque::new(),
            held: 0,
            held_max: held_max.max(1),
            received_bytes: 0,
            writable: None,
        };
        Self::adopt_as(core, socket, Some(Box::new(intake)))
    }

    /// True if descriptors may come along.
    pub fn takes_descriptors(&self) -> bool {
        self.cell.state.borrow().intake.is_some()
    }

    /// From now on descriptors that come along are closed by the kernel, and bytes are received as on
    /// any other stream.
    pub fn refuse_descriptors(&self) {
        let_descriptors_pass(self.socket(), false);
        let mut state = self.cell.state.borrow_mut();
        // Whoever waits to send some is told that it can't.
        let waited = self.cell.forget_writable(&self.core, &mut state);
        let writer = waited.and_then(|_| state.writer.take());
        // A poll in flight ends with the next bytes, and is followed by a receive.
        state.intake = None;
        let resume = state.can_resume(self.core.config.inbound_bytes_max);
        drop(state);
        {
            let mut driver = self.core.driver.borrow_mut();
            if let Some(token) = waited {
                driver.cancel(token, self.cell.raw_fd());
            }
            if resume {
                self.cell.arm_receive(&self.core, &mut driver);
            }
        }
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// The descriptors of the frame whose first byte lies at `position` of the stream. Frames that
    /// announce some ask in order, each once its header was received.
    ///
    /// # Errors
    ///
    /// The number of descriptors that came before this frame and belong to none.
    pub fn claim_descriptors(&self, position: u64) -> Result<DescriptorClaim, usize> {
        let mut state = self.cell.state.borrow_mut();
        let Some(intake) = state.intake.as_mut() else { return Ok(DescriptorClaim::Missing) };
        let claim = intake.claim(position)?;
        let resume = state.can_resume(self.core.config.inbound_bytes_max);
        drop(state);
        if resume {
            self.cell.arm_receive(&self.core, &mut self.core.driver.borrow_mut());
        }
        Ok(claim)
    }

    /// For a reader that has decoded everything it took, but for the last `kept` bytes, which are the
    /// front of a frame: the number of descriptors that came with earlier bytes or later ones of
    /// these, and so belong to no frame. Zero if all is well.
    pub fn undeclared_descriptors(&self, kept: usize) -> usize {
        let mut state = self.cell.state.borrow_mut();
        let inbound_bytes = state.inbound_bytes as u64;
        let Some(intake) = &mut state.intake else { return 0 };
        if intake.arrived.is_empty() {
            return 0;
        }
        let taken = intake.received_bytes - inbound_bytes;
        intake.undeclared(taken, kept as u64)
    }

    /// Sends `prefix` and `body`, and `descriptors` with the first byte of them, once everything
    /// accepted before has left: the number of bytes taken, at least one, and with them all descriptors.
    /// The caller appends the rest of the bytes. Cancel safe: dropped before it is ready, nothing was
    /// sent.
    ///
    /// `prefix` and `body` have one byte at least, and there are at most
    /// [`DESCRIPTORS_PER_MESSAGE_MAX`](crate::DESCRIPTORS_PER_MESSAGE_MAX) descriptors. Of a body in many
    /// parts the first 64 are offered.
    ///
    /// # Errors
    ///
    /// [`DescriptorSendError`]; nothing was sent then. `EOPNOTSUPP` on a stream that takes none itself.
    pub fn poll_send_with_descriptors(
        &self,
        context: &mut Context<'_>,
        prefix: Prefix,
        body: &[&[u8]],
        descriptors: &[impl AsFd],
    ) -> Poll<Result<usize, DescriptorSendError>> {
        const PARTS_MAX: usize = 64;
        // Before anything is borrowed: it runs code of others.
        let rights = match Rights::of(descriptors) {
            Ok(rights) => rights,
            Err(errno) => {
                let errno = errno.raw_os_error();
                return Poll::Ready(Err(DescriptorSendError::Refused { errno }));
            }
        };
        let mut state = self.cell.state.borrow_mut();
        if let Some(error) = self.send_error(&state) {
            return Poll::Ready(Err(DescriptorSendError::Ended(error)));
        }
        if state.intake.is_none() {
            return Poll::Ready(Err(DescriptorSendError::Refused { errno: libc::EOPNOTSUPP }));
        }
        if !state.sending && state.unsent.is_none() && !state.outbound.is_empty() {
            drop(state);
            self.cell.send_queued(&self.core);
            state = self.cell.state.borrow_mut();
            if let Some(error) = state.send_error() {
                return Poll::Ready(Err(DescriptorSendError::Ended(error)));
            }
        }
        if state.sending || state.unsent.is_some() || !state.outbound.is_empty() {
            let replaced = state.writer_waits(context, false);
            self.core.end_of_send_matters.set(true);
            drop(state);
            drop(replaced);
            return Poll::Pending;
        }
        let mut parts = [IoSlice::new(&[]); PARTS_MAX + 1];
        parts[0] = IoSlice::new(prefix.as_slice());
        for (part, bytes) in parts[1..].iter_mut().zip(body) {
            *part = IoSlice::new(bytes);
        }
        let parts = &parts[..=body.len().min(PARTS_MAX)];
        let mut driver = self.core.driver.borrow_mut();
        if let Some(errno) = driver.failure() {
            let error = StreamError::from_errno(errno);
            return Poll::Ready(Err(DescriptorSendError::Ended(error)));
        }
        let calls = &mut driver.hands.system_calls;
        match ancillary::send(self.socket(), parts, &rights, calls) {
            Ok(count) => {
                add(&self.core.counters.bytes_sent, count as u64);
                Poll::Ready(Ok(count))
            }
            Err(Errno::AGAIN) => {
                let replaced = state.writer_waits(context, false);
                if !self.cell.arm_writable(&mut state, &mut driver) {
                    // No room for the poll now: try again next turn.
                    driver.wakers.extend(state.writer.take());
                }
                drop((state, driver));
                drop(replaced);
                Poll::Pending
            }
            Err(errno @ (Errno::PIPE | Errno::CONNRESET)) => {
                let error = StreamError::from_errno(errno.raw_os_error());
                state.send_failure = Some(error);
                Poll::Ready(Err(DescriptorSendError::Ended(error)))
            }
            Err(errno) => {
                let errno = errno.raw_os_error();
                Poll::Ready(Err(DescriptorSendError::Refused { errno }))
            }
        }
    }
}

impl Intake {
    fn claim(&mut self, position: u64) -> Result<DescriptorClaim, usize> {
        while let Some(front) = self.arrived.front() {
            if front.start > position {
                break;
            }
            let claimed = position < front.end;
            let Some(Arrived { descriptors, .. }) = self.arrived.pop_front() else { break };
            self.held -= descriptors.as_ref().map_or(0, Vec::len);
            match descriptors {
                Some(descriptors) if claimed => return Ok(DescriptorClaim::Whole(descriptors)),
                Some(descriptors) => return Err(descriptors.len()),
                None if claimed => return Ok(DescriptorClaim::Lost),
                // Nobody announced what was lost; nothing of it is held.
                None => {}
            }
        }
        Ok(DescriptorClaim::Missing)
    }

    fn undeclared(&mut self, taken: u64, kept: u64) -> usize {
        let header = taken - kept;
        // What was lost and not announced no later frame can claim: passed over here as well, so that it does
        // not gather while no frame claims anything.
        let passed = |arrived: &Arrived| arrived.end <= header && arrived.descriptors.is_none();
        while self.arrived.front().is_some_and(passed) {
            self.arrived.pop_front();
        }
        let stray = |arrived: &&Arrived| {
            arrived.end <= header || (arrived.start > header && arrived.start < taken)
        };
        let count = |arrived: &Arrived| arrived.descriptors.as_ref().map_or(0, Vec::len);
        self.arrived.iter().filter(stray).map(count).sum()
    }

    fn keep(&mut self, bytes: usize, descriptors: Descriptors) {
        let start = self.received_bytes;
        self.received_bytes += bytes as u64;
        let descriptors = match descriptors {
            Descriptors::None => return,
            Descriptors::Whole(descriptors) => Some(descriptors),
            Descriptors::Lost => None,
        };
        self.held += descriptors.as_ref().map_or(0, Vec::len);
        self.arrived.push_back(Arrived { start, end: self.received_bytes, descriptors });
    }
}

impl State {
    /// Whether enough is received for now. A reader that waits has decoded all bytes and may have a frame in
    /// pieces: receiving goes on, whatever is held.
    pub(super) fn is_sated(&self, inbound_bytes_max: usize) -> bool {
        let descriptors = self.intake.as_ref().is_some_and(|intake| {
            intake.held >= intake.held_max || intake.arrived.len() >= intake.held_max
        });
        self.inbound_cost_bytes() >= inbound_bytes_max || (descriptors && !self.is_awaited())
    }

    /// Somebody waits for bytes, and none are there.
    fn is_awaited(&self) -> bool {
        self.inbound_bytes == 0 && (self.reader.is_some() || self.watcher.is_some())
    }

    /// In a simulation: somebody is told when the socket itself has room.
    #[cfg(feature = "sim")]
    pub(super) fn waits_for_socket(&self) -> bool {
        self.intake.as_ref().is_some_and(|intake| intake.writable.is_some())
    }

    /// Takes what nobody has claimed, to be closed.
    pub(super) fn drop_arrived(&mut self) -> VecDeque<Arrived> {
        let Some(intake) = self.intake.as_mut() else { return VecDeque::new() };
        intake.held = 0;
        std::mem::take(&mut intake.arrived)
    }
}

impl StreamCell {
    /// Asks to be told when something can be received, unless enough has been.
    pub(super) fn arm_readable(
        self: &Rc<Self>,
        core: &Core,
        state: &mut State,
        driver: &mut Driver,
    ) {
        if state.is_sated(core.config.inbound_bytes_max) {
            state.receive = Receive::Paused;
            return;
        }
        let request = Request::Readable { fd: self.raw_fd() };
        match driver.start(|| Owner::Readable(Rc::clone(self)), request) {
            Some(token) => state.receive = Receive::Armed(token),
            None => driver.retry.push(Rc::clone(self)),
        }
    }

    /// Something can be received, or the poll has ended.
    pub(crate) fn readable(self: &Rc<Self>, core: &Core, driver: &mut Driver, result: i32) {
        let mut state = self.state.borrow_mut();
        let paused = matches!(state.receive, Receive::Pausing(_));
        state.receive = Receive::Idle;
        if state.closing {
            state.receive = Receive::Ended;
            state.end.get_or_insert(Err(StreamError::PeerGone));
            return;
        }
        let ended = match -result {
            ..=0 | libc::EINTR | libc::EAGAIN | libc::ENOMEM => {
                self.receive(core, driver, &mut state)
            }
            // Stopped, or the last poll before plain receives was ended by their hang-up guard.
            libc::ECANCELED if paused || state.stopping => None,
            errno => Some(Err(StreamError::from_errno(errno))),
        };
        if ended.is_some() || state.first.is_some() || state.stopping {
            driver.wakers.extend(state.reader.take());
            driver.wakers.extend(state.watcher.take());
        }
        if let Some(end) = ended {
            state.receive = Receive::Ended;
            state.end.get_or_insert(end);
            return;
        }
        if -result == libc::ENOMEM {
            self.rest(&mut state, driver);
            return;
        }
        drop(state);
        self.arm_receive(core, driver);
    }

    /// Receives what is there, within bounds. The end of the stream, if it was seen.
    fn receive(
        &self,
        core: &Core,
        driver: &mut Driver,
        state: &mut State,
    ) -> Option<Result<(), StreamError>> {
        for _ in 0..RECEIVES_PER_EVENT_MAX {
            // Without an intake the stream has become a plain one: its receive follows.
            if state.intake.is_none() || state.is_sated(core.config.inbound_bytes_max) {
                return None;
            }
            let Driver { hands, pool, packets, .. } = driver;
            let elsewhere = packets.unlent_blocks(pool);
            match hands.receive(self.socket.as_fd(), pool, elsewhere) {
                Err(Errno::AGAIN) => return None,
                Err(errno) => return Some(Err(StreamError::from_errno(errno.raw_os_error()))),
                Ok(None) => return Some(Ok(())),
                Ok(Some(Delivery { chunk, descriptors })) => {
                    let bytes = chunk.len();
                    add(&core.counters.bytes_received, bytes as u64);
                    if matches!(chunk, Chunk::Copied(_)) {
                        add(&core.counters.bytes_copied, bytes as u64);
                    }
                    state.inbound_bytes += bytes;
                    if let Some(intake) = &mut state.intake {
                        intake.keep(bytes, descriptors);
                    }
                    state.push_inbound(chunk);
                }
            }
        }
        None
    }

    /// Sends what is queued now, as far as the socket takes it.
    fn send_queued(self: &Rc<Self>, core: &Core) {
        let mut driver = core.driver.borrow_mut();
        let mut state = self.state.borrow_mut();
        let Some(mut memory) = state.outbound.take(&mut core.blocks.borrow_mut()) else { return };
        if driver.failure().is_some() {
            self.send(&mut state, &mut driver, memory, false);
            return;
        }
        state.sending_bytes = memory.len();
        let calls = &mut driver.hands.system_calls;
        let outcome = send_now(self.socket.as_fd(), &mut memory, calls);
        drop(state);
        let (Attempt::Whole(result) | Attempt::Short(result) | Attempt::Failed(result)) = outcome;
        self.sent(core, &mut driver, memory, result);
    }

    /// Starts to wait for room in the socket. False if the wait could not be started.
    fn arm_writable(self: &Rc<Self>, state: &mut State, driver: &mut Driver) -> bool {
        let request = Request::Writable { fd: self.raw_fd() };
        let token = driver.start(|| Owner::Writable(Rc::clone(self)), request);
        if let Some(intake) = &mut state.intake
            && token.is_some()
        {
            intake.writable = token;
            state.sending = true;
        }
        token.is_some()
    }

    /// There is room in the socket, or the poll has ended. Who waits for it looks again, after a rest if the kernel had
    /// no memory for the poll.
    pub(crate) fn writable(self: &Rc<Self>, core: &Core, driver: &mut Driver, result: i32) {
        let mut state = self.state.borrow_mut();
        if self.forget_writable(core, &mut state).is_none() {
            return;
        }
        if -result == libc::ENOMEM && !state.closing {
            self.rest(&mut state, driver);
        } else {
            driver.wakers.extend(state.writer.take());
        }
    }

    /// The wait for room is over, or not wanted any more. Its token, if there is one.
    pub(super) fn forget_writable(
        self: &Rc<Self>,
        core: &Core,
        state: &mut State,
    ) -> Option<Token> {
        let token = state.intake.as_mut()?.writable.take()?;
        state.sending = false;
        if !state.outbound.is_empty() && !state.dirty {
            state.dirty = true;
            core.dirty.borrow_mut().push(Rc::clone(self));
        }
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Wake, Waker};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::capabilities::EngineChoice;
    use crate::config::Config;
    use crate::reactor::{Reactor, Wait};

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn intake() -> Intake {
        Intake {
            arrived: VecDeque::new(),
            held: 0,
            held_max: 64,
            received_bytes: 0,
            writable: None,
        }
    }

    fn files(count: usize) -> Descriptors {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        Descriptors::Whole((0..count).map(|_| file()).collect())
    }

    fn whole(claim: Result<DescriptorClaim, usize>) -> usize {
        match claim {
            Ok(DescriptorClaim::Whole(found)) => found.len(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_frame_claims_what_came_with_a_byte_of_its_window() {
        let mut intake = intake();
        intake.keep(100, Descriptors::None);
        intake.keep(50, files(2));
        intake.keep(50, files(3));
        intake.keep(50, Descriptors::Lost);
        assert_eq!(intake.held, 5);
        // Plain bytes of earlier sends may lie in front of the frame in the same window.
        assert!(matches!(intake.claim(99), Ok(DescriptorClaim::Missing)));
        assert_eq!(whole(intake.claim(120)), 2);
        assert!(matches!(intake.claim(149), Ok(DescriptorClaim::Missing)));
        assert_eq!(whole(intake.claim(199)), 3);
        assert!(matches!(intake.claim(200), Ok(DescriptorClaim::Lost)));
        assert!(matches!(intake.claim(249), Ok(DescriptorClaim::Missing)));
        assert_eq!((intake.held, intake.arrived.len()), (0, 0));
    }

    #[test]
    fn what_no_frame_can_claim_any_more_is_told() {
        let mut intake = intake();
        intake.keep(10, files(4));
        intake.keep(10, files(1));
        assert!(matches!(intake.claim(10), Err(4)));
        assert_eq!(whole(intake.claim(10)), 1);
        intake.keep(10, Descriptors::Lost);
        intake.keep(10, files(1));
        // What was lost and not announced is passed over: nothing of it is held.
        assert_eq!(whole(intake.claim(30)), 1);
        assert_eq!(intake.held, 0);
    }

    #[test]
    fn a_reader_that_has_taken_everything_sees_strays() {
        let mut intake = intake();
        intake.keep(10, files(4));
        // The frame may begin with the bytes that the reader keeps, and not behind them.
        assert_eq!(intake.undeclared(10, 0), 4);
        assert_eq!(intake.undeclared(10, 1), 0);
        assert_eq!(intake.undeclared(10, 7), 0);
        intake.keep(2, files(3));
        assert_eq!(intake.undeclared(12, 0), 7);
        assert_eq!(intake.undeclared(12, 1), 4, "the last byte may be a frame of its own");
        assert_eq!(intake.undeclared(12, 5), 3, "the second came with the inside of a header");
        // Not taken yet.
        assert_eq!(intake.undeclared(10, 3), 0);
        assert_eq!(whole(intake.claim(9)), 4);
        assert_eq!(intake.undeclared(10, 0), 0);
    }

    #[test]
    fn what_was_lost_and_not_announced_does_not_gather() {
        const FRAME_BYTES: usize = 10;
        let mut intake = intake();
        let mut taken = 0;
        for _ in 0..100 {
            intake.keep(FRAME_BYTES, Descriptors::Lost);
            // While the reader has only the front of a frame, that frame may still announce them.
            assert_eq!(intake.undeclared(taken + 3, 3), 0);
            assert_eq!(intake.arrived.len(), 1);
            taken += FRAME_BYTES as u64;
            assert_eq!(intake.undeclared(taken, 0), 0);
            assert_eq!(intake.arrived.len(), 0);
        }
        intake.keep(FRAME_BYTES, Descriptors::Lost);
        intake.keep(FRAME_BYTES, files(2));
        intake.keep(FRAME_BYTES, Descriptors::Lost);
        assert_eq!(intake.undeclared(taken, 0), 0, "nothing of it is taken");
        assert!(matches!(intake.claim(taken), Ok(DescriptorClaim::Lost)));
        assert_eq!(whole(intake.claim(taken + 10)), 2);
        assert!(matches!(intake.claim(taken + 20), Ok(DescriptorClaim::Lost)));
    }

    /// A stream without room in its socket, and the peer's end.
    fn full(engine: EngineChoice) -> (Reactor, Stream, UnixStream) {
        let reactor = Reactor::new(Config { engine, ..Config::default() }).unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        while rustix::io::write(&near, &[0; 4096]).is_ok() {}
        let stream = reactor.adopt_stream_with_descriptors(near.into(), 64);
        (reactor, stream, far)
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_send_that_waits_for_room_ends_if_descriptors_are_refused() {
        for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
            let (reactor, stream, far) = full(engine);
            let file = std::fs::File::open("/dev/null").unwrap();
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let send = || {
                let mut context = Context::from_waker(&waker);
                stream.poll_send_with_descriptors(&mut context, Prefix::NONE, &[b"x"], &[&file])
            };
            assert!(send().is_pending());
            reactor.turn(Wait::No).unwrap();
            stream.refuse_descriptors();
            assert!(woken.0.load(Ordering::Relaxed));
            let refused = DescriptorSendError::Refused { errno: libc::EOPNOTSUPP };
            assert!(matches!(send(), Poll::Ready(Err(error)) if error == refused));
            // Bytes are sent as on any other stream.
            stream.append(Prefix::NONE, b"last");
            let mut context = Context::from_waker(Waker::noop());
            let deadline = Instant::now() + Duration::from_secs(10);
            far.set_nonblocking(true).unwrap();
            while stream.poll_flushed(&mut context).is_pending() {
                assert!(Instant::now() < deadline, "the stream sends nothing any more");
                reactor.turn(Wait::No).unwrap();
                let _ = rustix::io::read(&far, &mut [0; 1 << 16]);
            }
        }
    }

    /// The kernel has no memory to tell of bytes or of room: what it had told before is looked at, and then not again at
    /// once.
    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn polls_without_memory_rest() {
        for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
            let (reactor, stream, far) = full(engine);
            let file = std::fs::File::open("/dev/null").unwrap();
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let mut context = Context::from_waker(&waker);
            let send = |context: &mut Context<'_>| {
                stream.poll_send_with_descriptors(context, Prefix::NONE, &[b"x"], &[&file])
            };
            while stream.poll_stopped(&mut Context::from_waker(Waker::noop())).is_pending() {
                reactor.turn(Wait::Until(Instant::now() + Duration::from_millis(1))).unwrap();
            }
            {
                let mut state = stream.cell.state.borrow_mut();
                state.stopping = false;
                state.sending = true;
                state.writer = Some(waker.clone());
                state.intake.as_mut().unwrap().writable = Some(Token(0));
            }
            // The ends of both polls, as the kernel would report them.
            let core = &reactor.core;
            let mut driver = core.driver.borrow_mut();
            stream.cell.readable(core, &mut driver, -libc::ENOMEM);
            stream.cell.writable(core, &mut driver, -libc::ENOMEM);
            assert!(driver.wakers.is_empty(), "{engine:?}");
            drop(driver);
            {
                let state = stream.cell.state.borrow();
                assert!(state.resting && matches!(state.receive, Receive::Idle), "{engine:?}");
                assert!(!woken.0.load(Ordering::Relaxed));
            }
            let start = Instant::now();
            while !woken.0.load(Ordering::Relaxed) {
                assert!(start.elapsed() < Duration::from_secs(20), "{engine:?}: nobody is woken");
                reactor.turn(Wait::Until(start + Duration::from_secs(20))).unwrap();
            }
            // Both go on.
            rustix::io::write(&far, b"bytes").unwrap();
            while stream.try_receive().is_none() {
                assert!(start.elapsed() < Duration::from_secs(20), "{engine:?}: no bytes");
                reactor.turn(Wait::Until(start + Duration::from_secs(20))).unwrap();
            }
            while send(&mut context).is_pending() {
                assert!(start.elapsed() < Duration::from_secs(20), "{engine:?}: no room");
                rustix::io::read(&far, &mut [0; 1 << 16]).unwrap();
                reactor.turn(Wait::No).unwrap();
            }
        }
    }
}
