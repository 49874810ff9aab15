//! Passing sockets, and the ownership of their paths, from one process to another.
//!
//! Descriptors travel over a connected Unix-domain stream socket as `SCM_RIGHTS` (unix(7)). The receiver
//! gets descriptors of its own for the same open files, so a listening socket that both have never refuses
//! a connection, whichever of them ends first, and a `flock` is held until both have let go.
//!
//! This module moves the parts and keeps no order; the `ringpost` crate has the protocol that decides who
//! serves.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, FlockOperation};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::lock::Lock;
use crate::reason::words;

/// Descriptors that go with one [`send`] at most.
pub const DESCRIPTORS_PER_SEND_MAX: usize = 4;

/// What a [`PathGuard`](crate::PathGuard) consists of, on its way to another process.
///
/// All of it refers to what is open, not to names, so that it does not matter whether the two processes
/// have the same working directory or the same mounts.
#[derive(Debug)]
#[non_exhaustive]
pub struct GuardParts {
    /// The directory of the socket, opened with `O_PATH`.
    pub directory: OwnedFd,
    /// The socket in the file system, opened with `O_PATH`: it keeps the inode's number from being used
    /// again.
    pub socket_file: OwnedFd,
    /// The lock file, locked.
    pub lock: OwnedFd,
    /// The path of the directory as its user gave it, for messages.
    pub directory_path: PathBuf,
    /// The name of the socket in the directory.
    pub name: OsString,
}

impl GuardParts {
    /// Puts together what was received.
    pub fn new(
        [directory, socket_file, lock]: [OwnedFd; 3],
        directory_path: PathBuf,
        name: OsString,
    ) -> Self {
        Self { directory, socket_file, lock, directory_path, name }
    }

    /// Whether these are what a guard is made of, so that [`PathGuard::from_parts`] takes them. Changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// As [`PathGuard::from_parts`].
    ///
    /// [`PathGuard::from_parts`]: crate::PathGuard::from_parts
    pub fn check(&self) -> Result<(), HandoverError> {
        let fail = |what, errno: Errno| HandoverError::Parts {
            path: self.path(),
            what,
            source: errno.into(),
        };
        let parts = [
            ("directory", self.directory.as_fd(), FileType::Directory, Errno::NOTDIR),
            ("socket file", self.socket_file.as_fd(), FileType::Socket, Errno::NOTSOCK),
            ("lock", self.lock.as_fd(), FileType::RegularFile, Errno::INVAL),
        ];
        for (what, fd, expected, errno) in parts {
            let stat = rustix::fs::fstat(fd).map_err(|errno| fail(what, errno))?;
            if FileType::from_raw_mode(stat.st_mode) != expected {
                return Err(fail(what, errno));
            }
        }
        // Locking again what this very description has locked changes nothing.
        rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| fail("lock", errno))
    }

    /// Whether the lock is still the one beside the path. If not, the owner has given the path up, as one does that
    /// ends in order, and another server may have it.
    ///
    /// # Errors
    ///
    /// [`HandoverError::Parts`] if the directory can't be looked at.
    pub fn is_held(&self) -> Result<bool, HandoverError> {
        let (directory, lock) = (self.directory.as_fd(), self.lock.as_fd());
        Lock::is_held_through(directory, &self.name, lock).map_err(|errno| HandoverError::Parts {
            path: self.path(),
            what: "lock",
            source: errno.into(),
        })
    }

    /// The path of the socket, as its user gave it.
    pub fn path(&self) -> PathBuf {
        self.directory_path.join(&self.name)
    }

    /// The descriptors, in the order in which [`GuardParts::new`] takes them.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.directory.as_fd(), self.socket_file.as_fd(), self.lock.as_fd()]
    }
}

/// Sends `bytes`, and with the first of them `descriptors`. Never waits: returns how many bytes were taken,
/// and the caller sends the rest without descriptors.
///
/// # Errors
///
/// `WouldBlock` if nothing was taken for want of room; `Errno::TOOMANYREFS` (os error 109) if this user has
/// more descriptors on the way than `RLIMIT_NOFILE` allows: both pass as the receiver reads. `BrokenPipe` and
/// `ConnectionReset` if the receiver is gone. `InvalidInput` for more than [`DESCRIPTORS_PER_SEND_MAX`]
/// descriptors, or for descriptors without bytes, which the kernel would drop.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.len() > DESCRIPTORS_PER_SEND_MAX || bytes.is_empty() && !descriptors.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Receives into `bytes`; descriptors that come along are added to `descriptors`, close-on-exec. Never
/// waits. Zero bytes are the end of the stream.
///
/// # Errors
///
/// [`HandoverError::DescriptorsLost`] if descriptors came that could not be taken: this process has no free
/// ones, or more came at once than [`DESCRIPTORS_PER_SEND_MAX`]. What the bytes say about them can't be
/// trusted then. [`HandoverError::Receive`] has the kernel's answer otherwise, `WouldBlock` if nothing is
/// there.
pub fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<usize, HandoverError> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(HandoverError::Receive { source: errno.into() }),
            Ok(received) => break received,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(new) = message {
            descriptors.extend(new);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(HandoverError::DescriptorsLost);
    }
    Ok(received.bytes)
}

/// Room for the control data of one message.
const SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_PER_SEND_MAX));

/// Why parts could not be handed over.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// No descriptor could be made for the other process.
    #[error("cannot copy a descriptor for the other process: {}", words(.source))]
    Copy {
        /// The kernel's answer.
        source: io::Error,
    },
    /// What was received is not what the owner of a path holds.
    #[error("the {what} received for the socket {} cannot be used: {}", .path.display(), words(.source))]
    Parts {
        /// The path of the socket.
        path: PathBuf,
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Descriptors were sent and did not arrive.
    #[error("descriptors were lost on the way: this process has no free ones (ulimit -n)")]
    DescriptorsLost,
    /// The kernel refused to receive.
    #[error("cannot receive: {}", words(.source))]
    Receive {
        /// The kernel's answer.
        source: io::Error,
    },
}

impl HandoverError {
    /// Whether nothing is there yet.
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::Receive { source } if source.kind() == io::ErrorKind::WouldBlock)
    }
}

impl fmt::Display for GuardParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path().display())
    }
}
