//! What can go wrong on a connection, by what the caller can do about it.

use std::io;

use ringpost_frame::{HelloError, ProtocolError};
use ringpost_reactor::StreamError;
use ringpost_uds as uds;

/// Why a message was not accepted, or what was accepted can't be delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is longer than both sides agreed on. Split it or raise the limit on both sides.
    #[error("a message of {len} bytes is over the connection's limit of {limit} bytes")]
    TooLarge {
        /// Its length, bytes.
        len: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// The outbound queue is full: wait (`send` does) or drop the message.
    #[error("the outbound queue is full: {queued} bytes wait, the bound is {limit} bytes")]
    Full {
        /// Bytes waiting.
        queued: usize,
        /// The bound, bytes; a batch that is full gives its own.
        limit: usize,
    },
    /// The peer's greeting has not arrived yet, so its limits are not known: wait (`send` does).
    #[error("the peer has not sent its greeting yet")]
    NotReady,
    /// [`shutdown`](crate::Sender::shutdown) has been called on this side.
    #[error("this side of the connection has been shut down")]
    Finished,
    /// The other connection uses another framing, so received frames can't be passed on as they are.
    #[error("the frames were received with another framing than this connection's")]
    OtherProfile,
    /// The message has more file descriptors than the connection takes. Raise
    /// [`descriptors_max`](crate::ConnectionOptions::descriptors_max) on both sides.
    #[error("a message with {count} file descriptors is over the connection's limit of {limit}")]
    TooManyDescriptors {
        /// Their number.
        count: usize,
        /// The limit; zero if this side or the other takes none.
        limit: usize,
    },
    /// The kernel does not pass these file descriptors, now or at all; the connection goes on.
    ///
    /// ETOOMANYREFS (109): this user has as many descriptors in flight, sent and not yet received, as
    /// RLIMIT_NOFILE allows one process; try later. EINVAL (22): one of them can't be passed, as the
    /// descriptor of an io_uring instance. EPERM (1): the receiving socket takes none.
    #[error("the kernel does not pass these file descriptors: error {errno}")]
    DescriptorsRefused {
        /// The error number.
        errno: i32,
    },
    /// The connection is over.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Why nothing more will be received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The peer sent something that the protocol forbids. The connection has been closed.
    #[error("protocol error at byte {position}: {source}")]
    Protocol {
        /// Offset of the frame in what was received behind the greeting, bytes; counted anew after
        /// [`attach`](crate::DetachedConnection::attach).
        position: u64,
        /// What is wrong.
        source: ProtocolError,
    },
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// A message was dropped because this process could not take its file descriptors: its limit
    /// (RLIMIT_NOFILE) was reached, or a security module kept some back. Those that came are closed. The
    /// connection goes on: this error alone is not repeated.
    #[error("a message was dropped: not all of its {declared} file descriptors could be received")]
    DescriptorsLost {
        /// How many it came with.
        declared: u8,
    },
    /// The connection is over.
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// The peer is gone without having said that it was finished: it crashed, was killed or gave up.
    /// Messages may be missing.
    #[error("the peer is gone without a proper end")]
    Aborted,
    /// The peer refused the connection, for this reason.
    #[error("the peer refused the connection: {reason}")]
    Rejected {
        /// What it said.
        reason: String,
    },
    /// The two sides can't talk.
    #[error("the greeting failed: {0}")]
    Handshake(Box<HelloError>),
    /// The peer's greeting did not arrive in time.
    #[error("the peer sent no greeting within {milliseconds} ms")]
    HandshakeTimeout {
        /// How long was waited.
        milliseconds: u64,
    },
    /// This side closed the connection because of what the peer sent.
    #[error("closed after a protocol error: {0}")]
    Protocol(Box<ProtocolError>),
    /// The runtime has ended.
    #[error("the runtime has ended")]
    RuntimeEnded,
    /// The kernel refused an operation.
    #[error("the kernel refused: {}", io::Error::from_raw_os_error(*errno))]
    Kernel {
        /// The error number.
        errno: i32,
    },
}

impl From<StreamError> for Closed {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::PeerGone => Self::Aborted,
            StreamError::RuntimeEnded => Self::RuntimeEnded,
            StreamError::Kernel { errno } => Self::Kernel { errno },
            // The enum is open; what it may gain is an end of the stream as well.
            _ => Self::Aborted,
        }
    }
}

/// Why connecting failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The socket could not be reached; the message names the address and the reason.
    #[error(transparent)]
    Socket(#[from] uds::ConnectError),
    /// The socket was reached, and then the connection ended during the greeting.
    #[error("connected to {address}, but {source}")]
    Handshake {
        /// The address.
        address: uds::Address,
        /// What happened.
        source: Closed,
    },
}

/// Why accepting failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The runtime has ended.
    #[error("the runtime has ended")]
    RuntimeEnded,
    /// Another process has taken the socket over, and all that this one had accepted has been taken.
    #[error("another process accepts now: the socket has been handed over")]
    HandedOver,
    /// The kernel refuses to accept on this socket.
    #[error("the kernel refuses to accept: {}", io::Error::from_raw_os_error(*errno))]
    Kernel {
        /// The error number.
        errno: i32,
    },
}

impl From<StreamError> for AcceptError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Kernel { errno } => Self::Kernel { errno },
            _ => Self::RuntimeEnded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DatagramRecvError, DatagramSendError};

    #[test]
    fn error_numbers_are_told_in_words() {
        let errno = 88;
        let texts = [
            Closed::Kernel { errno }.to_string(),
            AcceptError::Kernel { errno }.to_string(),
            DatagramSendError::Kernel { errno }.to_string(),
            DatagramRecvError::Kernel { errno }.to_string(),
            StreamError::Kernel { errno }.to_string(),
        ];
        for text in texts {
            assert!(text.ends_with(": Socket operation on non-socket (os error 88)"), "{text}");
        }
    }
}
