//! A socket that carries packets (SOCK_SEQPACKET, SOCK_DGRAM): received ones wait for their reader, accepted
//! ones for the kernel. The engine only tells when the socket can be read or written; the packets themselves
//! move by calls of our own, many with each (`packet_io.rs`).
//!
//! ```text
//! receive:  Idle -> Armed -> (readable: receive what is there) -> Armed ...
//!           Idle     nothing armed, a turn will arm it
//!           Armed    the engine will tell when there is something
//!           Paused   nothing armed until the reader has taken what is there
//!           Resting  the kernel had no memory: nothing armed for a while
//!           Ended    end of the connection, or an error
//! send:     accepted packets leave at the end of the turn; a full receiver closes the gate of its lane
//!           (`packet_queue.rs`) until the engine tells of room, or for a while if it can't
//! close:    the handle is gone -> what was accepted is sent (bounded in time) -> the readiness request is
//!           cancelled -> the last reference closes the descriptor
//! ```

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::chunk::Chunk;
use crate::engine::{Request, Token};
use crate::lingering::{Key, Lingering};
use crate::ops::Owner;
use crate::packet::{Accepted, PacketError, PacketOptions, SendFailure};
use crate::packet_inbox::{Arrived, Place, Shape, joined};
use crate::packet_io::{PacketBlock, PacketIo, Slots, SocketName};
use crate::packet_pace::Pace;
use crate::packet_queue::{Gate, PacketQueue};
use crate::pool::Pool;
use crate::reactor::{Core, Driver};
use crate::retries::{Listed, Retried, Retries};
use crate::stats::add;
use crate::stream::StreamError;
use crate::waiters::{self, Waiters};

/// Receives in a row before others have their turn.
const RECEIVES_MAX: u32 = 8;
/// Sends in a row before others have their turn.
const SENDS_MAX: u32 = 32;
/// Failures kept until somebody asks; older ones are dropped first.
const FAILURES_MAX: usize = 64;
/// What senders gather before they let the reactor turn: as much as one call sends.
const BATCH_PACKETS: usize = crate::packet_io::SEND_PACKETS_MAX;
const BATCH_BYTES: usize = 128 << 10;
/// Refusals in a row, each after the engine had told of room, before it is no longer asked.
const POLLED_REFUSALS_MAX: u32 = 3;
/// Refusals for lack of memory before a packet is given up, and a connection with it.
const MEMORY_REFUSALS_MAX: u32 = 100;
/// What senders wait for, as topics of the waiters: that the reactor has turned; that something has left the queue;
/// and, by the number of the lane behind these, that something has left a lane.
const TURN: usize = 0;
const PROGRESS: usize = 1;
const LANES: usize = 2;
/// Pause of a receive that found no memory in the kernel.
const RECEIVE_REST: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receive {
    Idle,
    Armed(Token),
    Paused,
    Resting(Instant),
    Ended,
}

pub(crate) struct State {
    pub(crate) receive: Receive,
    pub(crate) end: Option<Result<(), StreamError>>,
    /// The peer of a connection has closed without having read everything.
    pub(crate) reset: bool,
    pub(crate) arrived: Arrived,
    pub(crate) shape: Shape,
    pub(crate) reader: Option<Waker>,
    pub(crate) watcher: Option<Waker>,
    pub(crate) queue: PacketQueue,
    pub(crate) writable: Option<Token>,
    /// When room for the connected peer is looked for all the same.
    pub(crate) look_again: Option<Instant>,
    pub(crate) writers: Waiters,
    pub(crate) failures: VecDeque<SendFailure>,
    pub(crate) send_failure: Option<StreamError>,
    /// The connected peer was found gone; nothing is sent to it until the socket is connected anew.
    pub(crate) disconnected: bool,
    pub(crate) send_bytes_max: usize,
    pub(crate) dirty: bool,
    /// A packet was accepted although there was no room, and there has been none since.
    pub(crate) beyond: bool,
    pub(crate) closing: bool,
    pub(crate) closed: bool,
    /// Where it lingers, once dropped with something left to send.
    pub(crate) linger: Option<Key>,
}

/// The shared part of a packet socket: op slots and the handle refer to it.
pub(crate) struct PacketCell {
    pub(crate) socket: OwnedFd,
    pub(crate) options: PacketOptions,
    pub(crate) state: RefCell<State>,
    pub(crate) retried: Listed,
    /// Its entries in [`PacketWork::resting`], at least.
    pub(crate) resting: Cell<usize>,
}

impl Retried for PacketCell {
    fn listed(&self) -> &Listed {
        &self.retried
    }
}

