//! File descriptors in messages: they arrive with their message and no other, and none is left open.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::task::Poll;

use ringpost::{Connection, ConnectionOptions, EngineChoice, SendError, Spin, spawn, yield_now};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{
    adopt, ask, block_on, builder, echo, pair, pair_of, place, run, runtime, sockets,
};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::net::sockopt::set_socket_send_buffer_size;

on_both_engines!(
    every_kind_works_at_the_other_end,
    every_pattern_of_messages,
    many_in_every_way_of_reading,
    passed_on_by_runs_and_messages,
    short_sends_at_every_place,
    a_mebibyte_with_descriptors,
    limits,
    before_the_greeting,
    a_peer_without,
    what_the_kernel_does_not_pass,
    sent_and_dropped,
    while_spinning,
    with_an_empty_pool,
    others_get_their_turns,
    descriptors_that_use_the_runtime,
);

/// Options of both ends.
pub(crate) fn options() -> ConnectionOptions {
    ConnectionOptions::new().descriptors_max(ConnectionOptions::DESCRIPTORS_MAX)
}

/// A file in memory whose content is this number.
pub(crate) fn memory_file(number: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create("ringpost-test", rustix::fs::MemfdFlags::CLOEXEC);
    let file = file.expect("a memory file");
    rustix::io::pwrite(&file, &number.to_le_bytes(), 0).expect("room in memory");
    file
}

/// The number in a memory file.
pub(crate) fn number_in(file: impl AsFd) -> u64 {
    let mut bytes = [0; 8];
    assert_eq!(rustix::io::pread(file, &mut bytes, 0), Ok(8), "a memory file");
    u64::from_le_bytes(bytes)
}

fn every_kind_works_at_the_other_end(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        let (pipe_out, pipe_in) = std::io::pipe().expect("a pipe");
        let (socket, far_socket) = UnixStream::pair().expect("a pair");
        let listener = UnixListener::bind(&path).expect("bind");
        let file = File::create_new(path.with_extension("file")).expect("a file");
        let descriptors =
            [memory_file(77), pipe_in.into(), socket.into(), listener.into(), file.into()];
        left.send_with_descriptors(b"five", &descriptors).await.expect("accepted");
        drop(descriptors);

        let mut message = right.recv().await.expect("a message").expect("no end");
        assert_eq!(message, *b"five");
        assert_eq!(message.descriptors().len(), 5);
        for descriptor in message.descriptors() {
            let flags = fcntl_getfd(descriptor).expect("open");
            assert!(flags.contains(FdFlags::CLOEXEC));
        }
        let taken: [OwnedFd; 5] = message.take_descriptors().try_into().expect("five");
        let [memory, pipe_in, socket, listener, file] = taken;
        assert_eq!(number_in(&memory), 77);
        File::from(pipe_in).write_all(b"through the pipe").expect("open");
        let mut text = String::new();
        File::from(OwnedFd::from(pipe_out)).read_to_string(&mut text).expect("open");
        assert_eq!(text, "through the pipe");
        UnixStream::from(socket).write_all(b"through the socket").expect("open");
        text.clear();
        (&far_socket).read_to_string(&mut text).expect("open");
        assert_eq!(text, "through the socket");
        let client = UnixStream::connect(&path).expect("it listens");
        let (accepted, _) = UnixListener::from(listener).accept().expect("it listens");
        drop((client, accepted));
        File::from(file).write_all(b"through the file").expect("open");
        let found = std::fs::read_to_string(path.with_extension("file")).expect("it is there");
        assert_eq!(found, "through the file");
    });
}

/// Messages with and without descriptors, small and large, in all orders of four; each is read in
/// another way.
fn every_pattern_of_messages(engine: EngineChoice) {
    const SHAPES: [(usize, usize); 5] = [(0, 0), (20, 0), (0, 1), (20, 3), (40_000, 2)];
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        for combination in 0..SHAPES.len().pow(4) {
            let shapes = [0, 1, 2, 3]
                .map(|place| SHAPES[combination / SHAPES.len().pow(place) % SHAPES.len()]);
            let sender = async {
                for (sequence, (len, count)) in (0..).zip(shapes) {
                    let mut body = vec![0; len];
                    pattern::fill(sequence, &mut body);
                    let descriptors: Vec<_> =
                        (0..count as u64).map(|index| memory_file(sequence << 8 | index)).collect();
                    left.send_with_descriptors(&body, &descriptors).await.expect("accepted");
                }
            };
            let receiver = async {
                for (sequence, (len, count)) in (0..).zip(shapes) {
                    let mut message = right.recv().await.expect("a message").expect("no end");
                    pattern::check(sequence, len, &message);
                    let descriptors = message.take_descriptors();
                    assert_eq!(descriptors.len(), count, "message {sequence} of {shapes:?}");
                    for (index, descriptor) in (0..).zip(descriptors) {
                        assert_eq!(number_in(descriptor), sequence << 8 | index);
                    }
                }
            };
            both(sender, receiver).await;
        }
    });
}

