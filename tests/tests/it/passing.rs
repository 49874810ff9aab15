//! File descriptors in messages: they arrive with their message and no other, and none is left open.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use ringpost::{Connection, ConnectionOptions, EngineChoice, SendError, spawn};
use ringpost_testkit::{pattern, process};
use ringpost_tests::rig::{block_on, pair, pair_of, place, poll_at_most, until};
use ringpost_tests::{on_both_engines, on_both_engines_alone};
use rustix::io::{FdFlags, fcntl_getfd};

on_both_engines!(
    every_kind_works_at_the_other_end,
    every_pattern_of_messages,
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
        let descriptors = [
            memory_file(77),
            pipe_in.into(),
            socket.into(),
            listener.into(),
            file.into(),
        ];
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
            let shapes = [0, 1, 2, 3].map(|place| {
                SHAPES[combination / SHAPES.len().pow(place) % SHAPES.len()]
            });
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
        if first_done && second_done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