impl fmt::Debug for PacketCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketCell").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// What packet sockets need of a reactor.
#[derive(Debug, Default)]
pub(crate) struct PacketWork {
    /// Made for the first packet socket.
    pub(crate) io: Option<Box<PacketIo>>,
    /// What is received into now, by all packet sockets.
    block: Option<PacketBlock>,
    /// Sockets that could not arm; retried every turn.
    retry: Retries<PacketCell>,
    /// What rests, by the end of its rest and a number: a lane of a socket, or its receive.
    resting: BTreeMap<(Instant, u64), (Rc<PacketCell>, Option<usize>)>,
    last_rest: u64,
    pace: Pace,
    /// Dropped sockets with packets still to send.
    lingering: Lingering<PacketCell>,
    pub(crate) system_calls: u64,
}

impl PacketWork {
    /// True once there has been a packet socket.
    pub(crate) fn is_used(&self) -> bool {
        self.io.is_some()
    }

    /// Blocks of the pool that are held here.
    pub(crate) fn blocks(&self) -> usize {
        usize::from(self.block.is_some())
    }

    /// Blocks held here that nothing is lent from: they are of no use to the engine.
    pub(crate) fn unlent_blocks(&self, pool: &Pool) -> usize {
        usize::from(self.block.as_ref().is_some_and(|block| block.is_unlent(pool)))
    }

    /// Dropped sockets that have packets left to send.
    pub(crate) fn lingering(&self) -> usize {
        self.lingering.len()
    }

    /// Something is to be tried in the next turn, whatever happens.
    pub(crate) fn must_turn(&self) -> bool {
        !self.retry.is_empty()
    }

    /// In a simulation: no list grows by itself, and what rests knows it.
    #[cfg(feature = "sim")]
    pub(crate) fn check(&self) {
        crate::reactor::assert_once("packets to try again", self.retry.iter());
        let known = self.resting.values().all(|(cell, _)| cell.resting.get() > 0);
        assert!(known, "a socket that rests would not be let go of");
    }

    #[cfg(feature = "sim")]
    pub(crate) fn lingering_drained(&self) -> usize {
        self.lingering.iter().filter(|cell| cell.state.borrow().is_drained()).count()
    }

    /// Something of them goes by the clock.
    #[inline]
    pub(crate) fn has_clocks(&self) -> bool {
        !(self.resting.is_empty() && self.lingering.is_empty())
    }

    /// When something must be looked at although nothing completes.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let resting = self.resting.first_key_value().map(|((at, _), _)| *at);
        [resting, self.lingering.next_due()].into_iter().flatten().min()
    }

    /// How long who has rested for long rests now.
    fn long_rest(&self) -> Duration {
        self.pace.rest_of(self.resting.len())
    }

    /// Lets go of a socket that has closed.
    fn forget(&mut self, cell: &PacketCell) {
        self.retry.forget(cell);
        // Few sockets rest, and many may close: all that rest are not looked through for each.
        if cell.resting.take() > 0 {
            self.resting.retain(|_, (candidate, _)| !std::ptr::eq(Rc::as_ptr(candidate), cell));
        }
    }

    /// A lane of a socket, or its receive, rests.
    fn rest(&mut self, until: Instant, cell: &Rc<PacketCell>, lane: Option<usize>) {
        self.last_rest += 1;
        cell.resting.update(|count| count + 1);
        self.resting.insert((until, self.last_rest), (Rc::clone(cell), lane));
    }

    /// Lets go of everything, for shutdown.
    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        drop(self.retry.take());
        self.resting.clear();
        if let Some(block) = self.block.take() {
            block.retire(pool);
        }
    }

    /// Everybody who waits for something that has no operation.
    pub(crate) fn fail_waiting(&mut self, errno: i32, wakers: &mut Vec<Waker>) {
        let resting = std::mem::take(&mut self.resting).into_values().map(|(cell, _)| cell);
        let waiting = self.retry.take().into_iter().chain(resting);
        waiting.for_each(|cell| cell.fail(errno, wakers));
    }
}

/// Whether no byte of a connection lies in it (SIOCINQ, unix(7)). An error is no word of any.
fn is_empty(socket: &OwnedFd) -> bool {
    !rustix::io::ioctl_fionread(socket).is_ok_and(|bytes| bytes > 0)
}

/// What `unix_dgram_sendmsg` takes at most: the send buffer less 32 bytes.
pub(crate) fn send_bytes_max(socket: &OwnedFd) -> usize {
    const KEPT_BYTES: usize = 32;
    // An error means that it is no socket; its first operation says so.
    let buffer = rustix::net::sockopt::socket_send_buffer_size(socket).unwrap_or(0);
    buffer.saturating_sub(KEPT_BYTES)
}

