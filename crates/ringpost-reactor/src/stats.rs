//! What a runtime has done so far, for its user to read at any time.

use std::cell::Cell;

/// Counters of one reactor, since its start unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Turns of the loop.
    pub turns: u64,
    /// System calls made by the engine.
    pub system_calls: u64,
    /// Times the thread was parked in the kernel.
    pub parks: u64,
    /// Operations started.
    pub operations: u64,
    /// Completions dispatched.
    pub completions: u64,
    /// Most completions dispatched in one turn.
    pub completions_per_turn_max: u64,
    /// Completions that named no operation in flight; stays zero unless the kernel repeats itself.
    pub completions_stale: u64,
    /// Bytes received from sockets.
    pub bytes_received: u64,
    /// Received bytes that were copied in user space: because the pool ran low, or because somebody
    /// asked for one slice of a message that lies in several pieces.
    pub bytes_copied: u64,
    /// Bytes handed to the kernel to send.
    pub bytes_sent: u64,
    /// Packets received, including those that were too long.
    pub packets_received: u64,
    /// Packets that were longer than allowed, and lost.
    pub packets_truncated: u64,
    /// Packets handed to the kernel to send.
    pub packets_sent: u64,
    /// Packets that had been accepted and could not be sent.
    pub packets_dropped: u64,
    /// Sends that completed within the submitting call, without a completion.
    pub sends_silent: u64,
    /// Sends that were short or refused and waited for room, packets included.
    pub sends_tracked: u64,
    /// Spins that found work.
    pub spins_paid: u64,
    /// Spins that found nothing; several that timers ended early count as one.
    pub spins_unpaid: u64,
    /// Wake-ups because a peer had read what was sent to it, with bytes in them or up to 30 µs later.
    pub early_wakes_paid: u64,
    /// Such wake-ups for nothing. After 16 of them in a row there are none for a while, as after a trial that found
    /// waits no shorter with them.
    pub early_wakes_unpaid: u64,
    /// Times a connection's receive ended because no block was free.
    pub receives_starved: u64,
    /// Times a connection's receive was paused because its reader lagged.
    pub receives_paused: u64,
    /// Times accepting paused for lack of descriptors or memory.
    pub accepts_deferred: u64,
    /// Outbound blocks taken from the allocator.
    pub outbound_blocks_allocated: u64,
    /// Receive blocks in all.
    pub pool_blocks: u64,
    /// Receive blocks that nobody has now.
    pub pool_blocks_free: u64,
    /// Receive blocks with the engine now. `free + kernel + leased` is `pool_blocks` at any time.
    pub pool_blocks_kernel: u64,
    /// Receive blocks lent out or queued for readers now.
    pub pool_blocks_leased: u64,
    /// Fewest receive blocks available at any time.
    pub pool_low_water_blocks: u64,
    /// Operations in flight now.
    pub operations_in_flight: u64,
    /// Timers that have not fired now.
    pub timers_pending: u64,
    /// Dropped connections that still have bytes to send now.
    pub connections_lingering: u64,
}

/// The counters that have no better home, as the reactor keeps them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) turns: Cell<u64>,
    pub(crate) parks: Cell<u64>,
    pub(crate) completions: Cell<u64>,
    pub(crate) completions_per_turn_max: Cell<u64>,
    pub(crate) bytes_received: Cell<u64>,
    pub(crate) bytes_copied: Cell<u64>,
    pub(crate) bytes_sent: Cell<u64>,
    pub(crate) packets_received: Cell<u64>,
    pub(crate) packets_truncated: Cell<u64>,
    pub(crate) packets_sent: Cell<u64>,
    pub(crate) packets_dropped: Cell<u64>,
    pub(crate) sends_silent: Cell<u64>,
    pub(crate) sends_tracked: Cell<u64>,
    pub(crate) receives_starved: Cell<u64>,
    pub(crate) receives_paused: Cell<u64>,
    pub(crate) accepts_deferred: Cell<u64>,
}

/// Adds to a counter.
pub(crate) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get().wrapping_add(count));
}
