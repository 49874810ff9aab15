//! Bare bytes in both directions, for protocols that have a framing of their own.
//!
//! `half.rs` has what both sides do, by poll; `futures.rs` and `tokio.rs` put it behind the traits that
//! others write against. A read takes chunks out of the reactor's inbound queue and copies from, or lends,
//! the one at hand; a write appends to the outbound queue, which leaves at the end of the turn.

mod futures;
mod half;
#[cfg(feature = "tokio")]
mod tokio;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringpost_uds::{self as uds, Address, PeerCredentials, SocketKind};

use crate::connection::connect_socket;
use crate::error::ConnectError;
use crate::executor::Inner;

pub use half::{ByteReader, ByteWriter};

/// A connected stream of bytes without greeting or framing, for existing protocols. Belongs to the
/// runtime in whose scope it was made, and makes progress only while that runs.
///
/// It has the traits of `futures-io` and, with the feature `tokio`, those of tokio, so that clients and
/// servers written against either run on the reactor as they are. (With both extension traits in scope
/// their methods have the same names.) For messages take a [`Connection`](crate::Connection).
///
/// * **Reading** copies into the caller's buffer as much as has arrived and fits, out of as many chunks as
///   there are; it waits only for the first byte. `AsyncBufRead` lends the received bytes where they are,
///   without a copy. After the peer has shut down its side, reads return 0, again and again.
/// * **Writing** accepts a copy of as much as there is room for in the outbound queue, bounded by
///   [`outbound_bytes_max`](crate::RuntimeBuilder::outbound_bytes_max), and waits only if there is none.
///   What was accepted leaves at the end of the runtime's turn, flushed or not. A vectored write gathers.
/// * **Flushing** waits until the kernel has everything accepted: it is then delivered even if this process is
///   killed, as long as the peer lives and reads.
/// * **Closing** (`poll_close`; tokio: `poll_shutdown`) ends the direction to the peer behind everything
///   accepted (`shutdown(SHUT_WR)`, shutdown(2)) and waits for that. Reading goes on.
///
/// Reader and writer have a waker each, so that two tasks may use the two [halves](ByteStream::split). No
/// operation allocates in steady state.
///
/// Dropping a stream, or both halves, closes it: what was accepted still leaves in the background, at most
/// [`linger`](crate::RuntimeBuilder::linger) long and as long as the runtime lives (flush first). If received bytes were not read, the peer may find its connection
/// reset (unix(7)), or a plain end: that is no answer to them.
///
/// # Cancel safety
///
/// All operations are single polls. One that is pending has neither taken nor accepted anything; its
/// future may be dropped at any time. (Futures made of several polls, such as `read_exact` or
/// `write_all`, have made part of the way then; see there.)
///
/// # Errors
///
/// By [`io::ErrorKind`]; but for errors of the kernel's by number, [`get_ref`](io::Error::get_ref) gives a
/// [`Closed`](crate::Closed), or
/// [`SendError::Finished`](crate::SendError::Finished).
///
/// | kind | when |
/// |---|---|
/// | `ConnectionReset` | read: the peer has closed, or was killed, without having read everything |
/// | `BrokenPipe` | write, flush, close: the peer is gone, and something accepted may be lost; write: this side is closed |
/// | `ConnectionAborted` | the runtime has ended |
/// | of the error number | the kernel refused for another reason |
///
/// Errors are repeated. A read reports one only after everything received before it has been read.
///
/// # Example
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("example.sock");
/// use futures_util::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
/// use ringpost::{ByteStream, Listener, Runtime};
///
/// let runtime = Runtime::new()?;
/// runtime.block_on(async {
///     let mut listener = Listener::bind(&path)?;
///     ringpost::spawn(async move {
///         let mut server = listener.accept_stream().await.unwrap();
///         let mut line = String::new();
///         server.read_line(&mut line).await.unwrap();
///         server.write_all(line.to_uppercase().as_bytes()).await.unwrap();
///         server.close().await.unwrap();
///     });
///     let mut client = ByteStream::connect(&path).await?;
///     client.write_all(b"hello\n").await?;
///     let mut answer = String::new();
///     client.read_to_string(&mut answer).await?;
///     assert_eq!(answer, "HELLO\n");
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ByteStream {
    // In this order: a writer that is dropped last has nobody left to tell.
    reader: ByteReader,
    writer: ByteWriter,
}

impl ByteStream {
    /// Connects to `address`.
    ///
    /// An address is a path, or `@name` in the abstract namespace.
    ///
    /// # Cancel safety
    ///
    /// Nothing is left if the future is dropped before it is ready.
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
        let socket = connect_socket(&address.into(), SocketKind::Stream).await?;
        Ok(Self::from_socket(socket))
    }

    /// Takes over a connected stream socket: one end of a socket pair, an inherited or received
    /// descriptor, what [`Listener::accept_socket`](crate::Listener::accept_socket) gave, a TCP
    /// connection. It is made non-blocking.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn from_socket(socket: OwnedFd) -> Self {
        // Failing here means that the descriptor is no socket; its first operation says so.
        let _ = rustix::io::ioctl_fionbio(&socket, true);
        let stream = Inner::current().reactor.adopt_stream(socket);
        let (reader, writer) = half::pair(stream);
        Self { reader, writer }
    }

    /// The two halves, each for its own task.
    pub fn split(self) -> (ByteReader, ByteWriter) {
        (self.reader, self.writer)
    }

    /// Both halves at once, borrowed: read from one while writing to the other.
    pub fn halves(&mut self) -> (&mut ByteReader, &mut ByteWriter) {
        (&mut self.reader, &mut self.writer)
    }

    /// Puts the halves of one stream together again. Gives them back if they are of two.
    ///
    /// # Errors
    ///
    /// The two halves.
    pub fn join(reader: ByteReader, writer: ByteWriter) -> Result<Self, (ByteReader, ByteWriter)> {
        if reader.belongs_to(&writer) { Ok(Self { reader, writer }) } else { Err((reader, writer)) }
    }

    /// Who is on the other side: process, user and group at the time it connected (SO_PEERCRED).
    ///
    /// # Errors
    ///
    /// If the socket has no credentials, as a TCP connection.
    pub fn peer_credentials(&self) -> io::Result<PeerCredentials> {
        uds::peer_credentials(self.as_fd())
    }

    /// Bytes accepted and not yet handed to the kernel.
    pub fn queued_bytes(&self) -> usize {
        self.writer.queued_bytes()
    }
}

impl AsFd for ByteStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStream").field("socket", &self.as_fd()).finish_non_exhaustive()
    }
}
