//! The reactor: one turn stages what is wanted, enters the engine once, and hands out what came.
//!
//! ```text
//!   tasks run (above this crate)
//!   -> stage      every dirty connection's outbound bytes become one send
//!   -> wait       spin, then park: one `enter` submits everything and waits
//!   -> reap       completions are moved to a local batch
//!   -> dispatch   they update connections and collect wakers
//!   -> wake       no borrow is alive while wakers run
//! ```

#[cfg(test)]
mod blocks_tests;
#[cfg(feature = "sim")]
mod checks;
mod failure;
mod shutdown;
mod sleep;
#[cfg(test)]
mod spinning_tests;
#[cfg(test)]
mod unclaimed_tests;
#[cfg(test)]
mod wakers_tests;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::any_engine::AnyEngine;
use crate::by_hand::HandReceiver;
use crate::capabilities::{EngineKind, EngineReport};
use crate::clock::Clock;
use crate::config::{BuildError, Config};
use crate::engine::{Completion, Engine, EngineError, Request, Token};
use crate::leakable::Leakable;
use crate::lingering::Lingering;
use crate::listener::{Listener, ListenerCell};
use crate::memory::{ForkMark, OutboundBlocks};
use crate::open::Open;
use crate::ops::{Ops, Owner};
use crate::packet::{PacketOptions, Packets};
use crate::packet_cell::{PacketCell, PacketWork};
use crate::pool::Pool;
use crate::retries::Retries;
use crate::spin::{Spin, Spinner};
use crate::stats::{Counters, Stats, add};
use crate::stream::{Rests, Stream, StreamCell, StreamError};
use crate::timers::Timers;

#[cfg(feature = "sim")]
pub(crate) use self::checks::assert_once;
pub use self::sleep::Sleep;
use crate::wake::Inbox;

/// Shared blocks kept with the kernel at first: 256 KiB, because it fills all of them in turn and they are
/// to stay in the cache (ARCHITECTURE.md, measured decisions).
const PROVIDE_INITIAL_BLOCKS: usize = 2;
/// Iterations of a spin between two looks at the clock.
const SPINS_PER_CLOCK: u32 = 32;

/// The parts of a reactor that staging and dispatching work on.
pub(crate) struct Driver {
    /// Left alone in a forked child: its memory is mapped in the parent only.
    pub(crate) engine: Leakable<AnyEngine>,
    pub(crate) ops: Ops,
    pub(crate) pool: Pool,
    /// For connections that take descriptors.
    pub(crate) hands: HandReceiver,
    timers: Timers,
    pub(crate) clock: Clock,
    spinner: Spinner,
    batch: Vec<Completion>,
    pub(crate) wakers: Vec<Waker>,
    /// Connections whose receive waits for a free block, oldest first.
    pub(crate) starved: VecDeque<Rc<StreamCell>>,
    /// Connections that need something which found no room; retried every turn.
    pub(crate) retry: Retries<StreamCell>,
    /// Connections that the kernel had no memory for.
    pub(crate) rests: Rests,
    /// Listeners whose accept ended, and when to arm it again.
    pub(crate) resting: Vec<(Instant, Rc<ListenerCell>)>,
    /// Dropped connections with bytes still to send.
    pub(crate) lingering: Lingering<StreamCell>,
    /// Cancels that found no room; retried every turn.
    pub(crate) cancels: Vec<(Token, std::os::fd::RawFd)>,
    /// What packet sockets need.
    pub(crate) packets: PacketWork,
    /// Whose readiness was told in this turn; kept open until the engine has settled.
    told: Vec<Owner>,
    /// Blocks to keep with the kernel. Few, so that the same cache-warm memory is filled again; more
    /// after the kernel ran out.
    provide_target: usize,
    doorbell: Option<Token>,
    /// Sends must not rely on silent completion.
    pub(crate) tracked_only: bool,
    /// Receives need a hang-up poll to see every end of file.
    pub(crate) guard_hangup: bool,
    /// Set once the engine can't go on: the error number all operations report from then on.
    failed: Option<i32>,
    inbox: Arc<Inbox>,
    /// The failure that made room for a request ran into, wherever that was: the next turn tells everybody.
    untold: Option<EngineError>,
}

