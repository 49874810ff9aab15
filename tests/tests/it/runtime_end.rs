//! Runtimes that end with everything under way, and several at once.

use std::cell::RefCell;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use ringpost::{
    AcceptError, BlockingRecvError, Closed, Connection, ConnectionOptions, EngineChoice, Listener,
    Message, RecvError, Runtime, SendError, spawn,
};
use ringpost_testkit::peer::RawPeer;
use ringpost_testkit::{pattern, process};
use ringpost_tests::privileges::allow_descriptors;
use ringpost_tests::rig::{
    adopt, ask, block_on, builder, echo, packet_sockets, pair, place, poll_at_most, raw, run,
    runtime, sockets, until,
};
use ringpost_tests::{on_both_engines, on_both_engines_alone};

on_both_engines!(
    messages_outlive_it,
    connections_outlive_it,
    half_closed_connections_outlive_it,
    peers_of_connections_that_outlive_it,
    what_is_left_is_dropped,
    sleeps_outlive_it,
    queued_work_panics_as_it_is_dropped,
    queued_work_panics_while_another_panic_ends_the_runtime,
    what_nobody_waits_for_panics_as_it_is_dropped,
    accepted_bytes_leave_first,
    two_in_one_thread,
    two_in_two_threads,
    one_inside_the_other,
    the_same_again
);
on_both_engines_alone!(a_thousand_in_flight, again_and_again);

fn a_thousand_in_flight(engine: EngineChoice) {
    const COUNT: usize = 1000;
    assert!(allow_descriptors(4 * COUNT as u64), "descriptors");
    // Some before, so that the allocator, which gives little back, has grown: 200 MB are in flight, and how they come to
    // lie differs from time to time at first.
    for _ in 0..6 {
        in_flight(engine, COUNT);
    }
    let descriptors = process::descriptors();
    let grown = || {
        let before = process::anonymous_bytes();
        for _ in 0..3 {
            in_flight(engine, COUNT);
        }
        process::anonymous_bytes().saturating_sub(before)
    };
    // What is lost is lost each time.
    let grown = [grown(), grown(), grown()];
    assert_eq!(process::descriptors(), descriptors);
    let least = grown.iter().min().expect("three times");
    assert!(*least < 4 << 20, "{grown:?} bytes stay");
}

/// Ends a runtime with that many receives and sends in flight.
fn in_flight(engine: EngineChoice, count: usize) {
    let runtime = builder(engine).outbound_bytes_max(64 << 10).build().expect("a runtime");
    let witness = Rc::new(());
    let mut peers = Vec::new();
    run(&runtime, async {
        for _ in 0..count {
            let (ours, theirs) = sockets();
            let connection = adopt(ours, ConnectionOptions::new().bytes());
            let (mut sender, mut receiver) = connection.split();
            let held = Rc::clone(&witness);
            spawn(async move {
                let _held = held;
                let _ = receiver.recv().await;
            });
            let held = Rc::clone(&witness);
            spawn(async move {
                let _held = held;
                // More than a socket takes, so that a send stays in flight.
                while sender.send(&[7; 50_000]).await.is_ok() {}
            });
            peers.push(theirs);
        }
        let in_flight = || ringpost::stats().operations_in_flight >= 2 * count as u64;
        until("a receive and a send of each are in flight", in_flight).await;
    });
    let start = Instant::now();
    drop(runtime);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(Rc::strong_count(&witness), 1, "all tasks are dropped");
    // The peers see the end.
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &peers[0], &mut bytes).expect("an end");
    assert!(bytes.iter().all(|byte| *byte == 7));
}

fn again_and_again(engine: EngineChoice) {
    for round in 0..30 {
        if round == 3 {
            RESTING.with(|resting| *resting.borrow_mut() = process::descriptors());
        }
        block_on(engine, async {
            let (mut client, server) = pair(ConnectionOptions::new());
            spawn(echo(server));
            ask(&mut client, round, 3000).await;
        });
    }
    let resting = RESTING.with(|resting| *resting.borrow());
    assert_eq!(process::descriptors(), resting);
}

thread_local! {
    static RESTING: RefCell<usize> = const { RefCell::new(0) };
}

