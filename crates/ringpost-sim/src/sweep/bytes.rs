//! Byte streams, by the traits of `futures-io` and of tokio.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ringpost::{ByteStream, spawn};
use ringpost_testkit::pattern;
use tokio::io::ReadBuf;

use super::cut::{Cut, persist};
use super::peers::sockets;
use super::{Operation, operations};
use crate::rig::Rig;

/// Bytes in one direction, for a queue: some times what it holds.
fn length(rig: &Rig) -> usize {
    (rig.outbound_bytes_max * 10).clamp(50, 30_000)
}

/// Bytes of a buffer that is read into.
const PIECE_BYTES: usize = 1500;
/// What the other side waits between two pieces, microseconds.
const PAUSE_US: u64 = 100;

#[derive(Debug, Clone, Copy)]
enum Read {
    Plain,
    Vectored,
    Lent,
    Tokio,
    TokioLent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    Plain,
    Vectored,
    Flush,
    Close,
    Tokio,
    TokioVectored,
    TokioFlush,
    TokioShutdown,
}

/// Which type has the trait.
#[derive(Debug, Clone, Copy)]
enum On {
    Stream,
    Half,
}

pub(super) const OPERATIONS: &[Operation] = operations! {
    "futures AsyncRead for ByteStream::poll_read" |rig, cut| reading(rig, cut, Read::Plain, On::Stream);
    "futures AsyncRead for ByteStream::poll_read_vectored" |rig, cut| reading(rig, cut, Read::Vectored, On::Stream);
    "futures AsyncBufRead for ByteStream::poll_fill_buf" |rig, cut| reading(rig, cut, Read::Lent, On::Stream);
    "tokio AsyncRead for ByteStream::poll_read" |rig, cut| reading(rig, cut, Read::Tokio, On::Stream);
    "tokio AsyncBufRead for ByteStream::poll_fill_buf" |rig, cut| reading(rig, cut, Read::TokioLent, On::Stream);
    "futures AsyncWrite for ByteStream::poll_write" |rig, cut| writing(rig, cut, Write::Plain, On::Stream);
    "futures AsyncWrite for ByteStream::poll_write_vectored" |rig, cut| writing(rig, cut, Write::Vectored, On::Stream);
    "futures AsyncWrite for ByteStream::poll_flush" |rig, cut| writing(rig, cut, Write::Flush, On::Stream);
    "futures AsyncWrite for ByteStream::poll_close" |rig, cut| writing(rig, cut, Write::Close, On::Stream);
    "tokio AsyncWrite for ByteStream::poll_write" |rig, cut| writing(rig, cut, Write::Tokio, On::Stream);
    "tokio AsyncWrite for ByteStream::poll_write_vectored" |rig, cut| writing(rig, cut, Write::TokioVectored, On::Stream);
    "tokio AsyncWrite for ByteStream::poll_flush" |rig, cut| writing(rig, cut, Write::TokioFlush, On::Stream);
    "tokio AsyncWrite for ByteStream::poll_shutdown" |rig, cut| writing(rig, cut, Write::TokioShutdown, On::Stream);
    "futures AsyncRead for ByteReader::poll_read" |rig, cut| reading(rig, cut, Read::Plain, On::Half);
    "futures AsyncRead for ByteReader::poll_read_vectored" |rig, cut| reading(rig, cut, Read::Vectored, On::Half);
    "futures AsyncBufRead for ByteReader::poll_fill_buf" |rig, cut| reading(rig, cut, Read::Lent, On::Half);
    "tokio AsyncRead for ByteReader::poll_read" |rig, cut| reading(rig, cut, Read::Tokio, On::Half);
    "tokio AsyncBufRead for ByteReader::poll_fill_buf" |rig, cut| reading(rig, cut, Read::TokioLent, On::Half);
    "futures AsyncWrite for ByteWriter::poll_write" |rig, cut| writing(rig, cut, Write::Plain, On::Half);
    "futures AsyncWrite for ByteWriter::poll_write_vectored" |rig, cut| writing(rig, cut, Write::Vectored, On::Half);
    "futures AsyncWrite for ByteWriter::poll_flush" |rig, cut| writing(rig, cut, Write::Flush, On::Half);
    "futures AsyncWrite for ByteWriter::poll_close" |rig, cut| writing(rig, cut, Write::Close, On::Half);
    "tokio AsyncWrite for ByteWriter::poll_write" |rig, cut| writing(rig, cut, Write::Tokio, On::Half);
    "tokio AsyncWrite for ByteWriter::poll_write_vectored" |rig, cut| writing(rig, cut, Write::TokioVectored, On::Half);
    "tokio AsyncWrite for ByteWriter::poll_flush" |rig, cut| writing(rig, cut, Write::TokioFlush, On::Half);
    "tokio AsyncWrite for ByteWriter::poll_shutdown" |rig, cut| writing(rig, cut, Write::TokioShutdown, On::Half);
};

