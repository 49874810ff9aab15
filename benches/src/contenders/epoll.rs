//! Non-blocking sockets behind one epoll instance, one thread on each side; what a careful
//! programmer writes today.
//!
//! A turn waits once, then reads each ready connection into a shared buffer, handles all frames in
//! it in place, and sends what they led to with one write. A connection keeps the buffer only while
//! it holds the beginning of a frame, so that memory in use stays in the cache. A connection whose
//! peer does not read is not read from either until everything for it has been sent.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};

use super::{
    Client, Contender, Server, Waiting, buffer_bytes,
    handwritten::Batch,
    packets,
    socket::{accept_all, connect_all},
};
use crate::{
    frame::{self, FrameBuffer},
    meter::Recorder,
    payload::Inspector,
    scenario::{Scenario, SocketKind, Workload},
    traffic::Exchange,
};

#[derive(Debug)]
pub(super) struct Epoll {
    trigger: Trigger,
    waiting: Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    Level,
    Edge,
}

pub(super) static ALL: [Epoll; 4] = [
    Epoll { trigger: Trigger::Level, waiting: Waiting::Park },
    Epoll { trigger: Trigger::Edge, waiting: Waiting::Park },
    Epoll { trigger: Trigger::Level, waiting: Waiting::Spin },
    Epoll { trigger: Trigger::Edge, waiting: Waiting::Spin },
];

impl Contender for Epoll {
    fn name(&self) -> &'static str {
        match (self.trigger, self.waiting) {
            (Trigger::Level, Waiting::Park) => "epoll",
            (Trigger::Edge, Waiting::Park) => "epoll-et",
            (Trigger::Level, Waiting::Spin) => "epoll+spin",
            (Trigger::Edge, Waiting::Spin) => "epoll-et+spin",
        }
    }

    fn about(&self) -> &'static str {
        match (self.trigger, self.waiting) {
            (Trigger::Level, Waiting::Park) => "level-triggered epoll, one thread",
            (Trigger::Edge, Waiting::Park) => "edge-triggered epoll, one thread",
            (Trigger::Level, Waiting::Spin) => "level-triggered epoll, polled without a timeout",
            (Trigger::Edge, Waiting::Spin) => "edge-triggered epoll, polled without a timeout",
        }
    }

    fn scenarios(&self) -> &'static [Scenario] {
        match (self.trigger, self.waiting) {
            (Trigger::Level, Waiting::Park) => &Scenario::ALL,
            (Trigger::Level, Waiting::Spin) => &[
                Scenario::Pingpong,
                Scenario::Fanin,
                Scenario::Pipeline,
                Scenario::Stream,
                Scenario::Bulk,
                Scenario::Dgram,
                Scenario::Seqpacket,
            ],
            _ => &[
                Scenario::Pingpong,
                Scenario::Fanin,
                Scenario::Pipeline,
                Scenario::Stream,
                Scenario::Bulk,
            ],
        }
    }

    fn serve(&self, server: &Server) -> Result<()> {
        if server.workload.socket_kind() != SocketKind::Stream {
            return packets::receive(server, self);
        }
        let sockets = accept_all(server)?;
        let echo = Echo { inspectors: sockets.iter().map(|_| server.inspector()).collect() };
        EventLoop::new(self, sockets, &server.workload, echo)?.run()?;
        Ok(())
    }

    fn drive(&self, client: &Client) -> Result<()> {
        if client.workload.socket_kind() != SocketKind::Stream {
            return packets::send(client, self);
        }
        let sockets = connect_all(client)?;
        if client.workload.is_one_way() {
            return self.send(client, sockets);
        }
        let asker = Asker {
            exchanges: sockets.iter().map(|_| client.exchange()).collect(),
            recorder: client.recorder(),
            length: client.workload.bytes,
            now: Instant::now(),
        };
        let mut event_loop = EventLoop::new(self, sockets, &client.workload, asker)?;
        for index in 0..client.workload.connections {
            for _ in 0..client.depth() {
                event_loop.handler.request(index, &mut event_loop.out);
            }
            event_loop.send(index)?;
        }
        event_loop.run()?.recorder.finish();
        Ok(())
    }
}

impl Epoll {
    fn trigger_flag(&self) -> EventFlags {
        match self.trigger {
            Trigger::Level => EventFlags::empty(),
            Trigger::Edge => EventFlags::ET,
        }
    }

