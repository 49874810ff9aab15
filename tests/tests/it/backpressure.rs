//! A peer that reads slowly, or not at all, slows its sender and nobody else.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use ringpost::{
    Closed, Connection, ConnectionOptions, EngineChoice, RecvError, SendError, Spin, sleep, spawn,
    timeout,
};
use ringpost_testkit::pattern;
use ringpost_testkit::peer::greeting;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{Bystander, LIMIT, block_on, builder, join, pair, raw, run};

on_both_engines!(
    a_raw_reader_that_rests,
    a_reader_that_rests,
    a_reader_that_never_reads,
    a_slow_reader,
    a_queue_longer_than_a_batch_is_filled,
    two_that_send_before_they_read,
    more_pieces_than_a_send_carries,
    large_messages_wait_too,
    a_full_batch
);

const BOUND: usize = 64 << 10;
const LEN: usize = 4000;
const FRAME: usize = LEN + 8;

/// Sends until no more is accepted; checks the bound all the way. Tells how many were.
async fn fill_up(connection: &mut Connection, start: u64) -> u64 {
    for sequence in start.. {
        let sending = connection.send_with(LEN, |bytes| pattern::fill(sequence, bytes));
        let sent = timeout(Duration::from_millis(50), sending).await;
        let queued = connection.halves().0.queued_bytes();
        assert!(queued < BOUND + FRAME, "{queued} bytes are queued, the bound is {BOUND}");
        match sent {
            Ok(sent) => sent.expect("the peer is there"),
            Err(_) => {
                assert!(queued >= BOUND, "waits with {queued} of {BOUND} bytes");
                return sequence;
            }
        }
    }
    unreachable!("a socket that takes everything")
}

fn expect_full(connection: &mut Connection) {
    let queued = connection.halves().0.queued_bytes();
    let full = SendError::Full { queued, limit: BOUND };
    let text =
        format!("the outbound queue is full: {queued} bytes wait, the bound is {BOUND} bytes");
    assert_eq!(full.to_string(), text);
    assert_eq!(connection.try_send(b"one more"), Err(full.clone()));
    let (sender, _) = connection.halves();
    assert_eq!(sender.try_send_with(1, |_| panic!("must not be called")), Err(full));
}

fn a_raw_reader_that_rests(engine: EngineChoice) {
    let runtime = builder(engine).outbound_bytes_max(BOUND).build().expect("a runtime");
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let (mut connection, mut peer) = raw();
        peer.send(&greeting());
        let accepted = fill_up(&mut connection, 0).await;
        expect_full(&mut connection);
        bystander.check().await;

        let reader = thread::spawn(move || {
            peer.read_hello();
            for sequence in 0..accepted + 100 {
                pattern::check(sequence, LEN, &peer.read_message());
            }
            peer
        });
        for sequence in accepted..accepted + 100 {
            let sent = connection.send_with(LEN, |bytes| pattern::fill(sequence, bytes)).await;
            sent.expect("the peer reads again");
        }
        connection.flush().await.expect("the peer reads again");
        assert_eq!(connection.halves().0.queued_bytes(), 0);
        drop(join(reader).await);
        bystander.check().await;
    });
}