impl State {
    #[inline]
    pub(crate) fn send_error(&self) -> Option<StreamError> {
        self.send_failure.or_else(|| self.closing.then_some(StreamError::PeerGone))
    }

    #[inline]
    pub(crate) fn check_len(&self, len: usize) -> Result<(), PacketError> {
        let limit = self.send_bytes_max;
        if len > limit { Err(PacketError::TooLarge { len, limit }) } else { Ok(()) }
    }

    #[inline]
    pub(crate) fn check(
        &mut self,
        to: &SocketName,
        options: &PacketOptions,
    ) -> Result<Accepted, PacketError> {
        if let Some(error) = self.send_error() {
            return Err(error.into());
        }
        if !self.failures.is_empty()
            && let Some(index) = self.failures.iter().position(|failure| failure.to == *to)
            && let Some(failure) = self.failures.remove(index)
        {
            return Err(failure.error);
        }
        let packets = self.queue.packets();
        if self.is_full(options) || !self.queue.takes(to) {
            return Ok(Accepted::Full { queued: packets });
        }
        // Of a connection the bounds alone count. Elsewhere a receiver that is full must not fill the queue
        // for the others, and whoever would rather know of it than wait gets to know.
        if !options.connection
            && packets > 0
            && let Some(queued) = self.queue.blocked(to).or_else(|| self.has_its_share(to, options))
        {
            return Ok(Accepted::Full { queued });
        }
        Ok(Accepted::Yes)
    }

    /// Packets that wait for this destination if they take as much of the queue as is left for the others: it may turn
    /// out to be full, and then nobody could send any more.
    ///
    /// The last quarter is left to those for whom nothing waits: however many turn out to be full one after the other,
    /// so many others can still be sent to.
    fn has_its_share(&self, to: &SocketName, options: &PacketOptions) -> Option<usize> {
        let shared = |max: usize| max - max / 4;
        let free_packets =
            shared(options.outbound_packets_max).saturating_sub(self.queue.packets());
        let free_bytes = shared(options.outbound_bytes_max).saturating_sub(self.queue.bytes());
        if self.queue.packets() < free_packets && self.queue.bytes() < free_bytes {
            return None;
        }
        let (packets, bytes) = self.queue.waiting(to);
        (packets > 0 && (packets >= free_packets || bytes >= free_bytes)).then_some(packets)
    }

    /// True if no more may be accepted for any destination.
    #[inline]
    pub(crate) fn is_full(&self, options: &PacketOptions) -> bool {
        self.queue.packets() >= options.outbound_packets_max
            || self.queue.bytes() >= options.outbound_bytes_max
    }

    /// Whoever found no room for this destination, or had better let the reactor turn first, waits for that. The
    /// waker that it left before is to be dropped without a borrow.
    #[must_use = "what a waker drops may come back here"]
    pub(crate) fn wait(
        &mut self,
        to: &SocketName,
        accepted: Accepted,
        place: &mut waiters::Place,
        waker: &Waker,
    ) -> Option<Waker> {
        let topic = match (accepted, self.queue.closed_lane(to)) {
            (Accepted::Yes, _) => TURN,
            // Woken by its own receiver alone: many wait while each of theirs is tried again and again.
            (Accepted::Full { .. }, Some(lane)) => LANES + lane,
            (Accepted::Full { .. }, None) => PROGRESS,
        };
        self.writers.wait_for(place, topic, waker)
    }

    /// True if whoever waits here has let the reactor turn since. Packets for receivers that are full may be ready to be
    /// tried again in each turn, more than are gathered: nobody waits for these.
    pub(crate) fn has_turned(&self, place: &waiters::Place) -> bool {
        self.writers.was_woken(place, TURN)
    }

    /// Whoever waits for a flush is woken whenever something leaves the queue.
    #[must_use = "what a waker drops may come back here"]
    pub(crate) fn wait_for_flush(
        &mut self,
        place: &mut waiters::Place,
        waker: &Waker,
    ) -> Option<Waker> {
        self.writers.wait_for(place, PROGRESS, waker)
    }

    /// True if more packets had better be gathered before the reactor turns.
    #[inline]
    pub(crate) fn is_prompt(&self) -> bool {
        self.queue.ready_packets() < BATCH_PACKETS && self.queue.ready_bytes() < BATCH_BYTES
    }

