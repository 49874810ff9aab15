//! One engine on a bench: things to work on, everything noted and refereed, every wait bounded.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::referee::Referee;
use super::subjects::Subject;
use super::trace::{self, Ask, ELSEWHERE, Event, Line, Range};
use crate::engine::kept::{Kept, Plan};
use crate::engine::{Completion, Engine, Token};
use crate::pool::Pool;

/// Every wait ends after this.
const PATIENCE: Duration = Duration::from_secs(15);
/// Enters without anything that are waited for.
const ENTERS_MAX: usize = 3000;

/// Send buffers of pairs, small so that they are soon full; the kernel doubles it (socket(7)).
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// More than any socket here takes at once.
pub(super) const MUCH: usize = 1 << 19;

/// How the bench is set up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) blocks: u16,
    pub(super) block_bytes: u32,
    /// Requests that can be staged, if the engine can be told.
    pub(super) queue_max: u32,
    /// Blocks that the engine gets at once.
    pub(super) provided: u16,
    /// Blocks that are kept for [`Engine::extra_blocks`].
    pub(super) spare: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { blocks: 8, block_bytes: 16 << 10, queue_max: 64, provided: 8, spare: 0 }
    }
}

/// What operations work on.
struct Thing {
    near: Rc<OwnedFd>,
    /// The other end of a pair.
    far: Option<OwnedFd>,
    /// Positions in the two streams: what was written and read at the far end, and sent and received at
    /// the near one.
    written: u64,
    read: u64,
    sent: u64,
    received: u64,
}

/// See the module documentation.
pub(super) struct Bench<S: Subject> {
    kept: Kept<S::Engine>,
    pool: Pool,
    referee: Referee,
    things: Vec<Thing>,
    /// Slot by slot: the generation, whether it is used, the thing, and how much a send offers.
    slots: Vec<Slot>,
    done: VecDeque<Completion>,
    pub(super) trace: Vec<Event>,
    spinning: bool,
    shape: Shape,
    round: u64,
}

#[derive(Debug, Clone)]
struct Slot {
    generation: u32,
    line: Line,
    ask: Ask,
}

/// The bytes of a stream: a table over and over, begun elsewhere for each stream. Its length is prime, so
/// that no two blocks are alike.
const TABLE_BYTES: usize = 65_521;

fn bytes(line: Line, from: u64, len: usize) -> Vec<u8> {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let byte = |place: usize| (place as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()[3];
    let table = TABLE.get_or_init(|| (0..TABLE_BYTES).map(byte).collect());
    let start = (from + line as u64 * 977) % TABLE_BYTES as u64;
    let mut rest = &table[usize::try_from(start).unwrap()..];
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        bytes.extend_from_slice(&rest[..rest.len().min(len - bytes.len())]);
        rest = table;
    }
    bytes
}

/// The near stream has other bytes than the far one.
const NEAR: Line = 1 << 10;

impl<S: Subject> Bench<S> {
    pub(super) fn new(shape: Shape, round: u64) -> Result<Self, String> {
        let (engine, pool) = S::build(shape, round)?;
        let mut bench = Self {
            kept: Kept::new(engine),
            pool,
            referee: Referee::default(),
            things: Vec::new(),
            slots: Vec::new(),
            done: VecDeque::new(),
            trace: Vec::new(),
            spinning: false,
            shape,
            round,
        };
        let Shape { blocks, block_bytes, provided, .. } = shape;
        bench.note(Event::Pool { blocks, block_bytes, shared: S::SHARED });
        (0..provided).for_each(|_| assert!(bench.provide(), "a free block"));
        Ok(bench)
    }