fn messages_outlive_it(engine: EngineChoice) {
    const LENS: [usize; 4] = [0, 10, 3000, 200_000];
    let messages: Vec<Message> = block_on(engine, async {
        let (mut left, mut right) = pair(ConnectionOptions::new());
        let mut messages = Vec::new();
        for (sequence, len) in (0..).zip(LENS) {
            let payload = pattern::payload(sequence, len);
            let (sender, _) = left.halves();
            let (sent, received) = both(sender.send(&payload), right.recv()).await;
            sent.expect("open");
            messages.push(received.expect("open").expect("no end"));
        }
        messages
    });
    let copies = messages.clone();
    let check = |messages: &[Message]| {
        for ((sequence, len), message) in (0..).zip(LENS).zip(messages) {
            pattern::check(sequence, len, message);
        }
    };
    check(&messages);
    thread::spawn(move || {
        check(&messages);
        let bytes: Vec<_> = messages.into_iter().map(Message::into_bytes).collect();
        assert_eq!(bytes[1], pattern::payload(1, 10));
    })
    .join()
    .expect("dropped elsewhere");
    check(&copies);
}

/// Waits for both.
async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|context| {
        use std::task::Poll;
        if first.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(context)
        {
            first = Some(value);
        }
        if second.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(context)
        {
            second = Some(value);
        }
        match (first.is_some(), second.is_some()) {
            (true, true) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    (first.expect("ready"), second.expect("ready"))
}

fn connections_outlive_it(engine: EngineChoice) {
    let (_directory, path) = place();
    let ended = runtime(engine);
    let (mut left, mut right, mut listener) = run(&ended, async {
        let listener = Listener::bind(&path).expect("bind");
        let (mut left, mut right) = pair(ConnectionOptions::new());
        left.send(b"before").await.expect("open");
        right.recv().await.expect("open").expect("no end");
        (left, right, listener)
    });
    drop(ended);
    block_on(engine, async {
        let gone = Closed::RuntimeEnded;
        assert_eq!(right.recv().await.map(|_| ()), Err(RecvError::Closed(gone.clone())));
        assert_eq!(right.recv_batch().await.map(|_| ()), Err(RecvError::Closed(gone.clone())));
        assert_eq!(left.send(b"after").await, Err(SendError::Closed(gone.clone())));
        assert_eq!(left.try_send(b"after"), Err(SendError::Closed(gone.clone())));
        assert_eq!(left.flush().await, Err(SendError::Closed(gone)));
        assert_eq!(listener.accept().await.map(|_| ()), Err(AcceptError::RuntimeEnded));
    });
    drop((left, right));
    drop(listener);
    assert!(!path.exists());
}

/// Nothing of theirs is in flight when the runtime ends.
fn half_closed_connections_outlive_it(engine: EngineChoice) {
    let streams: fn() -> _ = sockets;
    let bytes = ConnectionOptions::new().bytes();
    let kinds = [
        (streams, bytes),
        (packet_sockets, ConnectionOptions::new().seqpacket()),
        (packet_sockets, bytes.seqpacket()),
    ];
    for (sockets, options) in kinds {
        let ended = runtime(engine);
        let (mut left, _right) = run(&ended, async {
            let (left, right) = sockets();
            let (mut left, mut right) = (adopt(left, options), adopt(right, options));
            right.shutdown().await.expect("open");
            assert!(left.recv().await.expect("a proper end").is_none());
            (left, right)
        });
        drop(ended);
        let gone = SendError::Closed(Closed::RuntimeEnded);
        assert_eq!(left.try_send(b"after"), Err(gone.clone()));
        assert_eq!(left.halves().0.try_send_with(5, |_| {}), Err(gone.clone()));
        assert!(left.halves().0.try_batch().is_err());
        block_on(engine, async {
            assert_eq!(left.send(b"after").await, Err(gone.clone()));
            let bytes = bytes::Bytes::from_static(&[7; 5000]);
            assert_eq!(left.halves().0.send_bytes(bytes).await, Err(gone));
        });
    }
}

/// With their timers set, in whatever runtime they go on.
fn sleeps_outlive_it(engine: EngineChoice) {
    const LONG: Duration = Duration::from_secs(1000);
    let ended = runtime(engine);
    let (waits, mut polled) = run(&ended, async {
        let (mut waits, mut polled) =
            (Box::pin(ringpost::sleep(LONG)), Box::pin(ringpost::sleep(LONG)));
        assert!(poll_at_most(1, waits.as_mut()).await.is_none());
        assert!(poll_at_most(1, polled.as_mut()).await.is_none());
        (waits, polled)
    });
    block_on(engine, async {
        // Told while it waits in another runtime, and afterwards.
        let waiting = spawn(waits);
        ringpost::yield_now().await;
        ringpost::yield_now().await;
        drop(ended);
        waiting.await.expect("no panic");
        polled.as_mut().await;
    });
}

const ACCEPTED: &[u8] = b"accepted and not flushed";

/// The peer of a connection that has accepted a message, and is kept by a task that never ends.
fn peer_of_accepted(runtime: &Runtime) -> RawPeer {
    run(runtime, async {
        let (mut connection, peer) = raw();
        connection.send(ACCEPTED).await.expect("open");
        spawn(async move {
            let _ = connection.recv().await;
        });
        peer
    })
}

/// It was sent, and then the end came.
fn check_accepted(mut peer: RawPeer) {
    peer.read_hello();
    assert_eq!(peer.read_message(), ACCEPTED);
    peer.expect_end();
}

struct Panics;

impl Drop for Panics {
    fn drop(&mut self) {
        panic!("dropped unused");
    }
}

/// Two panics at once would end the process.
fn queued_work_panics_while_another_panic_ends_the_runtime(engine: EngineChoice) {
    let ended = runtime(engine);
    let panics = Panics;
    ended.handle().submit(move || drop(panics)).expect("room");
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _dropped = ended;
        std::panic::resume_unwind(Box::new("the first"));
    }));
    let payload = unwound.expect_err("it unwinds");
    assert_eq!(payload.downcast_ref(), Some(&"the first"));
}

