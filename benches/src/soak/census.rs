//! What a process says about itself: what it has done, what it holds.

use std::{
    cell::{Cell, OnceCell, RefCell},
    io::{BufRead, Write},
    rc::Rc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use ringpost::Handle;
use serde::{Deserialize, Serialize};

use super::order::{Said, told};

/// One look at a process, from within, between two turns of its runtime. Counts are since its start unless said
/// otherwise.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Census {
    /// Messages received whole and checked.
    pub(crate) messages: u64,
    pub(crate) connections_made: u64,
    /// Connections that the program has now.
    pub(crate) connections_open: u64,
    /// Connections that ended with a deadline of the server.
    pub(crate) cut_off: u64,
    /// Connections that ended before they said whose they are.
    pub(crate) strangers: u64,
    /// Open descriptors of the process now.
    pub(crate) descriptors: u64,
    /// Round trips since the last look.
    pub(crate) round_trips: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    pub(crate) longest_ns: u64,
    pub(crate) turns: u64,
    pub(crate) system_calls: u64,
    pub(crate) completions_stale: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_copied: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) receives_starved: u64,
    pub(crate) receives_paused: u64,
    pub(crate) accepts_deferred: u64,
    pub(crate) pool_blocks: u64,
    pub(crate) pool_blocks_free: u64,
    pub(crate) pool_blocks_kernel: u64,
    pub(crate) pool_blocks_leased: u64,
    pub(crate) operations_in_flight: u64,
    pub(crate) timers_pending: u64,
    pub(crate) connections_lingering: u64,
}

impl Census {
    /// How far the receive blocks are from being conserved.
    pub(crate) fn blocks_lost(&self) -> u64 {
        let sum = self.pool_blocks_free + self.pool_blocks_kernel + self.pool_blocks_leased;
        self.pool_blocks.abs_diff(sum)
    }
}

/// What a process counts.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) messages: Cell<u64>,
    pub(crate) connections_made: Cell<u64>,
    pub(crate) connections_open: Cell<u64>,
    pub(crate) cut_off: Cell<u64>,
    pub(crate) strangers: Cell<u64>,
    /// The load is to end.
    pub(crate) stopping: Cell<bool>,
    round_trips: RefCell<Histogram<u64>>,
}

impl Tally {
    pub(crate) fn new() -> Rc<Self> {
        let histogram = Histogram::new_with_bounds(1, LONGEST_TRIP_NS, 3);
        Rc::new(Self {
            messages: Cell::new(0),
            connections_made: Cell::new(0),
            connections_open: Cell::new(0),
            cut_off: Cell::new(0),
            strangers: Cell::new(0),
            stopping: Cell::new(false),
            round_trips: RefCell::new(histogram.expect("the bounds are constants")),
        })
    }

    pub(crate) fn received(&self) {
        add(&self.messages, 1);
    }

    /// A round trip of a connection whose delay is watched.
    pub(crate) fn round_trip(&self, trip: Duration) {
        let nanoseconds = u64::try_from(trip.as_nanos()).unwrap_or(u64::MAX);
        self.round_trips.borrow_mut().saturating_record(nanoseconds);
    }

    /// Counts a connection while it is alive.
    pub(crate) fn open(self: &Rc<Self>) -> Open {
        add(&self.connections_made, 1);
        add(&self.connections_open, 1);
        Open(Rc::clone(self))
    }

    /// The state of this process now. Called within its runtime.
    pub(crate) fn census(&self) -> Result<Census> {
        let mut trips = self.round_trips.borrow_mut();
        let stats = ringpost::stats();
        let census = Census {
            messages: self.messages.get(),
            connections_made: self.connections_made.get(),
            connections_open: self.connections_open.get(),
            cut_off: self.cut_off.get(),
            strangers: self.strangers.get(),
            descriptors: own_descriptors()?,
            round_trips: trips.len(),
            p50_ns: trips.value_at_quantile(0.5),
            p99_ns: trips.value_at_quantile(0.99),
            p999_ns: trips.value_at_quantile(0.999),
            longest_ns: trips.max(),
            turns: stats.turns,
            system_calls: stats.system_calls,
            completions_stale: stats.completions_stale,
            bytes_received: stats.bytes_received,
            bytes_copied: stats.bytes_copied,
            bytes_sent: stats.bytes_sent,
            receives_starved: stats.receives_starved,
            receives_paused: stats.receives_paused,
            accepts_deferred: stats.accepts_deferred,
            pool_blocks: stats.pool_blocks,
            pool_blocks_free: stats.pool_blocks_free,
            pool_blocks_kernel: stats.pool_blocks_kernel,
            pool_blocks_leased: stats.pool_blocks_leased,
            operations_in_flight: stats.operations_in_flight,
            timers_pending: stats.timers_pending,
            connections_lingering: stats.connections_lingering,
        };
        trips.reset();
        Ok(census)
    }
}

/// A connection that is counted as open.
#[derive(Debug)]
pub(crate) struct Open(Rc<Tally>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections_open.set(self.0.connections_open.get() - 1);
    }
}

pub(crate) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

/// Says a line to the parent.
pub(crate) fn say(said: &Said) -> Result<()> {
    let line = serde_json::to_string(said)?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).context("telling the parent")
}

/// Ends the process with the reason of a failure: nothing that comes after it would mean anything.
pub(crate) fn fail(error: &anyhow::Error) -> ! {
    eprintln!("{error:#}");
    std::process::exit(1)
}

thread_local! {
    static OWN: OnceCell<Rc<Tally>> = const { OnceCell::new() };
}

/// Answers what the parent asks for, from the thread of the runtime. Called there, once.
pub(crate) fn listen(handle: Handle, tally: &Rc<Tally>) -> Result<()> {
    OWN.with(|own| own.set(Rc::clone(tally))).ok().context("one tally for a thread")?;
    let thread = thread::Builder::new().name("told".into());
    thread.spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let work = match line.as_str() {
                told::SAMPLE => sample as fn(),
                told::STOP => stop,
                _ => fail(&anyhow::anyhow!("told {line:?}, which means nothing")),
            };
            // The runtime has ended if this fails, and with it the process.
            let _ = handle.submit(work);
        }
    })?;
    Ok(())
}

fn sample() {
    let said = own(|tally| tally.census().map(|census| Said::Sample(Box::new(census))));
    if let Err(error) = said.and_then(|said| say(&said)) {
        fail(&error);
    }
}

fn stop() {
    own(|tally| tally.stopping.set(true));
}

fn own<T>(look: impl FnOnce(&Tally) -> T) -> T {
    OWN.with(|own| look(own.get().expect("set before the first line is read")))
}

/// Open descriptors of this process, but for the one that they are counted with.
fn own_descriptors() -> Result<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").context("reading /proc/self/fd")?;
    Ok((entries.count() as u64).saturating_sub(1))
}

const LONGEST_TRIP_NS: u64 = 60_000_000_000;
