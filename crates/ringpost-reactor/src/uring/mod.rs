//! The io_uring engine.
//!
//! One ring a thread, with deferred task work: nothing runs behind the owner's back, completions
//! appear only inside [`Engine::enter`]. Receives are multishot into a provided-buffer ring, in
//! incremental mode where the kernel has it (Linux 6.12), so that many small messages share a block.
//!
//! # Invariants
//!
//! * **U1** Everything that a pushed entry points to is owned by the caller's op slot until the
//!   terminal completion (contract of [`Engine::push`]).
//! * **U2** `written[b]` is the number of bytes the kernel has delivered into block `b`, in
//!   completion order; a block is finished exactly when it is full (incremental) or delivered once
//!   (plain). The kernel's own BUF_MORE flag is not relied on: at end of file some kernels leave it out
//!   though the buffer stays theirs.

mod buffers;
#[cfg(feature = "sim")]
mod checks;
mod direct;
mod kernel;
#[cfg(all(test, feature = "sim"))]
mod late_tests;
mod own;
mod preflight;
#[cfg(test)]
mod real_ring_tests;
mod room;
mod setup;
mod sys;
mod watches;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use io_uring::squeue::{Entry, Flags};
use io_uring::{cqueue, opcode, types};
use rustix::io::Errno;

use self::buffers::{BufferRing, GROUP};
use self::direct::{Direct, SENDS_MAX};
pub(crate) use self::kernel::{Completed, KernelRing, Ring};
use self::own::OwnEntries;
pub(crate) use self::preflight::{Refusal, preflight};
use self::room::Rooms;
pub(crate) use self::setup::Setup;
use self::watches::Watches;
pub(crate) use self::watches::is_watch;
use crate::by_hand::{Attempt, OwnBlock, Pending, count_of};
use crate::early::{Early, EarlyWakes, SEARCHED_MAX, WATCHED_MAX};
use crate::engine::{
    Completion, Engine, EngineError, QueueFull, Received, Request, Token, hand_over, wait_for,
};
use crate::pool::{BlockId, PoolShared};

/// The io_uring engine, on the kernel's ring or another one. See the module documentation.
pub(crate) struct Uring<R = KernelRing> {
    ring: R,
    /// Dropped after `ring`: the kernel reads it until the ring is closed.
    buffers: BufferRing,
    pool: Arc<PoolShared>,
    incremental: bool,
    /// U2; `u32::MAX` for a block that the kernel does not hold.
    written: Box<[u32]>,
    /// Blocks that the kernel holds, by U2.
    in_ring: usize,
    completions: Vec<Completion>,
    direct: Direct,
    rooms: Rooms,
    early: Early,
    watches: Watches,
    own: OwnEntries,
    registered: bool,
    no_iowait: bool,
    system_calls: u64,
    /// Completions whose block accounting made no sense; the ring is not trusted afterwards.
    corrupt: Option<&'static str>,
    owner: u32,
}

const NOT_HELD: u32 = u32::MAX;

/// The token of operations that the engine starts for itself. No slot has this index.
const INTERNAL: Token = Token(u64::MAX);

impl<R: Ring> Uring<R> {
    /// Wraps a ring that [`Setup`] has made.
    fn new(mut ring: R, buffers: BufferRing, pool: Arc<PoolShared>, setup: &Setup) -> Self {
        let blocks = pool.region().len() / pool.block_bytes() as usize;
        let registered = setup.register_ring && ring.register_ring().is_ok();
        let no_iowait = ring.has_no_iowait();
        Self {
            ring,
            buffers,
            pool,
            incremental: setup.incremental,
            written: vec![NOT_HELD; blocks].into(),
            in_ring: 0,
            completions: Vec::with_capacity(256),
            direct: Direct::default(),
            rooms: Rooms::default(),
            early: Early::default(),
            watches: Watches::default(),
            own: OwnEntries::default(),
            registered,
            no_iowait,
            system_calls: 0,
            corrupt: None,
            owner: std::process::id(),
        }
    }

    pub(crate) fn is_incremental(&self) -> bool {
        self.incremental
    }