    fn timeout(&self) -> Option<&'static Timespec> {
        const NOT_AT_ALL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        match self.waiting {
            Waiting::Park => None,
            Waiting::Spin => Some(&NOT_AT_ALL),
        }
    }

    /// Sends one way over each connection in turn.
    fn send(&self, client: &Client, sockets: Vec<OwnedFd>) -> Result<()> {
        let mut sender = client.sender();
        let mut batch = Batch::new(client.workload.bytes);
        let mut received = FrameBuffer::new(buffer_bytes(&client.workload));
        let [socket] = <[OwnedFd; 1]>::try_from(sockets)
            .map_err(|_| anyhow::anyhow!("one-way traffic has one connection"))?;
        rustix::io::ioctl_fionbio(&socket, true).context("FIONBIO")?;
        let mut wait = Wait::new(self)?;
        wait.add(&socket, EventFlags::OUT)?;
        while sender.is_open() {
            while sender.has_time() {
                wait.write_all(&socket, batch.next(&mut sender))?;
            }
            wait.write_all(&socket, batch.last(&mut sender))?;
            wait.modify(&socket, EventFlags::IN)?;
            loop {
                match rustix::io::read(&socket, received.space()) {
                    Ok(0) => bail!("the receiver has closed"),
                    Ok(count) => received.filled(count),
                    Err(Errno::AGAIN) => wait.wait()?,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno).context("read"),
                }
                if let Some(payload) = received.next_frame()? {
                    sender.acknowledged(payload)?;
                    break;
                }
            }
            wait.modify(&socket, EventFlags::OUT)?;
        }
        sender.finish();
        Ok(())
    }
}

/// An epoll instance with one socket in it.
pub(super) struct Wait<'a> {
    epoll: OwnedFd,
    kind: &'a Epoll,
    events: Vec<Event>,
}

impl<'a> Wait<'a> {
    pub(super) fn new(kind: &'a Epoll) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("epoll_create")?;
        Ok(Self { epoll, kind, events: Vec::with_capacity(1) })
    }

    pub(super) fn add(&self, socket: &OwnedFd, interest: EventFlags) -> Result<()> {
        let flags = interest | self.kind.trigger_flag();
        epoll::add(&self.epoll, socket, EventData::new_u64(0), flags).context("epoll_ctl")
    }

    pub(super) fn modify(&self, socket: &OwnedFd, interest: EventFlags) -> Result<()> {
        let flags = interest | self.kind.trigger_flag();
        epoll::modify(&self.epoll, socket, EventData::new_u64(0), flags).context("epoll_ctl")
    }

    pub(super) fn wait(&mut self) -> Result<()> {
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), self.kind.timeout()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).context("epoll_wait"),
        }
    }

    fn write_all(&mut self, socket: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(socket, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN) => self.wait()?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("write"),
            }
        }
        Ok(())
    }
}

/// What a side does with what arrives.
trait Handler {
    /// Something has been read.
    fn arrived(&mut self);

    /// Handles a message of a connection; what it leads to is appended to `out`.
    fn message(&mut self, connection: usize, payload: &[u8], out: &mut Vec<u8>) -> Result<()>;

    /// A peer has closed its connection.
    fn closed(&self) -> Result<()>;

    /// Whether the loop is to go on after a turn.
    fn proceed(&mut self) -> bool;
}

/// The server.
#[derive(Debug)]
struct Echo {
    inspectors: Vec<Inspector>,
}

impl Handler for Echo {
    fn arrived(&mut self) {}

    fn message(&mut self, connection: usize, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if self.inspectors[connection].inspect(payload)? {
            frame::encode(payload, out);
        }
        Ok(())
    }

    fn closed(&self) -> Result<()> {
        Ok(())
    }

    fn proceed(&mut self) -> bool {
        true
    }
}

/// The client of request/reply traffic.
#[derive(Debug)]
struct Asker {
    exchanges: Vec<Exchange>,
    recorder: Recorder,
    length: usize,
    now: Instant,
}

impl Asker {
    fn request(&mut self, connection: usize, out: &mut Vec<u8>) {
        let exchange = &mut self.exchanges[connection];
        frame::encode_with(self.length, out, |payload| exchange.request(self.now, payload));
    }
}

impl Handler for Asker {
    fn arrived(&mut self) {
        self.now = Instant::now();
    }

    fn message(&mut self, connection: usize, payload: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.exchanges[connection].reply(self.now, payload, &mut self.recorder)?;
        self.request(connection, out);
        Ok(())
    }

    fn closed(&self) -> Result<()> {
        bail!("the server has closed")
    }

    fn proceed(&mut self) -> bool {
        self.recorder.turn(self.now)
    }
}

#[derive(Debug)]
struct Connection {
    /// None once the peer has closed.
    socket: Option<OwnedFd>,
    /// The beginning of a frame.
    partial: Option<FrameBuffer>,
    /// What the socket had no room for; while there is any, nothing is read.
    unsent: Vec<u8>,
}

struct EventLoop<'a, H> {
    kind: &'a Epoll,
    epoll: OwnedFd,
    events: Vec<Event>,
    connections: Vec<Connection>,
    open: usize,
    buffers: Vec<FrameBuffer>,
    buffer_bytes: usize,
    out: Vec<u8>,
    handler: H,
}

