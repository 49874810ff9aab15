//! Receiving datagrams.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::ops::Deref;
use std::rc::Rc;
use std::task::{Context, Poll};

use ringpost_frame::{FrameFlags, FrameKind, ProtocolError, packet_header, packet_message};
use ringpost_reactor::{Arrived, Credentials, PacketView, SocketName};
use ringpost_uds::{Address, PeerCredentials};

use super::builder::DatagramProfile;
use super::error::DatagramRecvError;
use super::{DatagramStats, Socket, address_of};
use crate::message::{Frame, Message};

/// A received packet that may be kept, sent to another thread, and dropped anywhere. It derefs to its
/// message.
///
/// It holds the receive memory that it lies in; drop it or copy it out before keeping many for long.
#[derive(Debug, Clone)]
pub struct Packet {
    message: Message,
    sender: SocketName,
    credentials: Option<PeerCredentials>,
}

impl Packet {
    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The message, without the rest.
    pub fn into_message(self) -> Message {
        self.message
    }

    /// Who sent it, to reply to; `None` if the sender's socket has no name. Allocates;
    /// [`Packet::sender_name`] does not.
    ///
    /// A name is what the sender's socket was bound to, and no proof of who it is.
    pub fn sender(&self) -> Option<Address> {
        address_of(&self.sender)
    }

    /// Who sent it, as the kernel has it.
    pub fn sender_name(&self) -> &SocketName {
        &self.sender
    }

    /// The process, user and group that sent it, if
    /// [asked for](super::DatagramBuilder::credentials). The kernel has checked them. `None` if the packet was sent
    /// before they were asked for.
    ///
    /// [`PeerCredentials::is_overflow`] tells of a user without a number here, who is not authenticated.
    pub fn credentials(&self) -> Option<PeerCredentials> {
        self.credentials
    }
}

impl Deref for Packet {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.message
    }
}

/// A packet borrowed from a [`PacketBatch`]: no reference count, no copy. It derefs to its message.
#[derive(Debug, Clone, Copy)]
pub struct PacketRef<'batch> {
    bytes: &'batch [u8],
    frame: Frame<'batch>,
    sender: &'batch SocketName,
    credentials: Option<PeerCredentials>,
}

impl PacketRef<'_> {
    /// Who sent it, to reply to; `None` if the sender's socket has no name. Allocates;
    /// [`PacketRef::sender_name`] does not.
    pub fn sender(&self) -> Option<Address> {
        address_of(self.sender)
    }

    /// Who sent it, as the kernel has it.
    pub fn sender_name(&self) -> &SocketName {
        self.sender
    }

    /// See [`Packet::credentials`].
    pub fn credentials(&self) -> Option<PeerCredentials> {
        self.credentials
    }

    /// A [`Packet`] of the same bytes that outlives the batch. Copies none of them.
    pub fn retain(&self) -> Packet {
        Packet { message: self.frame.retain(), sender: *self.sender, credentials: self.credentials }
    }
}

impl Deref for PacketRef<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// The receiving half of a [`Datagram`](super::Datagram).
///
/// Packets of one sender arrive in the order in which they were sent.
pub struct DatagramReceiver {
    pub(super) socket: Rc<Socket>,
    arrived: Arrived,
    /// The packet at the front was lent by a batch and is done with.
    lent: bool,
}

/// What a packet is.
enum Content {
    /// A message: its bytes without the first so many.
    Message {
        header_bytes: usize,
        credentials: Option<PeerCredentials>,
    },
    Skipped,
    Failed(DatagramRecvError),
}

impl DatagramReceiver {
    pub(super) fn new(socket: Rc<Socket>) -> Self {
        Self { socket, arrived: Arrived::default(), lent: false }
    }

