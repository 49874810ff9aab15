//! Received bytes that wait for their reader.

use super::{Receive, State};
use crate::chunk::Chunk;

/// What a chunk costs beyond its bytes: its place in the queue, and the allocation of one that was copied.
const CHUNK_COST_BYTES: usize = 96;

impl State {
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
