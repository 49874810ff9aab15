//! Sockets that wake the epoll engine early, see [`early`](crate::early): an epoll set of their own inside the
//! engine's, because they are watched edge-triggered there and for bytes level-triggered.
//!
//! # Invariant
//!
//! * **L2** Whoever is watched receives: the watch ends with the receive, before its descriptor can be closed.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::event::epoll;
use rustix::io::Errno;

use crate::by_hand::borrow;

/// What the engine's set says of this one.
pub(crate) const TOLD: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Watches {
    set: OwnedFd,
    watched: Vec<RawFd>,
    /// What is told next is that there is room to begin with.
    begins: bool,
}

impl Watches {
    /// A set that is part of `outer`.
    pub(crate) fn new(outer: &OwnedFd) -> Result<Self, Errno> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(outer, set.as_fd(), epoll::EventData::new_u64(TOLD), events)?;
        Ok(Self { set, watched: Vec::new(), begins: false })
    }

    /// How many sockets are watched.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.watched.len()
    }

    pub(crate) fn has(&self, fd: RawFd) -> bool {
        self.watched.contains(&fd)
    }

    /// Has the socket watched.
    pub(crate) fn add(&mut self, fd: RawFd, system_calls: &mut u64) -> Result<(), Errno> {
        *system_calls += 1;
        let events = epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.set, borrow(fd), epoll::EventData::new_u64(0), events)?;
        self.watched.push(fd);
        self.begins = true;
        Ok(())
    }

    /// The engine's set has told of this one. True if a peer has read.
    pub(crate) fn told(&mut self) -> bool {
        !std::mem::take(&mut self.begins)
    }

    /// Its receive ends (L2).
    pub(crate) fn remove(&mut self, fd: RawFd, system_calls: &mut u64) {
        let Some(index) = self.watched.iter().position(|watched| *watched == fd) else { return };
        self.watched.swap_remove(index);
        *system_calls += 1;
        // It is there, and the descriptor is open (L2).
        let _ = epoll::delete(&self.set, borrow(fd));
    }

    pub(crate) fn remove_all(&mut self, system_calls: &mut u64) {
        while let Some(&fd) = self.watched.last() {
            self.remove(fd, system_calls);
        }
    }
}
