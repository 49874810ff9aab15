//! The clock that a reactor goes by: the kernel's monotonic one, or with the feature `sim` one that the
//! simulation moves.

use std::time::Instant;

/// Tells the time. Of no size without the feature `sim`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    #[cfg(feature = "sim")]
    simulated: Option<std::rc::Rc<std::cell::Cell<Instant>>>,
}

impl Clock {
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(time: std::rc::Rc<std::cell::Cell<Instant>>) -> Self {
        Self { simulated: Some(time) }
    }

    #[inline]
    pub(crate) fn now(&self) -> Instant {
        #[cfg(feature = "sim")]
        if let Some(time) = &self.simulated {
            return time.get();
        }
        Instant::now()
    }

    /// Waits, or if the time is simulated, has it pass.
    pub(crate) fn nap(&self, duration: std::time::Duration) {
        #[cfg(feature = "sim")]
        if let Some(time) = &self.simulated {
            time.set(time.get() + duration);
            return;
        }
        std::thread::sleep(duration);
    }
}