    /// True while receives are tried by hand.
    pub(crate) fn is_direct(&self) -> bool {
        !self.direct.held.is_empty()
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.registered
    }

    fn entry(request: Request) -> Entry {
        let send_flags = |silent: bool| {
            // A silent send never waits for room (DONTWAIT); both kinds go on until everything is
            // taken or nothing more fits (WAITALL).
            libc::MSG_NOSIGNAL | libc::MSG_WAITALL | if silent { libc::MSG_DONTWAIT } else { 0 }
        };
        let skip = |silent: bool| if silent { Flags::SKIP_SUCCESS } else { Flags::empty() };
        match request {
            Request::Receive { fd } => opcode::RecvMulti::new(types::Fd(fd), GROUP).build(),
            Request::Send { fd, data, len, silent } => opcode::Send::new(types::Fd(fd), data, len)
                .flags(send_flags(silent))
                .build()
                .flags(skip(silent)),
            Request::SendMessage { fd, header, silent } => {
                let flags = send_flags(silent).cast_unsigned();
                opcode::SendMsg::new(types::Fd(fd), header).flags(flags).build().flags(skip(silent))
            }
            Request::Accept { fd } => opcode::AcceptMulti::new(types::Fd(fd))
                .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                .build(),
            Request::Doorbell { fd } => {
                let events = (libc::EPOLLIN | libc::EPOLLET).cast_unsigned();
                opcode::PollAdd::new(types::Fd(fd), events).multi(true).build()
            }
            Request::Hangup { fd } => {
                opcode::PollAdd::new(types::Fd(fd), libc::EPOLLRDHUP.cast_unsigned()).build()
            }
            Request::Readable { fd } => {
                opcode::PollAdd::new(types::Fd(fd), libc::EPOLLIN.cast_unsigned()).build()
            }
            Request::Writable { fd } => {
                opcode::PollAdd::new(types::Fd(fd), libc::EPOLLOUT.cast_unsigned()).build()
            }
            Request::Cancel { target, .. } => opcode::AsyncCancel::new(target.0).build(),
        }
    }

    /// Moves everything in the completion queue to the local queue. True if something was said of a watch.
    fn collect(&mut self) -> bool {
        let Self {
            ring,
            completions,
            written,
            in_ring,
            pool,
            incremental,
            corrupt,
            direct,
            rooms,
            early,
            watches,
            ..
        } = self;
        let system_calls = &mut self.system_calls;
        let (mut bytes, mut heard, mut failed) = (false, false, false);
        ring.drain(|Completed { user_data, mut result, flags }| {
            let more = cqueue::more(flags);
            if is_watch(user_data) {
                heard = true;
                if more && watches.told(user_data) {
                    early.tell();
                } else if !more && watches.ended(user_data) && result < 0 {
                    failed = true;
                }
                return;
            }
            let token = Token(user_data);
            let mut received = None;
            if let Some(block) = cqueue::buffer_select(flags) {
                match account(written, pool.block_bytes(), *incremental, block, result) {
                    Ok(range) => {
                        *in_ring -= usize::from(range.is_some_and(|range| range.last));
                        received = range;
                    }
                    Err(what) => *corrupt = Some(what),
                }
            }
            bytes |= received.is_some();
            if !more && watches.len() > 0 {
                watches.leave(token);
            }
            // The ring has told the end of a held receive: what it says of it now is late (liburing #1246).
            let mut late = direct.is_held(token);
            if !more && !direct.armed.is_empty() {
                let cancelled = result == -libc::ECANCELED && received.is_none();
                if let Some(fd) = direct.ended(token, cancelled) {
                    direct.hold(token, fd);
                    return;
                }
            }
            if !more && !rooms.is_empty() {
                match rooms.ended(token, result, system_calls) {
                    Some(told) => result = told,
                    None => late = true,
                }
            }
            let token = if late { INTERNAL } else { token };
            // A block is not lost, whoever it came with.
            if token != INTERNAL || received.is_some() {
                completions.push(Completion { token, result, more, received });
            }
        });
        if early.judge(bytes, || ring.now()) {
            watches.leave_all();
        } else if failed {
            // No memory, say: it would end at once again.
            early.rest();
        }
        self.arm_rooms();
        self.leave();
        heard
    }

