//! The seam between the reactor and whatever performs its operations.
//!
//! Everything above speaks [`Request`]s and [`Completion`]s; an [`Engine`] turns one into the other.
//! Two implement it, io_uring and epoll, and nothing in it keeps a simulated kernel from being a third. The
//! contract:
//!
//! * `push` stages; nothing happens before `enter`.
//! * `enter` performs what is staged in order, and blocks only if `want` is 1 and nothing has
//!   completed. It may perform fewer requests than are staged; `staged` says how many are left.
//! * Every request but a *silent* one ends in exactly one terminal completion (`more == false`),
//!   possibly after several with `more == true`.
//! * A silent send posts its terminal completion only if it was short or refused, and then before
//!   the `enter` that performed it returns. Hence: after an `enter` with `staged() == 0` and a `reap`,
//!   every silent send without completion has been taken whole.
//! * The memory that a request points to is used until its terminal completion (or, for a silent
//!   send, until the `enter` that performed it).

use std::os::fd::RawFd;
use std::time::Instant;

use crate::pool::BlockId;

/// Names one operation: slot and generation of the op table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub(crate) u64);

impl Token {
    pub(crate) fn new(slot: usize, generation: u32) -> Self {
        let slot = u32::try_from(slot).expect("the op table is bounded far below 2^32");
        Self(u64::from(generation) << 32 | u64::from(slot))
    }

    pub(crate) fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// One operation, as an engine sees it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub(crate) enum Request {
    /// Receive into provided blocks until it ends or is cancelled.
    Receive {
        /// The connected socket.
        fd: RawFd,
    },
    /// Send `len` bytes at `data`.
    Send {
        /// The connected socket.
        fd: RawFd,
        /// First byte.
        data: *const u8,
        /// Number of bytes.
        len: u32,
        /// Post a completion only if short or refused; never wait for room.
        silent: bool,
    },
    /// Send what a message header gathers.
    SendMessage {
        /// The connected socket.
        fd: RawFd,
        /// The header, with its I/O vector.
        header: *const libc::msghdr,
        /// Post a completion only if short or refused; never wait for room.
        silent: bool,
    },
    /// Accept connections until it ends or is cancelled.
    Accept {
        /// The listening socket.
        fd: RawFd,
    },
    /// Complete each time the event descriptor is rung.
    Doorbell {
        /// The eventfd.
        fd: RawFd,
    },
    /// Complete once when the peer has shut down or closed.
    Hangup {
        /// The connected socket.
        fd: RawFd,
    },
    /// Complete once when a read would not wait: something is there, or the socket has ended or failed. The
    /// result is the poll mask (poll(2)). At most one for a descriptor at a time, and no `Receive`.
    Readable {
        /// The socket.
        fd: RawFd,
    },
    /// Complete once when a send would not wait: there is room, or the socket has failed. The result is the
    /// poll mask (poll(2)). At most one for a descriptor at a time, and no send.
    Writable {
        /// The socket.
        fd: RawFd,
    },
    /// End the operation `target` early.
    Cancel {
        /// The operation to end.
        target: Token,
        /// The descriptor it works on.
        fd: RawFd,
    },
}

/// Received bytes in a provided block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    /// The block.
    pub(crate) block: BlockId,
    /// Offset of the first byte in the block.
    pub(crate) offset: u32,
    /// Number of bytes.
    pub(crate) len: u32,
    /// The engine writes nothing more into this block.
    pub(crate) last: bool,
}

/// What became of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion {
    /// The operation.
    pub(crate) token: Token,
    /// Bytes, a descriptor, zero, or a negated error number.
    pub(crate) result: i32,
    /// The operation goes on.
    pub(crate) more: bool,
    /// Where received bytes lie.
    pub(crate) received: Option<Received>,
}

/// Why an engine can't go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The kernel refused to perform anything, with an error that retrying can't mend.
    #[error("{call} failed: {source}")]
    Fatal {
        /// The system call.
        call: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// The staging queue has no room until the next `enter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueFull;

/// Performs operations. See the module documentation for the contract.
pub(crate) trait Engine {
    /// Stages one request.
    ///
    /// # Safety
    ///
    /// Memory that the request points to stays valid and, unless the request is a receive,
    /// unchanged until its terminal completion (a silent send: until `staged` is zero again).
    /// Descriptors stay open as long.
    unsafe fn push(&mut self, token: Token, request: Request) -> Result<(), QueueFull>;

    /// Requests staged and not yet performed.
    fn staged(&self) -> usize;

    /// Performs staged requests and collects completions. With `wait`, blocks until there is at
    /// least one completion or `deadline` passes.
    fn enter(&mut self, wait: bool, deadline: Option<Instant>) -> Result<(), EngineError>;

    /// Moves collected completions to `batch`, oldest first.
    fn reap(&mut self, batch: &mut Vec<Completion>);

    /// The completions reaped so far have been dispatched. Sockets whose readiness was told and that were not
    /// asked for anew meanwhile are let go of here; until then the caller keeps them open.
    fn settle(&mut self);

    /// A hint for spinning: would `enter` deliver something now? Costs no system call where the
    /// engine can see it in memory.
    fn ready(&mut self) -> bool;

    /// Says whether the caller spins: it then calls `ready` in a loop, and the engine may serve few
    /// connections by hand instead of waiting for the kernel to tell of them. An `enter` that waits
    /// ends it.
    fn spin(&mut self, on: bool);

    /// Blocks the engine wants besides those for the kernel to fill.
    fn extra_blocks(&self) -> usize;

    /// Hands a block of the pool to the engine to receive into.
    fn provide(&mut self, block: BlockId);

    /// Blocks the engine holds and has not finished, for shutdown. Called once no receive is left.
    fn surrender_blocks(&mut self) -> Vec<BlockId>;

    /// System calls made so far.
    fn system_calls(&self) -> u64;
}

/// Moves completions on; an exchange of the two queues in the usual case that `batch` is empty.
#[inline]
pub(crate) fn hand_over(completions: &mut Vec<Completion>, batch: &mut Vec<Completion>) {
    if batch.is_empty() {
        std::mem::swap(completions, batch);
    } else {
        batch.append(completions);
    }
}
