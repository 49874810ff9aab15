//! The epoll engine: the same operations, performed on readiness with ordinary system calls.
//!
//! Level-triggered: an event that is not fully served comes again, so nothing depends on reading a
//! socket empty. A descriptor that nobody waits on is taken out of the set, because a hang-up would
//! otherwise be reported for ever.
//!
//! # Invariants
//!
//! * **E1** A block in `blocks` is the engine's; bytes behind what it has delivered have not been lent, so
//!   no lease covers them.
//! * **E2** Memory and descriptors named by a staged or pending request are owned by the caller's op
//!   slot until its terminal completion (contract of [`Engine::push`]).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::by_hand::{Attempt, OwnBlock, Pending, borrow, count_of};
use crate::early::{Early, EarlyWakes, SEARCHED_MAX, WATCHED_MAX};
use crate::engine::{
    Completion, Engine, EngineError, QueueFull, Request, Token, hand_over, wait_for,
};
use crate::epoll_watches::{TOLD, Watches};
use crate::pool::{BlockId, PoolShared};

/// Requests staged at most between two `enter`s, as a submission queue would have.
const STAGED_MAX: usize = 4096;
/// Events fetched by one `epoll_wait`.
const EVENTS_MAX: usize = 256;
/// Connections accepted for one readiness event, so that a flood can't starve the rest.
const ACCEPTS_PER_EVENT_MAX: usize = 64;
/// What is done with a descriptor when something can be read: one of these at a time.
#[derive(Debug, Clone, Copy)]
enum Input {
    Receive(Token),
    Accept(Token),
    Doorbell(Token),
    Readable(Token),
    /// Readiness was told and has not been asked for anew; the interest stays until [`Engine::settle`], so
    /// that asking again takes no system call.
    Told,
}

impl Input {
    fn token(self) -> Option<Token> {
        match self {
            Self::Receive(token)
            | Self::Accept(token)
            | Self::Doorbell(token)
            | Self::Readable(token) => Some(token),
            Self::Told => None,
        }
    }
}

/// What is done with a descriptor when there is room: one of these at a time.
#[derive(Debug, Clone, Copy)]
enum Output {
    /// The rest of the send is in `sends`.
    Send(Token),
    Writable(Token),
    /// As [`Input::Told`].
    Told,
}

impl Output {
    fn token(self) -> Option<Token> {
        match self {
            Self::Send(token) | Self::Writable(token) => Some(token),
            Self::Told => None,
        }
    }
}

/// What is wanted of one descriptor. There is one for each connection, so it is kept small.
#[derive(Debug, Default)]
struct Watch {
    input: Option<Input>,
    output: Option<Output>,
    hangup: Option<Token>,
    /// Events registered with the kernel; `None` if the descriptor is not in the set.
    registered: Option<epoll::EventFlags>,
}

impl Watch {
    fn wanted(&self) -> epoll::EventFlags {
        let mut events = epoll::EventFlags::empty();
        match self.input {
            Some(Input::Doorbell(_)) => events |= epoll::EventFlags::IN | epoll::EventFlags::ET,
            Some(Input::Accept(_)) => events |= epoll::EventFlags::IN | epoll::EventFlags::RDHUP,
            Some(_) => events |= epoll::EventFlags::IN,
            None => {}
        }
        if self.output.is_some() {
            events |= epoll::EventFlags::OUT;
        }
        if self.hangup.is_some() {
            events |= epoll::EventFlags::RDHUP;
        }
        events
    }
}

/// The result of an operation that goes on no longer: the bytes that it had `sent`, so that they are not sent
/// again, or why.
fn ended_early(sent: u32, errno: Errno) -> i32 {
    if sent > 0 { count_of(sent) } else { -errno.raw_os_error() }
}

/// The epoll engine. See the module documentation.
pub(crate) struct Epoll {
    set: OwnedFd,
    pool: Arc<PoolShared>,
    /// E1; the front is received into.
    blocks: VecDeque<OwnBlock>,
    staged: VecDeque<(Token, Request)>,
    /// By descriptor number.
    watches: Vec<Option<Box<Watch>>>,
    /// Sends that wait for room, by descriptor.
    sends: HashMap<RawFd, Pending>,
    events: Vec<epoll::Event>,
    completions: Vec<Completion>,
    /// Descriptors whose readiness was told since the last [`Engine::settle`].
    told: Vec<RawFd>,
    /// How many watches have a receive.
    receives: usize,
    early: Early,
    early_watches: Watches,
    system_calls: u64,
}

