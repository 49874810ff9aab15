//! How connections end: cleanly, half, abruptly, and with things still under way.

use std::thread;
use std::time::{Duration, Instant};

use ringpost::{
    Closed, Connection, ConnectionOptions, EngineChoice, Listener, RecvError, SendError, Spin,
    sleep, spawn,
};
use ringpost_frame::FrameKind;
use ringpost_testkit::peer::{frame, greeting, message};
use ringpost_testkit::{pattern, process};
use ringpost_tests::rig::{
    ask, block_on, blocking, builder, echo, expect_message, join, pair, place, poll_at_most, raw,
    run, until,
};
use ringpost_tests::{on_both_engines, on_both_engines_alone};

use crate::roles;

on_both_engines!(
    each_direction_ends_alone,
    fin_on_the_wire,
    no_fin_is_an_abort,
    dropped_halves_deliver,
    a_dropped_half_leaves_the_other,
    flush_needs_nobody_else,
    flushed_and_killed,
    a_dropped_listener
);
on_both_engines_alone!(one_that_lingers_keeps_no_other);

fn each_direction_ends_alone(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = pair(ConnectionOptions::new());
        left.send(b"last").await.expect("open");
        left.shutdown().await.expect("open");
        left.shutdown().await.expect("may be repeated");
        for refused in
            [left.send(b"more").await, left.try_send(b""), left.send_with(1, |_| ()).await]
        {
            assert_eq!(refused, Err(SendError::Finished));
        }
        assert_eq!(right.recv().await.expect("a message").expect("no end"), *b"last");
        assert!(right.recv().await.expect("a clean end").is_none());
        assert!(right.recv().await.expect("repeated").is_none());
        assert!(right.recv_batch().await.expect("repeated").is_none());
        // The other direction goes on, with any size.
        for (sequence, len) in [(0, 0), (1, 10), (2, 300_000)] {
            let payload = pattern::payload(sequence, len);
            let sending = spawn(async move {
                right.send(&payload).await.expect("open");
                right
            });
            expect_message(&mut left, sequence, len).await;
            right = sending.await.expect("no panic");
        }
        right.shutdown().await.expect("open");
        assert!(left.recv().await.expect("a clean end").is_none());
    });
}

fn fin_on_the_wire(engine: EngineChoice) {
    block_on(engine, async {
        let (mut connection, mut peer) = raw();
        let peer = thread::spawn(move || {
            peer.greet();
            assert_eq!(peer.read_message(), b"bye");
            assert_eq!(peer.read_frame().expect("FIN").header.kind, FrameKind::Fin);
            // The socket is half closed as well.
            peer.expect_end();
            peer.send(&message(b"still here"));
            peer.send(&frame(FrameKind::Fin, &[]));
        });
        connection.send(b"bye").await.expect("open");
        connection.shutdown().await.expect("open");
        assert_eq!(connection.recv().await.expect("open").expect("no end"), *b"still here");
        assert!(connection.recv().await.expect("a clean end").is_none());
        join(peer).await;
    });
}

fn no_fin_is_an_abort(engine: EngineChoice) {
    block_on(engine, async {
        for (bytes, end) in [
            (vec![], RecvError::Closed(Closed::Aborted)),
            (message(b"x")[..3].to_vec(), RecvError::Truncated),
            (message(b"xyz")[..10].to_vec(), RecvError::Truncated),
        ] {
            let (mut connection, mut peer) = raw();
            peer.send(&greeting());
            peer.send(&message(b"whole"));
            peer.send(&bytes);
            let peer = blocking(move || {
                peer.read_hello();
                peer.shutdown_write();
                peer
            })
            .await;
            assert_eq!(connection.recv().await.expect("open").expect("no end"), *b"whole");
            assert_eq!(connection.recv().await.map(|_| ()), Err(end.clone()));
            assert_eq!(connection.recv_run().await.map(|_| ()), Err(end));
            drop(peer);
        }
    });
}

/// What was accepted leaves after both halves are gone; the peer sees an abort behind it.
fn dropped_halves_deliver(engine: EngineChoice) {
    const COUNT: u64 = 200;
    block_on(engine, async {
        for len in [10, 1000, 20_000] {
            let (left, mut right) = pair(ConnectionOptions::new());
            let (mut sender, receiver) = left.split();
            drop(receiver);
            let sending = spawn(async move {
                for sequence in 0..COUNT {
                    sender.send(&pattern::payload(sequence, len)).await.expect("open");
                }
            });
            for sequence in 0..COUNT {
                expect_message(&mut right, sequence, len).await;
            }
            sending.await.expect("no panic");
            assert_eq!(right.recv().await.map(|_| ()), Err(Closed::Aborted.into()));
        }
    });
}

