//! Who is on the other side of a socket.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

/// The process on the other side of a connection, as the kernel knew it when the connection was made.
///
/// It is the process that called `connect` or `listen` (or `socketpair`), not whoever holds the
/// descriptor now, and it may have ended since: the number in `pid` may by then belong to another
/// process, so it is good for messages and not for decisions. User and group are those it acted with
/// (the effective ones); they are what [`AccessPolicy`](crate::AccessPolicy) decides on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerCredentials {
    /// The process, unless it is outside our pid namespace, as in another container.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: u32,
    /// Its primary group. SO_PEERCRED does not tell the supplementary ones.
    pub gid: u32,
}

impl PeerCredentials {
    /// Credentials made up by the caller, for tests and for peers known by other means.
    pub fn new(pid: Option<u32>, uid: u32, gid: u32) -> Self {
        Self { pid, uid, gid }
    }

    /// Whether the user is the kernel's stand-in for "has no number in this user namespace" (65534
    /// unless the sysctl `kernel.overflowuid` says otherwise): the peer is not authenticated. A real
    /// user with that number, usually `nobody`, cannot be told apart from it.
    pub fn is_overflow(&self) -> bool {
        self.uid == overflow_uid()
    }
}

impl fmt::Display for PeerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => f.write_str("a process outside this pid namespace")?,
        }
        write!(f, " (uid {}, gid {})", self.uid, self.gid)
    }
}

/// Asks the kernel who made the other end of a connected Unix-domain socket.
///
/// # Errors
///
/// `NotConnected` if the socket has no peer, and whatever `getsockopt` answers.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let credentials =
        nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)?;
    // Without a peer the kernel answers with process 0 and ids of -1.
    if credentials.uid() == u32::MAX {
        return Err(io::ErrorKind::NotConnected.into());
    }
    let pid = u32::try_from(credentials.pid()).ok().filter(|&pid| pid != 0);
    Ok(PeerCredentials { pid, uid: credentials.uid(), gid: credentials.gid() })
}

pub(crate) fn overflow_uid() -> u32 {
    static UID: OnceLock<u32> = OnceLock::new();
    *UID.get_or_init(|| sysctl("/proc/sys/kernel/overflowuid"))
}

pub(crate) fn overflow_gid() -> u32 {
    static GID: OnceLock<u32> = OnceLock::new();
    *GID.get_or_init(|| sysctl("/proc/sys/kernel/overflowgid"))
}

fn sysctl(path: &str) -> u32 {
    std::fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(OVERFLOW_DEFAULT)
}

/// The kernel's default for both.
const OVERFLOW_DEFAULT: u32 = 65_534;
