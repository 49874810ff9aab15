//! How a stream ends: what was accepted is sent, within a bounded time, then both directions are shut down.

use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use rustix::net::Shutdown;

use super::{Receive, State, StreamCell};
use crate::reactor::{Core, Driver};

impl StreamCell {
    /// The handle is gone.
    pub(super) fn close(self: &Rc<Self>, core: &Core) {
        let mut state = self.state.borrow_mut();
        if std::mem::replace(&mut state.closing, true) {
            return;
        }
        let wakers = (state.reader.take(), state.watcher.take(), state.writer.take());
        state.inbound_bytes = 0;
        let inbound =
            (state.first.take(), std::mem::take(&mut state.inbound), state.drop_arrived());
        let cancelled = self.forget_writable(core, &mut state);
        let drained = state.is_drained();
        // Nothing more is sent then.
        let over = core.is_closed();
        if drained || over {
            state.release_queue(core);
            if !core.is_in_child() {
                self.shut_down_in(&mut state);
            }
        } else {
            state.announce(core);
        }
        drop(state);
        // Leases go without a borrow: the last one of a block notifies the mailbox. So do wakers: they drop tasks.
        drop((inbound, wakers));
        if over {
            // What was in the queue may be code of others, for which nobody turns any more.
            core.drop_released();
        } else if let Ok(mut driver) = core.driver.try_borrow_mut() {
            if let Some(token) = cancelled {
                driver.cancel(token, self.raw_fd());
            }
            // Nobody wants the block that it waits for.
            driver.starved.retain(|starved| !Rc::ptr_eq(starved, self));
            self.stop_receive(&mut driver);
            if !drained {
                let linger = Duration::from_millis(core.config.linger_ms_max);
                let until = driver.clock.now() + linger;
                let key = driver.lingering.push(until, Rc::clone(self));
                self.state.borrow_mut().linger = Some(key);
            }
        }
    }

    /// Makes sure the receive ends, so that its slot lets go of the descriptor.
    pub(super) fn stop_receive(&self, driver: &mut Driver) {
        let state = self.state.borrow();
        if let Receive::Armed(token) = state.receive
            && !state.shut_down
        {
            drop(state);
            driver.cancel(token, self.raw_fd());
            return;
        }
        if let Some(token) = state.hangup
            && !state.shut_down
        {
            drop(state);
            driver.cancel(token, self.raw_fd());
        }
    }

    /// Nothing is left to send: a dropped stream need not linger.
    pub(super) fn drained(self: &Rc<Self>, core: &Core, state: &State) {
        if state.linger.is_some() {
            core.drained.borrow_mut().push(Rc::clone(self));
        }
    }

    /// A dropped stream has drained or lingered long enough.
    pub(crate) fn give_up(self: &Rc<Self>, core: &Core, driver: &mut Driver) {
        let mut state = self.state.borrow_mut();
        if let Some(key) = state.linger.take() {
            driver.lingering.remove(key);
        }
        if !state.is_drained() {
            tracing::debug!(
                bytes = state.unsent_bytes(),
                "a closed connection's bytes are dropped"
            );
        }
        state.release_queue(core);
        self.end_rest(&mut state, driver);
        // A send in flight ends with EPIPE.
        self.shut_down_in(&mut state);
        drop(state);
        driver.starved.retain(|stream| !Rc::ptr_eq(stream, self));
    }

    /// A forked child lets go of a dropped stream, whose queue its parent sends.
    pub(crate) fn forget(&self, core: &Core) {
        let mut state = self.state.borrow_mut();
        state.linger = None;
        state.release_queue(core);
    }

    /// The reactor has ended, and this stream's handle is still there.
    pub(crate) fn end_of_reactor(&self, errno: i32, wakers: &mut Vec<Waker>) {
        if !self.state.borrow().closing {
            self.fail(errno, wakers);
            self.shut_down();
        }
    }

    pub(super) fn shut_down_in(&self, state: &mut State) {
        if !std::mem::replace(&mut state.shut_down, true) {
            // ENOTCONN means that there is nobody to tell; a receive in flight ends all the same.
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        }
    }

    pub(crate) fn shut_down(&self) {
        if let Ok(mut state) = self.state.try_borrow_mut() {
            self.shut_down_in(&mut state);
        }
    }
}
