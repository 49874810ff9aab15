//! Packets between sockets without connections.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use ringpost::{Address, Datagram, DatagramRecvError, DatagramSendError, spawn, yield_now};
use ringpost_testkit::pattern;

use crate::rig::{Rig, insist};

/// Lengths of packets, bytes: their sender and number come first.
const LENGTHS: [usize; 6] = [16, 17, 64, 500, 3000, 9000];
/// Sender and number, bytes.
const HEAD_BYTES: usize = 16;
/// Packets of one sender, at most: more than a socket's queue takes (sysctl net.unix.max_dgram_qlen).
const PACKETS_MAX: usize = 50;
const SENDERS_MAX: usize = 4;

/// Senders with and without a connection, and a receiver that is often full: each packet that was accepted
/// arrives once, those of one sender in order. A receiver that goes is told to be gone.
pub(crate) async fn datagrams(rig: Rig) {
    if rig.once_in(3) {
        rig.drop_futures();
    }
    let inbound = [1, 3, 64, 1024][rig.below(4)];
    let mut receiver = Datagram::builder().inbound_packets_max(inbound).autobind().expect("a name");
    let address = receiver.local_address().expect("it has one");
    let leaves = rig.once_in(4);
    let senders = 1 + rig.below(SENDERS_MAX);
    let accepted: Vec<_> = (0..senders).map(|_| Rc::new(Cell::new(0))).collect();
    let mut tasks = Vec::new();
    for (number, accepted) in accepted.iter().enumerate() {
        let (rig, address, accepted) = (rig.clone(), address.clone(), Rc::clone(accepted));
        tasks.push(spawn(send(rig, number as u64, address, accepted, leaves)));
    }
    if leaves {
        for _ in 0..rig.below(PACKETS_MAX) {
            rig.waits(PATIENCE);
            let Ok(packet) = ringpost::timeout(PATIENCE, receiver.recv()).await else { break };
            check(&packet, &accepted, None);
            rig.dawdle().await;
        }
        drop(receiver);
        for task in tasks {
            task.await.expect("told that the receiver is gone");
        }
        return;
    }
    let mut taken = vec![0; senders];
    let mut kept = None;
    let ended = Rc::new(Cell::new(false));
    let all = spawn({
        let ended = Rc::clone(&ended);
        async move {
            for task in tasks {
                task.await.expect("all goes well");
            }
            ended.set(true);
        }
    });
    while !ended.get() || accepted.iter().zip(&taken).any(|(sent, taken)| sent.get() > *taken) {
        if rig.below(2) == 0 {
            match rig.attempt(ringpost::timeout(PATIENCE, receiver.recv())).await {
                Some(Ok(packet)) => {
                    check(&packet, &accepted, Some(&mut taken));
                    kept = packet.ok();
                }
                Some(Err(_)) => rig.waits(PATIENCE),
                None => {}
            }
        } else {
            match rig.attempt(ringpost::timeout(PATIENCE, receiver.recv_batch())).await {
                Some(Ok(batch)) => {
                    let mut batch = batch.expect("packets");
                    while let Some(packet) = batch.next() {
                        let packet = packet.map(|packet| packet.retain());
                        check(&packet, &accepted, Some(&mut taken));
                        if rig.once_in(4) {
                            break;
                        }
                    }
                }
                Some(Err(_)) => rig.waits(PATIENCE),
                None => {}
            }
        }
        rig.dawdle().await;
    }
    drop(kept);
    all.await.expect("all goes well");
    let more = ringpost::timeout(PATIENCE, receiver.recv()).await;
    assert!(more.is_err(), "a packet of nobody: {more:?}");
}

fn payload(sender: u64, sequence: u64) -> Vec<u8> {
    let length = LENGTHS[usize::try_from(sender * 5 + sequence).expect("few") % LENGTHS.len()];
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(sender.to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(pattern::payload(sender << 32 | sequence, length - HEAD_BYTES));
    bytes
}

/// The next packet of its sender; the one that is due, if it is known.
fn check(
    packet: &Result<ringpost::Packet, DatagramRecvError>,
    accepted: &[Rc<Cell<u64>>],
    taken: Option<&mut Vec<u64>>,
) {
    let packet = packet.as_ref().expect("a packet");
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let sender = number(&packet[..8]);
    let sequence = number(&packet[8..HEAD_BYTES]);
    let index = usize::try_from(sender).expect("few");
    assert!(packet[..] == payload(sender, sequence)[..], "packet {sequence} of {sender} is torn");
    // A sender that was dropped while it waited may send again; it counts what it was told.
    assert!(sequence <= accepted[index].get(), "packet {sequence} of {sender} was never accepted");
    if let Some(taken) = taken {
        assert_eq!(sequence, taken[index], "packets of {sender}");
        taken[index] += 1;
    }
}

async fn send(rig: Rig, number: u64, to: Address, accepted: Rc<Cell<u64>>, leaves: bool) {
    let builder = Datagram::builder()
        .outbound_packets_max([1, 4, 64][rig.below(3)])
        .outbound_bytes_max([1, 4000, 256 << 10][rig.below(3)]);
    let connected = rig.below(2) == 0;
    // Packets with a name and without one are in order among themselves.
    let named = !connected || rig.once_in(3);
    let mut socket = if connected {
        match builder.connect(to.clone()) {
            // The receiver has left before.
            Err(_) if leaves => return,
            socket => socket.expect("a socket"),
        }
    } else {
        builder.unbound().expect("a socket")
    };
    let count = rig.below(PACKETS_MAX) as u64;
    while accepted.get() < count {
        let body = payload(number, accepted.get());
        let sent = match rig.below(3) {
            _ if named => insist!(rig, socket.send_to(&to, &body)),
            0 => match socket.try_send(&body) {
                Err(DatagramSendError::Full { .. }) => {
                    rig.rest(100).await;
                    continue;
                }
                sent => sent,
            },
            1 => {
                let half = socket.halves().0;
                insist!(rig, half.send_bytes(None, Bytes::from(body.clone())))
            }
            _ => insist!(rig, socket.send(&body)),
        };
        match sent {
            Ok(()) => accepted.set(accepted.get() + 1),
            Err(DatagramSendError::Gone { .. }) if leaves => return,
            Err(error) => panic!("{error:?}"),
        }
        rig.dawdle().await;
    }
    match insist!(rig, socket.flush()) {
        Err(DatagramSendError::Gone { .. }) if leaves => {}
        flushed => flushed.expect("it leaves"),
    }
    yield_now().await;
}

/// How long a receiver waits before it looks whether all has come.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(20);
