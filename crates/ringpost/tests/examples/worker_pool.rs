//! The worker pool: right answers in order, whatever else goes on.

use std::io::Write;

use futures_util::future::{join, join_all};
use ringpost::{Closed, Connection, RecvError};
use ringpost_testkit::{pattern, peer};
use rustix::process::Signal;

use crate::clients::{block_on, connect, plain, write_until_stuck};
use crate::program::{Server, engines};

/// 64-bit FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Sends `count` messages and checks their answers, both at the same time.
async fn ask(connection: &mut Connection, first: u64, count: u64) {
    let len = |sequence: u64| match sequence % 10 {
        9 => 50_000,
        rest => usize::try_from(rest * rest * 40).expect("small"),
    };
    let (sender, receiver) = connection.halves();
    let asking = async {
        for sequence in first..first + count {
            sender.send(&pattern::payload(sequence, len(sequence))).await.expect("accepted");
        }
    };
    let listening = async {
        for sequence in first..first + count {
            let answer = receiver.recv().await.expect("no error").expect("an answer");
            let expected = checksum(&pattern::payload(sequence, len(sequence)));
            assert_eq!(answer, expected.to_le_bytes(), "message {sequence}");
        }
    };
    join(asking, listening).await;
}

#[test]
fn many_clients_get_right_answers_in_order() {
    assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8, "as published");
    for engine in engines() {
        for workers in ["1", "3"] {
            let server = Server::start("worker_pool", &["--engine", engine, "--workers", workers]);
            block_on(async {
                let clients = (0..30).map(async |client| {
                    let mut connection = connect(&server.path).await;
                    ask(&mut connection, client * 1000, 40).await;
                    connection.shutdown().await.expect("taken");
                    assert!(connection.recv().await.expect("no error").is_none(), "a clean end");
                });
                join_all(clients).await;
            });
            server.finish_by(Signal::TERM);
        }
    }
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let server = Server::start("worker_pool", &["--workers", "2"]);
    let mut greedy = plain(&server.path);
    greedy.write_all(&peer::greeting()).expect("room");
    write_until_stuck(&greedy, &peer::message(b"0123456").repeat(4096));
    block_on(async {
        let mut connection = connect(&server.path).await;
        ask(&mut connection, 0, 100).await;
    });
    // It does not hold up the end either.
    server.finish_by(Signal::TERM);
}

#[test]
fn one_client_too_many_learns_why() {
    let server = Server::start("worker_pool", &[]);
    block_on(async {
        let mut open = Vec::new();
        for client in 0..64 {
            let mut connection = connect(&server.path).await;
            ask(&mut connection, client, 1).await;
            open.push(connection);
        }
        let mut refused = connect(&server.path).await;
        match refused.recv().await {
            Err(RecvError::Closed(Closed::Rejected { reason })) => {
                assert!(reason.contains("64 connections"), "{reason}");
            }
            other => panic!("a reason, not: {other:?}"),
        }
        for (client, connection) in (0..).zip(&mut open) {
            ask(connection, client, 2).await;
        }
        // A place becomes free; the server may notice a little later than the client.
        let mut last = open.pop().expect("64 of them");
        last.shutdown().await.expect("taken");
        assert!(last.recv().await.expect("no error").is_none());
        drop(last);
        loop {
            let mut next = connect(&server.path).await;
            let sent = next.send(b"").await;
            if sent.is_ok() && next.recv().await.is_ok_and(|answer| answer.is_some()) {
                break;
            }
        }
    });
    server.finish_by(Signal::TERM);
}

#[test]
fn a_signal_ends_it_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::start("worker_pool", &[]);
        block_on(async {
            let mut connection = connect(&server.path).await;
            ask(&mut connection, 0, 3).await;
            server.program.signal(signal);
            assert!(connection.recv().await.expect("no error").is_none(), "a clean end");
        });
        server.finish_by(signal);
    }
}
