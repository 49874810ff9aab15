//! What a descriptor from outside is, and taking it over as a socket of ours.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::bind_error::FileKind;
use crate::options::SocketKind;

/// What a descriptor is, as far as sockets go. In text: "a listening Unix-domain stream socket".
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// A socket.
    Socket {
        /// Its address family.
        domain: SocketDomain,
        /// Stream, packets or datagrams; `None` for anything else, such as a raw socket.
        kind: Option<SocketKind>,
        /// What it is ready for.
        state: SocketState,
    },
    /// Something else.
    NotASocket {
        /// What it is.
        found: FileKind,
    },
}

impl Descriptor {
    /// Asks the kernel (`SO_DOMAIN`, `SO_TYPE`, `SO_ACCEPTCONN` and `getpeername`).
    ///
    /// # Errors
    ///
    /// What the kernel answers, beside "not a socket" and "not connected".
    pub fn of(descriptor: impl AsFd) -> io::Result<Self> {
        let descriptor = descriptor.as_fd();
        let domain = match sockopt::socket_domain(descriptor) {
            Ok(domain) => SocketDomain::of(domain),
            Err(Errno::NOTSOCK) => {
                let found = FileKind::of(&rustix::fs::fstat(descriptor)?);
                return Ok(Self::NotASocket { found });
            }
            Err(errno) => return Err(errno.into()),
        };
        let kind = match sockopt::socket_type(descriptor)? {
            SocketType::STREAM => Some(SocketKind::Stream),
            SocketType::SEQPACKET => Some(SocketKind::SeqPacket),
            SocketType::DGRAM => Some(SocketKind::Datagram),
            _ => None,
        };
        let state = if sockopt::socket_acceptconn(descriptor)? {
            SocketState::Listening
        } else {
            match rustix::net::getpeername(descriptor) {
                Ok(_) => SocketState::Connected,
                Err(Errno::NOTCONN | Errno::INVAL | Errno::OPNOTSUPP) => SocketState::Unconnected,
                Err(errno) => return Err(errno.into()),
            }
        };
        Ok(Self::Socket { domain, kind, state })
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket { domain, kind, state } => {
                let kind = match kind {
                    Some(SocketKind::Stream) => "stream",
                    Some(SocketKind::SeqPacket) => "packet",
                    Some(SocketKind::Datagram) => "datagram",
                    None => "other",
                };
                write!(f, "{state} {domain} {kind} socket")
            }
            Self::NotASocket { found } => write!(f, "{found}"),
        }
    }
}

/// The address family of a socket.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketDomain {
    /// `AF_UNIX`.
    Unix,
    /// `AF_INET`.
    Ipv4,
    /// `AF_INET6`.
    Ipv6,
    /// Another one, by its number.
    Other(u16),
}

impl SocketDomain {
    fn of(family: AddressFamily) -> Self {
        match family {
            AddressFamily::UNIX => Self::Unix,
            AddressFamily::INET => Self::Ipv4,
            AddressFamily::INET6 => Self::Ipv6,
            other => Self::Other(other.as_raw()),
        }
    }
}

impl fmt::Display for SocketDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("Unix-domain"),
            Self::Ipv4 => f.write_str("IPv4"),
            Self::Ipv6 => f.write_str("IPv6"),
            Self::Other(number) => write!(f, "family-{number}"),
        }
    }
}

/// What a socket is ready for.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// It listens.
    Listening,
    /// It has a peer, or had one: the end of a Unix-domain stream stays connected when its peer is gone.
    Connected,
    /// Neither.
    Unconnected,
}

impl fmt::Display for SocketState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listening => "a listening",
            Self::Connected => "a connected",
            Self::Unconnected => "an unconnected",
        })
    }
}

/// Takes over a descriptor as a listening Unix-domain socket of this kind, however it came here:
/// inherited, received, or made by other code. It is made non-blocking and close-on-exec.
///
/// Non-blocking is a property of the socket, not of the descriptor (fcntl(2), "file status flags"): it
/// changes for everyone who holds the same socket. Nothing else does, and no path is ever removed for
/// an adopted socket.
///
/// # Errors
///
/// [`AdoptError`] says what it is instead and gives it back, untouched. A kind that never listens,
/// [`SocketKind::Datagram`], is always an error; see [`adopt_datagram`].
pub fn adopt_listener(socket: OwnedFd, kind: SocketKind) -> Result<OwnedFd, AdoptError> {
    adopt(socket, kind, SocketState::Listening)
}

/// As [`adopt_listener`], for a connected socket.
///
/// # Errors
///
/// As [`adopt_listener`].
pub fn adopt_connection(socket: OwnedFd, kind: SocketKind) -> Result<OwnedFd, AdoptError> {
    adopt(socket, kind, SocketState::Connected)
}

/// As [`adopt_listener`], for a datagram socket: bound or not, connected or not.
///
/// # Errors
///
/// As [`adopt_listener`].
pub fn adopt_datagram(socket: OwnedFd) -> Result<OwnedFd, AdoptError> {
    let connected = matches!(
        Descriptor::of(&socket),
        Ok(Descriptor::Socket { state: SocketState::Connected, .. })
    );
    let state = if connected { SocketState::Connected } else { SocketState::Unconnected };
    adopt(socket, SocketKind::Datagram, state)
}

fn adopt(socket: OwnedFd, kind: SocketKind, state: SocketState) -> Result<OwnedFd, AdoptError> {
    let wanted = Descriptor::Socket { domain: SocketDomain::Unix, kind: Some(kind), state };
    let reason = match Descriptor::of(&socket) {
        Ok(found) if found == wanted => match set_flags(&socket) {
            Ok(()) => return Ok(socket),
            Err(errno) => Reason::Kernel(errno.into()),
        },
        Ok(found) => Reason::Unfit(found),
        Err(error) => Reason::Kernel(error),
    };
    Err(AdoptError { wanted, reason, socket })
}

fn set_flags(socket: &OwnedFd) -> Result<(), Errno> {
    rustix::io::fcntl_setfd(socket, rustix::io::fcntl_getfd(socket)? | FdFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(socket, rustix::fs::fcntl_getfl(socket)? | OFlags::NONBLOCK)
}

/// A descriptor that is not what it was to be adopted as. The text says what it is.
#[derive(Debug)]
pub struct AdoptError {
    wanted: Descriptor,
    reason: Reason,
    socket: OwnedFd,
}

#[derive(Debug)]
enum Reason {
    Unfit(Descriptor),
    Kernel(io::Error),
}

impl AdoptError {
    /// What was asked for.
    pub fn wanted(&self) -> Descriptor {
        self.wanted
    }

    /// What it is; `None` if the kernel didn't tell.
    pub fn found(&self) -> Option<Descriptor> {
        match self.reason {
            Reason::Unfit(found) => Some(found),
            Reason::Kernel(_) => None,
        }
    }

    /// The descriptor, back.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Unfit(found) => {
                write!(f, "the descriptor is {found}; this takes {}", self.wanted)
            }
            Reason::Kernel(error) => {
                write!(f, "cannot take over the descriptor as {}: {error}", self.wanted)
            }
        }
    }
}

impl std::error::Error for AdoptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::Unfit(_) => None,
            Reason::Kernel(error) => Some(error),
        }
    }
}