    /// Packets that may be accepted in a row; some wherever [`State::is_prompt`] and the bounds let one in.
    /// While the receiver is full a turn sends nothing, so it is not waited for.
    #[inline]
    pub(crate) fn batch_packets(&self, options: &PacketOptions) -> usize {
        let packets = self.queue.packets();
        let is_blocked = packets > 0 && !self.queue.is_ready();
        let room = options.outbound_packets_max.saturating_sub(packets);
        if is_blocked {
            return room;
        }
        room.min(BATCH_PACKETS.saturating_sub(self.queue.ready_packets()))
    }

    /// What an end is that the kernel reports without an error.
    fn seen_end(&self) -> Result<(), StreamError> {
        if self.reset { Err(StreamError::PeerGone) } else { Ok(()) }
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.queue.packets() == 0 || self.send_failure.is_some()
    }

    pub(crate) fn failed(&mut self, to: SocketName, error: PacketError) {
        if self.failures.len() >= FAILURES_MAX {
            self.failures.pop_front();
        }
        self.failures.push_back(SendFailure { to, error });
    }
}

impl PacketCell {
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Asks the engine to tell when there is something to receive, if nothing speaks against it.
    pub(crate) fn arm(self: &Rc<Self>, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        let busy = matches!(state.receive, Receive::Armed(_) | Receive::Resting(_));
        if busy || state.end.is_some() || state.closing {
            return;
        }
        if self.is_full(&state) {
            // The reader arms it once it has caught up.
            state.receive = Receive::Paused;
            return;
        }
        state.receive = Receive::Idle;
        let fd = self.raw_fd();
        match driver.start(|| Owner::PacketsReadable(Rc::clone(self)), Request::Readable { fd }) {
            Some(token) => state.receive = Receive::Armed(token),
            None => driver.packets.retry.push(Rc::clone(self)),
        }
    }

    fn is_full(&self, state: &State) -> bool {
        state.arrived.bytes() >= self.options.inbound_bytes_max
            || state.arrived.len() >= self.options.inbound_packets_max
    }

    /// The socket can be read, or the request has ended.
    pub(crate) fn readable(self: &Rc<Self>, core: &Core, driver: &mut Driver, result: i32) {
        let mut state = self.state.borrow_mut();
        state.receive = Receive::Idle;
        if state.closing || state.end.is_some() {
            return;
        }
        match -result {
            // Ended for no fault of the socket.
            ..=0 | libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
            libc::ENOMEM => return self.rest_from_receiving(driver, &mut state),
            errno => {
                self.end(&mut state, driver, Err(StreamError::from_errno(errno)));
                return;
            }
        }
        if self.receive(core, driver, &mut state) {
            drop(state);
            self.arm(driver);
        }
    }

    /// The kernel has no memory: looks again later.
    fn rest_from_receiving(self: &Rc<Self>, driver: &mut Driver, state: &mut State) {
        let until = driver.clock.now() + RECEIVE_REST;
        state.receive = Receive::Resting(until);
        driver.packets.rest(until, self, None);
    }

    /// Receives what is there. True if the engine is to tell of more.
    fn receive(self: &Rc<Self>, core: &Core, driver: &mut Driver, state: &mut State) -> bool {
        for round in 0..RECEIVES_MAX {
            if self.is_full(state) {
                break;
            }
            let slots = self.prepare(driver, &state.shape);
            let PacketWork { io: Some(io), block, system_calls, .. } = &mut driver.packets else {
                return false;
            };
            let block = block.as_mut().filter(|_| slots.slot_bytes > 0);
            let pool = driver.pool.shared();
            let credentials = self.options.credentials;
            let fd = self.socket.as_fd();
            match io.receive(fd, block, pool, slots, credentials, system_calls) {
                Ok(count) => {
                    state.shape.filled(slots.count, count);
                    self.deliver(core, driver, state, slots, count);
                    if state.end.is_some() {
                        return false;
                    }
                    if count < slots.count {
                        break;
                    }
                }
                // Told of something and nothing there: the socket may have been shut down on this side.
                Err(Errno::AGAIN) if round == 0 && self.is_hung_up() => {
                    self.end(state, driver, state.seen_end());
                    return false;
                }
                Err(Errno::AGAIN) => return true,
                // Told once, before what has arrived.
                Err(Errno::CONNRESET) if self.options.connection && !state.reset => {
                    state.reset = true;
                }
                // The peer of a connected datagram socket has gone (unix(7)); others may still send.
                Err(Errno::CONNRESET | Errno::CONNREFUSED) if !self.options.connection => {}
                Err(Errno::NOBUFS | Errno::NOMEM) => {
                    self.rest_from_receiving(driver, state);
                    return false;
                }
                Err(errno) => {
                    let error = StreamError::from_errno(errno.raw_os_error());
                    self.end(state, driver, Err(error));
                    return false;
                }
            }
        }
        if !self.is_full(state) {
            return true;
        }
        add(&core.counters.receives_paused, 1);
        state.receive = Receive::Paused;
        false
    }

