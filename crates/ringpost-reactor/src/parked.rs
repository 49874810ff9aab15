//! In a simulation: nobody is slept over.
//!
//! What is looked at while the reactor parks: each socket has somebody who brings on what it has to do, and nobody waits
//! for what is there already. A waiter that is forgotten shows here at once, instead of where a run stands still.

use std::fmt::Debug;
use std::rc::{Rc, Weak};

use crate::reactor::{Core, Driver};

/// Sockets of a reactor that may still be there.
#[derive(Debug)]
pub(crate) struct Live<T>(Vec<Weak<T>>);

impl<T> Default for Live<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// A socket that may wait for something.
pub(crate) trait Parked: Debug {
    /// What this socket, or whoever uses it, waits for in vain.
    fn forgotten(self: &Rc<Self>, core: &Core, driver: &Driver) -> Option<&'static str>;

    /// All there is to know about it.
    fn state(&self) -> String;
}

impl<T: Parked> Live<T> {
    pub(crate) fn push(&mut self, socket: &Rc<T>) {
        self.0.retain(|socket| socket.strong_count() > 0);
        self.0.push(Rc::downgrade(socket));
    }

    /// The reactor parks.
    pub(crate) fn check(&self, core: &Core, driver: &Driver) {
        for socket in self.0.iter().filter_map(Weak::upgrade) {
            if let Some(what) = socket.forgotten(core, driver) {
                panic!("{what}, and the reactor parks: {socket:?} {}", socket.state());
            }
        }
    }
}
