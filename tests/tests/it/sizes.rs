//! Messages of every size around every boundary, through every way to send and to receive.

use bytes::Bytes;
use ringpost::{
    Connection, ConnectionOptions, EngineChoice, Receiver, SendError, Sender, spawn, yield_now,
};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, pair, pair_of};

on_both_engines!(
    every_way,
    every_relay,
    before_the_greeting,
    a_batch_from_before_the_greeting,
    too_large,
    random_mixes,
    gather_threshold
);

/// The longest message of most tests, not a round number.
const LIMIT: u32 = (1 << 20) + 123;

fn options() -> ConnectionOptions {
    ConnectionOptions::new().frame_bytes_max(LIMIT)
}

/// Every size at which something in the library changes, and its neighbours.
fn sizes() -> Vec<usize> {
    let mut sizes = vec![0, 1, 7, 8, 9];
    // Words, the limit before the greeting, the gather threshold, pages and small outbound blocks
    // with and without their header, plain receive blocks.
    for middle in [64, 1024, 2048, 4088, 4096, 8184, 8192] {
        sizes.extend(middle - 1..=middle + 1);
    }
    // Large outbound blocks and shared receive blocks, with and without their header.
    for middle in [64 << 10, 128 << 10] {
        sizes.extend(middle - 9..=middle + 9);
    }
    // What a large outbound block holds: 64 KiB without its last cache line.
    for middle in [(64 << 10) - 64, (64 << 10) - 72] {
        sizes.extend(middle - 1..=middle + 1);
    }
    sizes.extend([1 << 20, LIMIT as usize - 1, LIMIT as usize]);
    sizes
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Send,
    SendWith,
    TrySend,
    TrySendWith,
    SendBytes,
}

const WAYS: [Way; 5] = [Way::Send, Way::SendWith, Way::TrySend, Way::TrySendWith, Way::SendBytes];

#[derive(Debug, Clone, Copy)]
enum Relay {
    Messages,
    Runs,
}

#[derive(Debug, Clone, Copy)]
enum Take {
    Messages,
    Batches,
}

const TAKES: [Take; 2] = [Take::Messages, Take::Batches];

async fn send(sender: &mut Sender, way: Way, sequence: u64, len: usize) {
    let sent = match way {
        Way::Send => sender.send(&pattern::payload(sequence, len)).await,
        Way::SendWith => sender.send_with(len, |bytes| pattern::fill(sequence, bytes)).await,
        Way::SendBytes => sender.send_bytes(Bytes::from(pattern::payload(sequence, len))).await,
        Way::TrySend | Way::TrySendWith => {
            let payload = pattern::payload(sequence, len);
            loop {
                let tried = match way {
                    Way::TrySend => sender.try_send(&payload),
                    _ => sender.try_send_with(len, |bytes| bytes.copy_from_slice(&payload)),
                };
                match tried {
                    Err(SendError::Full { queued, limit }) => {
                        assert!(queued >= limit, "full with {queued} of {limit} bytes");
                        sender.flush().await.expect("the reader reads");
                    }
                    other => break other,
                }
            }
        }
    };
    sent.unwrap_or_else(|error| panic!("message {sequence} of {len} bytes by {way:?}: {error}"));
}

/// Sends messages of these sizes, then ends.
async fn send_all(mut sender: Sender, way: Way, sizes: Vec<usize>) {
    for (sequence, len) in (0..).zip(sizes) {
        send(&mut sender, way, sequence, len).await;
    }
    sender.shutdown().await.expect("the reader reads");
}

/// Passes on what comes, in order, until the end.
async fn relay(mut receiver: Receiver, mut sender: Sender, by: Relay) {
    match by {
        Relay::Messages => {
            while let Some(message) = receiver.recv().await.expect("a message") {
                sender.send_message(message).await.expect("the reader reads");
            }
        }
        Relay::Runs => {
            while let Some(run) = receiver.recv_run().await.expect("a run") {
                assert!(run.messages() > 0);
                assert!(!run.is_empty());
                sender.send_run(run).await.expect("the reader reads");
            }
        }
    }
    sender.shutdown().await.expect("the reader reads");
}

/// Checks that exactly messages of these sizes come, and the clean end.
async fn take_all(receiver: &mut Receiver, take: Take, sizes: &[usize]) {
    let mut sequence = 0;
    match take {
        Take::Messages => {
            while let Some(message) = receiver.recv().await.expect("a message") {
                pattern::check(sequence as u64, sizes[sequence], &message);
                sequence += 1;
            }
        }
        Take::Batches => {
            while let Some(mut batch) = receiver.recv_batch().await.expect("a batch") {
                while let Some(frame) = batch.next() {
                    assert_eq!(frame.len(), sizes[sequence]);
                    pattern::check(sequence as u64, sizes[sequence], &frame.bytes());
                    sequence += 1;
                }
            }
        }
    }
    assert_eq!(sequence, sizes.len(), "messages");
}