    /// Makes sure that there is a block to receive into, if the pool has one, and divides it.
    fn prepare(&self, driver: &mut Driver, shape: &Shape) -> Slots {
        let Driver { pool, packets, hands, .. } = driver;
        let block_bytes = pool.shared().block_bytes();
        let packet_bytes_max = u32::try_from(self.options.packet_bytes_max).unwrap_or(u32::MAX);
        let slots = |block: &PacketBlock, pool: &_| {
            shape.slots(block.room(pool), block_bytes, packet_bytes_max)
        };
        if let Some(block) = &packets.block
            && let Some(slots) = slots(block, pool)
        {
            return slots;
        }
        if let Some(block) = packets.block.take() {
            block.retire(pool);
        }
        pool.collect_returns();
        packets.block = PacketBlock::take(pool, hands.unlent_blocks(pool));
        let divided = packets.block.as_ref().and_then(|block| slots(block, pool));
        divided.unwrap_or_else(|| shape.without_block(packet_bytes_max))
    }

    /// Queues `count` packets that lie in the slots.
    fn deliver(
        &self,
        core: &Core,
        driver: &mut Driver,
        state: &mut State,
        slots: Slots,
        count: usize,
    ) {
        let Driver { pool, packets, hands, wakers, .. } = driver;
        let elsewhere = hands.unlent_blocks(pool);
        let PacketWork { io: Some(io), block, .. } = packets else { return };
        let block_bytes = pool.shared().block_bytes();
        // The last quarter of the pool is never lent: whatever readers hold on to, receiving can go on, into
        // the same bytes again and again.
        let low = !block.as_ref().is_some_and(|block| block.may_lend(pool, elsewhere));
        let (mut lent, mut lent_bytes, mut empty) = (0, 0, 0);
        let mut start = 0;
        for index in 0..count {
            let arrival = io.arrival(index);
            let len = arrival.len;
            state.shape.observe(len, block_bytes);
            add(&core.counters.bytes_received, len as u64);
            empty = if len == 0 { empty + 1 } else { 0 };
            let slot_bytes = slots.slot_bytes;
            let place = match u32::try_from(len) {
                _ if arrival.truncated || len > self.options.packet_bytes_max => {
                    add(&core.counters.packets_truncated, 1);
                    Place::Truncated { len }
                }
                Ok(0) => Place::Apart(Chunk::Copied(Bytes::new())),
                Ok(len) if len <= slot_bytes && !low => {
                    lent += 1;
                    lent_bytes = start + len;
                    Place::Lent { start, len }
                }
                fits => {
                    add(&core.counters.bytes_copied, len as u64);
                    let in_slot = fits.unwrap_or(u32::MAX).min(slot_bytes);
                    let front = block.as_ref().map(|block| block.received(pool, start, in_slot));
                    let front = front.unwrap_or_default();
                    let back = io.overflow(index, len - in_slot as usize);
                    Place::Apart(joined(front, back))
                }
            };
            state.arrived.push(place, arrival.sender, arrival.credentials);
            start += slot_bytes;
        }
        if lent > 0
            && let Some(block) = block
        {
            state.arrived.push_group(block.lend(pool, lent_bytes), lent);
        }
        // Of a connection, nothing received means its end, which recvmmsg(2) repeats, or an empty packet,
        // which this library does not send.
        if self.options.connection && empty > 0 && self.is_hung_up() {
            state.arrived.forget_last(empty);
            state.receive = Receive::Ended;
            let end = state.seen_end();
            state.end.get_or_insert(end);
        } else {
            empty = 0;
        }
        add(&core.counters.packets_received, (count - empty) as u64);
        wakers.extend(state.reader.take());
        wakers.extend(state.watcher.take());
    }