/// Shared by the reactor and everything that lives on it. One thread only.
pub(crate) struct Core {
    pub(crate) driver: RefCell<Driver>,
    pub(crate) blocks: RefCell<OutboundBlocks>,
    pub(crate) dirty: RefCell<Vec<Rc<StreamCell>>>,
    pub(crate) dirty_packets: RefCell<Vec<Rc<PacketCell>>>,
    /// Dropped streams that have sent what they had, and still linger.
    pub(crate) drained: RefCell<Vec<Rc<StreamCell>>>,
    pub(crate) counters: Counters,
    pub(crate) config: Config,
    clock: Clock,
    inbox: Arc<Inbox>,
    report: EngineReport,
    closed: Cell<bool>,
    pub(crate) open_streams: Open<StreamCell>,
    pub(crate) open_packets: Open<PacketCell>,
    #[cfg(feature = "sim")]
    pub(crate) streams: RefCell<crate::parked::Live<StreamCell>>,
    #[cfg(feature = "sim")]
    pub(crate) packet_sockets: RefCell<crate::parked::Live<PacketCell>>,
    /// Since this was last looked at somebody has begun to wait for room or for a flush, or a payload was sent whose
    /// owner may learn that it is over.
    pub(crate) end_of_send_matters: Cell<bool>,
}

/// A reactor: engine, buffers, connections and timers of one thread. Clones share it.
#[derive(Clone)]
pub struct Reactor {
    pub(crate) core: Rc<Core>,
}

/// Whether a turn may block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// Return at once.
    No,
    /// Block until something happens.
    Forever,
    /// Block until something happens or this instant.
    Until(Instant),
}

impl Reactor {
    /// Builds a reactor on the calling thread, which owns it from then on.
    ///
    /// # Errors
    ///
    /// [`BuildError`] says which resource or setting is the cause.
    pub fn new(config: Config) -> Result<Self, BuildError> {
        config.validate()?;
        let fork = ForkMark::new().map_err(BuildError::resource("a page"))?;
        let inbox = Inbox::new(config.inbox_capacity, fork);
        let inbox = Arc::new(inbox.map_err(BuildError::resource("eventfd"))?);
        let built = AnyEngine::choose(&config, &inbox)?;
        Ok(Self::of(config, inbox, built, Clock::default()))
    }

    /// Builds a reactor on a simulated kernel, which it shares with nobody. Of the configuration, `engine`
    /// and `pool_bytes` do not matter, and whether it spins is the simulation's choice.
    ///
    /// # Errors
    ///
    /// As [`Reactor::new`].
    #[cfg(feature = "sim")]
    pub fn simulated(
        config: Config,
        simulation: &crate::sim::Simulation,
    ) -> Result<Self, BuildError> {
        let config = Config { spin: simulation.spin(), ..config };
        config.validate()?;
        let inbox = Inbox::new(config.inbox_capacity, ForkMark::none());
        let inbox = Arc::new(inbox.map_err(BuildError::resource("eventfd"))?);
        let built = AnyEngine::simulated(simulation, &inbox)?;
        let reactor = Self::of(config, inbox, built, simulation.clock());
        reactor.core.driver.borrow_mut().spinner.simulate();
        Ok(reactor)
    }

