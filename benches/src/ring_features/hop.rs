//! One message from one end of a connection to the other, on one thread: what the calls themselves
//! cost, with nobody to wait for.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use io_uring::squeue::Flags;
use io_uring::{opcode, types};

use super::clock::Stopwatch;
use super::echo::{MESSAGE_BYTES, MESSAGE_BYTES_U32};
use super::ring::{Blocks, GROUP, Ring, Setup, Shape};
use super::run::Runner;
use super::sys;

/// The calls of one hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    /// `enter` with nothing to do.
    Empty,
    /// send(2), recv(2).
    SendReceive,
    /// send(2), `enter` that receives.
    SendEnter,
    /// `enter` that sends, recv(2).
    EnterReceive,
    /// `enter` that sends and receives.
    OneEnter,
    /// `enter` that sends, `enter` that receives.
    TwoEnters,
}

pub(super) fn hop(calls: Calls, setup: Setup, hops: u64) -> Result<Runner> {
    let (source, target) = UnixStream::pair().context("making a socket pair")?;
    let mut ring = Ring::new(setup)?;
    let mut blocks = Blocks::new(&ring, Shape::PROJECT)?;
    if matches!(calls, Calls::SendEnter | Calls::OneEnter | Calls::TwoEnters) {
        let entry = opcode::RecvMulti::new(types::Fd(target.as_raw_fd()), GROUP).build();
        // SAFETY: the entry points to nothing; the closure below drops the blocks after the ring (M1).
        unsafe { ring.push(&entry.user_data(RECEIVE)) }?;
        ring.enter(0)?;
    }
    let message = Box::new([7_u8; MESSAGE_BYTES]);
    let send = opcode::Send::new(types::Fd(source.as_raw_fd()), message.as_ptr(), MESSAGE_BYTES_U32)
        .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
        .build()
        .flags(Flags::SKIP_SUCCESS);
    Ok(Box::new(move || {
        let mut watch = Stopwatch::thread();
        let enters = ring.enters;
        let mut buffer = [0; MESSAGE_BYTES];
        watch.start();
        for _ in 0..hops {
            match calls {
                Calls::Empty => {
                    ring.enter(0)?;
                    continue;
                }
                Calls::SendReceive | Calls::SendEnter => {
                    ensure!(sys::send(source.as_fd(), &message[..])? == MESSAGE_BYTES, "a short send");
                }
                Calls::EnterReceive | Calls::OneEnter | Calls::TwoEnters => {
                    // SAFETY: the message is boxed and moves into this closure, which keeps it
                    // longer than the send takes: silent sends end inside the `enter` (M1).
                    unsafe { ring.push(&send) }?;
                }
            }
            match calls {
                Calls::Empty | Calls::SendReceive => {}
                Calls::EnterReceive | Calls::TwoEnters => ring.submit()?,
                Calls::SendEnter | Calls::OneEnter => ring.enter(0)?,
            }
            match calls {
                Calls::SendReceive | Calls::EnterReceive => {
                    let count = sys::receive(target.as_fd(), &mut buffer)?;
                    ensure!(count == MESSAGE_BYTES, "a short receive");
                    continue;
                }
                Calls::TwoEnters => ring.enter(0)?,
                _ => {}
            }
            let done = ring.next().context("`enter` has not received")?;
            ensure!(done.user_data == RECEIVE, "a send failed");
            blocks.take(&done, |bytes| buffer[..bytes.len()].copy_from_slice(bytes))?;
        }
        watch.stop();
        Ok(watch.sample(hops, ring.enters - enters))
    }))
}

const RECEIVE: u64 = 1;