    /// Whether nothing more will come, by the kernel's word. Of a connection that is so once nothing lies in it, which
    /// is looked at last: nothing is added behind a hang-up.
    fn is_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // A failure is no word of an end; the next receive has its own.
        let found = rustix::event::poll(&mut polled, Some(&now));
        let hung_up = PollFlags::RDHUP | PollFlags::HUP;
        found.is_ok()
            && polled[0].revents().intersects(hung_up)
            && (!self.options.connection || is_empty(&self.socket))
    }

    fn end(&self, state: &mut State, driver: &mut Driver, end: Result<(), StreamError>) {
        state.receive = Receive::Ended;
        state.end.get_or_insert(end);
        driver.wakers.extend(state.reader.take());
        driver.wakers.extend(state.watcher.take());
    }

    /// The socket can be written, or the request has ended.
    pub(crate) fn writable(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        state.writable = None;
        driver.packets.pace.interrupt();
        state.queue.open_polled();
        self.send(core, driver, &mut state);
    }

    /// Sends everything queued.
    pub(crate) fn stage(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        state.dirty = false;
        self.send(core, driver, &mut state);
    }

    fn send(self: &Rc<Self>, core: &Core, driver: &mut Driver, state: &mut State) {
        if state.send_failure.is_some() {
            return;
        }
        let (mut calls, mut progress, mut cut) = (0, false, false);
        while state.queue.is_ready() {
            if calls == SENDS_MAX {
                if !std::mem::replace(&mut state.dirty, true) {
                    core.dirty_packets.borrow_mut().push(Rc::clone(self));
                }
                break;
            }
            calls += 1;
            let PacketWork { io: Some(io), system_calls, .. } = &mut driver.packets else { break };
            let (offered, taken) =
                io.send(self.socket.as_fd(), state.queue.outgoing(), system_calls);
            match taken {
                Ok(count) => {
                    cut = count < offered;
                    driver.packets.pace.interrupt();
                    let State { queue, writers, .. } = &mut *state;
                    let bytes = queue.sent(count, &mut core.blocks.borrow_mut(), |lane| {
                        writers.take_for(LANES + lane, &mut driver.wakers);
                    });
                    progress = true;
                    add(&core.counters.bytes_sent, bytes as u64);
                    add(&core.counters.packets_sent, count as u64);
                    state.beyond &= state.is_full(&self.options);
                }
                Err(errno) => {
                    // The packet that cut the last call short has taken the reset, which the kernel tells once.
                    state.reset |= cut && errno == Errno::PIPE && self.options.connection;
                    progress |= self.refused(core, driver, state, errno);
                }
            }
            if state.send_failure.is_some() {
                break;
            }
        }
        // Whoever waits looks for themselves.
        state.writers.take_for(TURN, &mut driver.wakers);
        if progress {
            state.writers.take_for(PROGRESS, &mut driver.wakers);
        }
        if state.closing && state.is_drained() {
            self.finish(driver, state);
        }
    }

    /// The kernel refused the packet that is first in turn. True if something has left the queue.
    fn refused(
        self: &Rc<Self>,
        core: &Core,
        driver: &mut Driver,
        state: &mut State,
        errno: Errno,
    ) -> bool {
        let Some(key) = state.queue.first_open() else { return false };
        let to = state.queue.destination(key);
        let connection = self.options.connection;
        let raw = errno.raw_os_error();
        let (error, all) = match errno {
            // The socket's own error, from its connected peer's end, not this packet's.
            Errno::CONNRESET if !connection => return false,
            Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => {
                let full = errno == Errno::AGAIN;
                if !connection {
                    driver.packets.pace.refused(driver.clock.now());
                }
                let polled = full && to.is_unnamed();
                let refusals = state.queue.close_gate(key, |lane| {
                    *if full { &mut lane.refusals } else { &mut lane.memory_refusals } += 1;
                    if polled && lane.refusals <= POLLED_REFUSALS_MAX {
                        lane.gate = Gate::Polled;
                    } else {
                        let until = lane.rest(driver.clock.now(), driver.packets.long_rest());
                        driver.packets.rest(until, self, Some(key));
                    }
                    (lane.gate, lane.memory_refusals)
                });
                add(&core.counters.sends_tracked, 1);
                match refusals {
                    Some((Gate::Polled, _)) => {
                        self.await_room(driver, state);
                        if !connection && state.look_again.is_none() {
                            // With more than a quarter of the send buffer unread elsewhere the kernel tells of no room,
                            // nor of the peer's end, and yet may take packets.
                            let until = driver.clock.now() + driver.packets.long_rest();
                            state.look_again = Some(until);
                            driver.packets.rest(until, self, Some(key));
                        }
                        return false;
                    }
                    Some((_, refusals)) if full || refusals < MEMORY_REFUSALS_MAX => return false,
                    _ if connection => {
                        self.break_off(core, state, driver, errno);
                        return true;
                    }
                    _ => (StreamError::Kernel { errno: raw }.into(), false),
                }
            }
            _ if connection => {
                self.break_off(core, state, driver, errno);
                return true;
            }
            Errno::MSGSIZE => {
                state.send_bytes_max = send_bytes_max(&self.socket);
                let len = state.queue.first_len(key);
                (PacketError::TooLarge { len, limit: state.send_bytes_max }, false)
            }
            Errno::CONNREFUSED
            | Errno::NOENT
            | Errno::NOTDIR
            | Errno::NOTCONN
            | Errno::DESTADDRREQ
            | Errno::PIPE
            | Errno::PROTOTYPE => {
                if to.is_unnamed() {
                    state.disconnected = true;
                }
                (PacketError::Gone { errno: raw }, true)
            }
            Errno::ACCESS | Errno::PERM => (PacketError::Forbidden { errno: raw }, true),
            _ => (StreamError::Kernel { errno: raw }.into(), false),
        };
        let dropped = state.queue.drop_packets(key, all, &mut core.blocks.borrow_mut());
        driver.packets.pace.interrupt();
        add(&core.counters.packets_dropped, dropped as u64);
        state.failed(to, error);
        state.writers.take_for(LANES + key, &mut driver.wakers);
        true
    }

    /// A packet of a connection can't be sent: that is its end, as none may be missing between others.
    fn break_off(&self, core: &Core, state: &mut State, driver: &mut Driver, errno: Errno) {
        let error = StreamError::from_errno(errno.raw_os_error());
        state.send_failure = Some(error);
        let dropped = state.queue.clear(&mut core.blocks.borrow_mut());
        add(&core.counters.packets_dropped, dropped as u64);
        driver.wakers.extend(state.writers.take());
        if error == StreamError::PeerGone {
            // What has arrived is still received. A reset is told once: the receive finds a plain end.
            state.reset |= errno == Errno::CONNRESET;
        } else {
            // An answer to what was lost will never come.
            state.end.get_or_insert(Err(error));
            driver.wakers.extend(state.reader.take());
            driver.wakers.extend(state.watcher.take());
        }
    }

    /// Asks the engine to tell when the connected peer has room.
    fn await_room(self: &Rc<Self>, driver: &mut Driver, state: &mut State) {
        if state.writable.is_some() {
            return;
        }
        let fd = self.raw_fd();
        state.writable =
            driver.start(|| Owner::PacketsWritable(Rc::clone(self)), Request::Writable { fd });
        if state.writable.is_none() {
            driver.packets.retry.push(Rc::clone(self));
        }
    }

    /// Tries again what found no room among the operations.
    fn retry(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        if state.writable.is_none() && state.queue.open_polled() {
            self.send(core, driver, &mut state);
        }
        let idle = state.receive == Receive::Idle;
        drop(state);
        if idle {
            self.arm(driver);
        }
    }

    /// The rest of a lane, or of the receive, is over. True if there is something to send.
    fn rested(self: &Rc<Self>, driver: &mut Driver, until: Instant, lane: Option<usize>) -> bool {
        let mut state = self.state.borrow_mut();
        if let Some(key) = lane {
            if state.look_again.take_if(|look_again| *look_again == until).is_some()
                && state.queue.open_unpolled()
            {
                return true;
            }
            return state.queue.open_rested(key, until);
        }
        if state.receive == Receive::Resting(until) {
            state.receive = Receive::Idle;
            drop(state);
            self.arm(driver);
        }
        false
    }

    /// The handle is gone.
    pub(crate) fn close(self: &Rc<Self>, core: &Core) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.closing, true) {
            return;
        }
        let readers = (state.reader.take(), state.watcher.take());
        let writers = state.writers.take();
        let arrived = std::mem::take(&mut state.arrived);
        let drained = state.is_drained();
        drop(state);
        // Leases go without a borrow: the last one of a block notifies the mailbox. So do wakers: they drop tasks.
        drop((arrived, readers, writers));
        if !core.is_closed()
            && let Ok(mut driver) = core.driver.try_borrow_mut()
        {
            let mut state = self.state.borrow_mut();
            if drained {
                self.finish(&mut driver, &mut state);
            } else {
                if let Receive::Armed(token) = state.receive {
                    driver.cancel(token, self.raw_fd());
                }
                let linger = Duration::from_millis(core.config.linger_ms_max);
                let until = driver.clock.now() + linger;
                state.linger = Some(driver.packets.lingering.push(until, Rc::clone(self)));
            }
        }
    }

    /// Nothing is left to send: ends the requests, so that their slots let go of the descriptor.
    fn finish(&self, driver: &mut Driver, state: &mut State) {
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        if self.options.connection {
            self.shut_down();
        }
        driver.packets.forget(self);
        if let Some(key) = state.linger.take() {
            driver.packets.lingering.remove(key);
        }
        let armed = match state.receive {
            Receive::Armed(token) => Some(token),
            _ => None,
        };
        for token in armed.into_iter().chain(state.writable) {
            driver.cancel(token, self.raw_fd());
        }
    }

    /// A dropped socket has sent everything or lingered long enough.
    fn give_up(&self, core: &Core, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        let dropped = state.queue.clear(&mut core.blocks.borrow_mut());
        if dropped > 0 {
            add(&core.counters.packets_dropped, dropped as u64);
            tracing::debug!(packets = dropped, "a closed socket's packets are dropped");
        }
        self.finish(driver, &mut state);
    }

    /// The peer of a connection sees the end at once.
    pub(crate) fn shut_down(&self) {
        if self.options.connection {
            // ENOTCONN means that there is nobody to tell.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        }
    }

    /// The reactor has ended, and this socket's handle is still there.
    pub(crate) fn end_of_reactor(&self, errno: i32, wakers: &mut Vec<Waker>) {
        if !self.state.borrow().closing {
            self.fail(errno, wakers);
            self.shut_down();
        }
    }

    /// The engine or the runtime is gone: both directions report it.
    pub(crate) fn fail(&self, errno: i32, wakers: &mut Vec<Waker>) {
        let Ok(mut state) = self.state.try_borrow_mut() else { return };
        let error = StreamError::from_errno(errno);
        state.end.get_or_insert(Err(error));
        state.send_failure.get_or_insert(error);
        wakers.extend(state.reader.take());
        wakers.extend(state.watcher.take());
        wakers.extend(state.writers.take());
    }
}

