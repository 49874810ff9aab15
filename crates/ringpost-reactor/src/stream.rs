//! A connected byte stream: received chunks waiting for their reader, accepted bytes waiting for the
//! kernel, and one receive and at most one send in flight.
//!
//! ```text
//! receive:  Idle -> Armed -> (paused | starved | ended) -> Armed ...
//!           Idle     nothing armed, a turn will arm it
//!           Armed    a multishot receive is in flight
//!           Pausing  its cancel is under way: the reader lags
//!           Paused   nothing armed until the reader has caught up
//!           Starved  nothing armed until a block is free
//!           Ended    end of file or an error was seen
//!           (Armed is a poll where descriptors may come along, see `descriptors`)
//! send:     at most one in flight, silent first; short or refused -> tracked until it is whole;
//!           refused for want of memory -> a rest, then anew
//! stop:     Armed -> Pausing -> Idle, and stays there: the socket can be handed over
//! close:    the handle is gone -> what was accepted is sent (bounded in time) -> shutdown(2)
//!           -> the receive ends -> the last reference closes the descriptor
//! ```

mod appender;
mod closing;
mod descriptors;

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::net::Shutdown;

pub use self::appender::Appender;
use self::descriptors::Intake;
pub use self::descriptors::{DescriptorClaim, DescriptorSendError};
use self::rest::RECEIVES_CANCELLED_MAX;
pub(crate) use self::rest::Rests;
use crate::ancillary::let_descriptors_pass;
use crate::chunk::Chunk;
use crate::engine::{Completion, Request, Token};
use crate::lingering::Key;
use crate::memory::Prefix;
use crate::ops::{NotStarted, Owner};
use crate::outbound::{Outbound, Payload, SendMemory};
use crate::pool::Pool;
use crate::reactor::{Core, Driver};
use crate::retries::Listed;
use crate::stats::add;
use crate::waiters::replace_waker;

mod inbound;
#[cfg(feature = "sim")]
mod parked;
mod rest;
mod retry;
mod stop;
mod telling;

/// Why a stream can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The peer closed its end without reading everything, or was killed (EPIPE, ECONNRESET).
    #[error("the peer is gone")]
    PeerGone,
    /// The runtime that drove this stream has ended.
    #[error("the runtime has ended")]
    RuntimeEnded,
    /// The kernel refused for another reason.
    #[error("the kernel refused: {}", std::io::Error::from_raw_os_error(*errno))]
    Kernel {
        /// The error number.
        errno: i32,
    },
}

impl StreamError {
    pub(crate) fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EPIPE | libc::ECONNRESET => Self::PeerGone,
            libc::ECANCELED => Self::RuntimeEnded,
            errno => Self::Kernel { errno },
        }
    }
}

/// What a reader finds.
#[derive(Debug)]
#[non_exhaustive]
pub enum Inbound {
    /// Received bytes.
    Chunk(Chunk),
    /// The peer sends no more.
    EndOfFile,
    /// A packet was longer than allowed and is lost; a byte stream has none.
    Truncated {
        /// Its length, bytes.
        len: usize,
    },
}

/// What senders gather before they let the reactor turn. A little more than a default socket buffer takes at
/// once: less wakes the peer more often and leaves it waiting for more, with much more the memory of both sides
/// falls out of the cache (ARCHITECTURE.md, measured decisions).
const BATCH_BYTES: usize = 4 * crate::memory::OUTBOUND_LARGE_BYTES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receive {
    Idle,
    Armed(Token),
    Pausing(Token),
    Paused,
    Starved,
    Ended,
}