    /// Has the sockets of few receives watched, if it pays. For a park that is about to begin.
    #[inline]
    fn watch(&mut self) {
        let Self { ring, direct, early, watches, own, .. } = self;
        let armed = direct.armed.len();
        if armed > WATCHED_MAX {
            if watches.len() > 0 {
                watches.leave_all();
                self.leave();
            }
            return;
        }
        early.park(|| ring.now());
        if armed != watches.len() && early.pays() {
            for (receive, fd) in direct.armed.first(SEARCHED_MAX) {
                if watches.has(receive) {
                    continue;
                }
                let place = ring.queued();
                // SAFETY: a poll points to no memory.
                if own.note(place, unsafe { ring.push(&watches.entry(fd)) }) {
                    watches.add(receive);
                }
            }
            if watches.len() < armed {
                // To look for the others in every park would be in vain as often.
                early.rest();
            }
        }
    }

    /// Cancels the polls that are not wanted any more, as far as there is room in the queue.
    #[inline]
    fn leave(&mut self) {
        let Self { ring, watches, own, .. } = self;
        if watches.has_leaving() {
            watches.cancel(|name| {
                let cancel = opcode::AsyncCancel::new(name).build().user_data(INTERNAL.0);
                let place = ring.queued();
                // SAFETY: a cancel points to no memory.
                own.note(place, unsafe { ring.push(&cancel) })
            });
        }
    }

    /// Hands the ring the waits for room that go on, and the sends that were waited for, as far as there is room in the queue.
    #[inline]
    fn arm_rooms(&mut self) {
        if self.rooms.has_unarmed() {
            self.arm_unarmed_rooms();
        }
    }

    fn arm_unarmed_rooms(&mut self) {
        let Self { ring, rooms, own, .. } = self;
        rooms.arm(Self::entry, |entry| {
            let place = ring.queued();
            // SAFETY: a poll points to no memory, a timeout to a static, and what a send names is valid until
            // its end has been told (U1).
            own.note(place, unsafe { ring.push(entry) })
        });
    }

    /// Tries the sends that were put aside by hand (U1).
    fn send_by_hand(&mut self) {
        while let Some((token, request)) = self.direct.sends.pop() {
            let (fd, mut pending) = match request {
                Request::Send { fd, data, len, .. } => (fd, Pending::new(data, len)),
                Request::SendMessage { fd, header, .. } => (fd, Pending::gathered(header)),
                _ => continue,
            };
            // SAFETY: what the request names is alive until its completion (U1).
            let outcome = unsafe { pending.attempt(fd, &mut self.system_calls) };
            match outcome {
                Attempt::Whole(_) => {}
                Attempt::Short(result) | Attempt::Failed(result) => {
                    self.completions.push(Completion {
                        token,
                        result,
                        more: false,
                        received: None,
                    });
                }
            }
        }
    }

    /// Tries the held receives by hand.
    fn receive_by_hand(&mut self) {
        self.direct.untried = false;
        if self.direct.block.is_none() {
            // Between two turns that means that the pool has none: there may be one in the ring.
            self.arm_held();
            return;
        }
        let mut index = 0;
        while let Some(&(token, fd)) = self.direct.held.get(index) {
            // Filled in this round; the next turn brings another.
            let Some(block) = &mut self.direct.block else { return };
            index += 1;
            // SAFETY: the block was given to this engine and is not in the ring.
            let outcome = unsafe { block.receive(fd, &self.pool, &mut self.system_calls) };
            let ended = match outcome {
                Err(Errno::AGAIN) => continue,
                Err(errno) => -errno.raw_os_error(),
                Ok(None) => 0,
                Ok(Some(received)) => {
                    if received.last {
                        self.direct.block = None;
                    }
                    let result = count_of(received.len);
                    let received = Some(received);
                    self.completions.push(Completion { token, result, more: true, received });
                    continue;
                }
            };
            index -= 1;
            self.direct.held.swap_remove(index);
            let done = Completion { token, result: ended, more: false, received: None };
            self.completions.push(done);
        }
    }

