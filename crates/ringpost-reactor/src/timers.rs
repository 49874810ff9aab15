//! Timers: what is due next, and whom to wake.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Instant;

use crate::waiters::exchange;

/// Names a timer; the number tells apart timers that are due at the same instant.
pub(crate) type TimerId = (Instant, u64);

/// A timer is not pending any more.
#[derive(Debug)]
pub(crate) struct Fired;

/// Timers in the order in which they are due.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeMap<TimerId, Waker>,
    next: u64,
}

/// Timers that can be pending at once.
pub(crate) const TIMERS_MAX: usize = 1 << 20;

impl Timers {
    pub(crate) fn add(&mut self, at: Instant, waker: Waker) -> Option<TimerId> {
        if self.queue.len() >= TIMERS_MAX {
            return None;
        }
        self.next += 1;
        let id = (at, self.next);
        self.queue.insert(id, waker);
        Some(id)
    }

    /// Replaces the waker of a pending timer; see [`replace_waker`](crate::waiters::replace_waker). An error if it has
    /// fired.
    pub(crate) fn replace(&mut self, id: TimerId, waker: &Waker) -> Result<Option<Waker>, Fired> {
        self.queue.get_mut(&id).map(|known| exchange(known, waker)).ok_or(Fired)
    }

    /// The waker is to be dropped without a borrow, as that may run code of others.
    pub(crate) fn remove(&mut self, id: TimerId) -> Option<Waker> {
        self.queue.remove(&id)
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Moves the wakers of timers due at `now` to `wakers`, each timer once, in order.
    pub(crate) fn fire(&mut self, now: Instant, wakers: &mut Vec<Waker>) {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > now {
                break;
            }
            wakers.push(entry.remove());
        }
    }

    /// Moves the wakers of all timers to `wakers`.
    pub(crate) fn fire_all(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(std::mem::take(&mut self.queue).into_values());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn fire_once_in_order() {
        let mut timers = Timers::default();
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let late = timers.add(now + second, Waker::noop().clone()).unwrap();
        timers.add(now, Waker::noop().clone()).unwrap();
        timers.add(now, Waker::noop().clone()).unwrap();
        assert_eq!(timers.next_due(), Some(now));
        let mut wakers = Vec::new();
        timers.fire(now, &mut wakers);
        assert_eq!(wakers.len(), 2);
        timers.fire(now, &mut wakers);
        assert_eq!(wakers.len(), 2);
        assert!(timers.replace(late, Waker::noop()).is_ok());
        timers.remove(late);
        assert!(timers.is_empty());
        assert!(timers.replace(late, Waker::noop()).is_err());
    }

    #[test]
    fn they_are_bounded() {
        let mut timers = Timers::default();
        let now = Instant::now();
        let mut add = || timers.add(now, Waker::noop().clone());
        let first = add().expect("room");
        assert!((1..TIMERS_MAX).all(|_| add().is_some()));
        assert!(add().is_none());
        timers.remove(first);
        assert!(timers.add(now, Waker::noop().clone()).is_some());
    }
}
