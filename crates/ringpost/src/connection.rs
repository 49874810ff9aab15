//! A connection: both halves together, and how it is made.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use ringpost_frame::Agreement;
use ringpost_reactor::{Chunk, PacketOptions};
use ringpost_uds::{
    self as uds, Activation, ActivationError, Address, AdoptError, PeerCredentials, PeerProcess,
    PeerProcessError, SocketKind,
};
use rustix::net::AddressFamily;

use crate::detached::{DetachError, DetachErrorReason, DetachedConnection};
use crate::error::{Closed, ConnectError, RecvError, SendError};
use crate::executor::Inner;
use crate::link::{Half, Link};
use crate::message::{Message, Run};
use crate::options::ConnectionOptions;
use crate::receiver::{Batch, Receiver};
use crate::sender::Sender;
use crate::wire::Wire;

/// A connection that carries messages both ways. Belongs to the runtime in whose scope it was made.
///
/// The two directions are independent; [`Connection::split`] gives each to its own task.
///
/// # Example
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("example.sock");
/// let runtime = ringpost::Runtime::new()?;
/// runtime.block_on(async {
///     let mut listener = ringpost::Listener::bind(&path)?;
///     ringpost::spawn(async move {
///         let mut server = listener.accept().await.unwrap();
///         while let Some(message) = server.recv().await.unwrap() {
///             server.send(&message).await.unwrap();
///         }
///         server.shutdown().await.unwrap();
///     });
///     let mut client = ringpost::Connection::connect(&path).await?;
///     client.send(b"hello").await?;
///     client.shutdown().await?;
///     assert_eq!(&client.recv().await?.unwrap()[..], b"hello");
///     assert!(client.recv().await?.is_none());
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Connection {
    sender: Sender,
    receiver: Receiver,
    link: Rc<Link>,
}

/// First and longest pause between attempts to connect to a server whose backlog is full, and how
/// long to try.
const BACKLOG_PAUSE_MIN: Duration = Duration::from_micros(200);
const BACKLOG_PAUSE_MAX: Duration = Duration::from_millis(20);
const BACKLOG_WAIT_MAX: Duration = Duration::from_secs(5);

