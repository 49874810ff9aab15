//! Appending many payloads to an outbound queue without looking at it anew for each.

use std::fmt;

use super::Stream;
use crate::memory::{OutboundBlock, Prefix};
use crate::outbound::{Lent, Payload};

/// Appends many payloads to a stream's outbound queue. See [`Stream::appender`].
///
/// It takes a block out of the queue and puts it back when it is dropped, so that meanwhile the stream
/// can be used, also by code that fills payloads in place. What is in that block, and what others append behind it,
/// is not sent before; so drop it soon. (Leaking it loses what is in that
/// block; if something was in it before, what is queued behind that never leaves.)
pub struct Appender<'stream> {
    stream: &'stream Stream,
    /// None at first; taken at the first payload.
    lent: Lent,
    /// Where in the block the bytes end that may be accepted; one payload may go beyond it, and into another
    /// block.
    room_end: usize,
    /// Bytes in the queue, its own included, at which it has no room.
    limit_bytes: usize,
}

impl<'stream> Appender<'stream> {
    /// One that accepts `room` bytes behind the `queued` ones.
    #[inline]
    pub(super) fn new(stream: &'stream Stream, queued: usize, room: usize) -> Self {
        Self { stream, lent: Lent::none(), room_end: room, limit_bytes: queued + room }
    }

    /// True if another payload may be accepted.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.end() < self.room_end
    }

    /// Accepts `prefix` and a copy of `body` if there is room for all of it and it needs no other block, as it nearly
    /// always is. False if it has not been accepted: [`Appender::has_room`] says whether it may be.
    #[inline(always)]
    pub fn try_append(&mut self, prefix: Prefix, body: &[u8]) -> bool {
        self.lent.block.try_append(prefix, body, self.room_end)
    }

    /// The same with `len` bytes that `fill` writes in place. Gives `fill` back if they have not been accepted.
    #[inline(always)]
    pub fn try_append_with<F: FnOnce(&mut [u8])>(
        &mut self,
        prefix: Prefix,
        len: usize,
        fill: F,
    ) -> Option<F> {
        self.lent.block.try_append_with(prefix, len, self.room_end, fill)
    }

    /// Accepts `prefix` and `len` bytes that `fill` writes in place. The caller has seen
    /// [`Appender::has_room`].
    #[inline(always)]
    pub fn append_with(&mut self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) {
        if !self.fits(len) {
            if !OutboundBlock::can_hold(len) {
                self.append_apart(prefix, len, fill);
                return;
            }
            self.exchange(len);
        }
        self.lent.block.append_with(prefix, len, fill);
    }

    /// Accepts `prefix` and a copy of `body`. The caller has seen [`Appender::has_room`].
    #[inline(always)]
    pub fn append(&mut self, prefix: Prefix, body: &[u8]) {
        if !self.fits(body.len()) {
            if !OutboundBlock::can_hold(body.len()) {
                self.append_apart(prefix, body.len(), |target| target.copy_from_slice(body));
                return;
            }
            self.exchange(body.len());
        }
        self.lent.block.append(prefix, body);
    }

    /// Bytes in the queue, its own included, at which it has no room; one payload may go beyond.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Bytes that it still accepts; one payload may go beyond.
    #[inline]
    fn room_bytes(&self) -> usize {
        self.room_end.saturating_sub(self.end())
    }

    /// Bytes that it has accepted and that are not in the queue yet.
    pub fn held_bytes(&self) -> usize {
        self.lent.new_bytes()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.lent.block.end()
    }

    #[inline(always)]
    fn fits(&self, len: usize) -> bool {
        self.lent.block.fits(len)
    }

    /// Accepts what no block holds: it gets memory of its own.
    #[cold]
    #[inline(never)]
    fn append_apart(&mut self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) {
        let mut bytes = vec![0; len];
        fill(&mut bytes);
        let room = self.room_bytes();
        let Stream { cell, core, .. } = self.stream;
        let mut state = cell.state.borrow_mut();
        if state.closing {
            return;
        }
        if let Some(lent) = self.lent.take() {
            state.outbound.take_back(lent, &mut core.blocks.borrow_mut());
        }
        state.outbound.append_shared(prefix, Payload::Bytes(bytes.into()));
        self.room_end = room.saturating_sub(prefix.len() + len);
        self.stream.mark_dirty(&mut state);
    }

    /// Takes a block with room for `len` bytes, and queues the one there was.
    #[inline(never)]
    fn exchange(&mut self, len: usize) {
        let room = self.room_bytes();
        let Stream { cell, core, .. } = self.stream;
        let mut state = cell.state.borrow_mut();
        let mut blocks = core.blocks.borrow_mut();
        let full = self.lent.take();
        let lent = if state.closing {
            // What was queued at the close is the last: nothing goes behind it, in its block or another.
            match full {
                Some(full) if full.is_new() => blocks.give_back(full.block),
                Some(full) => state.outbound.take_back(full, &mut blocks),
                None => {}
            }
            Lent::apart(len, &mut blocks)
        } else {
            state.outbound.lend(full, len, &mut blocks)
        };
        self.room_end = lent.block.end() + room;
        self.lent = lent;
        if !state.outbound.is_empty() {
            self.stream.mark_dirty(&mut state);
        }
    }
}

