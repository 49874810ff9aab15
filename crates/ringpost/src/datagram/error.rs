//! What can go wrong with datagrams, by what the caller can do about it.

use std::fmt;
use std::io;

use ringpost_frame::ProtocolError;
use ringpost_reactor::StreamError;
use ringpost_uds::Address;

/// Why a message was not accepted, or what was accepted could not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramSendError {
    /// The message is longer than a packet of this socket holds. Split it, or raise
    /// [`packet_bytes_max`](crate::DatagramBuilder::packet_bytes_max) and
    /// [`send_buffer_bytes`](crate::DatagramBuilder::send_buffer_bytes).
    #[error("a message of {len} bytes is over the socket's limit of {limit} bytes")]
    TooLarge {
        /// Its length, bytes.
        len: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// The receiver takes no more for now, or the outbound queue is full: wait (`send` does) or drop the
    /// message.
    #[error(
        "there is no room: {queued} of at most {limit} packets wait here, and the receiver's queue (sysctl \
         net.unix.max_dgram_qlen), the send buffer or the outbound queue is full"
    )]
    Full {
        /// Packets that wait here for the same receiver, or for any.
        queued: usize,
        /// The bound of all that wait here. A receiver that is full takes none, however few wait.
        limit: usize,
    },
    /// Nobody receives there now; packets that had been accepted for it are lost. Somebody may receive
    /// there later: the next send tries.
    #[error("nobody receives at {}", place(.to))]
    Gone {
        /// Where to; `None`: the other end of a pair.
        to: Option<Address>,
    },
    /// The permissions of the socket, or a peer that it is connected to, forbid it (EACCES, EPERM).
    #[error("sending to {} is not permitted", place(.to))]
    Forbidden {
        /// Where to; `None`: the other end of a pair.
        to: Option<Address>,
    },
    /// The socket is not connected, and no receiver was named.
    #[error("the socket is not connected: name the receiver")]
    NotConnected,
    /// No packet can be sent to this address: it is empty, or longer than 107 bytes. A longer path can be
    /// connected to.
    #[error("packets can't be sent to an address of {length} bytes; it may have 1 to {limit}")]
    AddressLength {
        /// Its length, bytes.
        length: usize,
        /// The greatest length possible, bytes.
        limit: usize,
    },
    /// The runtime has ended.
    #[error("the runtime has ended")]
    RuntimeEnded,
    /// The kernel refused a packet for another reason; it is lost.
    #[error("the kernel refused: {}", io::Error::from_raw_os_error(*errno))]
    Kernel {
        /// The error number.
        errno: i32,
    },
}

/// Why a packet is no message, or no more packets come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramRecvError {
    /// A packet was longer than [`packet_bytes_max`](crate::DatagramBuilder::packet_bytes_max) and is lost.
    #[error(
        "a packet of {received} bytes from {} is over the limit of {limit} bytes",
        Sender(.sender)
    )]
    Truncated {
        /// Its length, bytes.
        received: usize,
        /// The limit, bytes.
        limit: usize,
        /// Who sent it, unless the sender's socket has no name.
        sender: Option<Address>,
    },
    /// A packet is no frame of the native profile.
    #[error("protocol error in a packet from {}: {source}", Sender(.sender))]
    Protocol {
        /// What is wrong.
        source: ProtocolError,
        /// Who sent it, unless the sender's socket has no name.
        sender: Option<Address>,
    },
    /// Receiving was shut down (`shutdown(2)` on a copy of the descriptor).
    #[error("receiving has been shut down")]
    ShutDown,
    /// The runtime has ended.
    #[error("the runtime has ended")]
    RuntimeEnded,
    /// The kernel refused to receive.
    #[error("the kernel refused: {}", io::Error::from_raw_os_error(*errno))]
    Kernel {
        /// The error number.
        errno: i32,
    },
}

impl DatagramRecvError {
    /// Whether nothing more will be received. Otherwise the error is about one packet, and the next call
    /// goes on behind it.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Truncated { .. } | Self::Protocol { .. })
    }
}

impl From<StreamError> for DatagramRecvError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::RuntimeEnded => Self::RuntimeEnded,
            StreamError::Kernel { errno } => Self::Kernel { errno },
            _ => Self::ShutDown,
        }
    }
}

impl From<StreamError> for DatagramSendError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Kernel { errno } => Self::Kernel { errno },
            _ => Self::RuntimeEnded,
        }
    }
}

fn place(to: &Option<Address>) -> String {
    to.as_ref().map_or_else(|| "the other end of the pair".into(), ToString::to_string)
}

struct Sender<'error>(&'error Option<Address>);

impl fmt::Display for Sender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("a socket without a name"),
        }
    }
}
