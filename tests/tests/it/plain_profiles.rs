//! Peers that know nothing of ringpost: length-prefixed messages and bare bytes, by hand.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use ringpost::{
    ByteOrder, ConnectionOptions, EngineChoice, LengthPrefix, PrefixWidth, ProtocolError,
    RecvError, SendError,
};
use ringpost_testkit::{pattern, peer};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{adopt, block_on, echo, join, pair, sockets};

on_both_engines!(
    every_length_prefix,
    batches_with_every_length_prefix,
    a_length_over_the_limit,
    cut_short,
    bare_bytes,
    other_framing
);

fn prefixes() -> Vec<LengthPrefix> {
    let orders = |width| ByteOrder::ALL.map(|byte_order| LengthPrefix { width, byte_order });
    PrefixWidth::ALL.into_iter().flat_map(orders).collect()
}

/// The length as the peer writes it.
fn encode(prefix: LengthPrefix, len: u64) -> Vec<u8> {
    let width = prefix.width.bytes();
    match prefix.byte_order {
        ByteOrder::Little => len.to_le_bytes()[..width].to_vec(),
        _ => len.to_be_bytes()[8 - width..].to_vec(),
    }
}

fn options(prefix: LengthPrefix) -> ConnectionOptions {
    ConnectionOptions::new().length_prefixed(prefix).frame_bytes_max(200_000)
}

fn raw_peer(socket: &UnixStream) {
    socket.set_read_timeout(Some(peer::LIMIT)).expect("a socket");
    socket.set_write_timeout(Some(peer::LIMIT)).expect("a socket");
}

fn every_length_prefix(engine: EngineChoice) {
    for prefix in prefixes() {
        let lens = [0, 1, 255, 256, 4096, 65_535];
        let longer: &[usize] =
            if prefix.width == PrefixWidth::U16 { &[] } else { &[65_536, 200_000] };
        let lens: Vec<usize> = lens.into_iter().chain(longer.iter().copied()).collect();
        block_on(engine, async {
            let (ours, mut theirs) = sockets();
            let client = thread::spawn(move || {
                raw_peer(&theirs);
                for (sequence, len) in (0..).zip(lens) {
                    let payload = pattern::payload(sequence, len);
                    theirs.write_all(&encode(prefix, len as u64)).expect("taken");
                    theirs.write_all(&payload).expect("taken");
                    let mut answer = vec![0; prefix.width.bytes() + len];
                    theirs.read_exact(&mut answer).expect("an echo");
                    let (length, body) = answer.split_at(prefix.width.bytes());
                    assert_eq!(length, encode(prefix, len as u64));
                    pattern::check(sequence, len, body);
                }
                theirs.shutdown(Shutdown::Write).expect("connected");
                assert_eq!(theirs.read(&mut [0]).expect("an end"), 0);
            });
            echo(adopt(ours, options(prefix))).await;
            join(client).await;
        });
    }
}

/// In one batch, by both ways to push: what the peer reads is the same as message by message.
fn batches_with_every_length_prefix(engine: EngineChoice) {
    for prefix in prefixes() {
        let limit = prefix.len_max().min(200_000) as usize;
        let lens = [0, 1, 7, 8, 255, 256, 300, 511, 512, 4096, 65_535, 3, limit];
        block_on(engine, async {
            let (ours, mut theirs) = sockets();
            let client = thread::spawn(move || {
                raw_peer(&theirs);
                let mut bytes = Vec::new();
                theirs.read_to_end(&mut bytes).expect("an end");
                bytes
            });
            let (mut sender, _receiver) = adopt(ours, options(prefix)).split();
            let mut expected = Vec::new();
            for (sequence, len) in (0..).zip(lens.into_iter().cycle().take(300)) {
                let payload = pattern::payload(sequence, len);
                expected.extend_from_slice(&encode(prefix, len as u64));
                expected.extend_from_slice(&payload);
                let mut batch = sender.batch().await.expect("an open connection");
                let too_large = Err(SendError::TooLarge { len: limit + 1, limit });
                assert_eq!(batch.push_with(limit + 1, |_| panic!("not called")), too_large);
                if sequence % 2 == 0 {
                    batch.push(&payload).expect("room");
                } else {
                    batch.push_with(len, |bytes| bytes.copy_from_slice(&payload)).expect("room");
                }
                // More of them behind it, in the same block where they fit.
                for body in [b"" as &[u8], b"x", b"further"] {
                    if batch.has_room() {
                        batch
                            .push_with(body.len(), |bytes| bytes.copy_from_slice(body))
                            .expect("room");
                        expected.extend_from_slice(&encode(prefix, body.len() as u64));
                        expected.extend_from_slice(body);
                    }
                }
            }
            sender.shutdown().await.expect("an open connection");
            let received = join(client).await;
            assert!(received == expected, "{prefix:?}: {} bytes", received.len());
        });
    }
}

