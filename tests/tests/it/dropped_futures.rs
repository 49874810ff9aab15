//! Futures that are dropped at every await point: nothing is lost, doubled or torn.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use ringpost::{Connection, ConnectionOptions, EngineChoice, Listener, Receiver, Sender, spawn};
use ringpost_testkit::{pattern, process};
use ringpost_tests::rig::{ask, block_on, builder, echo, pair, place, poll_at_most, run, until};
use ringpost_tests::{on_both_engines, on_both_engines_alone};

on_both_engines!(dropped_receives, dropped_sends, dropped_accepts);
on_both_engines_alone!(dropped_connects);

/// Lengths that fill queues and sockets, straddle blocks, and are gathered.
const LENS: [usize; 7] = [0, 9, 700, 3000, 1500, 70_000, 140_000];

fn len(sequence: u64) -> usize {
    LENS[usize::try_from(sequence).expect("small") % LENS.len()]
}

/// Polls each receive a random number of times, none included.
async fn receive_in_pieces(receiver: &mut Receiver, count: u64, random: &mut fastrand::Rng) {
    let mut sequence = 0;
    while sequence < count {
        if random.bool() {
            if let Some(message) = poll_at_most(random.u32(..4), receiver.recv()).await {
                let message = message.expect("a message").expect("no end");
                pattern::check(sequence, len(sequence), &message);
                sequence += 1;
            }
        } else if let Some(batch) = poll_at_most(random.u32(..4), receiver.recv_batch()).await {
            let mut batch = batch.expect("messages").expect("no end");
            // The rest of the batch is left for the next call.
            for _ in 0..random.u32(..3) {
                let Some(frame) = batch.next() else { break };
                pattern::check(sequence, len(sequence), &frame.bytes());
                sequence += 1;
            }
        }
        ringpost::yield_now().await;
    }
}

fn dropped_receives(engine: EngineChoice) {
    const COUNT: u64 = 700;
    block_on(engine, async {
        let mut random = fastrand::Rng::with_seed(11);
        let (mut left, right) = pair(ConnectionOptions::new());
        let sending = spawn(async move {
            for sequence in 0..COUNT {
                let body = pattern::payload(sequence, len(sequence));
                left.send(&body).await.expect("the reader reads");
                if sequence % 5 == 0 {
                    left.flush().await.expect("the reader reads");
                }
            }
            left.shutdown().await.expect("the reader reads");
        });
        let (_sender, mut receiver) = right.split();
        receive_in_pieces(&mut receiver, COUNT, &mut random).await;
        assert!(receiver.recv().await.expect("a clean end").is_none());
        sending.await.expect("no panic");
    });
}

/// A dropped send has not been accepted, in any of the ways to send; a dropped flush may be repeated.
async fn send_in_pieces(
    sender: &mut Sender,
    count: u64,
    random: &mut fastrand::Rng,
    dropped: &Cell<u32>,
) {
    let (mut source, mut relayed) = pair(ConnectionOptions::new());
    let mut sequence = 0;
    while sequence < count {
        let body = pattern::payload(sequence, len(sequence));
        let polls = random.u32(..4);
        let sent = match random.u8(..4) {
            0 => poll_at_most(polls, sender.send(&body)).await,
            1 => {
                let fill = |bytes: &mut [u8]| bytes.copy_from_slice(&body);
                poll_at_most(polls, sender.send_with(body.len(), fill)).await
            }
            2 => poll_at_most(polls, sender.send_bytes(Bytes::from(body))).await,
            _ => {
                source.send(&body).await.expect("open");
                let message = relayed.recv().await.expect("open").expect("no end");
                poll_at_most(polls, sender.send_message(message)).await
            }
        };
        match sent {
            Some(sent) => {
                sent.expect("the reader reads");
                sequence += 1;
            }
            None if polls > 0 => dropped.set(dropped.get() + 1),
            None => {}
        }
        if random.u8(..8) == 0 {
            // Whether it was ready makes no difference.
            let _ = poll_at_most(random.u32(..3), sender.flush()).await;
        }
        ringpost::yield_now().await;
    }
    while poll_at_most(2, sender.shutdown()).await.is_none() {
        ringpost::yield_now().await;
    }
}

fn dropped_sends(engine: EngineChoice) {
    const COUNT: u64 = 700;
    let runtime = builder(engine)
        .outbound_bytes_max(32 << 10)
        .inbound_bytes_max(32 << 10)
        .build()
        .expect("a runtime");
    run(&runtime, async {
        let mut random = fastrand::Rng::with_seed(12);
        let (left, right) = pair(ConnectionOptions::new());
        let (mut sender, _keep) = left.split();
        let dropped = Rc::new(Cell::new(0));
        let seen = Rc::clone(&dropped);
        let receiving = spawn(async move {
            let (_sender, mut receiver) = right.split();
            for sequence in 0..COUNT {
                // Now and then not before the queue is full, unless nothing more will be sent.
                if sequence % 64 == 0 && sequence < COUNT - 128 {
                    let before = seen.get();
                    until("a send waits", || seen.get() > before).await;
                }
                let message = receiver.recv().await.expect("a message").expect("no end");
                pattern::check(sequence, len(sequence), &message);
            }
            assert!(receiver.recv().await.expect("a clean end").is_none());
        });
        send_in_pieces(&mut sender, COUNT, &mut random, &dropped).await;
        assert!(dropped.get() > 5, "only {} were dropped while they waited", dropped.get());
        receiving.await.expect("no panic");
    });
}

fn dropped_accepts(engine: EngineChoice) {
    const COUNT: u64 = 60;
    let (_directory, path) = place();
    block_on(engine, async {
        let mut random = fastrand::Rng::with_seed(13);
        let mut listener = Listener::bind(&path).expect("bind");
        let clients: Vec<_> = (0..COUNT)
            .map(|client| {
                let path = path.clone();
                spawn(async move {
                    let mut connection = Connection::connect(&path).await.expect("connect");
                    ask(&mut connection, client, 100).await;
                })
            })
            .collect();
        let mut accepted = 0;
        while accepted < COUNT {
            if let Some(connection) = poll_at_most(random.u32(..3), listener.accept()).await {
                let mut connection = connection.expect("accept");
                accepted += 1;
                spawn(async move {
                    // Echoes one, whose client then goes.
                    let message = connection.recv().await.expect("open").expect("no end");
                    connection.send_message(message).await.expect("open");
                    connection.flush().await.expect("open");
                });
            }
            ringpost::yield_now().await;
        }
        for client in clients {
            client.await.expect("no panic");
        }
    });
}

/// A dropped connect closes what it had; others are served.
fn dropped_connects(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("bind");
        let before = process::descriptors();
        let server = spawn(async move {
            let mut served = Vec::new();
            for _ in 0..40 {
                let connection = listener.accept().await.expect("accept");
                served.push(spawn(async move {
                    let mut connection = connection;
                    // The client may have gone at any moment.
                    while let Ok(Some(message)) = connection.recv().await {
                        let _ = connection.send_message(message).await;
                    }
                }));
            }
            for task in served {
                task.await.expect("no panic");
            }
            listener
        });
        for attempt in 0..40_u32 {
            if let Some(connection) =
                poll_at_most(1 + attempt % 4, Connection::connect(&path)).await
            {
                let mut connection = connection.expect("connect");
                ask(&mut connection, attempt.into(), 1000).await;
            }
        }
        let _listener = server.await.expect("no panic");
        until("descriptors are back", || process::descriptors() == before).await;
        let (mut client, server) = pair(ConnectionOptions::new());
        spawn(echo(server));
        ask(&mut client, 1, 1).await;
    });
}
