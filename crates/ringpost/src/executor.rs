//! The local executor: tasks of one thread, and the way back to them from other threads.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use async_task::{FallibleTask, Runnable};
use crossbeam::queue::SegQueue;
use pin_project_lite::pin_project;
use ringpost_reactor::{Inbox, Reactor};
use slab::Slab;

/// How long the end of a runtime waits for another thread that is just waking a task.
const WAKING_WAIT_MAX: Duration = Duration::from_secs(1);

/// The part of a runtime that other threads may touch.
pub(crate) struct Shared {
    pub(crate) inbox: Arc<Inbox>,
    /// Tasks woken on other threads. Bounded by the number of tasks: each is in at most one queue.
    remote: SegQueue<Runnable>,
}

/// The part that lives on the runtime's thread.
pub(crate) struct Inner {
    pub(crate) reactor: Reactor,
    pub(crate) shared: Arc<Shared>,
    ready: RefCell<VecDeque<Runnable>>,
    /// Wakers of live tasks, so that all can be dropped with the runtime.
    tasks: RefCell<Slab<Waker>>,
    /// Futures of tasks that have not been dropped.
    live: Cell<usize>,
    /// Tasks that are running now: one at most, or none.
    running: Cell<usize>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

/// Restores the previous runtime of the thread.
pub(crate) struct Entered {
    previous: Option<Rc<Inner>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let left = CURRENT.try_with(|current| current.replace(self.previous.take()));
        drop(left);
    }
}

impl Inner {
    pub(crate) fn new(reactor: Reactor) -> Rc<Self> {
        let shared = Shared { inbox: Arc::clone(reactor.inbox()), remote: SegQueue::new() };
        Rc::new(Self {
            reactor,
            shared: Arc::new(shared),
            ready: RefCell::new(VecDeque::with_capacity(64)),
            tasks: RefCell::new(Slab::new()),
            live: Cell::new(0),
            running: Cell::new(0),
        })
    }