/// The process and other tasks go on, whatever a task that nobody waits for has ended with.
fn what_nobody_waits_for_panics_as_it_is_dropped(engine: EngineChoice) {
    /// Panics with itself for ever.
    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new(Self));
        }
    }
    let runtime = runtime(engine);
    run(&runtime, async {
        drop(spawn(async { Panics }));
        drop(spawn(async { std::panic::resume_unwind(Box::new(Panics)) }));
        drop(spawn(async { Again }));
        drop(spawn(async { std::panic::resume_unwind(Box::new(Again)) }));
        for _ in 0..3 {
            ringpost::yield_now().await;
        }
        let captured = Again;
        drop(spawn(async move {
            let _captured = captured;
            std::future::pending::<()>().await;
        }));
        assert_eq!(spawn(async { 7 }).await.expect("no panic"), 7);
    });
    drop(runtime);
}

/// What has been accepted leaves all the same, and the panic is not lost.
fn queued_work_panics_as_it_is_dropped(engine: EngineChoice) {
    let ended = runtime(engine);
    let peer = peer_of_accepted(&ended);
    let (answer, answered) = ringpost::oneshot::<()>();
    let handle = ended.handle();
    for _ in 0..3 {
        let panics = Panics;
        handle.submit(move || drop(panics)).expect("room");
    }
    // Whoever waits for what is behind them learns of its end, also while handles are there.
    handle.submit(move || drop(answer)).expect("room");
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(ended)));
    assert!(dropped.is_err());
    let answered = answered.blocking_recv(Some(Duration::from_secs(5)));
    assert_eq!(answered, Err(BlockingRecvError::Canceled));
    drop(handle);
    check_accepted(peer);
}

fn accepted_bytes_leave_first(engine: EngineChoice) {
    let ended = runtime(engine);
    let peer = peer_of_accepted(&ended);
    drop(ended);
    check_accepted(peer);
}

fn two_in_one_thread(engine: EngineChoice) {
    let (first, second) = (runtime(engine), runtime(engine));
    let (left, right) = sockets();
    let (mut client, server) = (
        first.enter(|| adopt(left, ConnectionOptions::new())),
        second.enter(|| adopt(right, ConnectionOptions::new())),
    );
    second.spawn(echo(server));
    let asking = first.spawn(async move {
        for sequence in 0..50 {
            ask(&mut client, sequence, 500).await;
        }
    });
    let end = Instant::now() + Duration::from_secs(10);
    while !asking.is_finished() {
        assert!(Instant::now() < end, "it ends");
        for runtime in [&first, &second] {
            runtime.turn(Some(Duration::from_micros(100))).expect("the engine works");
        }
    }
    run(&first, asking).expect("no panic");
}

