//! In a simulation: no packet socket is slept over.

use std::rc::Rc;

use crate::packet_cell::{PacketCell, Receive, State};
use crate::parked::Parked;
use crate::reactor::{Core, Driver};
use crate::retries::Retried;

impl Parked for PacketCell {
    fn forgotten(self: &Rc<Self>, _: &Core, _: &Driver) -> Option<&'static str> {
        let state = self.state.borrow();
        let rests = self.resting.get() > 0;
        let listed = self.listed().is_listed();
        let arrived = !state.arrived.is_empty() || state.end.is_some();
        if arrived && (state.reader.is_some() || state.watcher.is_some()) {
            return Some("a reader waits for what has arrived");
        }
        if state.queue.packets() == 0 && !state.writers.is_empty() {
            return Some("a sender waits although nothing is left to send");
        }
        if state.packets_are_forgotten(rests || listed) {
            return Some("nobody sends what is queued");
        }
        if state.end.is_some() || state.closing {
            return None;
        }
        match state.receive {
            Receive::Armed(_) | Receive::Ended => None,
            Receive::Paused => state
                .arrived
                .is_empty()
                .then_some("a paused receive whose reader has caught up is not armed"),
            Receive::Resting(_) => (!rests).then_some("a receive rests for ever"),
            Receive::Idle => (!listed).then_some("a receive is not armed"),
        }
    }

    fn state(&self) -> String {
        let state = self.state.borrow();
        format!(
            "{:?}, {} packets, {:?}, look again {:?}, {} writers, dirty {}",
            state.receive,
            state.queue.packets(),
            state.writable,
            state.look_again,
            state.writers.len(),
            state.dirty
        )
    }
}

impl State {
    fn packets_are_forgotten(&self, is_tried_again: bool) -> bool {
        let told = self.writable.is_some() || self.look_again.is_some() || is_tried_again;
        self.queue.packets() > 0 && !told && self.send_failure.is_none()
    }
}
