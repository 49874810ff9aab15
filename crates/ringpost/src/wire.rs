//! What carries the frames of a connection: a byte stream, or packets with one frame each. Both have the same
//! methods, so that the rest need not know, but where packets must not be cut.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use ringpost_reactor::{
    Accepted, Appender, Arrived, BatchRoom, Chunk, DescriptorClaim, DescriptorSendError, Inbound,
    PacketError, PacketOptions, Packets, Payload, Place, Prefix, Reactor, SocketName, Stream,
    StreamError,
};

/// Carries the frames of a connection.
pub(crate) enum Wire {
    Stream(Stream),
    Packets(Box<PacketWire>),
}

/// A connected packet socket.
pub(crate) struct PacketWire {
    packets: Packets,
    /// Taken over and not yet looked at.
    arrived: RefCell<Arrived>,
    /// Where its only sender waits.
    sender: RefCell<Place>,
}

const PEER: SocketName = SocketName::UNNAMED;

impl Wire {
    /// A byte stream; with `held_max` one that takes descriptors, so many at a time.
    pub(crate) fn stream(reactor: &Reactor, socket: OwnedFd, held_max: Option<usize>) -> Self {
        Self::Stream(match held_max {
            Some(held_max) => reactor.adopt_stream_with_descriptors(socket, held_max),
            None => reactor.adopt_stream(socket),
        })
    }

    /// A connected packet socket, whose packets have at most so many bytes.
    pub(crate) fn packets(reactor: &Reactor, socket: OwnedFd, packet_bytes_max: usize) -> Self {
        let config = reactor.config();
        let mut bounds = PacketOptions::new(true);
        bounds.packet_bytes_max = packet_bytes_max;
        bounds.inbound_bytes_max = config.inbound_bytes_max;
        bounds.outbound_bytes_max = config.outbound_bytes_max;
        let packets = reactor.adopt_packets(socket, bounds);
        Self::Packets(Box::new(PacketWire {
            packets,
            arrived: RefCell::default(),
            sender: RefCell::default(),
        }))
    }

    /// True if each frame is a packet.
    #[inline]
    pub(crate) fn is_packets(&self) -> bool {
        matches!(self, Self::Packets(_))
    }

