//! Sockets of which some request found no room: they try again in the next turn.

use std::cell::Cell;
use std::rc::Rc;

/// Sockets that try again, each once however many of its requests found no room: otherwise each of them would
/// have all of them tried, and the list would double with every turn in which there is still none.
#[derive(Debug)]
pub(crate) struct Retries<T>(Vec<Rc<T>>);

/// Whether a socket is among the [`Retries`].
#[derive(Debug, Default)]
pub(crate) struct Listed(Cell<bool>);

#[cfg(feature = "sim")]
impl Listed {
    pub(crate) fn is_listed(&self) -> bool {
        self.0.get()
    }
}

/// What may be among the [`Retries`].
pub(crate) trait Retried {
    fn listed(&self) -> &Listed;
}

impl<T> Default for Retries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Retried> Retries<T> {
    pub(crate) fn push(&mut self, socket: Rc<T>) {
        if !socket.listed().0.replace(true) {
            self.0.push(socket);
        }
    }

    /// Takes all of them; whoever finds no room again is pushed again.
    pub(crate) fn take(&mut self) -> Vec<Rc<T>> {
        self.0.iter().for_each(|socket| socket.listed().0.set(false));
        std::mem::take(&mut self.0)
    }

    /// Lets go of a socket that has closed.
    pub(crate) fn forget(&mut self, socket: &T) {
        if socket.listed().0.replace(false) {
            self.0.retain(|listed| !std::ptr::eq(Rc::as_ptr(listed), socket));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(feature = "sim")]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rc<T>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Socket(Listed);

    impl Retried for Socket {
        fn listed(&self) -> &Listed {
            &self.0
        }
    }

    #[test]
    fn each_is_there_once() {
        let mut retries = Retries::default();
        let sockets = [Rc::new(Socket::default()), Rc::new(Socket::default())];
        for _ in 0..3 {
            for socket in sockets.iter().chain(&sockets) {
                retries.push(Rc::clone(socket));
            }
            assert_eq!(retries.take().len(), 2);
            assert!(retries.is_empty() && retries.take().is_empty());
            retries.push(Rc::clone(&sockets[0]));
            retries.forget(&sockets[1]);
            assert!(!retries.is_empty());
            retries.forget(&sockets[0]);
            assert!(retries.is_empty());
        }
    }
}
