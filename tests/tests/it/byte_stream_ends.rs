//! How byte streams end: half-closes, peers that vanish, runtimes that end, and the errors that tell.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use futures_util::{AsyncReadExt, AsyncWriteExt};
use ringpost::{AccessPolicy, ByteStream, Closed, EngineChoice, Listener, SendError, spawn};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{
    block_on, blocking, builder, byte_pair, byte_peer, place, poll_at_most, run, runtime,
};

use crate::roles;

on_both_engines!(
    ours_first,
    theirs_first,
    a_close_that_waits,
    a_dropped_writer_ends_its_direction,
    a_dropped_stream_sends_the_rest,
    a_dropped_stream_whose_peer_had_ended,
    closed_for_writing,
    reset,
    gone_while_waiting,
    killed,
    the_runtime_ends,
    refused_by_the_policy,
    nobody_listens
);

const LEN: usize = 300_000;

fn kind<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> ErrorKind {
    outcome.expect_err("an error").kind()
}

fn ours_first(engine: EngineChoice) {
    block_on(engine, async {
        let (mut stream, mut socket) = byte_peer();
        let peer = blocking(move || {
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).expect("bytes and an end");
            pattern::check(1, LEN, &bytes);
            socket.write_all(&pattern::payload(2, LEN)).expect("the other side reads");
        });
        let peer = spawn(peer);
        stream.write_all(&pattern::payload(1, LEN)).await.expect("the peer reads");
        stream.close().await.expect("the peer reads");
        stream.close().await.expect("the same again");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("reading goes on");
        pattern::check(2, LEN, &bytes);
        for _ in 0..3 {
            assert_eq!(stream.read(&mut [0]).await.expect("an end"), 0);
        }
        peer.await.expect("no panic");
    });
}

fn theirs_first(engine: EngineChoice) {
    block_on(engine, async {
        let (mut stream, mut socket) = byte_peer();
        socket.write_all(b"request").expect("it fits");
        socket.shutdown(Shutdown::Write).expect("connected");
        let mut request = String::new();
        stream.read_to_string(&mut request).await.expect("bytes and an end");
        assert_eq!(request, "request");
        let peer = spawn(blocking(move || {
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).expect("bytes and an end");
            pattern::check(3, LEN, &bytes);
        }));
        stream.write_all(&pattern::payload(3, LEN)).await.expect("writing goes on");
        stream.flush().await.expect("writing goes on");
        stream.close().await.expect("writing goes on");
        peer.await.expect("no panic");
        assert_eq!(stream.read(&mut [0]).await.expect("still an end"), 0);
    });
}

/// A close that is dropped while it waits happens all the same, behind everything accepted.
fn a_close_that_waits(engine: EngineChoice) {
    block_on(engine, async {
        let (mut stream, mut socket) = byte_peer();
        let bytes = pattern::payload(4, 4 << 20);
        let mut sent = 0;
        while let Some(count) = poll_at_most(100, stream.write(&bytes[sent..])).await {
            sent += count.expect("the peer is there");
        }
        assert!(poll_at_most(10, stream.close()).await.is_none(), "the peer does not read");
        assert_eq!(kind(stream.write(b"more").await), ErrorKind::BrokenPipe);
        let received = spawn(blocking(move || {
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).expect("bytes and an end");
            bytes
        }));
        let received = received.await.expect("no panic");
        assert_eq!(received, &bytes[..sent]);
        stream.close().await.expect("it is done");
    });
}

fn a_dropped_writer_ends_its_direction(engine: EngineChoice) {
    block_on(engine, async {
        // With bytes to send, and without.
        for len in [0, 10, LEN] {
            let (stream, mut socket) = byte_peer();
            let (mut reader, mut writer) = stream.split();
            let peer = thread::spawn(move || {
                let mut bytes = Vec::new();
                socket.read_to_end(&mut bytes).expect("bytes and an end");
                pattern::check(5, len, &bytes);
                socket.write_all(b"got it").expect("the other side reads");
            });
            writer.write_all(&pattern::payload(5, len)).await.expect("the peer reads");
            drop(writer);
            // Nothing else goes on in this runtime.
            let mut text = String::new();
            reader.read_to_string(&mut text).await.expect("an end");
            assert_eq!(text, "got it");
            peer.join().expect("no panic");
        }
    });
}

