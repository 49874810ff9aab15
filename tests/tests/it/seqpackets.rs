//! Connections over packets (SOCK_SEQPACKET): what streams do, one frame a packet, and peers that cut frames.

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use ringpost::{
    ByteOrder, Closed, Connection, ConnectionOptions, EngineChoice, HelloError, LengthPrefix,
    Listener, PrefixWidth, ProtocolError, RecvError, SendError, spawn, timeout,
};
use ringpost_frame::{FrameKind, Hello};
use ringpost_testkit::peer::{frame, greeting, message};
use ringpost_testkit::{pattern, process};
use ringpost_tests::privileges::refuse_calls;
use ringpost_tests::rig::{
    Bystander, ask, block_on, echo, expect_message, place, poll_at_most, run, runtime,
    shared_blocks_or_skip, until,
};
use ringpost_tests::{on_both_engines, on_both_engines_alone};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};

on_both_engines!(
    every_size,
    many_messages,
    every_way_to_send,
    from_streams_and_to_streams,
    clean_ends_and_aborts,
    what_came_before_a_reset,
    other_profiles,
    bad_greetings,
    packets_that_are_not_one_frame,
    an_end_in_a_batch_is_the_end,
    a_packet_over_the_limit,
    ping_gets_its_pong,
    pings_to_a_full_queue,
    one_frame_in_each_packet,
    a_reader_that_lags,
    batches_to_a_reader_that_lags,
    a_run_to_a_reader_that_lags,
    messages_that_no_packet_holds,
    what_fills_a_message_may_do,
    an_accepted_message_that_can_not_leave,
    futures_dropped_at_every_poll,
    a_stream_client,
    a_policy,
    a_packet_connection_is_not_detached
);
on_both_engines_alone!(no_memory_to_send, nothing_is_left_behind, the_end_of_a_runtime);

fn options() -> ConnectionOptions {
    ConnectionOptions::new()
}

fn sockets() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("a pair of sockets")
}

/// Two connected connections of the current runtime.
fn pair(options: ConnectionOptions) -> (Connection, Connection) {
    let (left, right) = sockets();
    (Connection::from_socket(left, options), Connection::from_socket(right, options))
}

/// A peer that writes packets by hand, blocking, from another thread.
struct Peer(OwnedFd);

impl Peer {
    fn send(&self, packet: &[u8]) {
        let sent = rustix::net::send(&self.0, packet, SendFlags::NOSIGNAL).expect("it reads");
        assert_eq!(sent, packet.len());
    }

    /// The next packet; empty at the end. The runtime goes on meanwhile.
    async fn read(&self) -> Vec<u8> {
        let mut packet = None;
        until("a packet comes", || {
            packet = self.look();
            packet.is_some()
        })
        .await;
        packet.expect("just seen")
    }

    fn look(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 20];
        match rustix::net::recv(&self.0, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((_, count)) => bytes.truncate(count),
            // It closed without having read everything.
            Err(rustix::io::Errno::CONNRESET) => bytes.clear(),
            Err(rustix::io::Errno::AGAIN) => return None,
            Err(error) => panic!("nothing comes: {error}"),
        }
        Some(bytes)
    }

    async fn greet(&self) {
        self.send(&greeting());
        let hello = self.read().await;
        Hello::decode(hello.as_slice().try_into().expect("64 bytes")).expect("proper");
    }
}

fn raw(options: ConnectionOptions) -> (Connection, Peer) {
    let (ours, theirs) = sockets();
    let limit = Some(Duration::from_secs(10));
    sockopt::set_socket_timeout(&theirs, sockopt::Timeout::Recv, limit).expect("a socket");
    sockopt::set_socket_timeout(&theirs, sockopt::Timeout::Send, limit).expect("a socket");
    (Connection::from_socket(ours, options), Peer(theirs))
}

fn every_size(engine: EngineChoice) {
    block_on(engine, async {
        let (mut client, server) = pair(options());
        client.ready().await.expect("a greeting");
        spawn(echo(server));
        let limit = client.halves().0.message_bytes_max();
        assert!((100_000..1 << 20).contains(&limit), "{limit}");
        let mut sizes = vec![0, 1, 2, limit - 1, limit];
        for edge in [128, 512, 1024, 2048, 4096, 8192, 16 << 10, 64 << 10, 128 << 10] {
            sizes.extend([edge - 9, edge - 8, edge - 7, edge - 1, edge, edge + 1]);
        }
        sizes.retain(|len| *len <= limit);
        for (sequence, len) in (0..).zip(sizes.iter().chain(sizes.iter().rev())) {
            ask(&mut client, sequence, *len).await;
        }
        let error = SendError::TooLarge { len: limit + 1, limit };
        assert_eq!(client.send(&vec![0; limit + 1]).await, Err(error.clone()));
        assert_eq!(client.halves().0.try_send(&vec![0; limit + 1]), Err(error));
        ask(&mut client, 99, 10).await;
        client.shutdown().await.expect("open");
        assert!(client.recv().await.expect("a clean end").is_none());
    });
}

