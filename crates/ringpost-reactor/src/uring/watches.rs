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
//!   end waits for it. (One that is still in the queue when its receive ends may meet another file under the
//!   descriptor's number; its cancel follows it there.)

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::engine::Token;

/// In the place of a slot, names of polls have this; the op table has no such slot.
const NAMES: u64 = 1 << 31;
const SLOT_MASK: u64 = u32::MAX as u64;

/// True for what the ring says of a poll.
#[inline]
pub(crate) fn is_watch(user_data: u64) -> bool {
    user_data & SLOT_MASK == NAMES
}

#[derive(Debug)]
struct Watched {
    receive: Token,
    name: u64,
    /// What is told first is that there is room to begin with.
    begun: bool,
}

#[derive(Debug, Default)]
pub(super) struct Watches {
    watched: Vec<Watched>,
    /// Names of polls that are to be cancelled.
    leaving: Vec<u64>,
    /// In the name of the next poll.
    next: u32,
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
        self.watched.push(Watched { receive, name: self.next_name(), begun: false });
        // Not used again soon, because an end of the last use may still be on its way, and not while it is in use.
        self.next = self.next.wrapping_add(1);
        while self.knows(self.next_name()) {
            self.next = self.next.wrapping_add(1);
        }
    }

    fn next_name(&self) -> u64 {
        u64::from(self.next) << 32 | NAMES
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

    /// There is room in a socket. True if its peer has read.
    pub(super) fn told(&mut self, name: u64) -> bool {
        let watched = self.watched.iter_mut().find(|watched| watched.name == name);
        watched.is_some_and(|watched| std::mem::replace(&mut watched.begun, true))
    }

    /// The ring has ended a poll. True if it did so by itself.
    pub(super) fn ended(&mut self, name: u64) -> bool {
        let before = self.watched.len();
        self.watched.retain(|watched| watched.name != name);
        self.watched.len() < before
    }

    /// The receives that are watched.
    #[cfg(feature = "sim")]
    pub(super) fn receives(&self) -> impl Iterator<Item = Token> {
        self.watched.iter().map(|watched| watched.receive)
    }

    /// Whether this poll is watched or will be cancelled.
    pub(super) fn knows(&self, name: u64) -> bool {
        self.leaving.contains(&name) || self.watched.iter().any(|watched| watched.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_use_is_not_given_again() {
        let mut watches = Watches::default();
        let first = watches.next_name();
        watches.add(Token::new(0, 0));
        watches.next = u32::MAX;
        let last = watches.next_name();
        watches.add(Token::new(1, 0));
        let next = watches.next_name();
        assert!(is_watch(first) && is_watch(last) && is_watch(next));
        assert!(next != first && next != last);
    }

    #[test]
    fn only_what_is_told_later_says_that_the_peer_has_read() {
        let mut watches = Watches::default();
        let name = watches.next_name();
        watches.add(Token::new(0, 0));
        assert!(!watches.told(name));
        assert!(watches.told(name));
        assert!(watches.ended(name));
        assert!(!watches.told(name) && !watches.ended(name));
    }
}