    /// Waits for the next packet.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// [`DatagramRecvError`]. An error about one packet is told once, and the next call goes on behind it;
    /// [`is_final`](DatagramRecvError::is_final) tells it from the end, which is repeated.
    pub async fn recv(&mut self) -> Result<Packet, DatagramRecvError> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// Polls for the next packet, as [`DatagramReceiver::recv`].
    pub fn poll_recv(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Packet, DatagramRecvError>> {
        self.let_go();
        loop {
            while let Some(view) = self.arrived.front() {
                let content = self.socket.classify(&view);
                let Some(packet) = self.arrived.pop() else { break };
                match content {
                    Content::Message { header_bytes, credentials } => {
                        let Ok(mut chunk) = packet.content else { continue };
                        chunk.advance(header_bytes);
                        let message = Message::whole(chunk);
                        let sender = packet.sender;
                        return Poll::Ready(Ok(Packet { message, sender, credentials }));
                    }
                    Content::Skipped => {}
                    Content::Failed(error) => return Poll::Ready(Err(error)),
                }
            }
            match self.poll_arrived(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Waits until packets are there, and lends all that have arrived. The packets of a batch are borrowed:
    /// no reference count and no copy each. What the batch was not asked for stays for the next call. A batch
    /// may turn out empty: then the packets were none for the user.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// The end of the socket, which is repeated. What is wrong with a packet is told by the batch.
    pub async fn recv_batch(&mut self) -> Result<PacketBatch<'_>, DatagramRecvError> {
        self.let_go();
        if self.arrived.is_empty() {
            poll_fn(|context| self.poll_arrived(context)).await?;
        }
        Ok(PacketBatch { receiver: self })
    }

    /// What became of packets that were not messages for the user.
    pub fn stats(&self) -> DatagramStats {
        let counters = &self.socket.counters;
        DatagramStats {
            skipped: counters.skipped.get(),
            denied: counters.denied.get(),
            malformed: counters.malformed.get(),
        }
    }

    fn let_go(&mut self) {
        if std::mem::take(&mut self.lent) {
            self.arrived.advance();
        }
    }

    fn poll_arrived(&mut self, context: &mut Context<'_>) -> Poll<Result<(), DatagramRecvError>> {
        match self.socket.packets.poll_arrived(&mut self.arrived, context) {
            Poll::Ready(Ok(true)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(false)) => Poll::Ready(Err(DatagramRecvError::ShutDown)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Socket {
    #[inline]
    fn classify(&self, view: &PacketView<'_>) -> Content {
        let credentials = view.credentials.and_then(peer_credentials);
        if !self.settings.policy.is_anyone() {
            let allowed = credentials.is_some_and(|peer| self.settings.policy.check(&peer).is_ok());
            if !allowed {
                count(&self.counters.denied);
                let denied = self.counters.denied.get();
                // Anyone can send many: the log grows with their logarithm.
                if denied.is_power_of_two() {
                    let sender = address_of(view.sender).map(|address| address.to_string());
                    tracing::warn!(sender, denied, "datagram refused by the access policy");
                }
                return Content::Skipped;
            }
        }
        let bytes = match view.content {
            Ok((_, bytes)) => bytes,
            Err(truncated) => {
                return Content::Failed(DatagramRecvError::Truncated {
                    received: truncated.len,
                    limit: self.settings.packet_bytes_max,
                    sender: address_of(view.sender),
                });
            }
        };
        if self.settings.profile == DatagramProfile::Native && packet_message(bytes).is_none() {
            return self.classify_other(bytes, view.sender, credentials);
        }
        Content::Message { header_bytes: self.settings.profile.header_bytes(), credentials }
    }

    /// A packet that is no plain message.
    #[cold]
    fn classify_other(
        &self,
        bytes: &[u8],
        sender: &SocketName,
        credentials: Option<PeerCredentials>,
    ) -> Content {
        let found = packet_header(bytes).and_then(|header| {
            let not_agreed = header.flags.0 & (FrameFlags::MORE | FrameFlags::EXT).0;
            if not_agreed != 0 {
                return Err(ProtocolError::FlagsNotAllowed { kind: header.kind, bits: not_agreed });
            }
            if header.fds > 0 {
                let count = header.fds;
                return Err(ProtocolError::DescriptorsNotAllowed { count, limit: 0 });
            }
            Ok(header.kind)
        });
        match found {
            // Without the flag CRITICAL, which a receiver ignores on the kinds that it knows.
            Ok(FrameKind::Message) => {
                let header_bytes = self.settings.profile.header_bytes();
                Content::Message { header_bytes, credentials }
            }
            Ok(_) => {
                count(&self.counters.skipped);
                Content::Skipped
            }
            Err(source) => {
                count(&self.counters.malformed);
                let sender = address_of(sender);
                Content::Failed(DatagramRecvError::Protocol { source, sender })
            }
        }
    }
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get().wrapping_add(1));
}

/// `None` if the sender's kernel did not note who it was: neither side had asked when the packet was sent.
fn peer_credentials(credentials: Credentials) -> Option<PeerCredentials> {
    let pid = (credentials.pid != 0).then_some(credentials.pid);
    let peer = PeerCredentials::new(pid, credentials.uid, credentials.gid);
    (pid.is_some() || !peer.is_overflow()).then_some(peer)
}

impl fmt::Debug for DatagramReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramReceiver")
            .field("arrived", &self.arrived.len())
            .finish_non_exhaustive()
    }
}

/// Packets that have arrived, lent in place. See [`DatagramReceiver::recv_batch`].
#[derive(Debug)]
pub struct PacketBatch<'receiver> {
    receiver: &'receiver mut DatagramReceiver,
}

impl PacketBatch<'_> {
    /// The next packet, without waiting, or what is wrong with it; `None` when all that have arrived were
    /// lent.
    #[expect(clippy::should_implement_trait, reason = "items borrow from the batch")]
    pub fn next(&mut self) -> Option<Result<PacketRef<'_>, DatagramRecvError>> {
        let DatagramReceiver { socket, arrived, lent } = &mut *self.receiver;
        loop {
            if std::mem::take(lent) {
                arrived.advance();
            }
            if !socket.packets.take_arrived(arrived) {
                return None;
            }
            let content = socket.classify(&arrived.front()?);
            *lent = true;
            match content {
                Content::Skipped => {}
                Content::Failed(error) => return Some(Err(error)),
                Content::Message { header_bytes, credentials } => {
                    // Looked at again, because a borrow that is returned can't end in a loop.
                    let view = arrived.front()?;
                    let (chunk, bytes) = view.content.ok()?;
                    let bytes = bytes.get(header_bytes..)?;
                    let frame = Frame::new(chunk, bytes);
                    let sender = view.sender;
                    return Some(Ok(PacketRef { bytes, frame, sender, credentials }));
                }
            }
        }
    }
}
