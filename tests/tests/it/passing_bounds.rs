//! Descriptors in messages: none is left open, few are held, and what a limit of the process does.

use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use ringpost::{
    Connection, ConnectionOptions, EngineChoice, RecvError, SendError, spawn, timeout, yield_now,
};
use ringpost_testkit::peer::RawPeer;
use ringpost_testkit::{pattern, process};
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::privileges::{become_user, limit_descriptors, root_or_skip};
use ringpost_tests::rig::{
    Bystander, adopt, block_on, builder, expect_message, join, pair, pair_of, poll_at_most, run,
    runtime, sockets, until,
};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::passing::{memory_file, options};
use crate::passing_hostile::{announcing, greeting, send};

on_both_engines_alone!(
    nothing_is_left_open,
    held_ones_are_bounded,
    held_behind_what_was_taken,
    a_header_in_pieces_beyond_the_bound,
    dropped_futures_send_nothing,
    sockets_in_their_own_messages,
    too_many_in_flight,
    none_left_to_receive_with,
    a_loss_in_a_batch_is_told_to_who_receives_next,
);

/// Waits until as many descriptors are open as before.
async fn until_open(count: usize) {
    until("all are closed", || process::descriptors() == count).await;
}

fn nothing_is_left_open(engine: EngineChoice) {
    let outside = process::descriptors();
    let runtime = runtime(engine);
    run(&runtime, async {
        let before = process::descriptors();
        let files: Vec<_> = (0..20).map(memory_file).collect();
        let with_files = process::descriptors();
        for round in 0..5 {
            let (mut left, mut right) = pair(options());
            for _ in 0..30 {
                left.send_with_descriptors(b"twenty", &files).await.expect("accepted");
            }
            match round {
                // Never read.
                0 => {}
                // Read and dropped, half of them taken.
                1 => {
                    for index in 0..30 {
                        let mut message = right.recv().await.expect("a message").expect("no end");
                        if index % 2 == 0 {
                            assert_eq!(message.take_descriptors().len(), 20);
                        }
                    }
                }
                // A batch that is left in the middle.
                2 => {
                    let mut batch = right.recv_batch().await.expect("some").expect("no end");
                    assert_eq!(batch.next().expect("a message").descriptors().len(), 20);
                    assert_eq!(batch.take_descriptors().len(), 20);
                    for _ in 0..3 {
                        assert_eq!(batch.next().expect("a message").descriptors().len(), 20);
                    }
                }
                // Runs that are passed on to nobody.
                3 => {
                    let run = right.recv_run().await.expect("some").expect("no end");
                    assert_eq!(run.messages(), 1);
                    let (mut none, _peer) = pair(ConnectionOptions::new());
                    let result = none.halves().0.send_run(run).await;
                    let refused = SendError::TooManyDescriptors { count: 20, limit: 0 };
                    assert_eq!(result, Err(refused));
                    let message = right.recv().await.expect("a message").expect("no end");
                    let result = none.send_message(message).await;
                    assert!(matches!(result, Err(SendError::TooManyDescriptors { .. })));
                }
                // Cut off in the middle of a long message.
                _ => {
                    left.flush().await.expect("open");
                    let body = vec![1; 4 << 20];
                    left.send_with_descriptors(&body, &files).await.expect("accepted");
                    for _ in 0..30 {
                        right.recv().await.expect("a message").expect("no end");
                    }
                    poll_at_most(20, right.recv()).await;
                }
            }
            drop((left, right));
            until_open(with_files).await;
        }
        drop(files);
        assert_eq!(process::descriptors(), before);
    });
    // The end of the runtime closes what a connection still holds.
    run(&runtime, async {
        let (mut left, mut right) = pair(options());
        left.send_with_descriptors(b"kept", &[memory_file(1)]).await.expect("accepted");
        right.ready().await.expect("they agree");
        yield_now().await;
        spawn(async move {
            let _both = (left, right);
            std::future::pending::<()>().await;
        });
        yield_now().await;
    });
    drop(runtime);
    assert_eq!(process::descriptors(), outside);
}