fn every_way(engine: EngineChoice) {
    block_on(engine, async {
        for way in WAYS {
            for take in TAKES {
                let (mut left, right) = pair(options());
                // Ways that never wait don't wait for the greeting either.
                left.ready().await.expect("greeted");
                let (sender, _keep) = left.split();
                let sending = spawn(send_all(sender, way, sizes()));
                let (_other, mut receiver) = right.split();
                take_all(&mut receiver, take, &sizes()).await;
                sending.await.expect("no panic");
            }
        }
    });
}

fn every_relay(engine: EngineChoice) {
    block_on(engine, async {
        for by in [Relay::Messages, Relay::Runs] {
            for take in TAKES {
                let (source, inbound) = pair(options());
                let (outbound, sink) = pair(options());
                let (sender, _keep) = source.split();
                let sending = spawn(send_all(sender, Way::SendWith, sizes()));
                let (_unused_sender, receiver) = inbound.split();
                let (relay_sender, _unused_receiver) = outbound.split();
                let relaying = spawn(relay(receiver, relay_sender, by));
                let (_other, mut receiver) = sink.split();
                take_all(&mut receiver, take, &sizes()).await;
                sending.await.expect("no panic");
                relaying.await.expect("no panic");
            }
        }
    });
}

/// Before the peer's greeting is there, what every agreement allows may be sent, and no more.
fn before_the_greeting(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        assert_eq!(left.agreement(), None);
        for len in [0, 1023, 1024] {
            left.try_send(&pattern::payload(len as u64, len)).expect("allowed at once");
        }
        assert_eq!(left.try_send(&[0; 1025]), Err(SendError::NotReady));
        assert_eq!(left.try_send(&vec![0; LIMIT as usize]), Err(SendError::NotReady));
        let limit = LIMIT as usize;
        let too_large = SendError::TooLarge { len: limit + 1, limit };
        assert_eq!(left.try_send(&vec![0; limit + 1]), Err(too_large));
        // Waits for the greeting by itself.
        left.send(&pattern::payload(1025, 1025)).await.expect("sent after the greeting");
        for len in [0, 1023, 1024, 1025] {
            let message = right.recv().await.expect("a message").expect("no end");
            pattern::check(len as u64, len, &message);
        }
    });
}

/// A batch learns of the peer's greeting, whoever takes it.
fn a_batch_from_before_the_greeting(engine: EngineChoice) {
    block_on(engine, async {
        for taken_by_another in [true, false] {
            let (left, mut right) = pair(options());
            let (mut sender, mut receiver) = left.split();
            let mut batch = sender.try_batch().expect("open");
            batch.push(b"short").expect("allowed at once");
            assert_eq!(batch.push(&[0; 2000]), Err(SendError::NotReady));
            let reader = taken_by_another.then(|| spawn(async move { receiver.recv().await }));
            for _ in 0..5 {
                yield_now().await;
            }
            let limit = LIMIT as usize;
            let too_large = SendError::TooLarge { len: limit + 1, limit };
            batch.push(&pattern::payload(2000, 2000)).expect("the greeting is there");
            batch.push_with(2001, |bytes| pattern::fill(2001, bytes)).expect("the same");
            assert_eq!(batch.push(&vec![0; limit + 1]), Err(too_large));
            drop(batch);
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"short");
            for len in [2000, 2001] {
                let message = right.recv().await.expect("a message").expect("no end");
                pattern::check(len as u64, len, &message);
            }
            right.send(b"end").await.expect("it reads");
            if let Some(reader) = reader {
                reader.await.expect("no panic").expect("a message").expect("no end");
            }
        }
    });
}

/// The smaller limit of both sides counts, on both sides, and the error names both numbers.
fn too_large(engine: EngineChoice) {
    const SMALL: u32 = 5000;
    block_on(engine, async {
        for (ours, theirs) in [(SMALL, LIMIT), (LIMIT, SMALL), (SMALL, SMALL)] {
            let limits = [ours, theirs].map(|max| ConnectionOptions::new().frame_bytes_max(max));
            let (mut left, mut right) = pair_of(limits[0], limits[1]);
            left.ready().await.expect("greeted");
            right.ready().await.expect("greeted");
            for side in [&mut left, &mut right] {
                refuses_over(side, SMALL as usize).await;
            }
            for (from, to) in [(&mut left, &mut right)] {
                from.send(&pattern::payload(1, SMALL as usize)).await.expect("at the limit");
                let message = to.recv().await.expect("a message").expect("no end");
                pattern::check(1, SMALL as usize, &message);
            }
        }
    });
}