    /// Arms held receives in the ring. False if it has no room for all of them.
    fn arm_held(&mut self) -> bool {
        // Without a block a receive ends at once. If the ring has others, this one is kept for the next spin: the engine
        // gets no more of them while it has what it is to have.
        if self.in_ring == 0
            && let Some(own) = self.direct.block.take()
        {
            self.add_to_ring(own.id(), own.written());
        }
        while let Some((token, fd)) = self.direct.held.pop() {
            let entry = Self::entry(Request::Receive { fd }).user_data(token.0);
            // SAFETY: a receive writes to provided blocks, which outlive it (pool invariant P3).
            if unsafe { self.ring.push(&entry) }.is_err() {
                self.direct.held.push((token, fd));
                return false;
            }
            self.direct.armed.insert(token, fd);
        }
        true
    }

    /// Tells of a cancel and of its target, which was not in the ring.
    fn cancelled_at_once(&mut self, cancel: Token, target: Token) {
        for (token, result) in [(target, -libc::ECANCELED), (cancel, 0)] {
            self.completions.push(Completion { token, result, more: false, received: None });
        }
    }

    /// Hands the kernel the bytes of `block` from `offset` on.
    fn add_to_ring(&mut self, block: BlockId, offset: u32) {
        debug_assert_eq!(self.written[block as usize], NOT_HELD);
        self.written[block as usize] = offset;
        self.in_ring += 1;
        let start = self.pool.offset_of(block) + offset as usize;
        let len = self.pool.block_bytes() - offset;
        self.buffers.add(block, self.pool.region().at(start), len);
    }

    /// Takes the receives out of the ring, to try them by hand from then on, if there are few and a block
    /// for them.
    fn disarm(&mut self) {
        let Self { ring, direct, .. } = self;
        if direct.armed.is_empty() || direct.block.is_none() || !direct.fits(0) {
            return;
        }
        for token in direct.armed.tokens() {
            if direct.leaving.contains(&token) {
                continue;
            }
            let cancel = opcode::AsyncCancel::new(token.0).build().user_data(INTERNAL.0);
            // SAFETY: a cancel points to no memory.
            if unsafe { ring.push(&cancel) }.is_ok() {
                direct.leaving.push(token);
            }
        }
    }

    /// True if the ring has completions, or would have some after an enter.
    fn ring_is_ready(&mut self) -> bool {
        self.ring.must_enter() || self.ring.has_completed()
    }
}

/// Advances a block's written count by a delivery of `result` bytes (U2).
fn account(
    written: &mut [u32],
    block_bytes: u32,
    incremental: bool,
    block: BlockId,
    result: i32,
) -> Result<Option<Received>, &'static str> {
    let Some(count) = written.get_mut(block as usize).filter(|count| **count != NOT_HELD) else {
        return Err("the kernel delivered into a block it does not hold");
    };
    let len = u32::try_from(result).unwrap_or(0);
    if incremental {
        if len == 0 {
            return Ok(None);
        }
        let offset = *count;
        let end = offset.checked_add(len).filter(|&end| end <= block_bytes);
        let Some(end) = end else { return Err("the kernel delivered beyond a block") };
        let last = end == block_bytes;
        *count = if last { NOT_HELD } else { end };
        Ok(Some(Received { block, offset, len, last }))
    } else {
        *count = NOT_HELD;
        if len > block_bytes {
            return Err("the kernel delivered beyond a block");
        }
        Ok(Some(Received { block, offset: 0, len, last: true }))
    }
}

