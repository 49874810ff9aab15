//! What a message costs in steady state: no allocation, next to no copy, few system calls.
//!
//! One test, because it counts for the whole process: the allocator is replaced.

use ringpost::{Connection, ConnectionOptions, Datagram, EngineChoice, Frame, Stats, spawn};
use ringpost_testkit::child::skip;
use ringpost_tests::counting::Counting;
use ringpost_tests::engines::{EPOLL, URING};
use ringpost_tests::rig::{builder, pair, run};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

#[test]
fn a_message_in_steady_state() {
    for engine in [URING, EPOLL] {
        if let Err(error) = builder(engine).build() {
            skip("a_message_in_steady_state", &error.to_string());
            continue;
        }
        for (connections, len, messages) in
            [(1, 64, 100_000), (64, 64, 100_000), (64, 700, 40_000), (8, 4096, 20_000)]
        {
            measure(engine, connections, len, messages);
        }
        for (len, messages) in [(64, 50_000), (4096, 20_000)] {
            measure_datagrams(engine, len, messages);
        }
    }
}

/// Two sockets with names send packets back and forth, some at a time.
fn measure_datagrams(engine: EngineChoice, len: usize, messages: u64) {
    const WINDOW: u64 = 8;
    let runtime = builder(engine).build().expect("it was built before");
    let (allocations, before, after) = run(&runtime, async {
        let mut left = Datagram::builder().autobind().expect("a name");
        let mut right = Datagram::builder().autobind().expect("a name");
        left.connect_to(right.local_address().expect("a name")).expect("bound");
        let body = [5; 4096];
        let mut count = (0, ringpost::stats());
        let total = messages + messages / 4;
        for round in 0..total / WINDOW {
            // Long enough for every queue and list to have grown.
            if round == messages / 4 / WINDOW {
                count = (ALLOCATOR.allocations(), ringpost::stats());
            }
            for _ in 0..WINDOW {
                left.send(&body[..len]).await.expect("room");
            }
            for _ in 0..WINDOW {
                let packet = right.recv().await.expect("a packet");
                assert_eq!(packet.len(), len);
                right.send_to(packet.sender_name(), &packet).await.expect("room");
            }
            let mut answers = 0;
            while answers < WINDOW {
                let mut batch = left.recv_batch().await.expect("packets");
                while let Some(packet) = batch.next() {
                    assert_eq!(packet.expect("a message").len(), len);
                    answers += 1;
                }
            }
        }
        (ALLOCATOR.allocations() - count.0, count.1, ringpost::stats())
    });
    let received = (after.bytes_received - before.bytes_received) as f64;
    let copied = (after.bytes_copied - before.bytes_copied) as f64 / received;
    let calls = (after.system_calls - before.system_calls) as f64 / messages as f64;
    println!(
        "{engine:?}, datagrams of {len} bytes, {messages} messages: {allocations} allocations, \
         {:.3} % copied, {calls:.3} system calls a message",
        copied * 100.0
    );
    assert!(allocations <= PER_CONNECTION_MAX, "{allocations} allocations");
    assert!(copied < 0.01, "{copied} of all received bytes were copied");
    assert!(calls < 2.0, "{calls} system calls a message");
}

/// Allocations of a connection, both ends together, whatever the number of messages: the first two
/// messages of an end that straddle receive blocks make the lists that all later ones use.
const PER_CONNECTION_MAX: u64 = 8;

/// Counts of a stretch of echoed messages.
struct Cost {
    allocations: u64,
    before: Stats,
    after: Stats,
}

fn measure(engine: EngineChoice, connections: u64, len: usize, messages: u64) {
    let cost = echoed(engine, connections, len, messages);
    // Each message is received twice: by the server, and back by the client.
    let received = (cost.after.bytes_received - cost.before.bytes_received) as f64;
    let copied = (cost.after.bytes_copied - cost.before.bytes_copied) as f64 / received;
    let calls = (cost.after.system_calls - cost.before.system_calls) as f64 / messages as f64;
    println!(
        "{engine:?}, {connections} connections, {len} bytes, {messages} messages: {} allocations, \
         {:.3} % copied, {calls:.3} system calls a message",
        cost.allocations,
        copied * 100.0
    );
    assert!(received >= (2 * messages) as f64 * len as f64);
    let most = PER_CONNECTION_MAX * connections;
    assert!(cost.allocations <= most, "{} allocations, at most {most}", cost.allocations);
    assert!(copied < 0.01, "{copied} of all received bytes were copied");
    if engine == URING && connections == 64 {
        assert!(calls < 1.2, "{calls} system calls a message");
    }
}

fn echoed(engine: EngineChoice, connections: u64, len: usize, messages: u64) -> Cost {
    let runtime = builder(engine).build().expect("it was built before");
    run(&runtime, async {
        let mut clients = Vec::new();
        for _ in 0..connections {
            let (client, server) = pair(ConnectionOptions::new());
            spawn(serve(server));
            clients.push(client);
        }
        // Long enough for every queue and list to have grown.
        let share = messages / connections;
        let tasks: Vec<_> =
            clients.into_iter().map(|client| spawn(ask(client, len, share / 2))).collect();
        let mut clients = Vec::new();
        for task in tasks {
            clients.push(task.await.expect("no panic"));
        }
        // The tasks are made, and the gate is shut, before the count begins.
        let gate = std::rc::Rc::new(std::cell::Cell::new(false));
        let tasks: Vec<_> = clients
            .into_iter()
            .map(|client| {
                let gate = std::rc::Rc::clone(&gate);
                spawn(async move {
                    while !gate.get() {
                        ringpost::yield_now().await;
                    }
                    ask(client, len, share).await
                })
            })
            .collect();
        for _ in 0..10 {
            ringpost::yield_now().await;
        }
        let mut finished = Vec::with_capacity(tasks.len());
        let (start, before) = (ALLOCATOR.allocations(), ringpost::stats());
        gate.set(true);
        for task in tasks {
            finished.push(task.await.expect("no panic"));
        }
        let (end, after) = (ALLOCATOR.allocations(), ringpost::stats());
        drop(finished);
        Cost { allocations: end - start, before, after }
    })
}

/// Echoes until the peer goes.
async fn serve(connection: Connection) {
    let (mut sender, mut receiver) = connection.split();
    while let Ok(Some(mut batch)) = receiver.recv_batch().await {
        while let Some(frame) = batch.next() {
            let sent = match frame.as_slice() {
                Some(body) => sender.send(body).await,
                // In pieces: written in place, which allocates nothing.
                None => sender.send_with(frame.len(), |body| gather(&frame, body)).await,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

fn gather(frame: &Frame<'_>, mut body: &mut [u8]) {
    for chunk in frame.chunks() {
        let (front, rest) = body.split_at_mut(chunk.len());
        front.copy_from_slice(chunk);
        body = rest;
    }
}

/// Keeps a few messages in flight until that many have come back.
async fn ask(mut connection: Connection, len: usize, messages: u64) -> Connection {
    const WINDOW: u64 = 8;
    let body = [5; 4096];
    let (sender, receiver) = connection.halves();
    let mut sent = WINDOW.min(messages);
    for _ in 0..sent {
        sender.send(&body[..len]).await.expect("the server reads");
    }
    let mut received = 0;
    while received < messages {
        let mut batch = receiver.recv_batch().await.expect("open").expect("no end");
        while let Some(frame) = batch.next() {
            assert_eq!(frame.len(), len);
            received += 1;
            if sent < messages {
                sent += 1;
                sender.send(&body[..len]).await.expect("the server reads");
            }
        }
    }
    connection
}