#[derive(Debug)]
struct State {
    receive: Receive,
    end: Option<Result<(), StreamError>>,
    /// The oldest received chunk, in place because there is seldom another.
    first: Option<Chunk>,
    /// The chunks behind `first`; none while that is `None`.
    #[expect(clippy::box_collection, reason = "idle streams, of which there are many, have none")]
    inbound: Option<Box<VecDeque<Chunk>>>,
    inbound_bytes: usize,
    reader: Option<Waker>,
    watcher: Option<Waker>,
    outbound: Outbound,
    /// Bytes of the send in flight.
    sending_bytes: usize,
    sending: bool,
    /// Memory of a send that could not be started, or that the kernel had no memory for.
    unsent: Option<Box<SendMemory>>,
    /// Nothing is tried again until its rest is over.
    resting: bool,
    /// In a row, see [`RECEIVES_CANCELLED_MAX`].
    receives_cancelled: u8,
    send_failure: Option<StreamError>,
    writer: Option<Waker>,
    dirty: bool,
    /// Something was accepted although there was no room, and there has been none since.
    beyond: bool,
    closing: bool,
    /// Once drained, the peer is told that nothing more follows.
    finishing: bool,
    shut_down: bool,
    /// In use with io_uring: a kernel may lose an end of file behind data.
    hangup: Option<Token>,
    /// Present if descriptors may come along.
    intake: Option<Box<Intake>>,
    /// Receiving is to end, for the socket to be handed over.
    stopping: bool,
    /// Where it lingers, once dropped with something left to send.
    linger: Option<Key>,
    /// In a simulation: `writer` waits for room, not for a flush.
    #[cfg(feature = "sim")]
    waits_for_room: bool,
}

/// The shared part of a stream: op slots and the handle refer to it.
pub(crate) struct StreamCell {
    socket: OwnedFd,
    state: RefCell<State>,
    retried: Listed,
}

impl fmt::Debug for StreamCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamCell").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// The handle of a connected byte stream on a reactor. Dropping it closes the stream once what was
/// accepted has left (or the linger time is over).
pub struct Stream {
    cell: Rc<StreamCell>,
    core: Rc<Core>,
    /// Among those that are open.
    place: usize,
}

impl Stream {
    pub(crate) fn adopt(core: &Rc<Core>, socket: OwnedFd) -> Self {
        let_descriptors_pass(socket.as_fd(), false);
        Self::adopt_as(core, socket, None)
    }

    fn adopt_as(core: &Rc<Core>, socket: OwnedFd, intake: Option<Box<Intake>>) -> Self {
        let state = State {
            receive: Receive::Idle,
            end: None,
            first: None,
            inbound: None,
            inbound_bytes: 0,
            reader: None,
            watcher: None,
            outbound: Outbound::default(),
            sending_bytes: 0,
            sending: false,
            unsent: None,
            resting: false,
            receives_cancelled: 0,
            send_failure: None,
            writer: None,
            dirty: false,
            beyond: false,
            closing: false,
            finishing: false,
            shut_down: false,
            hangup: None,
            intake,
            stopping: false,
            linger: None,
            #[cfg(feature = "sim")]
            waits_for_room: false,
        };
        let state = RefCell::new(state);
        let cell = Rc::new(StreamCell { socket, state, retried: Listed::default() });
        #[cfg(feature = "sim")]
        core.streams.borrow_mut().push(&cell);
        if core.is_closed() {
            cell.fail(libc::ECANCELED, &mut Vec::new());
        } else {
            cell.arm_receive(core, &mut core.driver.borrow_mut());
        }
        let place = core.open_streams.add(&cell);
        Self { cell, core: Rc::clone(core), place }
    }

