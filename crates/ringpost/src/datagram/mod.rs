//! Datagrams: packets between sockets without a connection.

mod builder;
mod error;
mod receiver;
mod sender;

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use ringpost_reactor::{Packets, SocketName};
use ringpost_uds::{Address, BindError, ConnectError, PathGuard};
use rustix::net::SocketAddrUnix;

use self::builder::Settings;
pub use self::builder::{DatagramBuilder, DatagramProfile};
pub use self::error::{DatagramRecvError, DatagramSendError};
pub use self::receiver::{DatagramReceiver, Packet, PacketBatch, PacketRef};
pub use self::sender::{DatagramSender, Destination};

/// A datagram socket (SOCK_DGRAM): messages to and from many, without a connection. Belongs to the runtime
/// in whose scope it was made.
///
/// A message is one packet. Between sockets of one host packets are neither lost on the way nor reordered
/// (unix(7)): a receiver that is full makes senders wait, and one that is gone is an error. What is lost is
/// what a receiver had not taken when it ended, what this side had accepted for a receiver that turned
/// out to be gone, which is told, and of a connected socket what its former peer had sent and nobody had received,
/// when the kernel finds that one gone at a send or connects the socket anew.
///
/// What waits here waits by destination, and [`send`](DatagramSender::send) to the peer is one of its own: mixed
/// with `send_to` the same receiver, packets may overtake each other while that receiver is full.
///
/// # Example
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("example.sock");
/// use ringpost::{Datagram, Runtime};
///
/// Runtime::new()?.block_on(async {
///     let mut server = Datagram::bind(&path)?;
///     let mut client = Datagram::builder().autobind()?;
///     client.connect_to(&path)?;
///     client.send(b"question").await?;
///     let question = server.recv().await?;
///     assert_eq!(*question, *b"question");
///     server.send_to(question.sender_name(), b"answer").await?;
///     assert_eq!(*client.recv().await?, *b"answer");
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Datagram {
    sender: DatagramSender,
    receiver: DatagramReceiver,
}

/// What both halves share.
struct Socket {
    /// Removes the path; dropped before the socket closes.
    guard: Option<PathGuard>,
    address: Option<Address>,
    packets: Packets,
    settings: Settings,
    /// Where the socket is connected to, to find its receiver again.
    peer: RefCell<Option<Address>>,
    /// There is a peer, as far as is known.
    connected: Cell<bool>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    skipped: Cell<u64>,
    denied: Cell<u64>,
    malformed: Cell<u64>,
}

/// What a datagram socket has done with packets that were not messages for its user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DatagramStats {
    /// Frames that are no message, skipped.
    pub skipped: u64,
    /// Packets of senders whom the policy does not allow, dropped.
    pub denied: u64,
    /// Packets that are no frame; each was told as [`DatagramRecvError::Protocol`].
    pub malformed: u64,
}

