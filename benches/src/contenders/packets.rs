//! Packets by hand: one thread on each side, a non-blocking socket behind epoll, up to 64 packets
//! with one `recvmmsg` or `sendmmsg`, of one frame each. Buffers and headers are used again and
//! again.
//!
//! A datagram socket is bound to a path, and the sender's is connected to it, but not the other way
//! round: a receiver that serves many senders can't be. So it holds as many packets as the sysctl
//! `net.unix.max_dgram_qlen` says; of a sequenced connection the sender's buffer is the bound.

use std::{
    array,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, MultiHeaders, UnixAddr, recvmmsg, sendmmsg},
};
use rustix::{
    event::epoll::EventFlags,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use super::{
    Client, Server,
    epoll::{Epoll, Wait},
};
use crate::{frame, scenario::SocketKind, traffic::OneWaySender};

/// The server: checks what arrives and answers the last message of each phase.
pub(super) fn receive(server: &Server, kind: &Epoll) -> Result<()> {
    let socket = open_server(server)?;
    let mut wait = Wait::new(kind)?;
    wait.add(&socket, EventFlags::IN)?;
    let has_senders = server.workload.socket_kind() == SocketKind::Datagram;
    let mut inspector = server.inspector();
    let mut inbox = Inbox::new(server.workload.bytes);
    loop {
        let received = inbox.receive(&socket, |packet, sender| {
            let payload = if packet.is_empty() { packet } else { frame::whole(packet)? };
            // An empty packet is the end of a connection, an empty message that of datagrams.
            if payload.is_empty() {
                return Ok(Next::End);
            }
            if inspector.inspect(payload)? {
                answer(&socket, packet, sender.filter(|_| has_senders))?;
            }
            Ok(Next::Go)
        })?;
        match received {
            Received::End => return Ok(()),
            // There may be more.
            Received::Packets(BATCH_PACKETS) => {}
            Received::Packets(_) => wait.wait()?,
        }
    }
}

/// The client.
pub(super) fn send(client: &Client, kind: &Epoll) -> Result<()> {
    let socket = open_client(client)?;
    let mut wait = Wait::new(kind)?;
    wait.add(&socket, EventFlags::OUT)?;
    let mut sender = client.sender();
    let mut outbox = Outbox::new(client.workload.bytes);
    let mut inbox = Inbox::new(client.workload.bytes);
    while sender.is_open() {
        while sender.has_time() {
            outbox.fill(&mut sender);
            outbox.send(&socket, BATCH_PACKETS, &mut wait)?;
        }
        outbox.fill_last(&mut sender);
        outbox.send(&socket, 1, &mut wait)?;
        wait.modify(&socket, EventFlags::IN)?;
        loop {
            let received = inbox.receive(&socket, |packet, _| {
                sender.acknowledged(frame::whole(packet)?)?;
                Ok(Next::Go)
            })?;
            match received {
                Received::End => bail!("the receiver has closed"),
                Received::Packets(0) => wait.wait()?,
                Received::Packets(_) => break,
            }
        }
        wait.modify(&socket, EventFlags::OUT)?;
    }
    sender.finish();
    if client.workload.socket_kind() == SocketKind::Datagram {
        outbox.end(&socket, &mut wait)?;
    }
    Ok(())
}

fn open_server(server: &Server) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(&server.path)?;
    let kind = socket_type(server.workload.socket_kind());
    let socket = new_socket(kind)?;
    rustix::net::bind(&socket, &address).context("bind")?;
    if kind == SocketType::DGRAM {
        server.ready()?;
        return Ok(socket);
    }
    rustix::net::listen(&socket, 1).context("listen")?;
    // To accept is the only thing that waits.
    rustix::io::ioctl_fionbio(&socket, false).context("FIONBIO")?;
    server.ready()?;
    rustix::net::accept_with(&socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        .context("accept")
}

fn open_client(client: &Client) -> Result<OwnedFd> {
    let kind = socket_type(client.workload.socket_kind());
    let socket = new_socket(kind)?;
    if kind == SocketType::DGRAM {
        // With a name it can be answered.
        rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed()).context("autobind")?;
    }
    rustix::net::connect(&socket, &SocketAddrUnix::new(client.path())?).context("connect")?;
    Ok(socket)
}

fn new_socket(kind: SocketType) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).context("socket")
}

fn socket_type(kind: SocketKind) -> SocketType {
    match kind {
        SocketKind::Stream => SocketType::STREAM,
        SocketKind::Datagram => SocketType::DGRAM,
        SocketKind::Seqpacket => SocketType::SEQPACKET,
    }
}