fn many_messages(engine: EngineChoice) {
    const MESSAGES: u64 = 20_000;
    let len = |sequence: u64| usize::try_from(sequence * 37 % 900).expect("small");
    block_on(engine, async {
        let (client, server) = pair(options());
        let (mut sender, _receiver) = client.split();
        let sending = spawn(async move {
            let mut sequence = 0;
            while sequence < MESSAGES {
                let mut batch = sender.batch().await.expect("open");
                while batch.has_room() && sequence < MESSAGES {
                    let fill = |bytes: &mut [u8]| pattern::fill(sequence, bytes);
                    batch.push_with(len(sequence), fill).expect("room");
                    sequence += 1;
                }
            }
            sender.shutdown().await.expect("open");
        });
        let (_sender, mut receiver) = server.split();
        let mut received = 0;
        while let Some(mut batch) = receiver.recv_batch().await.expect("open") {
            while let Some(frames) = batch.next_run() {
                for frame in frames {
                    pattern::check(received, len(received), &frame.bytes());
                    received += 1;
                }
            }
        }
        assert_eq!(received, MESSAGES);
        sending.await.expect("no panic");
        let stats = ringpost::stats();
        assert_eq!(stats.packets_received, stats.packets_sent, "{stats:?}");
        assert!(stats.system_calls < MESSAGES, "{stats:?}");
    });
}

fn every_way_to_send(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        left.ready().await.expect("a greeting");
        right.ready().await.expect("a greeting");
        for len in [0, 10, 1000, 5000, 100_000] {
            let payload = pattern::payload(1, len);
            left.send(&payload).await.expect("open");
            left.halves().0.try_send(&payload).expect("room");
            left.send_with(len, |bytes| pattern::fill(1, bytes)).await.expect("open");
            left.halves().0.send_bytes(Bytes::from(payload.clone())).await.expect("open");
            left.halves().0.flush().await.expect("open");
            for _ in 0..4 {
                expect_message(&mut right, 1, len).await;
            }
            // Received ones, passed on as messages and as runs.
            for _ in 0..2 {
                left.send(&payload).await.expect("open");
            }
            let one = right.recv().await.expect("open").expect("no end");
            let run = right.recv_run().await.expect("open").expect("no end");
            right.send_message(one).await.expect("open");
            right.halves().0.send_run(run).await.expect("open");
            for _ in 0..2 {
                expect_message(&mut left, 1, len).await;
            }
        }
    });
}

/// Frames that lie together on a stream become a packet each, and the other way round.
fn from_streams_and_to_streams(engine: EngineChoice) {
    const MESSAGES: u64 = 3000;
    let len = |sequence: u64| usize::try_from(sequence * 131 % 7000).expect("small");
    let prefix = LengthPrefix { width: PrefixWidth::U32, byte_order: ByteOrder::Little };
    for options in [options(), options().length_prefixed(prefix).frame_bytes_max(100_000)] {
        block_on(engine, async {
            let (source, from_stream) = ringpost_tests::rig::pair(options);
            let (to_packets, from_packets) = pair(options);
            let (to_stream, sink) = ringpost_tests::rig::pair(options);
            for (from, to, by_run) in
                [(from_stream, to_packets, true), (from_packets, to_stream, false)]
            {
                spawn(async move {
                    let (_sender, mut from) = from.split();
                    let (mut to, _receiver) = to.split();
                    if by_run {
                        while let Some(run) = from.recv_run().await.expect("open") {
                            to.send_run(run).await.expect("open");
                        }
                    } else {
                        while let Some(message) = from.recv().await.expect("open") {
                            to.send_message(message).await.expect("open");
                        }
                    }
                    to.shutdown().await.expect("open");
                });
            }
            spawn(async move {
                let (mut source, _receiver) = source.split();
                for sequence in 0..MESSAGES {
                    let fill = |bytes: &mut [u8]| pattern::fill(sequence, bytes);
                    source.send_with(len(sequence), fill).await.expect("open");
                }
                source.shutdown().await.expect("open");
            });
            let (_sender, mut sink) = sink.split();
            for sequence in 0..MESSAGES {
                let message = sink.recv().await.expect("open").expect("no end");
                pattern::check(sequence, len(sequence), &message);
            }
            assert!(sink.recv().await.expect("open").is_none());
        });
    }
}