fn a_dropped_stream_sends_the_rest(engine: EngineChoice) {
    block_on(engine, async {
        let (mut stream, mut socket) = byte_peer();
        let bytes = pattern::payload(6, LEN);
        let mut sent = 0;
        while let Some(count) = poll_at_most(100, stream.write(&bytes[sent..])).await {
            sent += count.expect("the peer is there");
            if sent == LEN {
                break;
            }
        }
        drop(stream);
        let received = blocking(move || {
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).expect("bytes and an end");
            bytes
        });
        assert_eq!(received.await, &bytes[..sent]);
    });
}

/// Request, half-close, reply, drop: the end comes right behind the reply, whatever the linger time.
fn a_dropped_stream_whose_peer_had_ended(engine: EngineChoice) {
    let linger = Duration::from_secs(3600);
    let runtime = builder(engine).linger(linger).build().expect("a runtime");
    run(&runtime, async {
        let (mut stream, mut socket) = byte_peer();
        socket.shutdown(Shutdown::Write).expect("connected");
        assert_eq!(stream.read(&mut [0]).await.expect("an end"), 0);
        let (done, reply) = ringpost::oneshot();
        thread::spawn(move || {
            let mut text = String::new();
            let outcome = socket.read_to_string(&mut text).map(|_| text);
            // Nobody listens if the test is over.
            let _ = done.send(outcome);
        });
        stream.write_all(b"reply").await.expect("room");
        drop(stream);
        // Nothing else goes on in this runtime.
        let reply = reply.await.expect("the thread tells");
        assert_eq!(reply.expect("bytes and an end"), "reply");
    });
}

fn closed_for_writing(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = byte_pair();
        left.write_all(b"all").await.expect("room");
        left.close().await.expect("the peer is there");
        for _ in 0..2 {
            let error = left.write(b"more").await.expect_err("closed");
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            let source = error.get_ref().and_then(|source| source.downcast_ref::<SendError>());
            assert_eq!(source, Some(&SendError::Finished));
            left.flush().await.expect("nothing is lost");
        }
        let mut text = String::new();
        right.read_to_string(&mut text).await.expect("an end");
        assert_eq!(text, "all");
    });
}

