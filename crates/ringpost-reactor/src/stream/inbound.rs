//! Received bytes that wait for their reader.

use super::{Receive, State};
use crate::chunk::Chunk;

/// What a chunk costs beyond its bytes: its place in the queue, and the allocation of one that was copied.
const CHUNK_COST_BYTES: usize = 96;

/// Chunks that an empty queue keeps the place of, so that steady traffic allocates nothing. A peer whose bytes come
/// one by one may have filled more.
const CHUNKS_KEPT_MAX: usize = 128;

impl State {
    #[inline(always)]
    pub(super) fn push_inbound(&mut self, chunk: Chunk) {
        let Some(first) = &mut self.first else {
            self.first = Some(chunk);
            return;
        };
        let behind = self.inbound.as_mut().and_then(|inbound| inbound.back_mut());
        if let Err(chunk) = behind.unwrap_or(first).try_extend(chunk) {
            self.inbound.get_or_insert_default().push_back(chunk);
        }
    }

    #[inline]
    pub(super) fn pop_inbound(&mut self) -> Option<Chunk> {
        let chunk = self.first.take()?;
        if let Some(inbound) = &mut self.inbound {
            self.first = inbound.pop_front();
            if self.first.is_none() && inbound.capacity() > CHUNKS_KEPT_MAX {
                self.inbound = None;
            }
        }
        self.inbound_bytes -= chunk.len();
        Some(chunk)
    }

    /// What the received bytes cost in memory, about. A peer that sends them one by one makes them lie apart.
    #[inline]
    pub(super) fn inbound_cost_bytes(&self) -> usize {
        let apart = self.inbound.as_ref().map_or(0, |inbound| inbound.len());
        self.inbound_bytes + apart * CHUNK_COST_BYTES
    }

    /// Whether a paused receive may go on as far as bytes are concerned.
    #[inline]
    pub(super) fn can_resume(&self, inbound_bytes_max: usize) -> bool {
        self.receive == Receive::Paused && self.inbound_cost_bytes() <= inbound_bytes_max / 2
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use bytes::Bytes;

    use super::*;
    use crate::capabilities::EngineChoice;
    use crate::config::Config;
    use crate::reactor::Reactor;

    /// Receives so many chunks that lie apart, and takes them. The places that the queue keeps after that.
    fn kept_after(state: &mut State, count: usize) -> usize {
        for _ in 0..count {
            state.inbound_bytes += 1;
            state.push_inbound(Chunk::Copied(Bytes::from_static(b"x")));
        }
        for _ in 0..count {
            assert_eq!(state.pop_inbound().unwrap().as_slice(), b"x");
        }
        assert!(state.pop_inbound().is_none());
        assert_eq!(state.inbound_cost_bytes(), 0);
        state.inbound.as_ref().map_or(0, |inbound| inbound.capacity())
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn what_one_burst_needed_is_given_back() {
        let config = Config { engine: EngineChoice::Epoll, ..Config::default() };
        let reactor = Reactor::new(config).unwrap();
        let stream = reactor.adopt_stream(UnixStream::pair().unwrap().0.into());
        let mut state = stream.cell.state.borrow_mut();
        let steady = kept_after(&mut state, CHUNKS_KEPT_MAX / 2);
        assert!(steady >= CHUNKS_KEPT_MAX / 2 - 1, "steady traffic allocates nothing");
        assert_eq!(kept_after(&mut state, CHUNKS_KEPT_MAX / 2), steady);
        assert_eq!(kept_after(&mut state, 10 * CHUNKS_KEPT_MAX), 0);
    }
}
