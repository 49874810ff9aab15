//! Peers that break the protocol: a typed error, a reason for the peer, and nobody else is touched.

use std::future::Future;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use ringpost::{
    Closed, Connection, ConnectionOptions, EngineChoice, HelloError, ProtocolError, RecvError,
    SendError, sleep, spawn, timeout, yield_now,
};
use ringpost_frame::{Features, FrameFlags, FrameHeader, FrameKind, Hello};
use ringpost_testkit::peer::{self, RawPeer, flagged, frame, greeting, message};
use ringpost_testkit::{pattern, process};
use ringpost_tests::rig::{
    Bystander, adopt, block_on, blocking, builder, join, pair, raw, run, runtime,
    shared_blocks_or_skip, sockets,
};
use ringpost_tests::{on_both_engines, on_both_engines_alone};

on_both_engines!(
    every_bad_greeting,
    another_protocol,
    a_silent_peer,
    a_greeting_that_waits,
    a_silent_peer_of_a_publisher,
    every_bad_frame,
    skipped_frames,
    a_refusal_by_the_peer,
    a_refusal_with_control_characters,
    ping_gets_its_pong,
    ping_of_a_peer_that_lags,
    pings_to_a_queue_that_is_always_full,
    a_flood_of_pings,
    going_away,
    byte_by_byte_to_who_reads,
    byte_by_byte_to_who_does_not_read,
    passed_on_in_very_many_pieces
);
on_both_engines_alone!(an_oversize_length_costs_nothing, descriptors_that_come_along);

/// Runs `server` against `client`, which is on a thread of its own, with a bystander before and after.
fn against<F: Future>(
    engine: EngineChoice,
    client: impl FnOnce(RawPeer) + Send + 'static,
    server: impl FnOnce(Connection) -> F,
) -> F::Output {
    block_on(engine, async {
        let mut bystander = Bystander::new();
        bystander.check().await;
        let (connection, peer) = raw();
        let client = thread::spawn(move || client(peer));
        let outcome = server(connection).await;
        bystander.check().await;
        join(client).await;
        outcome
    })
}

fn every_bad_greeting(engine: EngineChoice) {
    let hello = Hello::new(1 << 20, 7);
    let edited = |edit: fn(&mut Hello)| {
        let mut hello = hello;
        edit(&mut hello);
        hello.encode()
    };
    let mut cases = vec![
        (edited(|hello| hello.flags = 1), HelloError::Reserved { offset: 12, value: 1 }),
        (edited(|hello| hello.version_min = 0), HelloError::VersionRange { min: 0, max: 1 }),
        (
            edited(|hello| (hello.version_min, hello.version_max) = (3, 2)),
            HelloError::VersionRange { min: 3, max: 2 },
        ),
        (
            edited(|hello| hello.required = Features(1 << 40)),
            HelloError::RequiredUnsupported { bits: 1 << 40 },
        ),
        (
            edited(|hello| hello.frame_bytes_max = 1023),
            HelloError::FrameLimitTooSmall { value: 1023, floor: 1024 },
        ),
        (
            edited(|hello| (hello.version_min, hello.version_max) = (2, 9)),
            HelloError::NoCommonVersion { local_min: 1, local_max: 1, peer_min: 2, peer_max: 9 },
        ),
        (
            edited(|hello| (hello.required, hello.supported) = (Features(1), Features(1))),
            HelloError::MissingFeatures { bits: 1 },
        ),
        (edited(|hello| hello.abi = 2), HelloError::AbiMismatch { local: 1, peer: 2 }),
    ];
    let mut reserved = hello.encode();
    reserved[63] = 0x40;
    cases.push((reserved, HelloError::Reserved { offset: 63, value: 0x40 }));
    let mut swapped = hello.encode();
    swapped[..8].reverse();
    cases.push((swapped, HelloError::ByteOrder));
    for (bytes, error) in cases {
        let client = move |mut peer: RawPeer| {
            peer.send(&[&bytes[..], &message(b"must not be seen")].concat());
            peer.read_hello();
            assert_eq!(peer.read_reject(), error.to_string());
            peer.expect_end();
        };
        let end = Closed::Handshake(error.into());
        against(engine, client, |mut connection| async move {
            assert_eq!(connection.ready().await, Err(end.clone()), "{error}");
            assert_closed(&mut connection, &end).await;
        });
    }
}