/// Sends a packet back, to whoever sent it or to the peer. The client waits for it, so there is room.
fn answer(socket: &OwnedFd, packet: &[u8], sender: Option<&UnixAddr>) -> Result<()> {
    let (fd, none) = (socket.as_raw_fd(), MsgFlags::empty());
    match sender {
        Some(sender) => nix::sys::socket::sendto(fd, packet, sender, none).context("sendto")?,
        None => nix::sys::socket::send(fd, packet, none).context("send")?,
    };
    Ok(())
}

/// Whether a packet was the last one.
enum Next {
    Go,
    End,
}

enum Received {
    Packets(usize),
    End,
}

/// Room for a batch of packets.
struct Inbox {
    headers: MultiHeaders<UnixAddr>,
    bytes: Vec<u8>,
    /// With a byte to spare, by which a packet that is too long can be told.
    slot_bytes: usize,
}

impl Inbox {
    fn new(length: usize) -> Self {
        let slot_bytes = (frame::HEADER_BYTES + length + 1).next_multiple_of(CACHE_LINE_BYTES);
        Self {
            headers: MultiHeaders::preallocate(BATCH_PACKETS, None),
            bytes: vec![0; BATCH_PACKETS * slot_bytes],
            slot_bytes,
        }
    }

    /// Hands over what has arrived, at most a batch, without waiting.
    fn receive(
        &mut self,
        socket: &OwnedFd,
        mut each: impl FnMut(&[u8], Option<&UnixAddr>) -> Result<Next>,
    ) -> Result<Received> {
        let mut rest = self.bytes.chunks_exact_mut(self.slot_bytes);
        let mut slots: [[IoSliceMut<'_>; 1]; BATCH_PACKETS] =
            array::from_fn(|_| [IoSliceMut::new(rest.next().unwrap_or_default())]);
        let none = MsgFlags::empty();
        let fd = socket.as_raw_fd();
        let received = match recvmmsg(fd, &mut self.headers, slots.iter_mut(), none, None) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Packets(0)),
            Err(Errno::ECONNRESET) => return Ok(Received::End),
            Err(errno) => return Err(errno).context("recvmmsg"),
        };
        let mut count = 0;
        for packet in received {
            count += 1;
            let bytes = packet.iovs().next().unwrap_or_default();
            if let Next::End = each(bytes, packet.address.as_ref())? {
                return Ok(Received::End);
            }
        }
        Ok(Received::Packets(count))
    }
}

/// A batch of packets to be sent.
struct Outbox {
    headers: MultiHeaders<()>,
    bytes: Vec<u8>,
    frame_bytes: usize,
}

impl Outbox {
    fn new(length: usize) -> Self {
        let frame_bytes = frame::HEADER_BYTES + length;
        let bytes = vec![0; BATCH_PACKETS * frame_bytes];
        Self { headers: MultiHeaders::preallocate(BATCH_PACKETS, None), bytes, frame_bytes }
    }

    fn fill(&mut self, sender: &mut OneWaySender) {
        for frame in self.bytes.chunks_exact_mut(self.frame_bytes) {
            sender.fill(frame::framed(frame));
        }
    }

    fn fill_last(&mut self, sender: &mut OneWaySender) {
        sender.fill_last(frame::framed(&mut self.bytes[..self.frame_bytes]));
    }

    /// Sends the first `count` packets; waits for room as often as it takes.
    fn send(&mut self, socket: &OwnedFd, count: usize, wait: &mut Wait<'_>) -> Result<()> {
        let mut rest = self.bytes.chunks_exact(self.frame_bytes);
        let packets: [[IoSlice<'_>; 1]; BATCH_PACKETS] =
            array::from_fn(|_| [IoSlice::new(rest.next().unwrap_or_default())]);
        let mut sent = 0;
        while sent < count {
            let unsent = packets[sent..count].iter();
            let (fd, none) = (socket.as_raw_fd(), MsgFlags::empty());
            match sendmmsg(fd, &mut self.headers, unsent, NOWHERE_ELSE, [], none) {
                Ok(taken) => sent += taken.count(),
                Err(Errno::EAGAIN) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno).context("sendmmsg"),
            }
            if sent < count {
                wait.wait()?;
            }
        }
        Ok(())
    }

    /// Sends a message without a payload.
    fn end(&mut self, socket: &OwnedFd, wait: &mut Wait<'_>) -> Result<()> {
        let packet = frame::header(0);
        loop {
            match nix::sys::socket::send(socket.as_raw_fd(), &packet, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => wait.wait()?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("send"),
            }
        }
    }
}

/// The addresses of a batch: the socket is connected.
const NOWHERE_ELSE: [Option<()>; BATCH_PACKETS] = [None; BATCH_PACKETS];
pub(super) const BATCH_PACKETS: usize = 64;
const CACHE_LINE_BYTES: usize = 64;
