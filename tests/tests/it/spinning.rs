//! While a runtime spins, few connections are served by hand and many by the ring: connections come and
//! go across that border, with traffic on them all and a pool that is nearly used up.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use ringpost::{Connection, ConnectionOptions, EngineChoice, Message, Spin};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::privileges::root_or_skip;
use ringpost_tests::rig::{adopt, builder, echo, join, run, runtime, sockets};

on_both_engines!(
    connections_come_and_go,
    adaptive_spins_and_parks,
    messages_are_kept,
    a_sender_without_a_pause_leaves_the_receiver_its_turns
);

/// An echo server for `count` connections on a thread and a runtime of its own.
fn server(engine: EngineChoice, count: usize) -> (thread::JoinHandle<()>, VecDeque<Connection>) {
    let (ours, theirs): (VecDeque<_>, Vec<_>) = (0..count).map(|_| sockets()).unzip();
    let server = thread::spawn(move || {
        let runtime = runtime(engine);
        run(&runtime, async {
            let tasks: Vec<_> = theirs
                .into_iter()
                .map(|socket| ringpost::spawn(echo(adopt(socket, ConnectionOptions::new()))))
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
        });
    });
    let adopted = ours.into_iter().map(|socket| adopt(socket, ConnectionOptions::new()));
    (server, adopted.collect())
}

async fn exchange(connection: &mut Connection, sequence: u64, len: usize) -> Message {
    connection.send_with(len, |bytes| pattern::fill(sequence, bytes)).await.expect("room");
    let reply = connection.recv().await.expect("a reply").expect("no end");
    pattern::check(sequence, len, &reply);
    reply
}

/// Ends a connection; the server does the same with its side.
async fn finish(mut connection: Connection) {
    connection.shutdown().await.expect("the server reads");
    assert!(connection.recv().await.expect("a clean end").is_none());
}

fn connections_come_and_go(engine: EngineChoice) {
    const CONNECTIONS: usize = 6;
    let runtime = builder(engine).spin(Spin::Always).pool_bytes(512 << 10).build().expect("built");
    run(&runtime, async {
        let (server, mut waiting) = server(engine, CONNECTIONS);
        let mut open = Vec::new();
        let mut sequence = 0;
        // One more with every round, then one less.
        for round in 0..2 * CONNECTIONS {
            match waiting.pop_front() {
                Some(connection) => open.push(connection),
                None => finish(open.swap_remove(round % open.len())).await,
            }
            for connection in &mut open {
                for len in [64, 5000, 200_000] {
                    exchange(connection, sequence, len).await;
                    sequence += 1;
                }
            }
        }
        assert!(open.is_empty());
        let stats = ringpost::stats();
        assert_eq!((stats.parks, stats.completions_stale), (0, 0), "{stats:?}");
        server.join().expect("the server ends");
    });
}

fn adaptive_spins_and_parks(engine: EngineChoice) {
    let spin = Spin::Adaptive { max: Duration::from_micros(300) };
    let runtime = builder(engine).spin(spin).build().expect("built");
    run(&runtime, async {
        let (server, mut connections) = server(engine, 1);
        let connection = connections.front_mut().expect("one");
        // Busy for long enough to be served by hand, then idle for long enough to park, a few times.
        for round in 0..5 {
            for sequence in 0..2000 {
                exchange(connection, round * 2000 + sequence, 64).await;
            }
            ringpost::sleep(Duration::from_millis(3)).await;
        }
        finish(connections.remove(0).expect("one")).await;
        assert!(ringpost::stats().parks > 0);
        server.join().expect("the server ends");
    });
}

fn messages_are_kept(engine: EngineChoice) {
    const LEN: usize = 3000;
    let runtime = builder(engine).spin(Spin::Always).pool_bytes(512 << 10).build().expect("built");
    run(&runtime, async {
        let (server, mut connections) = server(engine, 1);
        let connection = connections.front_mut().expect("one");
        let mut kept = Vec::new();
        for sequence in 0..1000 {
            kept.push(exchange(connection, sequence, LEN).await);
        }
        for (sequence, message) in (0..).zip(&kept) {
            pattern::check(sequence, LEN, message);
        }
        // Dropped elsewhere while this thread spins.
        thread::spawn(move || drop(kept)).join().expect("no panic");
        exchange(connection, 1000, LEN).await;
        finish(connections.remove(0).expect("one")).await;
        server.join().expect("the server ends");
    });
}

/// Every send ends its turn before the runtime would spin.
fn a_sender_without_a_pause_leaves_the_receiver_its_turns(engine: EngineChoice) {
    const PATIENCE: Duration = Duration::from_secs(5);
    if !root_or_skip("spinning::a_sender_without_a_pause_leaves_the_receiver_its_turns") {
        return;
    }
    let runtime = builder(engine).spin(Spin::Always).build().expect("built");
    run(&runtime, async {
        let (ours, theirs) = sockets();
        // A full socket would make the runtime spin.
        rustix::net::sockopt::set_socket_send_buffer_size_force(&ours, 256 << 20).expect("root");
        let options = ConnectionOptions::new().bytes();
        let peer = thread::spawn(move || {
            let mut theirs = theirs;
            let mut bytes = vec![0; 1 << 16];
            let (start, mut said) = (Instant::now(), false);
            while theirs.read(&mut bytes).is_ok_and(|count| count > 0) {
                if !said && start.elapsed() > Duration::from_millis(100) {
                    theirs.write_all(b"stop").expect("room");
                    said = true;
                }
            }
        });
        let (mut sender, mut receiver) = adopt(ours, options).split();
        let stop = Rc::new(Cell::new(false));
        let receiving = ringpost::spawn({
            let stop = Rc::clone(&stop);
            async move {
                let message = receiver.recv().await.expect("bytes").expect("no end");
                assert_eq!(message, *b"stop");
                stop.set(true);
            }
        });
        // It spins, and serves the connection by hand from then on.
        for _ in 0..5 {
            ringpost::sleep(Duration::from_millis(5)).await;
        }
        let start = Instant::now();
        while !stop.get() {
            sender.send(&[7; 100]).await.expect("room");
            sender.flush().await.expect("a reader");
            assert!(start.elapsed() < PATIENCE, "what has arrived is not received");
        }
        receiving.await.expect("no panic");
        drop(sender);
        join(peer).await;
    });
}
