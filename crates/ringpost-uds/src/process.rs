//! The process on the other side, held so that it can't be taken for another.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::credentials::peer_credentials;

/// The process on the other side of a connection, held by a pidfd.
///
/// A process number is used again when its process has ended; a pidfd is not (`pidfd_open(2)`). This
/// one comes from the socket itself (`SO_PEERPIDFD`, Linux 6.5): the kernel took it down when the
/// connection was made. It is never opened from a number, which by then may be somebody else's.
///
/// As with [`PeerCredentials`](crate::PeerCredentials), it is the process that connected, listened or
/// made the socket pair; the descriptor may have been handed to others since.
///
/// Dropping it closes the pidfd. It is close-on-exec.
#[derive(Debug)]
pub struct PeerProcess {
    pidfd: OwnedFd,
    pid: Option<u32>,
}

/// Asks the kernel for the process that made the other end of a connected Unix-domain socket.
///
/// # Errors
///
/// [`PeerProcessError::Unsupported`] before Linux 6.5, and in sandboxes that don't have the option;
/// for the others see [`PeerProcessError`].
pub fn peer_process(socket: impl AsFd) -> Result<PeerProcess, PeerProcessError> {
    let credentials = peer_credentials(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotConnected => PeerProcessError::NotConnected,
        _ => PeerProcessError::System(error),
    })?;
    let pidfd = getsockopt(&socket, sockopt::PeerPidfd).map_err(|errno| {
        let error = io::Error::from(errno);
        match Errno::from_io_error(&error) {
            Some(Errno::NOPROTOOPT | Errno::OPNOTSUPP | Errno::NOSYS) => {
                PeerProcessError::Unsupported
            }
            Some(Errno::NODATA | Errno::NOTCONN) => PeerProcessError::NotConnected,
            // Before Linux 6.16 a process that has been waited for has no pidfd any more.
            Some(Errno::SRCH | Errno::INVAL) => PeerProcessError::Ended,
            _ => PeerProcessError::System(error),
        }
    })?;
    Ok(PeerProcess { pidfd, pid: credentials.pid })
}

impl PeerProcess {
    /// The process number, for messages; `None` for a process outside our pid namespace. Whoever looks
    /// something up by it wants [`inspect`](Self::inspect).
    pub fn pid_for_logs(&self) -> Option<u32> {
        self.pid
    }

    /// Whether the process has not ended yet. Does not wait. One that has ended and was not waited for
    /// by its parent (a zombie) has ended.
    ///
    /// # Errors
    ///
    /// What `poll(2)` answers: the kernel is out of memory.
    pub fn is_alive(&self) -> io::Result<bool> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut polled, Some(&now)) {
                Ok(ready) => return Ok(ready == 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Looks something up in the directory that the process has in `/proc`, and makes sure that it was
    /// this process's: it gives the result of `look` only if the process is still alive afterwards,
    /// for as long as it lives nobody else has its number.
    ///
    /// That says nothing about what the process does next: it may execute another program or change
    /// its user right after.
    ///
    /// # Errors
    ///
    /// [`PeerProcessError::Ended`] if the process has ended, whatever `look` saw;
    /// [`PeerProcessError::Hidden`] if the `/proc` mounted here doesn't show it; else the error of
    /// `look`.
    pub fn inspect<T>(
        &self,
        look: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<T, PeerProcessError> {
        let seen = self.directory().and_then(|directory| Ok(look(&directory)?));
        if self.is_alive()? { seen } else { Err(PeerProcessError::Ended) }
    }

    /// The directory in the `/proc` that is mounted here. It may be that of another pid namespace, so
    /// the number is the one that `/proc` itself gives for the pidfd (proc_pid_fdinfo(5)).
    fn directory(&self) -> Result<PathBuf, PeerProcessError> {
        let path = format!("/proc/thread-self/fdinfo/{}", self.pidfd.as_raw_fd());
        let text = std::fs::read_to_string(path)?;
        let number = text.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
        match number.and_then(|number| number.parse::<i32>().ok()) {
            Some(number @ 1..) => Ok(PathBuf::from(format!("/proc/{number}"))),
            Some(0) => Err(PeerProcessError::Hidden),
            Some(_) => Err(PeerProcessError::Ended),
            None => Err(PeerProcessError::Unsupported),
        }
    }
}

impl AsFd for PeerProcess {
    /// The pidfd: readable once the process has ended; `pidfd_send_signal` and `waitid` take it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl From<PeerProcess> for OwnedFd {
    fn from(process: PeerProcess) -> Self {
        process.pidfd
    }
}

/// Why the process on the other side can't be held or looked at.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum PeerProcessError {
    /// The kernel, or the sandbox, has no SO_PEERPIDFD. Nothing else names the process safely.
    #[error(
        "the kernel does not tell the peer's process (SO_PEERPIDFD, Linux 6.5 and later); only its \
         number is known, which may be another process's by now"
    )]
    Unsupported,
    /// The process has ended.
    #[error("the peer's process has ended")]
    Ended,
    /// The `/proc` mounted here does not show the process: it is outside that pid namespace.
    #[error("the peer's process is outside the pid namespace of the /proc that is mounted here")]
    Hidden,
    /// The socket has no peer, or is no Unix-domain socket.
    #[error("the socket has no peer whose process the kernel would know")]
    NotConnected,
    /// The kernel's answer, or that of a look into `/proc`.
    #[error("cannot look at the peer's process: {0}")]
    System(#[from] io::Error),
}
