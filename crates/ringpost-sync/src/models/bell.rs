//! The kernel's part: a reactor blocks until somebody rings.
#![expect(clippy::disallowed_types, reason = "statistics from outside the model")]

use std::sync::atomic::{AtomicUsize, Ordering};

use loom::sync::{Condvar, Mutex};

use crate::Doorbell;

/// A sticky doorbell, as an eventfd is.
#[derive(Debug)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
    // A std atomic: loom must not take it for a part of the protocol.
    rings: AtomicUsize,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self { rung: Mutex::new(false), changed: Condvar::new(), rings: AtomicUsize::new(0) }
    }

    /// Blocks until it was rung, and collects the ring.
    pub(super) fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }

    /// Ends the wait for a reason that is no ring of the protocol: a completion, a timer.
    pub(super) fn interrupt(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    /// How often the protocol rang.
    pub(super) fn rings(&self) -> usize {
        self.rings.load(Ordering::Relaxed)
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::Relaxed);
        self.interrupt();
    }
}
