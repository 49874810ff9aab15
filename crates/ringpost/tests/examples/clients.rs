//! The other side of the examples: ringpost's own, and plain sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use futures_util::future::join;
use ringpost::{Connection, Receiver, Runtime, Sender};
use ringpost_testkit::pattern;

use crate::program::LIMIT;

/// Runs the future on a runtime, bounded in time.
#[track_caller]
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async { ringpost::timeout(LIMIT, future).await.expect("done in time") })
}

pub(crate) async fn connect(path: &Path) -> Connection {
    Connection::connect(path).await.expect("a server that talks to us")
}

/// Sends a message of each length, numbered from `first`, and a clean end.
pub(crate) async fn send_all(sender: &mut Sender, first: u64, lengths: &[usize]) {
    for (sequence, &len) in (first..).zip(lengths) {
        sender.send_with(len, |body| pattern::fill(sequence, body)).await.expect("accepted");
    }
    sender.shutdown().await.expect("the peer reads");
}

/// Expects what [`send_all`] sends.
pub(crate) async fn receive_all(receiver: &mut Receiver, first: u64, lengths: &[usize]) {
    for (sequence, &len) in (first..).zip(lengths) {
        let message = receiver.recv().await.expect("no error").expect("a message");
        pattern::check(sequence, len, &message);
    }
    assert!(receiver.recv().await.expect("no error").is_none(), "a clean end");
}

/// Sends and expects at the same time.
pub(crate) async fn talk(
    connection: &mut Connection,
    sends: (u64, &[usize]),
    expects: (u64, &[usize]),
) {
    let (sender, receiver) = connection.halves();
    join(send_all(sender, sends.0, sends.1), receive_all(receiver, expects.0, expects.1)).await;
}

/// A plain socket. No read or write of it waits without end.
pub(crate) fn plain(path: &Path) -> UnixStream {
    bounded(UnixStream::connect(path).expect("a server listens"))
}

/// Bounds the waits of a plain socket.
pub(crate) fn bounded(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    stream.set_write_timeout(Some(LIMIT)).expect("a socket");
    stream
}

/// Writes `bytes` and half closes, while reading all there is.
pub(crate) fn exchange(stream: &UnixStream, bytes: &[u8]) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(|| {
            (&*stream).write_all(bytes).expect("the peer reads");
            stream.shutdown(Shutdown::Write).expect("connected");
        });
        read_to_end(stream)
    })
}

pub(crate) fn read_to_end(mut stream: &UnixStream) -> Vec<u8> {
    let mut read = Vec::new();
    stream.read_to_end(&mut read).expect("an end");
    read
}

/// Writes until the other side takes no more, `chunk` by `chunk`; returns how many bytes it took.
pub(crate) fn write_until_stuck(mut stream: &UnixStream, chunk: &[u8]) -> u64 {
    stream.set_write_timeout(Some(std::time::Duration::from_millis(300))).expect("a socket");
    let mut taken = 0;
    while taken < STUCK_BYTES_MAX {
        // A short write is the last one before it is stuck.
        match stream.write(chunk) {
            Ok(count) => taken += count as u64,
            Err(_) => return taken,
        }
    }
    panic!("{taken} bytes were taken, and still there is room");
}

/// More than all buffers on the way may hold.
const STUCK_BYTES_MAX: u64 = 32 << 20;

/// The bytes of length-prefixed messages, as [`send_all`] numbers them.
pub(crate) fn length_prefixed(first: u64, lengths: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sequence, &len) in (first..).zip(lengths) {
        bytes.extend(u32::try_from(len).expect("fits").to_le_bytes());
        bytes.extend(pattern::payload(sequence, len));
    }
    bytes
}
