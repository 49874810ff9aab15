//! The sockets whose handles are still there: the end of a reactor is theirs, too, if nothing of them is in flight.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use slab::Slab;

/// Sockets of a reactor, until their handles go.
#[derive(Debug)]
pub(crate) struct Open<T>(RefCell<Slab<Weak<T>>>);

impl<T> Default for Open<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T> Open<T> {
    /// The place of a socket, to [remove](Self::remove) it from.
    pub(crate) fn add(&self, socket: &Rc<T>) -> usize {
        self.0.borrow_mut().insert(Rc::downgrade(socket))
    }

    pub(crate) fn remove(&self, place: usize) {
        drop(self.0.borrow_mut().try_remove(place));
    }

    /// All of them; nothing is borrowed when this returns.
    pub(crate) fn all(&self) -> Vec<Rc<T>> {
        self.0.borrow().iter().filter_map(|(_, socket)| socket.upgrade()).collect()
    }
}
