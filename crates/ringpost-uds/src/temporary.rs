//! The name under which a socket exists until it is ready.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use crate::address::COMPONENT_BYTES_MAX;
use crate::bind_error::{BindError, FileKind, Step};
use crate::directory::{Directory, Pin, SHORTER_PATH, SHORTER_PATH_TO_LISTEN, explain_proc};
use crate::liveness::{Liveness, probe};
use crate::lock::Lock;

/// A socket bound to a temporary name, removed on drop unless it was moved to its final one.
#[derive(Debug)]
pub(crate) struct Temporary<'a> {
    directory: &'a Directory,
    name: OsString,
    /// `None` only between binding and pinning.
    pin: Option<Pin>,
    /// Whether the name is ours to remove.
    armed: bool,
}

impl<'a> Temporary<'a> {
    /// Binds `socket` to a fresh name beside `name`.
    pub(crate) fn bind(
        socket: &OwnedFd,
        directory: &'a Directory,
        name: &OsStr,
        lock: &Lock,
    ) -> Result<Self, BindError> {
        let path = directory.join(name);
        for _ in 0..ATTEMPTS_MAX {
            let (temporary, address) = choose(directory, name);
            // The record lets the next owner clean up if this process is killed before the rename;
            // a full disk must not be the reason to go without a socket.
            if let Err(error) = lock.record(Some(&temporary)) {
                tracing::debug!(path = %path.display(), %error, "cannot write the lock file");
            }
            match rustix::net::bind(socket, &address) {
                Ok(()) => {
                    let path = directory.join(&temporary);
                    let bound =
                        Self { directory, name: temporary, pin: None, armed: true }.pinned();
                    if matches!(bound, Err(BindError::Unstable { .. })) {
                        remove_elsewhere(&path);
                    }
                    return bound;
                }
                Err(Errno::ADDRINUSE) => {}
                Err(errno) => {
                    return Err(BindError::system(
                        Step::Bind,
                        path,
                        explain_proc(errno, SHORTER_PATH_TO_LISTEN),
                    ));
                }
            }
        }
        Err(BindError::Unstable { path, attempts: ATTEMPTS_MAX })
    }

    /// Binds `socket` to this very name; `None` if the name is taken.
    pub(crate) fn bind_to(
        socket: &OwnedFd,
        directory: &'a Directory,
        name: &OsStr,
    ) -> Result<Option<Self>, BindError> {
        let path = directory.join(name);
        let address = directory.socket_address(name).ok_or_else(|| {
            let text = "its path has more than 107 bytes (unix(7)), and its name alone is too long to be bound \
                        through its directory; use a shorter one";
            let source = io::Error::new(io::ErrorKind::InvalidInput, text);
            BindError::system(Step::Bind, &path, source)
        })?;
        // The name is not random: what lies there afterwards could be anybody's, and would be left.
        match directory.is_at_path() {
            Ok(true) => {}
            Ok(false) => return Err(BindError::Unstable { path, attempts: 1 }),
            Err(errno) => return Err(BindError::system(Step::OpenDirectory, path, errno)),
        }
        match rustix::net::bind(socket, &address) {
            Ok(()) => {
                let bound = Self { directory, name: name.to_owned(), pin: None, armed: true };
                bound.pinned().map(Some)
            }
            Err(Errno::ADDRINUSE) => Ok(None),
            Err(errno) => {
                Err(BindError::system(Step::Bind, path, explain_proc(errno, SHORTER_PATH)))
            }
        }
    }

    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    pub(crate) fn pin(&self) -> &Pin {
        self.pin.as_ref().expect("pinned by bind and until moved")
    }

    /// The socket now has its final name; hands out the handle on it.
    pub(crate) fn moved(mut self) -> Pin {
        self.armed = false;
        self.pin.take().expect("pinned by bind")
    }

    fn pinned(mut self) -> Result<Self, BindError> {
        match self.directory.pin(&self.name) {
            Ok(Some(pin)) if FileKind::of(pin.stat()) == FileKind::Socket => {
                self.pin = Some(pin);
                Ok(self)
            }
            Ok(_) => {
                self.armed = false;
                Err(BindError::Unstable { path: self.directory.join(&self.name), attempts: 1 })
            }
            Err(errno) => {
                Err(BindError::system(Step::Inspect, self.directory.join(&self.name), errno))
            }
        }
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let removed = match &self.pin {
            Some(pin) => self.directory.unlink_if(&self.name, pin).map(|_| ()),
            None => self.directory.unlink(&self.name),
        };
        if let Err(errno) = removed {
            let path = self.directory.join(&self.name);
            tracing::warn!(path = %path.display(), %errno, "cannot remove a temporary socket");
        }
    }
}

/// Removes a socket that is not in the directory it was meant for: a link in the path may lead elsewhere since
/// that was opened, and bind(2) has followed it. Nobody else has a random name.
fn remove_elsewhere(path: &Path) {
    let is_socket =
        rustix::fs::lstat(path).is_ok_and(|stat| FileKind::of(&stat) == FileKind::Socket);
    if is_socket && let Err(errno) = rustix::fs::unlink(path) {
        tracing::warn!(path = %path.display(), %errno, "cannot remove a temporary socket");
    }
}

