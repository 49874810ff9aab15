//! Waking a parked reactor from other threads.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ringpost_sync::{Doorbell, Mailbox};
use rustix::event::{EventfdFlags, eventfd};

use crate::memory::ForkMark;

/// An eventfd whose every write is an event for the reactor that watches it edge-triggered. It is
/// never read: the counter would take 2^64 - 2 wake-ups to fill (eventfd(2)).
pub struct Bell {
    fd: Option<OwnedFd>,
}

impl Bell {
    fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: Some(fd) })
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        if let Some(fd) = &self.fd {
            // The only error an open eventfd can give here is EAGAIN at a full counter, and a full
            // counter has already woken its reader.
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

/// Work that another thread hands to a reactor's thread.
pub type Parcel = Box<dyn FnOnce() + Send>;

/// The mailbox of a reactor: work from other threads, and the word that says whether the reactor
/// must be woken for it.
pub struct Inbox {
    mailbox: Mailbox<Parcel, Bell>,
    fork: ForkMark,
}

impl Inbox {
    pub(crate) fn new(capacity: usize, fork: ForkMark) -> std::io::Result<Self> {
        Ok(Self { mailbox: Mailbox::new(capacity, Bell::new()?), fork })
    }

    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self { mailbox: Mailbox::new(2, Bell { fd: None }), fork: ForkMark::none() }
    }

    /// The queue of work.
    pub fn mailbox(&self) -> &Mailbox<Parcel, Bell> {
        &self.mailbox
    }

    /// Wakes the reactor if it is parked. In a forked child nobody is: the bell would be the parent's.
    pub fn notify(&self) {
        if !self.is_in_child() {
            self.mailbox.notify();
        }
    }

    /// True in a forked child of the process of the reactor: nobody there takes work.
    #[inline]
    pub fn is_in_child(&self) -> bool {
        self.fork.is_child()
    }

    pub(crate) fn bell_fd(&self) -> RawFd {
        self.mailbox.doorbell().fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}