async fn assert_closed(connection: &mut Connection, end: &Closed) {
    let received = connection.recv().await.map(|_| ()).expect_err("closed");
    assert_eq!(received, RecvError::Closed(end.clone()));
    assert_eq!(connection.try_send(b"x"), Err(SendError::Closed(end.clone())));
    assert_eq!(connection.send(b"x").await, Err(SendError::Closed(end.clone())));
    assert_eq!(connection.send(&[0; 5000]).await, Err(SendError::Closed(end.clone())));
}

/// A peer with a wrong magic can't read REJECT: it gets none.
fn another_protocol(engine: EngineChoice) {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\xF5RNGPOSX", b"x", &[0; 64], &[0xFF; 1000]] {
        let client = move |mut peer: RawPeer| {
            peer.send(bytes);
            peer.read_hello();
            peer.expect_end();
        };
        against(engine, client, |mut connection| async move {
            let end = connection.ready().await.expect_err("refused");
            let mut found = [0; 8];
            let len = bytes.len().min(8);
            found[..len].copy_from_slice(&bytes[..len]);
            let error = HelloError::BadMagic { found };
            assert_eq!(end, Closed::Handshake(error.into()));
            assert_closed(&mut connection, &end).await;
        });
    }
}

fn a_silent_peer(engine: EngineChoice) {
    for sent in [0, 1, 63] {
        block_on(engine, async {
            let mut bystander = Bystander::new();
            let (ours, theirs) = sockets();
            let mut connection = adopt(ours, ConnectionOptions::new().handshake_ms_max(60));
            let mut peer = RawPeer::new(theirs);
            peer.send(&greeting()[..sent]);
            let end = Closed::HandshakeTimeout { milliseconds: 60 };
            assert_eq!(connection.ready().await, Err(end.clone()));
            assert_closed(&mut connection, &end).await;
            bystander.check().await;
            blocking(move || {
                peer.read_hello();
                peer.expect_end();
            })
            .await;
        });
    }
}

/// A greeting that lies in the socket is in time, whatever this thread did until it looked.
fn a_greeting_that_waits(engine: EngineChoice) {
    let runtime = runtime(engine);
    let (ours, theirs) = sockets();
    let options = ConnectionOptions::new().handshake_ms_max(50);
    let mut connection = runtime.enter(|| adopt(ours, options));
    let mut peer = RawPeer::new(theirs);
    peer.send(&greeting());
    peer.send(&message(b"early"));
    thread::sleep(Duration::from_millis(150));
    let received = run(&runtime, connection.recv()).expect("in time").expect("a message");
    assert_eq!(received, *b"early");
    // Also if somebody has looked before, and given up.
    let (ours, theirs) = sockets();
    let mut connection = runtime.enter(|| adopt(ours, options));
    assert_eq!(connection.halves().0.try_send(&[7; 2000]), Err(SendError::NotReady));
    run(&runtime, timeout(Duration::from_millis(1), connection.recv())).expect_err("too soon");
    let mut peer = RawPeer::new(theirs);
    peer.send(&greeting());
    peer.send(&message(b"later"));
    thread::sleep(Duration::from_millis(150));
    assert_eq!(connection.halves().0.try_send(&[7; 2000]), Err(SendError::NotReady));
    let received = run(&runtime, connection.recv()).expect("in time").expect("a message");
    assert_eq!(received, *b"later");
}

/// Nobody receives; who waits for room or for a flush waits no longer for the greeting than agreed.
fn a_silent_peer_of_a_publisher(engine: EngineChoice) {
    let end = SendError::Closed(Closed::HandshakeTimeout { milliseconds: 100 });
    for len in [100, 1024] {
        block_on(engine, async {
            let (ours, theirs) = sockets();
            let connection = adopt(ours, ConnectionOptions::new().handshake_ms_max(100));
            let (mut sender, receiver) = connection.split();
            drop(receiver);
            let publishing = async {
                loop {
                    if let Err(error) = sender.send(&vec![7; len]).await {
                        return error;
                    }
                }
            };
            let error = timeout(Duration::from_secs(5), publishing).await.expect("an end in time");
            assert_eq!(error, end);
            assert_eq!(sender.flush().await, Err(end.clone()));
            drop(theirs);
        });
    }
}

