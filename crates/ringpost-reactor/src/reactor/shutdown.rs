//! How a reactor ends: what fits the sockets is sent, everything in flight is ended, and memory that the kernel
//! may still use is leaked rather than freed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::{Core, Driver, retire_unclaimed};
use crate::engine::Engine;
use crate::ops::Owner;

/// Longest wait for operations to end.
const SHUTDOWN_WAIT_MAX: Duration = Duration::from_secs(1);

impl Core {
    pub(super) fn shutdown(&self) {
        if self.closed.replace(true) || self.is_in_child() {
            return;
        }
        // Drops what was not run, which is code of others: a panic must not keep the rest from its end.
        let mut dropped = Ok(());
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.inbox.mailbox().close())) {
            dropped = Err(panic);
        }
        if self.driver.borrow().failed.is_none() {
            // What has been accepted and fits the sockets still leaves, also what rests.
            self.end_rests();
            self.stage();
            let deadline = self.clock.now() + SHUTDOWN_WAIT_MAX;
            self.drain(deadline);
        } else {
            // What the kernel had done by the failure: it may be an accepted socket.
            self.dispatch();
        }
        let (wakers, owners) = self.let_go();
        for waker in wakers {
            waker.wake();
        }
        drop(owners);
        // Payloads of others that were given up.
        self.drop_released();
        if let Err(panic) = dropped {
            // Two at once would end the process.
            if std::thread::panicking() {
                tracing::error!("a destructor of work that was dropped panicked, too");
            } else {
                resume_unwind(panic);
            }
        }
    }

    fn end_rests(&self) {
        let mut driver = self.driver.borrow_mut();
        while let Some(stream) = driver.rests.pop() {
            stream.rest_is_over(&mut driver);
        }
        self.end_packet_rests(&mut driver);
    }

    /// The end of a shutdown: everything is let go, or leaked if the kernel may still use it. Whom to wake, and what
    /// to drop, once nothing is borrowed.
    fn let_go(&self) -> (Vec<Waker>, Vec<Owner>) {
        let mut driver = self.driver.borrow_mut();
        let driver = &mut *driver;
        let errno = libc::ECANCELED;
        // Operations are left if the engine has failed meanwhile, or the time was over.
        self.fail_waiting(driver, errno);
        // And those that had none.
        for stream in self.open_streams.all() {
            stream.end_of_reactor(errno, &mut driver.wakers);
        }
        for cell in self.open_packets.all() {
            cell.end_of_reactor(errno, &mut driver.wakers);
        }
        // Who holds on to a connection may still ask for something; nothing is started for them.
        driver.failed.get_or_insert(errno);
        if let Some(block) = driver.hands.surrender_block() {
            driver.pool.retire(block);
        }
        driver.packets.clear(&mut driver.pool);
        let Driver { timers, wakers, .. } = driver;
        timers.fire_all(wakers);
        let mut owners = Vec::new();
        if driver.ops.is_empty() {
            // Making room for a request leaves completions in the engine, here of nobody.
            driver.engine.reap(&mut driver.batch);
            for done in driver.batch.drain(..) {
                retire_unclaimed(&mut driver.pool, &done);
            }
            for block in driver.engine.surrender_blocks() {
                driver.pool.retire(block);
            }
            driver.pool.collect_returns();
            driver.pool.check();
            if cfg!(any(debug_assertions, feature = "sim")) && !std::thread::panicking() {
                assert_eq!(driver.pool.kernel_blocks(), 0, "blocks that nobody gives back");
            }
        } else {
            tracing::warn!(
                operations = driver.ops.len(),
                "operations did not end in time; their memory is leaked"
            );
            owners = driver.ops.leak();
        }
        (std::mem::take(&mut driver.wakers), owners)
    }

    /// A send has ended with more in its queue, or the engine has not taken what was staged. Nothing is appended any
    /// more, so that this comes to an end.
    fn has_more_to_send(&self) -> bool {
        let driver = self.driver.borrow();
        let staged = driver.engine.staged() > 0
            || !self.dirty.borrow().is_empty()
            || !self.dirty_packets.borrow().is_empty();
        driver.failed.is_none() && staged
    }

    /// Ends all operations: sends as much of the queues as the sockets take, shuts sockets down, cancels, and takes
    /// completions until none is in flight.
    fn drain(&self, deadline: Instant) {
        let mut cancelled = false;
        loop {
            {
                let mut driver = self.driver.borrow_mut();
                let driver = &mut *driver;
                // A cancel that found no room is not waited for: nothing would end the wait.
                let wait = cancelled && driver.cancels.is_empty();
                if let Err(error) = driver.engine.enter(wait, Some(deadline)) {
                    driver.fail(&error);
                }
            }
            self.dispatch();
            let in_time = self.clock.now() < deadline;
            if !cancelled && in_time && self.has_more_to_send() {
                self.stage();
                continue;
            }
            let mut driver = self.driver.borrow_mut();
            let driver = &mut *driver;
            if driver.ops.is_empty() || driver.failed.is_some() || !in_time {
                return;
            }
            if !cancelled {
                cancelled = true;
                let errno = libc::ECANCELED;
                // Or they would start something that nobody cancels.
                self.fail_idle(driver, errno);
                let mut targets = Vec::with_capacity(driver.ops.len());
                for (token, slot) in driver.ops.in_flight() {
                    let fd = match &slot.owner {
                        Owner::Receive(stream)
                        | Owner::Send(stream)
                        | Owner::Hangup(stream)
                        | Owner::Readable(stream)
                        | Owner::Writable(stream) => {
                            stream.fail(errno, &mut driver.wakers);
                            // The peer sees the end at once, even if the ring takes its time.
                            stream.shut_down();
                            stream.raw_fd()
                        }
                        Owner::PacketsReadable(cell) | Owner::PacketsWritable(cell) => {
                            cell.fail(errno, &mut driver.wakers);
                            cell.shut_down();
                            cell.raw_fd()
                        }
                        Owner::Accept(listener) => {
                            listener.fail(errno, &mut driver.wakers);
                            listener.raw_fd()
                        }
                        Owner::Doorbell => self.inbox.bell_fd(),
                        Owner::Cancel => continue,
                    };
                    targets.push((token, fd));
                }
                for (token, fd) in targets {
                    driver.cancel(token, fd);
                }
            } else {
                for (target, fd) in std::mem::take(&mut driver.cancels) {
                    driver.cancel(target, fd);
                }
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shutdown();
        if self.is_in_child() {
            // To unmap its rings would unmap what the child may have mapped there.
            let driver = self.driver.get_mut();
            driver.engine.leak();
            drop(driver.ops.let_go());
        }
    }
}
