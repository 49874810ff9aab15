//! Whether a socket in the file system still has a process behind it.

use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::directory::{Pin, SHORTER_PATH, explain_proc, socket_address};

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// A socket is bound there, whether or not it listens or accepts.
    Alive,
    /// Nothing is bound there any more; the name is a leftover.
    Dead,
}

/// Asks the kernel whether a socket is bound to the pinned object.
///
/// Connects with a datagram socket, which a listener never gets to see: the kernel first looks for
/// the bound socket (none: ECONNREFUSED) and then compares the types (EPROTOTYPE). So a living server
/// has no empty connection to accept, a full backlog does not matter, and neither does the moment
/// between somebody's `bind` and `listen`.
pub(crate) fn probe(pin: &Pin, path: &Path) -> io::Result<Liveness> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let through = socket_address(&pin.path()).ok_or(Errno::NAMETOOLONG)?;
    let mut result = rustix::net::connect(&socket, &through);
    if result == Err(Errno::NOENT)
        && let Some(direct) = socket_address(path)
    {
        result = rustix::net::connect(&socket, &direct);
    }
    match result {
        Err(Errno::CONNREFUSED) => Ok(Liveness::Dead),
        // EPERM: a datagram socket that is connected to somebody else.
        Ok(()) | Err(Errno::PROTOTYPE | Errno::PERM | Errno::AGAIN) => Ok(Liveness::Alive),
        Err(errno) => Err(explain_proc(errno, SHORTER_PATH)),
    }
}