    fn of(
        config: Config,
        inbox: Arc<Inbox>,
        (engine, pool, report): (AnyEngine, Pool, EngineReport),
        clock: Clock,
    ) -> Self {
        tracing::debug!(engine = %report, "reactor built");
        let capabilities = report.capabilities.as_ref();
        let provide_target = if engine.shares_blocks() {
            PROVIDE_INITIAL_BLOCKS.min(pool.blocks())
        } else {
            blocks_to_provide_max(&pool)
        };
        let mut driver = Driver {
            tracked_only: capabilities.is_some_and(|found| !found.silent_sends.is_yes()),
            guard_hangup: match report.kind {
                // Also where the preflight saw no end lost: a busy kernel was seen to lose one behind data that it
                // delivered in time (6.18.44), and its receive stayed armed for ever.
                EngineKind::Uring => true,
                EngineKind::Epoll => false,
                // On a simulated ring as on a real one; elsewhere where it is needed.
                #[cfg(feature = "sim")]
                EngineKind::Simulated => {
                    engine.is_ring()
                        || capabilities.is_some_and(|found| !found.end_of_file.is_yes())
                }
            },
            engine: Leakable::new(engine),
            ops: Ops::default(),
            pool,
            hands: HandReceiver::default(),
            timers: Timers::default(),
            clock: clock.clone(),
            spinner: Spinner::new(config.spin),
            batch: Vec::with_capacity(256),
            wakers: Vec::with_capacity(256),
            starved: VecDeque::new(),
            retry: Retries::default(),
            rests: Rests::default(),
            resting: Vec::new(),
            lingering: Lingering::default(),
            cancels: Vec::new(),
            packets: PacketWork::default(),
            told: Vec::new(),
            provide_target,
            doorbell: None,
            failed: None,
            inbox: Arc::clone(&inbox),
            untold: None,
        };
        if config.spin == Spin::Always {
            driver.engine.spin(true);
        }
        driver.provide();
        driver.arm_doorbell(&inbox);
        let core = Core {
            driver: RefCell::new(driver),
            blocks: RefCell::new(OutboundBlocks::new()),
            dirty: RefCell::new(Vec::new()),
            dirty_packets: RefCell::new(Vec::new()),
            drained: RefCell::new(Vec::new()),
            counters: Counters::default(),
            config,
            clock,
            inbox,
            report,
            closed: Cell::new(false),
            open_streams: Open::default(),
            open_packets: Open::default(),
            #[cfg(feature = "sim")]
            streams: RefCell::default(),
            #[cfg(feature = "sim")]
            packet_sockets: RefCell::default(),
            end_of_send_matters: Cell::new(false),
        };
        Self { core: Rc::new(core) }
    }

    /// Which engine runs, why, and what it can do.
    pub fn report(&self) -> &EngineReport {
        &self.core.report
    }

