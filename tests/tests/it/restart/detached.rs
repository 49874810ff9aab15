//! Connections that are taken off their runtime and go on, with the stream cut at every byte.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use ringpost::{
    Closed, Connection, ConnectionOptions, DetachErrorReason, EngineChoice, LengthPrefix, SendError,
};
use ringpost_frame::FrameKind;
use ringpost_testkit::peer::{RawPeer, frame, greeting, message};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{self, adopt, block_on, pair, pair_of, poll_at_most, sockets};

on_both_engines!(
    native_at_every_byte,
    plain_at_every_byte,
    in_pieces,
    to_another_runtime,
    what_can_not_be_detached,
    going_away_is_awaited,
);

const FLUSH: Duration = Duration::from_secs(5);

/// Detaches and attaches twice, so that what goes along once does so again.
async fn move_twice(connection: Connection) -> Connection {
    let once = connection.detach(FLUSH).await.expect("quiet").attach();
    once.detach(FLUSH).await.expect("quiet").attach()
}

/// Receives what is there.
async fn receive(connection: &mut Connection, messages: &mut Vec<Vec<u8>>) -> bool {
    loop {
        match poll_at_most(10, connection.recv()).await {
            Some(Ok(Some(message))) => messages.push(message.into_owned()),
            Some(Ok(None)) => return true,
            Some(Err(error)) => panic!("{error}"),
            None => return false,
        }
    }
}

/// Receives up to the clean end.
async fn receive_all(connection: &mut Connection, messages: &mut Vec<Vec<u8>>) {
    while let Some(message) = connection.recv().await.expect("no error") {
        messages.push(message.into_owned());
    }
}

fn native_at_every_byte(engine: EngineChoice) {
    let expected: [&[u8]; 3] = [b"first", &[7; 60], b""];
    let script = [
        message(expected[0]),
        frame(FrameKind::Unknown(200), &[1; 20]),
        message(expected[1]),
        frame(FrameKind::Ping, b"are you there"),
        frame(FrameKind::GoAway, &u64::MAX.to_le_bytes()),
        message(expected[2]),
        frame(FrameKind::Fin, &[]),
    ]
    .concat();
    block_on(engine, async {
        for cut in 0..=script.len() {
            for decoded in [false, true] {
                let (mut connection, mut peer) = rig::raw();
                peer.send(&greeting());
                peer.send(&script[..cut]);
                connection.ready().await.expect("greeted");
                let agreement = connection.agreement();
                let mut messages = Vec::new();
                if decoded {
                    receive(&mut connection, &mut messages).await;
                }
                let mut connection = move_twice(connection).await;
                assert_eq!(connection.agreement(), agreement);
                peer.send(&script[cut..]);
                receive_all(&mut connection, &mut messages).await;
                assert_eq!(messages, expected, "cut at {cut}, decoded {decoded}");
                let (sender, receiver) = connection.halves();
                assert!(receiver.peer_is_going_away());
                sender.send(b"answer").await.expect("open");
                sender.shutdown().await.expect("open");
                peer.read_hello();
                let pong = peer.read_frame().expect("PONG");
                assert_eq!(
                    (pong.header.kind, &pong.body[..]),
                    (FrameKind::Pong, &b"are you there"[..])
                );
                assert_eq!(peer.read_message(), b"answer");
                assert_eq!(peer.read_frame().expect("FIN").header.kind, FrameKind::Fin);
            }
        }
    });
}

fn plain_at_every_byte(engine: EngineChoice) {
    let expected: [&[u8]; 3] = [b"first", b"", &[7; 60]];
    let script: Vec<u8> = expected
        .iter()
        .flat_map(|body| {
            let len = u32::try_from(body.len()).expect("short");
            [&len.to_be_bytes(), *body].concat()
        })
        .collect();
    block_on(engine, async {
        for cut in 0..=script.len() {
            for decoded in [false, true] {
                let (ours, theirs) = sockets();
                let options = ConnectionOptions::new().length_prefixed(LengthPrefix::default());
                let mut connection = adopt(ours, options);
                let mut peer = RawPeer::new(theirs);
                peer.send(&script[..cut]);
                let mut messages = Vec::new();
                if decoded {
                    receive(&mut connection, &mut messages).await;
                }
                let mut connection = move_twice(connection).await;
                peer.send(&script[cut..]);
                peer.shutdown_write();
                receive_all(&mut connection, &mut messages).await;
                assert_eq!(messages, expected, "cut at {cut}, decoded {decoded}");
            }
        }
    });
}

/// A long message of which pieces lie in several blocks, and more than the inbound bound behind it.
fn in_pieces(engine: EngineChoice) {
    block_on(engine, async {
        let (mut client, mut server) = pair(ConnectionOptions::new());
        let long = vec![3; 3 << 20];
        let writing = ringpost::spawn(async move {
            for number in 0..20u8 {
                client.send(&[number; 30_000]).await.expect("open");
            }
            client.send(&long).await.expect("open");
            client.send(b"last").await.expect("open");
            client.shutdown().await.expect("open");
            client
        });
        let mut messages = Vec::new();
        let mut moved = 0;
        loop {
            let received = match poll_at_most(3, server.recv()).await {
                Some(received) => received.expect("no error"),
                None => {
                    server = move_twice(server).await;
                    moved += 1;
                    assert!(moved < 1_000_000, "no progress");
                    continue;
                }
            };
            match received {
                Some(message) => messages.push(message.into_owned()),
                None => break,
            }
        }
        let lengths: Vec<usize> = messages.iter().map(Vec::len).collect();
        assert_eq!(lengths, [vec![30_000; 20], vec![3 << 20, 4]].concat());
        for (number, message) in messages.iter().enumerate().take(20) {
            assert!(message.iter().all(|byte| usize::from(*byte) == number), "message {number}");
        }
        assert!(messages[20].iter().all(|byte| *byte == 3));
        writing.await.expect("no panic");
    });
}

