//! In a simulation: no stream is slept over.

use std::rc::Rc;

use super::{Receive, State, StreamCell};
use crate::parked::Parked;
use crate::reactor::{Core, Driver};
use crate::retries::Retried;

impl Parked for StreamCell {
    fn forgotten(self: &Rc<Self>, core: &Core, driver: &Driver) -> Option<&'static str> {
        let state = self.state.borrow();
        let reader = state.reader_is_forgotten();
        let writer = || state.writer_is_forgotten(core);
        let bytes = || state.bytes_are_forgotten(self);
        let receive = || state.receive_is_forgotten(core, driver, self);
        reader.or_else(writer).or_else(bytes).or_else(receive)
    }

    fn state(&self) -> String {
        format!("{:?}", self.state.borrow())
    }
}

impl State {
    fn reader_is_forgotten(&self) -> Option<&'static str> {
        let arrived = self.first.is_some() || self.end.is_some();
        if arrived && self.reader.is_some() {
            return Some("a reader waits for what has arrived");
        }
        let stopped = self.stopping && !self.is_receiving();
        (self.watcher.is_some() && (stopped || arrived && !self.stopping))
            .then_some("somebody waits for what has arrived, or for a stop that is over")
    }

    fn writer_is_forgotten(&self, core: &Core) -> Option<&'static str> {
        if self.writer.is_none() || self.waits_for_socket() {
            return None;
        }
        if self.waits_for_room && self.prompt_room(core.config.outbound_bytes_max) > 0 {
            return Some("a sender waits for room that there is");
        }
        (self.unsent_bytes() == 0 || self.send_error().is_some())
            .then_some("a sender waits although nothing is left to send")
    }

    fn bytes_are_forgotten(&self, stream: &StreamCell) -> Option<&'static str> {
        let goes_on = self.sending || self.resting || stream.listed().is_listed();
        if goes_on || self.send_failure.is_some() {
            return None;
        }
        (self.unsent.is_some() || self.dirty || self.outbound.has_sendable())
            .then_some("nobody sends what is queued")
    }

    fn receive_is_forgotten(
        &self,
        core: &Core,
        driver: &Driver,
        stream: &Rc<StreamCell>,
    ) -> Option<&'static str> {
        if self.end.is_some() || self.closing || self.stopping || self.resting {
            return None;
        }
        match self.receive {
            Receive::Armed(_) | Receive::Pausing(_) | Receive::Ended => None,
            Receive::Paused => {
                let max = core.config.inbound_bytes_max;
                (self.can_resume(max) && !self.is_sated(max))
                    .then_some("a paused receive whose reader has caught up is not armed")
            }
            Receive::Starved => {
                let listed = driver.starved.iter().any(|starved| Rc::ptr_eq(starved, stream));
                (!listed || driver.pool.free_blocks() > 0)
                    .then_some("a starved receive is not armed although there is a block")
            }
            Receive::Idle => (!stream.listed().is_listed()).then_some("a receive is not armed"),
        }
    }
}