fn a_length_over_the_limit(engine: EngineChoice) {
    for prefix in prefixes().into_iter().filter(|prefix| prefix.width != PrefixWidth::U16) {
        let greatest = if prefix.width == PrefixWidth::U32 { u32::MAX.into() } else { u64::MAX };
        for len in [200_001, greatest] {
            block_on(engine, async {
                let (ours, mut theirs) = sockets();
                raw_peer(&theirs);
                let mut connection = adopt(ours, options(prefix));
                theirs.write_all(&encode(prefix, len)).expect("taken");
                let error = connection.recv().await.map(|_| ()).expect_err("too long");
                let source = ProtocolError::FrameTooLarge { len, limit: 200_000 };
                assert_eq!(error, RecvError::Protocol { position: 0, source });
                // No REJECT here: the peer would not know it.
                drop(connection);
                let (end, mut bytes) = (join(thread::spawn(move || {
                    let mut bytes = Vec::new();
                    (theirs.read_to_end(&mut bytes).is_ok(), bytes)
                })))
                .await;
                assert!(end);
                assert!(bytes.drain(..).next().is_none());
            });
        }
        block_on(engine, async {
            let (mut left, _right) = pair(options(prefix));
            let error = SendError::TooLarge { len: 200_001, limit: 200_000 };
            assert_eq!(left.send(&vec![0; 200_001]).await, Err(error));
        });
    }
    block_on(engine, async {
        let prefix = LengthPrefix { width: PrefixWidth::U16, byte_order: ByteOrder::Little };
        let (mut left, _right) = pair(options(prefix));
        let error = SendError::TooLarge { len: 65_536, limit: 65_535 };
        assert_eq!(left.send(&vec![0; 65_536]).await, Err(error));
        assert_eq!(left.halves().0.go_away(), Err(SendError::OtherProfile));
    });
}

fn cut_short(engine: EngineChoice) {
    for prefix in prefixes() {
        let whole = [encode(prefix, 3), b"abc".to_vec()].concat();
        for cut in 1..whole.len() {
            block_on(engine, async {
                let (ours, mut theirs) = sockets();
                let mut connection = adopt(ours, options(prefix));
                theirs.write_all(&whole).expect("taken");
                theirs.write_all(&whole[..cut]).expect("taken");
                drop(theirs);
                assert_eq!(connection.recv().await.expect("one").expect("no end"), *b"abc");
                assert_eq!(connection.recv().await.map(|_| ()), Err(RecvError::Truncated), "{cut}");
            });
        }
    }
}

fn bare_bytes(engine: EngineChoice) {
    const LEN: usize = 3 << 20;
    block_on(engine, async {
        let (ours, theirs) = sockets();
        raw_peer(&theirs);
        let mut writing = theirs.try_clone().expect("a descriptor");
        let writer = thread::spawn(move || {
            for part in pattern::payload(0, LEN).chunks(77_777) {
                writing.write_all(part).expect("taken");
            }
            writing.shutdown(Shutdown::Write).expect("connected");
        });
        let mut reading = theirs;
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            reading.read_to_end(&mut bytes).expect("an echo and an end");
            pattern::check(0, LEN, &bytes);
        });
        echo(adopt(ours, ConnectionOptions::new().bytes())).await;
        join(writer).await;
        join(reader).await;
    });
}

/// Frames go on as they are only to a connection with the same framing.
fn other_framing(engine: EngineChoice) {
    block_on(engine, async {
        let (mut source, mut inbound) = pair(ConnectionOptions::new());
        let (mut outbound, mut sink) = pair(options(prefixes()[0]));
        source.send(b"native").await.expect("open");
        let run = inbound.recv_run().await.expect("a run").expect("no end");
        assert_eq!(outbound.halves().0.send_run(run).await, Err(SendError::OtherProfile));
        // Messages can be passed on.
        source.send(b"native").await.expect("open");
        let message = inbound.recv().await.expect("a message").expect("no end");
        outbound.send_message(message).await.expect("open");
        assert_eq!(sink.recv().await.expect("open").expect("no end"), *b"native");
    });
}
