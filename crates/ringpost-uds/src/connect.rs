//! Connecting to a socket: one attempt, and a reason in words if it fails.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags};

use crate::address::{Address, AddressError};
use crate::bind_error::FileKind;
use crate::directory::{Pin, SHORTER_PATH, explain_proc, socket_address};
use crate::options::SocketKind;
use crate::reason::words;

/// Connects a stream socket to `address`. The socket is non-blocking and close-on-exec.
///
/// Never waits: a server whose backlog is full is an error, for which
/// [`ConnectError::is_backlog_full`] is true, and the caller tries again a little later, a bounded
/// number of times. (Polling the socket for this would be no use; the kernel does not queue it.)
///
/// # Errors
///
/// See [`ConnectErrorKind`].
pub fn connect(address: &Address) -> Result<OwnedFd, ConnectError> {
    connect_kind(address, SocketKind::Stream)
}

/// Like [`connect()`], with a socket of the given kind.
///
/// # Errors
///
/// See [`ConnectErrorKind`].
pub fn connect_kind(address: &Address, kind: SocketKind) -> Result<OwnedFd, ConnectError> {
    reach(address, |encoded| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind.as_type(), flags, None)?;
        rustix::net::connect(&socket, encoded)?;
        Ok(socket)
    })
}

/// Connects an existing socket, for example a datagram socket that is bound already. One that is connected
/// is connected anew.
///
/// # Errors
///
/// See [`ConnectErrorKind`].
pub fn connect_socket(socket: impl AsFd, address: &Address) -> Result<(), ConnectError> {
    reach(address, |encoded| Ok(rustix::net::connect(&socket, encoded)?))
}

/// Calls `dial` with the address in the kernel's form.
fn reach<T>(
    address: &Address,
    dial: impl Fn(&SocketAddrUnix) -> Result<T, Failure>,
) -> Result<T, ConnectError> {
    let fail = |kind, source| ConnectError { address: address.clone(), kind, source };
    address.validate().map_err(|error| {
        let kind = match error {
            AddressError::PathTooLong { .. }
            | AddressError::NameTooLong { .. }
            | AddressError::DirectoryNameTooLong { .. }
            | AddressError::AbstractTooLong { .. } => ConnectErrorKind::PathTooLong,
            _ => ConnectErrorKind::InvalidAddress,
        };
        fail(kind, io::Error::new(io::ErrorKind::InvalidInput, error))
    })?;
    let result = match address {
        Address::Path(path) => connect_path(path, dial),
        Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name)
            .map_err(Failure::from)
            .and_then(|encoded| dial(&encoded))
            .map_err(|failure| match failure.kind {
                // The kernel says so, where a path would be missing.
                ConnectErrorKind::Refused => Failure { kind: ConnectErrorKind::Missing, ..failure },
                _ => failure,
            }),
    };
    result.map_err(|Failure { kind, source }| fail(kind, source))
}

/// Why a connection could not be made. Its text names the address and the reason.
#[derive(Debug)]
pub struct ConnectError {
    address: Address,
    kind: ConnectErrorKind,
    source: io::Error,
}

impl ConnectError {
    /// That nothing was tried (ECANCELED), because whoever would use the connection has ended.
    pub fn not_tried(address: Address) -> Self {
        let errno = Errno::CANCELED.raw_os_error();
        let source = io::Error::from_raw_os_error(errno);
        Self { address, kind: ConnectErrorKind::Other(errno), source }
    }

    /// What went wrong, to match on.
    pub fn kind(&self) -> ConnectErrorKind {
        self.kind
    }

    /// The address that was to be reached.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the server is there but has as many waiting connections as it allows. The caller
    /// tries again on a timer, a bounded number of times.
    pub fn is_backlog_full(&self) -> bool {
        self.kind == ConnectErrorKind::BacklogFull
    }

