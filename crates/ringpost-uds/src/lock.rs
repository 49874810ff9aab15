//! The lock file beside a socket, which makes starting and stopping exclusive.
//!
//! Holding the lock means: having an exclusive `flock` on the very file that is at `<path>.lock` now.
//! The second half matters. A file descriptor opened before a removal and locked after it locks a
//! file that nobody else will ever see, so after locking, the descriptor's identity is compared with
//! the name's, and the attempt is repeated if they differ. Only who holds the lock removes the file,
//! and nobody queues for it: a refused `flock` is an answer, which a bind may ask for again.
//!
//! Others have files of such names too. Only a file that holds our record or the beginning of one and nothing
//! else, and that has no other name, is written to or removed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::address::{Address, AddressError};
use crate::bind_error::{BindError, FileKind, Step};
use crate::directory::{Directory, Pin};

/// The lock of one socket path.
///
/// Dropping it only closes it. [`remove`](Self::remove) is the orderly end; a lock file left behind
/// by a killed process is taken over by the next.
#[derive(Debug)]
pub(crate) struct Lock {
    name: OsString,
    file: Pin,
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Lock {
    /// Takes the lock of the socket `name`, or says who has it.
    pub(crate) fn acquire(directory: &Directory, name: &OsStr) -> Result<Self, BindError> {
        let lock_name = lock_name(directory, name)?;
        let path = directory.join(&lock_name);
        for _ in 0..ATTEMPTS_MAX {
            let Some((fd, is_new)) = open(directory, &lock_name, &path)? else {
                continue;
            };
            let file =
                Pin::new(fd).map_err(|errno| BindError::system(Step::OpenLock, &path, errno))?;
            let found = FileKind::of(file.stat());
            if found != FileKind::Regular {
                return Err(BindError::LockUnusable { path, found });
            }
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(BindError::AddressInUse {
                        address: Address::Path(directory.join(name)),
                        owner: Record::read(&file).pid,
                    });
                }
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    // Most likely there are no locks here. Somebody who has this one all the same writes to it.
                    let empty = rustix::fs::fstat(&file).is_ok_and(|stat| stat.st_size == 0);
                    if is_new
                        && empty
                        && let Err(errno) = directory.unlink_if(&lock_name, &file)
                    {
                        tracing::warn!(path = %path.display(), %errno, "cannot remove the lock file");
                    }
                    return Err(BindError::system(Step::Lock, path, errno));
                }
            }
            let lock = Self { name: lock_name.clone(), file };
            match lock.is_held(directory) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(errno) => return Err(BindError::system(Step::Lock, path, errno)),
            }
            // Now that nobody else writes to it.
            return match lock.of_others() {
                Ok(None) => Ok(lock),
                Ok(Some(found)) => Err(BindError::LockUnusable { path, found }),
                Err(errno) => Err(BindError::system(Step::OpenLock, path, errno)),
            };
        }
        Err(BindError::Unstable { path, attempts: ATTEMPTS_MAX })
    }

    /// Takes part in the lock that another process holds, through its descriptor: a `flock` belongs to
    /// the open file description (flock(2)), which both processes then share. It lasts until both have
    /// closed it.
    pub(crate) fn share(name: &OsStr, fd: OwnedFd) -> Result<Self, Errno> {
        Ok(Self { name: with_suffix(name), file: Pin::new(fd)? })
    }

    /// Notes this process and the temporary name it is about to use, for those who find the file.
    pub(crate) fn record(&self, temporary: Option<&OsStr>) -> io::Result<()> {
        let record =
            Record { pid: Some(std::process::id()), temporary: temporary.map(OsStr::to_owned) };
        record.write(&self.file)
    }

    /// The temporary name that a killed owner was using, if it noted one.
    pub(crate) fn recorded_temporary(&self) -> Option<OsString> {
        Record::read(&self.file).temporary
    }

    /// Whether a former owner left its record, which one that ends properly takes along.
    pub(crate) fn has_record(&self) -> bool {
        Record::read(&self.file).pid.is_some()
    }

    /// What the file is instead, if it is not one that we have made and may change.
    fn of_others(&self) -> Result<Option<FileKind>, Errno> {
        // In a sticky directory anyone can link somebody else's file to the name of the lock.
        if rustix::fs::fstat(&self.file)?.st_nlink > 1 {
            return Ok(Some(FileKind::HardLink));
        }
        // One more shows that a file is too long.
        let mut bytes = [0; RECORD_BYTES_MAX + 1];
        let length = rustix::io::pread(&self.file, &mut bytes, 0)?;
        let name = self.name.as_bytes();
        let socket = name.strip_suffix(SUFFIX.as_bytes()).unwrap_or(name);
        let ours = Record::can_leave(&bytes[..length], socket);
        Ok(if ours { None } else { Some(FileKind::Foreign) })
    }

    /// Whether the locked file is still the one at the lock's name.
    pub(crate) fn is_held(&self, directory: &Directory) -> Result<bool, Errno> {
        Ok(directory.stat(&self.name)?.is_some_and(|stat| self.file.is(&stat)))
    }

    /// The same of a lock that another process holds, through its descriptor and that of the directory.
    pub(crate) fn is_held_through(
        directory: BorrowedFd<'_>,
        name: &OsStr,
        fd: BorrowedFd<'_>,
    ) -> Result<bool, Errno> {
        let locked = rustix::fs::fstat(fd)?;
        match rustix::fs::statat(directory, with_suffix(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok((stat.st_dev, stat.st_ino) == (locked.st_dev, locked.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Removes the lock file, unless it is no longer ours, and lets go of the lock.
    pub(crate) fn remove(self, directory: &Directory) -> Result<bool, Errno> {
        directory.unlink_if(&self.name, &self.file)
    }
}

/// What a lock file says. Nobody relies on it: the lock is the `flock`, and this is the story.
#[derive(Debug, Default, PartialEq, Eq)]
struct Record {
    pid: Option<u32>,
    temporary: Option<OsString>,
}

impl Record {
    fn read(file: impl AsFd) -> Self {
        let mut bytes = [0; RECORD_BYTES_MAX];
        let length = rustix::io::pread(file, &mut bytes, 0).unwrap_or(0);
        Self::parse(&bytes[..length])
    }

    /// Whether a file of these bytes can be one of ours: [`write`](Self::write) for this socket, cut anywhere
    /// by a crash or a full disk.
    fn can_leave(bytes: &[u8], socket: &[u8]) -> bool {
        if bytes.len() > RECORD_BYTES_MAX {
            return false;
        }
        let Some(rest) = bytes.strip_prefix(PID) else { return PID.starts_with(bytes) };
        let mut parts = rest.splitn(2, |&byte| byte == b'\n');
        let pid = parts.next().unwrap_or_default();
        let written = str::from_utf8(pid).ok().and_then(|pid| pid.parse::<u32>().ok());
        let is_number = written.is_some_and(|number| number.to_string().as_bytes() == pid);
        let Some(rest) = parts.next() else { return is_number || pid.is_empty() };
        let Some(name) = rest.strip_prefix(TEMPORARY) else {
            return is_number && TEMPORARY.starts_with(rest);
        };
        // Only the name of the socket, with which most temporary ones begin, may have ends of lines in it.
        let cut = socket.starts_with(name);
        let name = name.strip_prefix(socket).unwrap_or(name);
        let name = name.strip_suffix(b"\n").unwrap_or(name);
        let is_name = !name.is_empty() && !name.iter().any(|byte| b"/\n\0".contains(byte));
        is_number && (cut || is_name)
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut record = Self::default();
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let Some(line) = line.strip_suffix(b"\n") else {
                continue;
            };
            if let Some(pid) = line.strip_prefix(PID) {
                record.pid = str::from_utf8(pid).ok().and_then(|pid| pid.parse().ok());
            } else if let Some(name) = line.strip_prefix(TEMPORARY) {
                record.temporary = Some(OsString::from_vec(name.to_vec()));
            }
        }
        record
    }

    fn write(&self, file: impl AsFd) -> io::Result<()> {
        let mut bytes = Vec::new();
        if let Some(pid) = self.pid {
            bytes.extend_from_slice(PID);
            bytes.extend_from_slice(format!("{pid}\n").as_bytes());
        }
        if let Some(temporary) = &self.temporary {
            bytes.extend_from_slice(TEMPORARY);
            bytes.extend_from_slice(temporary.as_bytes());
            bytes.push(b'\n');
        }
        rustix::fs::ftruncate(&file, 0)?;
        let written = rustix::io::pwrite(&file, &bytes, 0)?;
        if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

fn lock_name(directory: &Directory, name: &OsStr) -> Result<OsString, BindError> {
    if name.len() > Address::NAME_BYTES_MAX {
        return Err(BindError::Address(AddressError::NameTooLong {
            path: directory.join(name),
            length: name.len(),
            limit: Address::NAME_BYTES_MAX,
        }));
    }
    Ok(with_suffix(name))
}

/// The name of the lock file of the socket `name`.
fn with_suffix(name: &OsStr) -> OsString {
    let mut lock_name = name.to_owned();
    lock_name.push(SUFFIX);
    lock_name
}

/// Opens or creates the lock file, and says whether it is new; `None` if it vanished in between.
///
/// Never follows a link, never waits for the other end of a named pipe. An existing file is opened
/// without `O_CREAT`, which sticky directories refuse for other users' files (fs.protected_regular).
fn open(
    directory: &Directory,
    name: &OsStr,
    path: &Path,
) -> Result<Option<(OwnedFd, bool)>, BindError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(fd) => return Ok(Some((fd, false))),
        Err(Errno::NOENT) => {}
        Err(Errno::LOOP) => {
            return Err(BindError::LockUnusable { path: path.into(), found: FileKind::Symlink });
        }
        Err(Errno::ISDIR) => {
            return Err(BindError::LockUnusable { path: path.into(), found: FileKind::Directory });
        }
        Err(Errno::NXIO) => {
            return Err(BindError::LockUnusable { path: path.into(), found: FileKind::Socket });
        }
        Err(Errno::INTR) => return Ok(None),
        Err(errno) => {
            // Left by a server that was killed, and that ran as somebody else.
            if errno == Errno::ACCESS
                && let Ok(Some(stat)) = directory.stat(name)
                && stat.st_uid != rustix::process::geteuid().as_raw()
            {
                return Err(BindError::LockForeign { path: path.into(), owner: stat.st_uid });
            }
            return Err(BindError::system(Step::OpenLock, path, errno));
        }
    }
    let create = flags | OFlags::CREATE | OFlags::EXCL;
    match rustix::fs::openat(directory, name, create, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(Some((fd, true))),
        Err(Errno::EXIST | Errno::INTR) => Ok(None),
        Err(errno) => Err(BindError::system(Step::OpenLock, path, errno)),
    }
}

/// How the lines of a record begin.
const PID: &[u8] = b"pid ";
const TEMPORARY: &[u8] = b"temporary ";

/// What the lock file's name adds to the socket's.
const SUFFIX: &str = ".lock";

/// Each repetition takes another process that starts or stops on the same path at the same moment.
const ATTEMPTS_MAX: u32 = 64;

/// Two lines: a number, and a file name of at most 255 bytes.
const RECORD_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_survives_what_it_finds() {
        let check = |text: &str, pid: Option<u32>, temporary: Option<&str>| {
            let expected = Record { pid, temporary: temporary.map(OsString::from) };
            assert_eq!(Record::parse(text.as_bytes()), expected, "{text:?}");
        };
        check("", None, None);
        check("pid 17\n", Some(17), None);
        check("pid 17\ntemporary a b\n", Some(17), Some("a b"));
        check("pid x\ntemporary \n", None, Some(""));
        check("pid 17", None, None);
        check("garbage\n\n\0\npid 4294967296\n", None, None);
    }

    #[test]
    fn only_what_a_record_leaves_is_ours() {
        for socket in ["app.sock", "a\nb", "x\n"] {
            let temporary = Some(OsString::from(format!("{socket}.abcd1234")));
            for record in [
                Record { pid: Some(1), temporary: None },
                Record { pid: Some(u32::MAX), temporary: Some("y".repeat(255).into()) },
                Record { pid: Some(4_194_304), temporary },
            ] {
                let file = tempfile::tempfile().expect("a file");
                record.write(&file).expect("room");
                let mut bytes = [0; RECORD_BYTES_MAX];
                let length = rustix::io::pread(&file, &mut bytes, 0).expect("read");
                for cut in 0..=length {
                    let text = bytes[..cut].escape_ascii();
                    assert!(Record::can_leave(&bytes[..cut], socket.as_bytes()), "{text}");
                }
            }
        }
        let long = format!("pid 1\ntemporary {}", "y".repeat(RECORD_BYTES_MAX));
        for foreign in [
            "\0",
            "pidfile",
            "pid x",
            "pid \n",
            "pid  1\n",
            "pid +1\n",
            "pid 01\n",
            "pid 4294967296\n",
            "pid 4711 host foo\n",
            "pid 1\n\n",
            "pid 1\npid 2\n",
            "pid 1\nhost foo\n",
            "pid 1\0",
            "temporary",
            "temporary a\n",
            "temporary a\npid 1\n",
            "pid 1\ntemporary \n",
            "pid 1\ntemporary /\n",
            "pid 1\ntemporary ../a",
            "pid 1\ntemporary a\0\n",
            "pid 1\ntemporary a\nb",
            "pid 1\ntemporary a\n\n",
            "pid 1\ntemporary app.sock.abcd1234\nb\n",
            "pid 1\ntemporary app.sock\nb\n",
            &long,
        ] {
            assert!(!Record::can_leave(foreign.as_bytes(), b"app.sock"), "{foreign:?}");
        }
    }

    #[test]
    fn a_removed_lock_is_not_held() {
        let temporary = tempfile::tempdir().expect("directory");
        let path = temporary.path().join("a");
        let (directory, name) = Directory::of(&path).expect("open");
        let lock = Lock::acquire(&directory, name).expect("free");
        assert!(lock.is_held(&directory).expect("stat"));
        std::fs::remove_file(temporary.path().join("a.lock")).expect("remove");
        assert!(!lock.is_held(&directory).expect("stat"));

        let second = Lock::acquire(&directory, name).expect("a new file, a new lock");
        assert!(!lock.is_held(&directory).expect("stat"));
        assert!(!lock.remove(&directory).expect("no error"), "must not remove the second lock");
        assert!(second.is_held(&directory).expect("stat"));
        assert!(second.remove(&directory).expect("remove"));
    }
}