/// Whoever can be read from in every way.
trait Source:
    futures_io::AsyncRead
    + futures_io::AsyncBufRead
    + tokio::io::AsyncRead
    + tokio::io::AsyncBufRead
    + Unpin
{
}

impl<T> Source for T where
    T: futures_io::AsyncRead
        + futures_io::AsyncBufRead
        + tokio::io::AsyncRead
        + tokio::io::AsyncBufRead
        + Unpin
{
}

/// Whoever can be written to in every way.
trait Sink: futures_io::AsyncWrite + tokio::io::AsyncWrite + Unpin {}

impl<T> Sink for T where T: futures_io::AsyncWrite + tokio::io::AsyncWrite + Unpin {}

/// Reads to the end what comes with pauses: every byte once, in order.
async fn reading(rig: Rig, cut: Cut, how: Read, on: On) {
    let (left, right) = sockets();
    let length = length(&rig);
    let writer = spawn(async move {
        let mut left = ByteStream::from_socket(left);
        let bytes = pattern::payload(0, length);
        for piece in bytes.chunks(PIECE_BYTES) {
            write_all(&Cut::never(), &mut left, piece, Write::Plain).await;
            rig.rest(PAUSE_US).await;
        }
        end(&Cut::never(), &mut left, Write::Close).await;
        left
    });
    let stream = ByteStream::from_socket(right);
    let mut arrived = Vec::new();
    match on {
        On::Stream => {
            let mut stream = stream;
            read_all(&cut, &mut stream, how, &mut arrived).await;
        }
        On::Half => {
            let (mut reader, writer) = stream.split();
            read_all(&cut, &mut reader, how, &mut arrived).await;
            drop((reader, writer));
        }
    }
    pattern::check(0, length, &arrived);
    drop(writer.await.expect("all goes well"));
}

async fn read_all(cut: &Cut, source: &mut impl Source, how: Read, arrived: &mut Vec<u8>) {
    loop {
        let mut piece = [0; PIECE_BYTES];
        let read =
            persist!(cut, poll_fn(|context| poll_read(&mut *source, context, how, &mut piece)));
        let count = read.expect("bytes and an end");
        if count == 0 {
            return;
        }
        arrived.extend_from_slice(&piece[..count]);
    }
}

