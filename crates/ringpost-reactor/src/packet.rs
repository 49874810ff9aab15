//! Packet sockets (SOCK_SEQPACKET, SOCK_DGRAM) as their user sees them: settings, errors, and the handle. What
//! goes on behind it is in `packet_cell.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::net::Shutdown;

use crate::memory::{BlockClass, OutboundBlock, Prefix};
use crate::outbound::Payload;
use crate::packet_cell::{PacketCell, Receive, State, send_bytes_max};
use crate::packet_inbox::{Arrived, Shape};
use crate::packet_io::{PacketIo, SocketName};
use crate::packet_queue::PacketQueue;
use crate::reactor::Core;
use crate::retries::Listed;
use crate::stream::StreamError;
use crate::waiters::{Place, Waiters, replace_waker};

/// How a packet socket is used. Sizes are in bytes and count whole packets, headers included.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PacketOptions {
    /// The socket has one peer and an end (SOCK_SEQPACKET).
    pub connection: bool,
    /// The longest packet to receive; at most [`PacketOptions::PACKET_BYTES_MAX`]. A longer one is lost, which
    /// is told.
    pub packet_bytes_max: usize,
    /// Receive memory that packets may hold before receiving is paused. One batch may go beyond it.
    pub inbound_bytes_max: usize,
    /// Packets that may have been received and not taken before receiving is paused. One batch may go beyond.
    pub inbound_packets_max: usize,
    /// Bytes that may have been accepted and not sent before senders wait. One packet may go beyond it.
    pub outbound_bytes_max: usize,
    /// Packets that may have been accepted and not sent before senders wait.
    pub outbound_packets_max: usize,
    /// The kernel says of each packet who sent it (SO_PASSCRED).
    pub credentials: bool,
}

impl PacketOptions {
    /// The longest packet there may be, bytes.
    pub const PACKET_BYTES_MAX: usize = OVERFLOW_PER_PACKET;

    /// For a socket with one peer and an end, or for one without.
    pub fn new(connection: bool) -> Self {
        Self {
            connection,
            packet_bytes_max: 256 << 10,
            inbound_bytes_max: 256 << 10,
            inbound_packets_max: 1024,
            outbound_bytes_max: 256 << 10,
            outbound_packets_max: 1024,
            credentials: false,
        }
    }
}

const OVERFLOW_PER_PACKET: usize =
    crate::packet_io::OVERFLOW_BYTES / crate::packet_io::RECEIVE_PACKETS_MAX;

/// What became of a packet that had been accepted and could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Nobody receives there now (ECONNREFUSED, ENOENT and the like). Somebody may, later.
    #[error("nobody receives there: error {errno}")]
    Gone {
        /// The error number.
        errno: i32,
    },
    /// It may not be sent to (EACCES, EPERM).
    #[error("sending there is not permitted: error {errno}")]
    Forbidden {
        /// The error number.
        errno: i32,
    },
    /// The packet is longer than the socket takes (EMSGSIZE).
    #[error("a packet of {len} bytes is over the socket's limit of {limit} bytes")]
    TooLarge {
        /// Its length, bytes.
        len: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// The socket itself can send no more.
    #[error(transparent)]
    Ended(#[from] StreamError),
}

/// A packet that could not be sent, and where to. See [`Packets::poll_flushed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendFailure {
    /// Where to; unnamed: to the connected peer.
    pub to: SocketName,
    /// Why.
    pub error: PacketError,
}

/// Whether a packet was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Accepted {
    /// It will be sent.
    Yes,
    /// There is no room: this many packets wait.
    Full {
        /// Packets that wait for the same receiver, or for any.
        queued: usize,
    },
}

/// What a packet socket takes in a row. See [`Packets::batch_room`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchRoom {
    /// Packets.
    pub packets: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Sets up a packet socket as [`Reactor::adopt_packets`](crate::Reactor::adopt_packets) does, for those who bind it
