//! Serving few connections by hand while spinning.
//!
//! A receive that the ring completes costs a wake-up callback, task work and a completion; a spinning
//! thread needs none of them. With one connection, a round trip through the ring takes half as long
//! again as one of recv(2) and send(2) (ARCHITECTURE.md, measured decisions). So while the owner spins
//! and there are few receives, they are not armed in the ring but tried by hand, and so are sends.
//!
//! ```text
//!   push  -> Held    spinning, room here
//!         -> Armed   otherwise
//!   Armed -> Leaving a cancel is under way, because the owner spins now
//!   Leaving -> Held  the cancel has ended the receive in the ring
//!   Held  -> Armed   the owner parks, or too many receives
//! ```
//!
//! # Invariant
//!
//! * **D1** A receive is tried by hand only while none for its socket is in the ring: from the moment
//!   its terminal completion was seen until it is armed again. Bytes are therefore never taken out of
//!   order.

use std::os::fd::RawFd;

use crate::by_hand::OwnBlock;
use crate::engine::{Request, Token};

/// Receives tried by hand at most: each costs a system call in every round of a spin.
pub(super) const HELD_MAX: usize = 2;
/// Sends tried by hand at most in one turn; more of them leave faster in one submission.
pub(super) const SENDS_MAX: usize = 2;

/// Receives in the ring, by slot of their tokens: eight bytes for each connection.
#[derive(Debug, Default)]
pub(super) struct Armed {
    /// Generation and descriptor; [`NOBODY`] where there is none.
    slots: Vec<(u32, RawFd)>,
    count: usize,
}

const NOBODY: (u32, RawFd) = (0, -1);

impl Armed {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn insert(&mut self, token: Token, fd: RawFd) {
        let slot = token.slot();
        if slot >= self.slots.len() {
            self.slots.resize(slot + 1, NOBODY);
        }
        self.count += usize::from(self.slots[slot] == NOBODY);
        self.slots[slot] = (token.generation(), fd);
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<RawFd> {
        let place = self.slots.get_mut(token.slot())?;
        if *place == NOBODY || place.0 != token.generation() {
            return None;
        }
        self.count -= 1;
        Some(std::mem::replace(place, NOBODY).1)
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.iter().map(|(token, _)| token)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Token, RawFd)> {
        self.first(self.slots.len())
    }

    /// Those in so many slots.
    pub(super) fn first(&self, slots: usize) -> impl Iterator<Item = (Token, RawFd)> {
        let slots = self.slots.iter().enumerate().take(slots);
        let armed = slots.filter(|(_, place)| **place != NOBODY);
        armed.map(|(slot, (generation, fd))| (Token::new(slot, *generation), *fd))
    }
}

#[derive(Debug, Default)]
pub(super) struct Direct {
    /// The owner spins.
    pub(super) on: bool,
    /// Receives tried by hand (D1).
    pub(super) held: Vec<(Token, RawFd)>,
    /// One of them has not been tried yet.
    pub(super) untried: bool,
    /// Receives in the ring.
    pub(super) armed: Armed,
    /// Receives whose cancel is under way, to be held.
    pub(super) leaving: Vec<Token>,
    /// Silent sends to be tried by hand in the next enter.
    pub(super) sends: Vec<(Token, Request)>,
    /// What held receives are received into. Without it none is taken out of the ring, where there may be
    /// another.
    pub(super) block: Option<OwnBlock>,
}

impl Direct {
    /// True if all receives there are, and `more`, may be held.
    pub(super) fn fits(&self, more: usize) -> bool {
        self.on && self.held.len() + self.armed.len() + more <= HELD_MAX
    }

    pub(super) fn hold(&mut self, token: Token, fd: RawFd) {
        self.held.push((token, fd));
        self.untried = true;
    }

    pub(super) fn is_held(&self, token: Token) -> bool {
        self.held.iter().any(|(held, _)| *held == token)
    }

    /// Takes a held receive out.
    pub(super) fn take_held(&mut self, token: Token) -> bool {
        let index = self.held.iter().position(|(held, _)| *held == token);
        index.map(|index| self.held.swap_remove(index)).is_some()
    }

    /// Whoever cancels a receive wants to see its end: it is not held, also if that was under way.
    pub(super) fn let_end(&mut self, token: Token) {
        if self.armed.remove(token).is_some() {
            self.leaving.retain(|leaving| *leaving != token);
        }
    }

    /// Forgets a receive that has ended in the ring. Its descriptor if it is to be held now: also if the
    /// owner has stopped spinning meanwhile, because then the next park arms it again.
    pub(super) fn ended(&mut self, token: Token, cancelled: bool) -> Option<RawFd> {
        let fd = self.armed.remove(token)?;
        let leaving = self.leaving.iter().position(|leaving| *leaving == token)?;
        self.leaving.swap_remove(leaving);
        cancelled.then_some(fd)
    }
}
