//! Runs of messages that are not asked for what they lend: it stays where it was.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use ringpost::{ConnectionOptions, EngineChoice, LengthPrefix, Receiver};
use ringpost_testkit::pattern;
use ringpost_testkit::peer::{greeting, message};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{adopt, block_on, join, packet_sockets, pair, sockets};

on_both_engines!(
    native_in_pieces,
    length_prefixed_in_pieces,
    packets,
    with_descriptors,
    one_that_moves_on
);

const MESSAGES: u64 = 400;
const LENGTHS: [usize; 6] = [0, 1, 8, 300, 5000, 20_000];

fn len_of(sequence: u64) -> usize {
    let turn = usize::try_from(sequence).expect("few");
    LENGTHS[turn % LENGTHS.len()]
}

/// Writes in parts of ever other lengths, so that headers and bodies are cut everywhere.
fn write_in_parts(mut socket: UnixStream, bytes: &[u8]) {
    let mut lengths = [1, 7, 2, 4000, 3, 500, 64, 30_000, 5].into_iter().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = lengths.next().unwrap_or(1).min(rest.len());
        let (part, behind) = rest.split_at(len);
        socket.write_all(part).expect("a reader");
        rest = behind;
        thread::sleep(Duration::from_micros(100));
    }
}

/// Receives all messages in turn by each of the ways, with runs in between that are not asked, or not for all.
async fn receive(receiver: &mut Receiver) {
    let mut expected = 0;
    let mut take = |bytes: &[u8]| {
        pattern::check(expected, len_of(expected), bytes);
        expected += 1;
        expected < MESSAGES
    };
    let mut more = true;
    for way in 0.. {
        if !more {
            return;
        }
        if way % 4 == 0 {
            let message = receiver.recv().await.expect("messages").expect("no end");
            more = take(&message.into_bytes());
            continue;
        }
        let mut batch = receiver.recv_batch().await.expect("messages").expect("no end");
        drop(batch.next_run());
        assert_ne!(batch.next_run().map(|frames| frames.take(0).count()), Some(1));
        match way % 4 {
            // All of it stays for the next call.
            1 => {}
            2 => {
                if let Some(frame) = batch.next() {
                    more = take(&frame.bytes());
                }
            }
            _ => loop {
                let Some(mut frames) = batch.next_run() else { break };
                more = take(&frames.next().expect("a run of something").bytes());
                drop(frames);
                drop(batch.next_run());
            },
        }
    }
}

fn in_pieces(engine: EngineChoice, options: ConnectionOptions, bytes: Vec<u8>) {
    block_on(engine, async {
        let (ours, theirs) = sockets();
        let peer = theirs.try_clone().expect("a descriptor");
        let writer = thread::spawn(move || write_in_parts(peer, &bytes));
        let (_sender, mut receiver) = adopt(ours, options).split();
        receive(&mut receiver).await;
        join(writer).await;
        drop(theirs);
    });
}

fn native_in_pieces(engine: EngineChoice) {
    let messages =
        (0..MESSAGES).map(|sequence| message(&pattern::payload(sequence, len_of(sequence))));
    let bytes = greeting().into_iter().chain(messages.flatten()).collect();
    in_pieces(engine, ConnectionOptions::new(), bytes);
}

fn length_prefixed_in_pieces(engine: EngineChoice) {
    let mut bytes = Vec::new();
    for sequence in 0..MESSAGES {
        let payload = pattern::payload(sequence, len_of(sequence));
        bytes.extend_from_slice(&u32::try_from(payload.len()).expect("short").to_be_bytes());
        bytes.extend_from_slice(&payload);
    }
    in_pieces(engine, ConnectionOptions::new().length_prefixed(LengthPrefix::default()), bytes);
}

fn packets(engine: EngineChoice) {
    block_on(engine, async {
        let (ours, theirs) = packet_sockets();
        let options = ConnectionOptions::new().seqpacket();
        let (_sender, mut receiver) = adopt(ours, options).split();
        let (mut sender, _receiver) = adopt(theirs, options).split();
        let sending = ringpost::spawn(async move {
            for sequence in 0..MESSAGES {
                let payload = pattern::payload(sequence, len_of(sequence));
                sender.send(&payload).await.expect("a reader");
            }
            sender.flush().await.expect("a reader");
            sender
        });
        receive(&mut receiver).await;
        drop(sending.await.expect("no panic"));
    });
}

/// Descriptors stay with the message, and are not those of the message lent last as long as it is not asked for.
fn with_descriptors(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = pair(ConnectionOptions::new().descriptors_max(2));
        let (mut sender, _receiver) = left.split();
        let (_sender, mut receiver) = right.split();
        let file = std::fs::File::open("/dev/null").expect("a device");
        for sequence in 0..20 {
            let body = pattern::payload(sequence, 100);
            sender.send_with_descriptors(&body, &[&file]).await.expect("a reader");
            sender.send(&pattern::payload(sequence, 50)).await.expect("a reader");
        }
        let mut received = 0;
        while received < 40 {
            let mut batch = receiver.recv_batch().await.expect("messages").expect("no end");
            loop {
                drop(batch.next_run());
                let Some(mut frames) = batch.next_run() else { break };
                let len = if received % 2 == 0 { 100 } else { 50 };
                let frame = frames.next().expect("a run of something");
                pattern::check(received / 2, len, &frame.bytes());
                drop(frames);
                let descriptors = batch.take_descriptors().len();
                assert_eq!(descriptors, usize::from(received % 2 == 0), "message {received}");
                received += 1;
            }
        }
    });
}

/// A message that was not asked for goes along with its connection.
fn one_that_moves_on(engine: EngineChoice) {
    block_on(engine, async {
        let (ours, mut theirs) = sockets();
        let options = ConnectionOptions::new().length_prefixed(LengthPrefix::default());
        let mut connection = adopt(ours, options);
        theirs.write_all(b"\0\0").expect("a reader");
        ringpost::sleep(Duration::from_millis(20)).await;
        {
            let (_, receiver) = connection.halves();
            let mut batch = receiver.recv_batch().await.expect("messages").expect("no end");
            assert!(batch.next_run().is_none(), "half a header");
        }
        theirs.write_all(b"\0\x06in two\0\0\0\x04more").expect("a reader");
        ringpost::sleep(Duration::from_millis(20)).await;
        {
            let (_, receiver) = connection.halves();
            let mut batch = receiver.recv_batch().await.expect("messages").expect("no end");
            assert!(batch.next_run().is_some(), "a message");
        }
        let detached = connection.detach(Duration::from_secs(5)).await.expect("quiet");
        let mut connection = detached.attach();
        for expected in [b"in two" as &[u8], b"more"] {
            let message = connection.recv().await.expect("messages").expect("no end");
            assert_eq!(message, *expected);
        }
    });
}