fn two_in_two_threads(engine: EngineChoice) {
    let (left, right) = sockets();
    let server = thread::spawn(move || {
        block_on(engine, async { echo(adopt(right, ConnectionOptions::new())).await });
    });
    block_on(engine, async {
        let mut client = adopt(left, ConnectionOptions::new());
        for sequence in 0..300 {
            ask(&mut client, sequence, 700).await;
        }
        client.shutdown().await.expect("open");
        assert!(client.recv().await.expect("a clean end").is_none());
    });
    server.join().expect("no panic");
}

/// A runtime may run within a task of another; afterwards the outer one is the current one again.
fn one_inside_the_other(engine: EngineChoice) {
    block_on(engine, async {
        let (mut client, server) = pair(ConnectionOptions::new());
        spawn(echo(server));
        let inner = block_on(engine, async {
            let (mut client, server) = pair(ConnectionOptions::new());
            spawn(echo(server));
            ask(&mut client, 1, 100).await;
            "inner"
        });
        assert_eq!(inner, "inner");
        ask(&mut client, 2, 100).await;
        let made: Connection = pair(ConnectionOptions::new()).0;
        drop(made);
    });
}

/// Tasks go on in the next `block_on`.
fn the_same_again(engine: EngineChoice) {
    let runtime = runtime(engine);
    let mut client = run(&runtime, async {
        let (mut client, server) = pair(ConnectionOptions::new());
        spawn(echo(server));
        ask(&mut client, 1, 100).await;
        client
    });
    run(&runtime, ask(&mut client, 2, 100));
    run(&runtime, ask(&mut client, 3, 100));
}

/// The bytes until the end, which comes in time.
fn read_to_end(peer: &mut UnixStream) -> usize {
    peer.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    peer.set_nonblocking(false).expect("a socket");
    let mut bytes = Vec::new();
    match peer.read_to_end(&mut bytes) {
        Ok(count) => count,
        // Of one that had sent what was not received.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes.len(),
        Err(error) => panic!("no end in time: {error}"),
    }
}

/// Their end comes with that of the runtime, also if nothing of theirs is in flight.
fn peers_of_connections_that_outlive_it(engine: EngineChoice) {
    for how in ["idle", "half-closed", "paused", "packets"] {
        let runtime = builder(engine).inbound_bytes_max(4096).build().expect("a runtime");
        let (ours, mut peer) = if how == "packets" { packet_sockets() } else { sockets() };
        let mut connection = runtime.enter(|| adopt(ours, ConnectionOptions::new().bytes()));
        match how {
            "half-closed" | "packets" => {
                peer.shutdown(Shutdown::Write).expect("connected");
                assert!(run(&runtime, connection.recv()).expect("a clean end").is_none());
            }
            "paused" => {
                peer.set_nonblocking(true).expect("a socket");
                for _ in 0..20 {
                    while peer.write(&[1; 4096]).is_ok() {}
                    runtime.turn(Some(Duration::from_millis(5))).expect("it goes on");
                }
            }
            _ => runtime.turn(Some(Duration::from_millis(5))).expect("it goes on"),
        }
        drop(runtime);
        assert_eq!(read_to_end(&mut peer), 0, "{how}");
        drop(connection);
    }
}

/// What is queued after the end goes with the connection, and so does its descriptor.
fn what_is_left_is_dropped(engine: EngineChoice) {
    let runtime = runtime(engine);
    let (ours, mut peer) = sockets();
    let mut connection = runtime.enter(|| adopt(ours, ConnectionOptions::new()));
    let (others, _peer) = sockets();
    let other = runtime.enter(|| adopt(others, ConnectionOptions::new()));
    peer.shutdown(Shutdown::Write).expect("connected");
    assert!(run(&runtime, connection.recv()).is_err(), "without a greeting");
    drop(runtime);
    let greeting = read_to_end(&mut peer);
    assert!(
        futures_util::FutureExt::now_or_never(connection.shutdown())
            .is_some_and(|end| end.is_err()),
        "it has ended"
    );
    let before = process::descriptors();
    drop(connection);
    assert_eq!(process::descriptors(), before - 1);
    assert!(greeting > 0);
    drop(other);
}