impl Epoll {
    pub(crate) fn new(pool: Arc<PoolShared>) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let early_watches = Watches::new(&set)?;
        Ok(Self {
            set,
            pool,
            blocks: VecDeque::new(),
            staged: VecDeque::new(),
            watches: Vec::new(),
            sends: HashMap::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            completions: Vec::with_capacity(EVENTS_MAX),
            told: Vec::new(),
            receives: 0,
            early: Early::default(),
            early_watches,
            system_calls: 0,
        })
    }

    fn complete(&mut self, token: Token, result: i32) {
        self.completions.push(Completion { token, result, more: false, received: None });
    }

    fn watch(&mut self, fd: RawFd) -> &mut Watch {
        let index = usize::try_from(fd).expect("descriptors are not negative");
        if index >= self.watches.len() {
            self.watches.resize_with(index + 1, || None);
        }
        self.watches[index].get_or_insert_default()
    }

    fn watch_of(&mut self, fd: RawFd) -> Option<&mut Watch> {
        self.watches.get_mut(usize::try_from(fd).ok()?)?.as_deref_mut()
    }

    /// Tells the kernel what is wanted of `fd` now, if that has changed.
    fn update(&mut self, fd: RawFd) -> Result<(), Errno> {
        let Some(index) = usize::try_from(fd).ok() else { return Err(Errno::BADF) };
        let Some(watch) = self.watches.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let wanted = watch.wanted();
        if watch.registered == Some(wanted) {
            return Ok(());
        }
        let data = epoll::EventData::new_u64(index as u64);
        self.system_calls += 1;
        match watch.registered {
            None if wanted.is_empty() => {
                self.system_calls -= 1;
                self.watches[index] = None;
            }
            None => {
                epoll::add(&self.set, borrow(fd), data, wanted)?;
                watch.registered = Some(wanted);
            }
            Some(_) if wanted.is_empty() => {
                self.watches[index] = None;
                epoll::delete(&self.set, borrow(fd))?;
            }
            Some(_) => {
                epoll::modify(&self.set, borrow(fd), data, wanted)?;
                watch.registered = Some(wanted);
            }
        }
        Ok(())
    }

    /// Registers interest; a refusal ends the operation that wanted it.
    fn want(&mut self, fd: RawFd, token: Token, set: impl FnOnce(&mut Watch)) {
        set(self.watch(fd));
        if let Err(mut errno) = self.update(fd) {
            // The user's limit on watches is reached (epoll_ctl(2)): no fault of the socket's either.
            if errno == Errno::NOSPC {
                errno = Errno::NOMEM;
            }
            let sent = self.forget(fd, token).unwrap_or(0);
            self.complete(token, ended_early(sent, errno));
        }
    }

    fn want_input(&mut self, fd: RawFd, token: Token, input: Input) {
        self.want(fd, token, |watch| {
            debug_assert!(matches!(watch.input, None | Some(Input::Told)), "one input at a time");
            watch.input = Some(input);
        });
    }

    /// Has the sockets of few receives watched, if it pays. For a park that is about to begin.
    #[inline]
    fn watch_early(&mut self) {
        if self.receives > WATCHED_MAX {
            self.early_watches.remove_all(&mut self.system_calls);
            return;
        }
        self.early.park(Instant::now);
        if self.receives != self.early_watches.len() && self.early.pays() {
            self.watch_receives();
        }
    }

    /// How many sockets are watched.
    #[cfg(test)]
    pub(crate) fn watched(&self) -> usize {
        self.early_watches.len()
    }

    fn watch_receives(&mut self) {
        let Self { watches, early, early_watches, system_calls, .. } = self;
        for (fd, watch) in watches.iter().enumerate().take(SEARCHED_MAX) {
            let Some(Input::Receive(_)) = watch.as_ref().and_then(|watch| watch.input) else {
                continue;
            };
            let Ok(fd) = RawFd::try_from(fd) else { return };
            if !early_watches.has(fd) && early_watches.add(fd, system_calls).is_err() {
                // No memory, or too many are watched: it goes without.
                break;
            }
        }
        if early_watches.len() < self.receives {
            // To look for the others in every park would be in vain as often.
            early.rest();
        }
    }

    fn want_output(&mut self, fd: RawFd, token: Token, output: Output) {
        self.want(fd, token, |watch| {
            debug_assert!(
                matches!(watch.output, None | Some(Output::Told)),
                "one output at a time"
            );
            watch.output = Some(output);
        });
    }

    /// Takes an operation off the watch of its descriptor. If it is there: the bytes that a send had
    /// sent, else zero.
    fn forget(&mut self, fd: RawFd, target: Token) -> Option<u32> {
        let watch = self.watch_of(fd)?;
        let input = watch.input.take_if(|input| input.token() == Some(target));
        if let Some(Input::Receive(_)) = input {
            self.receives -= 1;
            self.early_watches.remove(fd, &mut self.system_calls);
            return Some(0);
        }
        if input.is_some() || watch.hangup.take_if(|hangup| *hangup == target).is_some() {
            return Some(0);
        }
        watch.output.take_if(|output| output.token() == Some(target))?;
        Some(self.sends.remove(&fd).map_or(0, |pending| pending.done()))
    }

    fn perform(&mut self, token: Token, request: Request) {
        match request {
            Request::Receive { fd } => {
                self.receives += 1;
                self.want_input(fd, token, Input::Receive(token));
            }
            Request::Accept { fd } => self.want_input(fd, token, Input::Accept(token)),
            Request::Doorbell { fd } => self.want_input(fd, token, Input::Doorbell(token)),
            Request::Readable { fd } => self.want_input(fd, token, Input::Readable(token)),
            Request::Writable { fd } => self.want_output(fd, token, Output::Writable(token)),
            Request::Hangup { fd } => self.want(fd, token, |watch| watch.hangup = Some(token)),
            Request::Send { fd, data, len, silent } => {
                self.send(fd, token, Pending::new(data, len), silent);
            }
            Request::SendMessage { fd, header, silent } => {
                self.send(fd, token, Pending::gathered(header), silent);
            }
            Request::Cancel { target, fd } => self.cancel(token, target, fd),
        }
    }

    /// Sends what fits. A silent send completes only if short; another waits for room.
    fn send(&mut self, fd: RawFd, token: Token, mut pending: Pending, silent: bool) {
        match self.attempt(fd, &mut pending) {
            Attempt::Whole(_) if silent => {}
            Attempt::Whole(count) | Attempt::Failed(count) => self.complete(token, count),
            Attempt::Short(count) if silent => self.complete(token, count),
            Attempt::Short(_) => {
                self.sends.insert(fd, pending);
                self.want_output(fd, token, Output::Send(token));
            }
        }
    }

    fn attempt(&mut self, fd: RawFd, pending: &mut Pending) -> Attempt {
        // SAFETY: what the request names is alive until its completion (E2).
        unsafe { pending.attempt(fd, &mut self.system_calls) }
    }

    fn cancel(&mut self, token: Token, target: Token, fd: RawFd) {
        // Staged requests are performed in order, so a target staged before this is a watch by now.
        let Some(sent) = self.forget(fd, target) else {
            self.complete(token, -libc::ENOENT);
            return;
        };
        // Interest that can't be narrowed only causes events that nobody takes.
        let _ = self.update(fd);
        self.complete(target, ended_early(sent, Errno::CANCELED));
        self.complete(token, 0);
    }

    fn serve(&mut self, fd: RawFd, events: epoll::EventFlags) {
        let Some(watch) = self.watch_of(fd) else { return };
        let Watch { input, output, hangup, .. } = *watch;
        let failed = events.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        if failed || events.contains(epoll::EventFlags::IN) {
            match input {
                Some(Input::Receive(token)) => self.receive(fd, token),
                Some(Input::Accept(token)) => {
                    let ended = failed || events.contains(epoll::EventFlags::RDHUP);
                    self.accept(fd, token, ended);
                }
                Some(Input::Doorbell(token)) => {
                    let done = Completion { token, result: 1, more: true, received: None };
                    self.completions.push(done);
                }
                Some(Input::Readable(token)) => {
                    watch.input = Some(Input::Told);
                    self.tell(fd, token, events);
                }
                None | Some(Input::Told) => {}
            }
        }
        if failed || events.contains(epoll::EventFlags::OUT) {
            match output {
                Some(Output::Send(token)) => self.send_rest(fd, token),
                Some(Output::Writable(token)) => {
                    if let Some(watch) = self.watch_of(fd) {
                        watch.output = Some(Output::Told);
                    }
                    self.tell(fd, token, events);
                }
                None | Some(Output::Told) => {}
            }
        }
        if let Some(token) = hangup
            && (failed || events.contains(epoll::EventFlags::RDHUP))
        {
            self.end(fd, token, count_of(events.bits()));
        }
        // A descriptor that nobody wants any more leaves the set here: its hang-up would be reported
        // for ever.
        let _ = self.update(fd);
    }

    /// Takes an operation off its descriptor's watch and completes it.
    fn end(&mut self, fd: RawFd, token: Token, result: i32) {
        self.forget(fd, token);
        self.complete(token, result);
    }

    /// Tells of readiness that was asked for.
    fn tell(&mut self, fd: RawFd, token: Token, events: epoll::EventFlags) {
        self.told.push(fd);
        self.complete(token, count_of(events.bits()));
    }

    /// Asks anew for readiness whose interest is still registered. False if it is not.
    fn ask_again(&mut self, token: Token, request: Request) -> bool {
        match request {
            Request::Readable { fd } => {
                let watch = self.watch_of(fd);
                let told = watch.filter(|watch| matches!(watch.input, Some(Input::Told)));
                told.map(|watch| watch.input = Some(Input::Readable(token))).is_some()
            }
            Request::Writable { fd } => {
                let watch = self.watch_of(fd);
                let told = watch.filter(|watch| matches!(watch.output, Some(Output::Told)));
                told.map(|watch| watch.output = Some(Output::Writable(token))).is_some()
            }
            _ => false,
        }
    }

    fn send_rest(&mut self, fd: RawFd, token: Token) {
        let Some(mut pending) = self.sends.get(&fd).copied() else { return };
        match self.attempt(fd, &mut pending) {
            Attempt::Short(_) => {
                self.sends.insert(fd, pending);
            }
            Attempt::Whole(result) | Attempt::Failed(result) => self.end(fd, token, result),
        }
    }

    fn receive(&mut self, fd: RawFd, token: Token) {
        let Some(front) = self.blocks.front_mut() else {
            self.end(fd, token, -libc::ENOBUFS);
            return;
        };
        // SAFETY: bytes of the front block behind what was delivered belong to the engine alone (E1).
        let outcome = unsafe { front.receive(fd, &self.pool, &mut self.system_calls) };
        match outcome {
            Err(Errno::AGAIN) => {}
            Err(errno) => self.end(fd, token, -errno.raw_os_error()),
            Ok(None) => self.end(fd, token, 0),
            Ok(Some(received)) => {
                if received.last {
                    self.blocks.pop_front();
                }
                let result = count_of(received.len);
                let received = Some(received);
                self.completions.push(Completion { token, result, more: true, received });
            }
        }
    }

    /// Accepts what is there. A listener that was shut down has `ended`: accept4(2) goes on to say EAGAIN
    /// there if it must not wait, and EINVAL if it may, while poll(2) reports it for ever.
    fn accept(&mut self, fd: RawFd, token: Token, ended: bool) {
        for _ in 0..ACCEPTS_PER_EVENT_MAX {
            self.system_calls += 1;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(borrow(fd), flags) {
                Ok(socket) => {
                    let result = socket.into_raw_fd();
                    self.completions.push(Completion { token, result, more: true, received: None });
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) if ended => return self.end(fd, token, -libc::EINVAL),
                Err(Errno::AGAIN) => return,
                Err(errno) => return self.end(fd, token, -errno.raw_os_error()),
            }
        }
    }

    /// True if a peer has read what was sent to it.
    fn poll(&mut self, timeout: Option<&Timespec>) -> Result<bool, EngineError> {
        let mut told = false;
        self.system_calls += 1;
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.set, room, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(EngineError::Fatal { call: "epoll_wait", source: errno.into() });
            }
        }
        for index in 0..self.events.len() {
            let event = self.events[index];
            let flags = event.flags;
            let fd = event.data.u64();
            if fd == TOLD {
                told = true;
                if self.early_watches.told() {
                    self.early.tell();
                }
            } else if let Ok(fd) = RawFd::try_from(fd) {
                self.serve(fd, flags);
            }
        }
        self.events.clear();
        let bytes = self.completions.iter().any(|done| done.received.is_some());
        if self.early.judge(bytes, Instant::now) {
            self.early_watches.remove_all(&mut self.system_calls);
        }
        Ok(told)
    }
}