/// The peer closes with bytes unread: what it sent arrives, then a reset; writing finds a broken pipe.
fn reset(engine: EngineChoice) {
    block_on(engine, async {
        let (mut stream, mut socket) = byte_peer();
        stream.write_all(b"not read").await.expect("room");
        stream.flush().await.expect("the kernel takes it");
        socket.write_all(b"last words").expect("it fits");
        drop(socket);
        let mut bytes = [0; 10];
        stream.read_exact(&mut bytes).await.expect("what came before");
        assert_eq!(&bytes, b"last words");
        for _ in 0..2 {
            let error = stream.read(&mut [0]).await.expect_err("a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let source = error.get_ref().and_then(|source| source.downcast_ref::<Closed>());
            assert_eq!(source, Some(&Closed::Aborted));
        }
        // The kernel tells on the first send, which the queue has accepted before.
        let _ = stream.write(b"more").await;
        assert_eq!(kind(stream.flush().await), ErrorKind::BrokenPipe);
        assert_eq!(kind(stream.write(b"more").await), ErrorKind::BrokenPipe);
        assert_eq!(kind(stream.flush().await), ErrorKind::BrokenPipe);
        assert_eq!(kind(stream.close().await), ErrorKind::BrokenPipe);
    });
}

/// Tasks that wait on both halves are woken when the peer goes.
fn gone_while_waiting(engine: EngineChoice) {
    block_on(engine, async {
        let (stream, socket) = byte_peer();
        let (mut reader, mut writer) = stream.split();
        let reading = spawn(async move { reader.read(&mut [0]).await });
        let writing = spawn(async move {
            loop {
                if let Err(error) = writer.write(&[0; 10_000]).await {
                    break error.kind();
                }
            }
        });
        for _ in 0..100 {
            ringpost::yield_now().await;
        }
        assert!(!reading.is_finished() && !writing.is_finished(), "both wait");
        drop(socket);
        assert_eq!(kind(reading.await.expect("no panic")), ErrorKind::ConnectionReset);
        assert_eq!(writing.await.expect("no panic"), ErrorKind::BrokenPipe);
    });
}

/// A process that is killed, with bytes unread or not.
fn killed(engine: EngineChoice) {
    let (_directory, path) = place();
    for unread in [false, true] {
        block_on(engine, async {
            let mut listener = Listener::bind(&path).expect("bind");
            let words = [path.to_str().expect("text"), &roles::to_hex(b"half a lin"), "silent"];
            let mut child = roles::start("writer", &words);
            let mut streams = Vec::new();
            // The child makes a connection for every prefix.
            for _ in 0..=b"half a lin".len() {
                streams.push(listener.accept_stream().await.expect("accept"));
            }
            let mut child = blocking(move || {
                assert_eq!(child.hear(), "written");
                child
            })
            .await;
            if unread {
                for stream in &mut streams {
                    stream.write_all(b"nobody reads this").await.expect("room");
                    stream.flush().await.expect("the kernel takes it");
                }
            }
            child.kill();
            for (len, mut stream) in streams.into_iter().enumerate() {
                let mut bytes = Vec::new();
                let end = stream.read_to_end(&mut bytes).await;
                assert_eq!(bytes, &b"half a lin"[..len]);
                match unread {
                    true => assert_eq!(kind(end), ErrorKind::ConnectionReset),
                    false => assert_eq!(end.expect("an end"), len),
                }
                let _ = stream.write(b"more").await;
                assert_eq!(kind(stream.flush().await), ErrorKind::BrokenPipe);
            }
        });
    }
}

fn the_runtime_ends(engine: EngineChoice) {
    let first = runtime(engine);
    let (mut stream, mut socket) = run(&first, async {
        let (mut stream, mut socket) = byte_peer();
        socket.write_all(b"received before").expect("it fits");
        let mut first = [0; 8];
        stream.read_exact(&mut first).await.expect("bytes");
        stream.write_all(b"accepted before").await.expect("room");
        (stream, socket)
    });
    drop(first);
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an end");
    assert_eq!(text, "accepted before");
    block_on(engine, async {
        let mut rest = String::new();
        let error = stream.read_to_string(&mut rest).await.expect_err("no end but an error");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert_eq!(kind(stream.write(b"more").await), ErrorKind::ConnectionAborted);
        assert_eq!(kind(stream.flush().await), ErrorKind::ConnectionAborted);
        assert_eq!(kind(stream.close().await), ErrorKind::ConnectionAborted);
    });
}

/// A peer of a foreign protocol must not find frames of ours: it finds an end.
fn refused_by_the_policy(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let own = rustix::process::geteuid().as_raw();
        let policy = AccessPolicy::default().allow_uid(own + 1);
        let mut listener = Listener::builder().policy(policy).bind(&path).expect("bind");
        let accepting = spawn(async move { listener.accept_stream().await.map(drop) });
        let mut stream = ByteStream::connect(&path).await.expect("connect");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("an end");
        assert!(bytes.is_empty(), "{bytes:?}");
        assert!(!accepting.is_finished());
    });
}

fn nobody_listens(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let error = ByteStream::connect(&path).await.expect_err("nobody listens");
        assert!(error.to_string().contains(path.to_str().expect("text")), "{error}");
    });
}