    /// The socket, for queries such as peer credentials.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.cell.socket.as_fd()
    }

    /// Takes the next received bytes. Cancel safe: nothing is lost when the caller stops polling.
    ///
    /// # Errors
    ///
    /// [`StreamError`] once everything received before has been taken; it is repeated.
    #[inline]
    pub fn poll_receive(&self, context: &mut Context<'_>) -> Poll<Result<Inbound, StreamError>> {
        let mut state = self.cell.state.borrow_mut();
        if let Some(chunk) = state.pop_inbound() {
            let resume = state.can_resume(self.core.config.inbound_bytes_max);
            drop(state);
            if resume {
                self.cell.arm_receive(&self.core, &mut self.core.driver.borrow_mut());
            }
            return Poll::Ready(Ok(Inbound::Chunk(chunk)));
        }
        match state.end {
            Some(Ok(())) => Poll::Ready(Ok(Inbound::EndOfFile)),
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => {
                if let Some(error) = self.core.end() {
                    return Poll::Ready(Err(error));
                }
                let replaced = replace_waker(&mut state.reader, context.waker());
                self.go_on_for_who_waits(state);
                drop(replaced);
                Poll::Pending
            }
        }
    }

    /// Receiving that paused for what is held goes on: whoever waits has decoded all that has come.
    #[inline]
    fn go_on_for_who_waits(&self, state: RefMut<'_, State>) {
        if state.receive == Receive::Paused && state.intake.is_some() {
            drop(state);
            self.cell.arm_receive(&self.core, &mut self.core.driver.borrow_mut());
        }
    }

    /// Takes received bytes if some are there. Never waits; an end is left for
    /// [`Stream::poll_receive`] to tell.
    #[inline]
    pub fn try_receive(&self) -> Option<Chunk> {
        self.cell.state.borrow().first.as_ref()?;
        match self.poll_receive(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Inbound::Chunk(chunk))) => Some(chunk),
            _ => None,
        }
    }

    /// Waits until [`Stream::poll_receive`] has something to say, without taking it and apart from
    /// whoever polls that. Cancel safe.
    pub fn poll_arrival(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.cell.state.borrow_mut();
        if state.first.is_some() || state.end.is_some() || self.core.is_closed() {
            return Poll::Ready(());
        }
        let replaced = replace_waker(&mut state.watcher, context.waker());
        self.go_on_for_who_waits(state);
        drop(replaced);
        Poll::Pending
    }

    /// Bytes accepted and not yet handed to the kernel.
    pub fn outbound_bytes(&self) -> usize {
        self.cell.state.borrow().unsent_bytes()
    }

    /// True if a message may be accepted now.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if nothing can be sent any more.
    #[inline]
    pub fn has_room(&self) -> Result<bool, StreamError> {
        let state = self.cell.state.borrow();
        match self.send_error(&state) {
            Some(error) => Err(error),
            None => Ok(state.unsent_bytes() < self.core.config.outbound_bytes_max),
        }
    }

    /// True if a message may be accepted now and nothing is gained by letting the reactor turn first:
    /// what [`Stream::poll_room`] waits for.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if nothing can be sent any more.
    #[inline]
    pub fn has_prompt_room(&self) -> Result<bool, StreamError> {
        let state = self.cell.state.borrow();
        match self.send_error(&state) {
            Some(error) => Err(error),
            None => Ok(state.prompt_room(self.core.config.outbound_bytes_max) > 0),
        }
    }

    /// Bytes that may be accepted now within the bounds that [`Stream::poll_room`] waits for; for those
    /// who can cut what they send.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if nothing can be sent any more.
    #[inline]
    pub fn prompt_room(&self) -> Result<usize, StreamError> {
        let state = self.cell.state.borrow();
        match self.send_error(&state) {
            Some(error) => Err(error),
            None => Ok(state.prompt_room(self.core.config.outbound_bytes_max)),
        }
    }

    /// Waits until a message may be accepted. Once a batch of 256 KiB has gathered and nothing of this
    /// stream is in flight, that is after the next turn, so that the peer has something to do while
    /// more is queued. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if nothing can be sent any more.
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self.has_prompt_room() {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => {
                let replaced = self.cell.state.borrow_mut().writer_waits(context, true);
                self.core.end_of_send_matters.set(true);
                drop(replaced);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Waits until the kernel has everything accepted so far. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if something accepted can't be sent any more.
    pub fn poll_flushed(&self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut state = self.cell.state.borrow_mut();
        if let Some(error) = state.send_error() {
            return Poll::Ready(Err(error));
        }
        if state.unsent_bytes() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = self.core.end() {
            return Poll::Ready(Err(error));
        }
        let replaced = state.writer_waits(context, false);
        self.core.end_of_send_matters.set(true);
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// Accepts `prefix` and `body` as [`Stream::append`] does, if there is room. False if there is none.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if nothing can be sent any more.
    #[inline]
    pub fn try_append(&self, prefix: Prefix, body: &[u8]) -> Result<bool, StreamError> {
        let mut state = self.cell.state.borrow_mut();
        if let Some(error) = self.send_error(&state) {
            return Err(error);
        }
        if state.unsent_bytes() >= self.core.config.outbound_bytes_max {
            return Ok(false);
        }
        if !state.outbound.try_append(prefix, body) {
            state.outbound.append(prefix, body, &mut self.core.blocks.borrow_mut());
        }
        self.mark_dirty(&mut state);
        Ok(true)
    }

    /// Accepts `prefix` and `body` for sending: both are copied once. The caller has seen
    /// [`Stream::has_room`].
    #[inline]
    pub fn append(&self, prefix: Prefix, body: &[u8]) {
        let mut state = self.cell.state.borrow_mut();
        if !state.outbound.try_append(prefix, body) {
            state.outbound.append(prefix, body, &mut self.core.blocks.borrow_mut());
        }
        self.mark_dirty(&mut state);
    }

    /// Accepts a copy of `body` also where there is no room: once, and again when there has been room in
    /// between. False if it was not accepted.
    pub fn append_beyond(&self, body: &[u8]) -> bool {
        {
            let mut state = self.cell.state.borrow_mut();
            let full = state.unsent_bytes() >= self.core.config.outbound_bytes_max;
            if self.send_error(&state).is_some() || (full && state.beyond) {
                return false;
            }
            state.beyond = full;
        }
        self.append(Prefix::NONE, body);
        true
    }

    /// Accepts `prefix` and `len` bytes that `fill` writes in place. `fill` may use this stream: what it
    /// appends goes before or behind. Nothing is accepted if it panics.
    #[inline]
    pub fn append_with(&self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) {
        Appender::new(self, 0, 0).append_with(prefix, len, fill);
    }

    /// Accepts many payloads in a row without looking at the queue anew for each.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if nothing can be sent any more.
    #[inline(always)]
    pub fn appender(&self) -> Result<Appender<'_>, StreamError> {
        let state = self.cell.state.borrow();
        if let Some(error) = self.send_error(&state) {
            return Err(error);
        }
        let room = state.prompt_room(self.core.config.outbound_bytes_max);
        Ok(Appender::new(self, state.unsent_bytes(), room))
    }

    /// Accepts `prefix` and a payload that is sent from where it lies.
    pub fn append_shared(&self, prefix: Prefix, payload: Payload) {
        let mut state = self.cell.state.borrow_mut();
        state.outbound.append_shared(prefix, payload);
        self.mark_dirty(&mut state);
    }

    /// Closes the stream as dropping it would, while the handle goes on to report the end.
    pub fn close(&self) {
        // What was accepted still leaves, so this is no failure to send; `closing` refuses more.
        let wakers = {
            let mut state = self.cell.state.borrow_mut();
            state.end.get_or_insert(Err(StreamError::PeerGone));
            [state.reader.take(), state.watcher.take(), state.writer.take()]
        };
        self.cell.close(&self.core);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Tells the peer that nothing more will be sent (`shutdown(SHUT_WR)`). Call it once flushed.
    pub fn shutdown_write(&self) {
        if self.core.is_in_child() {
            return;
        }
        // Only ENOTCONN can come back, and then there is nobody to tell.
        let _ = rustix::net::shutdown(&self.cell.socket, Shutdown::Write);
    }

    /// Tells the peer that nothing more will be sent as soon as everything accepted so far has left; at
    /// once if it has. Append nothing after it.
    pub fn finish(&self) {
        {
            let mut state = self.cell.state.borrow_mut();
            if std::mem::replace(&mut state.finishing, true) {
                return;
            }
            if !state.is_drained() {
                state.announce(&self.core);
                return;
            }
        }
        self.shutdown_write();
    }

    /// Why nothing more is accepted for sending. Streams without anything in flight do not hear of the reactor's end.
    #[inline]
    fn send_error(&self, state: &State) -> Option<StreamError> {
        state.send_error().or_else(|| self.core.end())
    }

    #[inline]
    fn mark_dirty(&self, state: &mut State) {
        // At the end of the reactor nobody would look for it.
        if !state.dirty && !self.core.is_closed() {
            state.dirty = true;
            self.core.dirty.borrow_mut().push(Rc::clone(&self.cell));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.core.open_streams.remove(self.place);
        self.cell.close(&self.core);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("socket", &self.cell.socket).finish_non_exhaustive()
    }
}

impl State {
    #[inline]
    fn unsent_bytes(&self) -> usize {
        self.sending_bytes + self.outbound.len()
    }

    /// Bytes to accept before senders wait, within the bound of `max`.
    #[inline]
    fn prompt_room(&self, max: usize) -> usize {
        let max = if self.sending { max } else { max.min(BATCH_BYTES) };
        max.saturating_sub(self.unsent_bytes())
    }

    /// Something has left: there may be room again, within the bound of `max`.
    #[inline]
    fn left(&mut self, max: usize) {
        self.beyond &= self.unsent_bytes() >= max;
    }

    /// Why nothing more is accepted for sending.
    #[inline]
    fn send_error(&self) -> Option<StreamError> {
        self.send_failure.or_else(|| self.closing.then_some(StreamError::PeerGone))
    }

    /// Something in flight uses the socket to receive or to watch it.
    fn is_receiving(&self) -> bool {
        matches!(self.receive, Receive::Armed(_) | Receive::Pausing(_)) || self.hangup.is_some()
    }

    /// Payloads go where nothing is borrowed, also those of a stream that has failed.
    fn release_queue(&mut self, core: &Core) {
        let mut blocks = core.blocks.borrow_mut();
        if let Some(memory) = self.unsent.take() {
            self.outbound.finish(*memory, &mut blocks);
        }
        self.outbound.clear(&mut blocks);
    }

    fn is_drained(&self) -> bool {
        !self.sending && self.unsent.is_none() && self.outbound.is_empty()
            || self.send_failure.is_some()
    }
}

impl StreamCell {
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    #[cfg(feature = "sim")]
    pub(crate) fn is_drained(&self) -> bool {
        self.state.borrow().is_drained()
    }

    /// Starts the receive, if nothing speaks against it.
    pub(crate) fn arm_receive(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        if state.end.is_some()
            || state.closing
            || state.stopping
            || matches!(state.receive, Receive::Armed(_) | Receive::Pausing(_))
        {
            return;
        }
        if state.inbound_cost_bytes() >= core.config.inbound_bytes_max {
            // The reader arms it once it has caught up, whatever it had ended for.
            state.receive = Receive::Paused;
            return;
        }
        state.receive = Receive::Idle;
        let fd = self.raw_fd();
        if state.intake.is_some() {
            self.arm_readable(core, &mut state, driver);
            return;
        }
        match driver.start(|| Owner::Receive(Rc::clone(self)), Request::Receive { fd }) {
            Some(token) => {
                state.receive = Receive::Armed(token);
                self.guard_hangup(&mut state, driver);
            }
            None => driver.retry.push(Rc::clone(self)),
        }
    }

    /// Has the receive watched on a kernel that may lose the end of file.
    fn guard_hangup(self: &Rc<Self>, state: &mut State, driver: &mut Driver) {
        if driver.guard_hangup && state.hangup.is_none() && !state.closing && !state.stopping {
            let request = Request::Hangup { fd: self.raw_fd() };
            let started = driver.start(|| Owner::Hangup(Rc::clone(self)), request);
            state.hangup = started;
            if state.hangup.is_none() {
                driver.retry.push(Rc::clone(self));
            }
        }
    }

    /// A receive delivered bytes or ended.
    pub(crate) fn received(self: &Rc<Self>, core: &Core, driver: &mut Driver, done: Completion) {
        let mut state = self.state.borrow_mut();
        if let Some(range) = done.received {
            if range.len > 0 {
                let bytes = range.len as usize;
                add(&core.counters.bytes_received, range.len.into());
                state.receives_cancelled = 0;
                if !state.closing {
                    state.inbound_bytes += bytes;
                    let Driver { pool, hands, packets, .. } = &mut *driver;
                    let elsewhere =
                        |pool: &Pool| hands.unlent_blocks(pool) + packets.unlent_blocks(pool);
                    let chunk = if pool.may_lend(range.block, elsewhere) {
                        Chunk::Leased(pool.lease(range.block, range.offset, range.len))
                    } else {
                        add(&core.counters.bytes_copied, range.len.into());
                        Chunk::Copied(pool.copy(range.block, range.offset, range.len))
                    };
                    state.push_inbound(chunk);
                    #[cfg(feature = "sim")]
                    driver.check_inbound(state.inbound_bytes, core.config.inbound_bytes_max);
                }
            }
            if range.last {
                driver.pool.retire(range.block);
            }
        }
        if let Some(waker) = state.reader.take() {
            driver.wakers.push(waker);
        }
        if let Some(waker) = state.watcher.take() {
            driver.wakers.push(waker);
        }
        if done.more {
            if let Receive::Armed(token) = state.receive
                && state.inbound_cost_bytes() >= core.config.inbound_bytes_max
            {
                add(&core.counters.receives_paused, 1);
                state.receive = Receive::Pausing(token);
                drop(state);
                driver.cancel(token, self.raw_fd());
            }
            return;
        }
        let paused = matches!(state.receive, Receive::Pausing(_));
        state.receive = Receive::Idle;
        match -done.result {
            0 => {
                state.receive = Receive::Ended;
                state.end.get_or_insert(Ok(()));
            }
            // Nobody wants more: it would wait for a block with its descriptor open.
            libc::ENOBUFS if state.stopping || state.closing || state.end.is_some() => {}
            libc::ENOBUFS => {
                add(&core.counters.receives_starved, 1);
                state.receive = Receive::Starved;
                driver.starve(Rc::clone(self));
            }
            // More than zero bytes, or ended for no fault of the stream: go on, or rest while paused.
            ..0 | libc::EINTR | libc::EAGAIN => {
                drop(state);
                self.resume(core, driver);
            }
            libc::ECANCELED | libc::ENOMEM if paused || state.closing || state.end.is_some() => {
                drop(state);
                self.resume(core, driver);
            }
            // The kernel had no memory to begin or to wait with: nobody has cancelled this.
            libc::ECANCELED | libc::ENOMEM if state.receives_cancelled < RECEIVES_CANCELLED_MAX => {
                state.receives_cancelled += 1;
                self.rest(&mut state, driver);
            }
            errno => {
                state.receive = Receive::Ended;
                let error = match errno {
                    libc::ECANCELED => StreamError::Kernel { errno },
                    errno => StreamError::from_errno(errno),
                };
                state.end.get_or_insert(Err(error));
            }
        }
    }

    /// Arms the receive again, or leaves it paused until the reader has caught up.
    fn resume(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        {
            let mut state = self.state.borrow_mut();
            if state.inbound_cost_bytes() > core.config.inbound_bytes_max / 2 {
                state.receive = Receive::Paused;
                return;
            }
        }
        self.arm_receive(core, driver);
    }

    /// The peer hung up: on a kernel that may lose the end of file, receive anew, which sees it.
    pub(crate) fn hung_up(self: &Rc<Self>, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        state.hangup = None;
        if state.stopping {
            driver.wakers.extend(state.watcher.take());
        }
        if let Receive::Armed(token) = state.receive {
            // Its end makes `received` arm again.
            state.receive = Receive::Pausing(token);
            drop(state);
            driver.cancel(token, self.raw_fd());
        }
    }

    /// Makes one send of everything queued.
    pub(crate) fn stage(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        state.dirty = false;
        if state.sending || state.unsent.is_some() || state.send_failure.is_some() {
            // The end of the send in flight looks at the queue again.
            return;
        }
        let Some(memory) = state.outbound.take(&mut core.blocks.borrow_mut()) else { return };
        state.sending_bytes = memory.len();
        state.announce_send(core, &memory);
        self.send(&mut state, driver, memory, !driver.tracked_only);
        if driver.tracked_only {
            state.tell_of_room(core, driver);
        }
    }

    fn send(
        self: &Rc<Self>,
        state: &mut State,
        driver: &mut Driver,
        memory: SendMemory,
        silent: bool,
    ) {
        if let Some(errno) = driver.failure() {
            state.unsent = Some(Box::new(memory));
            state.send_failure = Some(StreamError::from_errno(errno));
            driver.wakers.extend(state.writer.take());
            return;
        }
        let started = driver.ops.start_send(&mut *driver.engine, self, memory, silent);
        let started = match started {
            Err(NotStarted { memory: Some(memory) }) => {
                driver.make_room();
                driver.ops.start_send(&mut *driver.engine, self, memory, silent)
            }
            started => started,
        };
        match started {
            Ok(_) => state.sending = true,
            Err(NotStarted { memory }) => {
                state.unsent = memory.map(Box::new);
                driver.retry.push(Rc::clone(self));
            }
        }
    }

    /// A silent send was taken whole.
    pub(crate) fn sent_silently(
        self: &Rc<Self>,
        core: &Core,
        wakers: &mut Vec<Waker>,
        memory: SendMemory,
    ) {
        let mut state = self.state.borrow_mut();
        add(&core.counters.bytes_sent, state.sending_bytes as u64);
        self.finish_send(core, &mut state, wakers, memory);
    }

    fn finish_send(
        self: &Rc<Self>,
        core: &Core,
        state: &mut State,
        wakers: &mut Vec<Waker>,
        memory: SendMemory,
    ) {
        state.sending = false;
        state.sending_bytes = 0;
        state.left(core.config.outbound_bytes_max);
        state.outbound.finish(memory, &mut core.blocks.borrow_mut());
        if let Some(waker) = state.writer.take() {
            wakers.push(waker);
        }
        if !state.outbound.is_empty() {
            if !state.dirty {
                state.dirty = true;
                core.dirty.borrow_mut().push(Rc::clone(self));
            }
        } else if state.closing {
            self.shut_down_in(state);
            self.drained(core, state);
        } else if state.finishing {
            // As `Stream::shutdown_write`.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
    }

    /// A send completed: tracked, or silent and short or refused.
    pub(crate) fn sent(
        self: &Rc<Self>,
        core: &Core,
        driver: &mut Driver,
        mut memory: SendMemory,
        result: i32,
    ) {
        let mut state = self.state.borrow_mut();
        state.sending = false;
        match result {
            0.. => {
                #[expect(clippy::cast_sign_loss, reason = "not negative in this arm")]
                let count = result as usize;
                add(&core.counters.bytes_sent, count as u64);
                memory.advance(count, &mut core.blocks.borrow_mut());
                state.sending_bytes = memory.len();
                if state.sending_bytes == 0 {
                    self.finish_send(core, &mut state, &mut driver.wakers, memory);
                    return;
                }
                state.left(core.config.outbound_bytes_max);
            }
            errno if matches!(-errno, libc::EAGAIN | libc::EINTR) => {}
            // One that the reactor has cancelled has failed before.
            errno
                if matches!(-errno, libc::ENOBUFS | libc::ENOMEM)
                    || -errno == libc::ECANCELED && state.send_failure.is_none() =>
            {
                state.unsent = Some(Box::new(memory));
                self.rest(&mut state, driver);
                return;
            }
            errno => {
                state.sending_bytes = 0;
                state.outbound.finish(memory, &mut core.blocks.borrow_mut());
                state.outbound.clear(&mut core.blocks.borrow_mut());
                state.send_failure = Some(StreamError::from_errno(-errno));
                if let Some(waker) = state.writer.take() {
                    driver.wakers.push(waker);
                }
                if state.closing {
                    self.shut_down_in(&mut state);
                    self.drained(core, &state);
                }
                return;
            }
        }
        // The rest waits for room in the socket.
        add(&core.counters.sends_tracked, 1);
        self.send(&mut state, driver, memory, false);
        state.tell_of_room(core, driver);
    }

    /// The engine or the runtime is gone: both directions report it.
    pub(crate) fn fail(&self, errno: i32, wakers: &mut Vec<Waker>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let error = StreamError::from_errno(errno);
        state.end.get_or_insert(Err(error));
        state.send_failure.get_or_insert(error);
        wakers.extend(state.reader.take());
        wakers.extend(state.watcher.take());
        wakers.extend(state.writer.take());
    }
}
