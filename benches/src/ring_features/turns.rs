//! Ping-pong of 64-byte messages between two threads that do the same thing.

use std::hint::spin_loop;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use io_uring::squeue::Flags;
use io_uring::{opcode, types};

use super::clock::{Sample, Stopwatch, median, nanoseconds};
use super::echo::{MESSAGE_BYTES, MESSAGE_BYTES_U32};
use super::ring::{Blocks, Done, GROUP, Ring, Setup, Shape};
use super::run::Runner;
use super::sys;
use super::worker::{Placement, Worker};

/// How a message is sent and waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// send(2); recv(2) until there is something.
    Calls,
    /// `enter` that sends; watch the ring's flag; `enter` that receives.
    Flag,
    /// send(2); watch the ring's flag; `enter` that receives.
    CallAndFlag,
    /// `enter` that sends and receives, again and again until something has been received.
    Enter,
    /// `enter` that sends, then recv(2) until there is something.
    EnterAndCall,
    /// `enter` that sends and then sleeps until there is something.
    Park,
    /// The same, with a send that posts a completion.
    ParkLoudly,
    /// send(2); recv(2) that sleeps until there is something.
    ParkInCall,
}

impl Turn {
    fn sends_by_ring(self) -> bool {
        matches!(
            self,
            Self::Flag | Self::Enter | Self::EnterAndCall | Self::Park | Self::ParkLoudly
        )
    }

    fn receives_by_ring(self) -> bool {
        matches!(self, Self::Flag | Self::CallAndFlag | Self::Enter | Self::Park | Self::ParkLoudly)
    }
}

/// One end of the connection.
struct End {
    ring: Ring,
    blocks: Blocks,
    message: Box<[u8; MESSAGE_BYTES]>,
    socket: UnixStream,
    turn: Turn,
}

impl End {
    fn new(socket: UnixStream, turn: Turn, setup: Setup) -> Result<Self> {
        let ring = Ring::new(setup)?;
        let blocks = Blocks::new(&ring, Shape::PROJECT)?;
        let message = Box::new([0; MESSAGE_BYTES]);
        let mut end = Self { ring, blocks, message, socket, turn };
        if turn.receives_by_ring() {
            let entry = opcode::RecvMulti::new(types::Fd(end.socket.as_raw_fd()), GROUP).build();
            // SAFETY: the entry points to nothing; the blocks outlive the ring (M1).
            unsafe { end.ring.push(&entry.user_data(RECEIVE)) }?;
            end.ring.enter(0)?;
        }
        Ok(end)
    }

    #[inline]
    fn send(&mut self) -> Result<()> {
        if !self.turn.sends_by_ring() {
            let count = sys::send(self.socket.as_fd(), &self.message[..])?;
            ensure!(count == MESSAGE_BYTES, "a short send");
            return Ok(());
        }
        let fd = types::Fd(self.socket.as_raw_fd());
        let skip = if self.turn == Turn::ParkLoudly { Flags::empty() } else { Flags::SKIP_SUCCESS };
        let entry = opcode::Send::new(fd, self.message.as_ptr(), MESSAGE_BYTES_U32)
            .flags(libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .user_data(SEND)
            .flags(skip);
        // SAFETY: the message is boxed and outlives the ring (M1).
        unsafe { self.ring.push(&entry) }?;
        match self.turn {
            Turn::Flag => self.ring.enter(0),
            Turn::EnterAndCall => self.ring.submit(),
            _ => Ok(()),
        }
    }

    #[inline]
    fn receive(&mut self) -> Result<()> {
        match self.turn {
            Turn::Calls | Turn::EnterAndCall => loop {
                match sys::receive(self.socket.as_fd(), &mut self.message[..]) {
                    Ok(count) => {
                        ensure!(count == MESSAGE_BYTES, "received part of a message");
                        return Ok(());
                    }
                    Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => spin_loop(),
                    Err(error) => return Err(error).context("recv"),
                }
            },
            Turn::ParkInCall => self.socket.read_exact(&mut self.message[..]).context("read"),
            Turn::Flag | Turn::CallAndFlag => loop {
                if let Some(done) = self.ring.next() {
                    return self.received(&done);
                }
                if self.ring.flagged() {
                    self.ring.enter(0)?;
                } else {
                    spin_loop();
                }
            },
            Turn::Enter | Turn::Park | Turn::ParkLoudly => loop {
                if let Some(done) = self.ring.next() {
                    if self.turn == Turn::ParkLoudly && done.user_data == SEND {
                        ensure!(done.bytes()? == MESSAGE_BYTES, "a short send");
                        continue;
                    }
                    return self.received(&done);
                }
                self.ring.enter(u32::from(self.turn != Turn::Enter))?;
            },
        }
    }

    fn received(&mut self, done: &Done) -> Result<()> {
        ensure!(done.user_data == RECEIVE, "a send failed");
        ensure!(done.bytes()? == MESSAGE_BYTES && done.more(), "not a whole message");
        let message = &mut self.message;
        self.blocks.take(done, |bytes| message.copy_from_slice(bytes))
    }
}

const RECEIVE: u64 = 1;
const SEND: u64 = 2;

/// Median round trip, and the CPU time of both threads in a round trip.
pub(super) fn ping_pong(
    turn: Turn,
    setup: Setup,
    turns: u64,
    placement: &Placement,
) -> Result<Runner> {
    let (near, far) = UnixStream::pair().context("making a socket pair")?;
    let worker = Worker::spawn(placement, move || {
        let mut end = End::new(far, turn, setup)?;
        Ok(move |turns| {
            for _ in 0..turns {
                end.receive()?;
                end.send()?;
            }
            // What the last send has only staged goes out with an `enter`.
            end.ring.enter(0)?;
            Ok(Sample::NOTHING)
        })
    })?;
    let mut end = End::new(near, turn, setup)?;
    Ok(Box::new(move || {
        worker.start(WARM_UP + turns)?;
        for _ in 0..WARM_UP {
            end.send()?;
            end.receive()?;
        }
        let mut watch = Stopwatch::process();
        let enters = end.ring.enters;
        let mut trips = Vec::with_capacity(usize::try_from(turns)?);
        watch.start();
        for _ in 0..turns {
            let start = Instant::now();
            end.send()?;
            end.receive()?;
            trips.push(nanoseconds(start, Instant::now()) as f64);
        }
        watch.stop();
        worker.finish()?;
        let sample = watch.sample(turns, end.ring.enters - enters);
        Ok(Sample { latency: median(trips), ..sample })
    }))
}

const WARM_UP: u64 = 10;
