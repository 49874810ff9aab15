//! The best that a few dozen lines can do one way over one connection: batches of 64 KiB, a parser
//! in place, one buffer that is used again and again on each side.

use anyhow::{Result, bail};

use super::{
    Client, Contender, Server, Waiting, buffer_bytes,
    socket::{Link, accept_all, connect_all},
};
use crate::{
    frame::{self, FrameBuffer},
    scenario::Scenario,
    traffic::OneWaySender,
};

#[derive(Debug)]
pub(super) struct Handwritten {
    waiting: Waiting,
}

pub(super) static ALL: [Handwritten; 2] =
    [Handwritten { waiting: Waiting::Park }, Handwritten { waiting: Waiting::Spin }];

impl Contender for Handwritten {
    fn name(&self) -> &'static str {
        match self.waiting {
            Waiting::Park => "handwritten",
            Waiting::Spin => "handwritten+spin",
        }
    }

    fn about(&self) -> &'static str {
        match self.waiting {
            Waiting::Park => "blocking write of 64 KiB batches, blocking read, parser in place",
            Waiting::Spin => "the same with non-blocking calls, repeated until they succeed",
        }
    }

    fn scenarios(&self) -> &'static [Scenario] {
        &[Scenario::Stream, Scenario::Bulk]
    }

    fn serve(&self, server: &Server) -> Result<()> {
        for socket in accept_all(server)? {
            receive(server, &Link::new(socket, self.waiting)?)?;
        }
        Ok(())
    }

    fn drive(&self, client: &Client) -> Result<()> {
        for socket in connect_all(client)? {
            send(client, &Link::new(socket, self.waiting)?)?;
        }
        Ok(())
    }
}

fn receive(server: &Server, link: &Link) -> Result<()> {
    let mut inspector = server.inspector();
    let mut received = FrameBuffer::new(buffer_bytes(&server.workload));
    let mut reply = Vec::new();
    loop {
        let count = link.read(received.space())?;
        if count == 0 {
            return Ok(());
        }
        received.filled(count);
        while let Some(payload) = received.next_frame()? {
            if inspector.inspect(payload)? {
                frame::encode(payload, &mut reply);
                link.write_all(&reply)?;
                reply.clear();
            }
        }
    }
}

fn send(client: &Client, link: &Link) -> Result<()> {
    let mut sender = client.sender();
    let mut batch = Batch::new(client.workload.bytes);
    let mut received = FrameBuffer::new(buffer_bytes(&client.workload));
    while sender.is_open() {
        while sender.has_time() {
            link.write_all(batch.next(&mut sender))?;
        }
        link.write_all(batch.last(&mut sender))?;
        loop {
            let count = link.read(received.space())?;
            if count == 0 {
                bail!("the receiver has closed");
            }
            received.filled(count);
            if let Some(payload) = received.next_frame()? {
                sender.acknowledged(payload)?;
                break;
            }
        }
    }
    sender.finish();
    Ok(())
}

/// Frames of one length that leave with one write; also what the epoll sender sends.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    frame_bytes: usize,
    started: bool,
}

impl Batch {
    /// As many frames as fit 64 KiB, and at least one.
    pub(super) fn new(length: usize) -> Self {
        let frame_bytes = frame::HEADER_BYTES + length;
        let count = (BATCH_BYTES / frame_bytes).max(1);
        Self { bytes: vec![0; count * frame_bytes], frame_bytes, started: false }
    }

    /// The next messages, framed. Small ones are written in full, as if they came from elsewhere;
    /// a large one is sent from where it lies.
    pub(super) fn next(&mut self, sender: &mut OneWaySender) -> &[u8] {
        let reused = self.started && self.bytes.len() == self.frame_bytes;
        self.started = true;
        for frame in self.bytes.chunks_exact_mut(self.frame_bytes) {
            let payload = frame::framed(frame);
            if reused { sender.stamp(payload) } else { sender.fill(payload) }
        }
        &self.bytes
    }

    /// The last message of a phase, framed.
    pub(super) fn last(&mut self, sender: &mut OneWaySender) -> &[u8] {
        let frame = &mut self.bytes[..self.frame_bytes];
        sender.fill_last(frame::framed(frame));
        frame
    }
}

const BATCH_BYTES: usize = 64 * 1024;
