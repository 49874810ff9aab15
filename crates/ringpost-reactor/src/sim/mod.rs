//! A simulated engine: one thread, no clock, and every decision of the kernel taken by [`Choices`].
//!
//! It is the third engine, to find out what a reactor does if the kernel does what it seldom does.
//! It moves real bytes between real sockets of this process, so that shutdown(2), and calls that others
//! make by hand, mean what they always do; *when* and *how much* is decided here.
//!
//! # What is checked here
//!
//! * Memory of a send is what it was when it was pushed, whenever it is looked at.
//! * The unwritten part of a block changes all the time, and all of it when it is handed over: who looks
//!   at it too early or too late finds something else.
//! * The op table and the engine agree about what is in flight, after every turn.
//! * A wait that nothing can end is an error and not a wait.
//!
//! # Invariants
//!
//! * **X1** Memory and descriptors named by a staged or pending request are owned by the caller's op
//!   slot until its terminal completion (contract of `Engine::push`).
//! * **X2** A block in `blocks` is the engine's; bytes behind `written` have not been delivered, so no
//!   lease covers them.

mod choices;
mod faults;
mod world;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

pub use self::choices::{Choices, FromBytes, Odometer, Seeded};
pub use self::faults::{Fault, Machine, Rates};
pub use self::world::Simulation;
use self::world::World;
use crate::by_hand::{borrow, count_of};
use crate::capabilities::{Capabilities, Support};
use crate::clock::Clock;
use crate::config::BuildError;
use crate::engine::{
    Completion, Engine, EngineError, QueueFull, Received, Request, Token, hand_over,
};
use crate::memory::shadow::Writable;
use crate::pool::{BlockId, Pool, PoolShared};
use crate::wake::Inbox;

/// Rounds of one enter in which ready operations go on.
const ROUNDS_MAX: u32 = 4;
/// Enters for which a completion is held back, at most.
const HOLD_ENTERS_MAX: u32 = 8;
/// Ended operations that are remembered, to be named again.
const ENDED_KEPT_MAX: usize = 16;
/// Bytes behind the written part of a block that change at every enter.
const SCRIBBLE_BYTES: usize = 128;

/// An operation that the simulated kernel has.
struct Flight {
    token: Token,
    request: Request,
    /// What a send was to send when it was pushed.
    snapshot: Vec<u8>,
    /// Bytes sent.
    done: usize,
    /// Enters for which nothing is told of it.
    held: u32,
    /// A cancel has found it running: it ends soon.
    dying: bool,
    /// It does not see the end of its stream until something else happens (a kernel without `end_of_file`).
    deaf: bool,
}

/// A block to receive into (X2).
struct Block {
    id: BlockId,
    written: u32,
}

/// The simulated engine. See the module documentation.
pub(crate) struct Sim {
    world: Rc<World>,
    pool: Arc<PoolShared>,
    blocks: Vec<Block>,
    staged: VecDeque<Flight>,
    flights: Vec<Flight>,
    completions: Vec<Completion>,
    /// Operations pushed whose end has not been reaped, by token.
    live: BTreeSet<u64>,
    ended: VecDeque<Token>,
    pattern: u8,
    system_calls: u64,
}

impl Simulation {
    pub(crate) fn clock(&self) -> Clock {
        Clock::simulated(Rc::clone(&self.world.clock))
    }

    pub(crate) fn pool(&self, inbox: &Arc<Inbox>) -> Result<Pool, BuildError> {
        let state = self.world.state.borrow();
        Pool::new(state.machine.blocks, state.machine.block_bytes, Arc::clone(inbox))
            .map_err(BuildError::resource("the receive pool"))
    }