fn clean_ends_and_aborts(engine: EngineChoice) {
    block_on(engine, async {
        // Said and closed.
        let (mut left, mut right) = pair(options());
        left.send(b"last").await.expect("open");
        left.shutdown().await.expect("open");
        drop(left);
        assert_eq!(*right.recv().await.expect("open").expect("no end"), *b"last");
        assert!(right.recv().await.expect("a clean end").is_none());
        assert!(right.recv().await.expect("a clean end").is_none());

        // Closed without a word; what was accepted still arrives.
        let (mut left, mut right) = pair(options());
        for _ in 0..100 {
            left.send(&[5; 1000]).await.expect("open");
        }
        drop(left);
        for _ in 0..100 {
            assert_eq!(right.recv().await.expect("open").expect("no end").len(), 1000);
        }
        let aborted = RecvError::Closed(Closed::Aborted);
        assert_eq!(right.recv().await.map(|_| ()), Err(aborted));
        until("the end is seen", || right.halves().0.try_send(b"x").is_err()).await;
        assert_eq!(right.send(b"x").await, Err(SendError::Closed(Closed::Aborted)));

        // Refused in words.
        let (left, mut right) = pair(options());
        left.refuse("not today");
        let rejected = Closed::Rejected { reason: "not today".into() };
        assert_eq!(right.recv().await.map(|_| ()), Err(RecvError::Closed(rejected)));
    });
}

/// A peer that closes with something unread resets the connection. What it had sent still arrives, and the end is none
/// that was said.
fn what_came_before_a_reset(engine: EngineChoice) {
    const UNREAD: &[u8] = b"nobody reads it";
    block_on(engine, async {
        // The reset is met by a receive, or by a send before it.
        for sends in [false, true] {
            for reject in [false, true] {
                let (mut connection, peer) = raw(options());
                peer.greet().await;
                connection.send(UNREAD).await.expect("open");
                connection.flush().await.expect("open");
                for sequence in 0..100 {
                    peer.send(&message(&pattern::payload(sequence, 500)));
                }
                if reject {
                    peer.send(&frame(FrameKind::Reject, b"not today"));
                }
                drop(peer);
                if sends {
                    connection.halves().0.try_send(UNREAD).expect("not seen yet");
                }
                for sequence in 0..100 {
                    expect_message(&mut connection, sequence, 500).await;
                }
                let closed = match reject {
                    true => Closed::Rejected { reason: "not today".into() },
                    false => Closed::Aborted,
                };
                assert_eq!(connection.recv().await.map(|_| ()), Err(RecvError::Closed(closed)));
            }
            // Without frames a close is a clean end; a reset is none.
            let (mut connection, peer) = raw(options().bytes());
            connection.send(UNREAD).await.expect("open");
            connection.flush().await.expect("open");
            peer.send(b"last");
            drop(peer);
            if sends {
                connection.halves().0.try_send(UNREAD).expect("not seen yet");
            }
            assert_eq!(*connection.recv().await.expect("open").expect("no end"), *b"last");
            let aborted = RecvError::Closed(Closed::Aborted);
            assert_eq!(connection.recv().await.map(|_| ()), Err(aborted));
        }
    });
}

fn other_profiles(engine: EngineChoice) {
    block_on(engine, async {
        let prefix = LengthPrefix { width: PrefixWidth::U16, byte_order: ByteOrder::Big };
        let (mut connection, peer) = raw(options().length_prefixed(prefix));
        peer.send(b"\0\x03abc");
        assert_eq!(*connection.recv().await.expect("open").expect("no end"), *b"abc");
        connection.send(b"defg").await.expect("open");
        connection.flush().await.expect("open");
        assert_eq!(peer.read().await, b"\0\x04defg");
        peer.send(b"\0\x03ab");
        let source = ProtocolError::PacketLength { packet_bytes: 4, frame_bytes: 5 };
        let error = RecvError::Protocol { position: 5, source };
        assert_eq!(connection.recv().await.map(|_| ()), Err(error));

        // A packet is a message, and the end is clean.
        let (mut connection, peer) = raw(options().bytes());
        for body in [&b"one"[..], b"two", &[7; 50_000]] {
            peer.send(body);
            connection.send(body).await.expect("open");
            connection.send(b"").await.expect("accepted, and not sent");
        }
        connection.flush().await.expect("open");
        for body in [&b"one"[..], b"two", &[7; 50_000]] {
            assert_eq!(*connection.recv().await.expect("open").expect("no end"), *body);
            assert_eq!(peer.read().await, body);
        }
        drop(peer);
        assert!(connection.recv().await.expect("a clean end").is_none());
    });
}

