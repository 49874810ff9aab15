//! Byte streams behind the traits of futures-io: every byte arrives, once, in order, however it is cut.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::thread;

use futures_util::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt,
};
use ringpost::{
    AcceptError, ByteReader, ByteStream, ByteWriter, ConnectionOptions, EngineChoice, Listener,
    spawn, stats,
};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{
    block_on, builder, byte_pair, byte_peer, join, place, poll_at_most, run, until,
};

on_both_engines!(
    every_size,
    cut_at_random_as_client,
    cut_at_random_as_server,
    lent_in_place,
    a_read_takes_what_fits,
    several_buffers,
    nothing_to_read_or_write,
    dropped_reads_and_writes,
    bounded_by_the_queue,
    halves_in_two_tasks,
    packets_are_no_byte_stream
);

/// Sizes around those of blocks, batches and queues.
fn sizes() -> Vec<usize> {
    let around = [512, 4 << 10, 8 << 10, (64 << 10) - 64, 64 << 10, 128 << 10, 256 << 10];
    let near = |size: usize| [size - 8, size - 1, size, size + 1, size + 9];
    [0, 1, 2, 7, 8, 9]
        .into_iter()
        .chain(around.into_iter().flat_map(near))
        .chain([1 << 20])
        .collect()
}

/// Sends back what comes until it ends, then ends.
fn echo(mut socket: UnixStream) {
    let mut buffer = vec![0; 50_000];
    loop {
        match socket.read(&mut buffer).expect("the other side goes on") {
            0 => return,
            count => socket.write_all(&buffer[..count]).expect("the other side reads"),
        }
    }
}

fn every_size(engine: EngineChoice) {
    block_on(engine, async {
        let (stream, socket) = byte_peer();
        let peer = thread::spawn(move || echo(socket));
        let (mut reader, mut writer) = stream.split();
        let writing = spawn(async move {
            for (sequence, size) in (0..).zip(sizes()) {
                writer.write_all(&pattern::payload(sequence, size)).await.expect("the peer reads");
                if sequence % 3 == 0 {
                    writer.flush().await.expect("the peer reads");
                    assert_eq!(writer.queued_bytes(), 0);
                }
            }
            writer.close().await.expect("the peer reads");
        });
        for (sequence, size) in (0..).zip(sizes()) {
            let mut bytes = vec![0; size];
            reader.read_exact(&mut bytes).await.expect("they come back");
            pattern::check(sequence, size, &bytes);
        }
        assert_eq!(reader.read(&mut [0]).await.expect("an end"), 0);
        writing.await.expect("no panic");
        join(peer).await;
    });
}

const TOTAL: usize = 6 << 20;

/// Writes and reads both ways at once, in pieces of any size; both ends check everything.
async fn cut_at_random(stream: ByteStream, socket: UnixStream, seed: u64) {
    let ours = pattern::payload(1, TOTAL);
    let theirs = pattern::payload(2, TOTAL);
    let their_writer = socket.try_clone().expect("descriptors");
    let writing = thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut socket, mut rest) = (their_writer, &theirs[..]);
        while !rest.is_empty() {
            let piece = rest.len().min(length(&mut random));
            socket.write_all(&rest[..piece]).expect("the other side reads");
            rest = &rest[piece..];
        }
        socket.shutdown(std::net::Shutdown::Write).expect("connected");
    });
    let reading = thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(seed + 1);
        let (mut socket, mut bytes) = (socket, Vec::new());
        let mut buffer = vec![0; LENGTH_MAX];
        loop {
            let room = length(&mut random);
            match socket.read(&mut buffer[..room]).expect("bytes or an end") {
                0 => break pattern::check(1, TOTAL, &bytes),
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    });
    let (reader, writer) = stream.split();
    let sending = spawn(write_at_random(writer, ours, seed + 2));
    pattern::check(2, TOTAL, &read_at_random(reader, seed + 3).await);
    sending.await.expect("no panic");
    join(writing).await;
    join(reading).await;
}

const LENGTH_MAX: usize = 200_000;

/// From one byte up, each order of magnitude as likely as the other.
fn length(random: &mut fastrand::Rng) -> usize {
    let most = [1, 10, 100, 1000, 10_000, LENGTH_MAX][random.usize(..6)];
    random.usize(1..=most)
}

