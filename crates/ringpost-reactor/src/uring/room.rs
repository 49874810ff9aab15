//! Waiting for room in a socket whose peer has shut down.
//!
//! A poll of the ring reports the end of the peer's bytes whether that was asked for or not
//! (`IO_POLL_UNMASK` in the kernel's `io_uring/poll.c`), so that one for room ends at once, and so does the
//! poll inside a send: it is tried again, many times in a row, and ends in `EAGAIN` (observed on Linux
//! 6.18). Whoever finds no room and asks again spins. epoll reports that end only to who asks for it, and
//! failures to everybody (epoll_ctl(2)). So what has ended like that goes on under its token as a poll of an
//! epoll set that holds this socket alone.
//!
//! ```text
//!   Asked   -> (told)   room, bytes sent, a failure, cancelled
//!           -> Set      the peer has shut down, and there is no room
//!           -> Pausing  the same, and there can be no set now
//!   Set     -> (told)   room, a failure, cancelled
//!           -> Asked    the same, of a send
//!   Pausing -> Asked    the pause is over
//!           -> Polled   the same, of a send: to try it so often in vain each time would cost a core
//!           -> (told)   cancelled
//!   Polled  -> Asked    room, a failure
//!           -> Set, Pausing as from Asked
//!           -> (told)   cancelled
//! ```
//!
//! # Invariant
//!
//! * **W1** A set is closed before its wait is told of, and the caller keeps the socket open until then: no
//!   set sees a descriptor number that is used again.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::{opcode, types};
use rustix::event::{Timespec, epoll};

use crate::by_hand::{borrow, count_of};
use crate::engine::{Request, Token};

/// Sets at most: one descriptor for each socket that is full and whose peer has shut down.
const SETS_MAX: usize = 1024;
/// How long a wait pauses that can have no set.
static PAUSE: types::Timespec = types::Timespec::new().nsec(100_000_000);

/// The waits for room, and the sends that wait for some.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    waits: HashMap<Token, Wait>,
    /// Those that the ring is still to be told of, and some that have ended meanwhile.
    unarmed: Vec<Token>,
    sets: usize,
}

#[derive(Debug)]
struct Wait {
    /// A wait for room, or a send that is told of.
    request: Request,
    stage: Stage,
    /// The ring has it.
    armed: bool,
    /// Whoever cancels wants to see the end: the wait does not go on.
    cancelled: bool,
}

#[derive(Debug)]
enum Stage {
    Asked,
    Set(OwnedFd),
    Pausing,
    /// A poll for the room that a send needs.
    Polled,
}

impl Wait {
    fn is_send(&self) -> bool {
        !matches!(self.request, Request::Writable { .. })
    }

    /// Whether the ring has ended this although it would have to wait.
    fn found_no_room(&self, result: i32) -> bool {
        const TOLD: i32 = libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP;
        match self.stage {
            Stage::Asked if self.is_send() => result == -libc::EAGAIN,
            Stage::Asked | Stage::Polled => {
                result > 0 && result & TOLD == 0 && result & libc::EPOLLRDHUP != 0
            }
            Stage::Set(_) | Stage::Pausing => false,
        }
    }
}