/// Runs two futures side by side.
pub(crate) async fn both(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    let (mut first_done, mut second_done) = (false, false);
    std::future::poll_fn(|context| {
        first_done = first_done || first.as_mut().poll(context).is_ready();
        second_done = second_done || second.as_mut().poll(context).is_ready();
        if first_done && second_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Message number `sequence`: its length and how many descriptors it has.
fn shape(sequence: u64) -> (usize, u64) {
    const LENS: [usize; 7] = [0, 9, 64, 700, 3000, 64, 30_000];
    let len = LENS[usize::try_from(sequence % 7).expect("small")];
    (len, [0, 0, 1, 0, 2, 0, 0, 0, 3, 1, 0][usize::try_from(sequence % 11).expect("small")])
}

async fn send_number(connection: &mut Connection, sequence: u64) {
    let (len, count) = shape(sequence);
    let descriptors: Vec<_> = (0..count).map(|index| memory_file(sequence << 8 | index)).collect();
    let body = pattern::payload(sequence, len);
    connection.send_with_descriptors(&body, &descriptors).await.expect("the peer reads");
}

fn check_number(sequence: u64, body: &[u8], descriptors: &[OwnedFd]) {
    let (len, count) = shape(sequence);
    pattern::check(sequence, len, body);
    let found: Vec<_> = descriptors.iter().map(number_in).collect();
    let expected: Vec<_> = (0..count).map(|index| sequence << 8 | index).collect();
    assert_eq!(found, expected, "message {sequence}");
}

/// Receives messages up to `count` in ways that change all the time.
async fn receive_all(connection: &mut Connection, count: u64) {
    let mut sequence = 0;
    while sequence < count {
        match sequence % 4 {
            0 => {
                let message = connection.recv().await.expect("a message").expect("no end");
                check_number(sequence, &message, message.descriptors());
                sequence += 1;
            }
            1 => {
                let batch = connection.recv_batch().await;
                let mut batch = batch.expect("messages").expect("no end");
                while let Some(frame) = batch.next() {
                    check_number(sequence, &frame.bytes(), frame.descriptors());
                    let taken = frame.descriptors().len();
                    if sequence % 3 == 0 && taken > 0 {
                        let taken = batch.take_descriptors();
                        let expected = shape(sequence).1;
                        assert_eq!(taken.len() as u64, expected);
                        assert_eq!(number_in(&taken[0]), sequence << 8);
                    }
                    sequence += 1;
                }
            }
            _ => {
                let batch = connection.recv_batch().await;
                let mut batch = batch.expect("messages").expect("no end");
                while let Some(frames) = batch.next_run() {
                    for frame in frames {
                        check_number(sequence, &frame.bytes(), frame.descriptors());
                        sequence += 1;
                    }
                }
            }
        }
    }
    assert_eq!(sequence, count);
}

fn many_in_every_way_of_reading(engine: EngineChoice) {
    const COUNT: u64 = 1500;
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        let sending = async {
            for sequence in 0..COUNT {
                send_number(&mut left, sequence).await;
                if sequence % 100 == 0 {
                    yield_now().await;
                }
            }
            left.shutdown().await.expect("the peer reads");
        };
        both(sending, receive_all(&mut right, COUNT)).await;
        assert!(right.recv().await.expect("a clean end").is_none());
    });
}

fn passed_on_by_runs_and_messages(engine: EngineChoice) {
    const COUNT: u64 = 1000;
    block_on(engine, async {
        let (mut source, first) = pair(options());
        let (second, third) = pair(options());
        let (fourth, mut target) = pair(options());
        spawn(async move {
            let (mut first, mut second) = (first, second);
            while let Some(run) = first.recv_run().await.expect("messages") {
                second.halves().0.send_run(run).await.expect("the peer reads");
            }
            second.shutdown().await.expect("the peer reads");
        });
        spawn(async move {
            let (mut third, mut fourth) = (third, fourth);
            while let Some(message) = third.recv().await.expect("messages") {
                fourth.send_message(message).await.expect("the peer reads");
            }
            fourth.shutdown().await.expect("the peer reads");
        });
        let sending = async {
            for sequence in 0..COUNT {
                send_number(&mut source, sequence).await;
            }
            source.shutdown().await.expect("the peer reads");
        };
        both(sending, receive_all(&mut target, COUNT)).await;
        assert!(target.recv().await.expect("a clean end").is_none());
    });
}

/// With the smallest socket buffer, the front that the kernel takes ends at every place around the
/// ends of header and body.
fn short_sends_at_every_place(engine: EngineChoice) {
    block_on(engine, async {
        let (ours, theirs) = sockets();
        set_socket_send_buffer_size(&ours, 1).expect("it is raised to the smallest");
        let (mut left, mut right) = (adopt(ours, options()), adopt(theirs, options()));
        let lens =
            || (0..60).chain(2200..2300).chain(4400..4520).chain((0..20).map(|n| 6000 + 170 * n));
        let sender = async {
            for (sequence, len) in (0..).zip(lens()) {
                let descriptors = [memory_file(sequence), memory_file(sequence + 1)];
                let body = pattern::payload(sequence, len);
                let result = if sequence % 2 == 0 {
                    left.send_with_descriptors(&body, &descriptors).await
                } else {
                    // What is queued before it makes the first bytes come to lie elsewhere.
                    left.send(&body).await.expect("the peer reads");
                    left.send_with_descriptors(&body, &descriptors[..1]).await
                };
                result.expect("the peer reads");
            }
            left.flush().await.expect("the peer reads");
        };
        let receiver = async {
            for (sequence, len) in (0..).zip(lens()) {
                if sequence % 2 == 1 {
                    let message = right.recv().await.expect("a message").expect("no end");
                    pattern::check(sequence, len, &message);
                    assert!(message.descriptors().is_empty());
                }
                let message = right.recv().await.expect("a message").expect("no end");
                pattern::check(sequence, len, &message);
                let found: Vec<_> = message.descriptors().iter().map(number_in).collect();
                let expected = [sequence, sequence + 1];
                assert_eq!(found, expected[..if sequence % 2 == 0 { 2 } else { 1 }]);
            }
        };
        both(sender, receiver).await;
    });
}

fn a_mebibyte_with_descriptors(engine: EngineChoice) {
    const LEN: usize = 1 << 20;
    block_on(engine, async {
        let (mut left, right) = pair(options());
        let server = spawn(echo(right));
        for sequence in 0..8 {
            let descriptors: Vec<_> = (0..5).map(|index| memory_file(sequence + index)).collect();
            let body = pattern::payload(sequence, LEN);
            left.send_with_descriptors(&body, &descriptors).await.expect("the peer reads");
            // In between, without.
            left.send(b"next").await.expect("the peer reads");
            let message = left.recv().await.expect("a message").expect("no end");
            pattern::check(sequence, LEN, &message);
            let found: Vec<_> = message.descriptors().iter().map(number_in).collect();
            assert_eq!(found, (sequence..sequence + 5).collect::<Vec<_>>());
            let message = left.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"next");
            assert!(message.descriptors().is_empty());
        }
        left.shutdown().await.expect("the peer reads");
        server.await.expect("no panic");
    });
}