fn header(len: u32, kind: FrameKind, flags: u8, fds: u8) -> Vec<u8> {
    FrameHeader { len, kind, flags: FrameFlags(flags), fds }.encode().to_vec()
}

fn bad_frames() -> Vec<(Vec<u8>, ProtocolError)> {
    let mut wrong_check = message(b"x");
    wrong_check[7] ^= 1;
    let check_error = FrameHeader::decode(wrong_check[..8].try_into().expect("a header"));
    let limit = 16 << 20;
    let fin = || frame(FrameKind::Fin, &[]);
    let mut cases = vec![
        (wrong_check.clone(), check_error.expect_err("a wrong check byte")),
        (header(0, FrameKind::Unknown(0), 0, 0), ProtocolError::ZeroKind),
        (header(0, FrameKind::Message, 0x80, 0), ProtocolError::UnknownFlags { bits: 0x80 }),
        (header(0, FrameKind::Unknown(9), 4, 0), ProtocolError::UnknownCritical { kind: 9 }),
        (header(0, FrameKind::Unknown(255), 4, 0), ProtocolError::UnknownCritical { kind: 255 }),
        ([fin(), fin()].concat(), ProtocolError::AfterFin { kind: FrameKind::Fin }),
        ([fin(), message(b"x")].concat(), ProtocolError::AfterFin { kind: FrameKind::Message }),
    ];
    for (kind, len, min, max) in [
        (FrameKind::Fin, 1, 0, 0),
        (FrameKind::Reject, 1025, 0, 1024),
        (FrameKind::Ping, 65, 0, 64),
        (FrameKind::Pong, 65, 0, 64),
        (FrameKind::GoAway, 7, 8, 8),
        (FrameKind::GoAway, 9, 8, 8),
        (FrameKind::Ping, u32::MAX, 0, 64),
    ] {
        cases.push((header(len, kind, 0, 0), ProtocolError::ControlLength { kind, len, min, max }));
    }
    for (kind, flags) in [(FrameKind::Message, 1), (FrameKind::Message, 2), (FrameKind::Ping, 1)] {
        let error = ProtocolError::FlagsNotAllowed { kind, bits: flags };
        cases.push((header(0, kind, flags, 0), error));
    }
    for count in [1, 255] {
        let error = ProtocolError::DescriptorsNotAllowed { count, limit: 0 };
        cases.push((header(0, FrameKind::Message, 0, count), error));
    }
    for len in [limit + 1, 1 << 31, u32::MAX] {
        let error = ProtocolError::FrameTooLarge { len: len.into(), limit };
        cases.push((header(len, FrameKind::Message, 0, 0), error));
        cases.push((header(len, FrameKind::Unknown(99), 0, 0), error));
    }
    cases
}

/// Messages before the error count; nothing after it does; the peer is told why.
fn every_bad_frame(engine: EngineChoice) {
    for (bytes, error) in bad_frames() {
        let after_fin = matches!(error, ProtocolError::AfterFin { .. });
        let before = if after_fin { 8 } else { 0 };
        let client = move |mut peer: RawPeer| {
            peer.greet();
            peer.send(&message(b"before"));
            // In two parts, so that the receiver sees the cut; not right behind FIN, which is an end.
            let (first, second) = bytes.split_at(if after_fin { 0 } else { bytes.len() / 2 });
            peer.send(first);
            thread::sleep(Duration::from_millis(1));
            peer.try_send(second);
            peer.try_send(&message(b"after"));
            assert_eq!(peer.read_reject(), error.to_string());
            peer.expect_end();
        };
        against(engine, client, |mut connection| async move {
            let first = connection.recv().await.expect("a message").expect("no end");
            assert_eq!(first, *b"before");
            let position = 8 + 6 + before;
            let received = connection.recv().await.map(|_| ()).expect_err("refused");
            assert_eq!(received, RecvError::Protocol { position, source: error });
            let again = connection.recv_batch().await.map(|_| ()).expect_err("refused");
            assert_eq!(again, received, "repeated");
            let closed = SendError::Closed(Closed::Protocol(error.into()));
            assert_eq!(connection.send(b"x").await, Err(closed.clone()));
            assert_eq!(connection.flush().await, Err(closed));
        });
    }
}