impl<'a, H: Handler> EventLoop<'a, H> {
    fn new(
        kind: &'a Epoll,
        sockets: Vec<OwnedFd>,
        workload: &Workload,
        handler: H,
    ) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("epoll_create")?;
        let buffer_bytes = buffer_bytes(workload);
        for (index, socket) in sockets.iter().enumerate() {
            rustix::io::ioctl_fionbio(socket, true).context("FIONBIO")?;
            let flags = EventFlags::IN | kind.trigger_flag();
            epoll::add(&epoll, socket, EventData::new_u64(index as u64), flags)
                .context("epoll_ctl")?;
        }
        Ok(Self {
            kind,
            epoll,
            events: Vec::with_capacity(sockets.len()),
            open: sockets.len(),
            connections: sockets
                .into_iter()
                .map(|socket| Connection {
                    socket: Some(socket),
                    partial: None,
                    unsent: Vec::new(),
                })
                .collect(),
            buffers: Vec::new(),
            buffer_bytes,
            out: Vec::with_capacity(buffer_bytes),
            handler,
        })
    }

    /// Runs until all peers have closed or the handler has had enough.
    fn run(mut self) -> Result<H> {
        while self.open > 0 {
            self.events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut self.events), self.kind.timeout()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).context("epoll_wait"),
            }
            for at in 0..self.events.len() {
                let event = self.events[at];
                let index = usize::try_from(event.data.u64())?;
                if self.connections[index].unsent.is_empty() {
                    self.receive(index)?;
                } else {
                    self.send_rest(index)?;
                }
            }
            if !self.handler.proceed() {
                break;
            }
        }
        Ok(self.handler)
    }

    fn receive(&mut self, index: usize) -> Result<()> {
        let mut buffer = self.connections[index]
            .partial
            .take()
            .or_else(|| self.buffers.pop())
            .unwrap_or_else(|| FrameBuffer::new(self.buffer_bytes));
        let result = self.receive_into(index, &mut buffer);
        if buffer.is_empty() {
            self.buffers.push(buffer);
        } else {
            self.connections[index].partial = Some(buffer);
        }
        result
    }

    fn receive_into(&mut self, index: usize, buffer: &mut FrameBuffer) -> Result<()> {
        while let Some(socket) = &self.connections[index].socket {
            let space = buffer.space();
            let room = space.len();
            let count = match rustix::io::read(socket, space) {
                Ok(0) | Err(Errno::CONNRESET) => return self.close(index),
                Ok(count) => count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).context("read"),
            };
            buffer.filled(count);
            self.handler.arrived();
            while let Some(payload) = buffer.next_frame()? {
                self.handler.message(index, payload, &mut self.out)?;
            }
            self.send(index)?;
            // A short read has emptied the socket, which is what an edge asks for; a level would
            // be reported again in any case, and others have their turn first.
            let emptied = count < room || self.kind.trigger == Trigger::Level;
            if emptied || !self.connections[index].unsent.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends `out`, and keeps what does not fit.
    fn send(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let Some(socket) = &connection.socket else { return Ok(()) };
        let mut rest = self.out.as_slice();
        if write_some(socket, &mut rest)? == Outcome::Closed {
            self.out.clear();
            return self.close(index);
        }
        if !rest.is_empty() {
            connection.unsent.extend_from_slice(rest);
            let flags = EventFlags::OUT | self.kind.trigger_flag();
            epoll::modify(&self.epoll, socket, EventData::new_u64(index as u64), flags)
                .context("epoll_ctl")?;
        }
        self.out.clear();
        Ok(())
    }

    /// Sends what did not fit, and reads again after that.
    fn send_rest(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let Some(socket) = connection.socket.as_ref().map(AsFd::as_fd) else { return Ok(()) };
        let mut rest = connection.unsent.as_slice();
        if write_some(socket, &mut rest)? == Outcome::Closed {
            return self.close(index);
        }
        let sent = connection.unsent.len() - rest.len();
        connection.unsent.drain(..sent);
        if connection.unsent.is_empty() {
            let flags = EventFlags::IN | self.kind.trigger_flag();
            epoll::modify(&self.epoll, socket, EventData::new_u64(index as u64), flags)
                .context("epoll_ctl")?;
        }
        Ok(())
    }

    fn close(&mut self, index: usize) -> Result<()> {
        // Closing the descriptor takes it out of the epoll instance.
        let connection = &mut self.connections[index];
        connection.socket = None;
        connection.unsent.clear();
        self.open -= 1;
        self.handler.closed()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Sent,
    Closed,
}

/// Sends as much as the socket takes.
fn write_some(socket: impl AsFd, bytes: &mut &[u8]) -> Result<Outcome> {
    while !bytes.is_empty() {
        match rustix::io::write(&socket, bytes) {
            Ok(count) => *bytes = &bytes[count..],
            Err(Errno::AGAIN) => return Ok(Outcome::Sent),
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Outcome::Closed),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("write"),
        }
    }
    Ok(Outcome::Sent)
}
