//! Connections on their way from one runtime or process to another.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ringpost_frame::Agreement;
use ringpost_reactor::Chunk;

use crate::connection::Connection;
use crate::error::{Closed, RecvError, SendError};
use crate::options::ConnectionOptions;

/// A connection that belongs to no runtime; see [`Connection::detach`]. May be sent to another thread.
///
/// Dropping it closes the connection; the peer sees that as an abort.
///
/// ```
/// # use std::time::Duration;
/// # fn example(connection: ringpost::Connection, other: ringpost::Handle) {
/// ringpost::spawn(async move {
///     let Ok(detached) = connection.detach(Duration::from_secs(1)).await else { return };
///     let _ = other.submit(move || {
///         let mut connection = detached.attach();
///         ringpost::spawn(async move { connection.recv().await });
///     });
/// });
/// # }
/// ```
pub struct DetachedConnection {
    pub(crate) socket: OwnedFd,
    pub(crate) options: ConnectionOptions,
    pub(crate) agreement: Option<Agreement>,
    /// What a receiver is shown before anything else.
    pub(crate) received: Vec<u8>,
    /// This side has said that it sends no more.
    pub(crate) finished: bool,
}

impl DetachedConnection {
    /// The connection whose receive has been stopped; `behind` is what its stream still had.
    pub(crate) fn new(connection: Connection, socket: OwnedFd, behind: Vec<Chunk>) -> Self {
        let link = connection.link();
        let (options, agreement) = (link.options, link.agreement());
        let finished = link.finished.get();
        let received = connection.into_receiver().into_received(behind);
        Self { socket, options, agreement, received, finished }
    }

    /// Goes on with the connection in the current runtime. The peer is not greeted again.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn attach(self) -> Connection {
        let Self { socket, options, agreement, received, finished } = self;
        Connection::resume(socket, options, agreement, received, finished)
    }

    /// Bytes that were received and not taken; they go along.
    pub fn received_bytes(&self) -> usize {
        self.received.len()
    }

    /// What both sides agreed on; `None` with plain profiles.
    pub fn agreement(&self) -> Option<Agreement> {
        self.agreement
    }
}

impl AsFd for DetachedConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for DetachedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetachedConnection")
            .field("socket", &self.socket)
            .field("received_bytes", &self.received.len())
            .finish_non_exhaustive()
    }
}

/// Why a connection could not be detached. It has the connection, which goes on.
#[derive(Debug, thiserror::Error)]
#[error("the connection can't be detached: {reason}")]
pub struct DetachError {
    /// Why not.
    #[source]
    pub reason: DetachErrorReason,
    /// The connection as it was.
    pub connection: Box<Connection>,
}

/// What keeps a connection where it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DetachErrorReason {
    /// The connection is over.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// Nothing more can be received.
    #[error(transparent)]
    Received(#[from] RecvError),
    /// Something accepted can't be sent.
    #[error(transparent)]
    Sending(#[from] SendError),
    /// The peer does not read what has been accepted for it.
    #[error("{bytes} bytes were not taken by the peer within {limit:?}")]
    NotFlushed {
        /// Bytes that wait to be sent.
        bytes: usize,
        /// How long was waited.
        limit: Duration,
    },
    /// Both sides have agreed to pass descriptors: those that have come and belong to no message yet can't
    /// be put back into a stream.
    #[error("it may pass descriptors")]
    PassesDescriptors,
    /// It carries packets (SOCK_SEQPACKET): those that were received and not taken have boundaries that a
    /// detached connection does not keep.
    #[error("it carries packets")]
    Packets,
    /// No descriptor is free.
    #[error("no descriptor for the detached connection: {source}")]
    Descriptor {
        /// The kernel's answer.
        source: std::io::Error,
    },
}