/// What a later version may add is skipped, whatever it holds; CRITICAL on known kinds is ignored.
fn skipped_frames(engine: EngineChoice) {
    let client = |mut peer: RawPeer| {
        peer.greet();
        for kind in [7, 99, 128, 255] {
            for len in [0, 1, 8, 300_000] {
                peer.send(&frame(FrameKind::Unknown(kind), &vec![0xAB; len]));
            }
            peer.send(&frame(FrameKind::Pong, b"an answer to nothing"));
            peer.send(&flagged(FrameKind::Message, FrameFlags::CRITICAL, &[kind]));
        }
        // In one write: the other side may close as soon as it has seen the FIN.
        let mut end = flagged(FrameKind::Fin, FrameFlags::CRITICAL, &[]);
        end.extend(frame(FrameKind::Unknown(200), b"allowed after FIN"));
        peer.send(&end);
        peer.shutdown_write();
    };
    against(engine, client, |mut connection| async move {
        for kind in [7, 99, 128, 255] {
            let message = connection.recv().await.expect("a message").expect("no end");
            assert_eq!(message, [kind]);
        }
        assert!(connection.recv().await.expect("a clean end").is_none());
    });
}

fn a_refusal_by_the_peer(engine: EngineChoice) {
    let client = |mut peer: RawPeer| {
        peer.greet();
        peer.send(&message(b"before"));
        peer.send(&frame(FrameKind::Reject, "no more today: späte Stunde".as_bytes()));
        peer.try_send(&message(b"after"));
        peer.expect_end();
    };
    against(engine, client, |mut connection| async move {
        let first = connection.recv().await.expect("a message").expect("no end");
        assert_eq!(first, *b"before");
        let end = Closed::Rejected { reason: "no more today: späte Stunde".into() };
        assert_closed(&mut connection, &end).await;
    });
}

/// The reason is for people's eyes: invalid UTF-8 is replaced, control characters are escaped.
fn a_refusal_with_control_characters(engine: EngineChoice) {
    let client = |mut peer: RawPeer| {
        peer.greet();
        peer.send(&frame(FrameKind::Reject, b"\x1b[2Jgone\r\nERROR forged \xFF line\0"));
        peer.expect_end();
    };
    against(engine, client, |mut connection| async move {
        let error = connection.recv().await.map(|_| ()).expect_err("refused").to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
        assert!(error.contains("ERROR forged \u{FFFD} line"), "{error:?}");
    });
}

fn ping_gets_its_pong(engine: EngineChoice) {
    let client = |mut peer: RawPeer| {
        peer.greet();
        for len in [0, 1, 63, 64] {
            let body = vec![0xA5; len];
            peer.send(&frame(FrameKind::Ping, &body));
            let pong = peer.read_frame().expect("a PONG");
            assert_eq!((pong.header.kind, pong.body), (FrameKind::Pong, body));
        }
        peer.send(&message(b"done"));
    };
    against(engine, client, |mut connection| async move {
        let message = connection.recv().await.expect("a message").expect("no end");
        assert_eq!(message, *b"done");
    });
}

