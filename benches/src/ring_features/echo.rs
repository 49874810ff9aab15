//! An echo server of 64-byte messages on many connections, on one thread with its client (client not
//! counted) and on two threads.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use io_uring::squeue::Flags;
use io_uring::{opcode, squeue, types};

use super::clock::{Sample, Stopwatch};
use super::ring::{Blocks, Done, GROUP, Ring, Setup, Shape};
use super::run::Runner;
use super::sys;
use super::worker::{Placement, Worker};

/// How the server receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    /// One multishot receive a connection, into shared blocks.
    Multishot,
    /// A receive for every message, staged together with the reply to the one before.
    Single { poll_first: bool },
    /// A receive for every message, staged only when the message is there.
    Late { poll_first: bool },
}

/// How the server waits when it has nothing to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// For so many completions.
    For(u32),
    /// For so many completions, or for one after so many microseconds.
    Least(u32, u32),
}

/// The server under test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    pub(super) setup: Setup,
    pub(super) receive: Receive,
    /// Sends that post no completion when all went well.
    pub(super) silent: bool,
    /// Sockets in the ring's file table.
    pub(super) fixed: bool,
    pub(super) wait: Wait,
    /// Count the client as well (one thread).
    pub(super) whole: bool,
}

impl Server {
    /// What the reactor does.
    pub(super) const PROJECT: Self = Self {
        setup: Setup::PROJECT,
        receive: Receive::Multishot,
        silent: true,
        fixed: false,
        wait: Wait::For(1),
        whole: false,
    };
}

fn send_entry(entry: opcode::Send, silent: bool) -> squeue::Entry {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
    if silent {
        entry.flags(flags | libc::MSG_DONTWAIT).build().flags(Flags::SKIP_SUCCESS)
    } else {
        entry.flags(flags).build()
    }
}

/// Where a message is received (unless in a block) and sent from.
type Slot = Box<[[u8; MESSAGE_BYTES]; 2]>;

struct Echo {
    ring: Ring,
    blocks: Blocks,
    /// Dropped after the ring (M1).
    slots: Vec<Slot>,
    sockets: Vec<UnixStream>,
    server: Server,
    batch: Vec<Done>,
    unfinished: usize,
}

impl Echo {
    fn new(sockets: Vec<UnixStream>, server: Server) -> Result<Self> {
        let ring = Ring::new(server.setup)?;
        ensure!(
            matches!(server.wait, Wait::For(_)) || ring.has_min_wait(),
            "the kernel lacks minimal waits"
        );
        let blocks = Blocks::new(&ring, Shape::PROJECT)?;
        if server.fixed {
            let files: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
            ring.register_files(&files)?;
        }
        let slots = sockets.iter().map(|_| Box::new([[0; MESSAGE_BYTES]; 2])).collect();
        let mut echo =
            Self { ring, blocks, slots, sockets, server, batch: Vec::new(), unfinished: 0 };
        if !matches!(server.receive, Receive::Late { .. }) {
            (0..echo.sockets.len()).try_for_each(|index| echo.arm(index))?;
        }
        echo.ring.enter(0)?;
        Ok(echo)
    }

    fn arm(&mut self, index: usize) -> Result<()> {
        let slot = self.slots[index][0].as_mut_ptr();
        let fd = types::Fd(self.sockets[index].as_raw_fd());
        let fixed = types::Fixed(u32::try_from(index)?);
        let entry = match self.server.receive {
            Receive::Multishot if self.server.fixed => opcode::RecvMulti::new(fixed, GROUP).build(),
            Receive::Multishot => opcode::RecvMulti::new(fd, GROUP).build(),
            Receive::Single { poll_first } | Receive::Late { poll_first } => {
                let options = if poll_first { sys::POLL_FIRST } else { 0 };
                let len = MESSAGE_BYTES_U32;
                if self.server.fixed {
                    opcode::Recv::new(fixed, slot, len).ioprio(options).build()
                } else {
                    opcode::Recv::new(fd, slot, len).ioprio(options).build()
                }
            }
        };
        // SAFETY: the slot is boxed and outlives the ring, as do the blocks (M1).
        unsafe { self.ring.push(&entry.user_data(RECEIVE | index as u64)) }
    }

    fn reply(&mut self, index: usize) -> Result<()> {
        let slot = self.slots[index][1].as_ptr();
        let fd = types::Fd(self.sockets[index].as_raw_fd());
        let entry = if self.server.fixed {
            opcode::Send::new(types::Fixed(u32::try_from(index)?), slot, MESSAGE_BYTES_U32)
        } else {
            opcode::Send::new(fd, slot, MESSAGE_BYTES_U32)
        };
        let entry = send_entry(entry, self.server.silent);
        if !self.server.silent {
            self.unfinished += 1;
        }
        // SAFETY: the slot is boxed and outlives the ring (M1).
        unsafe { self.ring.push(&entry.user_data(SEND | index as u64)) }
    }

    /// Echoes `messages` messages; with `park` it sleeps while there is none.
    fn serve(&mut self, messages: u64, park: bool) -> Result<()> {
        let mut received = 0;
        if matches!(self.server.receive, Receive::Late { .. }) {
            (0..self.sockets.len()).try_for_each(|index| self.arm(index))?;
        }
        loop {
            match self.server.wait {
                Wait::For(want) if park && received < messages => self.ring.enter(want)?,
                Wait::Least(want, min_wait_us) if park && received < messages => {
                    self.ring.enter_min_wait(want, min_wait_us)?;
                }
                _ => self.ring.enter(0)?,
            }
            let mut batch = std::mem::take(&mut self.batch);
            self.ring.reap(&mut batch);
            for done in &batch {
                received += self.handle(done)?;
            }
            self.batch = batch;
            if received == messages && self.unfinished == 0 && self.ring.is_submitted() {
                return Ok(());
            }
        }
    }