impl Drop for Appender<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(lent) = self.lent.take() {
            let Stream { cell, core, .. } = self.stream;
            let mut state = cell.state.borrow_mut();
            let blocks = &mut core.blocks.borrow_mut();
            if state.closing && lent.is_new() {
                // What was queued at the close is the last.
                blocks.give_back(lent.block);
                return;
            }
            state.outbound.take_back(lent, blocks);
            if !state.outbound.is_empty() {
                self.stream.mark_dirty(&mut state);
            }
        }
    }
}

impl fmt::Debug for Appender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender").field("has_room", &self.has_room()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::task::{Context, Waker};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::capabilities::EngineChoice;
    use crate::config::Config;
    use crate::reactor::{Reactor, Wait};

    /// What the peer receives once everything accepted has left.
    fn received(use_it: impl FnOnce(&Stream)) -> Vec<u8> {
        let config = Config { engine: EngineChoice::Epoll, ..Config::default() };
        let reactor = Reactor::new(config).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let stream = reactor.adopt_stream(near.into());
        use_it(&stream);
        let deadline = Instant::now() + Duration::from_secs(5);
        while stream.outbound_bytes() > 0 {
            assert!(Instant::now() < deadline, "it does not leave");
            reactor.turn(Wait::No).unwrap();
        }
        stream.shutdown_write();
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn what_no_block_holds_keeps_its_place() {
        let bytes = received(|stream| {
            stream.append(Prefix::NONE, b"first ");
            let mut appender = Appender::new(stream, 0, 30);
            appender.append(Prefix::NONE, b"second ");
            appender.append_apart(Prefix::new(*b"third, l", 7), 5, |bytes| {
                assert_eq!(bytes, [0; 5]);
                bytes.copy_from_slice(b"long ");
            });
            assert!(appender.has_room());
            appender.append_with(Prefix::NONE, 11, |bytes| bytes.copy_from_slice(b"and fourth "));
            assert!(!appender.has_room());
            drop(appender);
            stream.append(Prefix::NONE, b"last");
        });
        assert_eq!(bytes, b"first second third, long and fourth last");
    }

    /// A frame that says why the stream is closed is to be the last.
    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn nothing_is_queued_behind_a_close() {
        for (before, behind) in
            [(true, 60_000), (false, 1), (true, 1), (true, 300_000), (false, 60_000)]
        {
            let bytes = received(|stream| {
                let mut appender = Appender::new(stream, 0, 1 << 20);
                if before {
                    appender.append(Prefix::NONE, b"before");
                }
                stream.append(Prefix::NONE, b"last");
                stream.close();
                for _ in 0..3 {
                    appender.append(Prefix::NONE, &vec![7; behind]);
                }
                appender.append_apart(Prefix::NONE, 3, |bytes| bytes.fill(8));
            });
            assert_eq!(bytes, b"last", "{before} {behind}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_fill_may_append_to_its_stream() {
        let bytes = received(|stream| {
            stream.append(Prefix::NONE, b"first ");
            stream.append_with(Prefix::NONE, 6, |bytes| {
                stream.append(Prefix::NONE, b"inner ");
                stream.append_with(Prefix::NONE, 9, |bytes| bytes.copy_from_slice(b"innermost"));
                bytes.copy_from_slice(b"outer ");
            });
            let panics = AssertUnwindSafe(|| {
                stream.append_with(Prefix::NONE, 1, |_| panic!("a fill that panics"));
            });
            assert!(catch_unwind(panics).is_err());
            stream.append(Prefix::NONE, b" last");
        });
        assert_eq!(bytes, b"first outer inner innermost last");
    }

    /// Its waiter was looked for in vain while the block was lent, and the send that follows tells nothing.
    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn a_flush_that_waits_for_a_lent_block_ends_when_that_has_left() {
        for engine in [EngineChoice::Epoll, EngineChoice::Uring] {
            let reactor = Reactor::new(Config { engine, ..Config::default() }).unwrap();
            let pairs = [(); 2].map(|()| UnixStream::pair().unwrap());
            let [(stream, _far), (other, _other_far)] = pairs.map(|(near, far)| {
                near.set_nonblocking(true).unwrap();
                (reactor.adopt_stream(near.into()), far)
            });
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut context = Context::from_waker(Waker::noop());
            stream.append(Prefix::NONE, b"first ");
            let mut appender = Appender::new(&stream, 0, 30);
            appender.append(Prefix::NONE, b"second");
            assert!(stream.poll_flushed(&mut context).is_pending(), "{engine:?}");
            other.append(Prefix::NONE, b"other");
            while other.outbound_bytes() > 0 {
                reactor.turn(Wait::Until(Instant::now() + Duration::from_millis(1))).unwrap();
                assert!(Instant::now() < deadline, "{engine:?}: the other's does not leave");
            }
            drop(appender);
            while stream.outbound_bytes() > 0 {
                reactor.turn(Wait::Until(deadline)).unwrap();
                assert!(Instant::now() < deadline, "{engine:?}: nobody tells that it has left");
            }
            assert!(stream.poll_flushed(&mut context).is_ready(), "{engine:?}");
        }
    }
}
