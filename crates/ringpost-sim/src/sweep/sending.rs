//! Everything that accepts messages for sending, and the ends of it.

use std::fs::File;

use bytes::Bytes;
use ringpost::{Connection, spawn};

use super::cut::{Cut, persist};
use super::peers::{LENGTHS, MESSAGES, options, pair, read};
use super::{Operation, operations};
use crate::flow::Flow;
use crate::rig::Rig;

#[derive(Debug, Clone, Copy)]
enum How {
    Send,
    SendHere,
    SendWith,
    SendWithHere,
    SendBytes,
    SendBytesHere,
    Batch,
    Flush,
    FlushHere,
    Shutdown,
    ShutdownHere,
}

pub(super) const OPERATIONS: &[Operation] = operations! {
    "Sender::send" |rig, cut| sending(rig, cut, How::Send);
    "Connection::send" |rig, cut| sending(rig, cut, How::SendHere);
    "Sender::send_with" |rig, cut| sending(rig, cut, How::SendWith);
    "Connection::send_with" |rig, cut| sending(rig, cut, How::SendWithHere);
    "Sender::send_bytes" |rig, cut| sending(rig, cut, How::SendBytes);
    "Connection::send_bytes" |rig, cut| sending(rig, cut, How::SendBytesHere);
    "Sender::batch" |rig, cut| sending(rig, cut, How::Batch);
    "Sender::flush" |rig, cut| sending(rig, cut, How::Flush);
    "Connection::flush" |rig, cut| sending(rig, cut, How::FlushHere);
    "Sender::shutdown" |rig, cut| sending(rig, cut, How::Shutdown);
    "Connection::shutdown" |rig, cut| sending(rig, cut, How::ShutdownHere);
    "Sender::send_with_descriptors" |rig, cut| passing(rig, cut, false);
    "Connection::send_with_descriptors" |rig, cut| passing(rig, cut, true);
};

/// Messages to a reader that is late: those that were accepted arrive, and none of those that were not.
async fn sending(rig: Rig, cut: Cut, how: How) {
    let (left, right) = pair(options());
    let flow = Flow::new(&rig, LENGTHS);
    let reader = spawn(read(rig.clone(), flow.clone(), right));
    let mut left = left;
    while flow.accepted() < MESSAGES {
        let accepted = send_one(&cut, &flow, &mut left, how).await;
        for _ in 0..accepted {
            flow.accept_one();
        }
        flow.check_queue(left.halves().0);
    }
    match how {
        How::Flush => persist!(cut, left.halves().0.flush()).expect("it leaves"),
        How::FlushHere => persist!(cut, left.flush()).expect("it leaves"),
        How::Shutdown => persist!(cut, left.halves().0.shutdown()).expect("a proper end"),
        _ => {}
    }
    if matches!(how, How::Flush | How::FlushHere) {
        assert_eq!(left.halves().0.queued_bytes(), 0, "flushed, and bytes are queued");
    }
    persist!(cut, left.shutdown()).expect("a proper end");
    assert!(left.recv().await.expect("a clean end").is_none(), "a message of nobody");
    reader.await.expect("all goes well");
}

/// Sends a message, or some: how many.
async fn send_one(cut: &Cut, flow: &Flow, connection: &mut Connection, how: How) -> u64 {
    let body = flow.payload(flow.accepted());
    let fill = |bytes: &mut [u8]| bytes.copy_from_slice(&body);
    let shared = || Bytes::from(body.clone());
    match how {
        How::Send => persist!(cut, connection.halves().0.send(&body)),
        How::SendHere => persist!(cut, connection.send(&body)),
        How::SendWith => persist!(cut, connection.halves().0.send_with(body.len(), fill)),
        How::SendWithHere => persist!(cut, connection.send_with(body.len(), fill)),
        How::SendBytes => persist!(cut, connection.halves().0.send_bytes(shared())),
        How::SendBytesHere => persist!(cut, connection.send_bytes(shared())),
        How::Batch => {
            let sender = connection.halves().0;
            let mut batch = persist!(cut, sender.batch()).expect("room");
            let mut count = 0;
            while count < 3 && batch.has_room() {
                let Ok(()) = batch.push(&flow.payload(flow.accepted() + count)) else { break };
                count += 1;
            }
            drop(batch);
            if count == 0 {
                // The greeting has to come first.
                sender.send(&body).await.expect("room");
                count = 1;
            }
            return count;
        }
        How::Flush | How::FlushHere | How::Shutdown | How::ShutdownHere => {
            connection.send(&body).await
        }
    }
    .expect("room");
    1
}

/// Messages with descriptors: each arrives with its own, once.
async fn passing(rig: Rig, cut: Cut, here: bool) {
    let options = options().descriptors_max(3).descriptors_held_max(2);
    let (left, right) = pair(options);
    let flow = Flow::new(&rig, LENGTHS);
    let reader = spawn({
        let (rig, flow) = (rig.clone(), flow.clone());
        async move {
            let mut right = right;
            let mut taken = 0;
            while let Some(message) = right.recv().await.expect("messages and an end") {
                flow.check(taken, &message);
                assert_eq!(
                    message.descriptors().len(),
                    count_of(taken),
                    "descriptors of a message"
                );
                taken += 1;
                rig.rest(100).await;
            }
            assert_eq!(taken, flow.accepted(), "messages are missing");
            right.shutdown().await.expect("a proper end");
        }
    });
    let mut left = left;
    let null = File::open("/dev/null").expect("always there");
    while flow.accepted() < MESSAGES {
        let body = flow.payload(flow.accepted());
        let files = vec![&null; count_of(flow.accepted())];
        if here {
            persist!(cut, left.send_with_descriptors(&body, &files)).expect("room");
        } else {
            let sender = left.halves().0;
            persist!(cut, sender.send_with_descriptors(&body, &files)).expect("room");
        }
        flow.accept_one();
    }
    left.shutdown().await.expect("a proper end");
    assert!(left.recv().await.expect("a clean end").is_none(), "a message of nobody");
    reader.await.expect("all goes well");
}

/// Descriptors of a message.
fn count_of(sequence: u64) -> usize {
    [2, 0, 1, 3][usize::try_from(sequence % 4).expect("small")]
}
