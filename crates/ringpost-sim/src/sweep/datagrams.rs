//! Datagram sockets, with and without a peer.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use ringpost::{Datagram, DatagramRecvError, Packet, spawn};
use ringpost_testkit::pattern;

use super::cut::{Cut, persist};
use super::{Operation, operations};
use crate::rig::Rig;

/// Packets in one direction: more than a socket's queue takes (sysctl net.unix.max_dgram_qlen).
const PACKETS: u64 = 20;
/// Lengths of packets, bytes.
const LENGTHS: [usize; 5] = [64, 0, 3000, 1, 500];
/// Packets that wait to be sent, at most.
const OUTBOUND_PACKETS_MAX: usize = 4;
/// What the other side waits between two packets, microseconds.
const PAUSE_US: u64 = 100;

#[derive(Debug, Clone, Copy)]
enum Send {
    Plain,
    PlainHere,
    To,
    ToHere,
    With,
    Bytes,
    Flush,
    FlushHere,
}

#[derive(Debug, Clone, Copy)]
enum Take {
    Recv,
    RecvHere,
    Poll,
    Batch,
    BatchHere,
}

pub(super) const OPERATIONS: &[Operation] = operations! {
    "DatagramSender::send" |rig, cut| sending(rig, cut, Send::Plain);
    "Datagram::send" |rig, cut| sending(rig, cut, Send::PlainHere);
    "DatagramSender::send_to" |rig, cut| sending(rig, cut, Send::To);
    "Datagram::send_to" |rig, cut| sending(rig, cut, Send::ToHere);
    "DatagramSender::send_with" |rig, cut| sending(rig, cut, Send::With);
    "DatagramSender::send_bytes" |rig, cut| sending(rig, cut, Send::Bytes);
    "DatagramSender::flush" |rig, cut| sending(rig, cut, Send::Flush);
    "Datagram::flush" |rig, cut| sending(rig, cut, Send::FlushHere);
    "DatagramReceiver::recv" |rig, cut| receiving(rig, cut, Take::Recv);
    "Datagram::recv" |rig, cut| receiving(rig, cut, Take::RecvHere);
    "DatagramReceiver::poll_recv" |rig, cut| receiving(rig, cut, Take::Poll);
    "DatagramReceiver::recv_batch" |rig, cut| receiving(rig, cut, Take::Batch);
    "Datagram::recv_batch" |rig, cut| receiving(rig, cut, Take::BatchHere);
};

fn payload(sequence: u64) -> Vec<u8> {
    pattern::payload(sequence, length(sequence))
}

fn length(sequence: u64) -> usize {
    LENGTHS[usize::try_from(sequence).expect("few") % LENGTHS.len()]
}

fn check(sequence: u64, packet: &Result<Packet, DatagramRecvError>) {
    let packet = packet.as_ref().expect("a packet");
    pattern::check(sequence, length(sequence), packet);
}

/// Packets to a receiver that is late: each that was accepted arrives once.
async fn sending(rig: Rig, cut: Cut, how: Send) {
    let receiver = Datagram::builder().autobind().expect("a name");
    let address = receiver.local_address().expect("it has one");
    let settings = Datagram::builder().outbound_packets_max(OUTBOUND_PACKETS_MAX);
    let mut sender = settings.connect(address.clone()).expect("a socket");
    let reader = spawn({
        let rig = rig.clone();
        async move {
            let mut receiver = receiver;
            for sequence in 0..PACKETS {
                check(sequence, &receiver.recv().await);
                rig.rest(PAUSE_US).await;
            }
            let next = poll_fn(|context| Poll::Ready(receiver.halves().1.poll_recv(context)));
            assert!(next.await.is_pending(), "a packet of nobody");
        }
    });
    for sequence in 0..PACKETS {
        let body = payload(sequence);
        match how {
            Send::Plain => persist!(cut, sender.halves().0.send(&body)),
            Send::PlainHere => persist!(cut, sender.send(&body)),
            Send::To => persist!(cut, sender.halves().0.send_to(&address, &body)),
            Send::ToHere => persist!(cut, sender.send_to(&address, &body)),
            Send::With => {
                let fill = |bytes: &mut [u8]| bytes.copy_from_slice(&body);
                persist!(cut, sender.halves().0.send_with(body.len(), fill))
            }
            Send::Bytes => {
                let half = sender.halves().0;
                persist!(cut, half.send_bytes(None, Bytes::from(body.clone())))
            }
            Send::Flush => {
                sender.send(&body).await.expect("room");
                persist!(cut, sender.halves().0.flush())
            }
            Send::FlushHere => {
                sender.send(&body).await.expect("room");
                persist!(cut, sender.flush())
            }
        }
        .expect("room");
        let queued = sender.halves().0.queued_packets();
        assert!(queued <= OUTBOUND_PACKETS_MAX, "{queued} packets are queued");
    }
    sender.flush().await.expect("it leaves");
    drop(sender);
    reader.await.expect("all goes well");
}

/// Takes packets that come with pauses: nothing is lost, and nothing comes twice.
async fn receiving(rig: Rig, cut: Cut, how: Take) {
    let mut receiver = Datagram::builder().inbound_packets_max(3).autobind().expect("a name");
    let address = receiver.local_address().expect("it has one");
    let writer = spawn({
        let rig = rig.clone();
        async move {
            let sender = Datagram::connect(address).expect("a socket");
            for sequence in 0..PACKETS {
                sender.send(&payload(sequence)).await.expect("room");
                if sequence % 8 == 0 {
                    rig.rest(PAUSE_US).await;
                }
            }
            sender.flush().await.expect("it leaves");
        }
    });
    let mut taken = 0;
    let mut kept = None;
    while taken < PACKETS {
        let packet = match how {
            Take::Recv => persist!(cut, receiver.halves().1.recv()),
            Take::RecvHere => persist!(cut, receiver.recv()),
            Take::Poll => {
                let half = receiver.halves().1;
                persist!(cut, poll_fn(|context| half.poll_recv(context)))
            }
            Take::Batch | Take::BatchHere => {
                let batch = match how {
                    Take::Batch => persist!(cut, receiver.halves().1.recv_batch()),
                    _ => persist!(cut, receiver.recv_batch()),
                };
                let mut batch = batch.expect("packets");
                while let Some(packet) = batch.next() {
                    let packet = packet.expect("a packet");
                    pattern::check(taken, length(taken), &packet);
                    taken += 1;
                }
                continue;
            }
        };
        check(taken, &packet);
        kept = packet.ok();
        taken += 1;
    }
    drop(kept);
    writer.await.expect("all goes well");
}
