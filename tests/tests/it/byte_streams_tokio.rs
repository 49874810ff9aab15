//! Byte streams behind the traits of tokio, under what is written against them. No runtime of tokio is there.

use std::io::{IoSlice, Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;

use bytes::{BufMut, Bytes};
use futures_util::{SinkExt, StreamExt};
use ringpost::{ByteStream, EngineChoice, Listener, spawn};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, byte_pair, byte_peer, join, place};
use tokio::io::{
    AsyncBufReadExt, AsyncReadExt, AsyncWrite as _, AsyncWriteExt, BufReader, BufStream,
    copy_bidirectional, copy_buf,
};
use tokio_util::codec::{Framed, LengthDelimitedCodec, LinesCodec};

on_both_engines!(
    a_proxy,
    lines,
    codecs,
    split_by_tokio,
    buffered,
    copied_from_where_it_lies,
    partly_filled_buffers
);

const TOTAL: usize = 5 << 20;

/// A client and a server of their own threads, and `copy_bidirectional` between them.
fn a_proxy(engine: EngineChoice) {
    let (_directory, front) = place();
    let back = front.with_extension("back");
    let server = UnixListener::bind(&back).expect("bind");
    block_on(engine, async {
        let mut listener = Listener::bind(&front).expect("bind");
        let proxy = spawn(async move {
            let mut client = listener.accept_stream().await.expect("accept");
            let mut server = ByteStream::connect(&back).await.expect("connect");
            copy_bidirectional(&mut client, &mut server).await
        });
        let serving = thread::spawn(move || {
            let (mut socket, _) = server.accept().expect("a proxy");
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).expect("bytes and an end");
            pattern::check(1, TOTAL, &bytes);
            socket.write_all(&pattern::payload(2, TOTAL)).expect("the proxy reads");
        });
        let asking = thread::spawn(move || {
            let mut socket = std::os::unix::net::UnixStream::connect(&front).expect("connect");
            socket.write_all(&pattern::payload(1, TOTAL)).expect("the proxy reads");
            socket.shutdown(std::net::Shutdown::Write).expect("connected");
            let mut bytes = Vec::new();
            socket.read_to_end(&mut bytes).expect("bytes and an end");
            pattern::check(2, TOTAL, &bytes);
        });
        let copied = proxy.await.expect("no panic").expect("both ends");
        assert_eq!(copied, (TOTAL as u64, TOTAL as u64));
        join(asking).await;
        join(serving).await;
    });
}

/// With a buffer of tokio's in between, and straight out of the received bytes.
fn lines(engine: EngineChoice) {
    block_on(engine, async {
        for straight in [false, true] {
            let (stream, mut socket) = byte_peer();
            let writing = thread::spawn(move || {
                for number in 0..20_000 {
                    let fill = "x".repeat(number % 150);
                    write!(socket, "{number} {fill}\r\n").expect("the other side reads");
                }
                write!(socket, "no end of line").expect("the other side reads");
            });
            let mut number = 0;
            let mut check = |line: Option<String>| {
                let expected = match number {
                    0..20_000 => Some(format!("{number} {}", "x".repeat(number % 150))),
                    20_000 => Some("no end of line".to_owned()),
                    _ => None,
                };
                assert_eq!(line, expected);
                number += 1;
                expected.is_some()
            };
            if straight {
                let mut lines = stream.lines();
                while check(lines.next_line().await.expect("lines")) {}
            } else {
                let mut lines = BufReader::with_capacity(777, stream).lines();
                while check(lines.next_line().await.expect("lines")) {}
            }
            join(writing).await;
        }
    });
}

