//! Dropped sockets that have something left to send, and until when they may try.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Instant;

/// Dropped sockets, oldest first. Each goes as soon as it has sent what it had, whatever those before it do: one
/// whose peer does not read must not keep the descriptors of others open.
#[derive(Debug)]
pub(crate) struct Lingering<T> {
    /// By a number that is never used again. All may try equally long, so the order is that of their ends.
    sockets: BTreeMap<Key, (Instant, Rc<T>)>,
    last: u64,
}

/// Where a socket is among the [`Lingering`].
pub(crate) type Key = NonZeroU64;

impl<T> Default for Lingering<T> {
    fn default() -> Self {
        Self { sockets: BTreeMap::new(), last: 0 }
    }
}

impl<T> Lingering<T> {
    /// Adds a socket, which may try until `until`: not before the ends of the others.
    pub(crate) fn push(&mut self, until: Instant, socket: Rc<T>) -> Key {
        self.last += 1;
        let key = Key::new(self.last).unwrap_or(Key::MAX);
        self.sockets.insert(key, (until, socket));
        key
    }

    /// The socket has nothing left to send.
    pub(crate) fn remove(&mut self, key: Key) {
        self.sockets.remove(&key);
    }

    /// Takes the oldest, if its time is up.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Rc<T>> {
        if self.next_due()? <= now { self.pop() } else { None }
    }

    /// Takes the oldest.
    pub(crate) fn pop(&mut self) -> Option<Rc<T>> {
        self.sockets.pop_first().map(|(_, (_, socket))| socket)
    }

    /// When the time of the oldest is up.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.sockets.first_key_value().map(|(_, (until, _))| *until)
    }

    pub(crate) fn len(&self) -> usize {
        self.sockets.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    #[cfg(feature = "sim")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rc<T>> {
        self.sockets.values().map(|(_, socket)| socket)
    }
}