impl Rooms {
    /// The ring was asked for what may have to wait for room.
    pub(super) fn start(&mut self, token: Token, request: Request) {
        let stage = Stage::Asked;
        self.waits.insert(token, Wait { request, stage, armed: true, cancelled: false });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// The wait is about to be cancelled in the ring. True if the ring does not have it, so that it has
    /// ended now.
    pub(super) fn cancel(&mut self, token: Token) -> bool {
        let Some(wait) = self.waits.get_mut(&token) else { return false };
        wait.cancelled = true;
        if wait.armed {
            return false;
        }
        self.remove(token);
        true
    }

    /// The ring has ended a request. What is to be told, unless it was a wait that goes on.
    pub(super) fn ended(&mut self, token: Token, result: i32, calls: &mut u64) -> Option<i32> {
        let Some(wait) = self.waits.get_mut(&token) else { return Some(result) };
        if !wait.armed {
            // A completion that came twice.
            return None;
        }
        let next = match &wait.stage {
            _ if wait.found_no_room(result) => {
                if wait.cancelled {
                    self.remove(token);
                    return Some(-libc::ECANCELED);
                }
                let fd = wait.request.descriptor();
                let set = (self.sets < SETS_MAX).then(|| watch(fd, calls).ok()).flatten();
                self.sets += usize::from(set.is_some());
                set.map_or(Stage::Pausing, Stage::Set)
            }
            Stage::Pausing if result == -libc::ETIME && !wait.cancelled => {
                if wait.is_send() {
                    Stage::Polled
                } else {
                    Stage::Asked
                }
            }
            Stage::Pausing => {
                let cancelled = wait.cancelled;
                self.remove(token);
                // Else the kernel had no memory for the pause.
                return Some(if cancelled { -libc::ECANCELED } else { result });
            }
            Stage::Set(_) | Stage::Polled if result > 0 && wait.is_send() => {
                if wait.cancelled {
                    self.remove(token);
                    return Some(-libc::ECANCELED);
                }
                self.sets -= usize::from(matches!(wait.stage, Stage::Set(_)));
                Stage::Asked
            }
            Stage::Asked | Stage::Polled => {
                self.remove(token);
                return Some(result);
            }
            Stage::Set(set) => {
                let result = if result > 0 { mask(set, calls) } else { result };
                self.remove(token);
                return Some(result);
            }
        };
        wait.stage = next;
        wait.armed = false;
        self.unarmed.push(token);
        None
    }

    /// Some may have to go into the submission queue still: who waits in the kernel would not hear of their room.
    pub(super) fn has_unarmed(&self) -> bool {
        !self.unarmed.is_empty()
    }

    /// Hands the ring what it is still to be told of, as long as `push` takes it.
    pub(super) fn arm(
        &mut self,
        entry_of: impl Fn(Request) -> Entry,
        mut push: impl FnMut(&Entry) -> bool,
    ) {
        while let Some(token) = self.unarmed.last() {
            if let Some(wait) = self.waits.get_mut(token) {
                let entry = match &wait.stage {
                    Stage::Asked => entry_of(wait.request),
                    Stage::Set(set) => {
                        let events = libc::EPOLLIN.cast_unsigned();
                        opcode::PollAdd::new(types::Fd(set.as_raw_fd()), events).build()
                    }
                    Stage::Pausing => opcode::Timeout::new(&PAUSE).build(),
                    Stage::Polled => entry_of(Request::Writable { fd: wait.request.descriptor() }),
                };
                if !push(&entry.user_data(token.0)) {
                    return;
                }
                wait.armed = true;
            }
            self.unarmed.pop();
        }
    }

    #[cfg(feature = "sim")]
    pub(super) fn unarmed(&self) -> impl Iterator<Item = Token> {
        self.unarmed.iter().copied().filter(|token| self.waits.contains_key(token))
    }

    fn remove(&mut self, token: Token) {
        if let Some(Wait { stage: Stage::Set(_), .. }) = self.waits.remove(&token) {
            self.sets -= 1;
        }
    }
}

/// A set that is readable when there is room in `fd`, or it has failed.
fn watch(fd: RawFd, calls: &mut u64) -> io::Result<OwnedFd> {
    *calls += 2;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&set, borrow(fd), epoll::EventData::new_u64(0), epoll::EventFlags::OUT)?;
    Ok(set)
}