/// A reader that is slow holds a bounded number; nothing is lost by it.
fn held_ones_are_bounded(engine: EngineChoice) {
    const MESSAGES: u64 = 100;
    block_on(engine, async {
        let (mut left, mut right) = pair_of(options(), options().descriptors_held_max(4));
        right.ready().await.expect("they agree");
        left.ready().await.expect("they agree");
        let files = [memory_file(1), memory_file(2), memory_file(3)];
        let before = process::descriptors();
        for _ in 0..MESSAGES {
            left.send_with_descriptors(b"x", &files).await.expect("accepted");
            yield_now().await;
        }
        for _ in 0..20 {
            yield_now().await;
        }
        let held = process::descriptors() - before;
        assert!((3..=4 + 2 * 3).contains(&held), "{held} are held");
        for _ in 0..MESSAGES {
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(message.descriptors().len(), 3);
            assert!(process::descriptors() - before <= 4 + 3 * 3);
        }
        until_open(before).await;
        // A bound smaller than one message lets it through all the same.
        let (mut left, mut right) = pair_of(options(), options().descriptors_held_max(0));
        for _ in 0..10 {
            left.send_with_descriptors(&[7; 30_000], &files).await.expect("accepted");
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(message.descriptors().len(), 3);
        }
    });
}

/// The bytes of several messages may be taken at once: until they are decoded, what came with them is held.
fn held_behind_what_was_taken(engine: EngineChoice) {
    const BOUND: u16 = 64;
    const MOST: usize = 253;
    block_on(engine, async {
        let options = options().descriptors_max(253);
        let (mut left, mut right) = pair_of(options, options.descriptors_held_max(BOUND));
        right.ready().await.expect("they agree");
        left.ready().await.expect("they agree");
        let files: Vec<_> = (0..MOST as u64).map(memory_file).collect();
        let before = process::descriptors();
        for count in [usize::from(BOUND) - 1, MOST, MOST, MOST] {
            left.send_with_descriptors(b"x", &files[..count]).await.expect("accepted");
        }
        let mut taken = Vec::new();
        for count in [usize::from(BOUND) - 1, MOST, MOST, MOST] {
            for _ in 0..20 {
                yield_now().await;
            }
            let held = process::descriptors() - before;
            assert!(held < usize::from(BOUND) + MOST, "{held} are held");
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(message.descriptors().len(), count);
            taken.push(message.len());
        }
        assert_eq!(taken.len(), 4);
        until_open(before).await;
        // So it is with a batch of which nothing is asked.
        for count in [usize::from(BOUND) - 1, MOST, MOST, MOST] {
            left.send_with_descriptors(b"x", &files[..count]).await.expect("accepted");
        }
        for _ in 0..20 {
            yield_now().await;
        }
        let mut batch = right.recv_batch().await.expect("open").expect("no end");
        for _ in 0..20 {
            yield_now().await;
        }
        let held = process::descriptors() - before;
        assert!(held < usize::from(BOUND) + MOST, "{held} are held");
        assert!(batch.next_run().is_some(), "it was there all the time");
        for _ in 0..4 {
            right.recv().await.expect("a message").expect("no end");
        }
        until_open(before).await;
    });
}

/// Descriptors that come with the first bytes of a header can be claimed once the rest of it has come: that is received
/// whatever is held.
fn a_header_in_pieces_beyond_the_bound(engine: EngineChoice) {
    block_on(engine, async {
        let (ours, theirs) = sockets();
        let mut connection = adopt(ours, options().descriptors_held_max(1));
        let client = thread::spawn(move || {
            let mut peer = RawPeer::new(theirs);
            peer.send(&greeting().encode());
            peer.read_hello();
            let files = [1, 2, 3].map(memory_file);
            for split in 1..8 {
                let bytes = announcing(3, b"x");
                assert!(send(&peer, &bytes[..split], &files));
                thread::sleep(Duration::from_millis(5));
                peer.send(&bytes[split..]);
            }
            peer
        });
        for _ in 1..8 {
            let received = timeout(Duration::from_secs(10), connection.recv()).await;
            let message = received.expect("in time").expect("a message").expect("no end");
            assert_eq!((message.len(), message.descriptors().len()), (1, 3));
        }
        drop(join(client).await);
    });
}

