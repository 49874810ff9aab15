//! What is filled in place is filled by code of the user's, which may use the very connection, and may panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use ringpost::{Batch, ConnectionOptions, EngineChoice, Sender, spawn};
use ringpost_frame::FrameKind;
use ringpost_testkit::pattern;
use ringpost_testkit::peer::{frame, message};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, expect_message, join, pair, raw};

on_both_engines!(
    a_fill_takes_what_was_received,
    a_fill_answers_a_ping,
    a_fill_uses_another_connection,
    a_fill_panics
);

const LEN: usize = 3000;

/// The ways to fill a message in place.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Send,
    TrySend,
    Push,
}

const WAYS: [Way; 3] = [Way::Send, Way::TrySend, Way::Push];

async fn send(way: Way, sender: &mut Sender, len: usize, fill: impl FnOnce(&mut [u8])) {
    match way {
        Way::Send => sender.send_with(len, fill).await.expect("room"),
        Way::TrySend => sender.try_send_with(len, fill).expect("room"),
        Way::Push => {
            let mut batch = sender.batch().await.expect("room");
            batch.push(b"the first of a batch").expect("room");
            batch.push_with(len, fill).expect("room");
        }
    }
}

/// Checks all that has arrived, of messages that are counted from `taken` on.
fn take_all(batch: &mut Batch<'_>, taken: &mut u64) {
    while let Some(frame) = batch.next() {
        pattern::check(*taken, LEN, &frame.bytes());
        *taken += 1;
    }
}

fn a_fill_takes_what_was_received(engine: EngineChoice) {
    const MESSAGES: u64 = 500;
    block_on(engine, async {
        for way in WAYS {
            let (left, mut right) = pair(ConnectionOptions::new());
            let (mut sender, mut receiver) = left.split();
            let other = spawn(async move {
                for sequence in 0..MESSAGES {
                    let fill = |bytes: &mut [u8]| pattern::fill(sequence, bytes);
                    right.send_with(LEN, fill).await.expect("it reads");
                }
                let mut answers = 0;
                while let Some(message) = right.recv().await.expect("messages") {
                    if message.len() == size_of::<u64>() {
                        answers += 1;
                    }
                }
                answers
            });
            let (mut taken, mut answers) = (0, 0);
            while taken < MESSAGES {
                let batch = receiver.recv_batch().await.expect("messages");
                let mut batch = batch.expect("no end");
                send(way, &mut sender, size_of::<u64>(), |bytes| {
                    take_all(&mut batch, &mut taken);
                    bytes.copy_from_slice(&taken.to_le_bytes());
                })
                .await;
                answers += 1;
                // More than one chunk comes.
                ringpost::yield_now().await;
            }
            sender.shutdown().await.expect("it reads");
            assert_eq!(other.await.expect("no panic"), answers, "{way:?}");
        }
    });
}

/// The answer must not come within a message, though the end of one lies in the block that is being filled.
fn a_fill_answers_a_ping(engine: EngineChoice) {
    const LONG: usize = 100_000;
    block_on(engine, async {
        for way in WAYS {
            let (connection, mut peer) = raw();
            let (mut sender, mut receiver) = connection.split();
            let peer = thread::spawn(move || {
                peer.greet();
                let body = pattern::payload(0, LEN);
                peer.send(&[message(&body), frame(FrameKind::Ping, b"there?")].concat());
                let mut messages = Vec::new();
                let mut pongs = 0;
                while messages.last().is_none_or(|message| *message != b"filled") || pongs == 0 {
                    let frame = peer.read_frame().expect("no end");
                    match frame.header.kind {
                        FrameKind::Message => messages.push(frame.body),
                        FrameKind::Pong => pongs += 1,
                        kind => panic!("{kind:?}"),
                    }
                }
                assert_eq!(pongs, 1);
                messages
            });
            let batch = receiver.recv_batch().await.expect("messages");
            let mut batch = batch.expect("no end");
            sender.send(&pattern::payload(1, LONG)).await.expect("room");
            let mut taken = 0;
            send(way, &mut sender, 6, |bytes| {
                take_all(&mut batch, &mut taken);
                bytes.copy_from_slice(b"filled");
            })
            .await;
            assert_eq!(taken, 1);
            let messages = join(peer).await;
            pattern::check(1, LONG, &messages[0]);
            assert_eq!(messages.len(), if way == Way::Push { 3 } else { 2 });
        }
    });
}

fn a_fill_uses_another_connection(engine: EngineChoice) {
    block_on(engine, async {
        let (left, mut right) = pair(ConnectionOptions::new());
        let (other_left, mut other_right) = pair(ConnectionOptions::new());
        let (mut sender, _receiver) = left.split();
        let (mut other, _receiver) = other_left.split();
        for way in WAYS {
            send(way, &mut sender, LEN, |bytes| {
                let sent = ringpost::stats().bytes_sent;
                other.try_send_with(LEN, |bytes| pattern::fill(1, bytes)).expect("room");
                assert_eq!(ringpost::stats().bytes_sent, sent, "a fill waits for nothing");
                pattern::fill(2, bytes);
            })
            .await;
            if way == Way::Push {
                let first = right.recv().await.expect("a message").expect("no end");
                assert_eq!(first, *b"the first of a batch");
            }
            expect_message(&mut right, 2, LEN).await;
            expect_message(&mut other_right, 1, LEN).await;
        }
    });
}

fn a_fill_panics(engine: EngineChoice) {
    block_on(engine, async {
        let (left, mut right) = pair(ConnectionOptions::new());
        let (mut sender, _receiver) = left.split();
        for len in [0, 10, LEN, 100_000] {
            sender.send_with(LEN, |bytes| pattern::fill(1, bytes)).await.expect("room");
            let queued = sender.queued_bytes();
            let fill = |bytes: &mut [u8]| {
                bytes.fill(0xFF);
                panic!("a fill that panics");
            };
            let panics = AssertUnwindSafe(|| sender.try_send_with(len, fill));
            assert!(catch_unwind(panics).is_err());
            assert_eq!(sender.queued_bytes(), queued, "nothing was accepted");
            {
                let mut batch = sender.batch().await.expect("room");
                batch.push_with(LEN, |bytes| pattern::fill(2, bytes)).expect("room");
                let panics = AssertUnwindSafe(|| batch.push_with(len, fill));
                assert!(catch_unwind(panics).is_err());
                batch.push_with(LEN, |bytes| pattern::fill(3, bytes)).expect("room");
            }
            let zero = |bytes: &mut [u8]| assert!(bytes.iter().all(|byte| *byte == 0));
            sender.send_with(100, zero).await.expect("room");
            for sequence in 1..=3 {
                expect_message(&mut right, sequence, LEN).await;
            }
            let last = right.recv().await.expect("a message").expect("no end");
            assert_eq!(last, [0; 100]);
        }
    });
}
