//! A value that may be left alone instead of being dropped.
//!
//! # Invariant
//!
//! * **V1** The value is whole until the [`Leakable`] is dropped, and is dropped by that alone, once.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// A value that is dropped, unless it has been given to [`Leakable::leak`].
#[derive(Debug)]
pub(crate) struct Leakable<T> {
    value: ManuallyDrop<T>,
    leaks: bool,
}

impl<T> Leakable<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), leaks: false }
    }

    /// It is not dropped: what its destructor would release is somebody else's.
    pub(crate) fn leak(&mut self) {
        self.leaks = true;
    }
}

impl<T> Deref for Leakable<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Leakable<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Leakable<T> {
    fn drop(&mut self) {
        if !self.leaks {
            // SAFETY: the value is whole, and nobody drops or uses it after this (V1).
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};

    use super::*;

    #[test]
    fn only_what_is_leaked_stays() {
        /// Here nobody takes it for lost.
        static KEPT: LazyLock<Arc<()>> = LazyLock::new(Arc::default);
        drop(Leakable::new(Arc::clone(&KEPT)));
        assert_eq!(Arc::strong_count(&KEPT), 1);
        let mut leakable = Leakable::new(Arc::clone(&KEPT));
        leakable.leak();
        drop(leakable);
        assert_eq!(Arc::strong_count(&KEPT), 2);
    }
}