impl Core {
    /// Hands what packet sockets have queued to the kernel, and repeats what found no room.
    pub(crate) fn stage_packets(&self, driver: &mut Driver) {
        driver.packets.pace.interrupt();
        if !driver.packets.retry.is_empty() {
            for cell in driver.packets.retry.take() {
                cell.retry(self, driver);
            }
        }
        if self.dirty_packets.borrow().is_empty() {
            return;
        }
        let mut dirty = std::mem::take(&mut *self.dirty_packets.borrow_mut());
        for cell in dirty.drain(..) {
            cell.stage(self, driver);
        }
        // Sockets with more than their turn allows are kept; otherwise the allocation is.
        let mut slot = self.dirty_packets.borrow_mut();
        if slot.is_empty() {
            *slot = dirty;
        }
    }

    /// Lanes that rest are tried once more in the next turn, whenever their rests would be over.
    pub(crate) fn end_packet_rests(&self, driver: &mut Driver) {
        let resting = std::mem::take(&mut driver.packets.resting);
        for ((until, number), (cell, lane)) in resting {
            if lane.is_none() {
                driver.packets.resting.insert((until, number), (cell, lane));
                continue;
            }
            cell.resting.update(|count| count.saturating_sub(1));
            if cell.rested(driver, until, lane)
                && !std::mem::replace(&mut cell.state.borrow_mut().dirty, true)
            {
                self.dirty_packets.borrow_mut().push(cell);
            }
        }
    }