/// Removes the temporary socket that a killed owner left behind, if its lock file names one.
///
/// The lock file is data from outside: only a name of the form that [`choose`] makes, and only a
/// socket with nobody behind it, is removed.
pub(crate) fn recover(directory: &Directory, name: &OsStr, lock: &Lock) {
    let Some(temporary) = lock.recorded_temporary() else {
        return;
    };
    if !is_temporary(name, &temporary) {
        return;
    }
    let Ok(Some(pin)) = directory.pin(&temporary) else {
        return;
    };
    let path = directory.join(&temporary);
    if FileKind::of(pin.stat()) == FileKind::Socket
        && matches!(probe(&pin, &path), Ok(Liveness::Dead))
        && matches!(directory.unlink_if(&temporary, &pin), Ok(true))
    {
        tracing::info!(path = %path.display(), "removed the socket of a killed process");
    }
}

/// A random name and its socket address: recognisable where that is short enough, for `ss` shows it as long as
/// the server lives; else as short as possible; through `/proc` only where nothing else fits.
fn choose(directory: &Directory, name: &OsStr) -> (OsString, SocketAddrUnix) {
    let suffix: String = (0..SUFFIX_BYTES).map(|_| fastrand::alphanumeric()).collect();
    let mut recognisable = name.to_owned();
    recognisable.push(".");
    recognisable.push(&suffix);
    let short = OsString::from(format!("{PREFIX}{suffix}"));
    let recognised = recognisable.len() <= COMPONENT_BYTES_MAX;
    if recognised && let Some(address) = directory.direct_address(&recognisable) {
        return (recognisable, address);
    }
    if let Some(address) = directory.direct_address(&short) {
        return (short, address);
    }
    if recognised && let Some(address) = directory.socket_address(&recognisable) {
        return (recognisable, address);
    }
    let address = directory.socket_address(&short);
    (short, address.expect("at most 31 bytes of directory and 18 of name"))
}

fn is_temporary(name: &OsStr, candidate: &OsStr) -> bool {
    let candidate = candidate.as_bytes();
    let suffix = match candidate.strip_prefix(PREFIX.as_bytes()) {
        Some(suffix) => Some(suffix),
        None => candidate.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b".")),
    };
    suffix.is_some_and(|suffix| {
        suffix.len() == SUFFIX_BYTES && suffix.iter().all(u8::is_ascii_alphanumeric)
    })
}

const PREFIX: &str = ".ringpost.";
const SUFFIX_BYTES: usize = 8;

/// Each repetition takes a collision among 62^8 names.
const ATTEMPTS_MAX: u32 = 8;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn a_link_that_leads_elsewhere_in_the_middle_leaves_nothing_there() {
        use rustix::net::{AddressFamily, SocketType};
        use std::os::unix::fs::symlink;
        for kind in [SocketType::STREAM, SocketType::DGRAM] {
            let temporary = tempfile::tempdir().expect("directory");
            let at = |name: &str| temporary.path().join(name);
            for name in ["first", "second"] {
                std::fs::create_dir(at(name)).expect("make");
            }
            symlink("first", at("link")).expect("link");
            let path = at("link/app.sock");
            let (directory, name) = Directory::of(&path).expect("open");
            let lock = Lock::acquire(&directory, name).expect("free");
            std::fs::remove_file(at("link")).expect("remove");
            symlink("second", at("link")).expect("link");

            let socket = rustix::net::socket(AddressFamily::UNIX, kind, None).expect("a socket");
            let error = if kind == SocketType::DGRAM {
                Temporary::bind_to(&socket, &directory, name).expect_err("bound somewhere else")
            } else {
                let bound = Temporary::bind(&socket, &directory, name, &lock);
                bound.expect_err("bound somewhere else")
            };
            assert!(matches!(error, BindError::Unstable { .. }), "{error}");
            let left = std::fs::read_dir(at("second")).expect("read").count();
            assert_eq!(left, 0, "{kind:?}: a socket is left");
        }
    }

    #[test]
    fn proc_is_needed_only_where_nothing_else_fits() {
        for name_bytes in [1, 5, 9, 20, 35] {
            for path_bytes in [40, 98, 99, 107, 108, 120] {
                let fd = rustix::fs::open("/", OFlags::PATH, Mode::empty()).expect("the root");
                let directory_bytes: usize = path_bytes - 1 - name_bytes;
                let path = PathBuf::from(format!("/{}", "d".repeat(directory_bytes - 1)));
                let directory = Directory::from_descriptor(fd, path);
                let name = OsString::from("n".repeat(name_bytes));
                let (chosen, address) = choose(&directory, &name);
                let direct =
                    address.path().is_some_and(|path| !path.to_bytes().starts_with(b"/proc"));
                // A slash and 9 bytes more than the name, or 18 in its place.
                let fits = directory_bytes + 1 + (name_bytes + 9).min(18) <= 107;
                assert_eq!(direct, fits, "{chosen:?} in {directory_bytes} bytes");
                assert!(is_temporary(&name, &chosen), "{chosen:?}");
            }
        }
    }

    #[test]
    fn recognises_its_own_names_only() {
        let temporary = tempfile::tempdir().expect("directory");
        for name in ["a", "app.sock", &"n".repeat(250)] {
            let path = temporary.path().join(name);
            let (directory, name) = Directory::of(&path).expect("open");
            let (chosen, _) = choose(&directory, name);
            assert!(is_temporary(name, &chosen), "{chosen:?}");
        }
        let check = |name: &str, candidate: &str| {
            assert!(!is_temporary(OsStr::new(name), OsStr::new(candidate)), "{candidate:?}");
        };
        check("a", "a");
        check("a", "a.lock");
        check("a", "b.12345678");
        check("a", "a.1234567");
        check("a", "a.123456789");
        check("a", "a.1234/678");
        check("a", "/etc/a.12345678");
        check("a", ".ringpost.");
        check("a", ".ringpost...345678");
    }
}
