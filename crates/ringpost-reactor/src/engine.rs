//! The seam between the reactor and whatever performs its operations.
//!
//! Everything above speaks [`Request`]s and [`Completion`]s; an [`Engine`] turns one into the other.
//! io_uring and epoll implement it, and a simulated kernel. The contract, which the tests in
//! `conformance` hold all of them to:
//!
//! * `push` stages; nothing happens before `enter`, except that what needs no kernel (a cancel of what
//!   is tried by hand) may be done at once, and that `ready` may perform what is tried by hand.
//! * `enter` performs what is staged, for each descriptor in the order in which it was staged, and blocks
//!   only if it is to wait and nothing has completed. It may perform fewer requests than are staged;
//!   `staged` says how many are left, with what an engine whose caller spins has staged for itself. It may return from a wait with nothing.
//! * Every request but a *silent* one ends in exactly one terminal completion (`more == false`),
//!   possibly after several with `more == true`, and nothing is told of it afterwards. Only receives,
//!   accepts and doorbells have completions with `more == true`.
//! * A silent send posts its terminal completion only if it was short or refused, and then before
//!   the `enter` that performed it returns. Hence: after an `enter` with `staged() == 0` and a `reap`,
//!   every silent send without completion has been taken whole.
//! * A send takes a front part of its bytes: the result says how many, also if it was cancelled or failed
//!   behind them. One that is not silent waits while nothing fits; it need not be whole when it ends.
//! * A receive delivers the bytes of its socket in order and without a gap, each delivery into one block
//!   that was provided, behind what was delivered into this block before. `last` comes with the
//!   delivery that fills a block, at the latest; a block that is not shared is `last` at once. A terminal
//!   completion may bring bytes too, or give a block back without any.
//! * The end of a stream is a terminal result of zero, behind all of its bytes; a reset is `ECONNRESET`,
//!   once. Without a block a receive ends in `ENOBUFS`: when it finds one missing, or at once; one that is
//!   tried by hand, also if only the block is missing that `extra_blocks` asks for. What has not been
//!   received when a receive ends stays in the socket for the next one.
//! * An accept on a listener that was shut down ends in `EINVAL` (epoll), or hears nothing more (io_uring);
//!   no wait is ended by it again and again.
//! * A cancel ends in zero, `ENOENT` or `EALREADY`, which is a hint: what counts is the terminal completion
//!   of its target, which comes soon, before it or after it. A target that was ended with nothing done says
//!   `ECANCELED`, or `EINTR` if it was running.
//! * Completions of different operations come in any order.
//! * The memory that a request points to is used until its terminal completion (or, for a silent
//!   send, until the `enter` that performed it).
//!
//! And of the caller: for each descriptor there is at most one receive, accept or readable at a time, and
//! at most one send or writable; a send is staged when the one before it has been performed and was
//! told, if it is told at all.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::early::EarlyWakes;
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
    /// Complete once when a send would not wait: there is room, or the socket has failed. That the peer has
    /// shut down its writing is neither. The result is the poll mask (poll(2)). At most one for a descriptor
    /// at a time, and no send.
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

impl Request {
    /// The descriptor that it works on.
    pub(crate) fn descriptor(&self) -> RawFd {
        match *self {
            Self::Receive { fd }
            | Self::Send { fd, .. }
            | Self::SendMessage { fd, .. }
            | Self::Accept { fd }
            | Self::Doorbell { fd }
            | Self::Hangup { fd }
            | Self::Readable { fd }
            | Self::Writable { fd }
            | Self::Cancel { fd, .. } => fd,
        }
    }
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

/// Longest single wait in the kernel: whoever waits longer waits again. What does not fit the milliseconds of
/// epoll_wait(2) takes a call that older kernels and filters refuse, and a sum of times in the kernel must not overflow.
const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long to wait in the kernel for `deadline`.
pub(crate) fn wait_for(deadline: Instant, now: Instant) -> Duration {
    deadline.saturating_duration_since(now).min(WAIT_MAX)
}

/// Performs operations. See the module documentation for the contract.
pub(crate) trait Engine {
    /// Stages one request.
    ///
    /// # Safety
    ///
    /// Memory that the request points to stays valid and, unless the request is a receive,
    /// unchanged until its terminal completion (a silent send: until `staged` is zero again).
    /// Descriptors stay open as long, or until nothing more is asked of the engine but to be dropped.
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

    /// Early wake-ups so far, of engines that know them.
    fn early_wakes(&self) -> EarlyWakes {
        EarlyWakes::default()
    }
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

/// An engine and what was pushed to it: the memory and the descriptors that requests name are owned here
/// until their ends, so that tests can push anything.
#[cfg(test)]
pub(crate) mod kept {
    use std::collections::{BTreeMap, VecDeque};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::rc::Rc;
    use std::time::Instant;

    use super::{Completion, Engine, EngineError, QueueFull, Request, Token};
    use crate::memory::shadow;

    /// What a test asks for; see [`Request`].
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) enum Plan {
        Receive,
        Send { bytes: Vec<u8>, silent: bool },
        SendParts { parts: Vec<Vec<u8>>, silent: bool },
        Accept,
        Doorbell,
        Hangup,
        Readable,
        Writable,
        Cancel(Token),
    }