    #[track_caller]
    fn note(&mut self, event: Event) {
        let verdict = self.referee.see(&event);
        self.trace.push(event);
        if let Err(broken) = verdict {
            panic!("{} broke the contract: {broken}\n{}", S::NAME, trace::write(&self.trace));
        }
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Which run of the test this is.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    // Things.

    fn thing(&mut self, near: OwnedFd, far: Option<OwnedFd>) -> Line {
        let near = Rc::new(near);
        self.things.push(Thing { near, far, written: 0, read: 0, sent: 0, received: 0 });
        self.things.len() - 1
    }

    /// A pair of connected stream sockets.
    pub(super) fn pair(&mut self) -> Line {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (near, far) = pair.unwrap();
        for end in [&near, &far] {
            rustix::net::sockopt::set_socket_send_buffer_size(end, SEND_BUFFER_BYTES).unwrap();
        }
        let line = self.thing(near, Some(far));
        self.note(Event::Pair(line));
        line
    }

    /// A listening socket.
    pub(super) fn listener(&mut self) -> Line {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        // The kernel chooses an abstract name (unix(7), autobind).
        let unnamed = rustix::net::SocketAddrUnix::new_unnamed();
        rustix::net::bind(&socket, &unnamed).unwrap();
        rustix::net::listen(&socket, 4096).unwrap();
        let line = self.thing(socket, None);
        self.note(Event::Listener(line));
        line
    }

    /// An event descriptor.
    pub(super) fn bell(&mut self) -> Line {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let line = self.thing(bell, None);
        self.note(Event::Bell(line));
        line
    }

    pub(super) fn near(&self, line: Line) -> BorrowedFd<'_> {
        self.things[line].near.as_fd()
    }