/// With nothing in flight senders wait from a batch on. Once some is in flight they may go on to the bound, though no
/// more of it leaves.
fn a_queue_longer_than_a_batch_is_filled(engine: EngineChoice) {
    const LONG: usize = 1 << 20;
    let runtime = builder(engine).outbound_bytes_max(LONG).build().expect("a runtime");
    run(&runtime, async {
        let (connection, mut peer) = raw();
        peer.send(&greeting());
        let (mut sender, receiver) = connection.split();
        let accepted = Rc::new(Cell::new(0));
        let sending = spawn({
            let accepted = Rc::clone(&accepted);
            async move {
                for sequence in 0..2 * LONG as u64 / LEN as u64 {
                    sender.send(&pattern::payload(sequence, LEN)).await.expect("read at last");
                    accepted.set(sequence + 1);
                }
                sender.flush().await.expect("read at last");
            }
        });
        // Nobody asks again in its place.
        let least = (LONG / FRAME) as u64;
        let patience = Instant::now() + LIMIT;
        while accepted.get() < least && Instant::now() < patience {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(accepted.get() >= least, "{} of {least} messages were accepted", accepted.get());
        let reader = thread::spawn(move || {
            peer.read_hello();
            for sequence in 0..2 * LONG as u64 / LEN as u64 {
                pattern::check(sequence, LEN, &peer.read_message());
            }
            peer
        });
        sending.await.expect("no panic");
        drop(join(reader).await);
        drop(receiver);
    });
}

/// Each with room for all that the other asks for: neither has to read in order to go on.
fn two_that_send_before_they_read(engine: EngineChoice) {
    const COUNT: u64 = 700;
    let builder = builder(engine).outbound_bytes_max(4 << 20).inbound_bytes_max(BOUND);
    run(&builder.build().expect("a runtime"), async {
        let (mut left, mut right) = pair(ConnectionOptions::new());
        let echo = spawn(async move {
            while let Some(message) = right.recv().await.expect("messages") {
                right.send_message(message).await.expect("read at last");
            }
        });
        let both = async {
            for sequence in 0..COUNT {
                left.send(&pattern::payload(sequence, LEN)).await.expect("taken");
            }
            for sequence in 0..COUNT {
                let message = left.recv().await.expect("messages").expect("no end");
                pattern::check(sequence, LEN, &message.into_bytes());
            }
            left.shutdown().await.expect("an open connection");
        };
        timeout(LIMIT, both).await.expect("neither waits for the other");
        echo.await.expect("no panic");
    });
}

/// Received messages are passed on from where they lie: what does not fit one send leaves as well before the runtime
/// sleeps, with nobody waiting for that.
fn more_pieces_than_a_send_carries(engine: EngineChoice) {
    const COUNT: u64 = 300;
    let builder = builder(engine).spin(Spin::Never);
    run(&builder.build().expect("a runtime"), async {
        let options = ConnectionOptions::new().gather_bytes_min(1);
        let (mut source, mut proxy) = pair(options);
        let (mut out, mut sink) = pair(options);
        for sequence in 0..COUNT {
            source.send(&pattern::payload(sequence, 50)).await.expect("taken");
        }
        let mut held = Vec::new();
        for _ in 0..COUNT {
            held.push(proxy.recv().await.expect("messages").expect("no end"));
        }
        // In another runtime, so that nothing of it wakes this one.
        out.ready().await.expect("greeted");
        sink.ready().await.expect("greeted");
        let detached = sink.detach(LIMIT).await.expect("quiet");
        let reader = thread::spawn(move || {
            block_on(engine, async {
                let mut sink = detached.attach();
                for sequence in 0..COUNT {
                    let message = sink.recv().await.expect("messages").expect("no end");
                    pattern::check(sequence, 50, &message.into_bytes());
                }
                sink.send(b"all").await.expect("open");
                sink.shutdown().await.expect("open");
            });
        });
        for message in held {
            out.send_message(message).await.expect("room");
        }
        let answer =
            timeout(Duration::from_secs(5), out.recv()).await.expect("it sleeps with some of them");
        assert_eq!(answer.expect("an answer").expect("no end"), *b"all");
        join(reader).await;
    });
}

/// The receiving side holds a bounded amount for a reader that does not come.
fn a_reader_that_rests(engine: EngineChoice) {
    let runtime = builder(engine)
        .outbound_bytes_max(BOUND)
        .inbound_bytes_max(BOUND)
        .build()
        .expect("a runtime");
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let (mut connection, mut reader) = pair(ConnectionOptions::new());
        connection.ready().await.expect("greeted");
        let accepted = fill_up(&mut connection, 0).await;
        expect_full(&mut connection);
        bystander.check().await;
        assert!(ringpost::stats().receives_paused > 0, "{:?}", ringpost::stats());
        // Both queues, the socket, and what one receive may add.
        let most = (2 * BOUND + (208 << 10) + (128 << 10)) as u64 + FRAME as u64;
        assert!(accepted * FRAME as u64 <= most, "{accepted} messages were taken");

        let sending = spawn(async move {
            for sequence in accepted..accepted + 100 {
                connection.send(&pattern::payload(sequence, LEN)).await.expect("read again");
            }
            connection.shutdown().await.expect("read again");
        });
        let mut sequence = 0;
        while let Some(mut batch) = reader.recv_batch().await.expect("messages") {
            while let Some(frame) = batch.next() {
                pattern::check(sequence, LEN, &frame.bytes());
                sequence += 1;
            }
        }
        assert_eq!(sequence, accepted + 100);
        sending.await.expect("no panic");
        bystander.check().await;
    });
}

