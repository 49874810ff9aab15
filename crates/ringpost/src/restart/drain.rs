//! The end of a process that serves no more new clients: what is open comes to its end.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringpost_reactor::{Place, Waiters};

/// Tells tasks that the process is about to end, and waits for them.
///
/// Each connection's task has a [`Hold`]. When the drain begins, it asks its peer for an end
/// ([`Sender::go_away`](crate::Sender::go_away)), goes on to serve what still comes, and drops the hold at
/// the end. Clones share the drain, also across threads and runtimes.
///
/// ```
/// # use std::time::Duration;
/// # use ringpost::{Connection, restart::{Drain, Hold}};
/// async fn echo(mut connection: Connection, hold: Hold) -> Result<(), Box<dyn std::error::Error>> {
///     let mut asked = false;
///     loop {
///         let received = if asked {
///             connection.recv().await?
///         } else {
///             match hold.until_begun(connection.recv()).await {
///                 Some(received) => received?,
///                 None => {
///                     asked = true;
///                     connection.go_away()?;
///                     continue;
///                 }
///             }
///         };
///         match received {
///             Some(message) => connection.send_message(message).await?,
///             None => return Ok(connection.shutdown().await?),
///         }
///     }
/// }
///
/// # async fn end(connection: Connection) {
/// let drain = Drain::new();
/// let hold = drain.hold();
/// ringpost::spawn(async move { echo(connection, hold).await.ok() });
/// // At the end of the service:
/// drain.begin();
/// if let Err(unfinished) = drain.finished(Duration::from_secs(30)).await {
///     eprintln!("{unfinished}");
/// }
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Drain {
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    begun: bool,
    open: usize,
    waiters: Waiters,
}

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more thing to wait for, until the hold is dropped. May be taken after the drain has begun, too.
    pub fn hold(&self) -> Hold {
        self.lock().open += 1;
        Hold { drain: self.clone() }
    }

    /// Begins the drain. Idempotent.
    pub fn begin(&self) {
        let mut state = self.lock();
        state.begun = true;
        wake(state);
    }

    /// Whether the drain has begun.
    pub fn is_begun(&self) -> bool {
        self.lock().begun
    }

    /// Holds that have not been dropped.
    pub fn open(&self) -> usize {
        self.lock().open
    }

    /// Waits until no hold is left, at most `limit` long. Does not begin the drain. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Unfinished`] if the time is up first. Dropping the runtime then ends what is left.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub async fn finished(&self, limit: Duration) -> Result<(), Unfinished> {
        let finished = self.wait(|state| state.open == 0);
        crate::timeout(limit, finished).await.map_err(|_| Unfinished { open: self.open(), limit })
    }

    async fn wait(&self, done: impl Fn(&State) -> bool) {
        let mut waiter = Waiter { drain: self, place: Place::default() };
        poll_fn(|context| waiter.poll(&done, context)).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock panics.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes everybody, without the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    let waiters = state.waiters.take();
    drop(state);
    waiters.for_each(Waker::wake);
}

struct Waiter<'a> {
    drain: &'a Drain,
    place: Place,
}

impl Waiter<'_> {
    fn poll(&mut self, done: impl Fn(&State) -> bool, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.drain.lock();
        if done(&state) {
            return Poll::Ready(());
        }
        let replaced = state.waiters.wait(&mut self.place, context.waker());
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.drain.lock();
        let waker = state.waiters.leave(&mut self.place);
        drop(state);
        drop(waker);
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Drain").field("begun", &state.begun).field("open", &state.open).finish()
    }
}

/// Something that a [`Drain`] waits for.
#[derive(Debug)]
pub struct Hold {
    drain: Drain,
}

impl Hold {
    /// Waits until the drain has begun. Cancel safe.
    pub async fn begun(&self) {
        self.drain.wait(|state| state.begun).await;
    }

    /// Runs `future` to its end, unless the drain has begun or begins before: then it is dropped and the
    /// result is `None`. As cancel safe as the future. The drain is looked at first, so that a peer that
    /// keeps the future busy does not hold it up.
    pub async fn until_begun<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut begun = pin!(self.begun());
        poll_fn(|context| match begun.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => future.as_mut().poll(context).map(Some),
        })
        .await
    }

    /// Whether the drain has begun.
    pub fn is_begun(&self) -> bool {
        self.drain.is_begun()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.drain.lock();
        state.open -= 1;
        if state.open == 0 {
            wake(state);
        }
    }
}

/// The time for a drain was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{open} connections had not ended within {limit:?}")]
#[non_exhaustive]
pub struct Unfinished {
    /// Holds that are left.
    pub open: usize,
    /// How long was waited.
    pub limit: Duration,
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::Runtime;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn everybody_who_waits_is_woken() {
        Runtime::new().expect("a runtime").block_on(async {
            let drain = Drain::new();
            let tasks: Vec<_> = (0..10)
                .map(|number| {
                    let hold = drain.hold();
                    crate::spawn(async move {
                        hold.begun().await;
                        for _ in 0..number {
                            crate::yield_now().await;
                        }
                    })
                })
                .collect();
            // Waits as the last one, and again after each spurious wake.
            let all = Rc::new(drain.clone());
            let finished = crate::spawn(async move { all.finished(LIMIT * 10).await });
            crate::yield_now().await;
            drain.begin();
            assert_eq!(crate::timeout(LIMIT, finished).await.expect("woken").ok(), Some(Ok(())));
            assert!(tasks.iter().all(crate::JoinHandle::is_finished));
        });
    }

    #[test]
    fn a_waiter_that_was_woken_takes_nobody_out() {
        let drain = Drain::new();
        let count = || drain.lock().waiters.len();
        let mut context = Context::from_waker(Waker::noop());
        let mut first = Waiter { drain: &drain, place: Place::default() };
        assert!(first.poll(|_| false, &mut context).is_pending());
        wake(drain.lock());
        let mut second = Waiter { drain: &drain, place: Place::default() };
        assert!(second.poll(|_| false, &mut context).is_pending());
        drop(first);
        assert_eq!(count(), 1, "the second still waits");
        drop(second);
        assert_eq!(count(), 0);
    }

    #[test]
    fn what_is_not_over_in_time_is_told() {
        Runtime::new().expect("a runtime").block_on(async {
            let drain = Drain::new();
            let hold = drain.hold();
            let limit = Duration::from_millis(1);
            assert_eq!(drain.finished(limit).await, Err(Unfinished { open: 1, limit }));
            assert!(!hold.is_begun());
            assert_eq!(hold.until_begun(async { 7 }).await, Some(7));
            drain.begin();
            assert_eq!(hold.until_begun(std::future::pending::<()>()).await, None);
            assert_eq!(hold.until_begun(async { 8 }).await, None, "the drain goes first");
            drop(hold);
            assert_eq!(drain.finished(limit).await, Ok(()));
        });
    }
}