impl Engine for Epoll {
    unsafe fn push(&mut self, token: Token, request: Request) -> Result<(), QueueFull> {
        if !self.told.is_empty() && self.ask_again(token, request) {
            return Ok(());
        }
        if self.staged.len() >= STAGED_MAX {
            return Err(QueueFull);
        }
        self.staged.push_back((token, request));
        Ok(())
    }

    fn staged(&self) -> usize {
        self.staged.len()
    }

    fn enter(&mut self, wait: bool, deadline: Option<Instant>) -> Result<(), EngineError> {
        while let Some((token, request)) = self.staged.pop_front() {
            self.perform(token, request);
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !wait || !self.completions.is_empty() {
            return self.poll(Some(&zero)).map(drop);
        }
        self.watch_early();
        loop {
            let timeout = deadline.map(|deadline| {
                let left = wait_for(deadline, Instant::now());
                Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            // Woken early, what was announced is not there yet.
            if !self.poll(timeout.as_ref())? || !self.completions.is_empty() {
                return Ok(());
            }
        }
    }

    fn reap(&mut self, batch: &mut Vec<Completion>) {
        hand_over(&mut self.completions, batch);
    }

    fn settle(&mut self) {
        let mut told = std::mem::take(&mut self.told);
        for fd in told.drain(..) {
            if let Some(watch) = self.watch_of(fd) {
                watch.input.take_if(|input| matches!(input, Input::Told));
                watch.output.take_if(|output| matches!(output, Output::Told));
            }
            // Interest that can't be narrowed only causes events that nobody takes.
            let _ = self.update(fd);
        }
        self.told = told;
    }

    fn ready(&mut self) -> bool {
        // Readiness can't be seen without asking; what is found is served at once.
        if self.completions.is_empty() {
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            // A failure shows up again, with its reason, in `enter`.
            let _ = self.poll(Some(&zero));
        }
        !self.completions.is_empty()
    }

    fn spin(&mut self, _on: bool) {}

    fn extra_blocks(&self) -> usize {
        0
    }

    fn provide(&mut self, block: BlockId) {
        self.blocks.push_back(OwnBlock::new(block));
    }

    fn surrender_blocks(&mut self) -> Vec<BlockId> {
        self.blocks.drain(..).map(|block| block.id()).collect()
    }

    fn system_calls(&self) -> u64 {
        self.system_calls
    }

    fn early_wakes(&self) -> EarlyWakes {
        self.early.wakes
    }
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoll").field("set", &self.set.as_raw_fd()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    use super::*;
    use crate::engine::kept::{Kept, Plan};
    use crate::pool::Pool;
    use crate::wake::Inbox;

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_send_that_cannot_wait_for_room_says_what_it_has_sent() {
        const LEN: usize = 16 << 20;
        let pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
        let mut kept = Kept::new(Epoll::new(Arc::clone(pool.shared())).unwrap());
        let (near, far) = UnixStream::pair().unwrap();
        let near = Rc::new(OwnedFd::from(near));
        // What is in the set already is refused, as everything is when memory is short.
        let nothing = epoll::EventFlags::empty();
        epoll::add(&kept.engine.set, &near, epoll::EventData::new_u64(u64::MAX), nothing).unwrap();
        let send = Plan::Send { bytes: vec![7; LEN], silent: false };
        kept.push(Token::new(0, 0), &near, &send).unwrap();
        let batch = kept.enter(false, None).unwrap();
        assert_eq!(batch.len(), 1);
        let mut received = Vec::new();
        drop(near);
        (&far).read_to_end(&mut received).unwrap();
        assert_eq!(batch[0].result, i32::try_from(received.len()).unwrap());
    }
}