    pub(super) fn far(&self, line: Line) -> BorrowedFd<'_> {
        self.things[line].far.as_ref().expect("the far end is open").as_fd()
    }

    // What the world does.

    /// The far end writes, as much as there is room for; says how much that was.
    pub(super) fn write(&mut self, line: Line, len: usize) -> usize {
        let start = self.things[line].written;
        let data = bytes(line, start, len);
        let mut written = 0;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while written < len {
            match rustix::net::send(self.far(line), &data[written..], flags) {
                Ok(count) => written += count,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(errno) => panic!("the far end can't write: {errno}"),
            }
        }
        self.things[line].written += written as u64;
        self.note(Event::Write(line, written));
        written
    }

    /// The far end reads up to `max` bytes, which have to be the right ones; says how many there were.
    pub(super) fn read(&mut self, line: Line, max: usize) -> usize {
        let mut data = vec![0; max];
        let mut count = 0;
        while count < max {
            match rustix::net::recv(self.far(line), &mut data[count..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNRESET) => break,
                Ok((_, more)) => count += more,
                Err(errno) => panic!("the far end can't read: {errno}"),
            }
        }
        let start = self.things[line].read;
        assert!(data[..count] == bytes(NEAR + line, start, count), "other bytes than were sent");
        self.things[line].read += count as u64;
        self.note(Event::Read(line, count));
        count
    }

    /// The far end reads all there is.
    pub(super) fn read_all(&mut self, line: Line) -> usize {
        let mut total = 0;
        loop {
            match self.read(line, 1 << 16) {
                0 => return total,
                count => total += count,
            }
        }
    }

    pub(super) fn far_shut(&mut self, line: Line) {
        rustix::net::shutdown(self.far(line), rustix::net::Shutdown::Write).unwrap();
        self.note(Event::FarShut(line));
    }

    pub(super) fn far_close(&mut self, line: Line) {
        self.things[line].far = None;
        self.note(Event::FarClose(line));
    }

    pub(super) fn near_shut(&mut self, line: Line) {
        rustix::net::shutdown(self.near(line), rustix::net::Shutdown::Write).unwrap();
        self.note(Event::NearShut(line));
    }

    /// Connects to a listener.
    pub(super) fn connect(&mut self, line: Line) -> OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let address = rustix::net::getsockname(self.near(line)).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        self.note(Event::Connect(line));
        socket
    }

    pub(super) fn ring(&mut self, line: Line) {
        rustix::io::write(self.near(line), &1_u64.to_ne_bytes()).unwrap();
        self.note(Event::Ring(line));
    }

    /// Sends until nothing more fits; says how much that was.
    #[track_caller]
    pub(super) fn fill(&mut self, line: Line) -> usize {
        let mut filled = 0;
        loop {
            let token = self.send(line, MUCH, true);
            match self.end(token) {
                taken @ 1.. => filled += usize::try_from(taken).unwrap(),
                result => {
                    assert!(result == -libc::EAGAIN && filled > 0, "{result} after {filled}");
                    return filled;
                }
            }
        }
    }

    // Requests.

    /// Pushes; false if there was no room.
    pub(super) fn push(&mut self, line: Line, ask: Ask) -> Option<Token> {
        let live =
            |slot: usize, this: &Slot| self.referee.is_live(Token::new(slot, this.generation));
        let free = self.slots.iter().enumerate().position(|(slot, this)| !live(slot, this));
        let slot = free.unwrap_or(self.slots.len());
        let generation = self.slots.get(slot).map_or(0, |slot| slot.generation + 1);
        let used = Slot { generation, line, ask: ask.clone() };
        if slot == self.slots.len() {
            self.slots.push(used);
        } else {
            self.slots[slot] = used;
        }
        let token = Token::new(slot, generation);
        let sent = self.things[line].sent;
        let data = |len: usize, at: u64| bytes(NEAR + line, at, len);
        let plan = match &ask {
            Ask::Receive => Plan::Receive,
            Ask::Send { len, silent } => Plan::Send { bytes: data(*len, sent), silent: *silent },
            Ask::SendParts { lens, silent } => {
                let mut at = sent;
                let part = |len: &usize| {
                    at += *len as u64;
                    data(*len, at - *len as u64)
                };
                Plan::SendParts { parts: lens.iter().map(part).collect(), silent: *silent }
            }
            Ask::Accept => Plan::Accept,
            Ask::Doorbell => Plan::Doorbell,
            Ask::Hangup => Plan::Hangup,
            Ask::Readable => Plan::Readable,
            Ask::Writable => Plan::Writable,
            Ask::Cancel(target) => Plan::Cancel(*target),
        };
        let near = Rc::clone(&self.things[line].near);
        let pushed = self.kept.push(token, &near, &plan);
        self.note(Event::Push { token, line, ask });
        if pushed.is_err() {
            self.note(Event::Full);
            return None;
        }
        Some(token)
    }

    /// Pushes, and makes room for it where there is none.
    #[track_caller]
    pub(super) fn start(&mut self, line: Line, ask: Ask) -> Token {
        for _ in 0..ENTERS_MAX {
            match self.push(line, ask.clone()) {
                Some(token) => return token,
                None => self.enter(),
            }
        }
        panic!("no enter makes room")
    }

    pub(super) fn receive(&mut self, line: Line) -> Token {
        self.start(line, Ask::Receive)
    }

    pub(super) fn send(&mut self, line: Line, len: usize, silent: bool) -> Token {
        self.start(line, Ask::Send { len, silent })
    }

    pub(super) fn cancel(&mut self, target: Token) -> Token {
        let line = self.slots.get(target.slot()).map_or(0, |slot| slot.line);
        self.start(line, Ask::Cancel(target))
    }

    // What the engine does.

    /// Takes what was reaped in: notes it, compares bytes, gives finished blocks back.
    fn take_in(&mut self, batch: Vec<Completion>) {
        for done in batch {
            let Slot { line, ask, .. } = self.slots[done.token.slot()].clone();
            let mut result = done.result;
            match &ask {
                Ask::Accept => result = result.min(0),
                Ask::Doorbell | Ask::Hangup | Ask::Readable | Ask::Writable => {
                    result = result.min(1);
                }
                Ask::Send { .. } | Ask::SendParts { .. } => {
                    self.things[line].sent += u64::try_from(result).unwrap_or(0);
                }
                Ask::Receive | Ask::Cancel(_) => {}
            }
            let range = done.received.map(|received| {
                let from = self.things[line].received;
                let len = received.len as usize;
                let lease = self.pool.lease(received.block, received.offset, received.len);
                let right = lease.as_slice() == bytes(line, from, len);
                self.things[line].received += len as u64;
                Range {
                    block: received.block,
                    offset: received.offset,
                    len: received.len,
                    last: received.last,
                    from: if right { from } else { ELSEWHERE },
                }
            });
            let Completion { token, more, .. } = done;
            self.note(Event::Done { token, result, more, range });
            if let Some(received) = done.received.filter(|received| received.last) {
                self.pool.retire(received.block);
            }
            self.done.push_back(done);
        }
        self.pool.collect_returns();
        self.pool.check();
    }

    fn enter_until(&mut self, wait: bool, deadline: Option<Instant>) {
        let silent: Vec<_> = self.silent_sends();
        self.note(Event::Enter { wait });
        let batch = self.kept.enter(wait, deadline).expect("the engine goes on");
        let told: Vec<_> = batch.iter().map(|done| done.token).collect();
        self.take_in(batch);
        let staged = self.kept.engine.staged();
        self.note(Event::Staged(staged));
        if staged == 0 {
            for token in silent.into_iter().filter(|token| !told.contains(token)) {
                let Slot { line, ask, .. } = &self.slots[token.slot()];
                self.things[*line].sent += ask.offers().unwrap_or(0) as u64;
            }
        }
        self.kept.engine.settle();
    }

    /// Silent sends of which nothing was told so far.
    fn silent_sends(&self) -> Vec<Token> {
        let tokens = self.slots.iter().enumerate();
        tokens
            .filter(|(_, slot)| slot.ask.is_silent())
            .map(|(index, slot)| Token::new(index, slot.generation))
            .filter(|token| self.referee.is_live(*token))
            .collect()
    }

    /// Enters without waiting.
    pub(super) fn enter(&mut self) {
        self.enter_until(false, None);
    }

    /// Enters and waits until something completes, the deadline passes, or there is no reason.
    pub(super) fn enter_waiting(&mut self, deadline: Instant) {
        self.enter_until(true, Some(deadline));
    }

    /// As a recorded enter was.
    #[cfg(feature = "sim")]
    pub(super) fn enter_guided(&mut self, wait: bool) {
        self.enter_until(wait, wait.then(|| Instant::now() + PATIENCE));
    }

    /// Enters until nothing is staged.
    pub(super) fn perform(&mut self) {
        for _ in 0..ENTERS_MAX {
            self.enter();
            if self.staged() == 0 {
                return;
            }
        }
        panic!("{} requests are never performed", self.staged());
    }

    /// Reaps without an enter: what comes has been performed before.
    pub(super) fn reap_only(&mut self) {
        let batch = self.kept.reap();
        self.take_in(batch);
    }

    pub(super) fn staged(&self) -> usize {
        self.kept.engine.staged()
    }

    pub(super) fn ready(&mut self) -> bool {
        self.kept.engine.ready()
    }

    /// Says that the caller spins; the engine gets the blocks that it wants for that.
    pub(super) fn spin(&mut self, on: bool) {
        self.spinning = on;
        if on {
            self.referee.spins();
        }
        self.kept.engine.spin(on);
        for _ in 0..self.kept.engine.extra_blocks() {
            self.provide();
        }
    }

    /// Gives the engine a block, if there is one.
    pub(super) fn provide(&mut self) -> bool {
        let Some(block) = self.pool.take_free() else { return false };
        self.kept.engine.provide(block);
        self.note(Event::Provide(block));
        true
    }

    /// Gives the engine every block but the spare ones.
    pub(super) fn provide_all(&mut self) {
        while self.pool.free_blocks() > self.shape.spare {
            self.provide();
        }
    }

    /// The next completion of this operation that was reaped and not looked at.
    pub(super) fn find(&mut self, token: Token) -> Option<Completion> {
        let index = self.done.iter().position(|done| done.token == token)?;
        self.done.remove(index)
    }

    /// One more step of waiting: spins or waits. Finished blocks are given to the engine again.
    #[track_caller]
    pub(super) fn step(&mut self, deadline: Instant) {
        assert!(Instant::now() < deadline, "nothing came in time\n{}", trace::write(&self.trace));
        if !self.spinning {
            self.enter_waiting(deadline);
        } else if self.ready() || self.staged() > 0 {
            self.enter();
        }
    }

    /// Waits for the next completion of this operation.
    #[track_caller]
    pub(super) fn next(&mut self, token: Token) -> Completion {
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..ENTERS_MAX {
            if let Some(done) = self.find(token) {
                return done;
            }
            self.step(deadline);
        }
        panic!("nothing came in {ENTERS_MAX} enters\n{}", trace::write(&self.trace))
    }

    /// Waits for the terminal completion of this operation; those before it are dropped.
    #[track_caller]
    pub(super) fn end(&mut self, token: Token) -> i32 {
        loop {
            let done = self.next(token);
            if !done.more {
                return done.result;
            }
        }
    }

    /// Waits until the receive has delivered all that was written; blocks go round.
    #[track_caller]
    pub(super) fn receive_all(&mut self, token: Token) {
        let line = self.slots[token.slot()].line;
        self.provide_all();
        while self.referee.delivered(line) < self.referee.written(line) {
            let done = self.next(token);
            assert!(done.more, "the receive ended: {done:?}\n{}", trace::write(&self.trace));
            self.provide_all();
        }
    }

    /// As [`Bench::receive_all`], with another receive if it ends with bytes, or had no block to be tried by hand.
    #[track_caller]
    pub(super) fn receive_all_again(&mut self, mut token: Token) -> Token {
        let line = self.slots[token.slot()].line;
        while self.referee.delivered(line) < self.referee.written(line) {
            let done = self.next(token);
            self.provide_all();
            if !done.more {
                let starved = self.spinning && done.result == -libc::ENOBUFS;
                // One that is taken out of the ring to be served by hand, and runs just then.
                let interrupted = done.result == -libc::EINTR;
                assert!(starved || interrupted || done.result > 0, "{done:?}");
                token = self.receive(line);
            }
        }
        token
    }

    /// Nothing completes, however often the engine is entered.
    #[track_caller]
    pub(super) fn quiet(&mut self) {
        for _ in 0..3 {
            self.enter();
        }
        self.nothing();
    }

    /// Nothing has been reaped that was not looked at.
    #[track_caller]
    pub(super) fn nothing(&self) {
        assert!(self.done.is_empty(), "{:?}\n{}", self.done, trace::write(&self.trace));
    }

    pub(super) fn referee(&self) -> &Referee {
        &self.referee
    }

    /// The oldest connection that was accepted and not taken.
    pub(super) fn accepted(&mut self) -> OwnedFd {
        self.kept.accepted.pop_front().expect("a connection")
    }

    /// Takes the blocks back.
    #[track_caller]
    pub(super) fn surrender(&mut self) {
        let blocks = self.kept.engine.surrender_blocks();
        for &block in &blocks {
            self.pool.retire(block);
        }
        self.note(Event::Surrender(blocks));
        assert_eq!(self.kept.engine.surrender_blocks(), [], "surrendered twice");
        self.pool.collect_returns();
        self.pool.check();
    }

    /// Ends what is live; then no operation, no block and no byte may be missing.
    #[track_caller]
    pub(super) fn finish(&mut self) {
        self.spin(false);
        self.perform();
        for slot in 0..self.slots.len() {
            let token = Token::new(slot, self.slots[slot].generation);
            if self.referee.is_live(token) && !matches!(self.slots[slot].ask, Ask::Cancel(_)) {
                self.cancel(token);
            }
        }
        let deadline = Instant::now() + PATIENCE;
        let mut enters = 0;
        while self.referee.live() > 0 || self.kept.live() > 0 {
            self.step(deadline);
            enters += 1;
            assert!(enters < ENTERS_MAX, "never ends\n{}", trace::write(&self.trace));
        }
        for line in 0..self.things.len() {
            if self.things[line].far.is_some() {
                self.read_all(line);
                assert_eq!(self.referee.unread(line), 0, "bytes are missing");
                assert_eq!(self.things[line].sent, self.referee.taken(line));
            }
        }
        self.surrender();
        assert_eq!(self.pool.free_blocks(), self.pool.blocks(), "blocks are missing");
    }
}