/// What a set that is readable has to tell.
fn mask(set: &OwnedFd, calls: &mut u64) -> i32 {
    *calls += 1;
    let event =
        epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
    let mut events = [event];
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    match epoll::wait(set, &mut events, Some(&zero)) {
        Ok(1..) => {
            let flags = events[0].flags;
            count_of(flags.bits())
        }
        // There was room a moment ago.
        Ok(0) | Err(_) => libc::EPOLLOUT,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// What a poll of the ring says of a socket whose peer has shut down, without room.
    const NO_ROOM: i32 = libc::EPOLLRDHUP;

    struct Bench {
        rooms: Rooms,
        full: UnixStream,
        _peer: UnixStream,
        calls: u64,
        /// That the ring was told of anew.
        sends: i32,
    }

    impl Bench {
        fn new() -> Self {
            let (full, peer) = UnixStream::pair().unwrap();
            Self { rooms: Rooms::default(), full, _peer: peer, calls: 0, sends: 0 }
        }

        /// A wait for room that goes on, armed anew. True if it has a set.
        fn wait(&mut self, slot: usize) -> bool {
            let token = Token::new(slot, 1);
            self.rooms.start(token, Request::Writable { fd: self.full.as_raw_fd() });
            assert_eq!(self.ended(slot, NO_ROOM), None);
            self.arm();
            matches!(self.rooms.waits[&token].stage, Stage::Set(_))
        }

        fn ended(&mut self, slot: usize, result: i32) -> Option<i32> {
            self.rooms.ended(Token::new(slot, 1), result, &mut self.calls)
        }

        /// Arms all that are to be armed: how many.
        fn arm(&mut self) -> usize {
            let mut count = 0;
            let sends = Cell::new(0);
            let entry_of = |request| {
                sends.update(|sends| sends + i32::from(matches!(request, Request::Send { .. })));
                opcode::Nop::new().build()
            };
            self.rooms.arm(entry_of, |_| {
                count += 1;
                true
            });
            self.sends += sends.get();
            count
        }
    }

    #[test]
    fn what_the_ring_ends_twice_is_not_told() {
        let mut bench = Bench::new();
        let fd = bench.full.as_raw_fd();
        bench.rooms.start(Token::new(0, 1), Request::Writable { fd });
        assert_eq!(bench.ended(0, NO_ROOM), None);
        // It goes on, and the ring does not have it yet.
        for result in [NO_ROOM, libc::EPOLLOUT, -libc::ECANCELED] {
            assert_eq!(bench.ended(0, result), None);
        }
        assert_eq!(bench.arm(), 1);
    }

    #[test]
    fn beyond_the_bound_of_sets_waits_pause() {
        let mut bench = Bench::new();
        assert!((0..SETS_MAX).all(|slot| bench.wait(slot)));
        assert!(!bench.wait(SETS_MAX));
        // Its pause is over: it asks again, and pauses again.
        assert_eq!((bench.ended(SETS_MAX, -libc::ETIME), bench.arm()), (None, 1));
        assert_eq!((bench.ended(SETS_MAX, NO_ROOM), bench.arm()), (None, 1));
        assert_eq!(bench.rooms.sets, SETS_MAX);
        // One of the others hears of room, and leaves its place.
        let room = bench.ended(0, libc::EPOLLIN).unwrap();
        assert!(room & libc::EPOLLOUT != 0, "{room:#x}");
        assert_eq!((bench.ended(SETS_MAX, -libc::ETIME), bench.arm()), (None, 1));
        assert_eq!((bench.ended(SETS_MAX, NO_ROOM), bench.arm()), (None, 1));
        assert_eq!(bench.rooms.sets, SETS_MAX);
        assert!(matches!(bench.rooms.waits[&Token::new(SETS_MAX, 1)].stage, Stage::Set(_)));
    }

    #[test]
    fn beyond_the_bound_of_sets_a_send_is_not_tried_in_vain() {
        let mut bench = Bench::new();
        assert!((0..SETS_MAX).all(|slot| bench.wait(slot)));
        let (fd, slot) = (bench.full.as_raw_fd(), SETS_MAX);
        let send = Request::Send { fd, data: std::ptr::null(), len: 100, silent: false };
        bench.rooms.start(Token::new(slot, 1), send);
        assert_eq!((bench.ended(slot, -libc::EAGAIN), bench.arm()), (None, 1));
        for _ in 0..3 {
            assert_eq!((bench.ended(slot, -libc::ETIME), bench.arm()), (None, 1));
            assert_eq!((bench.ended(slot, NO_ROOM), bench.arm()), (None, 1));
        }
        assert_eq!(bench.sends, 0);
        assert_eq!((bench.ended(slot, -libc::ETIME), bench.arm()), (None, 1));
        assert_eq!((bench.ended(slot, NO_ROOM | libc::EPOLLOUT), bench.arm()), (None, 1));
        assert_eq!((bench.sends, bench.rooms.sets), (1, SETS_MAX));
        assert_eq!(bench.ended(slot, 100), Some(100));
        // Cancelled while it is polled for.
        bench.rooms.start(Token::new(slot, 1), send);
        assert_eq!((bench.ended(slot, -libc::EAGAIN), bench.arm()), (None, 1));
        assert_eq!((bench.ended(slot, -libc::ETIME), bench.arm()), (None, 1));
        assert!(!bench.rooms.cancel(Token::new(slot, 1)), "the ring has it");
        assert_eq!(bench.ended(slot, NO_ROOM), Some(-libc::ECANCELED));
        assert_eq!((bench.arm(), bench.rooms.sets), (0, SETS_MAX));
    }

    #[test]
    fn a_wait_that_is_cancelled_while_it_is_to_be_armed_has_ended() {
        let mut bench = Bench::new();
        bench.wait(0);
        bench.wait(1);
        assert!(!bench.rooms.cancel(Token::new(0, 1)), "the ring has it");
        assert_eq!(bench.ended(0, -libc::ECANCELED), Some(-libc::ECANCELED));
        bench.rooms.start(Token::new(2, 1), Request::Writable { fd: bench.full.as_raw_fd() });
        assert_eq!(bench.ended(2, NO_ROOM), None);
        assert_eq!(bench.ended(2, NO_ROOM), None, "told twice");
        assert!(bench.rooms.cancel(Token::new(2, 1)));
        assert!(!bench.rooms.cancel(Token::new(2, 1)));
        assert_eq!((bench.arm(), bench.rooms.sets), (0, 1));
    }
}
