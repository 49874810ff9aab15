//! Which entries of the submission queue are the engine's own: whoever asks what is staged means the caller's.

use crate::engine::QueueFull;

/// Where they stand, counted from the front of the queue.
#[derive(Debug, Default)]
pub(super) struct OwnEntries(Vec<usize>);

impl OwnEntries {
    /// One was offered to the queue, behind so many others. True if that has taken it.
    pub(super) fn note(&mut self, place: usize, pushed: Result<(), QueueFull>) -> bool {
        if pushed.is_ok() {
            self.0.push(place);
        }
        pushed.is_ok()
    }

    /// How many the ring has not taken.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ring has taken this many entries from the front of the queue.
    pub(super) fn taken(&mut self, count: usize) {
        self.0.retain_mut(|place| match place.checked_sub(count) {
            Some(left) => {
                *place = left;
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_taken_are_forgotten() {
        let mut own = OwnEntries::default();
        for place in [1, 2, 5] {
            assert!(own.note(place, Ok(())));
        }
        assert!(!own.note(6, Err(QueueFull)));
        own.taken(2);
        assert_eq!(own.len(), 2);
        own.taken(1);
        assert_eq!(own.len(), 1);
        own.taken(3);
        assert!(own.is_empty());
    }
}