fn bad_greetings(engine: EngineChoice) {
    let hello = greeting();
    let mut impossible = [&hello[..], b"longer"].concat();
    impossible[8..10].fill(0);
    let cases = [
        (impossible, HelloError::PacketLength { bytes: 70 }),
        (hello[..63].to_vec(), HelloError::PacketLength { bytes: 63 }),
        ([&hello[..], b"x"].concat(), HelloError::PacketLength { bytes: 65 }),
        ([&hello[..], &message(b"early")].concat(), HelloError::PacketLength { bytes: 77 }),
        (b"GET / HT".to_vec(), HelloError::BadMagic { found: *b"GET / HT" }),
    ];
    for (packet, error) in cases {
        block_on(engine, async {
            let mut bystander = Bystander::new();
            let (mut connection, peer) = raw(options());
            peer.send(&packet);
            let end = connection.ready().await.expect_err("refused");
            assert_eq!(end, Closed::Handshake(Box::new(error)));
            drop(connection);
            assert_eq!(peer.read().await.len(), 64);
            let reject = peer.read().await;
            match error {
                HelloError::BadMagic { .. } => assert_eq!(reject, b""),
                _ => assert_eq!(reject, frame(FrameKind::Reject, error.to_string().as_bytes())),
            }
            bystander.check().await;
        });
    }
    block_on(engine, async {
        let (mut connection, _peer) = raw(options().handshake_ms_max(50));
        let error = Closed::HandshakeTimeout { milliseconds: 50 };
        assert_eq!(connection.ready().await, Err(error));
    });
}

fn packets_that_are_not_one_frame(engine: EngineChoice) {
    let whole = message(b"abc");
    let length =
        |packet_bytes, frame_bytes| ProtocolError::PacketLength { packet_bytes, frame_bytes };
    let mut cases = vec![
        ([&whole[..], b"x"].concat(), length(12, 11)),
        ([&whole[..], &whole].concat(), length(22, 11)),
        ([&whole[..], &frame(FrameKind::Fin, b"")].concat(), length(19, 11)),
        (b"".to_vec(), length(0, 8)),
    ];
    cases.extend((1..8).map(|cut| (whole[..cut].to_vec(), length(cut, 8))));
    cases.extend((8..11).map(|cut| (whole[..cut].to_vec(), length(cut, 11))));
    for (packet, source) in cases {
        for batched in [false, true] {
            block_on(engine, async {
                let mut bystander = Bystander::new();
                let (mut connection, peer) = raw(options());
                peer.greet().await;
                peer.send(&whole);
                peer.send(&packet);
                peer.send(&whole);
                let error = RecvError::Protocol { position: 11, source };
                assert_eq!(*connection.recv().await.expect("open").expect("no end"), *b"abc");
                if batched {
                    while let Some(mut batch) = match connection.recv_batch().await {
                        Ok(batch) => batch,
                        Err(found) => {
                            assert_eq!(found, error);
                            None
                        }
                    } {
                        assert!(batch.next().is_none(), "behind an error");
                    }
                }
                assert_eq!(connection.recv().await.map(|_| ()), Err(error));
                let reject = frame(FrameKind::Reject, source.to_string().as_bytes());
                assert_eq!(peer.read().await, reject);
                assert_eq!(peer.read().await, b"");
                bystander.check().await;
            });
        }
    }
}