    pub(crate) fn engine(&self, pool: &Pool) -> Sim {
        Sim {
            world: Rc::clone(&self.world),
            pool: Arc::clone(pool.shared()),
            blocks: Vec::new(),
            staged: VecDeque::new(),
            flights: Vec::new(),
            completions: Vec::new(),
            live: BTreeSet::new(),
            ended: VecDeque::with_capacity(ENDED_KEPT_MAX),
            pattern: 0,
            system_calls: 0,
        }
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let state = self.world.state.borrow();
        let support = |on| if on { Support::Yes } else { Support::No("simulated".into()) };
        Capabilities {
            incremental: support(state.machine.shares_blocks),
            silent_sends: support(state.machine.silent_sends),
            end_of_file: support(state.machine.end_of_file),
            registered_ring: Support::Yes,
        }
    }
}

impl Sim {
    pub(crate) fn shares_blocks(&self) -> bool {
        self.world.state.borrow().machine.shares_blocks
    }

    /// Checks that the op table holds what is in flight here, and nothing else. `known` says whether it
    /// has an operation, `expected` are those it has, and whether each is a silent send.
    pub(crate) fn check(
        &self,
        mut known: impl FnMut(Token) -> bool,
        expected: impl Iterator<Item = (Token, bool)>,
    ) {
        if self.world.has_failed() {
            return;
        }
        for &token in &self.live {
            if !known(Token(token)) {
                self.world.note("freed early", Token(token), 0);
                self.world.fail("an operation was let go of while the engine has it");
            }
        }
        for (token, silent) in expected {
            if !silent && !self.live.contains(&token.0) {
                self.world.note("never ends", token, 0);
                self.world.fail("an operation is waited for that the engine does not have");
            }
        }
    }

    /// The memory that a request names, as it is now.
    ///
    /// # Safety
    ///
    /// The request's memory is valid.
    unsafe fn memory(request: &Request) -> Vec<u8> {
        match *request {
            Request::Send { data, len, .. } => {
                // SAFETY: valid by contract.
                unsafe { std::slice::from_raw_parts(data, len as usize) }.to_vec()
            }
            Request::SendMessage { header, .. } => {
                // SAFETY: valid by contract.
                let header = unsafe { &*header };
                // SAFETY: the vector has `msg_iovlen` entries.
                let vector =
                    unsafe { std::slice::from_raw_parts(header.msg_iov, header.msg_iovlen) };
                let mut bytes = Vec::new();
                for part in vector {
                    let start = part.iov_base.cast::<u8>().cast_const();
                    // SAFETY: each entry names valid memory.
                    bytes.extend_from_slice(unsafe {
                        std::slice::from_raw_parts(start, part.iov_len)
                    });
                }
                bytes
            }
            _ => Vec::new(),
        }
    }

