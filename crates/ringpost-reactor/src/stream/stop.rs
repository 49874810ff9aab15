//! Taking a stream's socket off its reactor, without closing it.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::{Receive, Stream, StreamError};
use crate::chunk::Chunk;
use crate::waiters::replace_waker;

impl Stream {
    /// Stops receiving, and waits until the kernel receives no more for this stream. What it has received
    /// by then can be taken as before; what comes later stays in the socket. Cancel safe: the stop goes
    /// on without the waiter.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if the stream is over.
    pub fn poll_stopped(&self, context: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut state = self.cell.state.borrow_mut();
        if let Some(Err(error)) = state.end {
            return Poll::Ready(Err(error));
        }
        if self.core.is_closed() {
            return Poll::Ready(Err(StreamError::RuntimeEnded));
        }
        if !std::mem::replace(&mut state.stopping, true) {
            let hangup = state.hangup;
            let armed = match state.receive {
                Receive::Armed(token) => {
                    state.receive = Receive::Pausing(token);
                    Some(token)
                }
                _ => None,
            };
            drop(state);
            let mut driver = self.core.driver.borrow_mut();
            driver.starved.retain(|stream| !Rc::ptr_eq(stream, &self.cell));
            for token in armed.into_iter().chain(hangup) {
                driver.cancel(token, self.cell.raw_fd());
            }
            drop(driver);
            state = self.cell.state.borrow_mut();
        }
        if !state.is_receiving() {
            return Poll::Ready(Ok(()));
        }
        let replaced = replace_waker(&mut state.watcher, context.waker());
        drop(state);
        drop(replaced);
        Poll::Pending
    }

    /// A descriptor of its own for the socket of a stream that has been [stopped](Self::poll_stopped) and
    /// [flushed](Self::poll_flushed), and what was received and not taken. This handle is closed then, and
    /// leaves the socket as it is: nothing is shut down.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if something is still received or sent; the kernel's error if no descriptor is free.
    /// The stream then goes on as before it was stopped.
    pub fn detach(&self) -> io::Result<(OwnedFd, Vec<Chunk>)> {
        let state = self.cell.state.borrow();
        let quiet = !state.is_receiving() && state.is_drained() && state.send_error().is_none();
        let stopping = state.stopping;
        drop(state);
        let socket = if quiet && stopping {
            self.cell.socket.try_clone()
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        };
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => {
                self.cell.state.borrow_mut().stopping = false;
                self.cell.arm_receive(&self.core, &mut self.core.driver.borrow_mut());
                return Err(error);
            }
        };
        let mut state = self.cell.state.borrow_mut();
        // Closed already, as far as the end of this handle is concerned, which shuts nothing down then.
        state.closing = true;
        state.end.get_or_insert(Err(StreamError::PeerGone));
        state.inbound_bytes = 0;
        let rest = state.inbound.take().into_iter().flat_map(|inbound| *inbound);
        Ok((socket, state.first.take().into_iter().chain(rest).collect()))
    }
}