/// Nothing longer than `limit` is accepted in any way, and the connection stays whole.
async fn refuses_over(connection: &mut Connection, limit: usize) {
    let over = vec![0; limit + 1];
    let error = SendError::TooLarge { len: limit + 1, limit };
    assert_eq!(
        error.to_string(),
        format!("a message of {} bytes is over the connection's limit of {limit} bytes", limit + 1)
    );
    assert_eq!(connection.halves().0.message_bytes_max(), limit);
    assert_eq!(connection.send(&over).await, Err(error.clone()));
    assert_eq!(connection.try_send(&over), Err(error.clone()));
    let filled = connection.send_with(limit + 1, |_| panic!("must not be called")).await;
    assert_eq!(filled, Err(error.clone()));
    let (sender, _) = connection.halves();
    let filled = sender.try_send_with(limit + 1, |_| panic!("must not be called"));
    assert_eq!(filled, Err(error.clone()));
    assert_eq!(connection.send_bytes(Bytes::from(over)).await, Err(error.clone()));
    assert_eq!(connection.halves().0.queued_bytes(), 0);

    // A message and a run from a connection with a higher limit.
    let (mut source, mut inbound) = pair(options());
    for by in [Relay::Messages, Relay::Runs] {
        source.send(&vec![0; limit + 1]).await.expect("allowed there");
        let sent = match by {
            Relay::Messages => {
                let message = inbound.recv().await.expect("a message").expect("no end");
                connection.send_message(message).await
            }
            Relay::Runs => {
                let run = inbound.recv_run().await.expect("a run").expect("no end");
                connection.halves().0.send_run(run).await
            }
        };
        assert_eq!(sent, Err(error.clone()), "{by:?}");
    }
}

/// Any order of sizes and ways, both directions at once. The seed reproduces a failure.
fn random_mixes(engine: EngineChoice) {
    let seed = std::env::var("RINGPOST_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("RINGPOST_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    block_on(engine, async {
        for _ in 0..6 {
            let (mut left, mut right) = pair(options());
            left.ready().await.expect("greeted");
            right.ready().await.expect("greeted");
            let mut tasks = Vec::new();
            let ends = [left.split(), right.split()];
            let plans = [(); 2].map(|()| plan(&mut random));
            for ((sender, mut receiver), (ours, theirs)) in ends
                .into_iter()
                .zip([(plans[0].clone(), plans[1].clone()), (plans[1].clone(), plans[0].clone())])
            {
                tasks.push(spawn(send_mixed(sender, ours, random.fork())));
                let take = TAKES[random.usize(..2)];
                let sizes: Vec<usize> = theirs.iter().map(|(_, len)| *len).collect();
                tasks.push(spawn(async move { take_all(&mut receiver, take, &sizes).await }));
            }
            for task in tasks {
                task.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
        }
    });
}

fn plan(random: &mut fastrand::Rng) -> Vec<(Way, usize)> {
    let boundaries = sizes();
    let mut any = || {
        let len = match random.u8(..10) {
            0..6 => random.usize(..300),
            6..8 => random.usize(..20_000),
            8 => boundaries[random.usize(..boundaries.len() - 3)],
            _ => random.usize(..300_000),
        };
        (WAYS[random.usize(..WAYS.len())], len)
    };
    (0..300).map(|_| any()).collect()
}

async fn send_mixed(mut sender: Sender, plan: Vec<(Way, usize)>, mut random: fastrand::Rng) {
    for (sequence, (way, len)) in (0..).zip(plan) {
        send(&mut sender, way, sequence, len).await;
        match random.u8(..20) {
            0 => sender.flush().await.expect("the reader reads"),
            1 => yield_now().await,
            _ => {}
        }
    }
    sender.shutdown().await.expect("the reader reads");
}

/// Payloads are gathered from the threshold on, wherever it lies.
fn gather_threshold(engine: EngineChoice) {
    block_on(engine, async {
        for threshold in [0, 1, 100, usize::MAX] {
            let (left, right) = pair(options().gather_bytes_min(threshold));
            let lens: Vec<usize> = (95..105).chain([0, 1, 2, 70_000]).cycle().take(600).collect();
            let (sender, _keep) = left.split();
            let sending = spawn(send_all(sender, Way::SendBytes, lens.clone()));
            let (_other, mut receiver) = right.split();
            take_all(&mut receiver, Take::Batches, &lens).await;
            sending.await.expect("no panic");
        }
    });
}