    /// The runtime whose code runs on this thread.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub(crate) fn current() -> Rc<Self> {
        Self::try_current().expect(
            "called outside of a ringpost runtime; call it from within Runtime::block_on, a spawned \
             task or Runtime::enter",
        )
    }

    pub(crate) fn try_current() -> Option<Rc<Self>> {
        // None as well while the thread ends, when a runtime may still be dropped.
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        let previous = CURRENT.try_with(|current| current.replace(Some(Rc::clone(self))));
        Entered { previous: previous.ok().flatten() }
    }

    pub(crate) fn spawn<F>(self: &Rc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let guarded = Guarded {
            future: Some(future),
            entry: Entry { inner: Rc::downgrade(self), key: entry.key() },
        };
        let shared = Arc::clone(&self.shared);
        let schedule = move |runnable| Shared::schedule(&shared, runnable);
        let (runnable, task) = async_task::spawn_local(guarded, schedule);
        entry.insert(runnable.waker());
        drop(tasks);
        self.live.set(self.live.get() + 1);
        runnable.schedule();
        JoinHandle { task: Some(task.fallible()) }
    }

    /// True if a task waits to run.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    /// Runs the tasks that were ready at the start: what they wake runs next turn, so that no task
    /// keeps the reactor from its turn. True if any ran.
    pub(crate) fn run_ready(&self) -> bool {
        let count = self.ready.borrow().len();
        for _ in 0..count {
            let Some(runnable) = self.ready.borrow_mut().pop_front() else { break };
            self.running.set(self.running.get() + 1);
            runnable.run();
            self.running.set(self.running.get() - 1);
        }
        count > 0
    }

    /// Takes what other threads have left: woken tasks and work.
    pub(crate) fn take_deliveries(&self) {
        let mailbox = self.shared.inbox.mailbox();
        // Looking costs less than taking, and most turns find nothing.
        if !mailbox.wake().is_notified() || !mailbox.wake().take() {
            return;
        }
        while let Some(runnable) = self.shared.remote.pop() {
            self.ready.borrow_mut().push_back(runnable);
        }
        // What is left when this ends, also by a panic of a panic's payload, is looked for in the next turn.
        let mut rest = NotifyOnDrop { inbox: &self.shared.inbox, armed: true };
        // One capacity's worth, so that a flood of work can't keep the reactor from its turn.
        for _ in 0..mailbox.capacity() {
            let Some(work) = mailbox.pop() else {
                rest.armed = false;
                return;
            };
            // As of tasks, one's panic is not another's end: what waits behind it would stay.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
                let message = Panic::new(payload).text;
                tracing::error!(message, "work that another thread had submitted panicked");
            }
        }
    }

    /// Drops all tasks but the one that runs now, if any. Called with this runtime entered.
    pub(crate) fn drop_tasks(&self) {
        let end = Instant::now() + WAKING_WAIT_MAX;
        loop {
            let wakers: Vec<_> = self.tasks.borrow_mut().drain().collect();
            wakers.into_iter().for_each(Waker::wake);
            // Those that are there now: dropping them may add more.
            let count = self.ready.borrow().len() + self.shared.remote.len();
            for _ in 0..count {
                let next = self.ready.borrow_mut().pop_front();
                // Dropping a runnable drops its future.
                drop(next.or_else(|| self.shared.remote.pop()));
            }
            // Destructors may have spawned more, and those again.
            let spawned = !self.tasks.borrow().is_empty() || self.has_ready();
            // A task that another thread is just waking is in no queue yet, and can't be woken here. Left alone
            // it would keep its future, and the connections in it, for ever.
            if !spawned && self.live.get() <= self.running.get() {
                return;
            }
            if Instant::now() >= end {
                let tasks = self.live.get() - self.running.get();
                tracing::warn!(
                    tasks,
                    "tasks that other threads were waking, or that others spawn as they are dropped, are leaked"
                );
                return;
            }
            if !spawned {
                thread::yield_now();
            }
        }
    }
}

impl Shared {
    fn schedule(this: &Arc<Self>, runnable: Runnable) {
        let mut runnable = Some(runnable);
        // Fast path: woken on the runtime's own thread.
        let _ = CURRENT.try_with(|current| match &*current.borrow() {
            Some(inner) if Arc::ptr_eq(&inner.shared, this) => {
                if let Some(runnable) = runnable.take() {
                    inner.ready.borrow_mut().push_back(runnable);
                }
            }
            _ => {}
        });
        if let Some(runnable) = runnable {
            #[cfg(test)]
            tests::wait_before_remote();
            this.remote.push(runnable);
            this.inbox.notify();
        }
    }
}

/// Makes the next turn look into the mailbox again.
struct NotifyOnDrop<'inbox> {
    inbox: &'inbox Inbox,
    armed: bool,
}

impl Drop for NotifyOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.inbox.mailbox().notify();
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("reactor", &self.reactor).finish_non_exhaustive()
    }
}

pin_project! {
    /// A task's future: catches its panic and takes itself off the list of tasks at its end.
    struct Guarded<F> {
        // None once it has ended.
        #[pin]
        future: Option<F>,
        entry: Entry,
    }

    impl<F> PinnedDrop for Guarded<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut future = this.project().future;
            // Whoever drops the task has nothing to do with it, and the queue of tasks would not survive it.
            drop_whatever_panics("a destructor in a task that was dropped panicked", || future.set(None));
        }
    }
}

impl<F: Future> Future for Guarded<F> {
    type Output = Outcome<F::Output>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut future = self.project().future;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let value = match future.as_mut().as_pin_mut() {
                Some(future) => std::task::ready!(future.poll(context)),
                // Nobody polls a task that has ended.
                None => return Poll::Pending,
            };
            future.set(None);
            Poll::Ready(value)
        }));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Outcome(Some(Ok(value)))),
            Err(panic) => Poll::Ready(Outcome(Some(Err(panic)))),
        }
    }
}

