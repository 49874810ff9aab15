//! Sending datagrams.

use std::fmt;
use std::future::poll_fn;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use ringpost_frame::message_header;
use ringpost_reactor::{
    Accepted, PacketError, Packets, Payload, Place, Prefix, SendFailure, SocketName,
};
use ringpost_uds::{Address, ConnectError, ConnectErrorKind};

use super::builder::DatagramProfile;
use super::error::DatagramSendError;
use super::{Socket, address_of};

/// Where a packet goes.
pub trait Destination {
    /// The name that the kernel knows the receiver by.
    ///
    /// # Errors
    ///
    /// [`DatagramSendError::AddressLength`] if no packet can be sent there.
    fn socket_name(&self) -> Result<SocketName, DatagramSendError>;
}

impl Destination for SocketName {
    fn socket_name(&self) -> Result<SocketName, DatagramSendError> {
        if self.is_unnamed() {
            return Err(DatagramSendError::AddressLength { length: 0, limit: Self::BYTES_MAX });
        }
        Ok(*self)
    }
}

impl Destination for Address {
    fn socket_name(&self) -> Result<SocketName, DatagramSendError> {
        let (name, length) = match self {
            Self::Path(path) => {
                let bytes = path.as_os_str().as_bytes();
                (SocketName::from_path(bytes), bytes.len())
            }
            Self::Abstract(name) => (SocketName::from_abstract(name), name.len()),
            // The enum is open; what it may gain has no such name.
            _ => (None, 0),
        };
        let limit = SocketName::BYTES_MAX;
        name.ok_or(DatagramSendError::AddressLength { length, limit })
    }
}

impl Destination for Path {
    fn socket_name(&self) -> Result<SocketName, DatagramSendError> {
        Address::from(self).socket_name()
    }
}

impl Destination for PathBuf {
    fn socket_name(&self) -> Result<SocketName, DatagramSendError> {
        self.as_path().socket_name()
    }
}

impl Destination for str {
    fn socket_name(&self) -> Result<SocketName, DatagramSendError> {
        Address::from(self).socket_name()
    }
}

impl<D: Destination + ?Sized> Destination for &D {
    fn socket_name(&self) -> Result<SocketName, DatagramSendError> {
        (**self).socket_name()
    }
}

/// The sending half of a [`Datagram`](super::Datagram). Clones share the socket.
///
/// A message is *accepted* when a send returns `Ok`: it leaves with everything else that is queued at the end
/// of the runtime's turn, many in one system call. What could not be sent is told by the next send to the same
/// receiver, or by [`DatagramSender::flush`]; each failure once.
#[derive(Clone)]
pub struct DatagramSender {
    socket: Rc<Socket>,
}

impl DatagramSender {
    pub(super) fn new(socket: Rc<Socket>) -> Self {
        Self { socket }
    }

    /// Accepts a copy of `body` for the connected receiver, waiting for room.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing has been accepted.
    ///
    /// # Errors
    ///
    /// [`DatagramSendError`] without `Full`. After `Gone` the next send connects anew.
    pub async fn send(&self, body: &[u8]) -> Result<(), DatagramSendError> {
        self.send_named(&SocketName::UNNAMED, body).await
    }

    /// Accepts a copy of `body` for the connected receiver if there is room. Never waits.
    ///
    /// # Errors
    ///
    /// [`DatagramSendError`]; nothing has been accepted then.
    pub fn try_send(&self, body: &[u8]) -> Result<(), DatagramSendError> {
        self.try_send_named(&SocketName::UNNAMED, body)
    }

    /// Accepts a copy of `body` for this receiver, waiting for room. One receiver whose queue is full makes nobody
    /// else's sends wait. The kernel can't tell when it has room, so it is asked again and again, after 100 µs
    /// at first (a millisecond on epoll) and 10 ms at last; longer with more than a hundred such receivers, which take
    /// turns.
    ///
    /// What lies unread with receivers counts against the [send buffer](super::DatagramBuilder::send_buffer_bytes)
    /// of this socket, though: one that does not read and whose queue (sysctl `net.unix.max_dgram_qlen`) takes as
    /// much as that holds up the sends to all. A larger buffer, or another socket for such receivers, helps.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing has been accepted.
    ///
    /// # Errors
    ///
    /// [`DatagramSendError`] without `Full`.
    pub async fn send_to(
        &self,
        to: impl Destination,
        body: &[u8],
    ) -> Result<(), DatagramSendError> {
        let to = to.socket_name()?;
        self.send_named(&to, body).await
    }