fn poll_read(
    source: &mut impl Source,
    context: &mut Context<'_>,
    how: Read,
    piece: &mut [u8; PIECE_BYTES],
) -> Poll<io::Result<usize>> {
    let source = Pin::new(source);
    match how {
        Read::Plain => futures_io::AsyncRead::poll_read(source, context, piece),
        Read::Vectored => {
            let (front, back) = piece.split_at_mut(100);
            let mut buffers =
                [IoSliceMut::new(front), IoSliceMut::new(&mut []), IoSliceMut::new(back)];
            futures_io::AsyncRead::poll_read_vectored(source, context, &mut buffers)
        }
        Read::Lent => {
            let this = source.get_mut();
            let lent = futures_io::AsyncBufRead::poll_fill_buf(Pin::new(&mut *this), context);
            let count = copy(ready!(lent)?, piece);
            futures_io::AsyncBufRead::consume(Pin::new(this), count);
            Poll::Ready(Ok(count))
        }
        Read::Tokio => {
            let mut buffer = ReadBuf::new(piece);
            ready!(tokio::io::AsyncRead::poll_read(source, context, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        }
        Read::TokioLent => {
            let this = source.get_mut();
            let lent = tokio::io::AsyncBufRead::poll_fill_buf(Pin::new(&mut *this), context);
            let count = copy(ready!(lent)?, piece);
            tokio::io::AsyncBufRead::consume(Pin::new(this), count);
            Poll::Ready(Ok(count))
        }
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let count = from.len().min(to.len());
    to[..count].copy_from_slice(&from[..count]);
    count
}

/// Writes to somebody who reads late, and ends: what was accepted arrives, once.
async fn writing(rig: Rig, cut: Cut, how: Write, on: On) {
    let (left, right) = sockets();
    let length = length(&rig);
    let reader = spawn(async move {
        let mut right = ByteStream::from_socket(right);
        let mut arrived = Vec::new();
        loop {
            rig.rest(PAUSE_US).await;
            let mut piece = [0; PIECE_BYTES];
            let read = poll_fn(|context| poll_read(&mut right, context, Read::Plain, &mut piece));
            let count = read.await.expect("bytes and an end");
            if count == 0 {
                return arrived;
            }
            arrived.extend_from_slice(&piece[..count]);
        }
    });
    let bytes = pattern::payload(0, length);
    let stream = ByteStream::from_socket(left);
    match on {
        On::Stream => {
            let mut stream = stream;
            write_all(&cut, &mut stream, &bytes, how).await;
            end(&cut, &mut stream, how).await;
            assert_eq!(stream.queued_bytes(), 0, "flushed, and bytes are queued");
        }
        On::Half => {
            let (reader, mut writer) = stream.split();
            write_all(&cut, &mut writer, &bytes, how).await;
            end(&cut, &mut writer, how).await;
            assert_eq!(writer.queued_bytes(), 0, "flushed, and bytes are queued");
            drop((reader, writer));
        }
    }
    pattern::check(0, length, &reader.await.expect("all goes well"));
}

async fn write_all(cut: &Cut, sink: &mut impl Sink, bytes: &[u8], how: Write) {
    let never = Cut::never();
    let ends = [Write::Flush, Write::Close, Write::TokioFlush, Write::TokioShutdown];
    let cut = if ends.contains(&how) { &never } else { cut };
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = persist!(cut, poll_fn(|context| poll_write(&mut *sink, context, how, rest)));
        rest = &rest[written.expect("room")..];
    }
}

fn poll_write(
    sink: &mut impl Sink,
    context: &mut Context<'_>,
    how: Write,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    let sink = Pin::new(sink);
    let (front, back) = bytes.split_at(bytes.len() / 3);
    let vector = [IoSlice::new(front), IoSlice::new(&[]), IoSlice::new(back)];
    match how {
        Write::Plain | Write::Flush | Write::Close => {
            futures_io::AsyncWrite::poll_write(sink, context, bytes)
        }
        Write::Vectored => futures_io::AsyncWrite::poll_write_vectored(sink, context, &vector),
        Write::Tokio | Write::TokioFlush | Write::TokioShutdown => {
            tokio::io::AsyncWrite::poll_write(sink, context, bytes)
        }
        Write::TokioVectored => tokio::io::AsyncWrite::poll_write_vectored(sink, context, &vector),
    }
}

/// Flushes and closes, as the case may be.
async fn end(cut: &Cut, sink: &mut impl Sink, how: Write) {
    use futures_io::AsyncWrite as Futures;
    use tokio::io::AsyncWrite as Tokio;

    let never = Cut::never();
    let tokio = matches!(
        how,
        Write::Tokio | Write::TokioVectored | Write::TokioFlush | Write::TokioShutdown
    );
    // Closing has to wait itself: nothing is flushed before.
    if matches!(how, Write::Flush | Write::TokioFlush) {
        persist!(
            cut,
            poll_fn(|context| {
                let sink = Pin::new(&mut *sink);
                if tokio {
                    Tokio::poll_flush(sink, context)
                } else {
                    Futures::poll_flush(sink, context)
                }
            })
        )
        .expect("it leaves");
    }
    let cut = if matches!(how, Write::Close | Write::TokioShutdown) { cut } else { &never };
    persist!(
        cut,
        poll_fn(|context| {
            let sink = Pin::new(&mut *sink);
            if tokio {
                Tokio::poll_shutdown(sink, context)
            } else {
                Futures::poll_close(sink, context)
            }
        })
    )
    .expect("a proper end");
}
