//! Appending many payloads to an outbound queue without looking at it anew for each.

use std::fmt;

use super::Stream;
use crate::memory::Prefix;
use crate::outbound::Lent;

/// Appends many payloads to a stream's outbound queue. See [`Stream::appender`].
///
/// It takes a block out of the queue and puts it back when it is dropped, so that meanwhile the stream
/// can be used, also by code that fills payloads in place. What is in that block, and what others append behind it,
/// is not sent before; so drop it soon. (Leaking it loses what is in that block.)
pub struct Appender<'stream> {
    stream: &'stream Stream,
    /// Taken at the first payload.
    lent: Option<Lent>,
    /// Where in the block the bytes end that may be accepted; one payload may go beyond it, and into another
    /// block.
    room_end: usize,
}

impl<'stream> Appender<'stream> {
    /// One that accepts `room` bytes.
    pub(super) fn new(stream: &'stream Stream, room: usize) -> Self {
        Self { stream, lent: None, room_end: room }
    }

    /// True if another payload may be accepted.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.end() < self.room_end
    }

    /// True if another payload may be accepted, and one of `len` bytes needs no other block.
    #[inline(always)]
    pub fn is_open_for(&self, len: usize) -> bool {
        self.has_room() && self.fits(len)
    }

    /// Accepts `prefix` and `len` bytes that `fill` writes in place. The caller has seen
    /// [`Appender::has_room`].
    #[inline(always)]
    pub fn append_with(&mut self, prefix: Prefix, len: usize, fill: impl FnOnce(&mut [u8])) {
        if !self.fits(len) {
            self.exchange(len);
        }
        if let Some(Lent { block, .. }) = &mut self.lent {
            block.append_with(prefix, len, fill);
        }
    }

    /// Accepts `prefix` and a copy of `body`. The caller has seen [`Appender::has_room`].
    #[inline(always)]
    pub fn append(&mut self, prefix: Prefix, body: &[u8]) {
        if !self.fits(body.len()) {
            self.exchange(body.len());
        }
        if let Some(Lent { block, .. }) = &mut self.lent {
            block.append(prefix, body);
        }
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.lent.as_ref().map_or(0, |lent| lent.block.end())
    }

    #[inline(always)]
    fn fits(&self, len: usize) -> bool {
        self.lent.as_ref().is_some_and(|lent| lent.block.fits(len))
    }

    /// Takes a block with room for `len` bytes, and queues the one there was.
    #[inline(never)]
    fn exchange(&mut self, len: usize) {
        let room = self.room_end.saturating_sub(self.end());
        let Stream { cell, core } = self.stream;
        let mut state = cell.state.borrow_mut();
        let mut blocks = core.blocks.borrow_mut();
        let full = self.lent.take();
        let lent = state.outbound.lend(full, len, &mut blocks);
        self.room_end = lent.block.end() + room;
        self.lent = Some(lent);
        if !state.outbound.is_empty() {
            self.stream.mark_dirty(&mut state);
        }
    }
}

impl Drop for Appender<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(lent) = self.lent.take() {
            let Stream { cell, core } = self.stream;
            let mut state = cell.state.borrow_mut();
            state.outbound.take_back(lent, &mut core.blocks.borrow_mut());
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
