//! Removal of the socket path when the server ends.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::directory::{Directory, Pin};
use crate::handover::{GuardParts, HandoverError};
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

    /// What another process needs to own the path after this one, as descriptors of its own. `None` for
    /// an abstract address, which nobody has to own.
    ///
    /// Nothing changes yet: this guard goes on to own the path until [`release`](Self::release), and the
    /// other process owns it from [`from_parts`](Self::from_parts) on. In between, and if either is
    /// killed, the lock holds as long as one of them lives.
    ///
    /// # Errors
    ///
    /// If no descriptor is free.
    pub fn parts(&self) -> Result<Option<GuardParts>, HandoverError> {
        let Some(held) = &self.held else { return Ok(None) };
        let copy = |fd: std::os::fd::BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|source| HandoverError::Copy { source })
        };
        Ok(Some(GuardParts {
            directory: copy(held.directory.as_fd())?,
            socket_file: copy(held.pin.as_fd())?,
            lock: copy(held.lock.as_fd())?,
            directory_path: held.directory.path().to_path_buf(),
            name: held.name.clone(),
        }))
    }

    /// Owns the path from now on, in the place of the process that the parts come from. That one
    /// [releases](Self::release) its guard, or has ended.
    ///
    /// # Errors
    ///
    /// If the parts are not what a guard is made of, or somebody else has the lock.
    pub fn from_parts(parts: GuardParts) -> Result<Self, HandoverError> {
        parts.check()?;
        let path = parts.directory_path.join(&parts.name);
        let fail = |what| {
            let path = path.clone();
            move |errno: Errno| HandoverError::Parts { path, what, source: errno.into() }
        };
        let directory = Directory::from_descriptor(parts.directory, parts.directory_path);
        let pin = Pin::new(parts.socket_file).map_err(fail("socket file"))?;
        let lock = Lock::share(&parts.name, parts.lock).map_err(fail("lock"))?;
        if let Err(error) = lock.record(None) {
            tracing::debug!(path = %path.display(), %error, "cannot write the lock file");
        }
        Ok(Self::new(directory, parts.name, pin, lock))
    }

    /// Lets go of the path without removing anything: another process owns it now.
    pub fn release(mut self) {
        // Closing our descriptors leaves the lock with whoever shares it.
        self.held = None;
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

#[cfg(test)]
mod tests {
    use crate::{Address, BindOptions, bind};

    #[test]
    fn a_forked_child_removes_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a");
        let bound = bind(&Address::from(path.as_path()), &BindOptions::default()).expect("free");
        let (socket, mut guard) = bound.into_parts();
        // What a child of fork(2) has: everything as it is here, and another number.
        guard.held.as_mut().expect("there is a path").process += 1;
        drop((guard, socket));
        assert!(path.exists(), "the parent's socket is gone");
    }
}