    /// The mailbox through which other threads reach this reactor.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.core.inbox
    }

    /// The time by which this reactor goes: that of [`Instant::now`].
    #[inline]
    pub fn now(&self) -> Instant {
        self.core.clock.now()
    }

    /// The settings in force.
    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// Takes over a connected stream socket and starts to receive from it.
    pub fn adopt_stream(&self, socket: OwnedFd) -> Stream {
        Stream::adopt(&self.core, socket)
    }

    /// Takes over a connected Unix-domain stream socket and starts to receive bytes and descriptors
    /// from it, without multishot receives. Receiving pauses while `held_max` descriptors or more wait to
    /// be [claimed](Stream::claim_descriptors).
    pub fn adopt_stream_with_descriptors(&self, socket: OwnedFd, held_max: usize) -> Stream {
        Stream::adopt_with_descriptors(&self.core, socket, held_max)
    }

    /// Takes over a packet socket and starts to receive from it.
    pub fn adopt_packets(&self, socket: OwnedFd, options: PacketOptions) -> Packets {
        Packets::adopt(&self.core, socket, options)
    }

    /// Takes over a listening socket and starts to accept on it. It is made non-blocking, for everyone who holds the
    /// same socket: with one that is made blocking again, accepting on epoll waits for the next connection.
    pub fn adopt_listener(&self, socket: OwnedFd) -> Listener {
        Listener::adopt(&self.core, socket)
    }

    /// A future that is ready at `at`.
    pub fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep::new(Rc::clone(&self.core), at)
    }

    /// Turns of the loop so far.
    #[inline]
    pub fn turns(&self) -> u64 {
        self.core.counters.turns.get()
    }

    /// Counters so far.
    pub fn stats(&self) -> Stats {
        let driver = self.core.driver.borrow();
        let counters = &self.core.counters;
        Stats {
            turns: counters.turns.get(),
            system_calls: driver.engine.system_calls()
                + driver.hands.system_calls
                + driver.packets.system_calls,
            parks: counters.parks.get(),
            operations: driver.ops.started,
            completions: counters.completions.get(),
            completions_per_turn_max: counters.completions_per_turn_max.get(),
            completions_stale: driver.ops.stale,
            bytes_received: counters.bytes_received.get(),
            bytes_copied: counters.bytes_copied.get() + driver.pool.copied_bytes(),
            bytes_sent: counters.bytes_sent.get(),
            packets_received: counters.packets_received.get(),
            packets_truncated: counters.packets_truncated.get(),
            packets_sent: counters.packets_sent.get(),
            packets_dropped: counters.packets_dropped.get(),
            sends_silent: counters.sends_silent.get(),
            sends_tracked: counters.sends_tracked.get(),
            spins_paid: driver.spinner.paid,
            spins_unpaid: driver.spinner.unpaid,
            early_wakes_paid: driver.engine.early_wakes().paid,
            early_wakes_unpaid: driver.engine.early_wakes().unpaid,
            receives_starved: counters.receives_starved.get(),
            receives_paused: counters.receives_paused.get(),
            accepts_deferred: counters.accepts_deferred.get(),
            outbound_blocks_allocated: self.core.blocks.borrow().allocated,
            pool_blocks: driver.pool.blocks() as u64,
            pool_blocks_free: driver.pool.free_blocks() as u64,
            pool_blocks_kernel: driver.pool.kernel_blocks() as u64,
            pool_blocks_leased: driver.pool.leased_blocks() as u64,
            pool_low_water_blocks: driver.pool.low_water_blocks() as u64,
            operations_in_flight: driver.ops.len() as u64,
            timers_pending: driver.timers.len() as u64,
            connections_lingering: (driver.lingering.len() + driver.packets.lingering()) as u64,
        }
    }

    /// One turn: hands everything queued to the kernel, waits as `wait` allows, and dispatches what
    /// came. Also returns when the mailbox has been notified; emptying it is the caller's part.
    ///
    /// # Errors
    ///
    /// [`EngineError`] once, when the engine can't go on; all connections then fail, and later turns
    /// only serve timers. So it is in a forked child of the process that built the reactor.
    pub fn turn(&self, wait: Wait) -> Result<(), EngineError> {
        let core = &self.core;
        add(&core.counters.turns, 1);
        // What was given up since the last turn may wake somebody as it goes, who would be slept over.
        let wait = if core.drop_released() { Wait::No } else { wait };
        let result = core.turn(wait);
        let mut wakers = std::mem::take(&mut core.driver.borrow_mut().wakers);
        for waker in wakers.drain(..) {
            waker.wake();
        }
        core.drop_released();
        // Wakers that were pushed meanwhile are kept; otherwise the allocation is.
        let mut driver = core.driver.borrow_mut();
        if driver.wakers.is_empty() {
            driver.wakers = wakers;
        }
        result
    }

    /// Ends every operation and closes every connection. What has been accepted and fits the sockets
    /// is still sent. Idempotent; called by whoever owns the reactor before it goes.
    pub fn shutdown(&self) {
        self.core.shutdown();
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("engine", &self.core.report.kind).finish_non_exhaustive()
    }
}

impl Driver {
    /// Starts an operation; makes room once if the staging queue is full.
    pub(crate) fn start(&mut self, owner: impl Fn() -> Owner, request: Request) -> Option<Token> {
        if self.failure().is_some() {
            return None;
        }
        if let Some(token) = self.ops.start(&mut *self.engine, owner(), request) {
            return Some(token);
        }
        self.make_room();
        self.ops.start(&mut *self.engine, owner(), request)
    }

    /// Performs what is staged, to make room for more. Completions stay in the engine.
    pub(crate) fn make_room(&mut self) {
        if self.failed.is_none()
            && let Err(error) = self.engine.enter(false, None)
        {
            self.fail(&error);
            self.untold = Some(error);
        }
    }

    /// Starts the cancel of an operation; keeps it for the next turn if there is no room.
    pub(crate) fn cancel(&mut self, target: Token, fd: std::os::fd::RawFd) {
        if self.start(|| Owner::Cancel, Request::Cancel { target, fd }).is_none() {
            self.cancels.push((target, fd));
        }
    }

    /// The error number that all operations report, if the engine can't be used.
    pub(crate) fn failure(&self) -> Option<i32> {
        self.failed.or_else(|| self.inbox.is_in_child().then_some(libc::ECANCELED))
    }

    fn arm_doorbell(&mut self, inbox: &Inbox) {
        self.doorbell = self.start(|| Owner::Doorbell, Request::Doorbell { fd: inbox.bell_fd() });
    }