    /// The part of a block that is not written yet.
    fn room(&self, index: usize, len: usize) -> Writable<'_> {
        let Block { id, written } = self.blocks[index];
        let start = self.pool.offset_of(id) + written as usize;
        // SAFETY: the block is this engine's, and nothing behind `written` has been delivered (X2).
        unsafe { self.pool.region().writable(start, len) }
    }

    fn room_bytes(&self, index: usize) -> usize {
        (self.pool.block_bytes() - self.blocks[index].written) as usize
    }

    /// Writes something else to memory that nobody may look at.
    fn scribble(&mut self, index: usize, len: usize) {
        self.pattern = self.pattern.wrapping_mul(5).wrapping_add(0x3B);
        let pattern = self.pattern;
        let len = len.min(self.room_bytes(index));
        self.room(index, len).fill(MaybeUninit::new(pattern));
    }

    fn complete(&mut self, token: Token, result: i32, more: bool, received: Option<Received>) {
        self.world.note(if more { "goes on" } else { "ends" }, token, result.into());
        self.completions.push(Completion { token, result, more, received });
    }

    /// Ends the operation at `index`.
    fn end(&mut self, index: usize, result: i32, received: Option<Received>) {
        let flight = self.flights.remove(index);
        self.complete(flight.token, result, false, received);
    }

    /// A block to receive into, and how much of it.
    fn choose_block(&self) -> Option<(usize, usize)> {
        if self.blocks.is_empty() {
            return None;
        }
        let odd = self.blocks.len() > 1 && self.world.has(Fault::BlockOdd);
        let index = if odd { self.world.below_usize(self.blocks.len()) } else { 0 };
        Some((index, self.world.length(Fault::ShortReceive, self.room_bytes(index))))
    }

    /// Tells of `len` bytes that were written to a block.
    fn deliver(&mut self, index: usize, len: usize) -> Received {
        let shared = self.shares_blocks();
        let block = &mut self.blocks[index];
        let len = u32::try_from(len).unwrap_or(0);
        let offset = block.written;
        block.written += len;
        let full = block.written == self.pool.block_bytes();
        let last = full || !shared || self.world.has(Fault::BlockFinished);
        let received = Received { block: block.id, offset, len, last };
        if last {
            self.blocks.remove(index);
        }
        received
    }

    /// A block that comes back empty, as kernels let one with an end or an error.
    fn empty_block(&mut self) -> Option<Received> {
        if self.blocks.is_empty() || !self.world.has(Fault::BlockEmpty) {
            return None;
        }
        let Block { id, written } = self.blocks.remove(0);
        Some(Received { block: id, offset: written, len: 0, last: true })
    }

    /// Receives what is there, or less.
    fn receive(&mut self, index: usize, hung_up: bool, last: bool) {
        let Flight { token, deaf, .. } = self.flights[index];
        let Request::Receive { fd } = self.flights[index].request else { return };
        let Some((block, len)) = self.choose_block() else {
            self.end(index, -libc::ENOBUFS, None);
            return;
        };
        self.system_calls += 1;
        let mut target = self.room(block, len);
        let outcome = rustix::net::recv(borrow(fd), &mut *target, RecvFlags::DONTWAIT);
        let outcome = outcome.map(|(_, count)| count);
        target.end();
        match outcome {
            Err(Errno::AGAIN | Errno::INTR) if last => self.end(index, -libc::EINTR, None),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => {
                let empty = self.empty_block();
                self.end(index, -errno.raw_os_error(), empty);
            }
            Ok(0) if deaf => {}
            Ok(0) => {
                let empty = self.empty_block();
                self.end(index, 0, empty);
            }
            Ok(count) => {
                let received = Some(self.deliver(block, count));
                let result = count_of(u32::try_from(count).unwrap_or(0));
                if last || self.world.has(Fault::ReceiveEnds) {
                    self.end(index, result, received);
                    return;
                }
                self.complete(token, result, true, received);
                if hung_up && !self.world.state.borrow().machine.end_of_file {
                    self.flights[index].deaf = true;
                }
            }
        }
    }

    /// Compares the memory of a send with what it was.
    fn compare(&self, flight: &Flight) {
        // SAFETY: what the request names is alive until its completion (X1).
        let now = unsafe { Self::memory(&flight.request) };
        if now != flight.snapshot {
            self.world.note("memory changed", flight.token, 0);
            self.world.fail("the memory of a send in flight was changed");
        }
    }

    /// Sends up to `len` more bytes of what was pushed: `Ok` if some were taken.
    fn send(&mut self, flight: &mut Flight, fd: RawFd, len: usize) -> Result<(), Errno> {
        self.system_calls += 1;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let rest = &flight.snapshot[flight.done..][..len];
        match rustix::net::send(borrow(fd), rest, flags) {
            Ok(count) => {
                flight.done += count;
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    fn send_silently(&mut self, mut flight: Flight, fd: RawFd) {
        const REFUSALS: &[i32] = &[libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM];
        self.compare(&flight);
        let len = flight.snapshot.len();
        if self.world.has(Fault::SilentRefused) {
            let result = self.world.one_of(REFUSALS);
            return self.complete(flight.token, result, false, None);
        }
        let goal = self.world.length(Fault::SilentShort, len);
        let mut outcome = Ok(());
        while flight.done < goal && outcome.is_ok() {
            let rest = goal - flight.done;
            outcome = self.send(&mut flight, fd, rest);
        }
        if flight.done == len {
            self.world.note("silent", flight.token, i64::try_from(len).unwrap_or(0));
            self.live.remove(&flight.token.0);
            return;
        }
        let result = match outcome {
            Err(errno) if flight.done == 0 => -errno.raw_os_error(),
            _ => count_of(u32::try_from(flight.done).unwrap_or(0)),
        };
        self.complete(flight.token, result, false, None);
    }

    /// A send that waits for room goes on.
    fn go_on(&mut self, index: usize, fd: RawFd) {
        let mut flight = self.flights.remove(index);
        self.compare(&flight);
        let len = flight.snapshot.len();
        let goal = self.world.length(Fault::ShortSend, len - flight.done);
        let outcome = self.send(&mut flight, fd, goal);
        let done = count_of(u32::try_from(flight.done).unwrap_or(0));
        let result = match outcome {
            Ok(()) if flight.done == len => Some(done),
            Ok(()) if self.world.has(Fault::SendEnds) => Some(done),
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) if flight.done > 0 => Some(done),
            Err(errno) => Some(-errno.raw_os_error()),
        };
        let token = flight.token;
        self.flights.insert(index, flight);
        match result {
            Some(result) => self.end(index, result, None),
            None => self.world.note("sent", token, done.into()),
        }
    }

    fn accept(&mut self, index: usize, fd: RawFd, last: bool) {
        let token = self.flights[index].token;
        self.system_calls += 1;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(borrow(fd), flags) {
            Ok(socket) => {
                let result = socket.into_raw_fd();
                if last || self.world.has(Fault::AcceptEnds) {
                    self.end(index, result, None);
                } else {
                    self.complete(token, result, true, None);
                }
            }
            Err(_) if last => self.end(index, -libc::EINTR, None),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => self.end(index, -errno.raw_os_error(), None),
        }
    }

    fn perform(&mut self, flight: Flight) {
        let Flight { token, request, .. } = flight;
        self.world.note(name(&request), token, descriptor(&request).into());
        match request {
            Request::Cancel { target, .. } => self.cancel(token, target),
            Request::Send { fd, silent: true, .. }
            | Request::SendMessage { fd, silent: true, .. } => self.send_silently(flight, fd),
            _ => {
                let role = role(&request);
                let fd = descriptor(&request);
                let doubled = |other: &Flight| {
                    descriptor(&other.request) == fd && self::role(&other.request) == role
                };
                if self.flights.iter().any(doubled) {
                    self.world.fail("two operations of one kind on one descriptor");
                }
                self.flights.push(flight);
            }
        }
    }

    fn cancel(&mut self, token: Token, target: Token) {
        let Some(index) = self.flights.iter().position(|flight| flight.token == target) else {
            self.complete(token, -libc::ENOENT, false, None);
            return;
        };
        let sent = self.flights[index].done;
        let ended = match u32::try_from(sent) {
            Ok(sent @ 1..) => count_of(sent),
            _ => -libc::ECANCELED,
        };
        if !self.world.has(Fault::CancelRace) {
            self.end(index, ended, None);
            self.complete(token, 0, false, None);
            return;
        }
        match self.world.below(3) {
            // Told before what it ended.
            0 => {
                self.complete(token, 0, false, None);
                self.end(index, ended, None);
            }
            // Too late: the target has ended of itself.
            1 => {
                match self.flights[index].request {
                    Request::Receive { .. } => self.receive(index, false, true),
                    Request::Accept { fd } => self.accept(index, fd, true),
                    Request::Send { .. } | Request::SendMessage { .. } => {
                        self.end(index, ended, None);
                    }
                    _ => self.end(index, 0, None),
                }
                // A receive that found nothing is still there if it is deaf.
                if let Some(index) = self.flights.iter().position(|flight| flight.token == target) {
                    self.end(index, ended, None);
                }
                self.complete(token, -libc::ENOENT, false, None);
            }
            _ => {
                self.flights[index].dying = true;
                self.complete(token, -libc::EALREADY, false, None);
            }
        }
    }

    /// What happens to operations without a cause.
    fn disturb(&mut self) {
        if self.world.has(Fault::Stale) {
            self.repeat_old();
        }
        if self.flights.is_empty() {
            return;
        }
        let index = self.world.below_usize(self.flights.len());
        let Flight { token, done, .. } = self.flights[index];
        match self.flights[index].request {
            Request::Receive { .. } => {
                if self.world.has(Fault::ReceiveRefused) {
                    let result = self.world.one_of(&[libc::EINTR, libc::EAGAIN]);
                    let empty = self.empty_block();
                    self.end(index, result, empty);
                } else if self.world.has(Fault::ReceiveStarves) {
                    self.end(index, -libc::ENOBUFS, None);
                } else if self.world.has(Fault::PeerGone) {
                    self.end(index, -libc::ECONNRESET, None);
                }
            }
            Request::Send { .. } | Request::SendMessage { .. } if done == 0 => {
                const REFUSALS: &[i32] = &[libc::EINTR, libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM];
                if self.world.has(Fault::SendRefused) {
                    let result = self.world.one_of(REFUSALS);
                    self.end(index, result, None);
                } else if self.world.has(Fault::PeerGone) {
                    let result = self.world.one_of(&[libc::EPIPE, libc::ECONNRESET]);
                    self.end(index, result, None);
                }
            }
            Request::Accept { .. } if self.world.has(Fault::AcceptRefused) => {
                let errnos =
                    [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ECONNABORTED, libc::EINTR];
                let result = self.world.one_of(&errnos);
                self.end(index, result, None);
            }
            Request::Doorbell { .. } if self.world.has(Fault::BellSpurious) => {
                if self.world.below(2) == 0 {
                    self.complete(token, 1, true, None);
                } else {
                    self.end(index, 1, None);
                }
            }
            Request::Readable { .. } | Request::Writable { .. }
                if self.world.has(Fault::PollSpurious) =>
            {
                let result = [1, -libc::EINTR][self.world.below_usize(2)];
                self.end(index, result, None);
            }
            _ => {}
        }
    }

    /// Names an operation that has ended once more.
    fn repeat_old(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        let token = self.ended[self.world.below_usize(self.ended.len())];
        let received = match self.world.below(3) {
            1 if !self.blocks.is_empty() => {
                let Block { id, written } = self.blocks.remove(0);
                let len = self.pool.block_bytes() - written;
                Some(Received { block: id, offset: written, len, last: true })
            }
            _ => None,
        };
        let result = [0, -libc::ECANCELED, -libc::EINVAL][self.world.below_usize(3)];
        self.world.note("stale", token, result.into());
        self.completions.push(Completion {
            token,
            result,
            more: self.world.below(2) == 1,
            received,
        });
    }

    /// What the sockets say, for each operation in flight.
    fn poll(&mut self) -> Vec<PollFlags> {
        self.system_calls += 1;
        let mut polled: Vec<_> = self
            .flights
            .iter()
            .map(|flight| {
                PollFd::from_borrowed_fd(
                    borrow(descriptor(&flight.request)),
                    wants(&flight.request),
                )
            })
            .collect();
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut polled, Some(&zero)).is_err() {
            return Vec::new();
        }
        polled.iter().map(PollFd::revents).collect()
    }

    /// Operations that can go on, and whether their peer, but not this side, has shut down. Some become held.
    fn ready_flights(&mut self) -> Vec<(Token, bool)> {
        let found = self.poll();
        let mut ready = Vec::new();
        for (index, events) in found.into_iter().enumerate() {
            let flight = &mut self.flights[index];
            if events.contains(PollFlags::NVAL) {
                self.world.note("closed", flight.token, descriptor(&flight.request).into());
                self.world.fail("an operation on a descriptor that is closed");
            }
            // What shuts down the other direction wakes the receive once more, and that is heard.
            flight.deaf &= !events.contains(PollFlags::HUP);
            let hung_up = events.contains(PollFlags::RDHUP) && !events.contains(PollFlags::HUP);
            let silent_end = flight.deaf && hung_up && !has_bytes(&flight.request);
            // A doorbell is only heard when it rings, which nobody does here.
            let bell = matches!(flight.request, Request::Doorbell { .. });
            if !flight.dying && (events.is_empty() || bell || silent_end) {
                continue;
            }
            if flight.held == 0 && self.world.has(Fault::Held) {
                flight.held = 1 + self.world.below(HOLD_ENTERS_MAX);
            }
            if flight.held == 0 {
                ready.push((flight.token, hung_up));
            }
        }
        ready
    }

    /// Lets what is ready go on. True if something was.
    fn round(&mut self) -> bool {
        let mut ready = self.ready_flights();
        if ready.len() > 1 && self.world.has(Fault::Shuffled) {
            for last in (1..ready.len()).rev() {
                ready.swap(last, last - self.world.below_usize(last + 1));
            }
        }
        for &(token, hung_up) in &ready {
            let Some(index) = self.flights.iter().position(|flight| flight.token == token) else {
                continue;
            };
            let Flight { request, dying, done, .. } = &self.flights[index];
            if *dying {
                let result = match u32::try_from(*done) {
                    Ok(sent @ 1..) => count_of(sent),
                    _ => -libc::ECANCELED,
                };
                self.end(index, result, None);
                continue;
            }
            match *request {
                Request::Receive { .. } => self.receive(index, hung_up, false),
                Request::Send { fd, .. } | Request::SendMessage { fd, .. } => {
                    self.go_on(index, fd);
                }
                Request::Accept { fd } => self.accept(index, fd, false),
                Request::Hangup { .. } => self.end(index, 0x2000, None),
                Request::Readable { .. } => self.end(index, 1, None),
                Request::Writable { .. } => self.end(index, 4, None),
                Request::Doorbell { .. } | Request::Cancel { .. } => {}
            }
        }
        !ready.is_empty()
    }

    /// Performs what is staged, or some of it.
    fn submit(&mut self) {
        let mut count = self.staged.len();
        if count > 0 && self.world.has(Fault::PartialEnter) {
            count = self.world.below_usize(count);
        }
        for flight in self.staged.drain(..count).collect::<Vec<_>>() {
            self.perform(flight);
        }
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        let is_bell = |flight: &Flight| matches!(flight.request, Request::Doorbell { .. });
        if deadline.is_none() && self.completions.is_empty() && !self.flights.iter().any(is_bell) {
            self.world.fail("a wait without end that no other thread could end");
        }
        while self.completions.is_empty() {
            if self.world.has(Fault::EnterInterrupted) {
                return;
            }
            let held = self.flights.iter().any(|flight| flight.held > 0);
            self.flights.iter_mut().for_each(|flight| flight.held = 0);
            if self.round() || held {
                continue;
            }
            if self.flights.iter().any(|flight| flight.held > 0) {
                continue;
            }
            let clock = &self.world.clock;
            match deadline {
                Some(deadline) => {
                    self.world.note("time", Token(0), 0);
                    clock.set(clock.get().max(deadline));
                }
                None => self.world.fail("everybody waits, and nothing can happen any more"),
            }
            return;
        }
    }
}