/// However often the batch is asked, and whatever has arrived behind it.
fn an_end_in_a_batch_is_the_end(engine: EngineChoice) {
    let length = ProtocolError::PacketLength { packet_bytes: 7, frame_bytes: 8 };
    let rejected = Closed::Rejected { reason: "no more".into() };
    let cases = [
        (vec![0; 7], RecvError::Protocol { position: 11, source: length }),
        (frame(FrameKind::Reject, b"no more"), RecvError::Closed(rejected)),
    ];
    for (packet, error) in cases {
        block_on(engine, async {
            let (mut connection, peer) = raw(options());
            peer.greet().await;
            connection.ready().await.expect("a greeting");
            for packet in [&message(b"abc"), &packet, &message(b"not to be used"), &packet] {
                peer.send(packet);
            }
            ringpost::sleep(Duration::from_millis(20)).await;
            let mut batch = connection.recv_batch().await.expect("open").expect("no end");
            assert_eq!(batch.next().expect("a message").to_vec(), b"abc");
            for _ in 0..3 {
                assert!(batch.next().is_none(), "behind {error}");
                assert!(batch.next_run().is_none(), "behind {error}");
            }
            for _ in 0..2 {
                assert_eq!(connection.recv().await.map(|_| ()), Err(error.clone()));
            }
        });
    }
}

fn a_packet_over_the_limit(engine: EngineChoice) {
    block_on(engine, async {
        let (mut connection, peer) = raw(options().frame_bytes_max(5000));
        peer.greet().await;
        peer.send(&message(&[1; 5000]));
        assert_eq!(connection.recv().await.expect("open").expect("no end").len(), 5000);
        peer.send(&message(&[1; 5001]));
        let source = ProtocolError::FrameTooLarge { len: 5001, limit: 5000 };
        let error = connection.recv().await.map(|_| ()).expect_err("too long");
        assert!(matches!(error, RecvError::Protocol { source: found, .. } if found == source));
    });
}

fn ping_gets_its_pong(engine: EngineChoice) {
    block_on(engine, async {
        let (mut connection, peer) = raw(options());
        peer.greet().await;
        peer.send(&frame(FrameKind::Ping, b"ping"));
        peer.send(&frame(FrameKind::Unknown(77), b"later"));
        peer.send(&message(b"x"));
        assert_eq!(*connection.recv().await.expect("open").expect("no end"), *b"x");
        connection.halves().0.go_away().expect("open");
        connection.flush().await.expect("open");
        assert_eq!(peer.read().await, frame(FrameKind::Pong, b"ping"));
        assert_eq!(peer.read().await, frame(FrameKind::GoAway, &[0xFF; 8]));
    });
}

/// One that asks again once it has its answer gets another; one that only asks gets no more than that.
fn pings_to_a_full_queue(engine: EngineChoice) {
    block_on(engine, async {
        let (mut connection, peer) = raw(options());
        peer.greet().await;
        let body = pattern::payload(1, 3000);
        for round in 0..4 {
            let full = async { while connection.send(&body).await.is_ok() {} };
            assert!(poll_at_most(100, full).await.is_none(), "the queue is full");
            let queued = connection.halves().0.queued_bytes();
            for again in 0..3 {
                peer.send(&frame(FrameKind::Ping, &[round, again]));
            }
            assert!(poll_at_most(20, connection.recv()).await.is_none(), "no message");
            let pong = frame(FrameKind::Pong, &[round, 0]);
            assert_eq!(connection.halves().0.queued_bytes(), queued + pong.len(), "one answer");
            while peer.read().await != pong {}
        }
    });
}

fn one_frame_in_each_packet(engine: EngineChoice) {
    block_on(engine, async {
        let (mut connection, peer) = raw(options());
        peer.greet().await;
        for len in [0, 1, 4000, 60_000] {
            connection.send(&pattern::payload(3, len)).await.expect("open");
        }
        connection.shutdown().await.expect("open");
        for len in [0, 1, 4000, 60_000] {
            assert_eq!(peer.read().await, message(&pattern::payload(3, len)));
        }
        assert_eq!(peer.read().await, frame(FrameKind::Fin, b""));
        assert_eq!(peer.read().await, b"");
        peer.send(&frame(FrameKind::Fin, b""));
        rustix::net::shutdown(&peer.0, Shutdown::Both).expect("connected");
        assert!(connection.recv().await.expect("a clean end").is_none());
    });
}

fn a_reader_that_lags(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        right.ready().await.expect("a greeting");
        let mut sent = 0;
        while let Some(outcome) = poll_at_most(50, left.send(&pattern::payload(sent, 3000))).await {
            outcome.expect("open");
            sent += 1;
            assert!(sent < 10_000, "nothing holds the sender up");
        }
        let full = left.halves().0.try_send(&[0; 10]);
        assert!(matches!(full, Err(SendError::Full { .. })), "{full:?}");
        assert!(ringpost::stats().receives_paused > 0);
        let mut bystander = Bystander::new();
        bystander.check().await;
        for sequence in 0..sent {
            expect_message(&mut right, sequence, 3000).await;
        }
        left.send(&pattern::payload(sent, 3000)).await.expect("room again");
        expect_message(&mut right, sent, 3000).await;
    });
}