fn limits(engine: EngineChoice) {
    block_on(engine, async {
        let at_most = |count| ConnectionOptions::new().descriptors_max(count);
        let many: Vec<_> = (0..254).map(memory_file).collect();
        for (ours, theirs) in [(253, 253), (255, 254), (8, 3), (3, 8), (1, 253), (0, 9), (9, 0)] {
            let (mut left, mut right) = pair_of(at_most(ours), at_most(theirs));
            let limit = usize::from(ours.min(theirs).min(253));
            left.ready().await.expect("they agree");
            right.ready().await.expect("they agree");
            let agreed = left.agreement().expect("native").fds_max;
            assert_eq!(usize::from(agreed), limit);
            let count = limit + 1;
            let refused = SendError::TooManyDescriptors { count, limit };
            let result = left.send_with_descriptors(b"", &many[..count]).await;
            assert_eq!(result, Err(refused.clone()));
            let (mut sender, _receiver) = left.split();
            assert_eq!(sender.descriptors_max(), limit);
            let result = sender.try_send_with_descriptors(b"", &many[..count]);
            assert_eq!(result, Err(refused));
            assert_eq!(sender.queued_bytes(), 0);
            sender.send_with_descriptors(b"x", &many[..limit]).await.expect("allowed");
            let message = right.recv().await.expect("a message").expect("no end");
            let found: Vec<_> = message.descriptors().iter().map(number_in).collect();
            assert_eq!(found, (0..limit as u64).collect::<Vec<_>>());
        }
        // Length is checked first, and other profiles have none.
        let (mut left, mut right) = pair(options().frame_bytes_max(2000));
        right.ready().await.expect("they agree");
        let result = left.send_with_descriptors(&[0; 2001], &many[..1]).await;
        assert_eq!(result, Err(SendError::TooLarge { len: 2001, limit: 2000 }));
        let (mut left, _right) = pair(options().bytes());
        let result = left.send_with_descriptors(b"x", &many[..1]).await;
        assert_eq!(result, Err(SendError::TooManyDescriptors { count: 1, limit: 0 }));
        left.send_with_descriptors(b"x", &many[..0]).await.expect("none are always allowed");
        left.shutdown().await.expect("open");
        let result = left.send_with_descriptors(b"x", &many[..1]).await;
        assert_eq!(result, Err(SendError::Finished));
    });
}