async fn write_at_random(mut writer: ByteWriter, bytes: Vec<u8>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let lens: [usize; 4] = std::array::from_fn(|_| length(&mut random));
        let written = match random.u8(..3) {
            0 => writer.write(&rest[..rest.len().min(lens[0])]).await,
            1 => {
                let mut from = rest;
                let slices = lens.map(|len| {
                    let (front, behind) = from.split_at(from.len().min(len));
                    from = behind;
                    IoSlice::new(front)
                });
                writer.write_vectored(&slices).await
            }
            _ => writer.flush().await.map(|()| 0),
        };
        rest = &rest[written.expect("the peer reads")..];
    }
    writer.close().await.expect("the peer reads");
}

async fn read_at_random(mut reader: ByteReader, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = Vec::new();
    let mut buffer = vec![0; LENGTH_MAX];
    loop {
        let room = length(&mut random);
        let count = match random.u8(..3) {
            0 => {
                let count = reader.read(&mut buffer[..room]).await.expect("bytes or an end");
                bytes.extend_from_slice(&buffer[..count]);
                count
            }
            1 => {
                let (front, back) = buffer.split_at_mut(room / 3);
                let mut slices =
                    [IoSliceMut::new(front), IoSliceMut::new(&mut []), IoSliceMut::new(back)];
                let count = reader.read_vectored(&mut slices).await.expect("bytes or an end");
                bytes.extend_from_slice(&buffer[..count]);
                count
            }
            _ => {
                let lent = reader.fill_buf().await.expect("bytes or an end");
                let count = lent.len().min(room);
                bytes.extend_from_slice(&lent[..count]);
                reader.consume_unpin(count);
                count
            }
        };
        if count == 0 {
            return bytes;
        }
    }
}

fn cut_at_random_as_client(engine: EngineChoice) {
    let (_directory, path) = place();
    let listener = UnixListener::bind(&path).expect("bind");
    block_on(engine, async {
        let stream = ByteStream::connect(&path).await.expect("connect");
        let (socket, _) = listener.accept().expect("it is in the backlog");
        let credentials = stream.peer_credentials().expect("a Unix socket");
        assert_eq!(credentials.pid, Some(std::process::id()));
        cut_at_random(stream, socket, 10).await;
    });
}

fn cut_at_random_as_server(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("bind");
        let socket = UnixStream::connect(&path).expect("connect");
        let stream = listener.accept_stream().await.expect("accept");
        assert!(rustix::net::sockopt::socket_acceptconn(stream.as_fd()).is_ok_and(|is| !is));
        cut_at_random(stream, socket, 20).await;
    });
}

/// What is read as lent is not copied, and what is not consumed stays.
fn lent_in_place(engine: EngineChoice) {
    block_on(engine, async {
        let (mut stream, mut socket) = byte_peer();
        let bytes = pattern::payload(3, 30_000);
        socket.write_all(&bytes).expect("it fits");
        let mut read = Vec::new();
        while read.len() < bytes.len() {
            let lent = stream.fill_buf().await.expect("bytes");
            assert!(!lent.is_empty());
            let first = lent[0];
            let some = lent.len().div_ceil(2);
            read.extend_from_slice(&lent[..some]);
            stream.consume_unpin(0);
            assert_eq!(stream.fill_buf().await.expect("the same bytes")[0], first);
            stream.consume_unpin(some);
        }
        pattern::check(3, bytes.len(), &read);
        assert_eq!(stats().bytes_copied, 0);

        socket.write_all(&bytes).expect("it fits");
        let mut copy = vec![0; bytes.len()];
        stream.read_exact(&mut copy).await.expect("bytes");
        assert_eq!(copy, bytes);
        assert_eq!(stats().bytes_copied, bytes.len() as u64, "a read copies once");
        // More than was lent: no more than that is taken.
        socket.write_all(b"ab").expect("it fits");
        let lent = stream.fill_buf().await.expect("bytes").len();
        stream.consume_unpin(lent + 100);
        stream.consume_unpin(1);
        drop(socket);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("an end");
        assert_eq!(rest.len(), 2 - lent);
    });
}