impl<R: Ring> Engine for Uring<R> {
    unsafe fn push(&mut self, token: Token, request: Request) -> Result<(), QueueFull> {
        match request {
            Request::Receive { fd } => {
                if self.direct.fits(1) && self.direct.block.is_some() {
                    self.direct.hold(token, fd);
                    return Ok(());
                }
                if !self.arm_held() {
                    return Err(QueueFull);
                }
                self.direct.armed.insert(token, fd);
            }
            Request::Send { silent: true, .. } | Request::SendMessage { silent: true, .. }
                if !self.direct.held.is_empty() && self.direct.sends.len() < SENDS_MAX =>
            {
                self.direct.sends.push((token, request));
                return Ok(());
            }
            Request::Cancel { target, .. } => {
                if self.direct.take_held(target) {
                    self.cancelled_at_once(token, target);
                    return Ok(());
                }
                if self.rooms.cancel(target) {
                    self.cancelled_at_once(token, target);
                    return Ok(());
                }
            }
            _ => {}
        }
        let entry = Self::entry(request).user_data(token.0);
        // SAFETY: the caller keeps what the entry points to alive and unchanged (U1).
        let pushed = unsafe { self.ring.push(&entry) };
        match request {
            Request::Receive { .. } if pushed.is_err() => drop(self.direct.armed.remove(token)),
            Request::Cancel { target, .. } if pushed.is_ok() => {
                self.direct.let_end(target);
                self.watches.leave(target);
                self.leave();
            }
            Request::Writable { .. }
            | Request::Send { silent: false, .. }
            | Request::SendMessage { silent: false, .. }
                if pushed.is_ok() =>
            {
                self.rooms.start(token, request);
            }
            _ => {}
        }
        pushed
    }

    fn staged(&self) -> usize {
        self.ring.queued() - self.own.len() + self.direct.sends.len()
    }

    fn enter(&mut self, wait: bool, deadline: Option<Instant>) -> Result<(), EngineError> {
        debug_assert_eq!(self.owner, std::process::id(), "the ring belongs to the parent process");
        self.send_by_hand();
        self.arm_rooms();
        self.leave();
        if self.direct.untried && !wait {
            // As the ring tries a receive when it takes it. Who cancels it in every turn because the peer
            // has hung up would otherwise never hear the end.
            self.receive_by_hand();
        }
        let mut wait = wait && self.completions.is_empty();
        if wait {
            // From here on the kernel tells of what arrives. Without room in the queue this enter makes
            // some and the next one arms the rest.
            let spun = std::mem::replace(&mut self.direct.on, false);
            wait = self.arm_held() && !self.rooms.has_unarmed() && !self.watches.has_leaving();
            // Behind a spin another may follow.
            if !spun {
                self.watch();
            }
        }
        let mut staged = u32::try_from(self.ring.queued()).unwrap_or(u32::MAX);
        if !wait && staged == 0 && !self.ring_is_ready() {
            return Ok(());
        }
        loop {
            let mut flags = sys::ENTER_GETEVENTS;
            let timeout = if wait {
                if self.no_iowait {
                    flags |= sys::ENTER_NO_IOWAIT;
                }
                deadline.map(|deadline| wait_for(deadline, self.ring.now()))
            } else {
                None
            };
            self.system_calls += 1;
            let queued = self.ring.queued();
            let result = self.ring.enter(staged, u32::from(wait), flags, timeout);
            self.own.taken(queued - self.ring.queued());
            let heard = self.collect();
            if let Some(what) = self.corrupt {
                let source = io::Error::other(what);
                return Err(EngineError::Fatal { call: "io_uring_enter", source });
            }
            match result {
                // ETIME: the deadline passed. EINTR: a signal; whoever waits looks again. EAGAIN and
                // EBUSY: no memory for requests, or completions not yet taken; what is staged stays
                // staged and is offered again.
                // Woken early: what was announced is not there yet. Waits for room that are still to be armed, and
                // receives that have just come out of the ring to be held, would be left out.
                Ok(_)
                    if wait
                        && heard
                        && self.completions.is_empty()
                        && !self.rooms.has_unarmed()
                        && self.direct.held.is_empty()
                        && !self.ring.has_overflowed() =>
                {
                    staged = u32::try_from(self.ring.queued()).unwrap_or(u32::MAX);
                    continue;
                }
                Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                // Everything else says that the ring itself can't be used (EBADR: a completion was
                // lost; EEXIST: another thread's ring; EBADF, EBADFD, ENXIO, EFAULT, EINVAL, ...).
                Err(errno) => {
                    let source = io::Error::from_raw_os_error(errno);
                    return Err(EngineError::Fatal { call: "io_uring_enter", source });
                }
            }
            // Completions that did not fit wait in the kernel until they are asked for.
            if !self.ring.has_overflowed() {
                return Ok(());
            }
            staged = 0;
            wait = false;
        }
    }

