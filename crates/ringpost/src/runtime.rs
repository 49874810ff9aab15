//! The runtime: a reactor and a local executor on one thread.

use std::cell::Cell;
use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringpost_reactor::{
    BuildError, Config, EngineChoice, EngineError, EngineReport, Reactor, Spin, Stats, Wait,
};

use crate::executor::{Inner, JoinHandle, Shared};
use crate::handle::Handle;

/// A reactor and a local executor on the thread that builds it.
///
/// Connections, listeners and tasks belong to the runtime in whose scope they are made. Dropping the
/// runtime drops its tasks, sends what has been accepted and fits the sockets, cancels every operation, waits until
/// the kernel is done with all memory (a second at most) and closes what is left. What does not fit a socket is
/// lost: [flush](crate::Sender::flush) first.
///
/// ```
/// let runtime = ringpost::Runtime::new()?;
/// let answer = runtime.block_on(async { ringpost::spawn(async { 6 * 7 }).await });
/// assert_eq!(answer.unwrap(), 42);
/// # Ok::<(), ringpost::BuildError>(())
/// ```
pub struct Runtime {
    inner: Rc<Inner>,
}

impl Runtime {
    /// A runtime with the default settings: io_uring where it works, adaptive spinning.
    ///
    /// # Errors
    ///
    /// As [`RuntimeBuilder::build`].
    pub fn new() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// Settings for a runtime.
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder { config: Config::default() }
    }

    /// Runs `future` to its end, and the spawned tasks meanwhile.
    ///
    /// Tasks that have not finished by then wait for the next `block_on` or [`Runtime::turn`].
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _entered = self.inner.enter();
        let main =
            Arc::new(Main { woken: AtomicBool::new(true), shared: Arc::clone(&self.inner.shared) });
        let waker = Waker::from(Arc::clone(&main));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if main.woken.load(Ordering::Relaxed)
                && main.woken.swap(false, Ordering::AcqRel)
                && let Poll::Ready(value) = future.as_mut().poll(&mut context)
            {
                return value;
            }
            self.inner.run_ready();
            let idle = !self.inner.has_ready() && !main.woken.load(Ordering::Acquire);
            // A failed engine has told everybody who waits; their futures end with the error.
            let _ = self.inner.reactor.turn(if idle { Wait::Forever } else { Wait::No });
            self.inner.take_deliveries();
        }
    }

    /// Adds a task to this runtime. It runs within [`Runtime::block_on`] and [`Runtime::turn`].
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let _entered = self.inner.enter();
        self.inner.spawn(future)
    }

    /// One turn, for programs that own their loop: runs ready tasks, hands everything to the kernel,
    /// waits at most `wait` for something to happen (`None`: without end) and dispatches it.
    ///
    /// # Errors
    ///
    /// [`EngineError`] once, when the engine can't go on.
    pub fn turn(&self, wait: Option<Duration>) -> Result<(), EngineError> {
        let _entered = self.inner.enter();
        self.inner.run_ready();
        let wait = match wait {
            _ if self.inner.has_ready() => Wait::No,
            None => Wait::Forever,
            Some(Duration::ZERO) => Wait::No,
            Some(wait) => match self.inner.reactor.now().checked_add(wait) {
                Some(until) => Wait::Until(until),
                None => Wait::Forever,
            },
        };
        let result = self.inner.reactor.turn(wait);
        self.inner.take_deliveries();
        result
    }

    /// Runs `scope` with this runtime as the current one, for functions that need one, such as
    /// [`Listener::bind`](crate::Listener::bind).
    pub fn enter<T>(&self, scope: impl FnOnce() -> T) -> T {
        let _entered = self.inner.enter();
        scope()
    }

    /// A handle with which any thread can reach this runtime.
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.inner.shared))
    }

    /// Which engine runs, why, and what it can do.
    pub fn engine(&self) -> &EngineReport {
        self.inner.reactor.report()
    }

    /// What the runtime has done so far.
    pub fn stats(&self) -> Stats {
        self.inner.reactor.stats()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _entered = self.inner.enter();
        self.inner.shared.inbox.mailbox().seal();
        self.inner.drop_tasks();
        self.inner.reactor.shutdown();
        self.inner.drop_tasks();
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("engine", self.engine()).finish_non_exhaustive()
    }
}