    /// Something goes by the clock.
    #[inline]
    fn has_clocks(&self) -> bool {
        !(self.timers.is_empty()
            && self.resting.is_empty()
            && self.rests.is_empty()
            && self.lingering.is_empty())
            || self.packets.has_clocks()
    }

    /// When the first of these is due, or `until` if that comes before.
    fn next_due(&self, until: Option<Instant>) -> Option<Instant> {
        let resting = self.resting.iter().map(|(at, _)| *at).min();
        let rests = self.rests.next_due();
        let lingering = self.lingering.next_due();
        let packets = self.packets.next_due();
        let timers = self.timers.next_due();
        [until, timers, resting, rests, lingering, packets].into_iter().flatten().min()
    }

    fn wants_blocks(&self) -> bool {
        let held = self.engine.extra_blocks() + self.hands.blocks() + self.packets.blocks();
        self.pool.kernel_blocks() < self.provide_blocks() + held
    }

    /// Blocks that the engine is to have for its own receives. Who receives by hand takes blocks of the pool, too, and
    /// leaves its last quarter alone: the rest is not the engine's alone then.
    fn provide_blocks(&self) -> usize {
        if self.packets.is_used() || self.hands.is_used() {
            self.provide_target.min(blocks_to_provide_max(&self.pool))
        } else {
            self.provide_target
        }
    }

    /// Blocks that the engine has.
    fn engine_blocks(&self) -> usize {
        let elsewhere = self.hands.blocks() + self.packets.blocks();
        self.pool.kernel_blocks().saturating_sub(elsewhere)
    }

    /// Keeps enough blocks with the engine. True if any was added.
    #[inline]
    fn provide(&mut self) -> bool {
        self.wants_blocks() && self.provide_wanted()
    }

    fn provide_wanted(&mut self) -> bool {
        let mut any = false;
        while self.wants_blocks() {
            let Some(block) = self.pool.take_free() else { break };
            self.engine.provide(block);
            any = true;
        }
        any
    }

    /// A receive found no block: keep more of them with the kernel from now on.
    pub(crate) fn starve(&mut self, stream: Rc<StreamCell>) {
        let most = if !self.engine.shares_blocks() {
            blocks_to_provide_max(&self.pool)
        } else {
            self.pool.blocks()
        };
        self.provide_target = (self.provide_target * 2).min(most);
        self.starved.push_back(stream);
    }

    fn fail(&mut self, error: &EngineError) {
        if self.failed.is_none() {
            let EngineError::Fatal { source, .. } = error;
            tracing::error!(%error, "the engine can't go on; all connections fail");
            self.failed = Some(source.raw_os_error().unwrap_or(libc::EIO));
        }
    }
}

/// A delivered block must not be lost, whatever the completion names that it came with.
fn retire_unclaimed(pool: &mut Pool, done: &Completion) {
    if let Some(range) = done.received.filter(|range| range.last) {
        pool.retire(range.block);
    }
}

/// Blocks that may be with the kernel at once where others need some, too: all but a quarter.
fn blocks_to_provide_max(pool: &Pool) -> usize {
    pool.blocks() - (pool.blocks() / 4).max(1)
}

impl Core {
    /// Drops payloads that are not needed any more, with nothing borrowed. True if there were any.
    #[inline]
    pub(crate) fn drop_released(&self) -> bool {
        if !self.blocks.borrow().has_released() {
            return false;
        }
        let mut released = self.blocks.borrow_mut().take_released();
        released.clear();
        self.blocks.borrow_mut().reuse_list(released);
        true
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get() || self.is_in_child()
    }

    /// True in a forked child: whatever belongs to this reactor is its parent's.
    pub(crate) fn is_in_child(&self) -> bool {
        self.inbox.is_in_child()
    }

    /// Why nobody would wake who begins to wait now.
    pub(crate) fn end(&self) -> Option<StreamError> {
        self.is_closed().then_some(StreamError::RuntimeEnded)
    }