/// A run has as many messages as its sender likes: the bound on packets holds for each.
fn a_run_to_a_reader_that_lags(engine: EngineChoice) {
    const MESSAGES: u64 = 4000;
    const LEN: usize = 20;
    const PACKETS_MAX: usize = 1024;
    let runtime = runtime(engine);
    // A run lies in one block.
    if !shared_blocks_or_skip("seqpackets::a_run_to_a_reader_that_lags", &runtime) {
        return;
    }
    run(&runtime, async {
        let (mut source, mut from) = ringpost_tests::rig::pair(options());
        let (mut to, peer) = raw(options());
        peer.greet().await;
        to.ready().await.expect("a greeting");
        from.ready().await.expect("a greeting");
        source.ready().await.expect("a greeting");
        let (sender, _) = source.halves();
        for sequence in 0..MESSAGES {
            sender.try_send(&pattern::payload(sequence, LEN)).expect("room");
        }
        let bytes = MESSAGES * (LEN as u64 + 8);
        until("all of it is there", || ringpost::stats().bytes_received >= bytes).await;
        let run = from.recv_run().await.expect("open").expect("no end");
        let messages = run.messages();
        assert!(messages > MESSAGES / 2, "{messages} in a run");
        let (sender, _) = to.halves();
        let sent = poll_at_most(500, sender.send_run(run)).await;
        assert!(sent.is_none(), "nobody reads");
        let queued = sender.queued_bytes() / (LEN + 8);
        assert!((1..=PACKETS_MAX).contains(&queued), "{queued} packets are queued");
        // The first messages were accepted, and no part of one.
        let next = spawn(async move { to.send(b"next").await.expect("open") });
        let mut received = 0;
        loop {
            let packet = peer.read().await;
            if packet == message(b"next") {
                break;
            }
            assert_eq!(packet, message(&pattern::payload(received, LEN)));
            received += 1;
        }
        assert!(received >= queued as u64 && received < messages);
        next.await.expect("no panic");
    });
}

/// A batch that was waited for takes something, however full the socket is: whoever fills one batch after the
/// other, and does nothing else, must not keep the reactor from turning.
fn batches_to_a_reader_that_lags(engine: EngineChoice) {
    const MESSAGES: u64 = 4000;
    block_on(engine, async {
        let (mut connection, peer) = raw(options());
        peer.greet().await;
        connection.ready().await.expect("a greeting");
        let (mut sender, _receiver) = connection.split();
        let sending = spawn(async move {
            let mut sequence = 0;
            while sequence < MESSAGES {
                let mut batch = sender.batch().await.expect("open");
                assert!(batch.has_room(), "after {sequence} messages");
                while batch.has_room() && sequence < MESSAGES {
                    batch.push(&pattern::payload(sequence, 100)).expect("room");
                    sequence += 1;
                }
            }
            sender.flush().await.expect("open");
        });
        // Nobody reads until the bound is reached.
        until("the sender waits", || ringpost::stats().sends_tracked > 0).await;
        for _ in 0..100 {
            ringpost::yield_now().await;
        }
        assert!(!sending.is_finished(), "nothing holds the sender up");
        for sequence in 0..MESSAGES {
            assert_eq!(peer.read().await, message(&pattern::payload(sequence, 100)));
        }
        sending.await.expect("no panic");
    });
}

fn messages_that_no_packet_holds(engine: EngineChoice) {
    block_on(engine, async {
        let (ours, theirs) = sockets();
        sockopt::set_socket_send_buffer_size(&ours, 10_000).expect("a socket");
        let mut small = Connection::from_socket(ours, options());
        let mut large = Connection::from_socket(theirs, options());
        // Before the greeting as well: nothing is kept that could never leave.
        let error = small.send(&[0; 50_000]).await.expect_err("too long");
        let limit = small.halves().0.message_bytes_max();
        assert!((10_000 - 8..=20_000).contains(&limit), "{limit}");
        assert_eq!(error, SendError::TooLarge { len: 50_000, limit });
        for len in limit - 3..=limit {
            small.send(&pattern::payload(4, len)).await.expect("open");
            expect_message(&mut large, 4, len).await;
        }
        large.send(&pattern::payload(5, 50_000)).await.expect("open");
        expect_message(&mut small, 5, 50_000).await;
    });
}