    /// Gives up what dropped sockets have still to send.
    pub(crate) fn give_up_packets(&self, driver: &mut Driver) {
        while let Some(cell) = driver.packets.lingering.pop() {
            cell.give_up(self, driver);
        }
    }

    /// A forked child lets go of dropped sockets, whose packets its parent sends.
    pub(crate) fn forget_packets(&self, driver: &mut Driver) {
        while let Some(cell) = driver.packets.lingering.pop() {
            cell.state.borrow_mut().queue.clear(&mut self.blocks.borrow_mut());
        }
    }

    /// Rests that are over, and dropped sockets that have lingered long enough.
    pub(crate) fn run_packet_clocks(&self, driver: &mut Driver, now: Instant) {
        let mut ready: Vec<Rc<PacketCell>> = Vec::new();
        while let Some(rest) = driver.packets.resting.first_entry()
            && rest.key().0 <= now
        {
            let ((until, _), (cell, lane)) = rest.remove_entry();
            cell.resting.update(|count| count.saturating_sub(1));
            if cell.rested(driver, until, lane)
                && !ready.last().is_some_and(|last| Rc::ptr_eq(last, &cell))
            {
                ready.push(cell);
            }
        }
        driver.packets.pace.interrupt();
        // At once: until a lane is closed again, its receiver does not count as full.
        for cell in ready {
            let mut state = cell.state.borrow_mut();
            cell.send(self, driver, &mut state);
        }
        while let Some(cell) = driver.packets.lingering.pop_due(now) {
            cell.give_up(self, driver);
        }
    }
}
