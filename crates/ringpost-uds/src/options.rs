//! What a caller chooses when binding.

use crate::address::Address;
use crate::bind_error::BindError;

/// How [`bind`](crate::bind()) makes a socket.
///
/// The defaults suit a service that only its own user talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindOptions {
    pub(crate) mode: u32,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) backlog: u32,
    pub(crate) kind: SocketKind,
    pub(crate) unsafe_directory: bool,
}

impl BindOptions {
    /// The backlog unless [`backlog`](Self::backlog) says otherwise.
    pub const BACKLOG_DEFAULT: u32 = 1024;

    /// The greatest backlog; larger values are taken as this one.
    pub const BACKLOG_MAX: u32 = 65_535;

    /// Mode 0600, owner and group of the process, stream, a backlog of 1024.
    pub fn new() -> Self {
        Self {
            mode: 0o600,
            uid: None,
            gid: None,
            backlog: Self::BACKLOG_DEFAULT,
            kind: SocketKind::Stream,
            unsafe_directory: false,
        }
    }

    /// The permission bits of the socket, exactly: the umask does not change them. Connecting takes
    /// write permission. The default is 0600. Abstract addresses have no mode.
    ///
    /// Let the server itself connect, too: to replace the socket of one that was killed, the next server asks
    /// whether anybody is behind it ([`BindError::Unprobed`] if it may not). Root may
    /// unless it lacks `CAP_DAC_OVERRIDE`; others take a mode with 0200, and a socket that stays their own.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Gives the socket to this user; only root may. The default is the process's own user.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Gives the socket to this group, of which the process must be a member unless it is root. The
    /// default is what the file system decides: the process's group, or the directory's if that is
    /// set-group-id.
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// User and group of the socket, each where it is given.
    pub fn owner(mut self, uid: Option<u32>, gid: Option<u32>) -> Self {
        self.uid = uid.or(self.uid);
        self.gid = gid.or(self.gid);
        self
    }

    /// How many connections may wait to be accepted before connecting fails with "backlog full", at
    /// least 1 and at most [`BACKLOG_MAX`](Self::BACKLOG_MAX). The kernel lowers it to the sysctl
    /// `net.core.somaxconn`, which is 4096 by default.
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog.clamp(1, Self::BACKLOG_MAX);
        self
    }

    /// The backlog asked for.
    pub fn backlog_len(&self) -> u32 {
        self.backlog
    }

    /// Stream, packets or datagrams; the default is stream.
    ///
    /// The kernel tells the receiver of a datagram the path that its sender was bound to, as it was given:
    /// for replies, bind an absolute path of at most 107 bytes. (Longer ones can be bound, and not replied
    /// to.)
    pub fn kind(mut self, kind: SocketKind) -> Self {
        self.kind = kind;
        self
    }

    /// Allows a directory in which anyone can rename and remove anyone's files (world-writable, not
    /// sticky). There, any local user can put a socket of their own in the place of this one and be
    /// taken for the server. Refused unless allowed here.
    pub fn allow_unsafe_directory(mut self, allow: bool) -> Self {
        self.unsafe_directory = allow;
        self
    }

    pub(crate) fn validate(&self, address: &Address) -> Result<(), BindError> {
        if self.mode > 0o777 {
            return Err(BindError::InvalidMode { address: address.clone(), mode: self.mode });
        }
        if self.uid == Some(u32::MAX) || self.gid == Some(u32::MAX) {
            return Err(BindError::InvalidOwner { address: address.clone() });
        }
        Ok(())
    }
}

impl Default for BindOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// The kind of a Unix-domain socket.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketKind {
    /// A stream of bytes (`SOCK_STREAM`).
    #[default]
    Stream,
    /// Packets whose boundaries the kernel keeps (`SOCK_SEQPACKET`).
    SeqPacket,
    /// Packets without a connection (`SOCK_DGRAM`).
    Datagram,
}

impl SocketKind {
    pub(crate) fn as_type(self) -> rustix::net::SocketType {
        match self {
            Self::Stream => rustix::net::SocketType::STREAM,
            Self::SeqPacket => rustix::net::SocketType::SEQPACKET,
            Self::Datagram => rustix::net::SocketType::DGRAM,
        }
    }

    /// Whether a server of this kind listens and accepts connections.
    pub fn listens(self) -> bool {
        self != Self::Datagram
    }
}
