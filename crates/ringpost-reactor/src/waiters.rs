//! Tasks that wait for the same thing, of which each may go at any time.

use std::collections::BTreeMap;
use std::task::Waker;

/// The wakers of tasks that wait for the same thing. There is one for each waiter that is still there, so whoever
/// makes futures bounds them: a waiter takes its waker along when it goes, which holds the memory of its task.
#[derive(Debug, Default)]
pub struct Waiters {
    /// By topic, and a number that is never used again: whoever has been woken must not take out another.
    wakers: BTreeMap<(usize, u64), Waker>,
    last_number: u64,
}

/// Where a waiter is among the [`Waiters`]; at first nowhere.
#[derive(Debug, Default)]
pub struct Place(Option<(usize, u64)>);

impl Waiters {
    /// Keeps the waker for this waiter, in place of the one it left before. That one: see [`Waiters::leave`].
    #[must_use = "what a waker drops may come back here"]
    pub fn wait(&mut self, place: &mut Place, waker: &Waker) -> Option<Waker> {
        self.wait_for(place, 0, waker)
    }

    /// As [`Waiters::wait`], for one of several topics, which [`Waiters::take_for`] tells apart.
    #[must_use = "what a waker drops may come back here"]
    pub fn wait_for(&mut self, place: &mut Place, topic: usize, waker: &Waker) -> Option<Waker> {
        let same = place.0.filter(|known| known.0 == topic);
        if let Some(known) = same.and_then(|known| self.wakers.get_mut(&known)) {
            return exchange(known, waker);
        }
        let replaced = place.0.and_then(|known| self.wakers.remove(&known));
        self.last_number += 1;
        place.0 = Some((topic, self.last_number));
        self.wakers.insert((topic, self.last_number), waker.clone());
        replaced
    }

    /// The waiter goes. Its waker, unless it has been woken: to drop without a lock or a borrow, as that may run
    /// code of others.
    #[must_use = "what a waker drops may come back here"]
    pub fn leave(&mut self, place: &mut Place) -> Option<Waker> {
        self.wakers.remove(&place.0.take()?)
    }

    /// True if it waited for this topic last and has been woken since.
    pub fn was_woken(&self, place: &Place, topic: usize) -> bool {
        place.0.is_some_and(|known| known.0 == topic && !self.wakers.contains_key(&known))
    }

    /// Takes the wakers of a topic, in the order in which their waiters came.
    pub fn take_for(&mut self, topic: usize, wakers: &mut Vec<Waker>) {
        while let Some((known, _)) = self.wakers.range((topic, 0)..=(topic, u64::MAX)).next() {
            let known = *known;
            wakers.extend(self.wakers.remove(&known));
        }
    }

    /// Takes all wakers, those of a topic in the order in which their waiters came.
    pub fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        std::mem::take(&mut self.wakers).into_values()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.wakers.len()
    }

    /// True if nobody waits.
    pub fn is_empty(&self) -> bool {
        self.wakers.is_empty()
    }
}

/// Keeps the waker of who polls. The one that was there before, unless it is the same: to drop without a lock or a
/// borrow, as that may run code of others.
#[inline]
#[must_use = "what a waker drops may come back here"]
pub(crate) fn replace_waker(slot: &mut Option<Waker>, waker: &Waker) -> Option<Waker> {
    match slot {
        Some(known) => exchange(known, waker),
        None => slot.replace(waker.clone()),
    }
}

/// As [`replace_waker`], where there is one.
#[inline]
#[must_use = "what a waker drops may come back here"]
pub(crate) fn exchange(known: &mut Waker, waker: &Waker) -> Option<Waker> {
    if known.will_wake(waker) { None } else { Some(std::mem::replace(known, waker.clone())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_woken_takes_nobody_out() {
        let mut waiters = Waiters::default();
        let (mut first, mut second) = (Place::default(), Place::default());
        drop(waiters.wait(&mut first, Waker::noop()));
        drop(waiters.wait(&mut first, Waker::noop()));
        assert_eq!(waiters.take().count(), 1, "a waiter has one place");
        drop(waiters.wait(&mut second, Waker::noop()));
        assert!(waiters.leave(&mut first).is_none());
        assert_eq!(waiters.len(), 1);
        assert!(waiters.leave(&mut second).is_some() && waiters.is_empty());
        assert!(waiters.leave(&mut second).is_none());
        // Woken, it waits again.
        drop(waiters.wait(&mut first, Waker::noop()));
        assert_eq!(waiters.take().count(), 1);
        drop(waiters.wait(&mut first, Waker::noop()));
        assert_eq!(waiters.len(), 1);
    }

    #[test]
    fn topics_are_told_apart() {
        let (mut waiters, mut wakers) = (Waiters::default(), Vec::new());
        let (mut first, mut second) = (Place::default(), Place::default());
        drop(waiters.wait_for(&mut first, 1, Waker::noop()));
        drop(waiters.wait_for(&mut second, 2, Waker::noop()));
        waiters.take_for(0, &mut wakers);
        waiters.take_for(3, &mut wakers);
        assert_eq!((waiters.len(), wakers.len()), (2, 0));
        // It waits for something else now.
        drop(waiters.wait_for(&mut first, 2, Waker::noop()));
        waiters.take_for(1, &mut wakers);
        assert_eq!((waiters.len(), wakers.len()), (2, 0));
        assert!(!waiters.was_woken(&first, 2));
        waiters.take_for(2, &mut wakers);
        assert_eq!((waiters.len(), wakers.len()), (0, 2));
        assert!(waiters.was_woken(&first, 2) && !waiters.was_woken(&first, 1));
        drop(waiters.leave(&mut first));
        assert!(!waiters.was_woken(&first, 2));
    }
}
