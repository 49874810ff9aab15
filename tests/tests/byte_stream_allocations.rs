//! What a byte stream costs in steady state: no operation of either family of traits allocates.
//!
//! One test, because it counts for the whole process: the allocator is replaced.

use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::io::IoSlice;
use std::pin::Pin;
use std::task::ready;

use ringpost::{ByteReader, ByteStream, ByteWriter, EngineChoice, spawn};
use ringpost_testkit::child::skip;
use ringpost_tests::counting::Counting;
use ringpost_tests::engines::{EPOLL, URING};
use ringpost_tests::rig::{builder, byte_pair, run};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Bytes of a stretch, both ways together, by length of a piece.
const CASES: [(usize, usize); 5] =
    [(1, 20_000), (100, 1 << 20), (3000, 16 << 20), (40_000, 24 << 20), (1 << 20, 48 << 20)];

#[test]
fn a_byte_in_steady_state() {
    for engine in [URING, EPOLL] {
        if let Err(error) = builder(engine).build() {
            skip("a_byte_in_steady_state", &error.to_string());
            continue;
        }
        for (piece, total) in CASES {
            for way in [Way::Copy, Way::Vectored, Way::Lend] {
                for traits in [Traits::Futures, Traits::Tokio] {
                    measure(engine, piece, total, way, traits);
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Copy,
    Vectored,
    Lend,
}

#[derive(Debug, Clone, Copy)]
enum Traits {
    Futures,
    Tokio,
}

/// Sends pieces to an echo, eight on the way at most, and counts after a warm-up of the same length.
fn measure(engine: EngineChoice, piece: usize, total: usize, way: Way, traits: Traits) {
    let runtime = builder(engine).build().expect("it was built before");
    let (allocations, pauses) = run(&runtime, async {
        let (client, server) = byte_pair();
        let (mut reader, mut writer) = server.split();
        spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            while let Some(len) = read(&mut reader, &mut buffer, way, traits).await {
                write(&mut writer, &buffer[..len], way, traits).await;
            }
            pending::<()>().await;
        });
        let mut client = client;
        let bytes = vec![7; piece];
        let mut buffer = vec![0; 64 << 10];
        exchange(&mut client, &bytes, &mut buffer, total, way, traits).await;
        let (start, before) = (ALLOCATOR.allocations(), ringpost::stats().receives_paused);
        exchange(&mut client, &bytes, &mut buffer, total, way, traits).await;
        (ALLOCATOR.allocations() - start, ringpost::stats().receives_paused - before)
    });
    let case = format!("{engine:?}, {piece} bytes at once, {way:?}, {traits:?}");
    println!("{case}: {allocations} allocations, {pauses} pauses");
    // epoll forgets a socket whose reader lags, and makes a small note when it reads on.
    let most = if engine == EPOLL { pauses } else { 0 };
    assert!(allocations <= most, "{case}: {allocations} allocations, at most {most}");
}

async fn exchange(
    client: &mut ByteStream,
    bytes: &[u8],
    buffer: &mut [u8],
    total: usize,
    way: Way,
    traits: Traits,
) {
    let (reader, writer) = client.halves();
    let pieces = total / 2 / bytes.len();
    let (sent, received) = (Cell::new(0), Cell::new(0));
    let writing = async {
        for _ in 0..pieces {
            write(writer, bytes, way, traits).await;
            sent.set(sent.get() + bytes.len());
            while sent.get() - received.get() > 8 * bytes.len() {
                ringpost::yield_now().await;
            }
        }
    };
    let reading = async {
        while received.get() < pieces * bytes.len() {
            let len = read(reader, buffer, way, traits).await.expect("no end");
            received.set(received.get() + len);
        }
    };
    futures_util::future::join(writing, reading).await;
}

/// What came, in the buffer; `None` at the end.
async fn read(
    reader: &mut ByteReader,
    buffer: &mut [u8],
    way: Way,
    traits: Traits,
) -> Option<usize> {
    let len = match (way, traits) {
        (Way::Lend, Traits::Futures) => {
            use futures_util::AsyncBufReadExt;
            let lent = reader.fill_buf().await.expect("the other side goes on");
            let len = lent.len().min(buffer.len());
            buffer[..len].copy_from_slice(&lent[..len]);
            reader.consume_unpin(len);
            len
        }
        (Way::Lend, Traits::Tokio) => {
            use tokio::io::AsyncBufReadExt;
            let lent = reader.fill_buf().await.expect("the other side goes on");
            let len = lent.len().min(buffer.len());
            buffer[..len].copy_from_slice(&lent[..len]);
            reader.consume(len);
            len
        }
        (_, Traits::Futures) => {
            use futures_util::AsyncReadExt;
            reader.read(buffer).await.expect("the other side goes on")
        }
        (_, Traits::Tokio) => {
            use tokio::io::AsyncReadExt;
            reader.read(buffer).await.expect("the other side goes on")
        }
    };
    (len > 0).then_some(len)
}

async fn write(writer: &mut ByteWriter, bytes: &[u8], way: Way, traits: Traits) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (front, back) = rest.split_at(rest.len() / 3);
        let slices = [IoSlice::new(front), IoSlice::new(back)];
        let written = poll_fn(|context| {
            let writer = Pin::new(&mut *writer);
            match (way, traits) {
                (Way::Vectored, Traits::Futures) => {
                    futures_util::AsyncWrite::poll_write_vectored(writer, context, &slices)
                }
                (Way::Vectored, Traits::Tokio) => {
                    tokio::io::AsyncWrite::poll_write_vectored(writer, context, &slices)
                }
                (_, Traits::Futures) => futures_util::AsyncWrite::poll_write(writer, context, rest),
                (_, Traits::Tokio) => tokio::io::AsyncWrite::poll_write(writer, context, rest),
            }
        });
        rest = &rest[written.await.expect("the other side reads")..];
    }
    poll_fn(|context| {
        ready!(tokio::io::AsyncWrite::poll_flush(Pin::new(&mut *writer), context))
            .expect("the other side reads");
        std::task::Poll::Ready(())
    })
    .await;
}
