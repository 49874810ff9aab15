//! Who is told what the end of a send brings: room, an end of everything, what is queued behind, a payload.

use std::task::{Context, Waker};

use super::State;
#[cfg(feature = "sim")]
use super::StreamCell;
use crate::outbound::SendMemory;
use crate::reactor::{Core, Driver};
use crate::waiters::replace_waker;

impl State {
    /// Whoever waits to send waits for room, or until what is queued has left.
    #[inline]
    #[must_use = "what a waker drops may come back here"]
    pub(super) fn writer_waits(&mut self, context: &Context<'_>, for_room: bool) -> Option<Waker> {
        let replaced = replace_waker(&mut self.writer, context.waker());
        #[cfg(feature = "sim")]
        {
            self.waits_for_room = for_room;
        }
        #[cfg(not(feature = "sim"))]
        let _ = for_room;
        replaced
    }

    /// Lets the reactor know that what follows a send must not wait for other events.
    pub(super) fn announce(&self, core: &Core) {
        if self.ends_matter() {
            core.end_of_send_matters.set(true);
        }
    }

    /// The same with what is sent at hand.
    pub(super) fn announce_send(&self, core: &Core, memory: &SendMemory) {
        self.announce(core);
        if memory.has_bytes_of_others() {
            core.end_of_send_matters.set(true);
        }
    }

    /// Whoever waits may have been looked for while there was nothing to be told. What is queued behind leaves once
    /// the end of this one is known.
    fn ends_matter(&self) -> bool {
        self.closing || self.finishing || self.writer.is_some() || !self.outbound.is_empty()
    }

    /// A send that completes is in flight, or has gone on: more is let in than before, also if none of it has left.
    pub(super) fn tell_of_room(&mut self, core: &Core, driver: &mut Driver) {
        if self.prompt_room(core.config.outbound_bytes_max) > 0 {
            driver.wakers.extend(self.writer.take());
        }
    }
}

#[cfg(feature = "sim")]
impl StreamCell {
    /// In a simulation: whether something goes on only once the end of the send of `memory` is known.
    pub(crate) fn waits_for_end_of(&self, memory: &SendMemory) -> bool {
        let state = self.state.borrow();
        state.ends_matter() || memory.has_bytes_of_others()
    }
}