/// A peer that asks whether somebody is there is told, also while it lags.
fn ping_of_a_peer_that_lags(engine: EngineChoice) {
    let runtime = builder(engine).outbound_bytes_max(1).build().expect("a runtime");
    run(&runtime, async {
        let (mut connection, mut peer) = raw();
        // Elsewhere, so that this runtime can send its own greeting.
        let greeter = thread::spawn(move || {
            peer.greet();
            peer
        });
        connection.ready().await.expect("a greeting");
        let mut peer = join(greeter).await;
        let mut sent = 0;
        loop {
            match connection.try_send(&[7; 1000]) {
                Ok(()) => sent += 1,
                Err(SendError::Full { .. }) => {
                    if timeout(Duration::from_millis(5), connection.flush()).await.is_err() {
                        break;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        peer.send(&frame(FrameKind::Ping, b"there?"));
        peer.send(&message(b"done"));
        assert_eq!(connection.recv().await.expect("a message").expect("no end"), *b"done");
        let client = thread::spawn(move || {
            for _ in 0..sent {
                assert_eq!(peer.read_message(), [7; 1000]);
            }
            let pong = peer.read_frame().expect("a PONG");
            assert_eq!((pong.header.kind, &pong.body[..]), (FrameKind::Pong, &b"there?"[..]));
        });
        connection.flush().await.expect("the peer reads");
        join(client).await;
    });
}

/// A peer that asks again once it has its answer gets another, although the queue is full each time.
fn pings_to_a_queue_that_is_always_full(engine: EngineChoice) {
    /// More than the queue and the sockets hold.
    const FRAMES_MAX: usize = 20_000;
    let runtime = builder(engine).outbound_bytes_max(64 << 10).build().expect("a runtime");
    run(&runtime, async {
        let (connection, mut peer) = raw();
        let client = thread::spawn(move || {
            peer.greet();
            for round in 0..4 {
                // The queue fills, and is full when it is asked.
                thread::sleep(Duration::from_millis(30));
                peer.send(&frame(FrameKind::Ping, &[round]));
                thread::sleep(Duration::from_millis(30));
                let mut frames = (0..FRAMES_MAX).map(|_| peer.read_frame().expect("a frame"));
                let pong = frames.find(|frame| frame.header.kind == FrameKind::Pong);
                assert_eq!(pong.map(|pong| pong.body), Some(vec![round]), "PING {round}");
            }
        });
        let (mut sender, mut receiver) = connection.split();
        let sending = spawn(async move {
            loop {
                match sender.try_send(&[7; 1000]) {
                    Ok(()) => {}
                    Err(SendError::Full { .. }) => sleep(Duration::from_millis(1)).await,
                    Err(_) => return,
                }
            }
        });
        let end = receiver.recv().await.map(|_| ()).expect_err("the peer closes");
        assert!(matches!(end, RecvError::Closed(_)), "{end}");
        sending.await.expect("no panic");
        join(client).await;
    });
}

/// Answers for a peer that reads none are bounded; messages between them arrive.
fn a_flood_of_pings(engine: EngineChoice) {
    const BOUND: usize = 16 << 10;
    const PINGS: usize = 20_000;
    let runtime = builder(engine).outbound_bytes_max(BOUND).build().expect("a runtime");
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let (mut connection, mut peer) = raw();
        let client = thread::spawn(move || {
            peer.greet();
            let hundred = frame(FrameKind::Ping, &[7; 64]).repeat(100);
            for _ in 0..PINGS / 100 {
                peer.send(&hundred);
                peer.send(&message(b"still here"));
            }
            peer
        });
        for _ in 0..PINGS / 100 {
            let message = connection.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"still here");
            let queued = connection.halves().0.queued_bytes();
            // The last that fits may go beyond the bound, and one answer more.
            assert!(queued <= BOUND + 2 * 72, "{queued} bytes are queued");
        }
        bystander.check().await;
        drop(join(client).await);
    });
}

fn going_away(engine: EngineChoice) {
    let client = |mut peer: RawPeer| {
        peer.greet();
        peer.send(&frame(FrameKind::GoAway, &u64::MAX.to_le_bytes()));
        peer.send(&message(b"x"));
        let away = peer.read_frame().expect("GOAWAY");
        assert_eq!(away.header.kind, FrameKind::GoAway);
        assert_eq!(away.body, u64::MAX.to_le_bytes());
        let next = peer.read_frame().expect("FIN");
        assert_eq!(next.header.kind, FrameKind::Fin, "an end is asked for once");
    };
    against(engine, client, |mut connection| async move {
        assert!(!connection.halves().1.peer_is_going_away());
        connection.recv().await.expect("a message").expect("no end");
        assert!(connection.halves().1.peer_is_going_away());
        let mut queued = 0;
        for _ in 0..10_000 {
            connection.halves().0.go_away().expect("open");
            queued = connection.halves().0.queued_bytes();
        }
        assert!(queued < 100, "{queued} bytes are queued");
        connection.shutdown().await.expect("the peer reads");
    });
}

/// A header that announces four gigabytes makes nobody reserve them.
fn an_oversize_length_costs_nothing(engine: EngineChoice) {
    let most = ConnectionOptions::new().frame_bytes_max(u32::MAX);
    block_on(engine, async {
        let mut bystander = Bystander::new();
        bystander.check().await;
        let before = (process::anonymous_bytes(), ringpost::stats());
        let mut open = Vec::new();
        for len in [u32::MAX, 1 << 31, 1 << 26] {
            // Allowed by the limits, so it is waited for; and nothing is reserved meanwhile.
            let (ours, theirs) = sockets();
            let mut connection = adopt(ours, most);
            let mut peer = RawPeer::new(theirs);
            peer.send(&Hello::new(u32::MAX, 1).encode());
            peer.send(&header(len, FrameKind::Message, 0, 0));
            peer.send(&[0; 1000]);
            let waiting = timeout(Duration::from_millis(20), connection.recv()).await;
            assert!(waiting.is_err(), "it waits");
            open.push((connection, peer));
        }
        let after = (process::anonymous_bytes(), ringpost::stats());
        assert!(after.0 - before.0 < 2 << 20, "{} bytes", after.0 - before.0);
        assert!(after.1.pool_blocks_leased <= before.1.pool_blocks_leased + 1);
        bystander.check().await;
        drop(open);
    });
}

/// Descriptors that nobody asked for can't be sent (Linux 6.16), or are closed by the kernel, not collected
/// by us. The bytes without them are taken either way.
fn descriptors_that_come_along(engine: EngineChoice) {
    use rustix::io::Errno;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;
    block_on(engine, async {
        let (mut connection, mut peer) = raw();
        let before = process::descriptors();
        let (mut witness, sent) = UnixStream::pair().expect("a pair");
        let bytes = [&greeting()[..], &message(b"with luggage")].concat();
        let fds = [sent.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let slices = [IoSlice::new(&bytes)];
        let outcome = sendmsg(peer.stream(), &slices, &mut control, SendFlags::empty());
        if can_refuse_descriptors(peer.stream()) {
            assert_eq!(outcome, Err(Errno::PERM));
            peer.send(&bytes);
        } else {
            assert_eq!(outcome, Ok(bytes.len()));
        }
        let message = connection.recv().await.expect("a message").expect("no end");
        assert_eq!(message, *b"with luggage");
        drop(sent);
        assert_eq!(process::descriptors(), before + 1, "ours and no other");
        witness.set_read_timeout(Some(peer::LIMIT)).expect("a socket");
        assert_eq!(witness.read(&mut [0; 1]).expect("an end"), 0, "nobody holds it");
    });
}

/// Whether the kernel has SO_PASSRIGHTS (include/uapi/asm-generic/socket.h, Linux 6.16).
fn can_refuse_descriptors(socket: &UnixStream) -> bool {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let (mut value, mut len): (libc::c_int, libc::socklen_t) = (0, 4);
    let fd = socket.as_raw_fd();
    // SAFETY: the value is an int of the four bytes that `len` states; both live through the call.
    let result = unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, value, &raw mut len)
    };
    result == 0
}