/// What writes a message in place is code of the user's, and may use everything but its own sender.
fn what_fills_a_message_may_do(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        let (mut other, mut other_end) = pair(options());
        left.ready().await.expect("a greeting");
        other.ready().await.expect("a greeting");
        for len in [0, 100, 1000, 3000, 60_000] {
            for batched in [false, true] {
                let dropped = (pair(options()), ringpost_tests::rig::pair(options()));
                let sends = &mut other;
                let fill = |bytes: &mut [u8]| {
                    let _counters = ringpost::stats();
                    drop(dropped);
                    sends.halves().0.try_send(b"meanwhile").expect("room");
                    assert!(bytes.iter().all(|byte| *byte == 0), "bytes of an earlier one");
                    pattern::fill(1, bytes);
                };
                // Others around it are in the same memory.
                left.send(&pattern::payload(0, 30)).await.expect("open");
                if batched {
                    let mut batch = left.halves().0.batch().await.expect("open");
                    batch.push_with(len, fill).expect("room");
                } else {
                    left.send_with(len, fill).await.expect("open");
                }
                left.send(&pattern::payload(2, 30)).await.expect("open");
                expect_message(&mut right, 0, 30).await;
                expect_message(&mut right, 1, len).await;
                expect_message(&mut right, 2, 30).await;
                let meanwhile = other_end.recv().await.expect("open").expect("no end");
                assert_eq!(*meanwhile, *b"meanwhile");
            }
        }
        // One that panics has sent nothing.
        let panicking = spawn(async move {
            left.send_with(100, |_| panic!("on purpose")).await.expect("open");
        });
        assert!(panicking.await.is_err());
        assert_eq!(right.recv().await.map(|_| ()), Err(RecvError::Closed(Closed::Aborted)));
    });
}

/// None is missing between others: it is the end.
fn an_accepted_message_that_can_not_leave(engine: EngineChoice) {
    block_on(engine, async {
        let (ours, theirs) = sockets();
        let socket = ours.try_clone().expect("a descriptor");
        let mut connection = Connection::from_socket(ours, options());
        let peer = Peer(theirs);
        peer.greet().await;
        connection.ready().await.expect("a greeting");
        connection.send(b"first").await.expect("open");
        connection.flush().await.expect("open");
        sockopt::set_socket_send_buffer_size(&socket, 5000).expect("a socket");
        for len in [10, 50_000, 20] {
            connection.halves().0.try_send(&vec![7; len]).expect("room");
        }
        let error = connection.shutdown().await.expect_err("one can't leave");
        let closed = Closed::Kernel { errno: libc::EMSGSIZE };
        assert_eq!(error, SendError::Closed(closed.clone()));
        assert_eq!(connection.recv().await.map(|_| ()), Err(RecvError::Closed(closed.clone())));
        assert_eq!(connection.flush().await, Err(SendError::Closed(closed)));
        drop((connection, socket));
        assert_eq!(peer.read().await, message(b"first"));
        assert_eq!(peer.read().await, message(&[7; 10]));
        assert_eq!(peer.read().await, b"", "behind a message that is missing");
    });
}

/// Whoever waits for the answer to a message that was given up does not wait for ever.
fn no_memory_to_send(engine: EngineChoice) {
    block_on(engine, async {
        let (mut connection, peer) = raw(options());
        peer.greet().await;
        connection.ready().await.expect("a greeting");
        refuse_calls(&[libc::SYS_sendmmsg], libc::ENOBUFS);
        connection.send(b"given up").await.expect("room");
        let closed = Closed::Kernel { errno: libc::ENOBUFS };
        assert_eq!(connection.recv().await.map(|_| ()), Err(RecvError::Closed(closed)));
    });
}

fn futures_dropped_at_every_poll(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        let (mut sent, mut received) = (0, 0);
        for polls in (0..4).cycle().take(4000) {
            if poll_at_most(polls, left.send(&pattern::payload(sent, 700))).await.is_some() {
                sent += 1;
            }
            if let Some(message) = poll_at_most(polls, right.recv()).await {
                pattern::check(received, 700, &message.expect("open").expect("no end"));
                received += 1;
            }
            poll_at_most(polls, left.flush()).await;
        }
        while received < sent {
            expect_message(&mut right, received, 700).await;
            received += 1;
        }
        assert!(poll_at_most(20, right.recv()).await.is_none(), "accepted more than once");
    });
}