impl Connection {
    /// Connects to `address` with the default options and waits for the peer's greeting.
    ///
    /// An address is a path, or `@name` in the abstract namespace.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, there is no connection; the server may have accepted one that
    /// ends.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the address and the reason. A full backlog is tried again for five
    /// seconds.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn connect(address: impl Into<Address>) -> Result<Self, ConnectError> {
        Self::connect_with(address, ConnectionOptions::new()).await
    }

    /// Connects to `address` with these options.
    ///
    /// # Errors
    ///
    /// As [`Connection::connect`].
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn connect_with(
        address: impl Into<Address>,
        options: ConnectionOptions,
    ) -> Result<Self, ConnectError> {
        let address = address.into();
        let socket = connect_socket(&address, options.socket_kind()).await?;
        let mut connection = Self::from_socket(socket, options);
        match connection.ready().await {
            Ok(()) => Ok(connection),
            Err(source) => Err(ConnectError::Handshake { address, source }),
        }
    }

    /// Takes over a connected stream or packet socket: one end of a socket pair, an inherited or received
    /// descriptor, a TCP connection. It is made non-blocking.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn from_socket(socket: OwnedFd, options: ConnectionOptions) -> Self {
        // Failing here means that the descriptor is no socket; its first operation says so.
        let _ = rustix::io::ioctl_fionbio(&socket, true);
        let reactor = Inner::current().reactor.clone();
        let mut options = options;
        // An error means that it is no socket; its first operation says so.
        let kind = rustix::net::sockopt::socket_type(&socket);
        options.seqpacket = kind == Ok(rustix::net::SocketType::SEQPACKET);
        let wire = if options.seqpacket {
            let header = options.profile.header_bytes();
            let most = PacketOptions::PACKET_BYTES_MAX - header;
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            options.frame_bytes_max = options.frame_bytes_max.min(most);
            Wire::packets(&reactor, socket, options.frame_bytes_max as usize + header)
        } else {
            // The greeting may be followed by descriptors at once, so this is decided here.
            let takes = options.takes_descriptors() && is_unix(&socket);
            Wire::stream(&reactor, socket, takes.then_some(options.descriptors_held_max.into()))
        };
        let link = Link::new(reactor, wire, options);
        Self {
            sender: Sender::new(Rc::clone(&link)),
            receiver: Receiver::new(Rc::clone(&link)),
            link,
        }
    }

    /// As [`Connection::from_socket`], for a descriptor that may be anything: it has to be a connected
    /// Unix-domain stream socket. It is made non-blocking, for everyone who holds the same socket, and
    /// close-on-exec.
    ///
    /// # Errors
    ///
    /// [`AdoptError`] says what it is instead, and gives it back.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn try_from_socket(
        socket: OwnedFd,
        options: ConnectionOptions,
    ) -> Result<Self, AdoptError> {
        let socket = uds::adopt_connection(socket, SocketKind::Stream)?;
        Ok(Self::from_socket(socket, options))
    }

    /// The connection that the service manager passed under this name. For a socket unit with
    /// `Accept=yes` systemd calls it `connection`.
    ///
    /// # Errors
    ///
    /// [`ActivationError`] says which names there are, or what has this one.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn from_activation(
        activation: &mut Activation,
        name: &str,
        options: ConnectionOptions,
    ) -> Result<Self, ActivationError> {
        let socket = activation.connection(name, SocketKind::Stream)?;
        Ok(Self::from_socket(socket, options))
    }

    /// Waits until the peer's greeting is there. Sending and receiving do so by themselves. Cancel
    /// safe.
    ///
    /// # Errors
    ///
    /// [`Closed`] if the two sides can't talk, or the peer is silent for longer than
    /// [`handshake_ms_max`](ConnectionOptions::handshake_ms_max).
    pub async fn ready(&mut self) -> Result<(), Closed> {
        let link = &self.link;
        std::future::poll_fn(|context| link.poll_open(Half::Receiver, context)).await
    }

    /// What both sides agreed on; `None` before the greeting and with plain profiles.
    pub fn agreement(&self) -> Option<Agreement> {
        self.link.agreement()
    }

    /// Who is on the other side: process, user and group at the time it connected (SO_PEERCRED).
    ///
    /// # Errors
    ///
    /// If the socket has no credentials, as a TCP connection.
    pub fn peer_credentials(&self) -> std::io::Result<PeerCredentials> {
        uds::peer_credentials(self.link.stream.socket())
    }

    /// The process on the other side, held by a pidfd (SO_PEERPIDFD, Linux 6.5): it can't be taken for
    /// another one that got its number later.
    ///
    /// # Errors
    ///
    /// [`PeerProcessError`]; on older kernels `Unsupported`, never a guess from the number.
    pub fn peer_process(&self) -> Result<PeerProcess, PeerProcessError> {
        uds::peer_process(self.link.stream.socket())
    }

    /// The supplementary groups of the peer at the time it connected (SO_PEERGROUPS, Linux 4.13), at
    /// most 65,536. One system call.
    ///
    /// # Errors
    ///
    /// If the socket has no credentials, as a TCP connection, and what the kernel answers.
    pub fn peer_groups(&self) -> std::io::Result<Vec<u32>> {
        ringpost_reactor::peer_groups(self.link.stream.socket())
    }

    /// Tells the peer why it is not served, and closes. The peer finds the reason in
    /// [`Closed::Rejected`]. A plain profile has no such frame: its peers see the end only.
    pub fn refuse(self, reason: &str) {
        self.link.reject(reason);
    }

    /// The two halves, each for its own task.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Takes the connection off its runtime, between two messages, without the peer noticing: to go on
    /// with it in another runtime of this process ([`DetachedConnection::attach`]), or in another process
    /// ([`restart`](crate::restart)). What has been accepted for sending leaves first; what has been
    /// received and not been taken, the beginning of a message included, goes along.
    ///
    /// A connection that may pass descriptors, or that carries packets, stays where it is. Waits for the peer's greeting, then at most `flush_max` until the kernel has what was accepted.
    ///
    /// # Cancel safety
    ///
    /// None: if the future is dropped before it is ready, the connection is closed.
    ///
    /// # Errors
    ///
    /// [`DetachError`] has the reason and the connection, which goes on.
    pub async fn detach(mut self, flush_max: Duration) -> Result<DetachedConnection, DetachError> {
        match self.stop(flush_max).await {
            Ok((socket, behind)) => Ok(DetachedConnection::new(self, socket, behind)),
            Err(reason) => Err(DetachError { reason, connection: Box::new(self) }),
        }
    }

    async fn stop(
        &mut self,
        flush_max: Duration,
    ) -> Result<(OwnedFd, Vec<Chunk>), DetachErrorReason> {
        self.ready().await?;
        if let Some(failure) = self.receiver.failure() {
            return Err(failure.into());
        }
        if self.link.stream.takes_descriptors() {
            return Err(DetachErrorReason::PassesDescriptors);
        }
        if self.link.stream.is_packets() {
            return Err(DetachErrorReason::Packets);
        }
        match crate::timeout(flush_max, self.flush()).await {
            Ok(flushed) => flushed?,
            Err(_) => {
                let bytes = self.sender.queued_bytes();
                return Err(DetachErrorReason::NotFlushed { bytes, limit: flush_max });
            }
        }
        let Wire::Stream(stream) = &self.link.stream else {
            return Err(DetachErrorReason::Packets);
        };
        std::future::poll_fn(|context| stream.poll_stopped(context))
            .await
            .map_err(|error| self.link.explain(error))?;
        stream.detach().map_err(|source| DetachErrorReason::Descriptor { source })
    }

    pub(crate) fn into_receiver(self) -> Receiver {
        self.receiver
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// A connection whose greeting is over.
    pub(crate) fn resume(
        socket: OwnedFd,
        options: ConnectionOptions,
        agreement: Option<Agreement>,
        received: Vec<u8>,
        finished: bool,
    ) -> Self {
        let reactor = Inner::current().reactor.clone();
        let stream = Wire::stream(&reactor, socket, None);
        let received = Chunk::Copied(received.into());
        let link = Link::resume(reactor, stream, options, agreement, received, finished);
        Self {
            sender: Sender::new(Rc::clone(&link)),
            receiver: Receiver::new(Rc::clone(&link)),
            link,
        }
    }

    /// Both halves at once, borrowed: receive from one while sending to the other.
    pub fn halves(&mut self) -> (&mut Sender, &mut Receiver) {
        (&mut self.sender, &mut self.receiver)
    }

    /// See [`Receiver::recv`].
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<Message>, RecvError> {
        self.receiver.recv().await
    }

    /// See [`Receiver::recv_batch`].
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv_batch`].
    pub async fn recv_batch(&mut self) -> Result<Option<Batch<'_>>, RecvError> {
        self.receiver.recv_batch().await
    }

    /// See [`Receiver::recv_run`].
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv_run`].
    pub async fn recv_run(&mut self) -> Result<Option<Run>, RecvError> {
        self.receiver.recv_run().await
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    ///
    /// As [`Sender::send`].
    pub async fn send(&mut self, body: &[u8]) -> Result<(), SendError> {
        self.sender.send(body).await
    }

    /// See [`Sender::try_send`].
    ///
    /// # Errors
    ///
    /// As [`Sender::try_send`].
    pub fn try_send(&mut self, body: &[u8]) -> Result<(), SendError> {
        self.sender.try_send(body)
    }

    /// See [`Sender::send_with`].
    ///
    /// # Errors
    ///
    /// As [`Sender::send_with`].
    pub async fn send_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), SendError> {
        self.sender.send_with(len, fill).await
    }

    /// See [`Sender::send_bytes`].
    ///
    /// # Errors
    ///
    /// As [`Sender::send_bytes`].
    pub async fn send_bytes(&mut self, body: Bytes) -> Result<(), SendError> {
        self.sender.send_bytes(body).await
    }

    /// See [`Sender::send_message`].
    ///
    /// # Errors
    ///
    /// As [`Sender::send_message`].
    pub async fn send_message(&mut self, message: Message) -> Result<(), SendError> {
        self.sender.send_message(message).await
    }

    /// See [`Sender::send_with_descriptors`].
    ///
    /// # Errors
    ///
    /// As [`Sender::send_with_descriptors`].
    pub async fn send_with_descriptors(
        &mut self,
        body: &[u8],
        descriptors: &[impl AsFd],
    ) -> Result<(), SendError> {
        self.sender.send_with_descriptors(body, descriptors).await
    }

    /// See [`Sender::try_send_with_descriptors`].
    ///
    /// # Errors
    ///
    /// As [`Sender::try_send_with_descriptors`].
    pub fn try_send_with_descriptors(
        &mut self,
        body: &[u8],
        descriptors: &[impl AsFd],
    ) -> Result<(), SendError> {
        self.sender.try_send_with_descriptors(body, descriptors)
    }

    /// See [`Sender::flush`].
    ///
    /// # Errors
    ///
    /// As [`Sender::flush`].
    pub async fn flush(&mut self) -> Result<(), SendError> {
        self.sender.flush().await
    }

    /// See [`Sender::go_away`].
    ///
    /// # Errors
    ///
    /// As [`Sender::go_away`].
    pub fn go_away(&mut self) -> Result<(), SendError> {
        self.sender.go_away()
    }

    /// See [`Sender::shutdown`].
    ///
    /// # Errors
    ///
    /// As [`Sender::shutdown`].
    pub async fn shutdown(&mut self) -> Result<(), SendError> {
        self.sender.shutdown().await
    }
}

/// Whether descriptors can be passed over this socket.
fn is_unix(socket: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_domain(socket).is_ok_and(|family| family == AddressFamily::UNIX)
}

/// Connects a non-blocking socket; a full backlog is tried again for a while.
pub(crate) async fn connect_socket(
    address: &Address,
    kind: SocketKind,
) -> Result<OwnedFd, uds::ConnectError> {
    let reactor = Inner::current().reactor.clone();
    let give_up = reactor.now() + BACKLOG_WAIT_MAX;
    let mut pause = BACKLOG_PAUSE_MIN;
    loop {
        match uds::connect_kind(address, kind) {
            Err(error) if error.is_backlog_full() && reactor.now() < give_up => {
                crate::sleep(pause).await;
                pause = (pause * 2).min(BACKLOG_PAUSE_MAX);
            }
            outcome => return outcome,
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.stream.socket()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("link", &self.link).finish()
    }
}