fn codecs(engine: EngineChoice) {
    const LENS: [usize; 8] = [0, 1, 100, 4092, 8188, 65_532, 65_536, 200_000];
    block_on(engine, async {
        let (left, right) = byte_pair();
        let echo = spawn(async move {
            let mut framed = Framed::new(right, LengthDelimitedCodec::new());
            while let Some(frame) = framed.next().await {
                framed.send(frame.expect("a frame").freeze()).await.expect("the peer reads");
            }
            SinkExt::<Bytes>::close(&mut framed).await.expect("the peer reads");
        });
        let mut framed = Framed::new(left, LengthDelimitedCodec::new());
        for (sequence, len) in (0..).zip(LENS.into_iter().cycle().take(80)) {
            let body = pattern::payload(sequence, len);
            framed.send(Bytes::from(body)).await.expect("the peer reads");
            let frame = framed.next().await.expect("no end").expect("a frame");
            pattern::check(sequence, len, &frame);
        }
        SinkExt::<Bytes>::close(&mut framed).await.expect("the peer reads");
        assert!(framed.next().await.is_none());
        echo.await.expect("no panic");

        let (left, right) = byte_pair();
        let mut sink = Framed::new(left, LinesCodec::new());
        sink.send("one line").await.expect("room");
        drop(sink);
        let mut lines = Framed::new(right, LinesCodec::new());
        assert_eq!(lines.next().await.expect("no end").expect("a line"), "one line");
        assert!(lines.next().await.is_none());
    });
}

/// tokio's own split shares the stream behind a lock; each of its halves keeps its waker.
fn split_by_tokio(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = byte_pair();
        let mut tasks = Vec::new();
        for stream in [left, right] {
            let (mut reader, mut writer) = tokio::io::split(stream);
            tasks.push(spawn(async move {
                for piece in pattern::payload(3, TOTAL).chunks(70_001) {
                    writer.write_all(piece).await.expect("the peer reads");
                }
                writer.shutdown().await.expect("the peer reads");
            }));
            tasks.push(spawn(async move {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).await.expect("bytes and an end");
                pattern::check(3, TOTAL, &bytes);
            }));
        }
        for task in tasks {
            task.await.expect("no panic");
        }
    });
}

fn buffered(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = byte_pair();
        let (mut left, mut right) = (BufStream::new(left), BufStream::new(right));
        for number in 0..1000_u64 {
            left.write_u64(number).await.expect("room");
            left.flush().await.expect("the peer reads");
            assert_eq!(right.read_u64().await.expect("bytes"), number);
            right.write_u64(number).await.expect("room");
            right.flush().await.expect("the peer reads");
            assert_eq!(left.read_u64().await.expect("bytes"), number);
        }
    });
}

/// `copy_buf` writes what the reader lends, without a buffer of its own.
fn copied_from_where_it_lies(engine: EngineChoice) {
    block_on(engine, async {
        let (source, mut socket) = byte_peer();
        let (near, far) = byte_pair();
        let writing = thread::spawn(move || {
            socket.write_all(&pattern::payload(4, TOTAL)).expect("the other side reads");
        });
        let copying = spawn(async move {
            let (mut source, _) = source.split();
            let (_, mut near) = near.split();
            let count = copy_buf(&mut source, &mut near).await.expect("bytes and an end");
            near.shutdown().await.expect("the peer reads");
            count
        });
        let (mut far, _) = far.split();
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).await.expect("bytes and an end");
        pattern::check(4, TOTAL, &bytes);
        assert_eq!(copying.await.expect("no panic"), TOTAL as u64);
        join(writing).await;
    });
}

/// A buffer that has something in it keeps that, and gets what fits behind it.
fn partly_filled_buffers(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = byte_pair();
        assert!(left.is_write_vectored() && left.halves().1.is_write_vectored());
        let written = left.write_vectored(&[IoSlice::new(b"ab"), IoSlice::new(b"cdefgh")]).await;
        assert_eq!(written.expect("room"), 8);
        left.shutdown().await.expect("the peer is there");
        let mut bytes = Vec::with_capacity(10);
        bytes.extend_from_slice(b"0123456");
        let mut limited = (&mut bytes).limit(3);
        while right.read_buf(&mut limited).await.expect("bytes") > 0 {}
        assert_eq!(bytes, b"0123456abc");
        let mut rest = Vec::new();
        right.read_to_end(&mut rest).await.expect("an end");
        assert_eq!(rest, b"defgh");
    });
}