    fn turn(&self, wait: Wait) -> Result<(), EngineError> {
        let (failed, untold) = {
            let mut driver = self.driver.borrow_mut();
            (driver.failed, driver.untold.take())
        };
        if let Some(error) = untold {
            // A request of a task has found out.
            self.fail_all_after_failure();
            return Err(error);
        }
        if let Some(errno) = failed {
            return self.turn_failed(wait, errno);
        }
        if self.is_in_child() {
            let source = io::Error::other("this process was forked from the runtime's");
            let error = EngineError::Fatal { call: "fork", source };
            self.driver.borrow_mut().failed = Some(libc::ECANCELED);
            self.fail_all();
            return Err(error);
        }
        self.stage();
        let outcome = self.wait(wait);
        if let Err(error) = &outcome {
            self.driver.borrow_mut().fail(error);
        }
        // Also what came before a failure.
        self.dispatch();
        let untold = self.driver.borrow_mut().untold.take();
        match outcome.err().or(untold) {
            Some(error) => {
                self.fail_all_after_failure();
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// Turns the outbound bytes of every dirty connection into a send, and repeats what found no room.
    fn stage(&self) {
        let mut dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        {
            let mut driver = self.driver.borrow_mut();
            let driver = &mut *driver;
            if driver.doorbell.is_none() {
                driver.arm_doorbell(&self.inbox);
            }
            if driver.pool.collect_returns() | driver.provide() {
                self.feed_starved(driver);
            }
            if !driver.cancels.is_empty() {
                for (target, fd) in std::mem::take(&mut driver.cancels) {
                    driver.cancel(target, fd);
                }
            }
            if !driver.retry.is_empty() {
                for stream in driver.retry.take() {
                    stream.retry(self, driver);
                }
            }
            for stream in dirty.drain(..) {
                stream.stage(self, driver);
            }
            self.stage_packets(driver);
        }
        // Streams dirtied meanwhile (none today) are kept; otherwise the allocation is.
        let mut slot = self.dirty.borrow_mut();
        if slot.is_empty() {
            *slot = dirty;
        }
    }

    fn feed_starved(&self, driver: &mut Driver) {
        driver.provide();
        // One receive an available block at most: the rest would only starve again.
        for _ in 0..driver.engine_blocks().max(1) {
            let Some(stream) = driver.starved.pop_front() else { break };
            stream.arm_receive(self, driver);
        }
    }

    /// When something must be looked at although nothing completes.
    #[inline]
    fn deadline(&self, wait: Wait, driver: &Driver) -> Option<Instant> {
        let until = match wait {
            Wait::Until(until) => Some(until),
            Wait::Forever | Wait::No => None,
        };
        if driver.has_clocks() { driver.next_due(until) } else { until }
    }

    fn wait(&self, wait: Wait) -> Result<(), EngineError> {
        let mut driver = self.driver.borrow_mut();
        let driver = &mut *driver;
        if driver.failed.is_some() {
            // Making room for what was staged has found out: this turn tells everybody.
            return Ok(());
        }
        let word = self.inbox.mailbox().wake();
        let deadline = self.deadline(wait, driver);
        let due = |now: Instant| deadline.is_some_and(|deadline| deadline <= now);
        let must_not_wait = wait == Wait::No
            || word.is_notified()
            || !driver.retry.is_empty()
            || !driver.cancels.is_empty()
            // It found no room: nobody else could end the wait.
            || driver.doorbell.is_none()
            // Staging packets sends them, and wakes who waited for that.
            || !driver.wakers.is_empty()
            || driver.packets.must_turn()
            || !self.dirty_packets.borrow().is_empty()
            || !self.drained.borrow().is_empty()
            || self.blocks.borrow().has_released()
            || (deadline.is_some() && due(self.clock.now()));
        if must_not_wait {
            // Nothing staged and nothing to see: spare the call.
            if driver.engine.staged() > 0 || driver.engine.ready() {
                driver.engine.enter(false, None)?;
            }
            driver.engine.reap(&mut driver.batch);
            return Ok(());
        }
        // A silent send performed by the call that parks would leave who waits for it asleep: nothing
        // completes. With somebody waiting it is performed, and told whole, first. Received bytes that it passes on
        // may be the block that starved receives wait for.
        if driver.ops.has_silent()
            && (self.end_of_send_matters.replace(false) || !driver.starved.is_empty())
        {
            driver.engine.enter(false, None)?;
            driver.engine.reap(&mut driver.batch);
            // What is left of the queue is for another turn: to perform it and park is the same mistake.
            if !driver.batch.is_empty() || driver.engine.staged() > 0 || self.resolve(driver) {
                return Ok(());
            }
        }
        // From here on a block that comes back on another thread wakes this one.
        if !driver.starved.is_empty() {
            if !driver.pool.declare_starved() {
                return Ok(());
            }
            // The receives that were fed may have nothing to receive, and leave a block for the others
            // that no return would tell of. They get their turn; a wait of no time ends spinning.
            if driver.engine_blocks() > 0 {
                driver.engine.enter(true, Some(self.clock.now()))?;
                driver.engine.reap(&mut driver.batch);
                return Ok(());
            }
        }
        let budget = driver.spinner.budget();
        if budget != Some(Duration::ZERO) {
            if driver.spinner.is_steady() {
                driver.engine.spin(true);
                driver.provide();
            }
            if driver.engine.staged() > 0 {
                driver.engine.enter(false, None)?;
            }
            driver.engine.reap(&mut driver.batch);
            if !driver.batch.is_empty() {
                return Ok(());
            }
            // A silent send that has been performed is whole: others may wait for its room.
            if driver.ops.has_silent() && driver.engine.staged() == 0 && self.resolve(driver) {
                return Ok(());
            }
            let start = self.clock.now();
            let mut spins: u32 = 0;
            loop {
                // What the last enter has left behind is for this one.
                if driver.engine.ready() || driver.engine.staged() > 0 {
                    driver.engine.enter(false, None)?;
                    driver.engine.reap(&mut driver.batch);
                    if !driver.batch.is_empty() {
                        driver.spinner.found(|| self.clock.now() - start);
                        return Ok(());
                    }
                }
                if word.is_notified() {
                    driver.spinner.found(|| self.clock.now() - start);
                    return Ok(());
                }
                if !driver.engine.is_direct() {
                    // Served by hand, every round is a system call and pause enough.
                    std::hint::spin_loop();
                }
                spins = spins.wrapping_add(1);
                if spins.is_multiple_of(SPINS_PER_CLOCK) {
                    let now = self.clock.now();
                    if due(now) {
                        // Or who only waits for the clock, and seldom long enough, would spin for ever.
                        driver.spinner.interrupted(now - start);
                        return Ok(());
                    }
                    if budget.is_some_and(|budget| now - start >= budget) {
                        driver.spinner.wasted();
                        break;
                    }
                }
            }
        }
        if !driver.starved.is_empty() && !driver.pool.declare_starved() {
            return Ok(());
        }
        if !word.park() {
            driver.engine.enter(false, None)?;
            driver.engine.reap(&mut driver.batch);
            return Ok(());
        }
        add(&self.counters.parks, 1);
        #[cfg(feature = "sim")]
        driver.check_parked(self);
        let start = driver.spinner.learns().then(|| self.clock.now());
        let result = driver.engine.enter(true, deadline);
        word.unpark();
        driver.engine.reap(&mut driver.batch);
        if let Some(start) = start
            && !driver.batch.is_empty()
        {
            driver.spinner.parked(self.clock.now() - start);
        }
        result
    }

    /// Hands completions to whom they belong. Order matters in one place: completions first, so that
    /// silent sends without one can be told whole.
    fn dispatch(&self) {
        let mut driver = self.driver.borrow_mut();
        let driver = &mut *driver;
        // All of them: making room for a request of a task leaves some in the engine, and then not every turn
        // has an enter of its own.
        driver.engine.reap(&mut driver.batch);
        // Looked at before completions stage anew: the silent sends in question went before. Once the engine has
        // failed, completions may be left in the kernel, and one that is not there says nothing.
        let performed = driver.engine.staged() == 0 && driver.failed.is_none();
        let mut batch = std::mem::take(&mut driver.batch);
        let count = batch.len() as u64;
        add(&self.counters.completions, count);
        let most = &self.counters.completions_per_turn_max;
        most.set(most.get().max(count));
        for done in batch.drain(..) {
            self.dispatch_one(driver, done);
        }
        driver.batch = batch;
        driver.engine.settle();
        driver.told.clear();
        if driver.ops.has_silent() {
            if performed {
                self.resolve(driver);
            } else {
                // Somebody may wait for one of them, and was looked for already.
                self.end_of_send_matters.set(true);
            }
        }
        if driver.wants_blocks() {
            driver.pool.collect_returns();
            driver.provide();
        }
        if !driver.starved.is_empty() && driver.engine_blocks() > 0 {
            self.feed_starved(driver);
        }
        self.run_clocks(driver);
        #[cfg(feature = "sim")]
        {
            driver.check();
            // Whoever fails has nothing to send; its time ends with the reactor's.
            if !self.closed.get() && driver.failed.is_none() {
                driver.check_lingering();
            }
        }
    }

    /// Finishes silent sends that have been performed. True if there is something to do because of it.
    fn resolve(&self, driver: &mut Driver) -> bool {
        #[cfg(feature = "sim")]
        driver.check_told();
        let Driver { ops, wakers, .. } = driver;
        let before = wakers.len();
        let mut resolved = 0;
        ops.resolve_silent(|stream, memory| {
            resolved += 1;
            stream.sent_silently(self, wakers, memory);
        });
        add(&self.counters.sends_silent, resolved);
        wakers.len() > before
            || !self.dirty.borrow().is_empty()
            || !self.drained.borrow().is_empty()
            || self.blocks.borrow().has_released()
    }

    #[inline]
    fn dispatch_one(&self, driver: &mut Driver, done: Completion) {
        let Some(slot) = driver.ops.get(done.token) else {
            // Stale, but what it carries is not.
            retire_unclaimed(&mut driver.pool, &done);
            return;
        };
        if !matches!(slot.owner, Owner::Receive(_)) {
            retire_unclaimed(&mut driver.pool, &done);
        }
        if done.more {
            match &slot.owner {
                Owner::Receive(stream) => {
                    let stream = Rc::clone(stream);
                    stream.received(self, driver, done);
                }
                Owner::Accept(listener) => {
                    let listener = Rc::clone(listener);
                    listener.accepted(self, driver, done);
                }
                _ => {}
            }
            return;
        }
        let Some(slot) = driver.ops.release(done.token) else { return };
        match slot.owner {
            Owner::Receive(stream) => stream.received(self, driver, done),
            Owner::Send(stream) => {
                if let Some(memory) = slot.memory {
                    stream.sent(self, driver, memory, done.result);
                }
            }
            Owner::Hangup(stream) => stream.hung_up(driver),
            Owner::Readable(stream) => {
                stream.readable(self, driver, done.result);
                driver.told.push(Owner::Readable(stream));
            }
            Owner::Writable(stream) => {
                stream.writable(self, driver, done.result);
                driver.told.push(Owner::Writable(stream));
            }
            Owner::PacketsReadable(cell) => {
                cell.readable(self, driver, done.result);
                driver.told.push(Owner::PacketsReadable(cell));
            }
            Owner::PacketsWritable(cell) => {
                cell.writable(self, driver);
                driver.told.push(Owner::PacketsWritable(cell));
            }
            Owner::Accept(listener) => listener.accepted(self, driver, done),
            Owner::Doorbell => driver.doorbell = None,
            Owner::Cancel => {}
        }
    }

    /// Timers, listeners and connections that rest, and dropped connections that have lingered long enough.
    fn run_clocks(&self, driver: &mut Driver) {
        if !driver.has_clocks() {
            return;
        }
        let now = self.clock.now();
        if driver.packets.has_clocks() {
            self.run_packet_clocks(driver, now);
        }
        let Driver { timers, wakers, .. } = driver;
        timers.fire(now, wakers);
        if driver.resting.iter().any(|(at, _)| *at <= now) {
            let (due, later) =
                std::mem::take(&mut driver.resting).into_iter().partition(|(at, _)| *at <= now);
            driver.resting = later;
            let due: Vec<_> = due;
            for (_, listener) in due {
                listener.arm(self, driver);
            }
        }
        while let Some(stream) = driver.rests.pop_due(now) {
            stream.rest_is_over(driver);
        }
        for stream in self.drained.take() {
            stream.give_up(self, driver);
        }
        while let Some(stream) = driver.lingering.pop_due(now) {
            stream.give_up(self, driver);
        }
    }
}
