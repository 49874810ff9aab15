//! Messages in one direction: each is told apart, and what was accepted is kept in mind.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use ringpost::{Message, Receiver, RecvError, SendError, Sender};
use ringpost_testkit::pattern;

use crate::rig::{Rig, insist};

/// Messages from one sender to one receiver. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    rig: Rig,
    salt: u64,
    lengths: &'static [usize],
    accepted: Rc<Cell<u64>>,
}

/// Lengths that small traffic has, bytes.
pub(crate) const SMALL: &[usize] = &[64, 0, 1, 8, 500, 1000, 3000, 64, 10_000];
/// Lengths that blocks, sockets and queues can't hold, bytes.
pub(crate) const LARGE: &[usize] = &[3000, 10_000, 66_000, 140_000, 300_000, 100];
/// Lengths that a greeting does not have to come before, bytes.
pub(crate) const TINY: &[usize] = &[1, 2, 30, 100, 1000];

/// Beyond the bound of the outbound queue and one message: their framing, a greeting and an end.
const QUEUE_SLACK_BYTES: usize = 256;
/// Messages that a receiver keeps for later, at most.
const KEPT_MAX: usize = 4;

impl Flow {
    pub(crate) fn new(rig: &Rig, lengths: &'static [usize]) -> Self {
        let salt = (rig.below(1 << 20) as u64) << 32;
        Self { rig: rig.clone(), salt, lengths, accepted: Rc::default() }
    }

    /// Messages accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.get()
    }

    fn length(&self, sequence: u64) -> usize {
        let mixed = (self.salt + sequence).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        self.lengths[usize::try_from(mixed).expect("24 bits") % self.lengths.len()]
    }

    pub(crate) fn payload(&self, sequence: u64) -> Vec<u8> {
        pattern::payload(self.salt + sequence, self.length(sequence))
    }

    pub(crate) fn check(&self, sequence: u64, bytes: &[u8]) {
        assert!(sequence < self.accepted(), "message {sequence} was never accepted");
        pattern::check(self.salt + sequence, self.length(sequence), bytes);
    }

    /// A message was accepted that somebody else has sent.
    pub(crate) fn accept_one(&self) {
        self.accepted.set(self.accepted() + 1);
    }

    pub(crate) fn accept(&self, sender: &Sender, len: usize) {
        self.accepted.set(self.accepted() + 1);
        self.check_queue_with(sender, len);
    }

    /// The outbound queue keeps its bound, whatever was accepted last.
    pub(crate) fn check_queue(&self, sender: &Sender) {
        self.check_queue_with(sender, self.lengths.iter().copied().max().unwrap_or(0));
    }

    fn check_queue_with(&self, sender: &Sender, len: usize) {
        let bound = self.rig.outbound_bytes_max + len + QUEUE_SLACK_BYTES;
        assert!(sender.queued_bytes() <= bound, "{} bytes are queued", sender.queued_bytes());
    }

    /// Sends the next message, or some.
    pub(crate) async fn send(&self, sender: &mut Sender) -> Result<(), SendError> {
        let rig = &self.rig;
        let body = self.payload(self.accepted());
        match rig.below(6) {
            0 => insist!(rig, sender.send(&body))?,
            1 => match sender.try_send(&body) {
                Ok(()) => {}
                Err(SendError::Full { .. } | SendError::NotReady) => {
                    insist!(rig, sender.send(&body))?;
                }
                Err(error) => return Err(error),
            },
            2 => insist!(rig, sender.send_with(body.len(), |bytes| bytes.copy_from_slice(&body)))?,
            3 => {
                let mut batch = insist!(rig, sender.batch())?;
                let mut count = 0;
                let outcome = loop {
                    let body = self.payload(self.accepted() + count);
                    match batch.push(&body) {
                        Ok(()) => count += 1,
                        Err(SendError::Full { .. } | SendError::NotReady) => break Ok(()),
                        // What it has taken before may still arrive.
                        Err(error) => break Err(error),
                    }
                    if rig.once_in(3) || count == 8 {
                        break Ok(());
                    }
                };
                drop(batch);
                self.accepted.set(self.accepted() + count);
                return outcome;
            }
            _ => insist!(rig, sender.send_bytes(Bytes::from(body.clone())))?,
        }
        self.accept(sender, body.len());
        Ok(())
    }

    /// Sends until `count` messages are accepted.
    pub(crate) async fn send_all(&self, sender: &mut Sender, count: u64) -> Result<(), SendError> {
        while self.accepted() < count {
            self.send(sender).await?;
            self.rig.dawdle().await;
        }
        Ok(())
    }

    /// Receives to the end, or until `most` messages were taken: how many, and what the end was.
    pub(crate) async fn receive(
        &self,
        receiver: &mut Receiver,
        most: u64,
    ) -> (u64, Result<(), RecvError>) {
        let rig = &self.rig;
        let mut taken = 0;
        let mut kept: VecDeque<(u64, Message)> = VecDeque::new();
        let end = loop {
            if taken >= most {
                break Ok(());
            }
            if rig.below(3) == 0 {
                match insist!(rig, receiver.recv()) {
                    Ok(Some(message)) => {
                        self.check(taken, &message);
                        if rig.once_in(3) {
                            kept.push_back((taken, message));
                        }
                        taken += 1;
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            } else {
                match insist!(rig, receiver.recv_batch()) {
                    Ok(Some(mut batch)) => {
                        while let Some(frame) = batch.next() {
                            self.check(taken, &frame.to_vec());
                            if rig.once_in(4) {
                                kept.push_back((taken, frame.retain()));
                            }
                            taken += 1;
                            if rig.once_in(8) || taken >= most {
                                break;
                            }
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            }
            while kept.len() > KEPT_MAX {
                let Some((sequence, message)) = kept.pop_front() else { break };
                self.check(sequence, &message);
            }
            rig.dawdle().await;
        };
        for (sequence, message) in kept {
            self.check(sequence, &message);
        }
        (taken, end)
    }

    /// Receives everything and a clean end.
    pub(crate) async fn receive_all(&self, receiver: &mut Receiver) {
        let (taken, end) = self.receive(receiver, u64::MAX).await;
        end.expect("a clean end");
        assert_eq!(taken, self.accepted(), "messages are missing");
    }
}