impl Engine for Sim {
    unsafe fn push(&mut self, token: Token, request: Request) -> Result<(), QueueFull> {
        let full = self.staged.len() >= self.world.state.borrow().machine.queue_max;
        if full || self.world.has(Fault::QueueRefused) {
            self.world.note("queue full", token, 0);
            return Err(QueueFull);
        }
        if !self.live.insert(token.0) {
            self.world.fail("an operation was started twice");
        }
        // SAFETY: the caller has just promised that it is valid.
        let snapshot = unsafe { Self::memory(&request) };
        self.staged.push_back(Flight {
            token,
            request,
            snapshot,
            done: 0,
            held: 0,
            dying: false,
            deaf: false,
        });
        Ok(())
    }

    fn staged(&self) -> usize {
        self.staged.len()
    }

    fn enter(&mut self, wait: bool, deadline: Option<Instant>) -> Result<(), EngineError> {
        self.world.enter();
        for index in 0..self.blocks.len() {
            self.scribble(index, SCRIBBLE_BYTES);
        }
        self.submit();
        self.disturb();
        for flight in &mut self.flights {
            flight.held = flight.held.saturating_sub(1);
        }
        let rounds = 1 + self.world.below(ROUNDS_MAX);
        for _ in 0..rounds {
            if !self.round() {
                break;
            }
        }
        // As with a kernel that has not taken all of the queue, there is no wait then.
        if wait && self.staged.is_empty() {
            self.wait(deadline);
        }
        Ok(())
    }