/// What was accepted for a peer that never reads is given up after the linger time, or at its death.
fn a_reader_that_never_reads(engine: EngineChoice) {
    let linger = Duration::from_millis(100);
    let runtime =
        builder(engine).outbound_bytes_max(BOUND).linger(linger).build().expect("a runtime");
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let quiet = ringpost::stats().operations_in_flight;

        let (mut connection, mut peer) = raw();
        peer.send(&greeting());
        fill_up(&mut connection, 0).await;
        drop(connection);
        bystander.check().await;
        sleep(linger * 3).await;
        assert_eq!(ringpost::stats().operations_in_flight, quiet, "given up");
        // What the socket held arrives whole, then the stream ends, perhaps within a frame.
        let read = thread::spawn(move || {
            use std::io::Read;
            peer.stream().read_to_end(&mut Vec::new()).is_ok()
        });
        assert!(join(read).await);

        let (mut connection, mut peer) = raw();
        peer.send(&greeting());
        let accepted = fill_up(&mut connection, 0).await;
        let (mut sender, mut receiver) = connection.split();
        let waiting = spawn(async move { sender.send(&pattern::payload(accepted, LEN)).await });
        drop(peer);
        assert_eq!(waiting.await.expect("no panic"), Err(SendError::Closed(Closed::Aborted)));
        let received = receiver.recv().await.expect_err("the peer is gone");
        assert_eq!(received, RecvError::Closed(Closed::Aborted));
        bystander.check().await;
    });
}

fn a_slow_reader(engine: EngineChoice) {
    const MESSAGES: u64 = 600;
    let runtime = builder(engine).outbound_bytes_max(BOUND).build().expect("a runtime");
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let (mut connection, mut peer) = raw();
        let reader = thread::spawn(move || {
            peer.greet();
            for sequence in 0..MESSAGES {
                if sequence % 20 == 0 {
                    thread::sleep(Duration::from_millis(5));
                }
                pattern::check(sequence, LEN, &peer.read_message());
            }
            peer
        });
        for sequence in 0..MESSAGES {
            connection.send(&pattern::payload(sequence, LEN)).await.expect("the peer reads");
            assert!(connection.halves().0.queued_bytes() < BOUND + FRAME);
            if sequence % 100 == 0 {
                bystander.check().await;
            }
        }
        connection.flush().await.expect("the peer reads");
        drop(join(reader).await);
        assert!(ringpost::stats().sends_tracked > 0, "some waited for room in the socket");
    });
}

/// One message may go beyond the bound, not two.
fn large_messages_wait_too(engine: EngineChoice) {
    let runtime = builder(engine).outbound_bytes_max(BOUND).build().expect("a runtime");
    run(&runtime, async {
        let (mut connection, mut peer) = raw();
        peer.send(&greeting());
        connection.ready().await.expect("greeted");
        let len = 5 << 20;
        connection.send(&pattern::payload(0, len)).await.expect("an empty queue takes it");
        let payload = pattern::payload(1, len);
        let second = timeout(Duration::from_millis(50), connection.send(&payload)).await;
        assert!(second.is_err(), "the second waits");
        assert!(connection.halves().0.queued_bytes() <= len + 8);
        let reader = thread::spawn(move || {
            peer.stream().set_read_timeout(Some(LIMIT)).expect("a socket");
            peer.read_hello();
            for sequence in 0..2 {
                pattern::check(sequence, len, &peer.read_message());
            }
        });
        connection.send(&payload).await.expect("the peer reads");
        connection.flush().await.expect("the peer reads");
        join(reader).await;
    });
}

/// A batch that is full says how many bytes wait, its own included, and where its limit was. An idle stream lets no
/// batch gather more than 256 KiB, whatever the bound.
fn a_full_batch(engine: EngineChoice) {
    for bound in [BOUND, 512 << 10] {
        let runtime = builder(engine).outbound_bytes_max(bound).build().expect("a runtime");
        run(&runtime, a_full_batch_within(bound));
    }
}

async fn a_full_batch_within(bound: usize) {
    let (mut left, _right) = pair(ConnectionOptions::new());
    left.ready().await.expect("a greeting");
    let (sender, _) = left.halves();
    sender.flush().await.expect("it goes");
    sender.try_send(&[0; LEN]).expect("room");
    let mut batch = sender.try_batch().expect("open");
    let mut queued = FRAME;
    while batch.has_room() {
        batch.push(&[0; LEN]).expect("room");
        queued += FRAME;
    }
    let full = batch.push(b"one more");
    let Err(SendError::Full { queued: told, limit }) = full else { panic!("it is full: {full:?}") };
    assert_eq!(told, queued);
    assert_eq!(limit, bound.min(4 * ((64 << 10) - 64)));
    assert!((limit..limit + FRAME).contains(&queued), "{queued} bytes, the limit is {limit}");
    assert_eq!(batch.push_with(1, |_| panic!("must not be called")), full);
    drop(batch);
    assert_eq!(sender.queued_bytes(), queued);
    // Outside of a batch the bound is that of the runtime.
    let sent = if limit == bound { full } else { Ok(()) };
    assert_eq!(sender.try_send(b"one more"), sent);
}