/// What a task has ended with. If nobody waits for that, it is dropped where a panic would end the process.
struct Outcome<T>(Option<Result<T, Box<dyn Any + Send>>>);

impl<T> Outcome<T> {
    fn into_result(mut self) -> Result<T, JoinError> {
        let result = self.0.take().unwrap_or_else(|| Err(Box::new("the outcome was taken")));
        result.map_err(|payload| JoinError::Panicked(Panic::new(payload)))
    }
}

impl<T> Drop for Outcome<T> {
    fn drop(&mut self) {
        if let Some(result) = self.0.take() {
            drop_whatever_panics("what a task ended with panicked as it was dropped", || {
                drop(result)
            });
        }
    }
}

/// Runs destructors where nobody survives a panic: it is logged, and what it panicked with is dropped likewise.
fn drop_whatever_panics(what: &'static str, drop: impl FnOnce()) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(drop)) else { return };
    tracing::error!(message = Panic::message_of(&*payload), "{what}");
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| std::mem::drop(payload))) {
        // There may be no end to it.
        Box::leak(again);
    }
}

/// A task's place on the list of tasks.
struct Entry {
    inner: std::rc::Weak<Inner>,
    key: usize,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        inner.live.set(inner.live.get() - 1);
        if let Ok(mut tasks) = inner.tasks.try_borrow_mut() {
            let waker = tasks.try_remove(self.key);
            drop(tasks);
            drop(waker);
        }
    }
}

/// Waits for a spawned task. Dropping it lets the task go on by itself.
pub struct JoinHandle<T> {
    task: Option<FallibleTask<Outcome<T>>>,
}

impl<T> JoinHandle<T> {
    /// Ends the task and waits until its future has been dropped. `Some` if it had already finished.
    pub async fn cancel(mut self) -> Option<Result<T, JoinError>> {
        let task = self.task.take()?;
        task.cancel().await.map(Outcome::into_result)
    }

    /// True once the task has finished or was cancelled.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(FallibleTask::is_finished)
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(task) = &mut self.task else { return Poll::Ready(Err(JoinError::Cancelled)) };
        Pin::new(task).poll(context).map(|outcome| match outcome {
            Some(outcome) => outcome.into_result(),
            None => Err(JoinError::Cancelled),
        })
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.detach();
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("finished", &self.is_finished()).finish()
    }
}

/// Why a task has no result.
#[non_exhaustive]
pub enum JoinError {
    /// It panicked. The runtime and its other tasks go on.
    Panicked(Panic),
    /// It was dropped before its end.
    Cancelled,
}

/// What a task panicked with.
pub struct Panic {
    /// Never locked by anybody else: a mutex only makes the payload shareable.
    payload: Mutex<Box<dyn Any + Send>>,
    text: String,
}

impl Panic {
    fn new(payload: Box<dyn Any + Send>) -> Self {
        let text = Self::message_of(&*payload).into();
        Self { payload: Mutex::new(payload), text }
    }

    fn message_of(payload: &(dyn Any + Send)) -> &str {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        text.unwrap_or("(no message)")
    }

    /// The message, if the panic had one.
    pub fn message(&self) -> &str {
        &self.text
    }