    /// Whether there is no server now, and there may be one later: it has not started yet, or is
    /// starting again.
    pub fn is_no_server(&self) -> bool {
        matches!(self.kind, ConnectErrorKind::Missing | ConnectErrorKind::Refused)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot connect to {}: ", self.address)?;
        match self.kind {
            ConnectErrorKind::Missing if self.address.as_path().is_none() => {
                f.write_str(
                    "no server with sockets of this kind (stream, packets or datagrams) has this abstract \
                     name in this network namespace",
                )
            }
            ConnectErrorKind::Missing => {
                f.write_str("there is no such path; is the server running, and is this its path?")
            }
            ConnectErrorKind::Refused => {
                f.write_str("no server listens there any more; start it again")
            }
            ConnectErrorKind::MountedSocket => f.write_str(
                "the socket itself is mounted there, and its server has ended; a server that starts \
                 again makes a new socket, so mount the directory of the socket instead",
            ),
            ConnectErrorKind::Forbidden
                if self.source.raw_os_error() == Some(Errno::PERM.raw_os_error()) =>
            {
                f.write_str(
                    "not permitted: a socket for datagrams that is connected takes them from its own \
                     peer alone; else a security module refuses",
                )
            }
            ConnectErrorKind::Forbidden => f.write_str(
                "permission denied; connecting takes write permission on the socket and execute \
                 permission on every directory on the way",
            ),
            ConnectErrorKind::NotASocket { found } => {
                write!(f, "it is {found}, not a socket")
            }
            ConnectErrorKind::WrongKind => {
                f.write_str("the server's socket is of another kind (stream, packets or datagrams)")
            }
            ConnectErrorKind::BacklogFull => f.write_str(
                "the server is there but does not accept fast enough, its backlog is full; try \
                 again in a moment, or give the server a larger backlog",
            ),
            ConnectErrorKind::InvalidAddress | ConnectErrorKind::PathTooLong => {
                write!(f, "{}", self.source)
            }
            ConnectErrorKind::NoDescriptor | ConnectErrorKind::Other(_) => {
                f.write_str(&words(&self.source))
            }
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What went wrong with a connection.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectErrorKind {
    /// Nothing is at the path, or nobody has the abstract name.
    Missing,
    /// A socket is at the path, and nobody listens on it.
    Refused,
    /// The same, and it can't change: this very socket is mounted there, as into a container, so a
    /// new one that a server makes will not be seen. (Told from Linux 5.8 on; before, it is
    /// [`Refused`](Self::Refused).)
    MountedSocket,
    /// The permission bits, or a security module, say no.
    Forbidden,
    /// Something else is at the path.
    NotASocket {
        /// What is there.
        found: FileKind,
    },
    /// The server's socket is not of the kind asked for. Of an abstract name it is
    /// [`Missing`](Self::Missing), because each kind has names of its own.
    WrongKind,
    /// The path, a component of it or the abstract name is too long; the text has limit and length.
    PathTooLong,
    /// As many connections as the server allows wait to be accepted.
    BacklogFull,
    /// No socket can have this address.
    InvalidAddress,
    /// The process, or the system, has no free file descriptor.
    NoDescriptor,
    /// The kernel's answer, which has no name here.
    Other(i32),
}

#[derive(Debug)]
struct Failure {
    kind: ConnectErrorKind,
    source: io::Error,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOENT | Errno::NOTDIR => ConnectErrorKind::Missing,
            Errno::CONNREFUSED => ConnectErrorKind::Refused,
            Errno::ACCESS | Errno::PERM => ConnectErrorKind::Forbidden,
            Errno::PROTOTYPE => ConnectErrorKind::WrongKind,
            Errno::AGAIN => ConnectErrorKind::BacklogFull,
            Errno::NAMETOOLONG => ConnectErrorKind::PathTooLong,
            Errno::MFILE | Errno::NFILE => ConnectErrorKind::NoDescriptor,
            other => ConnectErrorKind::Other(other.raw_os_error()),
        };
        Self { kind, source: errno.into() }
    }
}

fn connect_path<T>(
    path: &Path,
    dial: impl Fn(&SocketAddrUnix) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let failure = match socket_address(path) {
        Some(encoded) => match dial(&encoded) {
            Ok(connected) => return Ok(connected),
            Err(failure) => failure,
        },
        None => return connect_through(path, dial),
    };
    // The kernel says "refused" for a file that is no socket, too.
    if failure.kind == ConnectErrorKind::Refused
        && let Ok(pin) = pin(path)
    {
        not_a_socket(&pin)?;
        return Err(explain_refusal(failure, &pin));
    }
    Err(failure)
}

/// Connects to a path that does not fit into a socket address, through a handle on the socket.
fn connect_through<T>(
    path: &Path,
    dial: impl Fn(&SocketAddrUnix) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let pin = pin(path)?;
    not_a_socket(&pin)?;
    let encoded = socket_address(&pin.path()).ok_or(Errno::NAMETOOLONG)?;
    dial(&encoded).map_err(|failure| match failure.kind {
        ConnectErrorKind::Missing => {
            let source = explain_proc(Errno::NOENT, SHORTER_PATH);
            let kind = match source.raw_os_error() {
                Some(_) => ConnectErrorKind::Missing,
                None => ConnectErrorKind::Other(Errno::NOENT.raw_os_error()),
            };
            Failure { kind, source }
        }
        _ => explain_refusal(failure, &pin),
    })
}

/// Tells a socket that is mounted by itself (`STATX_ATTR_MOUNT_ROOT`, statx(2)) from one whose place a
/// new one can take.
fn explain_refusal(failure: Failure, socket: &Pin) -> Failure {
    let mounted = || {
        let stat = rustix::fs::statx(socket, "", AtFlags::EMPTY_PATH, StatxFlags::empty());
        stat.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    };
    match failure.kind {
        ConnectErrorKind::Refused if mounted() => {
            Failure { kind: ConnectErrorKind::MountedSocket, ..failure }
        }
        _ => failure,
    }
}

/// Follows symbolic links, as connecting does.
fn pin(path: &Path) -> Result<Pin, Errno> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Pin::new(fd)
}

fn not_a_socket(pin: &Pin) -> Result<(), Failure> {
    let found = FileKind::of(pin.stat());
    if found == FileKind::Socket {
        return Ok(());
    }
    Err(Failure { kind: ConnectErrorKind::NotASocket { found }, source: Errno::NOTSOCK.into() })
}