fn to_another_runtime(engine: EngineChoice) {
    let (client, server) = sockets();
    let (give, taken) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        block_on(engine, async {
            let detached: ringpost::DetachedConnection = taken.recv().expect("sent");
            rig::echo(detached.attach()).await;
        });
    });
    block_on(engine, async {
        let mut client = adopt(client, ConnectionOptions::new());
        let mut server = adopt(server, ConnectionOptions::new());
        client.send(b"asked here").await.expect("open");
        server.ready().await.expect("greeted");
        let detached = server.detach(FLUSH).await.expect("quiet");
        give.send(detached).expect("the thread lives");
        assert_eq!(&client.recv().await.expect("open").expect("an answer")[..], b"asked here");
        rig::ask(&mut client, 1, 100_000).await;
        client.shutdown().await.expect("open");
        assert!(client.recv().await.expect("open").is_none(), "a clean end");
    });
    other.join().expect("no panic");
}

fn what_can_not_be_detached(engine: EngineChoice) {
    block_on(engine, async {
        // A peer that does not read: the connection is given back, and nothing is lost.
        let (mut client, mut server) = pair(ConnectionOptions::new());
        client.ready().await.expect("greeted");
        server.ready().await.expect("greeted");
        let mut sent = 0u32;
        while let Some(result) = poll_at_most(5, server.send(&[5; 50_000])).await {
            result.expect("open");
            sent += 1;
        }
        let error = server.detach(Duration::from_millis(1)).await.expect_err("unread");
        assert!(
            matches!(error.reason, DetachErrorReason::NotFlushed { bytes: 1.., .. }),
            "{error}"
        );
        let mut server = *error.connection;
        for _ in 0..sent {
            let message = client.recv().await.expect("open").expect("a message");
            assert!(message.len() == 50_000 && message.iter().all(|byte| *byte == 5));
        }
        server.send(b"goes on").await.expect("open");
        assert_eq!(&client.recv().await.expect("open").expect("a message")[..], b"goes on");
        // Once it is read, it can.
        let mut server = server.detach(FLUSH).await.expect("quiet").attach();
        // One that has said that it is finished stays so.
        server.shutdown().await.expect("open");
        let mut server = server.detach(FLUSH).await.expect("quiet").attach();
        assert_eq!(server.send(b"more").await, Err(SendError::Finished));
        assert!(client.recv().await.expect("open").is_none());
        client.send(b"still").await.expect("open");
        assert_eq!(&server.recv().await.expect("open").expect("a message")[..], b"still");
        // One whose peer is gone.
        drop(client);
        let end = server.recv().await.expect_err("no FIN");
        let error = server.detach(FLUSH).await.expect_err("over");
        assert!(error.to_string().contains(&end.to_string()), "{error}");
        // One that passes descriptors stays; one whose peer does not want any is like all others.
        let passing = ConnectionOptions::new().descriptors_max(4);
        let (mut client, server) = pair(passing);
        client.send(b"stays").await.expect("open");
        let error = server.detach(FLUSH).await.expect_err("descriptors");
        assert!(matches!(error.reason, DetachErrorReason::PassesDescriptors), "{error}");
        let mut server = *error.connection;
        assert_eq!(&server.recv().await.expect("open").expect("a message")[..], b"stays");
        let (mut client, server) = pair_of(ConnectionOptions::new(), passing);
        client.send(b"moves").await.expect("open");
        let mut server = server.detach(FLUSH).await.expect("quiet").attach();
        assert_eq!(&server.recv().await.expect("open").expect("a message")[..], b"moves");
        // One whose peer says nothing.
        let (ours, _theirs) = sockets();
        let silent = adopt(ours, ConnectionOptions::new().handshake_ms_max(10));
        let error = silent.detach(FLUSH).await.expect_err("no greeting");
        assert!(
            matches!(
                error.reason,
                DetachErrorReason::Closed(Closed::HandshakeTimeout { milliseconds: 10 })
            ),
            "{error}"
        );
    });
}

fn going_away_is_awaited(engine: EngineChoice) {
    block_on(engine, async {
        let (mut client, mut server) = pair(ConnectionOptions::new());
        let waiting = ringpost::spawn(async move {
            {
                let (sender, receiver) = client.halves();
                let mut received = pin!(receiver.recv());
                let mut going_away = pin!(sender.peer_going_away());
                poll_fn(|context| {
                    assert!(received.as_mut().poll(context).is_pending(), "no message");
                    going_away.as_mut().poll(context)
                })
                .await;
            }
            client
        });
        server.ready().await.expect("greeted");
        rig::until("the client waits", || !waiting.is_finished()).await;
        server.go_away().expect("open");
        let mut client = waiting.await.expect("no panic");
        client.halves().0.peer_going_away().await;
        client.shutdown().await.expect("open");
        assert!(server.recv().await.expect("open").is_none());
    });
}
