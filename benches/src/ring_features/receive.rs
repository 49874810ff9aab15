//! Receiving: block shapes and bundles, on one thread (senders not counted) and on two.

use std::hint::black_box;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use io_uring::{opcode, types};

use super::clock::{Sample, Stopwatch};
use super::ring::{Blocks, Done, GROUP, Ring, Setup, Shape};
use super::run::Runner;
use super::worker::{Placement, Worker};

/// What arrives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    pub(super) connections: usize,
    pub(super) message_bytes: usize,
    /// Times that every connection gets a message in a round.
    pub(super) batches: u64,
}

/// How it is received.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) shape: Shape,
    pub(super) bundle: bool,
}

/// Multishot receives on all connections, into shared blocks.
struct Receiver {
    ring: Ring,
    blocks: Blocks,
    sockets: Vec<UnixStream>,
    bundle: bool,
    batch: Vec<Done>,
}

impl Receiver {
    fn new(sockets: Vec<UnixStream>, how: How) -> Result<Self> {
        let ring = Ring::new(Setup::PROJECT)?;
        ensure!(ring.has_bundles() || !how.bundle, "the kernel lacks bundles");
        let blocks = Blocks::new(&ring, how.shape)?;
        let batch = Vec::new();
        let mut receiver = Self { ring, blocks, sockets, bundle: how.bundle, batch };
        (0..receiver.sockets.len()).try_for_each(|index| receiver.arm(index))?;
        receiver.ring.enter(0)?;
        Ok(receiver)
    }

    fn arm(&mut self, index: usize) -> Result<()> {
        let fd = types::Fd(self.sockets[index].as_raw_fd());
        let entry = if self.bundle {
            opcode::RecvMultiBundle::new(fd, GROUP).build()
        } else {
            opcode::RecvMulti::new(fd, GROUP).build()
        };
        // SAFETY: the entry points to nothing; the blocks outlive the ring (M1).
        unsafe { self.ring.push(&entry.user_data(index as u64)) }
    }

    /// Receives exactly `expected` bytes and reads all of them.
    fn receive(&mut self, expected: usize, want: u32) -> Result<()> {
        let mut received = 0;
        let mut sum = 0_u64;
        while received < expected {
            self.ring.enter(want)?;
            let mut batch = std::mem::take(&mut self.batch);
            self.ring.reap(&mut batch);
            for done in &batch {
                if done.result == -libc::ENOBUFS {
                    self.arm(usize::try_from(done.user_data)?)?;
                    continue;
                }
                self.blocks.take(done, |bytes| {
                    received += bytes.len();
                    sum = sum.wrapping_add(sum_of(bytes));
                })?;
                if !done.more() {
                    self.arm(usize::try_from(done.user_data)?)?;
                }
            }
            self.batch = batch;
        }
        black_box(sum);
        ensure!(received == expected, "received more than was sent");
        Ok(())
    }
}

fn sum_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().fold(0, |sum: u64, word| sum.wrapping_add(u64::from_ne_bytes(*word)));
    rest.iter().fold(words, |sum, &byte| sum.wrapping_add(u64::from(byte)))
}

fn pairs(count: usize) -> Result<(Vec<UnixStream>, Vec<UnixStream>)> {
    let pairs: std::io::Result<Vec<_>> = (0..count).map(|_| UnixStream::pair()).collect();
    Ok(pairs.context("making socket pairs")?.into_iter().unzip())
}

/// One thread sends a batch with write(2), then receives it; only the latter is measured.
pub(super) fn one_thread(traffic: Traffic, how: How) -> Result<Runner> {
    let (mut senders, sockets) = pairs(traffic.connections)?;
    let mut receiver = Receiver::new(sockets, how)?;
    let message = vec![7_u8; traffic.message_bytes];
    let expected = traffic.message_bytes * traffic.connections;
    Ok(Box::new(move || {
        let mut watch = Stopwatch::thread();
        let mut enters = receiver.ring.enters;
        for batch in 0..WARM_UP + traffic.batches {
            if batch == WARM_UP {
                watch = Stopwatch::thread();
                enters = receiver.ring.enters;
            }
            senders.iter_mut().try_for_each(|sender| sender.write_all(&message))?;
            watch.start();
            receiver.receive(expected, 0)?;
            watch.stop();
        }
        let messages = traffic.batches * traffic.connections as u64;
        Ok(watch.sample(messages, receiver.ring.enters - enters))
    }))
}

const WARM_UP: u64 = 4;

/// A second thread sends on one connection as fast as it can; the receiver parks when it has caught
/// up.
pub(super) fn two_threads(traffic: Traffic, how: How, placement: &Placement) -> Result<Runner> {
    let (mut senders, sockets) = pairs(traffic.connections)?;
    let mut receiver = Receiver::new(sockets, how)?;
    let message_bytes = traffic.message_bytes;
    let worker = Worker::spawn(placement, move || {
        let message = vec![7_u8; message_bytes];
        Ok(move |batches| {
            for _ in 0..batches {
                senders.iter_mut().try_for_each(|sender| sender.write_all(&message))?;
            }
            Ok(Sample::NOTHING)
        })
    })?;
    let batch_bytes = traffic.message_bytes * traffic.connections;
    Ok(Box::new(move || {
        let mut watch = Stopwatch::thread();
        let enters = receiver.ring.enters;
        watch.start();
        worker.start(traffic.batches)?;
        receiver.receive(usize::try_from(traffic.batches)? * batch_bytes, 1)?;
        watch.stop();
        worker.finish()?;
        let messages = traffic.batches * traffic.connections as u64;
        Ok(watch.sample(messages, receiver.ring.enters - enters))
    }))
}
