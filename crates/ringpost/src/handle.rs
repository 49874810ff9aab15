//! Reaching a runtime from other threads and other runtimes.

use std::fmt;
use std::sync::Arc;

use ringpost_sync::{OneshotReceiver, PushError, oneshot};

use crate::executor::{Inner, Shared};

/// Reaches a [`Runtime`](crate::Runtime) from any thread. Cheap to clone.
///
/// Work is queued in a bounded mailbox; the runtime is woken by a system call only if it is parked.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs `work` on the runtime's thread, within the runtime. Never waits.
    ///
    /// `Ok` means that the work is queued. If the runtime ends first, it is dropped without being run. If it
    /// panics, that is logged, and the runtime goes on.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] if the mailbox is full or the runtime has ended, as it has in a forked child; `work` has been
    /// dropped.
    pub fn submit(&self, work: impl FnOnce() + Send + 'static) -> Result<(), SubmitError> {
        if self.shared.inbox.is_in_child() {
            return Err(SubmitError::RuntimeEnded);
        }
        self.shared.inbox.mailbox().push(Box::new(work)).map_err(|error| match error {
            PushError::Full(_) => {
                SubmitError::Full { capacity: self.shared.inbox.mailbox().capacity() }
            }
            _ => SubmitError::RuntimeEnded,
        })
    }

    /// Runs the future that `make` makes on the runtime's thread as a task, and hands its result
    /// back. The receiver is a future for any runtime and can also be waited for by blocking. It gets
    /// [`Canceled`](crate::Canceled) if the future panics or the runtime ends first.
    ///
    /// # Errors
    ///
    /// As [`Handle::submit`].
    pub fn spawn<M, F>(&self, make: M) -> Result<OneshotReceiver<F::Output>, SubmitError>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        let (sender, receiver) = oneshot();
        self.submit(move || {
            Inner::current().spawn(async move {
                // The receiver may have gone: then nobody wants the value.
                let _ = sender.send(make().await);
            });
        })?;
        Ok(receiver)
    }

    /// Makes the runtime's loop go round once, if it is parked.
    pub fn wake(&self) {
        self.shared.inbox.notify();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// Why work was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The mailbox is full; try again later.
    #[error("the runtime's mailbox is full: {capacity} items wait")]
    Full {
        /// Items it can hold ([`RuntimeBuilder::inbox_capacity`](crate::RuntimeBuilder::inbox_capacity)).
        capacity: usize,
    },
    /// The runtime has ended.
    #[error("the runtime has ended")]
    RuntimeEnded,
}
