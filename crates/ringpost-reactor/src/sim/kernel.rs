//! What the simulated kernel does with operations, whichever seam they came over.

use std::os::fd::{IntoRawFd, RawFd};
use std::rc::Rc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::Fault;
use super::entry::{PAUSE, WATCH};
use super::world::World;
use crate::by_hand::{borrow, count_of};
use crate::engine::{Request, Token};
use crate::memory::shadow::Writable;

/// Rounds of one enter in which ready operations go on.
const ROUNDS_MAX: u32 = 4;
/// Times that a multishot operation goes on in a row; Linux has it wait for others after as many.
const IN_A_ROW_MAX: u32 = 32;
/// Enters for which a completion is held back, at most.
const HOLD_ENTERS_MAX: u32 = 8;

/// An operation that the simulated kernel has.
pub(super) struct Flight {
    pub(super) token: Token,
    pub(super) request: Request,
    /// What a send was to send when it was pushed.
    snapshot: Vec<u8>,
    /// Bytes sent.
    done: usize,
    /// Enters for which nothing is told of it.
    pub(super) held: u32,
    /// A cancel has found it running: it ends soon.
    pub(super) dying: bool,
    /// It does not see the end of its stream until something else happens (a kernel without `end_of_file`).
    deaf: bool,
}

/// What is different at each seam: where received bytes go, and how a completion is told.
pub(super) trait Seam {
    /// Where received bytes lie.
    type Place;

    /// An operation is tried when it is taken, and not only later.
    const TRIES_AT_ONCE: bool;

    /// A poll for room ends also when the peer has shut down, as every poll of a ring, and so does a send
    /// that finds none.
    const POLLS_TELL_SHUTDOWNS: bool;

    /// A buffer to receive into, and the bytes of room in it.
    fn choose(&mut self, world: &World) -> Option<(usize, usize)>;

    /// The first `len` bytes of that room.
    fn room(&mut self, buffer: usize, len: usize) -> Writable<'_>;

    /// `len` bytes were written to a buffer.
    fn deliver(&mut self, world: &World, buffer: usize, len: usize) -> Self::Place;

    /// A buffer that is named although nothing was written to it, as kernels do with an end or an error.
    fn empty(&mut self, world: &World) -> Option<Self::Place>;

    /// Tells what became of an operation.
    fn post(&mut self, token: Token, result: i32, more: bool, place: Option<Self::Place>);

    /// A silent send was whole.
    fn sent_silently(&mut self, token: Token);

    /// False if an operation that tells of something has to end with it.
    fn goes_on(&self) -> bool;

    /// True if something has been told that was not looked at yet.
    fn has_completed(&self) -> bool;

    /// True if the end of this operation waits to be taken.
    fn has_just_ended(&self, token: Token) -> bool;

    /// Names an operation that has ended once more.
    fn repeat_old(&mut self, world: &World);
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Completed,
    Interrupted,
    TimedOut,
}

/// Operations in flight, and the world that they are performed in.
pub(super) struct Kernel<S> {
    pub(super) world: Rc<World>,
    pub(super) seam: S,
    flights: Vec<Flight>,
    /// Polls that wake the engine early.
    pub(super) watches: Vec<Token>,
    pub(super) system_calls: u64,
}

impl Flight {
    /// An operation that was just pushed.
    ///
    /// # Safety
    ///
    /// The memory that the request names is valid, and stays so until the operation has ended.
    pub(super) unsafe fn new(token: Token, request: Request) -> Self {
        // SAFETY: the caller has just promised that it is valid.
        let snapshot = unsafe { memory(&request) };
        Self { token, request, snapshot, done: 0, held: 0, dying: false, deaf: false }
    }

    /// What is told of it if it is cancelled now.
    fn cancelled(&self) -> i32 {
        match u32::try_from(self.done) {
            Ok(sent @ 1..) => count_of(sent),
            _ => -libc::ECANCELED,
        }
    }
}