/// Sends a byte to each of two connections in turn, so that no two of one lie side by side in memory, and waits
/// until they have been received, if they are.
async fn byte_by_byte(bytes: &[u8], peers: &mut [RawPeer; 2]) {
    for byte in bytes {
        in_turn(std::slice::from_ref(byte), peers).await;
    }
}

async fn in_turn(piece: &[u8], peers: &mut [RawPeer; 2]) {
    const TURNS_MAX: usize = 50;
    for peer in peers {
        let before = ringpost::stats().bytes_received;
        peer.send(piece);
        for _ in 0..TURNS_MAX {
            if ringpost::stats().bytes_received > before {
                break;
            }
            yield_now().await;
        }
    }
}

/// What keeps a message together must not cost more than the message.
fn byte_by_byte_to_who_reads(engine: EngineChoice) {
    const LEN: usize = 16 << 10;
    block_on(engine, async {
        let (connections, mut peers): (Vec<_>, Vec<_>) = (0..2).map(|_| raw()).unzip();
        let readers = connections.into_iter().map(|mut connection| {
            spawn(async move { connection.recv().await.expect("a message").expect("no end") })
        });
        let readers: Vec<_> = readers.collect();
        peers.iter_mut().for_each(|peer| peer.send(&greeting()));
        let payload = pattern::payload(1, LEN);
        let mut peers = <[RawPeer; 2]>::try_from(peers).expect("two");
        byte_by_byte(&message(&payload), &mut peers).await;
        for reader in readers {
            let message = reader.await.expect("no panic");
            let pieces = message.chunks().count();
            assert!(pieces < 50, "{LEN} bytes lie in {pieces} pieces");
            pattern::check(1, LEN, &message);
        }
    });
}