/// A read fills the buffer out of several chunks, and waits for none.
fn a_read_takes_what_fits(engine: EngineChoice) {
    let runtime = builder(engine).pool_bytes(512 << 10).build().expect("a runtime");
    run(&runtime, async {
        let (mut stream, mut socket) = byte_peer();
        let bytes = pattern::payload(4, 100_000);
        let mut read = Vec::new();
        for piece in bytes.chunks(10_000) {
            socket.write_all(piece).expect("it fits");
            until("bytes are there", || {
                let mut context = Context::from_waker(Waker::noop());
                matches!(Pin::new(&mut stream).poll_fill_buf(&mut context), Poll::Ready(Ok(_)))
            })
            .await;
            let mut buffer = [0xEE; 3001];
            let count = stream.read(&mut buffer[..3000]).await.expect("bytes");
            assert_eq!(buffer[3000], 0xEE);
            read.extend_from_slice(&buffer[..count]);
        }
        let mut rest = vec![0; bytes.len() - read.len()];
        stream.read_exact(&mut rest).await.expect("bytes");
        read.append(&mut rest);
        pattern::check(4, bytes.len(), &read);
    });
}

fn several_buffers(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = byte_pair();
        let parts = [&b"one"[..], b"", b"three", b"", b"", b"six"];
        let slices = parts.map(IoSlice::new);
        let written = left.write_vectored(&slices).await.expect("room");
        assert_eq!(written, 11, "all of them at once");
        let (mut first, mut second) = ([0; 4], [0; 100]);
        until("bytes are there", || {
            let mut context = Context::from_waker(Waker::noop());
            matches!(Pin::new(&mut right).poll_fill_buf(&mut context), Poll::Ready(Ok(_)))
        })
        .await;
        let mut slices = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        assert_eq!(right.read_vectored(&mut slices).await.expect("bytes"), 11);
        assert_eq!(&first, b"onet");
        assert_eq!(&second[..7], b"hreesix");
        assert_eq!(second[7], 0);
        let many = vec![IoSlice::new(b"x"); 5000];
        assert_eq!(left.write_vectored(&many).await.expect("room"), 5000, "beyond IOV_MAX");
        let mut bytes = [0; 5000];
        right.read_exact(&mut bytes).await.expect("bytes");
        assert!(bytes.iter().all(|byte| *byte == b'x'));
    });
}

fn nothing_to_read_or_write(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = byte_pair();
        let mut context = Context::from_waker(Waker::noop());
        let mut left_pin = Pin::new(&mut left);
        // None of these waits.
        assert!(matches!(left_pin.as_mut().poll_read(&mut context, &mut []), Poll::Ready(Ok(0))));
        assert!(matches!(
            left_pin.as_mut().poll_read_vectored(&mut context, &mut []),
            Poll::Ready(Ok(0))
        ));
        assert!(matches!(left_pin.as_mut().poll_write(&mut context, &[]), Poll::Ready(Ok(0))));
        assert!(matches!(
            left_pin.as_mut().poll_write_vectored(&mut context, &[IoSlice::new(&[])]),
            Poll::Ready(Ok(0))
        ));
        assert!(matches!(left_pin.as_mut().poll_flush(&mut context), Poll::Ready(Ok(()))));
        assert!(left_pin.as_mut().poll_read(&mut context, &mut [0]).is_pending());
        left.close().await.expect("nothing to send");
        assert_eq!(right.read(&mut [0]).await.expect("an end"), 0);
    });
}

fn dropped_reads_and_writes(engine: EngineChoice) {
    const BYTES: usize = 3 << 20;
    let runtime = builder(engine).outbound_bytes_max(40_000).build().expect("a runtime");
    run(&runtime, async {
        let (left, right) = byte_pair();
        let (_left_reader, mut writer) = left.split();
        let (mut reader, _right_writer) = right.split();
        let sending = spawn(async move {
            let mut random = fastrand::Rng::with_seed(5);
            let bytes = pattern::payload(5, BYTES);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let polls = random.u32(..3);
                let piece = rest.len().min(length(&mut random));
                let written = match random.u8(..4) {
                    0 => poll_at_most(polls, writer.flush()).await.map(|done| done.map(|()| 0)),
                    1 => {
                        let (front, back) = rest[..piece].split_at(piece / 2);
                        let slices = [IoSlice::new(front), IoSlice::new(back)];
                        poll_at_most(polls, writer.write_vectored(&slices)).await
                    }
                    _ => poll_at_most(polls, writer.write(&rest[..piece])).await,
                };
                if let Some(written) = written {
                    rest = &rest[written.expect("the reader reads")..];
                }
                ringpost::yield_now().await;
            }
            while poll_at_most(random.u32(..3), writer.close()).await.is_none() {
                ringpost::yield_now().await;
            }
        });
        let mut random = fastrand::Rng::with_seed(6);
        let mut bytes = Vec::new();
        let mut buffer = vec![0; LENGTH_MAX];
        loop {
            let polls = random.u32(..3);
            let room = length(&mut random);
            let read = if random.bool() {
                poll_at_most(polls, reader.read(&mut buffer[..room])).await
            } else {
                // Lends, and takes nothing.
                let lent = poll_at_most(polls, reader.fill_buf()).await;
                assert!(lent.is_none_or(|lent| lent.is_ok()));
                None
            };
            match read {
                Some(Ok(0)) => break,
                Some(Ok(count)) => bytes.extend_from_slice(&buffer[..count]),
                Some(Err(error)) => panic!("{error}"),
                None => ringpost::yield_now().await,
            }
        }
        pattern::check(5, BYTES, &bytes);
        sending.await.expect("no panic");
    });
}