    /// The longest frame that can be sent at once, bytes with its header.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        match self {
            Self::Stream(_) => usize::MAX,
            Self::Packets(wire) => wire.packets.send_bytes_max(),
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(stream) => stream.socket(),
            Self::Packets(wire) => wire.packets.socket(),
        }
    }

    /// See [`Stream::poll_receive`]. Each packet is a chunk.
    #[inline]
    pub(crate) fn poll_receive(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Inbound, StreamError>> {
        match self {
            Self::Stream(stream) => stream.poll_receive(context),
            Self::Packets(wire) => wire.poll_receive(context),
        }
    }

    /// See [`Stream::try_receive`].
    #[inline]
    pub(crate) fn try_receive(&self) -> Option<Chunk> {
        match self {
            Self::Stream(stream) => stream.try_receive(),
            Self::Packets(wire) => wire.try_receive(),
        }
    }

    pub(crate) fn poll_arrival(&self, context: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Stream(stream) => stream.poll_arrival(context),
            Self::Packets(wire) if !wire.arrived.borrow().is_empty() => Poll::Ready(()),
            Self::Packets(wire) => wire.packets.poll_arrival(context),
        }
    }

    pub(crate) fn outbound_bytes(&self) -> usize {
        match self {
            Self::Stream(stream) => stream.outbound_bytes(),
            Self::Packets(wire) => wire.packets.outbound_bytes(),
        }
    }

    #[inline]
    pub(crate) fn has_room(&self) -> Result<bool, StreamError> {
        match self {
            Self::Stream(stream) => stream.has_room(),
            Self::Packets(wire) => wire.has_room(),
        }
    }

    #[inline]
    pub(crate) fn has_prompt_room(&self) -> Result<bool, StreamError> {
        match self {
            Self::Stream(stream) => stream.has_prompt_room(),
            Self::Packets(wire) => Ok(wire.packets.has_prompt_room(&PEER)),
        }
    }

    pub(crate) fn poll_room(&self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self {
            Self::Stream(stream) => stream.poll_room(context),
            Self::Packets(wire) => {
                let mut place = wire.sender.borrow_mut();
                wire.packets.poll_room(&PEER, &mut place, context).map_err(end_of)
            }
        }
    }

    pub(crate) fn poll_flushed(&self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match self {
            Self::Stream(stream) => stream.poll_flushed(context),
            Self::Packets(wire) => {
                let mut place = wire.sender.borrow_mut();
                let flushed = wire.packets.poll_flushed(u64::MAX, &mut place, context);
                flushed.map_err(|failure| end_of(failure.error))
            }
        }
    }

    /// See [`Stream::try_append`].
    #[inline]
    pub(crate) fn try_append(&self, prefix: Prefix, body: &[u8]) -> Result<bool, StreamError> {
        match self {
            Self::Stream(stream) => stream.try_append(prefix, body),
            Self::Packets(wire) => {
                let accepted = wire.packets.try_append(&PEER, prefix, body).map_err(end_of)?;
                Ok(accepted == Accepted::Yes)
            }
        }
    }

    /// See [`Stream::append`]. Prefix and body are one frame.
    #[inline]
    pub(crate) fn append(&self, prefix: Prefix, body: &[u8]) {
        match self {
            Self::Stream(stream) => stream.append(prefix, body),
            Self::Packets(wire) => wire.packets.append(prefix, body),
        }
    }

    /// See [`Stream::append_beyond`].
    pub(crate) fn append_beyond(&self, frame: &[u8]) -> bool {
        match self {
            Self::Stream(stream) => stream.append_beyond(frame),
            Self::Packets(wire) => wire.packets.append_beyond(frame),
        }
    }

    /// See [`Stream::append_with`]. Prefix and bytes are one frame.
    #[inline]
    pub(crate) fn append_with(&self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) {
        match self {
            Self::Stream(stream) => stream.append_with(prefix, len, fill),
            Self::Packets(wire) => wire.packets.append_with(prefix, len, fill),
        }
    }

    /// See [`Stream::append_shared`]. On packets, prefix and payload are one frame.
    pub(crate) fn append_shared(&self, prefix: Prefix, payload: Payload) {
        match self {
            Self::Stream(stream) => stream.append_shared(prefix, payload),
            Self::Packets(wire) => wire.packets.append_shared(prefix, payload),
        }
    }

    /// See [`Stream::takes_descriptors`]; packets take none.
    pub(crate) fn takes_descriptors(&self) -> bool {
        match self {
            Self::Stream(stream) => stream.takes_descriptors(),
            Self::Packets(_) => false,
        }
    }

    /// See [`Stream::refuse_descriptors`].
    pub(crate) fn refuse_descriptors(&self) {
        if let Self::Stream(stream) = self {
            stream.refuse_descriptors();
        }
    }

    /// See [`Stream::claim_descriptors`].
    pub(crate) fn claim_descriptors(&self, position: u64) -> Result<DescriptorClaim, usize> {
        match self {
            Self::Stream(stream) => stream.claim_descriptors(position),
            Self::Packets(_) => Ok(DescriptorClaim::Missing),
        }
    }

    /// See [`Stream::undeclared_descriptors`].
    pub(crate) fn undeclared_descriptors(&self, kept: usize) -> usize {
        match self {
            Self::Stream(stream) => stream.undeclared_descriptors(kept),
            Self::Packets(_) => 0,
        }
    }

    /// See [`Stream::poll_send_with_descriptors`]; none are agreed on packets.
    pub(crate) fn poll_send_with_descriptors(
        &self,
        context: &mut Context<'_>,
        prefix: Prefix,
        body: &[&[u8]],
        descriptors: &[impl AsFd],
    ) -> Poll<Result<usize, DescriptorSendError>> {
        match self {
            Self::Stream(stream) => {
                stream.poll_send_with_descriptors(context, prefix, body, descriptors)
            }
            Self::Packets(_) => {
                let errno = rustix::io::Errno::OPNOTSUPP.raw_os_error();
                Poll::Ready(Err(DescriptorSendError::Refused { errno }))
            }
        }
    }

    /// See [`Stream::appender`].
    #[inline(always)]
    pub(crate) fn appender(&self) -> Result<WireAppender<'_>, StreamError> {
        match self {
            Self::Stream(stream) => Ok(WireAppender::Stream(stream.appender()?)),
            Self::Packets(wire) => wire.appender(),
        }
    }

    pub(crate) fn close(&self) {
        match self {
            Self::Stream(stream) => stream.close(),
            Self::Packets(wire) => wire.packets.close(),
        }
    }

    pub(crate) fn shutdown_write(&self) {
        match self {
            Self::Stream(stream) => stream.shutdown_write(),
            Self::Packets(wire) => wire.packets.shutdown_write(),
        }
    }
}