/// Wakes the future that `block_on` runs.
struct Main {
    woken: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for Main {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.shared.inbox.notify();
        }
    }
}

/// Settings of a [`Runtime`]. May be sent to the thread that is to own it.
#[derive(Debug, Clone)]
pub struct RuntimeBuilder {
    config: Config,
}

impl RuntimeBuilder {
    /// Which engine to use. The default, [`EngineChoice::Auto`], takes io_uring where it works and can
    /// be overridden by the environment variable `RINGPOST_ENGINE`.
    pub fn engine(mut self, engine: EngineChoice) -> Self {
        self.config.engine = engine;
        self
    }

    /// How to wait; adaptive by default.
    pub fn spin(mut self, spin: Spin) -> Self {
        self.config.spin = spin;
        self
    }

    /// Memory to receive into, bytes: 512 KiB to 256 MiB, 4 MiB by default. Shared by all connections;
    /// virtual until touched.
    pub fn pool_bytes(mut self, bytes: usize) -> Self {
        self.config.pool_bytes = bytes;
        self
    }

    /// Bytes a connection may have received and not yet taken before it stops receiving, 256 KiB by
    /// default. The peer then feels the back-pressure. Bytes that lie apart in memory, as those of a peer that sends
    /// them one by one, count as much as they cost: 96 bytes more for each piece.
    pub fn inbound_bytes_max(mut self, bytes: usize) -> Self {
        self.config.inbound_bytes_max = bytes;
        self
    }

    /// Bytes a connection may have accepted and not yet handed to the kernel before `send` waits,
    /// 256 KiB by default. One message may go beyond it.
    pub fn outbound_bytes_max(mut self, bytes: usize) -> Self {
        self.config.outbound_bytes_max = bytes;
        self
    }

    /// Connections accepted and not yet taken before a listener stops accepting, 1024 by default. What waits in the
    /// backlog when that is reached may come on top: the kernel accepts all of it in one go.
    pub fn accept_queue_max(mut self, connections: usize) -> Self {
        self.config.accept_queue_max = connections;
        self
    }

    /// Work from other threads that may be queued, 4096 by default.
    pub fn inbox_capacity(mut self, items: usize) -> Self {
        self.config.inbox_capacity = items;
        self
    }

    /// How long what a dropped connection had accepted may still wait to be sent, 5 s by default. At the end of the
    /// runtime only what fits the socket is sent. Time in which the runtime does not run counts, too.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.config.linger_ms_max = u64::try_from(linger.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Builds the runtime on the calling thread, which owns it from then on.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the setting or resource. With [`EngineChoice::Auto`] a host without
    /// io_uring is no error.
    pub fn build(self) -> Result<Runtime, BuildError> {
        Ok(Runtime { inner: Inner::new(Reactor::new(self.config)?) })
    }

    /// Builds a runtime on a simulated kernel. See
    /// [`Reactor::simulated`](ringpost_reactor::Reactor::simulated).
    ///
    /// # Errors
    ///
    /// As [`RuntimeBuilder::build`].
    #[cfg(feature = "sim")]
    pub fn build_simulated(
        self,
        simulation: &ringpost_reactor::sim::Simulation,
    ) -> Result<Runtime, BuildError> {
        Ok(Runtime { inner: Inner::new(Reactor::simulated(self.config, simulation)?) })
    }
}

/// Adds a task to the current runtime.
///
/// # Panics
///
/// Outside of a runtime.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    Inner::current().spawn(future)
}

/// What the current runtime has done so far.
///
/// # Panics
///
/// Outside of a runtime.
pub fn stats() -> Stats {
    Inner::current().reactor.stats()
}

/// Lets the other tasks that are ready run first.
pub async fn yield_now() {
    let yielded = Cell::new(false);
    std::future::poll_fn(|context| {
        if yielded.replace(true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