/// A peer that does not read: writes wait at the bound, and go on when it reads.
fn bounded_by_the_queue(engine: EngineChoice) {
    const BOUND: usize = 50_000;
    let runtime = builder(engine).outbound_bytes_max(BOUND).build().expect("a runtime");
    run(&runtime, async {
        for vectored in [false, true] {
            let (mut stream, mut socket) = byte_peer();
            let bytes = pattern::payload(7, 4 << 20);
            let mut sent = 0;
            loop {
                let rest = &bytes[sent..];
                let slices = [IoSlice::new(&rest[..1000]), IoSlice::new(&rest[1000..1 << 20])];
                let write = async {
                    match vectored {
                        true => stream.write_vectored(&slices).await,
                        false => stream.write(rest).await,
                    }
                };
                // More turns than the kernel needs to take what it takes.
                match poll_at_most(200, write).await {
                    Some(count) => sent += count.expect("the peer is there"),
                    None => break,
                }
                let queued = stream.queued_bytes();
                assert!(queued <= BOUND, "{queued} bytes are queued, the bound is {BOUND}");
                assert!(sent < bytes.len() - (1 << 20), "a socket that takes everything");
            }
            assert_eq!(stream.queued_bytes(), BOUND, "as much as may be");
            assert!(poll_at_most(20, stream.flush()).await.is_none());
            let reader = thread::spawn(move || {
                let mut bytes = Vec::new();
                socket.read_to_end(&mut bytes).expect("bytes and an end");
                bytes
            });
            stream.write_all(&bytes[sent..]).await.expect("the peer reads again");
            stream.close().await.expect("the peer reads again");
            pattern::check(7, bytes.len(), &join(reader).await);
        }
    });
}

/// A task reads while another waits for room, and each is woken for its own side.
fn halves_in_two_tasks(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = byte_pair();
        let [left, right] = [left, right].map(|stream| {
            let (reader, writer) = stream.split();
            let writing = spawn(write_at_random(writer, pattern::payload(8, TOTAL), 30));
            let reading = spawn(read_at_random(reader, 31));
            (writing, reading)
        });
        for (writing, reading) in [left, right] {
            writing.await.expect("no panic");
            pattern::check(8, TOTAL, &reading.await.expect("no panic"));
        }

        let (left, right) = byte_pair();
        let (reader, writer) = left.split();
        let (other_reader, other_writer) = right.split();
        let (reader, other_writer) = ByteStream::join(reader, other_writer).expect_err("of two");
        let mut left = ByteStream::join(reader, writer).expect("of one");
        let mut right = ByteStream::join(other_reader, other_writer).expect("of one");
        left.write_all(b"whole again").await.expect("room");
        drop(left);
        let mut text = String::new();
        right.read_to_string(&mut text).await.expect("an end");
        assert_eq!(text, "whole again");
    });
}

/// What a read does not take of a packet would be lost.
fn packets_are_no_byte_stream(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let options = ConnectionOptions::new().seqpacket();
        let mut listener = Listener::builder().connection(options).bind(&path).expect("bind");
        let refused = listener.accept_stream().await.map(|_| ());
        assert_eq!(refused, Err(AcceptError::Kernel { errno: libc::EPROTOTYPE }));
    });
}
