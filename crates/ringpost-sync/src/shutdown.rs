//! When the last handle is gone.

use std::fmt;

use crate::doorbell::Doorbell;
use crate::lease::LeaseCount;
use crate::mailbox::Mailbox;

/// Counts the live handles of a reactor. The last one to go seals the mailbox and wakes the
/// reactor.
///
/// A reactor that can make handles at any time holds one itself, and gives it up when it
/// wants to run only as long as others hold one.
///
/// Whatever was pushed through any handle before it was given up is visible to a reactor that
/// finds the mailbox sealed ([`Mailbox::is_sealed`]).
pub struct Shutdown {
    handles: LeaseCount,
}

impl Shutdown {
    /// The count for one handle.
    #[must_use]
    pub fn new() -> Self {
        let handles = LeaseCount::new();
        handles.acquire();
        Self { handles }
    }

    /// Counts one more handle. The caller holds one: after the last there is no way back.
    #[inline]
    pub fn add(&self) {
        self.handles.acquire();
    }

    /// Gives up one handle. If it was the last, seals the mailbox and wakes its consumer, in one
    /// step. True if it was the last.
    ///
    /// # Panics
    ///
    /// If there is no handle to give up.
    pub fn release<T, D: Doorbell>(&self, mailbox: &Mailbox<T, D>) -> bool {
        let last = self.handles.release();
        if last {
            mailbox.seal();
        }
        last
    }

    /// How many handles are alive. For statistics: it may have changed already.
    #[must_use]
    pub fn handles(&self) -> u32 {
        self.handles.count()
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").field("handles", &self.handles).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Silent;

    impl Doorbell for Silent {
        fn ring(&self) {}
    }

    #[test]
    fn the_last_handle_seals() {
        let mailbox = Mailbox::new(2, Silent);
        let handles = Shutdown::new();
        handles.add();
        assert_eq!(handles.handles(), 2);
        assert!(!handles.release(&mailbox));
        mailbox.push(1).unwrap();
        assert!(!mailbox.is_sealed());
        assert!(handles.release(&mailbox));
        assert!(mailbox.is_sealed());
        assert!(mailbox.wake().is_notified());
        assert_eq!(mailbox.push(2).unwrap_err().into_inner(), 2);
        assert_eq!(mailbox.pop(), Some(1), "accepted before the end");
        assert_eq!(format!("{handles:?}"), "Shutdown { handles: LeaseCount(0) }");
    }

    #[test]
    fn shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Shutdown>();
    }
}
