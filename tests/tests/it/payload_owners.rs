//! Owners of payloads that are sent from where they lie: their destructors are code of the user's, and
//! may use the very connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use ringpost::{ConnectionOptions, EngineChoice, Runtime, Spin};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{adopt, block_on, packet_sockets, pair, sockets};

on_both_engines!(
    a_destructor_sends,
    a_destructor_of_what_is_never_sent,
    a_destructor_wakes_a_task,
    a_destructor_of_what_is_sent_last_wakes_a_task,
    a_destructor_of_a_packet_wakes_a_task
);

thread_local! {
    static SENDER: RefCell<Option<ringpost::Sender>> = const { RefCell::new(None) };
}

/// Bytes with a destructor.
struct Owner {
    bytes: Vec<u8>,
    end: fn(),
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        (self.end)();
    }
}

fn payload(len: usize, end: fn()) -> Bytes {
    Bytes::from_owner(Owner { bytes: vec![7; len], end })
}

/// Sends another message on the connection that the payload was sent on.
fn say_that_was_the_last() {
    SENDER.with_borrow_mut(|sender| {
        if let Some(sender) = sender {
            // Refused once the connection is over, which is an answer as well.
            let _ = sender.try_send(b"that was the last of it");
        }
    });
}

fn a_destructor_sends(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = pair(ConnectionOptions::new());
        let (mut sender, _keep) = left.split();
        let (_sender, mut receiver) = right.split();
        // Whole at once, and in several bites.
        for len in [10_000, 3_000_000] {
            let mut sending = Box::pin(async {
                sender.send_bytes(payload(len, say_that_was_the_last)).await.expect("accepted");
                sender
            });
            sender = sending.as_mut().await;
            drop(sending);
            SENDER.set(Some(sender));
            let message = receiver.recv().await.expect("a message").expect("no end");
            assert_eq!(message.len(), len);
            let message = receiver.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"that was the last of it");
            sender = SENDER.take().expect("put there");
        }
    });
}

fn a_destructor_of_what_is_never_sent(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = pair(ConnectionOptions::new());
        let (mut sender, keep) = left.split();
        // More than the socket takes.
        sender.send_bytes(payload(8 << 20, say_that_was_the_last)).await.expect("accepted");
        SENDER.set(Some(sender));
        for _ in 0..10 {
            ringpost::yield_now().await;
        }
        // The send in flight fails, and takes the payload with it.
        drop(right);
        for _ in 0..10 {
            ringpost::yield_now().await;
        }
        drop(keep);
        drop(SENDER.take());
        ringpost::sleep(Duration::from_millis(1)).await;
    });
}

thread_local! {
    /// Who waits for a payload to be dropped.
    static WAITING: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

fn wake_who_waits() {
    if let Some(waker) = WAITING.take() {
        waker.wake();
    }
}

/// Longest wait for a task to be woken.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads messages on a thread of its own, and is silent from then on, so that nothing of it wakes the other side.
struct SilentPeer {
    over: Sender<()>,
    thread: JoinHandle<()>,
}

impl SilentPeer {
    /// One that reads messages of these lengths.
    fn start(
        engine: EngineChoice,
        socket: UnixStream,
        options: ConnectionOptions,
        lengths: &'static [usize],
    ) -> Self {
        let (over, is_over) = channel();
        let thread = thread::spawn(move || {
            let received = block_on(engine, async {
                let mut peer = adopt(socket, options);
                let mut received = Vec::new();
                for _ in lengths {
                    let message = peer.recv().await.expect("a message").expect("no end");
                    received.push(message.len());
                }
                let _ = is_over.recv_timeout(2 * PATIENCE);
                received
            });
            assert_eq!(received, lengths);
        });
        Self { over, thread }
    }

    /// The other side has seen what it wanted.
    fn end(self) {
        let _ = self.over.send(());
        self.thread.join().expect("the peer");
    }
}

async fn until_woken() {
    let mut begun = false;
    poll_fn(|context| {
        if std::mem::replace(&mut begun, true) {
            return Poll::Ready(());
        }
        WAITING.set(Some(context.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// The call that sends the payload is the one that sleeps, and the peer only reads.
fn a_destructor_of_what_is_sent_last_wakes_a_task(engine: EngineChoice) {
    wakes_while_nothing_else_happens(engine, ConnectionOptions::new(), &sockets);
}

fn a_destructor_of_a_packet_wakes_a_task(engine: EngineChoice) {
    wakes_while_nothing_else_happens(engine, ConnectionOptions::new().seqpacket(), &packet_sockets);
}

fn wakes_while_nothing_else_happens(
    engine: EngineChoice,
    options: ConnectionOptions,
    sockets: &dyn Fn() -> (UnixStream, UnixStream),
) {
    for spin in [Spin::Never, Spin::default(), Spin::Always] {
        let (ours, theirs) = sockets();
        let peer = SilentPeer::start(engine, theirs, options, &[6, 10_000]);
        let runtime = Runtime::builder().engine(engine).spin(spin).build().expect("a runtime");
        let woken = runtime.block_on(async {
            let mut connection = adopt(ours, options);
            connection.send(b"before").await.expect("open");
            connection.flush().await.expect("open");
            let task = ringpost::spawn(until_woken());
            ringpost::sleep(Duration::from_millis(50)).await;
            connection.send_bytes(payload(10_000, wake_who_waits)).await.expect("open");
            ringpost::timeout(PATIENCE, task).await.is_ok()
        });
        peer.end();
        assert!(woken, "the task was slept over, {spin:?}");
    }
}

/// The payload has left, by hand, before the runtime turns, and nothing else happens in it.
fn a_destructor_wakes_a_task(engine: EngineChoice) {
    let (ours, theirs) = sockets();
    let options = ConnectionOptions::new().descriptors_max(4);
    let peer = SilentPeer::start(engine, theirs, options, &[6, 10_000, 8]);
    let woken = block_on(engine, async {
        let mut connection = adopt(ours, options);
        connection.send(b"before").await.expect("open");
        connection.flush().await.expect("open");
        let task = ringpost::spawn(until_woken());
        ringpost::sleep(Duration::from_millis(50)).await;
        connection.send_bytes(payload(10_000, wake_who_waits)).await.expect("open");
        let file = std::fs::File::open("/dev/null").expect("open");
        connection.try_send_with_descriptors(b"and file", &[&file]).expect("room");
        ringpost::timeout(PATIENCE, task).await.is_ok()
    });
    peer.end();
    assert!(woken, "the task was slept over");
}