fn before_the_greeting(engine: EngineChoice) {
    block_on(engine, async {
        let (ours, theirs) = sockets();
        let (mut sender, _receiver) = adopt(ours, options()).split();
        let files = [memory_file(5)];
        let result = sender.try_send_with_descriptors(b"early", &files);
        assert_eq!(result, Err(SendError::NotReady));
        sender.send(b"plain").await.expect("accepted");
        let waiting = spawn(async move {
            sender.send_with_descriptors(b"first", &files).await.expect("the peer greets");
            sender.send(b"second").await.expect("open");
            sender.flush().await.expect("open");
            sender
        });
        for _ in 0..5 {
            yield_now().await;
        }
        assert!(!waiting.is_finished());
        let mut right = adopt(theirs, options());
        for (body, count) in [(&b"plain"[..], 0), (b"first", 1), (b"second", 0)] {
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!((&message[..], message.descriptors().len()), (body, count));
        }
        drop(waiting.await.expect("no panic"));
    });
}

/// A side that takes descriptors from a peer that has none goes on like any other connection.
fn a_peer_without(engine: EngineChoice) {
    let runtime = runtime(engine);
    run(&runtime, async {
        for (ours, theirs) in
            [(options(), ConnectionOptions::new()), (ConnectionOptions::new(), options())]
        {
            let (mut left, right) = pair_of(ours, theirs);
            let server = spawn(echo(right));
            for (sequence, len) in (0..).zip([0, 10, 1000, 70_000, 300_000, 5]) {
                ask(&mut left, sequence, len).await;
            }
            left.shutdown().await.expect("open");
            server.await.expect("no panic");
        }
    });
}

/// An io_uring instance can't be passed since Linux 6.8 (EINVAL); the connection goes on.
fn what_the_kernel_does_not_pass(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        let mut parameters = [0_u8; 120];
        // SAFETY: the parameters are 120 bytes, zero as they have to be, and live through the call.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
        if let Ok(ring @ 0..) = i32::try_from(ring) {
            // SAFETY: just made, and nobody else's.
            let ring = unsafe { OwnedFd::from_raw_fd(ring) };
            let result = left.send_with_descriptors(b"a ring", &[ring]).await;
            assert_eq!(result, Err(SendError::DescriptorsRefused { errno: libc::EINVAL }));
        }
        // The other side takes none although it said so: not something this library does.
        let_pass(&right, false);
        let result = left.send_with_descriptors(b"none", &[memory_file(1)]).await;
        assert_eq!(result, Err(SendError::DescriptorsRefused { errno: libc::EPERM }));
        let_pass(&right, true);
        left.send_with_descriptors(b"a file", &[memory_file(2)]).await.expect("it goes on");
        let message = right.recv().await.expect("a message").expect("no end");
        assert_eq!(message, *b"a file");
        assert_eq!(number_in(&message.descriptors()[0]), 2);
    });
}