    /// Accepts a copy of `body` for this receiver if there is room. Never waits.
    ///
    /// # Errors
    ///
    /// [`DatagramSendError`]; nothing has been accepted then.
    pub fn try_send_to(&self, to: impl Destination, body: &[u8]) -> Result<(), DatagramSendError> {
        self.try_send_named(&to.socket_name()?, body)
    }

    /// Accepts a message of `len` bytes that `fill` writes in place, for the connected receiver, waiting for
    /// room. The bytes are zero at first. `fill` may use everything; what it sends on the same socket goes first.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, `fill` has not been called and nothing has been accepted.
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::send`].
    pub async fn send_with(
        &self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), DatagramSendError> {
        let to = SocketName::UNNAMED;
        self.room(&to, len).await?;
        let accepted = self.socket.packets.try_append_with(&to, self.prefix(len), len, fill);
        self.outcome(&to, accepted)
    }

    /// Accepts `body` for this receiver, or for the connected one, waiting for room. It is not copied: the
    /// kernel reads it where it lies. Worth it from some 2 KiB on.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing has been accepted.
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::send`].
    pub async fn send_bytes(
        &self,
        to: Option<&SocketName>,
        body: Bytes,
    ) -> Result<(), DatagramSendError> {
        let to = to.unwrap_or(&SocketName::UNNAMED);
        self.room(to, body.len()).await?;
        let prefix = self.prefix(body.len());
        let accepted = self.socket.packets.try_append_shared(to, prefix, Payload::Bytes(body));
        self.outcome(to, accepted)
    }

    /// Waits until the kernel has everything accepted before the first poll: it then lies with the receivers.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and repeated at will.
    ///
    /// # Errors
    ///
    /// The oldest failure that has not been told; repeat for the next one.
    pub async fn flush(&self) -> Result<(), DatagramSendError> {
        let mut waiter = Waiter::new(&self.socket.packets);
        let first = waiter.packets.accepted_packets();
        let flushed =
            poll_fn(|context| waiter.packets.poll_flushed(first, &mut waiter.place, context)).await;
        flushed.map_err(|SendFailure { to, error, .. }| self.explain(&to, error))
    }

    /// The longest message that may be sent, bytes: within
    /// [`packet_bytes_max`](super::DatagramBuilder::packet_bytes_max) and the socket's send buffer.
    pub fn message_bytes_max(&self) -> usize {
        let Socket { packets, settings, .. } = &*self.socket;
        let packet = settings.packet_bytes_max.min(packets.send_bytes_max());
        packet.saturating_sub(settings.profile.header_bytes())
    }

    /// Packets accepted and not yet handed to the kernel.
    pub fn queued_packets(&self) -> usize {
        self.socket.packets.outbound_packets()
    }

    pub(super) fn remember_peer(&self, address: Address) {
        self.socket.connected.set(true);
        *self.socket.peer.borrow_mut() = Some(address);
    }

    pub(super) fn connect_to(&self, address: Address) -> Result<(), ConnectError> {
        if self.socket.packets.has_runtime_ended() {
            // The socket may be that of the process from which this one was forked.
            return Err(ConnectError::not_tried(address));
        }
        ringpost_uds::connect_socket(self.socket.packets.socket(), &address)?;
        self.remember_peer(address);
        self.socket.packets.reconnected();
        Ok(())
    }

    async fn send_named(&self, to: &SocketName, body: &[u8]) -> Result<(), DatagramSendError> {
        self.check_connected(to)?;
        // Most sends find room; only the others make a future of it.
        let prompt = self.socket.packets.has_prompt_room(to) && !self.must_reconnect(to);
        if !prompt || body.len() > self.message_bytes_max() {
            self.room(to, body.len()).await?;
        }
        self.append(to, body)
    }

    fn try_send_named(&self, to: &SocketName, body: &[u8]) -> Result<(), DatagramSendError> {
        self.check_connected(to)?;
        self.check_len(body.len())?;
        self.reconnect(to)?;
        self.append(to, body)
    }

    fn append(&self, to: &SocketName, body: &[u8]) -> Result<(), DatagramSendError> {
        let accepted = self.socket.packets.try_append(to, self.prefix(body.len()), body);
        self.outcome(to, accepted)
    }

    fn outcome(
        &self,
        to: &SocketName,
        accepted: Result<Accepted, PacketError>,
    ) -> Result<(), DatagramSendError> {
        match accepted {
            Ok(Accepted::Full { queued }) => {
                let limit = self.socket.settings.outbound_packets_max;
                Err(DatagramSendError::Full { queued, limit })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(to, error)),
        }
    }

    async fn room(&self, to: &SocketName, len: usize) -> Result<(), DatagramSendError> {
        self.check_connected(to)?;
        self.check_len(len)?;
        let mut waiter = Waiter::new(&self.socket.packets);
        poll_fn(|context| {
            self.reconnect(to)?;
            let room = waiter.packets.poll_room(to, &mut waiter.place, context);
            room.map_err(|error| self.explain(to, error))
        })
        .await
    }

    fn check_len(&self, len: usize) -> Result<(), DatagramSendError> {
        let limit = self.message_bytes_max();
        if len > limit { Err(DatagramSendError::TooLarge { len, limit }) } else { Ok(()) }
    }

    /// Without a receiver there has to be a peer. A socket that came from elsewhere is asked once.
    #[inline]
    fn check_connected(&self, to: &SocketName) -> Result<(), DatagramSendError> {
        if !to.is_unnamed() || self.socket.connected.get() {
            return Ok(());
        }
        if rustix::net::getpeername(self.socket.packets.socket()).is_err() {
            return Err(DatagramSendError::NotConnected);
        }
        self.socket.connected.set(true);
        Ok(())
    }

    #[inline]
    fn must_reconnect(&self, to: &SocketName) -> bool {
        to.is_unnamed() && self.socket.packets.is_disconnected()
    }

    /// Looks for a receiver that was found gone, once that has been told.
    fn reconnect(&self, to: &SocketName) -> Result<(), DatagramSendError> {
        if !self.must_reconnect(to) {
            return Ok(());
        }
        let Socket { packets, peer, .. } = &*self.socket;
        packets.check(to).map_err(|error| self.explain(to, error))?;
        let Some(address) = peer.borrow().clone() else {
            return Err(DatagramSendError::Gone { to: None });
        };
        let Err(error) = ringpost_uds::connect_socket(packets.socket(), &address) else {
            packets.reconnected();
            return Ok(());
        };
        let to = Some(address);
        Err(match error.kind() {
            ConnectErrorKind::Forbidden => DatagramSendError::Forbidden { to },
            ConnectErrorKind::Other(errno) => DatagramSendError::Kernel { errno },
            _ => DatagramSendError::Gone { to },
        })
    }

    fn explain(&self, to: &SocketName, error: PacketError) -> DatagramSendError {
        let peer = || self.socket.peer.borrow().clone();
        let address = || address_of(to).or_else(peer);
        match error {
            PacketError::Gone { errno: NOT_CONNECTED } if address().is_none() => {
                DatagramSendError::NotConnected
            }
            PacketError::Gone { .. } => DatagramSendError::Gone { to: address() },
            PacketError::Forbidden { .. } => DatagramSendError::Forbidden { to: address() },
            PacketError::TooLarge { len, limit } => {
                let header = self.socket.settings.profile.header_bytes();
                let (len, limit) = (len.saturating_sub(header), limit.saturating_sub(header));
                DatagramSendError::TooLarge { len, limit }
            }
            PacketError::Ended(error) => error.into(),
            _ => DatagramSendError::RuntimeEnded,
        }
    }

    /// What goes in front of a message of `len` bytes, which is within `message_bytes_max`.
    #[inline]
    fn prefix(&self, len: usize) -> Prefix {
        match self.socket.settings.profile {
            #[expect(clippy::cast_possible_truncation, reason = "a packet has 1 MiB at most")]
            DatagramProfile::Native => Prefix::word(message_header(len as u32)),
            DatagramProfile::Plain => Prefix::NONE,
        }
    }
}

/// ENOTCONN.
const NOT_CONNECTED: i32 = rustix::io::Errno::NOTCONN.raw_os_error();

impl fmt::Debug for DatagramSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramSender")
            .field("queued_packets", &self.queued_packets())
            .finish_non_exhaustive()
    }
}

/// A future that waits for room or for a flush.
struct Waiter<'a> {
    packets: &'a Packets,
    place: Place,
}

impl<'a> Waiter<'a> {
    fn new(packets: &'a Packets) -> Self {
        Self { packets, place: Place::default() }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.packets.leave(&mut self.place);
    }
}