impl<S: Seam> Kernel<S> {
    pub(super) fn new(world: Rc<World>, seam: S) -> Self {
        Self { world, seam, flights: Vec::new(), watches: Vec::new(), system_calls: 0 }
    }

    /// Time goes on for what is held back.
    pub(super) fn let_go(&mut self) {
        for flight in &mut self.flights {
            flight.held = flight.held.saturating_sub(1);
        }
    }

    /// Lets what is ready go on, for some rounds.
    pub(super) fn run(&mut self) {
        let rounds = 1 + self.world.below(ROUNDS_MAX);
        for _ in 0..rounds {
            if !self.round() {
                break;
            }
        }
    }

    /// True if an operation in flight could go on.
    pub(super) fn is_ready(&mut self) -> bool {
        !self.ready_flights().is_empty()
    }

    /// True if a receive is in flight.
    pub(super) fn receives(&self) -> bool {
        self.flights.iter().any(|flight| matches!(flight.request, Request::Receive { .. }))
    }

    /// Waits for a completion.
    pub(super) fn wait(&mut self, deadline: Option<Instant>) -> Waited {
        let is_bell = |flight: &Flight| matches!(flight.request, Request::Doorbell { .. });
        if deadline.is_none() && !self.seam.has_completed() && !self.flights.iter().any(is_bell) {
            self.world.fail("a wait without end that no other thread could end");
        }
        while !self.seam.has_completed() {
            if self.world.has(Fault::EnterInterrupted) {
                return Waited::Interrupted;
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
                    let passed = deadline.saturating_duration_since(clock.get());
                    self.world.note(
                        "time",
                        Token(0),
                        i64::try_from(passed.as_micros()).unwrap_or(0),
                    );
                    clock.set(clock.get().max(deadline));
                }
                None => self.world.fail("everybody waits, and nothing can happen any more"),
            }
            return Waited::TimedOut;
        }
        Waited::Completed
    }

    pub(super) fn perform(&mut self, flight: Flight) {
        let Flight { token, request, .. } = flight;
        self.world.note(name(&request), token, request.descriptor().into());
        match request {
            Request::Cancel { target, .. } => self.cancel(token, target),
            Request::Send { fd, silent: true, .. }
            | Request::SendMessage { fd, silent: true, .. } => self.send_silently(flight, fd),
            _ => {
                let role = role(&request);
                let fd = request.descriptor();
                let doubled = |other: &Flight| {
                    other.request.descriptor() == fd && self::role(&other.request) == role
                };
                if self.flights.iter().any(doubled) {
                    self.world.fail("two operations of one kind on one descriptor");
                }
                self.flights.push(flight);
                self.world.about(token);
                if S::TRIES_AT_ONCE {
                    self.try_last();
                } else if self.world.has(Fault::AtOnce) {
                    self.at_once();
                }
            }
        }
    }

    /// Tries the operation that was just taken.
    fn try_last(&mut self) {
        let index = self.flights.len() - 1;
        let events = self.poll(&self.flights[index..]);
        if let Some(events) = events.first()
            && let Some(hung_up) = self.examine(index, *events)
        {
            self.go_on(index, hung_up);
        }
    }

    /// Lets an operation that was just taken go on, if it can.
    fn at_once(&mut self) {
        let index = self.flights.len() - 1;
        let events = self.poll(&self.flights[index..]).first().copied();
        let Some(events) = events else { return };
        // A receive without a block need not be ready to end, and a send may fit although poll(2) does not
        // promise it.
        let tries = match self.flights[index].request {
            Request::Receive { .. } => self.seam.choose(&self.world).is_none(),
            Request::Send { .. } | Request::SendMessage { .. } => true,
            _ => false,
        };
        if !events.is_empty() || tries {
            let hung_up = events.contains(PollFlags::RDHUP) && !events.contains(PollFlags::HUP);
            self.go_on(index, hung_up);
        }
    }

    fn cancel(&mut self, token: Token, target: Token) {
        if target == PAUSE {
            self.complete(token, -libc::ETIME, false, None);
            return;
        }
        if target == WATCH {
            self.watches.push(token);
            // There is room at first.
            return self.announce(self.watches.len() - 1);
        }
        if let Some(index) = self.watches.iter().position(|watch| *watch == target) {
            self.watches.swap_remove(index);
            self.complete(target, -libc::ECANCELED, false, None);
            return self.complete(token, 0, false, None);
        }
        let Some(index) = self.flights.iter().position(|flight| flight.token == target) else {
            // One that has just been ended may be found once more.
            self.world.about(token);
            let found = self.seam.has_just_ended(target) && self.world.has(Fault::CancelRace);
            self.complete(token, if found { 0 } else { -libc::ENOENT }, false, None);
            return;
        };
        let ended = self.flights[index].cancelled();
        self.world.about(target);
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
                    Request::Send { fd, .. } | Request::SendMessage { fd, .. } => {
                        self.send_more(index, fd, false);
                    }
                    // A poll that has ended has found something.
                    _ => self.end(index, 1, None),
                }
                // A receive that found nothing is still there if it is deaf, and a send that is not whole.
                if let Some(index) = self.flights.iter().position(|flight| flight.token == target) {
                    self.end(index, self.flights[index].cancelled(), None);
                }
                self.complete(token, -libc::ENOENT, false, None);
            }
            _ => {
                self.flights[index].dying = true;
                self.complete(token, -libc::EALREADY, false, None);
            }
        }
    }

    /// A peer has read what was sent to it.
    fn announce(&mut self, index: usize) {
        const ROOM: i32 = libc::EPOLLOUT;
        let token = self.watches[index];
        let more = self.seam.goes_on();
        if !more {
            self.watches.swap_remove(index);
        }
        self.complete(token, ROOM, more, None);
    }

    /// What happens to operations without a cause.
    pub(super) fn disturb(&mut self) {
        if !self.watches.is_empty() && self.world.has(Fault::Announced) {
            let index = self.world.below_usize(self.watches.len());
            if self.world.below(8) == 1 {
                let token = self.watches.swap_remove(index);
                self.complete(token, -libc::ENOMEM, false, None);
            } else {
                self.announce(index);
            }
        }
        if self.world.has(Fault::Stale) {
            self.seam.repeat_old(&self.world);
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
                    let empty = self.seam.empty(&self.world);
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
                if self.world.below(2) == 0 && self.seam.goes_on() {
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

    fn complete(&mut self, token: Token, result: i32, more: bool, place: Option<S::Place>) {
        self.world.note(if more { "goes on" } else { "ends" }, token, result.into());
        self.seam.post(token, result, more, place);
    }

    /// Ends the operation at `index`.
    fn end(&mut self, index: usize, result: i32, place: Option<S::Place>) {
        let flight = self.flights.remove(index);
        self.complete(flight.token, result, false, place);
    }

    /// Receives what is there, or less.
    fn receive(&mut self, index: usize, hung_up: bool, last: bool) {
        let Flight { token, deaf, .. } = self.flights[index];
        let Request::Receive { fd } = self.flights[index].request else { return };
        self.world.about(token);
        let Some((block, room)) = self.seam.choose(&self.world) else {
            self.end(index, -libc::ENOBUFS, None);
            return;
        };
        let len = self.world.length(Fault::ShortReceive, room);
        self.system_calls += 1;
        let mut target = self.seam.room(block, len);
        let outcome = rustix::net::recv(borrow(fd), &mut *target, RecvFlags::DONTWAIT);
        let outcome = outcome.map(|(_, count)| count);
        target.end();
        match outcome {
            Err(Errno::AGAIN | Errno::INTR) if last => self.end(index, -libc::EINTR, None),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => {
                let empty = self.seam.empty(&self.world);
                self.end(index, -errno.raw_os_error(), empty);
            }
            Ok(0) if deaf => {}
            Ok(0) => {
                let empty = self.seam.empty(&self.world);
                self.end(index, 0, empty);
            }
            Ok(count) => {
                let received = Some(self.seam.deliver(&self.world, block, count));
                let result = count_of(u32::try_from(count).unwrap_or(0));
                if last || !self.seam.goes_on() || self.world.has(Fault::ReceiveEnds) {
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

    /// Compares the memory of all sends that have not ended with what it was.
    pub(super) fn compare_all<'a>(&'a self, staged: impl Iterator<Item = &'a Flight>) {
        staged.chain(&self.flights).for_each(|flight| self.compare(flight));
    }

    /// Compares the memory of a send with what it was.
    fn compare(&self, flight: &Flight) {
        // SAFETY: what the request names is alive until its completion (X1).
        let now = unsafe { memory(&flight.request) };
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
            self.seam.sent_silently(flight.token);
            return;
        }
        let result = match outcome {
            Err(errno) if flight.done == 0 => -errno.raw_os_error(),
            _ => count_of(u32::try_from(flight.done).unwrap_or(0)),
        };
        self.complete(flight.token, result, false, None);
    }

    /// A send that waits for room goes on, or ends if it finds none and `gives_up`.
    fn send_more(&mut self, index: usize, fd: RawFd, gives_up: bool) {
        let mut flight = self.flights.remove(index);
        self.compare(&flight);
        self.world.about(flight.token);
        let len = flight.snapshot.len();
        let goal = self.world.length(Fault::ShortSend, len - flight.done);
        let outcome = self.send(&mut flight, fd, goal);
        let done = count_of(u32::try_from(flight.done).unwrap_or(0));
        let result = match outcome {
            Ok(()) if flight.done == len => Some(done),
            Ok(()) if self.world.has(Fault::SendEnds) => Some(done),
            Ok(()) | Err(Errno::INTR) => None,
            Err(Errno::AGAIN) if !gives_up => None,
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
        self.world.about(token);
        self.system_calls += 1;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(borrow(fd), flags) {
            Ok(socket) => {
                let result = socket.into_raw_fd();
                if last || !self.seam.goes_on() || self.world.has(Fault::AcceptEnds) {
                    self.end(index, result, None);
                } else {
                    self.complete(token, result, true, None);
                }
            }
            Err(_) if last => self.end(index, -libc::EINTR, None),
            Err(Errno::AGAIN) if was_shut_down(fd) => self.end(index, -libc::EINVAL, None),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(errno) => self.end(index, -errno.raw_os_error(), None),
        }
    }

    /// What the sockets say, for each of these operations.
    fn poll(&self, flights: &[Flight]) -> Vec<PollFlags> {
        let mut polled: Vec<_> = flights
            .iter()
            .map(|flight| {
                PollFd::from_borrowed_fd(
                    borrow(flight.request.descriptor()),
                    wants(&flight.request, S::POLLS_TELL_SHUTDOWNS),
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
        self.system_calls += 1;
        let found = self.poll(&self.flights);
        let mut ready = Vec::new();
        for (index, events) in found.into_iter().enumerate() {
            if let Some(hung_up) = self.examine(index, events) {
                ready.push((self.flights[index].token, hung_up));
            }
        }
        ready
    }

    /// Whether an operation can go on, and then whether its peer, but not this side, has shut down.
    fn examine(&mut self, index: usize, events: PollFlags) -> Option<bool> {
        let flight = &mut self.flights[index];
        if events.contains(PollFlags::NVAL) {
            self.world.note("closed", flight.token, flight.request.descriptor().into());
            self.world.fail("an operation on a descriptor that is closed");
        }
        // What shuts down the other direction wakes the receive once more, and that is heard.
        flight.deaf &= !events.contains(PollFlags::HUP);
        let hung_up = events.contains(PollFlags::RDHUP) && !events.contains(PollFlags::HUP);
        let silent_end = flight.deaf && hung_up && !has_bytes(&flight.request);
        if !flight.dying && (events.is_empty() || silent_end) {
            return None;
        }
        self.world.about(flight.token);
        if flight.held == 0 && self.world.has(Fault::Held) {
            flight.held = 1 + self.world.below(HOLD_ENTERS_MAX);
        }
        (flight.held == 0).then_some(hung_up)
    }

    /// Lets what is ready go on. True if something was.
    pub(super) fn round(&mut self) -> bool {
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
            self.go_on(index, hung_up);
        }
        !ready.is_empty()
    }

    /// An operation that can go on does.
    fn go_on(&mut self, index: usize, hung_up: bool) {
        let Flight { token, request, dying, .. } = self.flights[index];
        if dying {
            return self.end(index, self.flights[index].cancelled(), None);
        }
        match request {
            Request::Receive { .. } => {
                self.receive(index, hung_up, false);
                self.in_a_row(token, |kernel, index| kernel.receive(index, hung_up, false));
            }
            Request::Send { fd, .. } | Request::SendMessage { fd, .. } => {
                self.send_more(index, fd, S::POLLS_TELL_SHUTDOWNS && hung_up);
            }
            Request::Accept { fd } => {
                self.accept(index, fd, false);
                self.in_a_row(token, |kernel, index| kernel.accept(index, fd, false));
            }
            Request::Hangup { .. } => self.end(index, 0x2000, None),
            Request::Readable { .. } => self.end(index, 1, None),
            Request::Writable { fd } => {
                let full = S::POLLS_TELL_SHUTDOWNS && hung_up && !has_room(fd);
                self.end(index, if full { 0x2000 } else { 4 }, None);
            }
            Request::Doorbell { fd } => self.hear(token, fd),
            Request::Cancel { .. } => {}
        }
    }

    /// Lets a multishot operation that has just gone on do so again, some times.
    fn in_a_row(&mut self, token: Token, go_on: impl Fn(&mut Self, usize)) {
        for _ in 0..IN_A_ROW_MAX {
            self.world.about(token);
            let index = self.flights.iter().position(|flight| flight.token == token);
            match index.filter(|_| self.world.has(Fault::InARow)) {
                Some(index) => go_on(self, index),
                None => return,
            }
        }
    }

    /// A doorbell has been rung. Nobody else reads it, so that it is read here to be heard once.
    fn hear(&mut self, token: Token, fd: RawFd) {
        self.system_calls += 1;
        if rustix::io::read(borrow(fd), &mut [0; 8]).is_ok() {
            self.complete(token, 1, true, None);
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
            let vector = unsafe { std::slice::from_raw_parts(header.msg_iov, header.msg_iovlen) };
            let mut bytes = Vec::new();
            for part in vector {
                let start = part.iov_base.cast::<u8>().cast_const();
                // SAFETY: each entry names valid memory.
                bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(start, part.iov_len) });
            }
            bytes
        }
        _ => Vec::new(),
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

fn wants(request: &Request, tell_shutdowns: bool) -> PollFlags {
    match role(request) {
        1 if tell_shutdowns => PollFlags::OUT | PollFlags::RDHUP,
        0 => PollFlags::IN | PollFlags::RDHUP,
        1 => PollFlags::OUT,
        2 => PollFlags::RDHUP,
        3 => PollFlags::IN,
        _ => PollFlags::empty(),
    }
}

/// Whether a listener was shut down: accept4(2) says EAGAIN all the same.
fn was_shut_down(fd: RawFd) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(borrow(fd), PollFlags::RDHUP)];
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&zero)).is_ok_and(|count| count > 0)
}

/// Whether a send would find room, or fail.
fn has_room(fd: RawFd) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(borrow(fd), PollFlags::OUT)];
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&zero)).is_ok_and(|count| count > 0)
}

/// Whether something is there to be received, apart from an end.
fn has_bytes(request: &Request) -> bool {
    let Request::Receive { fd } = *request else { return false };
    rustix::io::ioctl_fionread(borrow(fd)).is_ok_and(|count| count > 0)
}