/// themselves: packets may come from that moment on, and this has to hold for the first one. Nobody can send descriptors to it
/// (SO_PASSRIGHTS, Linux 6.16), and with `credentials` the kernel says of each packet who sent it (SO_PASSCRED).
///
/// # Errors
///
/// The kernel refuses SO_PASSCRED: it is no Unix-domain socket.
pub fn prepare_packet_socket(socket: BorrowedFd<'_>, credentials: bool) -> std::io::Result<()> {
    // Packets pass none: what others sent would lie in the socket's queue until it is read.
    crate::ancillary::let_descriptors_pass(socket, false);
    if credentials {
        rustix::net::sockopt::set_socket_passcred(socket, true)?;
    }
    Ok(())
}

/// The handle of a packet socket on a reactor. Dropping it closes the socket once what was accepted has left
/// (or the linger time is over).
pub struct Packets {
    cell: Rc<PacketCell>,
    core: Rc<Core>,
    /// Among those that are open.
    place: usize,
}

impl Packets {
    pub(crate) fn adopt(core: &Rc<Core>, socket: OwnedFd, options: PacketOptions) -> Self {
        let packet_bytes_max = options.packet_bytes_max.clamp(1, PacketOptions::PACKET_BYTES_MAX);
        let options = PacketOptions { packet_bytes_max, ..options };
        let mut failure = core.is_closed().then_some(libc::ECANCELED);
        if options.credentials {
            crate::ancillary::refuse_timestamps(socket.as_fd());
        }
        if let Err(error) = prepare_packet_socket(socket.as_fd(), options.credentials) {
            failure = Some(error.raw_os_error().unwrap_or(libc::EINVAL));
        }
        let state = State {
            receive: Receive::Idle,
            end: None,
            reset: false,
            arrived: Arrived::default(),
            shape: Shape::new(),
            reader: None,
            watcher: None,
            queue: PacketQueue::new(),
            writable: None,
            look_again: None,
            writers: Waiters::default(),
            failures: VecDeque::new(),
            send_failure: None,
            disconnected: false,
            send_bytes_max: send_bytes_max(&socket),
            dirty: false,
            beyond: false,
            closing: false,
            closed: false,
            linger: None,
        };
        let state = RefCell::new(state);
        let (retried, resting) = (Listed::default(), Cell::default());
        let cell = Rc::new(PacketCell { socket, options, state, retried, resting });
        #[cfg(feature = "sim")]
        core.packet_sockets.borrow_mut().push(&cell);
        {
            let mut driver = core.driver.borrow_mut();
            if failure.is_none() && driver.packets.io.is_none() {
                match PacketIo::new() {
                    Ok(io) => driver.packets.io = Some(Box::new(io)),
                    Err(error) => failure = Some(error.raw_os_error().unwrap_or(libc::ENOMEM)),
                }
            }
            match failure {
                Some(errno) => cell.fail(errno, &mut Vec::new()),
                None => cell.arm(&mut driver),
            }
        }
        let place = core.open_packets.add(&cell);
        Self { cell, core: Rc::clone(core), place }
    }