/// A send that waits for room and is dropped has sent nothing, and what comes after it is whole.
fn dropped_futures_send_nothing(engine: EngineChoice) {
    // A socket that lingered would not end in time.
    let runtime = builder(engine).linger(Duration::from_secs(60)).build().expect("a runtime");
    run(&runtime, async {
        let (mut left, mut right) = pair(options());
        left.ready().await.expect("they agree");
        let file = [memory_file(1)];
        let before = process::descriptors();
        let mut accepted = 0;
        let mut dropped = 0;
        while dropped < 50 {
            let send = left.send_with_descriptors(&[7; 9000], &file);
            match poll_at_most(3, send).await {
                Some(result) => {
                    result.expect("the peer reads");
                    accepted += 1;
                }
                None => dropped += 1,
            }
            // One that waits for room, and a plain one behind it.
            if dropped == 25 {
                left.try_send(b"plain").expect("room in the queue");
                dropped += 1;
            }
        }
        let result = left.try_send_with_descriptors(b"now?", &file);
        assert!(matches!(result, Err(SendError::Full { .. })), "{result:?}");
        let mut plain = 0;
        for _ in 0..=accepted {
            let message = right.recv().await.expect("a message").expect("no end");
            if message == *b"plain" {
                plain += 1;
            } else {
                assert_eq!((message.len(), message.descriptors().len()), (9000, 1));
            }
        }
        assert_eq!(plain, 1);
        // Dropped receives lose nothing.
        left.send_with_descriptors(b"last", &file).await.expect("room");
        let message = loop {
            if let Some(message) = poll_at_most(1, right.recv()).await {
                break message.expect("a message").expect("no end");
            }
        };
        assert_eq!((&message[..], message.descriptors().len()), (&b"last"[..], 1));
        drop(message);
        // A connection that is dropped while a send waits for room closes at once.
        let mut sending = Box::pin(async move {
            loop {
                left.send_with_descriptors(&[7; 9000], &file).await.expect("the peer reads");
            }
        });
        let mut polls = 0;
        std::future::poll_fn(|context| {
            polls += 1;
            if sending.as_mut().poll(context).is_ready() || polls > 40 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        drop(sending);
        // It is seen although nobody reads.
        until("the end is seen", || {
            let mut set = [PollFd::new(&right, PollFlags::RDHUP)];
            rustix::event::poll(&mut set, Some(&Timespec::default())) == Ok(1)
        })
        .await;
        while right.recv().await.is_ok_and(|message| message.is_some()) {}
        drop(right);
        until_open(before - 3).await;
    });
}

/// Sockets that are in flight in each other's queues, or in their own, go when nobody can read them.
fn sockets_in_their_own_messages(engine: EngineChoice) {
    block_on(engine, async {
        let before = process::descriptors();
        let (witness, in_flight) = std::io::pipe().expect("a pipe");
        rustix::io::ioctl_fionbio(&witness, true).expect("a pipe");
        let (mut left, mut right) = pair(options());
        left.ready().await.expect("they agree");
        right.ready().await.expect("they agree");
        for _ in 0..3 {
            let loops = [left.as_fd(), right.as_fd(), in_flight.as_fd()];
            let loops = loops.map(|fd| fd.try_clone_to_owned().expect("room"));
            left.send_with_descriptors(b"knot", &loops).await.expect("accepted");
            right.send_with_descriptors(b"knot", &loops).await.expect("accepted");
        }
        // One is received, and holds the connection that it came over.
        let message = right.recv().await.expect("a message").expect("no end");
        let mut inner = Connection::from_socket(
            message.descriptors()[0].try_clone().expect("room"),
            ConnectionOptions::new().bytes(),
        );
        drop((in_flight, left, right, message));
        poll_at_most(3, inner.recv()).await;
        drop(inner);
        until("the kernel has collected them", || rustix::io::read(&witness, &mut [0; 1]) == Ok(0))
            .await;
        drop(witness);
        until_open(before).await;
    });
}

/// More in flight than one user may have: a typed error, nothing is lost, and it goes on.
fn too_many_in_flight(engine: EngineChoice) {
    if !root_or_skip("passing_bounds::too_many_in_flight") {
        return;
    }
    block_on(engine, async {
        // Few are received ahead: they count towards the limit as well.
        let (mut left, mut right) = pair(options().descriptors_held_max(1));
        left.ready().await.expect("they agree");
        right.ready().await.expect("they agree");
        let files: Vec<_> = (0..20).map(memory_file).collect();
        // A user of its own: the count is one for all processes of a user.
        become_user(60_000 + std::process::id() % 5000);
        limit_descriptors(process::descriptors() as u64 + 60);
        let (mut sender, mut receiver) = (left.split().0, right.split().1);
        let mut accepted = 0;
        // Sent without a turn, so that nothing is received meanwhile.
        let refused = loop {
            match sender.try_send_with_descriptors(b"x", &files) {
                Ok(()) => accepted += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, SendError::DescriptorsRefused { errno: libc::ETOOMANYREFS });
        assert!(accepted > 0);
        sender.send(b"bytes can go").await.expect("open");
        for _ in 0..accepted {
            let message = receiver.recv().await.expect("a message").expect("no end");
            assert_eq!(message.descriptors().len(), 20);
        }
        assert_eq!(receiver.recv().await.expect("a message").expect("no end"), *b"bytes can go");
        sender.send_with_descriptors(b"again", &files).await.expect("there is room");
        let message = receiver.recv().await.expect("a message").expect("no end");
        assert_eq!(message.descriptors().len(), 20);
    });
}

/// A receiver at its limit loses one message, knows it, and goes on; bytes and order stay.
fn none_left_to_receive_with(engine: EngineChoice) {
    block_on(engine, async {
        let mut bystander = Bystander::new();
        let (mut left, mut right) = pair(options());
        left.ready().await.expect("they agree");
        right.ready().await.expect("they agree");
        let files: Vec<_> = (0..8).map(memory_file).collect();
        for in_batches in [false, true] {
            for body in [&b"lost"[..], &[7; 100_000]] {
                let before = process::descriptors();
                let (sender, receiver) = (&mut left, &mut right);
                let sending = async move {
                    sender.send(b"first").await.expect("open");
                    sender.send_with_descriptors(body, &files_of(8)).await.expect("open");
                    sender.send(b"second").await.expect("open");
                    sender.send_with_descriptors(b"none", &files_of(0)).await.expect("open");
                };
                // Files are made before the limit is lowered; received after.
                let mut sending = pin!(sending);
                assert!(poll_at_most(1, sending.as_mut()).await.is_some() || body.len() > 9);
                limit_descriptors(before as u64 + 4);
                let lost = RecvError::DescriptorsLost { declared: 8 };
                let mut seen: Vec<Result<Vec<u8>, RecvError>> = Vec::new();
                let receiving = async {
                    while seen.len() < 4 {
                        if in_batches {
                            match receiver.recv_batch().await {
                                Ok(batch) => {
                                    let mut batch = batch.expect("no end");
                                    while let Some(frame) = batch.next() {
                                        seen.push(Ok(frame.to_vec()));
                                    }
                                }
                                Err(error) => seen.push(Err(error)),
                            }
                        } else {
                            let message = receiver.recv().await;
                            seen.push(message.map(|message| message.expect("no end").into_owned()));
                        }
                    }
                };
                receiving.await;
                let text = |text: &[u8]| Ok(text.to_vec());
                assert_eq!(seen, [text(b"first"), Err(lost), text(b"second"), text(b"none")]);
                limit_descriptors(1000);
                until_open(before).await;
            }
        }
        // With room again all is as before.
        left.send_with_descriptors(b"eight", &files).await.expect("open");
        let message = right.recv().await.expect("a message").expect("no end");
        assert_eq!(message.descriptors().len(), 8);
        expect_nothing_else(&mut left, &mut right).await;
        bystander.check().await;
    });
}

/// Whichever way the messages behind it are received.
fn a_loss_in_a_batch_is_told_to_who_receives_next(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        left.ready().await.expect("they agree");
        right.ready().await.expect("they agree");
        let files = files_of(8);
        for in_runs in [false, true] {
            left.send(b"first").await.expect("open");
            left.send_with_descriptors(b"lost", &files).await.expect("open");
            left.send(b"second").await.expect("open");
            left.send_with_descriptors(b"lost as well", &files[..7]).await.expect("open");
            left.send(b"third").await.expect("open");
            limit_descriptors(process::descriptors() as u64 + 4);
            for _ in 0..20 {
                yield_now().await;
            }
            let receiver = &mut right;
            let mut batch = receiver.recv_batch().await.expect("open").expect("no end");
            assert_eq!(batch.next().expect("a message").to_vec(), b"first");
            for _ in 0..3 {
                assert!(batch.next().is_none(), "the next one is lost, and that is told first");
                assert!(batch.next_run().is_none(), "the same");
            }
            let told = if in_runs {
                right.halves().1.recv_run().await.map(|_| ())
            } else {
                right.recv().await.map(|_| ())
            };
            assert_eq!(told, Err(RecvError::DescriptorsLost { declared: 8 }));
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"second");
            let told = right.recv().await.map(|_| ());
            assert_eq!(told, Err(RecvError::DescriptorsLost { declared: 7 }));
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"third");
            limit_descriptors(1000);
        }
    });
}

fn files_of(count: u64) -> Vec<OwnedFd> {
    (0..count).map(memory_file).collect()
}

async fn expect_nothing_else(left: &mut Connection, right: &mut Connection) {
    left.send_with(40, |bytes| pattern::fill(3, bytes)).await.expect("open");
    expect_message(right, 3, 40).await;
}
