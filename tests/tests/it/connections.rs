//! One connection and very many.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Instant;

use ringpost::{Connection, ConnectionOptions, EngineChoice, Listener, spawn};
use ringpost_testkit::child::{Child, skip};
use ringpost_testkit::process;
use ringpost_tests::privileges::allow_descriptors;
use ringpost_tests::rig::{ask, block_on, blocking, builder, echo, place, run, until};
use ringpost_tests::{on_both_engines, on_both_engines_alone};

use crate::roles;

on_both_engines!(one, two, sixty_four, a_thousand);
on_both_engines_alone!(ten_thousand_idle);

fn one(engine: EngineChoice) {
    all_echo(engine, 1, 500);
}

fn two(engine: EngineChoice) {
    all_echo(engine, 2, 300);
}

fn sixty_four(engine: EngineChoice) {
    all_echo(engine, 64, 50);
}

fn a_thousand(engine: EngineChoice) {
    if !allow_descriptors(4096) {
        return skip("connections::a_thousand", "RLIMIT_NOFILE is below 4096");
    }
    all_echo(engine, 1000, 5);
}

/// Connections open at the same time, each with its own traffic; the server has its own thread.
fn all_echo(engine: EngineChoice, count: usize, messages: u64) {
    let (_directory, path) = place();
    let bound = path.clone();
    let (ready, wait) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        block_on(engine, async {
            let mut listener = Listener::bind(&bound).expect("bind");
            ready.send(()).expect("the test waits");
            let mut tasks = Vec::new();
            for _ in 0..count {
                tasks.push(spawn(echo(listener.accept().await.expect("accept"))));
            }
            for task in tasks {
                task.await.expect("no panic");
            }
        });
    });
    wait.recv().expect("the server is up");
    block_on(engine, async {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(Connection::connect(&path).await.expect("connect"));
        }
        let clients: Vec<_> = (0_u64..)
            .zip(connections)
            .map(|(client, connection)| spawn(converse(connection, client, messages)))
            .collect();
        for client in clients {
            client.await.expect("no panic");
        }
    });
    server.join().expect("no panic");
}

async fn converse(mut connection: Connection, client: u64, messages: u64) {
    for message in 0..messages {
        let sequence = client * messages + message;
        let len = usize::try_from(sequence % 700).expect("small");
        ask(&mut connection, sequence, len).await;
    }
    connection.shutdown().await.expect("the server reads");
    assert!(connection.recv().await.expect("a clean end").is_none());
}

/// Many open connections that say nothing cost next to nothing, and leave nothing behind.
fn ten_thousand_idle(engine: EngineChoice) {
    const COUNT: usize = 10_000;
    // More than are accepted in one turn, so that the free lists are as long as they get.
    const WARM: usize = 1_100;
    if !allow_descriptors(COUNT as u64 + 1_500) {
        return skip("connections::ten_thousand_idle", "RLIMIT_NOFILE is too low");
    }
    let (_directory, path) = place();
    // The smallest pool, which the first connections touch whole.
    let runtime = builder(engine).pool_bytes(512 << 10).build().expect("a runtime");
    run(&runtime, async {
        let mut listener = Listener::bind(&path).expect("bind");
        let mut warm = open(&path, WARM);
        let mut clients = open(&path, COUNT);
        let before = process::descriptors();
        warm.tell("start");
        drop(serve_once(&mut listener, WARM).await);
        drop(greet_at_once(WARM));
        warm.tell("close");
        let warm = blocking(move || {
            assert_eq!(warm.hear(), "closed");
            warm
        })
        .await;
        until("descriptors are back", || process::descriptors() == before).await;

        touch_pool().await;
        let base = process::anonymous_bytes();
        clients.tell("start");
        let start = Instant::now();
        let connections = serve_once(&mut listener, COUNT).await;
        let each = (process::anonymous_bytes() - base) / COUNT as u64;
        println!("{COUNT} connections in {:?}, {each} bytes each", start.elapsed());
        assert_eq!(process::descriptors(), before + COUNT);
        assert!(each < IDLE_BYTES_MAX, "{each} bytes for an idle connection");

        clients.tell("close");
        let clients = blocking(move || {
            assert_eq!(clients.hear(), "closed");
            clients
        })
        .await;
        drop(connections);
        until("descriptors are back", || process::descriptors() == before).await;
        drop((warm, clients));
        assert_eq!(ringpost::stats().completions_stale, 0);
    });
}

/// User memory that an idle connection may take, the vector that holds it included.
const IDLE_BYTES_MAX: u64 = 1024;

/// Sends several times the pool's size through it, which is none of a connection's memory.
async fn touch_pool() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let writer = thread::spawn(move || (&theirs).write_all(&vec![1; 4 << 20]).expect("read"));
    let mut reader = Connection::from_socket(ours.into(), ConnectionOptions::new().bytes());
    while reader.recv().await.expect("bytes").is_some() {}
    writer.join().expect("no panic");
}

fn open(path: &Path, count: usize) -> Child {
    let path = path.to_str().expect("text");
    roles::start("clients", &[path, &count.to_string()])
}

/// Connections of socket pairs whose greetings wait for the same turn: the free lists get as long as they can.
fn greet_at_once(count: usize) -> Vec<Connection> {
    let greet = |_| {
        let (ours, _) = UnixStream::pair().expect("a pair");
        Connection::from_socket(ours.into(), ConnectionOptions::new())
    };
    (0..count).map(greet).collect()
}

/// Accepts so many connections and answers one message on each.
async fn serve_once(listener: &mut Listener, count: usize) -> Vec<Connection> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(listener.accept().await.expect("accept"));
    }
    for connection in &mut connections {
        let message = connection.recv().await.expect("a message").expect("no end");
        connection.send_message(message).await.expect("the client reads");
        // Else all answers of a turn would be queued at once, each in a block of its own.
        connection.flush().await.expect("the client reads");
    }
    connections
}