    /// The payload, for [`std::panic::resume_unwind`].
    pub fn into_payload(self) -> Box<dyn Any + Send> {
        self.payload.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Panic").field(&self.text).finish()
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("the task was dropped before its end"),
            Self::Panicked(panic) => write!(f, "the task panicked: {}", panic.text),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for JoinError {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::Runtime;

    thread_local! {
        /// What this thread does between the decision to run a task and its arrival in the queue.
        static BEFORE_REMOTE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
    }

    pub(super) fn wait_before_remote() {
        let wait = BEFORE_REMOTE.take();
        wait.into_iter().for_each(|wait| wait());
    }

    #[test]
    fn a_task_that_is_just_being_woken_is_dropped_with_its_runtime() {
        let runtime = Runtime::new().expect("a runtime");
        let alive = Arc::new(());
        let waker = runtime.block_on(async {
            let (alive, shared) = (Arc::clone(&alive), Rc::new(RefCell::new(None)));
            let place = Rc::clone(&shared);
            drop(crate::spawn(std::future::poll_fn(move |context| {
                let _ = &alive;
                *place.borrow_mut() = Some(context.waker().clone());
                Poll::<()>::Pending
            })));
            crate::yield_now().await;
            shared.take().expect("it has been polled")
        });
        let waking = Arc::new(AtomicBool::new(false));
        let other = thread::spawn({
            let waking = Arc::clone(&waking);
            move || {
                BEFORE_REMOTE.set(Some(Box::new(move || {
                    waking.store(true, Ordering::Relaxed);
                    // Interrupted here, while the runtime ends.
                    thread::sleep(Duration::from_millis(50));
                })));
                waker.wake();
            }
        });
        while !waking.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        drop(runtime);
        assert_eq!(Arc::strong_count(&alive), 1, "the task is still there");
        other.join().expect("no panic");
    }

    /// Does something when it is dropped.
    struct AtEnd<F: FnMut()>(F);

    impl<F: FnMut()> Drop for AtEnd<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    /// A task that spawns another like it when it is dropped.
    fn restless() {
        if Inner::try_current().is_some() {
            let next = AtEnd(restless);
            drop(crate::spawn(async move {
                let _next = next;
                std::future::pending::<()>().await;
            }));
        }
    }

    #[test]
    fn destructors_that_spawn_again_and_again_do_not_keep_a_runtime() {
        let start = Instant::now();
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async { restless() });
        drop(runtime);
        assert!(start.elapsed() < 20 * WAKING_WAIT_MAX, "{:?}", start.elapsed());
    }

    #[test]
    fn a_destructor_that_panics_ends_its_own_task_alone() {
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let panics = || {
                let guard = AtEnd(|| panic!("a destructor"));
                async move {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                }
            };
            let task = crate::spawn(panics());
            crate::yield_now().await;
            assert!(task.cancel().await.is_none());
            drop(crate::spawn(panics()));
            crate::yield_now().await;
            let ended = crate::spawn(async { drop(AtEnd(|| panic!("a local's destructor"))) });
            assert!(ended.await.is_err());
        });
        // One is left, and is dropped with the runtime.
        drop(runtime);
    }

    #[test]
    fn work_behind_some_whose_panic_panics_again_is_not_forgotten() {
        let runtime = Runtime::new().expect("a runtime");
        let handle = runtime.handle();
        let ran = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ran);
        let panics = || std::panic::panic_any(AtEnd(|| panic!("once more")));
        handle.submit(panics).expect("room");
        handle.submit(move || seen.store(true, Ordering::Relaxed)).expect("room");
        let turn = || runtime.turn(Some(Duration::from_secs(10)));
        let start = Instant::now();
        assert!(catch_unwind(AssertUnwindSafe(turn)).is_err(), "nobody can hold that one");
        while !ran.load(Ordering::Relaxed) {
            turn().expect("the engine runs");
            assert!(start.elapsed() < Duration::from_secs(5), "it is slept over");
        }
    }

    #[test]
    fn a_task_that_only_yields_leaves_the_reactor_its_turns() {
        const YIELDS_MAX: u32 = 1_000_000;
        Runtime::new().expect("a runtime").block_on(async {
            let slept = Rc::new(Cell::new(false));
            let seen = Rc::clone(&slept);
            let restless = crate::spawn(async move {
                for _ in 0..YIELDS_MAX {
                    if seen.get() {
                        return true;
                    }
                    crate::yield_now().await;
                }
                false
            });
            crate::sleep(Duration::from_millis(1)).await;
            slept.set(true);
            assert!(restless.await.expect("no panic"), "no timer fired in {YIELDS_MAX} turns");
        });
    }
}
