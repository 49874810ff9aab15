//! What a reactor does once its engine can't go on: everybody is told, and nobody waits for ever.

use std::time::Duration;

use super::{Core, Driver, Wait};
use crate::engine::EngineError;
use crate::ops::Owner;

impl Core {
    /// A turn of a reactor whose engine is gone: timers still fire, and whoever asks for something new is
    /// told.
    pub(super) fn turn_failed(&self, wait: Wait, errno: i32) -> Result<(), EngineError> {
        const NAP: Duration = Duration::from_millis(5);
        let mut driver = self.driver.borrow_mut();
        let driver = &mut *driver;
        self.fail_queued(driver, errno);
        let idle = wait != Wait::No && driver.wakers.is_empty();
        if idle && driver.timers.next_due().is_none_or(|at| at > self.clock.now()) {
            self.clock.nap(NAP);
        }
        driver.timers.fire(self.clock.now(), &mut driver.wakers);
        Ok(())
    }

    /// Tells everybody who waits without an operation in flight that nothing will come of it, and lets go
    /// of what was dropped.
    pub(super) fn fail_queued(&self, driver: &mut Driver, errno: i32) {
        self.fail_idle(driver, errno);
        if self.is_in_child() {
            // The parent sends what is left.
            while let Some(stream) = driver.lingering.pop() {
                stream.forget(self);
            }
            self.forget_packets(driver);
        }
        while let Some(stream) = driver.lingering.pop() {
            stream.give_up(self, driver);
        }
        self.give_up_packets(driver);
        // The engine performs none.
        driver.cancels.clear();
    }

    /// Tells everybody who would start an operation later that nothing will come of it.
    pub(super) fn fail_idle(&self, driver: &mut Driver, errno: i32) {
        let wakers = &mut driver.wakers;
        let queued = self.dirty.take().into_iter();
        for stream in queued.chain(driver.starved.drain(..)).chain(driver.retry.take()) {
            stream.fail(errno, wakers);
        }
        for cell in self.dirty_packets.take() {
            cell.fail(errno, wakers);
        }
        while let Some(stream) = driver.rests.pop() {
            stream.fail(errno, wakers);
        }
        for (_, listener) in driver.resting.drain(..) {
            listener.fail(errno, wakers);
        }
        driver.packets.fail_waiting(errno, wakers);
    }

    /// As [`Core::fail_all`], behind what the kernel had done by then: it may be an accepted socket.
    pub(super) fn fail_all_after_failure(&self) {
        if !self.is_in_child() {
            self.dispatch();
        }
        self.fail_all();
    }

    /// Tells everybody that nothing more will come, with the failure of the engine.
    pub(super) fn fail_all(&self) {
        let mut driver = self.driver.borrow_mut();
        let errno = driver.failed.unwrap_or(libc::EIO);
        self.fail_waiting(&mut driver, errno);
    }

    /// Tells everybody with an operation in flight that it has failed, and everybody who waits without one. The
    /// operations themselves stay in their slots: the kernel may still perform them.
    pub(super) fn fail_waiting(&self, driver: &mut Driver, errno: i32) {
        let wakers = &mut driver.wakers;
        for (_, slot) in driver.ops.in_flight() {
            match &slot.owner {
                Owner::Receive(stream)
                | Owner::Send(stream)
                | Owner::Hangup(stream)
                | Owner::Readable(stream)
                | Owner::Writable(stream) => {
                    stream.fail(errno, wakers);
                }
                Owner::PacketsReadable(cell) | Owner::PacketsWritable(cell) => {
                    cell.fail(errno, wakers);
                }
                Owner::Accept(listener) => listener.fail(errno, wakers),
                Owner::Doorbell | Owner::Cancel => {}
            }
        }
        self.fail_queued(driver, errno);
    }
}