/// Receiving pauses once what is there takes as much memory as the bound says, however few its bytes are.
fn byte_by_byte_to_who_does_not_read(engine: EngineChoice) {
    /// What the bound does not let in has to fit the sockets, which count each byte sent as some hundreds.
    const LEN: usize = 500;
    let runtime = builder(engine).inbound_bytes_max(32 << 10).build().expect("a runtime");
    run(&runtime, async {
        let (connections, mut peers): (Vec<_>, Vec<_>) = (0..2).map(|_| raw()).unzip();
        peers.iter_mut().for_each(|peer| peer.send(&greeting()));
        let payload = pattern::payload(1, LEN);
        let mut peers = <[RawPeer; 2]>::try_from(peers).expect("two");
        byte_by_byte(&message(&payload), &mut peers).await;
        let paused = ringpost::stats().receives_paused;
        assert_eq!(paused, 2, "both are at their bound");
        // All of it is there nevertheless.
        for mut connection in connections {
            let message = connection.recv().await.expect("a message").expect("no end");
            pattern::check(1, LEN, &message);
        }
    });
}

/// A message that has come in thousands of short pieces is passed on as a copy, not as a list of all of them.
fn passed_on_in_very_many_pieces(engine: EngineChoice) {
    const PIECE: usize = 256;
    const PIECES: usize = 2000;
    const LEN: usize = PIECE * PIECES;
    let runtime = runtime(engine);
    // Each piece would take up a block, and come as a copy once most of the pool is lent.
    if !shared_blocks_or_skip("hostile::passed_on_in_very_many_pieces", &runtime) {
        return;
    }
    run(&runtime, async {
        let (connections, mut peers): (Vec<_>, Vec<_>) = (0..2).map(|_| raw()).unzip();
        let readers = connections.into_iter().map(|mut connection| {
            spawn(async move { connection.recv().await.expect("a message").expect("no end") })
        });
        let readers: Vec<_> = readers.collect();
        peers.iter_mut().for_each(|peer| peer.send(&greeting()));
        let mut peers = <[RawPeer; 2]>::try_from(peers).expect("two");
        let bytes = message(&pattern::payload(1, LEN));
        for piece in bytes.chunks(PIECE) {
            in_turn(piece, &mut peers).await;
        }
        for reader in readers {
            let received = reader.await.expect("no panic");
            assert!(received.chunks().count() > PIECES / 2, "it is in pieces");
            let (mut left, mut right) = pair(ConnectionOptions::new());
            left.ready().await.expect("a greeting");
            let before = ringpost::stats().bytes_copied;
            left.send_message(received).await.expect("room");
            // But for a few, which may have been copied before.
            let copied = ringpost::stats().bytes_copied - before;
            assert!(copied > (LEN - LEN / 10) as u64, "{copied} bytes");
            let message = right.recv().await.expect("a message").expect("no end");
            pattern::check(1, LEN, &message);
        }
    });
}
