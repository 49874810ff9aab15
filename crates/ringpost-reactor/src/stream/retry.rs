//! What a stream does again after some request of its found no room.

use std::rc::Rc;

use super::{Receive, StreamCell};
use crate::reactor::{Core, Driver};
use crate::retries::{Listed, Retried};

impl Retried for StreamCell {
    fn listed(&self) -> &Listed {
        &self.retried
    }
}

impl StreamCell {
    /// Tries again what found no room.
    pub(crate) fn retry(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        {
            let mut state = self.state.borrow_mut();
            if state.resting {
                // It is tried again when its rest is over.
                return;
            }
            if !state.sending
                && let Some(memory) = state.unsent.take()
            {
                state.announce_send(core, &memory);
                self.send(&mut state, driver, *memory, !driver.tracked_only);
                if driver.tracked_only {
                    state.tell_of_room(core, driver);
                }
            }
            match state.receive {
                Receive::Idle => {}
                Receive::Armed(_) if state.intake.is_none() => {
                    return self.guard_hangup(&mut state, driver);
                }
                _ => return,
            }
        }
        self.arm_receive(core, driver);
    }
}