    /// What a request names.
    struct Memory {
        _descriptor: Rc<OwnedFd>,
        bytes: Vec<Vec<u8>>,
        vector: Vec<libc::iovec>,
        header: Option<Box<libc::msghdr>>,
        silent: bool,
        accepts: bool,
    }

    pub(crate) struct Kept<E: Engine> {
        pub(crate) engine: E,
        /// Of what has not ended; leaked if the engine goes before.
        memory: BTreeMap<u64, Memory>,
        /// What accepts have delivered, oldest first.
        pub(crate) accepted: VecDeque<OwnedFd>,
    }

    impl<E: Engine> Kept<E> {
        pub(crate) fn new(engine: E) -> Self {
            Self { engine, memory: BTreeMap::new(), accepted: VecDeque::new() }
        }

        pub(crate) fn push(
            &mut self,
            token: Token,
            descriptor: &Rc<OwnedFd>,
            plan: &Plan,
        ) -> Result<(), QueueFull> {
            assert!(!self.memory.contains_key(&token.0), "a token is used once at a time");
            let fd = descriptor.as_raw_fd();
            let mut memory = Memory {
                _descriptor: Rc::clone(descriptor),
                bytes: Vec::new(),
                vector: Vec::new(),
                header: None,
                silent: false,
                accepts: *plan == Plan::Accept,
            };
            let request = match plan {
                Plan::Receive => Request::Receive { fd },
                Plan::Accept => Request::Accept { fd },
                Plan::Doorbell => Request::Doorbell { fd },
                Plan::Hangup => Request::Hangup { fd },
                Plan::Readable => Request::Readable { fd },
                Plan::Writable => Request::Writable { fd },
                Plan::Cancel(target) => Request::Cancel { target: *target, fd },
                Plan::Send { bytes, silent } => {
                    let bytes = bytes.clone();
                    let (data, len) = (bytes.as_ptr(), u32::try_from(bytes.len()).unwrap());
                    memory.bytes.push(bytes);
                    memory.silent = *silent;
                    Request::Send { fd, data, len, silent: *silent }
                }
                Plan::SendParts { parts, silent } => {
                    memory.bytes.clone_from(parts);
                    memory.silent = *silent;
                    let part = |part: &Vec<u8>| libc::iovec {
                        iov_base: part.as_ptr().cast_mut().cast(),
                        iov_len: part.len(),
                    };
                    memory.vector = memory.bytes.iter().map(part).collect();
                    // SAFETY: a message header of zeros is one without anything.
                    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
                    header.msg_iov = memory.vector.as_mut_ptr();
                    header.msg_iovlen = memory.vector.len();
                    let header = memory.header.insert(Box::new(header));
                    Request::SendMessage { fd, header: &raw const **header, silent: *silent }
                }
            };
            // SAFETY: `memory` owns what the request names, on the heap, and is kept unchanged until the
            // terminal completion (`enter` here), or for ever.
            unsafe { self.engine.push(token, request) }?;
            self.memory.insert(token.0, memory);
            Ok(())
        }

        /// Enters and reaps.
        pub(crate) fn enter(
            &mut self,
            wait: bool,
            deadline: Option<Instant>,
        ) -> Result<Vec<Completion>, EngineError> {
            self.engine.enter(wait, deadline)?;
            let performed = self.engine.staged() == 0;
            let batch = self.reap();
            if performed {
                self.memory.retain(|_, memory| !memory.silent);
            }
            Ok(batch)
        }

        /// Reaps without an enter.
        pub(crate) fn reap(&mut self) -> Vec<Completion> {
            let mut batch = Vec::new();
            self.engine.reap(&mut batch);
            for done in &batch {
                let accepts = self.memory.get(&done.token.0).is_some_and(|memory| memory.accepts);
                if accepts && done.result >= 0 {
                    // SAFETY: an accept has just made this descriptor, and says so once.
                    let socket = unsafe { OwnedFd::from_raw_fd(done.result) };
                    self.accepted.push_back(socket);
                }
                if !done.more {
                    self.memory.remove(&done.token.0);
                }
            }
            batch
        }

        /// Operations that have not ended.
        pub(crate) fn live(&self) -> usize {
            self.memory.len()
        }
    }

    impl<E: Engine> Drop for Kept<E> {
        fn drop(&mut self) {
            if !self.memory.is_empty() {
                shadow::leak(Box::leak(Box::new(std::mem::take(&mut self.memory))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_fits_what_kernels_count_in() {
        let now = Instant::now();
        let wait = |left| wait_for(now + left, now);
        assert_eq!(wait(Duration::from_millis(7)), Duration::from_millis(7));
        assert_eq!(wait_for(now, now + Duration::from_secs(1)), Duration::ZERO);
        for days in [1, 25, 1 << 20, 1 << 40] {
            let wait = wait(Duration::from_secs(days * 24 * 60 * 60));
            // Milliseconds of epoll_wait(2).
            assert!(i32::try_from(wait.as_millis()).is_ok(), "{days} days");
            assert!(wait >= Duration::from_secs(60), "{days} days");
        }
    }
}
