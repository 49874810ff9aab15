//! Removal of the socket path when the server ends.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::directory::{Directory, Pin};
use crate::lock::Lock;

/// Owns the path of a bound socket: dropping it removes the path and its lock file.
///
/// It removes only what is still its own. If somebody has put another file at the path, or removed
/// the lock file, by which others may start, the path is left alone. A child made by `fork` that drops
/// its copy removes nothing. A process that is killed removes nothing either; the next
/// [`bind`](crate::bind()) replaces what it left.
///
/// The guard of an abstract address does nothing: the kernel frees those names.
#[derive(Debug)]
#[must_use = "dropping the guard removes the socket's path"]
pub struct PathGuard {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    directory: Directory,
    name: OsString,
    /// Keeps the inode, so that its number cannot come back as somebody else's.
    pin: Pin,
    lock: Lock,
    process: u32,
}

impl PathGuard {
    pub(crate) fn new(directory: Directory, name: OsString, pin: Pin, lock: Lock) -> Self {
        let process = std::process::id();
        Self { held: Some(Held { directory, name, pin, lock, process }) }
    }

    pub(crate) fn nothing() -> Self {
        Self { held: None }
    }

    /// Whether the path still leads to this socket. False for an abstract address.
    ///
    /// A server can ask now and then: cleaners of temporary directories remove sockets too.
    pub fn is_in_place(&self) -> bool {
        self.held.as_ref().is_some_and(
            |held| matches!(held.directory.stat(&held.name), Ok(Some(stat)) if held.pin.is(&stat)),
        )
    }
}

impl Drop for PathGuard {
    fn drop(&mut self) {
        if let Some(held) = self.held.take()
            && held.process == std::process::id()
        {
            held.remove();
        }
    }
}

impl Held {
    fn remove(self) {
        let path: PathBuf = self.directory.join(&self.name);
        match self.lock.is_held(&self.directory) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(path = %path.display(), "left the socket: its lock file is gone");
                return;
            }
            Err(errno) => {
                tracing::warn!(path = %path.display(), %errno, "left the socket: no lock");
                return;
            }
        }
        match self.directory.unlink_if(&self.name, &self.pin) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(path = %path.display(), "left the path: the socket is gone from it");
            }
            Err(errno) => {
                tracing::warn!(path = %path.display(), %errno, "cannot remove the socket");
            }
        }
        if let Err(errno) = self.lock.remove(&self.directory) {
            tracing::warn!(path = %path.display(), %errno, "cannot remove the lock file");
        }
    }
}