impl Datagram {
    /// Binds `address` with the default settings: the native profile, mode 0600, nobody's live socket is
    /// replaced, a stale one is.
    ///
    /// An address is a path, or `@name` in the abstract namespace. Receivers see it as the sender: they can
    /// reply to an absolute path of at most 107 bytes.
    ///
    /// # Errors
    ///
    /// [`BindError`] names the path and what to do.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(address: impl Into<Address>) -> Result<Self, BindError> {
        Self::builder().bind(address)
    }

    /// A socket without a name of its own, connected to `address`: nobody can reply to it, unless it is made
    /// with [`DatagramBuilder::autobind`].
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the address and the reason.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn connect(address: impl Into<Address>) -> Result<Self, ConnectError> {
        Self::builder().connect(address)
    }

    /// A socket without a name of its own and without a peer, to [send](DatagramSender::send_to) to many.
    ///
    /// # Errors
    ///
    /// The kernel has no socket for us.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn unbound() -> io::Result<Self> {
        Self::builder().unbound()
    }

    /// Settings for a datagram socket.
    pub fn builder() -> DatagramBuilder {
        DatagramBuilder::new()
    }

    fn adopt(
        packets: Packets,
        settings: Settings,
        guard: Option<PathGuard>,
        address: Option<Address>,
    ) -> Self {
        let peer = RefCell::new(None);
        let counters = Counters::default();
        let connected = Cell::new(false);
        let socket =
            Rc::new(Socket { guard, address, packets, settings, peer, connected, counters });
        Self {
            sender: DatagramSender::new(Rc::clone(&socket)),
            receiver: DatagramReceiver::new(socket),
        }
    }

    /// Makes `address` the receiver of what [`Datagram::send`] accepts from now on, and the only one whose
    /// packets are received. Packets that were accepted and have not left go to it, too; what could not be sent to the
    /// receiver before and has not been told is forgotten. So [flush](Datagram::flush) first. What lies in the socket
    /// from the peer it was connected to before is dropped by the kernel: [receive](Datagram::recv) that first, too.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the address and the reason; nothing has changed then. Once the runtime has ended, and
    /// in a forked child of its process, the reason is ECANCELED.
    pub fn connect_to(&self, address: impl Into<Address>) -> Result<(), ConnectError> {
        self.sender.connect_to(address.into())
    }

    /// The two halves, each for its own task.
    pub fn split(self) -> (DatagramSender, DatagramReceiver) {
        (self.sender, self.receiver)
    }

    /// Both halves at once, borrowed: receive from one while sending with the other.
    pub fn halves(&mut self) -> (&DatagramSender, &mut DatagramReceiver) {
        (&self.sender, &mut self.receiver)
    }

    /// See [`DatagramReceiver::recv`].
    ///
    /// # Errors
    ///
    /// As [`DatagramReceiver::recv`].
    pub async fn recv(&mut self) -> Result<Packet, DatagramRecvError> {
        self.receiver.recv().await
    }

    /// See [`DatagramReceiver::recv_batch`].
    ///
    /// # Errors
    ///
    /// As [`DatagramReceiver::recv_batch`].
    pub async fn recv_batch(&mut self) -> Result<PacketBatch<'_>, DatagramRecvError> {
        self.receiver.recv_batch().await
    }

    /// See [`DatagramSender::send`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::send`].
    pub async fn send(&self, body: &[u8]) -> Result<(), DatagramSendError> {
        self.sender.send(body).await
    }

    /// See [`DatagramSender::try_send`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::try_send`].
    pub fn try_send(&self, body: &[u8]) -> Result<(), DatagramSendError> {
        self.sender.try_send(body)
    }

    /// See [`DatagramSender::send_to`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::send_to`].
    pub async fn send_to(
        &self,
        to: impl Destination,
        body: &[u8],
    ) -> Result<(), DatagramSendError> {
        self.sender.send_to(to, body).await
    }

    /// See [`DatagramSender::try_send_to`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::try_send_to`].
    pub fn try_send_to(&self, to: impl Destination, body: &[u8]) -> Result<(), DatagramSendError> {
        self.sender.try_send_to(to, body)
    }

    /// See [`DatagramSender::flush`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::flush`].
    pub async fn flush(&self) -> Result<(), DatagramSendError> {
        self.sender.flush().await
    }

    /// The longest message that may be sent, bytes.
    pub fn message_bytes_max(&self) -> usize {
        self.sender.message_bytes_max()
    }

    /// The address that the socket was bound to, as given.
    pub fn address(&self) -> Option<&Address> {
        self.receiver.socket.address.as_ref()
    }

    /// The address that the socket has, as the kernel knows it; `None` if it has none.
    pub fn local_address(&self) -> Option<Address> {
        let found = rustix::net::getsockname(self.as_fd()).ok()?;
        let name = SocketAddrUnix::try_from(found).ok()?;
        match (name.path(), name.abstract_name()) {
            (Some(path), _) => Some(Address::Path(OsStr::from_bytes(path.to_bytes()).into())),
            (_, Some(name)) if !name.is_empty() => Some(Address::Abstract(name.to_vec())),
            _ => None,
        }
    }

    /// True while the path still leads to this socket. Of use for paths only: false for an abstract name, true for a socket
    /// that came from elsewhere.
    pub fn is_in_place(&self) -> bool {
        self.receiver.socket.guard.as_ref().is_none_or(PathGuard::is_in_place)
    }

    /// What became of packets that were not messages for the user.
    pub fn stats(&self) -> DatagramStats {
        self.receiver.stats()
    }
}

impl AsFd for Datagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.socket.packets.socket()
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagram").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// The name as an address; `None` if the socket has none.
pub(crate) fn address_of(name: &SocketName) -> Option<Address> {
    match (name.as_path(), name.as_abstract()) {
        (Some(path), _) => Some(Address::Path(OsStr::from_bytes(path).into())),
        (_, Some(name)) => Some(Address::Abstract(name.to_vec())),
        _ => None,
    }
}
