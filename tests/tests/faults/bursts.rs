//! More happens between two turns than the completion queue holds: nothing is lost.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use ringpost::{ConnectionOptions, EngineChoice, EngineKind, Listener, Runtime, Spin, spawn};
use ringpost_testkit::child::{isolated, skip};
use ringpost_testkit::{pattern, process};
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::privileges::{
    allow_descriptors, become_user, limit_locked_memory, root_or_skip,
};
use ringpost_tests::rig::{adopt, builder, place, run, sockets, until};

on_both_engines_alone!(messages_on_many_connections, many_connects);

const LEN: usize = 1000;

fn options() -> ConnectionOptions {
    ConnectionOptions::new().length_prefixed(ringpost::LengthPrefix::default())
}

/// A message as the plain profile frames it.
fn framed(sequence: u64) -> Vec<u8> {
    let mut bytes = u32::try_from(LEN).expect("short").to_be_bytes().to_vec();
    bytes.extend(pattern::payload(sequence, LEN));
    bytes
}

/// Six thousand connections that all have a message, and half of them an end, before the runtime looks.
fn messages_on_many_connections(engine: EngineChoice) {
    const COUNT: usize = 6000;
    if !allow_descriptors(2 * COUNT as u64 + 200) {
        return skip("bursts::messages_on_many_connections", "RLIMIT_NOFILE is too low");
    }
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    run(&runtime, async {
        let before = process::descriptors();
        let mut peers = Vec::new();
        let mut tasks = Vec::new();
        for sequence in 0..COUNT as u64 {
            let (ours, theirs) = sockets();
            let mut connection = adopt(ours, options());
            tasks.push(spawn(async move {
                let message = connection.recv().await.expect("a message").expect("no end");
                pattern::check(sequence, LEN, &message);
                let odd = sequence % 2 == 1;
                if odd {
                    assert!(connection.recv().await.expect("an end").is_none());
                }
                connection.send_message(message).await.expect("open");
                connection.flush().await.expect("open");
            }));
            peers.push(theirs);
        }
        // All receives are armed.
        let armed = || ringpost::stats().operations_in_flight >= COUNT as u64;
        until("all receive", armed).await;
        for (sequence, peer) in (0..).zip(&mut peers) {
            peer.write_all(&framed(sequence)).expect("room");
            if sequence % 2 == 1 {
                peer.shutdown(std::net::Shutdown::Write).expect("connected");
            }
        }
        for task in tasks {
            task.await.expect("no panic");
        }
        for (sequence, peer) in (0..).zip(&mut peers) {
            check_answer(sequence, peer);
        }
        drop(peers);
        until("descriptors are back", || process::descriptors() == before).await;
        let stats = ringpost::stats();
        println!("at most {} completions in a turn", stats.completions_per_turn_max);
        assert_eq!(stats.completions_stale, 0);
    });
}

fn check_answer(sequence: u64, peer: &mut UnixStream) {
    peer.set_nonblocking(false).expect("a socket");
    peer.set_read_timeout(Some(ringpost_testkit::peer::LIMIT)).expect("a socket");
    let mut bytes = vec![0; 4 + LEN];
    peer.read_exact(&mut bytes).expect("an answer");
    assert_eq!(bytes, framed(sequence));
}

fn many_connects(engine: EngineChoice) {
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    connect_at_once(&runtime, "bursts::many_connects", 1000);
}

/// The smallest ring that there is: its completion queue has 64 entries.
#[test]
fn many_connects_on_a_tiny_ring() {
    if !root_or_skip("bursts::many_connects_on_a_tiny_ring") {
        return;
    }
    isolated(concat!(module_path!(), "::many_connects_on_a_tiny_ring"), &[], || {
        assert!(allow_descriptors(4000), "root may");
        // A user of its own, as the kernel counts per user.
        limit_locked_memory(24 << 10);
        become_user(61_235);
        let runtime = Runtime::builder().engine(EngineChoice::Uring).spin(Spin::Never).build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                return skip("bursts::many_connects_on_a_tiny_ring", &error.to_string());
            }
        };
        assert_eq!(runtime.engine().kind, EngineKind::Uring);
        connect_at_once(&runtime, "bursts::many_connects_on_a_tiny_ring", 1000);
    });
}

/// So many clients connect, and send, before the runtime looks; all are accepted and served.
fn connect_at_once(runtime: &Runtime, test: &str, count: usize) {
    if !allow_descriptors(2 * count as u64 + 200) {
        return skip(test, "RLIMIT_NOFILE is too low");
    }
    let (directory, path) = place();
    run(runtime, async {
        let before = process::descriptors();
        let listener = Listener::builder().connection(options());
        let mut listener = listener.bind(&path).expect("bind");
        ringpost::yield_now().await;
        let mut peers = Vec::new();
        for sequence in 0..count as u64 {
            // The backlog has room for as many.
            let mut peer = UnixStream::connect(&path).expect("it listens");
            peer.write_all(&framed(sequence)).expect("room");
            peers.push(peer);
        }
        for sequence in 0..count as u64 {
            let mut connection = listener.accept().await.expect("accept");
            let message = connection.recv().await.expect("a message").expect("no end");
            pattern::check(sequence, LEN, &message);
            connection.send_message(message).await.expect("open");
            connection.flush().await.expect("open");
        }
        for (sequence, peer) in (0..).zip(&mut peers) {
            check_answer(sequence, peer);
        }
        drop((peers, listener));
        until("descriptors are back", || process::descriptors() == before).await;
        println!("at most {} completions in a turn", ringpost::stats().completions_per_turn_max);
    });
    assert!(process::names(directory.path()).is_empty());
}
