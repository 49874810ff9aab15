//! The polls that wake this engine early, see [`early`](crate::early).
//!
//! ```text
//!   Absent  -> Watched  the owner parks, few receives, and it pays
//!   Watched -> Leaving  its receive has ended or is cancelled, too many receives, or it does not pay
//!           -> Absent   the ring has ended the poll by itself
//!   Leaving -> Absent   there was room for its cancel
//! ```
//!
//! # Invariant
//!
//! * **L1** A poll is cancelled no later than the receive of its socket: in the same submission, or in the first one
//!   with room after the receive has ended. It holds the socket and not its descriptor, so that only the socket's
//!   end waits for it.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::engine::Token;

/// Names of polls: no slot of the op table has such an index.
const NAMES: u64 = 1 << 31;
const NAMES_MASK: u64 = 0xfff_ffff;

/// True for what the ring says of a poll.
#[inline]
pub(crate) fn is_watch(user_data: u64) -> bool {
    user_data >> 31 == 1
}

#[derive(Debug)]
struct Watched {
    receive: Token,
    name: u64,
}

#[derive(Debug, Default)]
pub(super) struct Watches {
    watched: Vec<Watched>,
    /// Names of polls that are to be cancelled.
    leaving: Vec<u64>,
    /// Polls so far.
    named: u64,
}

impl Watches {
    /// How many receives are watched.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.watched.len()
    }

    pub(super) fn has(&self, receive: Token) -> bool {
        self.watched.iter().any(|watched| watched.receive == receive)
    }

    /// The entry that has a socket watched, to be followed by [`Watches::add`] if the queue has taken it.
    pub(super) fn entry(&self, fd: RawFd) -> Entry {
        let events = (libc::EPOLLOUT | libc::EPOLLET).cast_unsigned();
        let poll = opcode::PollAdd::new(types::Fd(fd), events).multi(true).build();
        poll.user_data(self.next_name())
    }

    pub(super) fn add(&mut self, receive: Token) {
        self.watched.push(Watched { receive, name: self.next_name() });
        self.named += 1;
    }

    /// Not used again soon: an end of the last use may still be on its way.
    fn next_name(&self) -> u64 {
        NAMES | self.named & NAMES_MASK
    }

    /// The receive has ended, or is about to (L1).
    pub(super) fn leave(&mut self, receive: Token) {
        if let Some(index) = self.watched.iter().position(|watched| watched.receive == receive) {
            self.leaving.push(self.watched.swap_remove(index).name);
        }
    }

    pub(super) fn leave_all(&mut self) {
        self.leaving.extend(self.watched.drain(..).map(|watched| watched.name));
    }

    #[inline]
    pub(super) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Offers the cancels that are due until one finds no room.
    pub(super) fn cancel(&mut self, mut push: impl FnMut(u64) -> bool) {
        while let Some(name) = self.leaving.pop() {
            if !push(name) {
                self.leaving.push(name);
                return;
            }
        }
    }

    /// The ring has ended a poll.
    pub(super) fn ended(&mut self, name: u64) {
        self.watched.retain(|watched| watched.name != name);
    }

    /// The receives that are watched.
    #[cfg(feature = "sim")]
    pub(super) fn receives(&self) -> impl Iterator<Item = Token> {
        self.watched.iter().map(|watched| watched.receive)
    }

    /// Whether this poll will be cancelled.
    #[cfg(feature = "sim")]
    pub(super) fn knows(&self, name: u64) -> bool {
        self.leaving.contains(&name) || self.watched.iter().any(|watched| watched.name == name)
    }
}