    fn reap(&mut self, batch: &mut Vec<Completion>) {
        hand_over(&mut self.completions, batch);
    }

    fn settle(&mut self) {
        // Each turn tries them once, also one that sends and ends before its owner would spin.
        self.direct.untried = !self.direct.held.is_empty();
    }

    fn ready(&mut self) -> bool {
        if !self.direct.held.is_empty() {
            self.receive_by_hand();
        }
        let is_staged =
            !self.own.is_empty() || self.rooms.has_unarmed() || self.watches.has_leaving();
        !self.completions.is_empty() || is_staged || self.ring_is_ready()
    }

    fn spin(&mut self, on: bool) {
        // A block that is left half used goes to the ring, which takes such blocks only if it shares
        // them.
        self.direct.on = on && self.incremental;
        if on {
            // Who is awake need not be woken, and would enter the kernel for it.
            self.watches.leave_all();
            self.leave();
        }
        if !self.direct.on {
            // An unarmed receive would never be heard of; without room it stays held and is tried.
            self.arm_held();
        } else {
            self.disarm();
        }
    }

    fn extra_blocks(&self) -> usize {
        usize::from(self.direct.fits(0) || self.direct.block.is_some())
    }

    fn provide(&mut self, block: BlockId) {
        if self.direct.fits(0) && self.direct.block.is_none() {
            self.direct.block = Some(OwnBlock::new(block));
            self.disarm();
            return;
        }
        self.add_to_ring(block, 0);
    }

    fn surrender_blocks(&mut self) -> Vec<BlockId> {
        // Taking the group away from the kernel first: afterwards no receive can start on it.
        if self.ring.unregister_buffers(GROUP).is_err() {
            return Vec::new();
        }
        let own = self.direct.block.take().map(|block| block.id());
        let held = self.written.iter_mut().enumerate().filter(|(_, count)| **count != NOT_HELD);
        let held = held.filter_map(|(block, count)| {
            *count = NOT_HELD;
            BlockId::try_from(block).ok()
        });
        held.chain(own).collect()
    }

    fn system_calls(&self) -> u64 {
        self.system_calls
    }

    fn early_wakes(&self) -> EarlyWakes {
        self.early.wakes
    }
}

impl<R> fmt::Debug for Uring<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("incremental", &self.incremental)
            .field("registered", &self.registered)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incremental_accounting_follows_the_kernel() {
        let mut written = [0, NOT_HELD];
        let first = account(&mut written, 100, true, 0, 60).unwrap().unwrap();
        assert_eq!(first, Received { block: 0, offset: 0, len: 60, last: false });
        // End of file names the current block without consuming it.
        assert_eq!(account(&mut written, 100, true, 0, 0).unwrap(), None);
        assert_eq!(account(&mut written, 100, true, 0, -104).unwrap(), None);
        let second = account(&mut written, 100, true, 0, 40).unwrap().unwrap();
        assert_eq!(second, Received { block: 0, offset: 60, len: 40, last: true });
        assert!(account(&mut written, 100, true, 0, 1).is_err());
        assert!(account(&mut written, 100, true, 1, 1).is_err());
        assert!(account(&mut written, 100, true, 9, 1).is_err());
    }

    #[test]
    fn plain_accounting_takes_whole_blocks() {
        let mut written = [0, 0];
        let empty = account(&mut written, 100, false, 0, 0).unwrap().unwrap();
        assert_eq!(empty, Received { block: 0, offset: 0, len: 0, last: true });
        assert!(account(&mut written, 100, false, 0, 5).is_err());
        assert!(account(&mut written, 100, false, 1, 101).is_err());
    }
}
