//! The one thing the protocols need from the operating system.

/// Ends the wait of a parked reactor.
///
/// The contract is that of an eventfd: a ring is *sticky*. If the reactor is not blocked yet, its
/// next wait returns at once; rings that were not collected merge into one. The reactor collects
/// the ring after it has woken and before it parks again, and takes a ring that it did not
/// expect as a spurious wake-up: a producer may be slow between being told to ring and ringing.
///
/// Implementations make one system call and do not block, allocate or panic.
pub trait Doorbell: Send + Sync {
    /// Wakes the reactor, or makes its next wait return at once.
    fn ring(&self);
}