/// SO_PASSRIGHTS (include/uapi/asm-generic/socket.h).
fn let_pass(socket: impl AsFd, pass: bool) {
    let value = libc::c_int::from(pass);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the value is an int of four bytes that lives through the call.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, 83, (&raw const value).cast(), 4) };
    assert_eq!(result, 0, "Linux 6.16 or later");
}

/// What was accepted leaves although the connection is dropped, long bodies included.
fn sent_and_dropped(engine: EngineChoice) {
    block_on(engine, async {
        for len in [3, 100_000, 300_000] {
            let (mut left, mut right) = pair(options());
            left.ready().await.expect("they agree");
            left.send(b"before").await.expect("open");
            let body = pattern::payload(9, len);
            // What is queued goes first, in the same breath.
            let files = [memory_file(4)];
            left.try_send_with_descriptors(&body, &files).expect("there is room");
            left.send(b"after").await.expect("open");
            drop(left);
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"before");
            let message = right.recv().await.expect("a message").expect("no end");
            pattern::check(9, len, &message);
            assert_eq!(number_in(&message.descriptors()[0]), 4);
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"after");
            right.recv().await.expect_err("no proper end");
        }
    });
}

fn while_spinning(engine: EngineChoice) {
    let runtime = builder(engine).spin(Spin::Always).build().expect("a runtime");
    run(&runtime, async {
        let (mut left, right) = pair(options());
        let server = spawn(echo(right));
        for sequence in 0..300 {
            send_number(&mut left, sequence).await;
            let message = left.recv().await.expect("a message").expect("no end");
            check_number(sequence, &message, message.descriptors());
        }
        left.shutdown().await.expect("open");
        server.await.expect("no panic");
    });
}

/// With all of the pool retained, messages are copied.
fn with_an_empty_pool(engine: EngineChoice) {
    const COUNT: u64 = 600;
    let runtime = builder(engine).pool_bytes(512 << 10).build().expect("a runtime");
    run(&runtime, async {
        let (mut left, mut right) = pair(options());
        let mut kept = Vec::new();
        for sequence in 0..COUNT {
            let body = pattern::payload(sequence, 3000);
            left.send_with_descriptors(&body, &[memory_file(sequence)]).await.expect("open");
            let mut message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(number_in(&message.take_descriptors()[0]), sequence);
            kept.push(message);
        }
        let copied = ringpost::stats().bytes_copied;
        assert!(copied > 1 << 20, "only {copied} bytes");
        for (sequence, message) in (0..).zip(&kept) {
            pattern::check(sequence, 3000, message);
        }
    });
}

/// A sender that never has to wait lets others run all the same.
fn others_get_their_turns(engine: EngineChoice) {
    block_on(engine, async {
        let (mut left, _right) = pair(options());
        left.ready().await.expect("they agree");
        let turns = Rc::new(Cell::new(0));
        let counting = Rc::clone(&turns);
        let counter = spawn(async move {
            loop {
                counting.set(counting.get() + 1);
                yield_now().await;
            }
        });
        yield_now().await;
        let before = turns.get();
        let files = [memory_file(1)];
        // They fit the socket.
        for _ in 0..130 {
            left.send_with_descriptors(b"x", &files).await.expect("open");
        }
        assert!(turns.get() >= before + 2, "{before} and {} turns", turns.get());
        counter.cancel().await;
    });
}

/// What lends a descriptor is code of the program, and may use the runtime.
fn descriptors_that_use_the_runtime(engine: EngineChoice) {
    struct Nosy(OwnedFd);
    impl AsFd for Nosy {
        fn as_fd(&self) -> BorrowedFd<'_> {
            assert!(ringpost::stats().operations > 0);
            self.0.as_fd()
        }
    }
    block_on(engine, async {
        let (mut left, mut right) = pair(options());
        for number in 0..3 {
            left.send_with_descriptors(b"x", &[Nosy(memory_file(number))]).await.expect("accepted");
            let message = right.recv().await.expect("a message").expect("no end");
            assert_eq!(number_in(&message.descriptors()[0]), number);
        }
    });
}