fn a_dropped_half_leaves_the_other(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = pair(ConnectionOptions::new());
        let (sender, mut left_receiver) = left.split();
        let (mut right_sender, mut right_receiver) = right.split();
        drop(sender);
        right_sender.send(b"one").await.expect("open");
        let message = left_receiver.recv().await.expect("open").expect("no end");
        assert_eq!(message, *b"one");
        drop(left_receiver);
        assert_eq!(right_receiver.recv().await.map(|_| ()), Err(Closed::Aborted.into()));
    });
}

/// A flush ends although nothing comes back, however the runtime waits.
fn flush_needs_nobody_else(engine: EngineChoice) {
    for spin in [Spin::Never, Spin::default(), Spin::Always] {
        let runtime = builder(engine).spin(spin).build().expect("a runtime");
        run(&runtime, async {
            let (mut connection, mut peer) = raw();
            peer.send(&greeting());
            connection.ready().await.expect("greeted");
            let start = Instant::now();
            for round in 0..20 {
                connection.send(&[round; 100]).await.expect("open");
                connection.flush().await.expect("open");
                assert_eq!(connection.halves().0.queued_bytes(), 0);
            }
            connection.shutdown().await.expect("open");
            assert!(start.elapsed() < Duration::from_secs(2), "{spin:?}: {:?}", start.elapsed());
            drop(peer);
        });
    }
}

/// What flush has confirmed arrives, even if the sender is killed right behind it.
fn flushed_and_killed(engine: EngineChoice) {
    const COUNT: u64 = 2000;
    let (_directory, path) = place();
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("bind");
        let name = format!("{engine:?}").to_lowercase();
        let words = [path.to_str().expect("text"), &name, &COUNT.to_string()];
        let mut child = roles::start("sender", &words);
        let mut connection = listener.accept().await.expect("accept");
        let credentials = connection.peer_credentials().expect("a Unix socket");
        assert_eq!(credentials.pid, Some(child.id()));
        for sequence in 0..COUNT {
            expect_message(&mut connection, sequence, 1000).await;
        }
        assert_eq!(connection.recv().await.map(|_| ()), Err(Closed::Aborted.into()));
        let status = blocking(move || child.wait(Duration::from_secs(5))).await;
        assert!(!status.success(), "killed by itself");
    });
}

fn a_dropped_listener(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("bind");
        assert!(listener.is_in_place());
        // The server's greeting comes from the one who accepts.
        let connecting = spawn(Connection::connect(path.clone()));
        spawn(echo(listener.accept().await.expect("accept")));
        let mut client = connecting.await.expect("no panic").expect("connect");
        ask(&mut client, 0, 100).await;
        // A second one is not taken from the queue: it ends with the listener.
        let mut waiting = Connection::from_socket(
            std::os::unix::net::UnixStream::connect(&path).expect("connect").into(),
            ConnectionOptions::new(),
        );
        drop(listener);
        assert!(!path.exists(), "the path is removed");
        for sequence in 1..20 {
            ask(&mut client, sequence, 5000).await;
        }
        assert_eq!(waiting.recv().await.map(|_| ()), Err(Closed::Aborted.into()));
        // The place is free for the next.
        let mut again = Listener::bind(&path).expect("bind");
        let second = spawn(async move { again.accept().await.expect("accept") });
        let client = Connection::connect(&path).await.expect("connect");
        drop(second.await.expect("no panic"));
        drop(client);
        sleep(Duration::from_millis(1)).await;
    });
}

/// A peer that does not read keeps what was dropped open for a while, but only that.
fn one_that_lingers_keeps_no_other(engine: EngineChoice) {
    const OTHERS: usize = 50;
    let kinds = [rustix::net::SocketType::STREAM, rustix::net::SocketType::SEQPACKET];
    block_on(engine, async {
        for (kind, options) in kinds
            .into_iter()
            .zip([ConnectionOptions::new().bytes(), ConnectionOptions::new().seqpacket()])
        {
            let pair = || {
                let flags = rustix::net::SocketFlags::CLOEXEC;
                let family = rustix::net::AddressFamily::UNIX;
                rustix::net::socketpair(family, kind, flags, None).expect("a pair of sockets")
            };
            let before = process::descriptors();
            let (ours, _stuck) = pair();
            let mut connection = Connection::from_socket(ours, options);
            while let Some(sent) = poll_at_most(10, connection.send(&[0; 1000])).await {
                sent.expect("accepted");
            }
            drop(connection);
            let mut peers = Vec::new();
            for _ in 0..OTHERS {
                let (ours, theirs) = pair();
                let mut connection = Connection::from_socket(ours, options);
                connection.send(b"the last word").await.expect("room");
                drop(connection);
                peers.push(theirs);
            }
            // The one that lingers and its peer, and the peers of the others, which could have read all.
            until("the others are closed", || process::descriptors() <= before + 2 + OTHERS).await;
            assert!(ringpost::stats().connections_lingering >= 1, "it lingers: {kind:?}");
        }
    });
}