    /// The socket, for queries such as peer credentials.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.cell.socket.as_fd()
    }

    /// The longest packet that the socket takes to send, bytes: SO_SNDBUF less what the kernel keeps of it
    /// (32 bytes, `unix_dgram_sendmsg`).
    pub fn send_bytes_max(&self) -> usize {
        self.cell.state.borrow().send_bytes_max
    }

    /// Waits for packets and moves all that have arrived to `arrived`, which must be empty. False at the end
    /// of the connection. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`StreamError`] once everything received before has been taken; it is repeated.
    pub fn poll_arrived(
        &self,
        arrived: &mut Arrived,
        context: &mut Context<'_>,
    ) -> Poll<Result<bool, StreamError>> {
        if self.take_arrived(arrived) {
            return Poll::Ready(Ok(true));
        }
        let mut state = self.cell.state.borrow_mut();
        match state.end {
            Some(Ok(())) => Poll::Ready(Ok(false)),
            Some(Err(error)) => Poll::Ready(Err(error)),
            None => {
                if let Some(error) = self.core.end() {
                    return Poll::Ready(Err(error));
                }
                let replaced = replace_waker(&mut state.reader, context.waker());
                drop(state);
                drop(replaced);
                Poll::Pending
            }
        }
    }

    /// Moves all packets that have arrived to `arrived` if that is empty. True if `arrived` has some then.
    #[inline]
    pub fn take_arrived(&self, arrived: &mut Arrived) -> bool {
        if !arrived.is_empty() {
            return true;
        }
        let mut state = self.cell.state.borrow_mut();
        if state.arrived.is_empty() {
            return false;
        }
        std::mem::swap(&mut state.arrived, arrived);
        let resume = state.receive == Receive::Paused;
        drop(state);
        if resume {
            self.cell.state.borrow_mut().receive = Receive::Idle;
            self.cell.arm(&mut self.core.driver.borrow_mut());
        }
        true
    }

    /// Waits until [`Packets::poll_arrived`] has something to say, without taking it and apart from whoever
    /// polls that. Cancel safe.
    pub fn poll_arrival(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.cell.state.borrow_mut();
        if !state.arrived.is_empty() || state.end.is_some() || self.core.is_closed() {
            return Poll::Ready(());
        }
        let replaced = replace_waker(&mut state.watcher, context.waker());
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// Bytes accepted and not yet handed to the kernel.
    pub fn outbound_bytes(&self) -> usize {
        self.cell.state.borrow().queue.bytes()
    }

    /// Packets accepted and not yet handed to the kernel.
    pub fn outbound_packets(&self) -> usize {
        self.cell.state.borrow().queue.packets()
    }

    /// Packets and bytes that may be accepted in a row before the reactor had better turn. One packet may go
    /// beyond the bytes. Of a connection not zero where [`Packets::poll_room`] has found room.
    pub fn batch_room(&self) -> BatchRoom {
        let state = self.cell.state.borrow();
        let options = &self.cell.options;
        BatchRoom {
            packets: state.batch_packets(options),
            bytes: options.outbound_bytes_max.saturating_sub(state.queue.bytes()),
        }
    }

    /// Whether a packet for this destination may be accepted now; unnamed: for the connected peer.
    ///
    /// # Errors
    ///
    /// [`PacketError`] if the last packets for it could not be sent (told once), or nothing can be sent.
    #[inline]
    pub fn check(&self, to: &SocketName) -> Result<Accepted, PacketError> {
        self.accepts(&mut self.cell.state.borrow_mut(), to)
    }

    /// Waits until a packet for this destination may be accepted. With a batch gathered that is after the
    /// next turn. Cancel safe, with [`Packets::leave`] for the place.
    ///
    /// # Errors
    ///
    /// As [`Packets::check`].
    pub fn poll_room(
        &self,
        to: &SocketName,
        place: &mut Place,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), PacketError>> {
        let mut state = self.cell.state.borrow_mut();
        match self.accepts(&mut state, to) {
            Ok(Accepted::Yes)
                if state.is_prompt()
                    || (!self.cell.options.connection && state.has_turned(place)) =>
            {
                Poll::Ready(Ok(()))
            }
            Ok(accepted) => {
                let replaced = state.wait(to, accepted, place, context.waker());
                drop(state);
                drop(replaced);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// True if a packet may be accepted now and nothing is gained by letting the reactor turn first.
    #[inline]
    pub fn has_prompt_room(&self, to: &SocketName) -> bool {
        let mut state = self.cell.state.borrow_mut();
        state.failures.is_empty()
            && state.is_prompt()
            && matches!(self.accepts(&mut state, to), Ok(Accepted::Yes))
    }

    /// Packets accepted so far, for [`Packets::poll_flushed`].
    pub fn accepted_packets(&self) -> u64 {
        self.cell.state.borrow().queue.accepted_packets()
    }

    /// Waits until the kernel has the first so many packets that were accepted. Cancel safe, with
    /// [`Packets::leave`] for the place.
    ///
    /// # Errors
    ///
    /// Something accepted could not be sent; each such failure is told once.
    pub fn poll_flushed(
        &self,
        first: u64,
        place: &mut Place,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SendFailure>> {
        let mut state = self.cell.state.borrow_mut();
        let failure = state.send_error();
        let unsent = !state.queue.has_left(first);
        if let Some(error) = failure.or_else(|| self.core.end().filter(|_| unsent)) {
            let to = SocketName::UNNAMED;
            return Poll::Ready(Err(SendFailure { to, error: error.into() }));
        }
        if let Some(failure) = state.failures.pop_front() {
            return Poll::Ready(Err(failure));
        }
        if !unsent {
            return Poll::Ready(Ok(()));
        }
        let replaced = state.wait_for_flush(place, context.waker());
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// Whoever waited for room or for a flush has gone.
    pub fn leave(&self, place: &mut Place) {
        // A waker that is cloned may drop another waiter, which finds the state borrowed. Its waker goes with the next
        // one that is woken for the same reason.
        if let Ok(mut state) = self.cell.state.try_borrow_mut() {
            let waker = state.writers.leave(place);
            drop(state);
            drop(waker);
        }
    }

    /// Accepts a packet of `prefix` and a copy of `body`, if there is room.
    ///
    /// # Errors
    ///
    /// As [`Packets::check`]; [`PacketError::TooLarge`].
    #[inline]
    pub fn try_append(
        &self,
        to: &SocketName,
        prefix: Prefix,
        body: &[u8],
    ) -> Result<Accepted, PacketError> {
        let mut state = self.cell.state.borrow_mut();
        state.check_len(prefix.len() + body.len())?;
        let accepted = self.accepts(&mut state, to)?;
        if accepted != Accepted::Yes || !self.is_sent(prefix.len() + body.len()) {
            return Ok(accepted);
        }
        let blocks = &mut self.core.blocks.borrow_mut();
        Ok(if state.queue.append(to, prefix, body, blocks) {
            self.mark_dirty(&mut state);
            Accepted::Yes
        } else {
            Accepted::Full { queued: state.queue.packets() }
        })
    }

    /// Accepts a packet of `prefix` and `len` bytes that `fill` writes in place, if there is room; they are
    /// zero at first. Without room `fill` is not called. It may use the same socket: what it sends goes first.
    ///
    /// # Errors
    ///
    /// As [`Packets::try_append`].
    #[inline]
    pub fn try_append_with(
        &self,
        to: &SocketName,
        prefix: Prefix,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Accepted, PacketError> {
        let mut state = self.cell.state.borrow_mut();
        state.check_len(prefix.len() + len)?;
        let accepted = self.accepts(&mut state, to)?;
        if accepted != Accepted::Yes || !self.is_sent(prefix.len() + len) {
            return Ok(accepted);
        }
        drop(state);
        let block = self.filled(prefix, len, fill);
        let mut state = self.cell.state.borrow_mut();
        let blocks = &mut self.core.blocks.borrow_mut();
        if let Some(error) = self.send_error(&state) {
            blocks.give_back(block);
            return Err(error.into());
        }
        // Should `fill` have taken the room, this one goes beyond it.
        Ok(if state.queue.append_filled(to, block, blocks) {
            self.mark_dirty(&mut state);
            Accepted::Yes
        } else {
            Accepted::Full { queued: state.queue.packets() }
        })
    }

    /// Accepts a packet of `prefix` and a payload that is sent from where it lies, if there is room.
    ///
    /// # Errors
    ///
    /// As [`Packets::try_append`].
    pub fn try_append_shared(
        &self,
        to: &SocketName,
        prefix: Prefix,
        payload: Payload,
    ) -> Result<Accepted, PacketError> {
        let mut state = self.cell.state.borrow_mut();
        let packet_bytes = prefix.len() + payload.as_slice().len();
        state.check_len(packet_bytes)?;
        let accepted = self.accepts(&mut state, to)?;
        if accepted != Accepted::Yes || !self.is_sent(packet_bytes) {
            return Ok(accepted);
        }
        Ok(if state.queue.append_shared(to, prefix, payload) {
            self.mark_dirty(&mut state);
            Accepted::Yes
        } else {
            Accepted::Full { queued: state.queue.packets() }
        })
    }

    /// Accepts a packet of `prefix` and a copy of `body` for the connected peer. The caller has seen that there
    /// is room, or has its own bound; nothing is accepted after the end.
    #[inline]
    pub fn append(&self, prefix: Prefix, body: &[u8]) {
        let mut state = self.cell.state.borrow_mut();
        if self.send_error(&state).is_none() && self.is_sent(prefix.len() + body.len()) {
            let blocks = &mut self.core.blocks.borrow_mut();
            state.queue.append(&SocketName::UNNAMED, prefix, body, blocks);
            self.mark_dirty(&mut state);
        }
    }

    /// Accepts a packet of `body` for the connected peer also where there is no room: once, and again when there
    /// has been room in between. False if it was not accepted.
    pub fn append_beyond(&self, body: &[u8]) -> bool {
        {
            let mut state = self.cell.state.borrow_mut();
            let full = state.is_full(&self.cell.options);
            if self.send_error(&state).is_some() || (full && state.beyond) {
                return false;
            }
            state.beyond = full;
        }
        self.append(Prefix::NONE, body);
        true
    }

    /// As [`Packets::append`], for `len` bytes that `fill` writes in place; they are zero at first.
    #[inline]
    pub fn append_with(&self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) {
        if self.send_error(&self.cell.state.borrow()).is_some() || !self.is_sent(prefix.len() + len)
        {
            return;
        }
        let block = self.filled(prefix, len, fill);
        let mut state = self.cell.state.borrow_mut();
        let blocks = &mut self.core.blocks.borrow_mut();
        if self.send_error(&state).is_some() {
            blocks.give_back(block);
        } else if state.queue.append_filled(&SocketName::UNNAMED, block, blocks) {
            self.mark_dirty(&mut state);
        }
    }

    /// A block with a packet in it. `fill` is code of the user's, which must find nothing borrowed; should it panic,
    /// nothing has been accepted.
    #[inline]
    fn filled(&self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) -> OutboundBlock {
        let mut block = self.core.blocks.borrow_mut().take(len, BlockClass::default());
        block.append_with(prefix, len, fill);
        block
    }

    /// As [`Packets::append`], for a payload that is sent from where it lies.
    pub fn append_shared(&self, prefix: Prefix, payload: Payload) {
        let mut state = self.cell.state.borrow_mut();
        if self.send_error(&state).is_none()
            && self.is_sent(prefix.len() + payload.as_slice().len())
        {
            state.queue.append_shared(&SocketName::UNNAMED, prefix, payload);
            self.mark_dirty(&mut state);
        }
    }

    /// True if the connected peer was found gone: connect the socket anew and say so with
    /// [`Packets::reconnected`].
    pub fn is_disconnected(&self) -> bool {
        self.cell.state.borrow().disconnected
    }

    /// The socket has been connected anew.
    pub fn reconnected(&self) {
        let mut state = self.cell.state.borrow_mut();
        state.disconnected = false;
        state.failures.retain(|failure| !failure.to.is_unnamed());
    }

    /// True once nothing happens on this socket any more, because its reactor has been shut down or belongs to the
    /// process from which this one was forked.
    pub fn has_runtime_ended(&self) -> bool {
        self.core.is_closed()
    }

    /// Closes the socket as dropping it would, while the handle goes on to report the end.
    pub fn close(&self) {
        let wakers = {
            let mut state = self.cell.state.borrow_mut();
            state.end.get_or_insert(Err(StreamError::PeerGone));
            let writers = state.writers.take();
            [state.reader.take(), state.watcher.take()].into_iter().flatten().chain(writers)
        };
        self.cell.close(&self.core);
        wakers.for_each(Waker::wake);
    }

    /// Tells the peer of a connection that nothing more will be sent. Call it once flushed.
    pub fn shutdown_write(&self) {
        if self.core.is_in_child() {
            return;
        }
        // Only ENOTCONN can come back, and then there is nobody to tell.
        let _ = rustix::net::shutdown(&self.cell.socket, Shutdown::Write);
    }

    /// Why nothing more is accepted. Sockets without anything in flight do not hear of the reactor's end.
    #[inline]
    fn send_error(&self, state: &State) -> Option<StreamError> {
        state.send_error().or_else(|| self.core.end())
    }

    #[inline]
    fn accepts(&self, state: &mut State, to: &SocketName) -> Result<Accepted, PacketError> {
        match self.send_error(state) {
            Some(error) => Err(error.into()),
            None => state.check(to, &self.cell.options),
        }
    }

    /// Of a connection, an empty packet is taken for its end: there is none.
    #[inline]
    fn is_sent(&self, packet_bytes: usize) -> bool {
        packet_bytes > 0 || !self.cell.options.connection
    }

    #[inline]
    fn mark_dirty(&self, state: &mut State) {
        if !state.dirty {
            state.dirty = true;
            self.core.dirty_packets.borrow_mut().push(Rc::clone(&self.cell));
        }
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.core.open_packets.remove(self.place);
        self.cell.close(&self.core);
    }
}

impl fmt::Debug for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packets").field("socket", &self.cell.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::task::Waker;
    use std::time::Duration;

    use super::*;
    use crate::capabilities::EngineChoice;
    use crate::config::Config;
    use crate::packet_pace::REST_MAX;
    use crate::reactor::{Reactor, Wait};

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn full_receivers_hold_up_nobody_however_slow_it_is_to_try_them() {
        const RECEIVERS: usize = 200;
        for engine in [EngineChoice::Auto, EngineChoice::Epoll] {
            let reactor = Reactor::new(Config { engine, ..Config::default() }).unwrap();
            let socket = UnixDatagram::unbound().unwrap();
            socket.set_nonblocking(true).unwrap();
            let packets = reactor.adopt_packets(socket.into(), PacketOptions::new(false));
            let name = |index: usize| format!("turns-{}-{engine:?}-{index}", std::process::id());
            let receivers: Vec<_> = (0..=RECEIVERS)
                .map(|index| {
                    let address = SocketAddr::from_abstract_name(name(index)).unwrap();
                    (UnixDatagram::bind_addr(&address).unwrap(), address)
                })
                .collect();
            for (index, (_, address)) in receivers.iter().enumerate().skip(1) {
                // With more senders than one, or a send buffer is full before the receiver is.
                loop {
                    let other = UnixDatagram::unbound().unwrap();
                    other.set_nonblocking(true).unwrap();
                    if other.send_to_addr(b"full", address).is_err() {
                        break;
                    }
                    while other.send_to_addr(b"full", address).is_ok() {}
                }
                let to = SocketName::from_abstract(name(index).as_bytes()).unwrap();
                let accepted = packets.try_append(&to, Prefix::NONE, b"more");
                assert_eq!(accepted, Ok(Accepted::Yes));
            }
            let to = SocketName::from_abstract(name(0).as_bytes()).unwrap();
            let mut turns = 0;
            while !packets.has_prompt_room(&to) {
                turns += 1;
                assert!(turns < 10_000, "{engine:?}: they all rest, and yet hold up others");
                reactor.turn(Wait::No).unwrap();
            }
            // All rest for long, and all rests end in each turn: it is as slow as that.
            let turn = || {
                std::thread::sleep(2 * REST_MAX);
                reactor.turn(Wait::No).unwrap();
            };
            for _ in 0..40 {
                turn();
            }
            let mut place = Place::default();
            let mut context = Context::from_waker(Waker::noop());
            turns = 0;
            while packets.poll_room(&to, &mut place, &mut context).is_pending() {
                turns += 1;
                assert!(turns < 10, "{engine:?}: the turns of others never end");
                turn();
            }
            let accepted = packets.try_append(&to, Prefix::NONE, b"hello");
            assert_eq!(accepted, Ok(Accepted::Yes));
            let receiver = &receivers[0].0;
            receiver.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let mut bytes = [0; 8];
            while receiver.recv(&mut bytes).is_err() {
                turns += 1;
                assert!(turns < 50, "{engine:?}: it never leaves");
                turn();
            }
            assert!(bytes.starts_with(b"hello"));
        }
    }
}