impl PacketWire {
    fn poll_receive(&self, context: &mut Context<'_>) -> Poll<Result<Inbound, StreamError>> {
        let mut arrived = self.arrived.borrow_mut();
        if arrived.is_empty() {
            match self.packets.poll_arrived(&mut arrived, context) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(Inbound::EndOfFile)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let content = arrived.pop().map(|packet| packet.content);
        Poll::Ready(Ok(match content {
            Some(Ok(chunk)) => Inbound::Chunk(chunk),
            Some(Err(truncated)) => Inbound::Truncated { len: truncated.len },
            None => Inbound::EndOfFile,
        }))
    }

    fn try_receive(&self) -> Option<Chunk> {
        let mut arrived = self.arrived.borrow_mut();
        // What is no chunk is left for `poll_receive` to tell.
        if !self.packets.take_arrived(&mut arrived) || arrived.front()?.content.is_err() {
            return None;
        }
        arrived.pop()?.content.ok()
    }

    fn has_room(&self) -> Result<bool, StreamError> {
        Ok(self.packets.check(&PEER).map_err(end_of)? == Accepted::Yes)
    }

    fn appender(&self) -> Result<WireAppender<'_>, StreamError> {
        // An error is told; without room the appender takes nothing.
        self.has_room()?;
        let BatchRoom { packets, bytes, .. } = self.packets.batch_room();
        let limit_bytes = self.packets.outbound_bytes() + bytes;
        Ok(WireAppender::Packets { packets: &self.packets, room: (bytes, packets), limit_bytes })
    }
}

fn end_of(error: PacketError) -> StreamError {
    match error {
        PacketError::Ended(error) => error,
        PacketError::TooLarge { .. } => {
            StreamError::Kernel { errno: rustix::io::Errno::MSGSIZE.raw_os_error() }
        }
        PacketError::Gone { errno } | PacketError::Forbidden { errno } => {
            StreamError::Kernel { errno }
        }
        // The enum is open; what it may gain is an end as well.
        _ => StreamError::PeerGone,
    }
}

/// Appends many frames in a row. See [`Stream::appender`].
pub(crate) enum WireAppender<'wire> {
    Stream(Appender<'wire>),
    Packets {
        packets: &'wire Packets,
        /// Bytes and packets that may still be accepted; one packet may go beyond the bytes.
        room: (usize, usize),
        /// Bytes in the queue, its own included, at which it has no room.
        limit_bytes: usize,
    },
}

impl<'wire> WireAppender<'wire> {
    /// What appends to a byte stream, if it is one.
    #[inline(always)]
    pub(crate) fn stream(&mut self) -> Option<&mut Appender<'wire>> {
        match self {
            Self::Stream(appender) => Some(appender),
            Self::Packets { .. } => None,
        }
    }

    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        match self {
            Self::Stream(appender) => appender.has_room(),
            Self::Packets { room, .. } => room.0 > 0 && room.1 > 0,
        }
    }

    /// Bytes in the queue, its own included, at which it has no room; one frame may go beyond.
    pub(crate) fn limit_bytes(&self) -> usize {
        match self {
            Self::Stream(appender) => appender.limit_bytes(),
            Self::Packets { limit_bytes, .. } => *limit_bytes,
        }
    }

    #[inline(always)]
    pub(crate) fn append(&mut self, prefix: Prefix, body: &[u8]) {
        match self {
            Self::Stream(appender) => appender.append(prefix, body),
            Self::Packets { packets, room, .. } => {
                packets.append(prefix, body);
                leave(room, prefix.len() + body.len());
            }
        }
    }

    #[inline(always)]
    pub(crate) fn append_with(&mut self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) {
        match self {
            Self::Stream(appender) => appender.append_with(prefix, len, fill),
            Self::Packets { packets, room, .. } => {
                packets.append_with(prefix, len, fill);
                leave(room, prefix.len() + len);
            }
        }
    }
}

fn leave(room: &mut (usize, usize), bytes: usize) {
    *room = (room.0.saturating_sub(bytes), room.1.saturating_sub(1));
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(stream) => stream.fmt(f),
            Self::Packets(wire) => wire.packets.fmt(f),
        }
    }
}

impl fmt::Debug for WireAppender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireAppender").field("has_room", &self.has_room()).finish()
    }
}