    /// Returns the number of messages received.
    fn handle(&mut self, done: &Done) -> Result<u64> {
        let index = usize::try_from(done.user_data & INDEX)?;
        if done.user_data & SEND != 0 {
            ensure!(done.bytes()? == MESSAGE_BYTES, "a short send");
            ensure!(!self.server.silent, "a silent send posted a completion");
            self.unfinished -= 1;
            return Ok(0);
        }
        ensure!(done.bytes()? == MESSAGE_BYTES, "received part of a message");
        if self.server.receive == Receive::Multishot {
            let reply = &mut self.slots[index][1];
            self.blocks.take(done, |bytes| reply.copy_from_slice(bytes))?;
            ensure!(done.more(), "a multishot receive has ended");
        } else {
            let [message, reply] = &mut *self.slots[index];
            reply.copy_from_slice(message);
        }
        self.reply(index)?;
        if matches!(self.server.receive, Receive::Single { .. }) {
            self.arm(index)?;
        }
        Ok(1)
    }
}

/// The kinds of completions in `user_data`; the rest is the connection.
const RECEIVE: u64 = 0;
const SEND: u64 = 1 << 32;
const INDEX: u64 = SEND - 1;
pub(super) const MESSAGE_BYTES: usize = 64;
pub(super) const MESSAGE_BYTES_U32: u32 = 64;

/// The clients of all connections.
struct Clients(Vec<UnixStream>);

impl Clients {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.0
            .iter_mut()
            .try_for_each(|client| client.write_all(message))
            .context("a client's send")
    }

    fn receive(&mut self, message: &[u8]) -> Result<()> {
        let mut reply = [0; MESSAGE_BYTES];
        for client in &mut self.0 {
            client.read_exact(&mut reply).context("a client's receive")?;
            if reply != *message {
                bail!("the reply is not the message");
            }
        }
        Ok(())
    }
}

fn pairs() -> Result<(Clients, Vec<UnixStream>)> {
    let pairs: std::io::Result<Vec<_>> = (0..CONNECTIONS).map(|_| UnixStream::pair()).collect();
    let (clients, sockets) = pairs.context("making socket pairs")?.into_iter().unzip();
    Ok((Clients(clients), sockets))
}

const CONNECTIONS: u64 = 64;

/// Client and server take turns on one thread; only the server's turn is measured, or both
/// (`whole`).
pub(super) fn one_thread(server: Server, batches: u64) -> Result<Runner> {
    let (mut clients, sockets) = pairs()?;
    let mut echo = Echo::new(sockets, server)?;
    let mut message = [0_u8; MESSAGE_BYTES];
    Ok(Box::new(move || {
        let mut watch = Stopwatch::thread();
        let mut enters = 0;
        for batch in 0..WARM_UP + batches {
            if batch == WARM_UP {
                watch = Stopwatch::thread();
                enters = echo.ring.enters;
            }
            message[0] = message[0].wrapping_add(1);
            if server.whole {
                watch.start();
            }
            clients.send(&message)?;
            if !server.whole {
                watch.start();
            }
            echo.serve(CONNECTIONS, false)?;
            if !server.whole {
                watch.stop();
            }
            clients.receive(&message)?;
            if server.whole {
                watch.stop();
            }
        }
        Ok(watch.sample(batches * CONNECTIONS, echo.ring.enters - enters))
    }))
}

/// As [`one_thread`], with recv(2) and send(2) on each connection instead of a ring.
pub(super) fn bare_calls(batches: u64) -> Result<Runner> {
    let (mut clients, sockets) = pairs()?;
    let mut message = [0_u8; MESSAGE_BYTES];
    Ok(Box::new(move || {
        let mut watch = Stopwatch::thread();
        for batch in 0..WARM_UP + batches {
            if batch == WARM_UP {
                watch = Stopwatch::thread();
            }
            message[0] = message[0].wrapping_add(1);
            clients.send(&message)?;
            let mut reply = [0; MESSAGE_BYTES];
            watch.start();
            for socket in &sockets {
                let received = sys::receive(socket.as_fd(), &mut reply)?;
                ensure!(received == MESSAGE_BYTES, "received part of a message");
                ensure!(sys::send(socket.as_fd(), &reply)? == MESSAGE_BYTES, "a short send");
            }
            watch.stop();
            clients.receive(&message)?;
        }
        Ok(watch.sample(batches * CONNECTIONS, 0))
    }))
}

const WARM_UP: u64 = 4;

/// The server parks on a second thread and only its CPU time counts. The client sends a message on
/// every connection, then waits for all replies.
pub(super) fn two_threads(server: Server, batches: u64, placement: &Placement) -> Result<Runner> {
    let (mut clients, sockets) = pairs()?;
    let worker = Worker::spawn(placement, move || {
        let mut echo = Echo::new(sockets, server)?;
        Ok(move |messages| {
            let mut watch = Stopwatch::thread();
            let enters = echo.ring.enters;
            watch.start();
            echo.serve(messages, true)?;
            watch.stop();
            Ok(watch.sample(messages, echo.ring.enters - enters))
        })
    })?;
    let mut message = [0_u8; MESSAGE_BYTES];
    Ok(Box::new(move || {
        worker.start(batches * CONNECTIONS)?;
        for _ in 0..batches {
            message[0] = message[0].wrapping_add(1);
            clients.send(&message)?;
            clients.receive(&message)?;
        }
        let sample: Sample = worker.finish()?;
        Ok(sample)
    }))
}
