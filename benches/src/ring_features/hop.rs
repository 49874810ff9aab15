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

/// Both ends. The ring goes before what it uses (M1).
struct Hop {
    ring: Ring,
    blocks: Blocks,
    message: Box<[u8; MESSAGE_BYTES]>,
    source: UnixStream,
    target: UnixStream,
    calls: Calls,
}

pub(super) fn hop(calls: Calls, setup: Setup, hops: u64) -> Result<Runner> {
    let mut hop = Hop::new(calls, setup)?;
    Ok(Box::new(move || {
        let mut watch = Stopwatch::thread();
        let enters = hop.ring.enters;
        watch.start();
        for _ in 0..hops {
            hop.once()?;
        }
        watch.stop();
        Ok(watch.sample(hops, hop.ring.enters - enters))
    }))
}

impl Hop {
    fn new(calls: Calls, setup: Setup) -> Result<Self> {
        let (source, target) = UnixStream::pair().context("making a socket pair")?;
        let ring = Ring::new(setup)?;
        let blocks = Blocks::new(&ring, Shape::PROJECT)?;
        let message = Box::new([7; MESSAGE_BYTES]);
        let mut hop = Self { ring, blocks, message, source, target, calls };
        if matches!(calls, Calls::SendEnter | Calls::OneEnter | Calls::TwoEnters) {
            let entry = opcode::RecvMulti::new(types::Fd(hop.target.as_raw_fd()), GROUP).build();
            // SAFETY: the entry points to nothing; the blocks outlive the ring (M1).
            unsafe { hop.ring.push(&entry.user_data(RECEIVE)) }?;
            hop.ring.enter(0)?;
        }
        Ok(hop)
    }

    #[inline]
    fn once(&mut self) -> Result<()> {
        match self.calls {
            Calls::Empty => return self.ring.enter(0),
            Calls::SendReceive | Calls::SendEnter => {
                let count = sys::send(self.source.as_fd(), &self.message[..])?;
                ensure!(count == MESSAGE_BYTES, "a short send");
            }
            Calls::EnterReceive | Calls::OneEnter | Calls::TwoEnters => self.stage()?,
        }
        match self.calls {
            Calls::Empty | Calls::SendReceive => {}
            Calls::EnterReceive | Calls::TwoEnters => self.ring.submit()?,
            Calls::SendEnter | Calls::OneEnter => self.ring.enter(0)?,
        }
        if matches!(self.calls, Calls::SendReceive | Calls::EnterReceive) {
            let count = sys::receive(self.target.as_fd(), &mut self.message[..])?;
            ensure!(count == MESSAGE_BYTES, "a short receive");
            return Ok(());
        }
        if self.calls == Calls::TwoEnters {
            self.ring.enter(0)?;
        }
        let done = self.ring.next().context("`enter` has not received")?;
        ensure!(done.user_data == RECEIVE, "a send failed");
        let message = &mut self.message;
        self.blocks.take(&done, |bytes| message.copy_from_slice(bytes))
    }

    fn stage(&mut self) -> Result<()> {
        let fd = types::Fd(self.source.as_raw_fd());
        let entry = opcode::Send::new(fd, self.message.as_ptr(), MESSAGE_BYTES_U32)
            .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .flags(Flags::SKIP_SUCCESS);
        // SAFETY: the message is boxed and outlives the ring (M1).
        unsafe { self.ring.push(&entry) }
    }
}

const RECEIVE: u64 = 1;
