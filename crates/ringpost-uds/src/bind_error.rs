//! Why binding failed, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::address::{Address, AddressError};
use crate::reason::words;

/// Why [`bind`](crate::bind()) failed. Whatever the reason, nothing half-made is left behind.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No socket can have this address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Another server has the address, or is starting or stopping on it right now.
    #[error(
        "the address {address} is in use{}; stop that server or choose another address",
        by(.owner)
    )]
    AddressInUse {
        /// The address.
        address: Address,
        /// The process that says it holds the lock, if it is one that locks. For messages only: the
        /// number may be from another pid namespace, and of one that is dead if it has passed its lock to another
        /// process, such as a successor that has not taken over.
        owner: Option<u32>,
    },
    /// Something that is not a socket is at the path, and is left alone.
    #[error(
        "{} is {found}, not a socket, and is not replaced; remove it or choose another path",
        .path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: FileKind,
    },
    /// A socket is at the path, and the process may not find out whether a server lives behind it.
    #[error(
        "cannot tell whether the socket {} still has a server: {}; remove it if it does not",
        .path.display(), probe_words(.source)
    )]
    Unprobed {
        /// The path.
        path: PathBuf,
        /// What the attempt met.
        source: io::Error,
    },
    /// Anyone may rename and remove anyone's files in the directory.
    #[error(
        "the directory {} (mode {mode:04o}) lets every user replace the socket; use a private \
         directory, set the sticky bit (chmod +t), or allow it explicitly", .directory.display()
    )]
    UnsafeDirectory {
        /// The directory.
        directory: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The directory for the socket is missing.
    #[error(
        "the directory {} for the socket does not exist; create it first", .directory.display()
    )]
    DirectoryMissing {
        /// The directory.
        directory: PathBuf,
    },
    /// The lock file beside the socket is something that cannot serve as one.
    #[error(
        "{} is {found} and cannot serve as the lock file; remove it or choose another path",
        .path.display()
    )]
    LockUnusable {
        /// The path of the lock file.
        path: PathBuf,
        /// What is there.
        found: FileKind,
    },
    /// The lock file beside the socket belongs to another user, as whom an earlier server ran.
    #[error(
        "the lock file {} belongs to user {owner}, and this process may not open it; start as that \
         user, or make sure that their server has ended and remove the lock file and the socket",
        .path.display()
    )]
    LockForeign {
        /// The path of the lock file.
        path: PathBuf,
        /// Its owner, as numbered in this user namespace.
        owner: u32,
    },
    /// Names in the directory kept changing while the socket was being made.
    #[error(
        "{} was changed by someone else {attempts} times while it was being bound; find out who",
        .path.display()
    )]
    Unstable {
        /// The path that changed.
        path: PathBuf,
        /// How often that was tolerated.
        attempts: u32,
    },
    /// The mode has bits other than the nine permission bits.
    #[error(
        "for {address}: {mode:#o} is not a socket mode; give permission bits between 0 and 0o777"
    )]
    InvalidMode {
        /// The address.
        address: Address,
        /// The mode asked for.
        mode: u32,
    },
    /// The largest 32-bit number is not a user or group; the kernel takes it as "leave unchanged".
    #[error("for {address}: 4294967295 is not a user or group id")]
    InvalidOwner {
        /// The address.
        address: Address,
    },
    /// The kernel refused a step.
    #[error("cannot {step} {}: {}", .path.display(), words(.source))]
    System {
        /// What was being done.
        step: Step,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl BindError {
    /// Whether another server has the address.
    pub fn is_address_in_use(&self) -> bool {
        matches!(self, Self::AddressInUse { .. })
    }

    pub(crate) fn system(
        step: Step,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::System { step, path: path.into(), source: source.into() }
    }
}

/// The steps of binding at which the kernel can refuse.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Opening the directory of the socket.
    OpenDirectory,
    /// Opening or creating the lock file.
    OpenLock,
    /// Locking the lock file.
    Lock,
    /// Looking at what is at the path.
    Inspect,
    /// Making the socket.
    Socket,
    /// Binding the socket to its name.
    Bind,
    /// Giving the socket its owner and group.
    ChangeOwner,
    /// Giving the socket its mode.
    ChangeMode,
    /// Listening.
    Listen,
    /// Moving the socket to its final name.
    Rename,
    /// Removing a stale socket from the final path.
    RemoveStale,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenDirectory => "open the directory",
            Self::OpenLock => "open the lock file",
            Self::Lock => "lock",
            Self::Inspect => "inspect",
            Self::Socket => "make a socket for",
            Self::Bind => "bind a socket at",
            Self::ChangeOwner => "change the owner of",
            Self::ChangeMode => "change the mode of",
            Self::Listen => "listen on",
            Self::Rename => "move the socket to",
            Self::RemoveStale => "remove the stale socket",
        })
    }
}

/// What was found where a socket was expected.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A regular file with something in it that a lock file does not have.
    Foreign,
    /// A regular file that has other names too.
    HardLink,
    /// A directory.
    Directory,
    /// A symbolic link, whatever it points to.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
    /// A socket.
    Socket,
    /// Something else.
    Unknown,
}

impl FileKind {
    pub(crate) fn of(stat: &rustix::fs::Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Self::Regular,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::CharacterDevice | FileType::BlockDevice => Self::Device,
            FileType::Socket => Self::Socket,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Regular => "a regular file",
            Self::Foreign => "a file of another program",
            Self::HardLink => "a file with more than one name (hard links)",
            Self::Directory => "a directory",
            Self::Symlink => "a symbolic link",
            Self::Fifo => "a named pipe",
            Self::Device => "a device",
            Self::Socket => "a socket",
            Self::Unknown => "an object of unknown kind",
        })
    }
}

fn by(owner: &Option<u32>) -> String {
    owner.map_or_else(String::new, |pid| format!(" by process {pid}"))
}

/// Of a connect, which takes other permissions than what makes and removes files.
fn probe_words(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(code) if code == Errno::ACCESS.raw_os_error() => format!(
            "permission denied; that takes write permission on the socket, which its mode may deny even to \
             its own server, and execute permission on each directory on the way (errno {code})"
        ),
        _ => words(source),
    }
}
