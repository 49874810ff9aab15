//! Runtimes, connected pairs, and small services.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::pin;
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringpost::{
    ByteStream, Connection, ConnectionOptions, EngineChoice, Runtime, RuntimeBuilder, Support,
    spawn, timeout, yield_now,
};
use ringpost_testkit::child::skip;
use ringpost_testkit::pattern;
use ringpost_testkit::peer::RawPeer;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tempfile::TempDir;

/// Longest run of a future; sanitizers slow it down.
pub const LIMIT: Duration =
    Duration::from_secs(if cfg!(any(ringpost_asan, ringpost_tsan)) { 100 } else { 20 });

/// Settings for a runtime on this engine.
pub fn builder(engine: EngineChoice) -> RuntimeBuilder {
    Runtime::builder().engine(engine)
}

/// A runtime on this engine.
///
/// # Panics
///
/// If the host refuses it.
pub fn runtime(engine: EngineChoice) -> Runtime {
    builder(engine).build().expect("the engine works here")
}

/// Runs a future on a runtime of its own, bounded in time.
///
/// # Panics
///
/// If it does not end.
pub fn block_on<F: Future>(engine: EngineChoice, future: F) -> F::Output {
    run(&runtime(engine), future)
}

/// Runs a future on this runtime, bounded in time.
///
/// # Panics
///
/// If it does not end.
pub fn run<F: Future>(runtime: &Runtime, future: F) -> F::Output {
    runtime.block_on(async { timeout(LIMIT, future).await.expect("it ends") })
}

/// Whether receives may share a block, so that many small pieces lie together and take up little of the pool; if
/// not, says so. On io_uring that takes Linux 6.12.
pub fn shared_blocks_or_skip(test: &str, runtime: &Runtime) -> bool {
    let capabilities = runtime.engine().capabilities.as_ref();
    match capabilities.map(|capabilities| &capabilities.incremental) {
        Some(Support::No(reason)) => {
            skip(test, reason);
            false
        }
        _ => true,
    }
}

/// Two connected sockets.
///
/// # Panics
///
/// If the kernel has none.
pub fn sockets() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("a pair of sockets")
}

/// Two connected SOCK_SEQPACKET sockets.
///
/// # Panics
///
/// If the kernel has none.
pub fn packet_sockets() -> (UnixStream, UnixStream) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (left, right) = pair.expect("a pair of sockets");
    (left.into(), right.into())
}

/// A connection over this socket.
pub fn adopt(socket: UnixStream, options: ConnectionOptions) -> Connection {
    Connection::from_socket(OwnedFd::from(socket), options)
}

/// Two connected connections of the current runtime.
pub fn pair(options: ConnectionOptions) -> (Connection, Connection) {
    pair_of(options, options)
}

/// Two connected connections with options of their own.
pub fn pair_of(left: ConnectionOptions, right: ConnectionOptions) -> (Connection, Connection) {
    let sockets = sockets();
    (adopt(sockets.0, left), adopt(sockets.1, right))
}

/// A connection of the current runtime and a peer that speaks by hand, from another thread.
pub fn raw() -> (Connection, RawPeer) {
    let (ours, theirs) = sockets();
    (adopt(ours, ConnectionOptions::new()), RawPeer::new(theirs))
}

/// Two connected byte streams of the current runtime.
pub fn byte_pair() -> (ByteStream, ByteStream) {
    let (left, right) = sockets();
    (ByteStream::from_socket(left.into()), ByteStream::from_socket(right.into()))
}

/// A byte stream of the current runtime, and its other end for another thread, whose waits are bounded.
///
/// # Panics
///
/// If the kernel has none.
pub fn byte_peer() -> (ByteStream, UnixStream) {
    let (ours, theirs) = sockets();
    theirs.set_read_timeout(Some(LIMIT)).expect("a socket");
    theirs.set_write_timeout(Some(LIMIT)).expect("a socket");
    (ByteStream::from_socket(ours.into()), theirs)
}

/// A directory, and a path for a socket in it.
///
/// # Panics
///
/// If there is no place for one.
pub fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::Builder::new().prefix("ringpost-").tempdir().expect("a directory");
    let path = directory.path().join("test.sock");
    (directory, path)
}

/// Answers every message with itself until the peer ends, then ends as well.
///
/// # Panics
///
/// If the connection fails.
pub async fn echo(mut connection: Connection) {
    while let Some(message) = connection.recv().await.expect("messages or an end") {
        connection.send_message(message).await.expect("the peer reads");
    }
    connection.shutdown().await.expect("the peer reads");
}

/// Sends message number `sequence` and checks that it comes back.
///
/// # Panics
///
/// If it does not.
pub async fn ask(connection: &mut Connection, sequence: u64, len: usize) {
    connection
        .send_with(len, |bytes| pattern::fill(sequence, bytes))
        .await
        .expect("the peer reads");
    expect_message(connection, sequence, len).await;
}

/// Receives message number `sequence`.
///
/// # Panics
///
/// If something else comes.
pub async fn expect_message(connection: &mut Connection, sequence: u64, len: usize) {
    let message = connection.recv().await.expect("a message").expect("a message and no end");
    pattern::check(sequence, len, &message);
}

/// A connection that is served, and answers, whatever happens to others.
#[derive(Debug)]
pub struct Bystander {
    connection: Connection,
    asked: u64,
}

impl Bystander {
    /// A connection of the current runtime with an echo behind it.
    pub fn new() -> Self {
        let (connection, server) = pair(ConnectionOptions::new());
        spawn(echo(server));
        Self { connection, asked: 0 }
    }

    /// Checks that it is still served.
    ///
    /// # Panics
    ///
    /// If it is not.
    pub async fn check(&mut self) {
        for len in [0, 64, 5000] {
            ask(&mut self.connection, self.asked, len).await;
            self.asked += 1;
        }
    }
}

impl Default for Bystander {
    fn default() -> Self {
        Self::new()
    }
}

/// Polls a future at most this often, with a turn of the runtime after each, and drops it. `None` if it
/// was not ready by then.
pub async fn poll_at_most<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let outcome = poll_fn(|context| {
            Poll::Ready(match future.as_mut().poll(context) {
                Poll::Ready(value) => Some(value),
                Poll::Pending => None,
            })
        })
        .await;
        if outcome.is_some() {
            return outcome;
        }
        yield_now().await;
    }
    None
}

/// Runs `body`, which may block, on a thread of its own while the runtime goes on.
///
/// # Panics
///
/// With the body's panic.
pub async fn blocking<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    join(thread::spawn(body)).await
}

/// Waits for a thread while the runtime goes on.
///
/// # Panics
///
/// With the thread's panic.
pub async fn join<T>(thread: JoinHandle<T>) -> T {
    while !thread.is_finished() {
        ringpost::sleep(Duration::from_micros(500)).await;
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Lets the runtime turn until `condition` holds, at most a quarter of [`LIMIT`].
///
/// # Panics
///
/// If it never does.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let turns = async {
        while !condition() {
            ringpost::sleep(Duration::from_micros(500)).await;
        }
    };
    timeout(LIMIT / 4, turns).await.unwrap_or_else(|_| panic!("never: {what}"));
}