fn a_stream_client(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let options = options().seqpacket();
        let mut listener = Listener::builder().connection(options).bind(&path).expect("bind");
        let error = Connection::connect(&path).await.expect_err("another kind");
        assert!(error.to_string().contains("another kind"), "{error}");
        spawn(async move {
            loop {
                spawn(echo(listener.accept().await.expect("accept")));
            }
        });
        let mut clients = Vec::new();
        for sequence in 0..20 {
            let mut client = Connection::connect_with(&path, options).await.expect("connect");
            ask(&mut client, sequence, 1000).await;
            clients.push(client);
        }
        for client in &mut clients {
            ask(client, 100, 5000).await;
            client.shutdown().await.expect("open");
            assert!(client.recv().await.expect("a clean end").is_none());
        }
    });
}

fn a_policy(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let other = rustix::process::geteuid().as_raw().wrapping_add(1);
        let policy = ringpost::AccessPolicy::anyone().allow_uid(other);
        let options = options().seqpacket();
        let builder = Listener::builder().connection(options).policy(policy);
        let mut listener = builder.bind(&path).expect("bind");
        let accepting = spawn(async move { listener.accept().await.map(|_| ()) });
        let mut client = match Connection::connect_with(&path, options).await {
            Ok(client) => client,
            Err(error) => {
                assert!(error.to_string().contains("may not connect"), "{error}");
                return;
            }
        };
        let error = client.recv().await.map(|_| ()).expect_err("refused");
        assert!(error.to_string().contains("may not connect"), "{error}");
        assert!(timeout(Duration::from_millis(1), accepting).await.is_err());
    });
}

fn a_packet_connection_is_not_detached(engine: EngineChoice) {
    block_on(engine, async {
        let (left, mut right) = pair(options());
        let error = left.detach(Duration::from_secs(1)).await.expect_err("packets");
        assert!(matches!(error.reason, ringpost::DetachErrorReason::Packets), "{error}");
        let mut left = *error.connection;
        left.send(b"it goes on").await.expect("open");
        assert_eq!(*right.recv().await.expect("open").expect("no end"), *b"it goes on");
    });
}

fn nothing_is_left_behind(engine: EngineChoice) {
    let runtime = runtime(engine);
    run(&runtime, async {
        let round = async |index: usize| {
            let (mut left, mut right) = pair(options());
            left.send(&[1; 500]).await.expect("open");
            match index % 4 {
                0 => {
                    right.recv().await.expect("open");
                }
                1 => while poll_at_most(5, left.send(&[1; 1000])).await.is_some() {},
                2 => {
                    left.shutdown().await.expect("open");
                    drop(left);
                    while right.recv().await.expect("open").is_some() {}
                    return;
                }
                _ => {}
            }
            drop((left, right));
        };
        for index in 0..8 {
            round(index).await;
        }
        until("all is closed", || ringpost::stats().operations_in_flight <= 1).await;
        let (descriptors, memory) = (process::descriptors(), process::anonymous_bytes());
        for index in 0..300 {
            round(index).await;
        }
        until("all is closed", || ringpost::stats().operations_in_flight <= 1).await;
        assert_eq!(process::descriptors(), descriptors);
        let grown = process::anonymous_bytes().saturating_sub(memory);
        assert!(grown < 4 << 20, "{grown} bytes more");
    });
}

fn the_end_of_a_runtime(engine: EngineChoice) {
    for index in 0..5 {
        let before = process::descriptors();
        let runtime = runtime(engine);
        let (mut ours, theirs) = run(&runtime, async {
            let (connection, peer) = raw(options());
            peer.greet().await;
            (connection, peer)
        });
        run(&runtime, async {
            ours.ready().await.expect("a greeting");
            // Accepted and not yet sent: it still leaves.
            ours.send(b"last").await.expect("open");
        });
        if index % 2 == 0 {
            drop(runtime);
            drop(ours);
        } else {
            drop(ours);
            drop(runtime);
        }
        block_on(engine, async {
            assert_eq!(theirs.read().await, message(b"last"));
            assert_eq!(theirs.read().await, b"");
        });
        drop(theirs);
        until_descriptors(before);
    }
}

fn until_descriptors(expected: usize) {
    let same = || process::descriptors() == expected;
    ringpost_testkit::patience::eventually("all is closed", Duration::from_secs(5), same);
}