    fn reap(&mut self, batch: &mut Vec<Completion>) {
        for done in self.completions.iter().filter(|done| !done.more) {
            if self.live.remove(&done.token.0) {
                if self.ended.len() == ENDED_KEPT_MAX {
                    self.ended.pop_front();
                }
                self.ended.push_back(done.token);
            }
        }
        hand_over(&mut self.completions, batch);
    }

    fn settle(&mut self) {}

    fn ready(&mut self) -> bool {
        true
    }

    fn spin(&mut self, _on: bool) {}

    fn extra_blocks(&self) -> usize {
        0
    }

    fn provide(&mut self, block: BlockId) {
        if self.blocks.iter().any(|held| held.id == block) {
            self.world.fail("a block was provided that the engine has");
        }
        self.blocks.push(Block { id: block, written: 0 });
        self.scribble(self.blocks.len() - 1, usize::MAX);
    }

    fn surrender_blocks(&mut self) -> Vec<BlockId> {
        self.blocks.drain(..).map(|block| block.id).collect()
    }

    fn system_calls(&self) -> u64 {
        self.system_calls
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.world.state.borrow_mut().operations_left = self.live.len();
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("live", &self.live.len()).finish_non_exhaustive()
    }
}

fn descriptor(request: &Request) -> RawFd {
    match *request {
        Request::Receive { fd }
        | Request::Send { fd, .. }
        | Request::SendMessage { fd, .. }
        | Request::Accept { fd }
        | Request::Doorbell { fd }
        | Request::Hangup { fd }
        | Request::Readable { fd }
        | Request::Writable { fd }
        | Request::Cancel { fd, .. } => fd,
    }
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Receive { .. } => "receive",
        Request::Send { .. } => "send",
        Request::SendMessage { .. } => "send gathered",
        Request::Accept { .. } => "accept",
        Request::Doorbell { .. } => "doorbell",
        Request::Hangup { .. } => "hangup",
        Request::Readable { .. } => "readable",
        Request::Writable { .. } => "writable",
        Request::Cancel { .. } => "cancel",
    }
}

/// What an operation does with its descriptor: there is one of each at a time.
fn role(request: &Request) -> u8 {
    match request {
        Request::Receive { .. } | Request::Readable { .. } | Request::Accept { .. } => 0,
        Request::Send { .. } | Request::SendMessage { .. } | Request::Writable { .. } => 1,
        Request::Hangup { .. } => 2,
        Request::Doorbell { .. } => 3,
        Request::Cancel { .. } => 4,
    }
}

fn wants(request: &Request) -> PollFlags {
    match role(request) {
        0 => PollFlags::IN | PollFlags::RDHUP,
        1 => PollFlags::OUT,
        2 => PollFlags::RDHUP,
        _ => PollFlags::empty(),
    }
}

/// Whether something is there to be received, apart from an end.
fn has_bytes(request: &Request) -> bool {
    let Request::Receive { fd } = *request else { return false };
    rustix::io::ioctl_fionread(borrow(fd)).is_ok_and(|count| count > 0)
}
