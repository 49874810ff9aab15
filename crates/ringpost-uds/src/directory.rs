//! The directory of a socket, held open, so that every step works on the same one.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use crate::address::split;
use crate::bind_error::{BindError, Step};

/// A directory opened with `O_PATH`, and the path the user gave for it, for messages.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory of `path`; the second value is the last component.
    pub(crate) fn of(path: &Path) -> Result<(Self, &OsStr), BindError> {
        let (directory, name) = split(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(&directory, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(BindError::DirectoryMissing { directory }),
            Err(errno) => return Err(BindError::system(Step::OpenDirectory, directory, errno)),
        };
        Ok((Self { fd, path: directory }, OsStr::from_bytes(name)))
    }

    /// The directory that `fd` is, known as `path`.
    pub(crate) fn from_descriptor(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// The path the user gave.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a directory in which anyone may rename and remove anyone's files.
    pub(crate) fn check_sticky(&self) -> Result<(), BindError> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|errno| BindError::system(Step::OpenDirectory, &self.path, errno))?;
        let mode = stat.st_mode & 0o7777;
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return Err(BindError::UnsafeDirectory { directory: self.path.clone(), mode });
        }
        Ok(())
    }

    /// The path of a name in this directory, for messages.
    pub(crate) fn join(&self, name: &OsStr) -> PathBuf {
        if self.path == Path::new(".") { PathBuf::from(name) } else { self.path.join(name) }
    }

    /// What is at `name`, itself, not what a symbolic link there points to.
    pub(crate) fn stat(&self, name: &OsStr) -> Result<Option<Stat>, Errno> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// A handle on what is at `name`: whatever happens to the name, the handle stays with the
    /// object, and as long as it is open no other object gets the same inode number.
    pub(crate) fn pin(&self, name: &OsStr) -> Result<Option<Pin>, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Pin::new(fd).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub(crate) fn unlink(&self, name: &OsStr) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())
    }

    /// Removes `name` if it is the pinned object; says whether it was.
    ///
    /// Between the look and the removal somebody who does not respect the lock could put something
    /// else there; the kernel has no call that closes this gap.
    pub(crate) fn unlink_if(&self, name: &OsStr, pin: &Pin) -> Result<bool, Errno> {
        match self.stat(name)? {
            Some(stat) if pin.is(&stat) => self.unlink(name).map(|()| true),
            _ => Ok(false),
        }
    }

    /// The socket address of `name`: through the user's path where that fits, because tools such as
    /// `ss` show it, else through the open directory. `None` if neither fits.
    pub(crate) fn socket_address(&self, name: &OsStr) -> Option<SocketAddrUnix> {
        self.direct_address(name).or_else(|| socket_address(&through(&self.fd).join(name)))
    }

    /// The socket address of `name` through the user's path, which takes no `/proc`. `None` if it does not fit.
    pub(crate) fn direct_address(&self, name: &OsStr) -> Option<SocketAddrUnix> {
        socket_address(&self.join(name))
    }

    /// Whether the user's path leads to this directory now. A link on the way may have changed.
    pub(crate) fn is_at_path(&self) -> Result<bool, Errno> {
        let (here, there) = (rustix::fs::fstat(&self.fd)?, rustix::fs::stat(&self.path)?);
        Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A handle on an object of the file system, opened with `O_PATH`.
#[derive(Debug)]
pub(crate) struct Pin {
    fd: OwnedFd,
    stat: Stat,
}

impl Pin {
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Self { fd, stat })
    }

    /// The state at the time of pinning.
    pub(crate) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Whether `stat` is of the same object.
    pub(crate) fn is(&self, stat: &Stat) -> bool {
        (self.stat.st_dev, self.stat.st_ino) == (stat.st_dev, stat.st_ino)
    }

    /// A path that leads to exactly this object as long as the handle is open.
    pub(crate) fn path(&self) -> PathBuf {
        through(&self.fd)
    }

    /// The current permission bits.
    pub(crate) fn mode(&self) -> Result<u32, Errno> {
        rustix::fs::fstat(&self.fd).map(|stat| stat.st_mode & 0o7777)
    }

    pub(crate) fn change_owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        let uid = uid.map(rustix::fs::Uid::from_raw);
        let gid = gid.map(rustix::fs::Gid::from_raw);
        rustix::fs::chownat(&self.fd, "", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// Changes the mode of exactly this object; `fchmod` refuses `O_PATH` descriptors.
    pub(crate) fn change_mode(&self, mode: u32) -> Result<(), Errno> {
        rustix::fs::chmod(self.path(), Mode::from_raw_mode(mode))
    }
}

impl AsFd for Pin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The socket address of a path, if it fits into one.
pub(crate) fn socket_address(path: &Path) -> Option<SocketAddrUnix> {
    if path.as_os_str().len() > PATH_BYTES_DIRECT_MAX {
        return None;
    }
    SocketAddrUnix::new(path).ok()
}

/// Adds what is missing where `/proc` is not mounted, or is that of another pid namespace, to an error
/// met on a path through it; `remedy` is what else would help.
pub(crate) fn explain_proc(errno: Errno, remedy: &str) -> io::Error {
    if errno == Errno::NOENT && !Path::new("/proc/thread-self/fd").exists() {
        let text = format!("this takes a /proc that shows this process; mount it, or {remedy}");
        return io::Error::new(io::ErrorKind::Unsupported, text);
    }
    errno.into()
}

/// What makes up for `/proc` where a path is too long for a socket address.
pub(crate) const SHORTER_PATH: &str = "use a path of at most 107 bytes";
/// The same where a temporary name of 9 bytes more must fit.
pub(crate) const SHORTER_PATH_TO_LISTEN: &str = "use a path of at most 98 bytes";

/// Of this thread, because `/proc/self` is the initial one of the process: that may have ended, or have other
/// descriptors (proc_thread-self(5), Linux 3.17).
fn through(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
}

/// What `sockaddr_un` holds beside the terminating NUL.
const PATH_BYTES_DIRECT_MAX: usize = 107;
