//! Peers that pass descriptors they should not: a typed error, a reason for the peer, everything closed,
//! and nobody else is touched.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use ringpost::{Closed, Connection, EngineChoice, ProtocolError, RecvError, SendError};
use ringpost_frame::{Features, FrameHeader, FrameKind, Hello};
use ringpost_testkit::peer::{RawPeer, frame, message};
use ringpost_testkit::process;
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::rig::{Bystander, adopt, block_on, join, sockets, until};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::passing::{memory_file, number_in, options};

on_both_engines_alone!(
    undeclared_and_wrong_counts,
    a_thousand_undeclared,
    a_greeting_in_crumbs,
    frames_that_are_no_messages,
    credentials_come_along,
);

/// Most descriptors with one message that the peers below may send.
const AGREED: u8 = 4;

/// Sends bytes in one call with descriptors. False if the other side has closed.
pub(crate) fn send(peer: &RawPeer, bytes: &[u8], descriptors: &[impl AsFd]) -> bool {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    let slices = [IoSlice::new(bytes)];
    sendmsg(peer.stream(), &slices, &mut control, SendFlags::NOSIGNAL) == Ok(bytes.len())
}

/// A message whose header announces `fds` descriptors.
pub(crate) fn announcing(fds: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("short");
    let header = FrameHeader::message_with_descriptors(len, fds).encode();
    [&header[..], body].concat()
}

pub(crate) fn greeting() -> Hello {
    let mut hello = Hello::new(1 << 20, 1);
    hello.supported = Features::DESCRIPTORS;
    hello.fds_max = AGREED.into();
    hello
}

fn files(count: u64) -> Vec<OwnedFd> {
    (0..count).map(memory_file).collect()
}

/// Runs `client` against a connection that first receives "before" with one descriptor, and then fails.
async fn fails_with(
    client: impl FnOnce(&mut RawPeer, &[OwnedFd]) + Send + 'static,
    error: ProtocolError,
) {
    let (ours, theirs) = sockets();
    let before = process::descriptors();
    let mut connection = adopt(ours, options());
    let client = thread::spawn(move || {
        let mut peer = RawPeer::new(theirs);
        peer.send(&greeting().encode());
        peer.read_hello();
        let files = files(253);
        assert!(send(&peer, &announcing(1, b"before"), &files[7..8]));
        client(&mut peer, &files);
        assert_eq!(peer.read_reject(), error.to_string());
        peer.expect_end();
    });
    let message = connection.recv().await.expect("a message").expect("no end");
    assert_eq!(message, *b"before");
    assert_eq!(number_in(&message.descriptors()[0]), 7);
    drop(message);
    let found = loop {
        match connection.recv().await {
            // Whole messages before the offence was seen, with what is theirs.
            Ok(message) => {
                let message = message.expect("no end");
                let numbers: Vec<_> = message.descriptors().iter().map(number_in).collect();
                let proper = message == *b"proper" && numbers.is_empty();
                let announced = message.iter().all(|byte| *byte == 0) && numbers == [0];
                assert!(proper || announced, "{message:?} with {numbers:?}");
            }
            Err(found) => break found,
        }
    };
    let RecvError::Protocol { source, .. } = found else { panic!("{found:?}, not {error:?}") };
    assert_eq!(source, error);
    // Before this side lets go of the connection.
    join(client).await;
    until("all are closed", || process::descriptors() < before).await;
    let end = Closed::Protocol(Box::new(error));
    assert_eq!(connection.recv().await.map(|_| ()), Err(found));
    let result = connection.send_with_descriptors(b"x", &[memory_file(1)]).await;
    assert_eq!(result, Err(SendError::Closed(end)));
}

fn undeclared_and_wrong_counts(engine: EngineChoice) {
    let undeclared = |count| ProtocolError::DescriptorsUndeclared { count };
    let count = |declared, received| ProtocolError::DescriptorCount { declared, received };
    block_on(engine, async {
        let mut bystander = Bystander::new();
        bystander.check().await;
        // With a message that announces none.
        fails_with(
            |peer, files| assert!(send(peer, &message(b"proper"), &files[..3])),
            undeclared(3),
        )
        .await;
        // Fewer, more, and none of what is announced.
        let too_few = |peer: &mut RawPeer, files: &[OwnedFd]| {
            assert!(send(peer, &announcing(3, b"x"), &files[..2]));
        };
        fails_with(too_few, count(3, 2)).await;
        let too_many = |peer: &mut RawPeer, files: &[OwnedFd]| {
            assert!(send(peer, &announcing(2, b"x"), files));
        };
        fails_with(too_many, count(2, 253)).await;
        let none = |peer: &mut RawPeer, files: &[OwnedFd]| {
            assert!(send(peer, &announcing(2, b"x"), &files[..0]));
        };
        fails_with(none, count(2, 0)).await;
        // The announcement comes behind them, in another call.
        let early = |peer: &mut RawPeer, files: &[OwnedFd]| {
            assert!(send(peer, &message(b"proper"), &files[..2]));
            send(peer, &announcing(2, b"x"), &files[..0]);
        };
        fails_with(early, undeclared(2)).await;
        // With a later byte of the header, of the body, and of a body that is not whole.
        for (cut, len) in [(1, 5), (7, 5), (8, 5), (10, 5), (9, 5000), (3000, 5000)] {
            let late = move |peer: &mut RawPeer, files: &[OwnedFd]| {
                let bytes = announcing(1, &vec![0; len]);
                assert!(send(peer, &bytes[..cut], &files[..1]));
                // Seen apart from the first part.
                thread::sleep(Duration::from_millis(5));
                send(peer, &bytes[cut..bytes.len() - 1], &files[..4]);
                peer.try_send(&bytes[bytes.len() - 1..]);
                peer.try_send(&announcing(1, b"x"));
            };
            fails_with(late, undeclared(4)).await;
        }
        // Every byte of a header that never becomes whole comes with the most there can be.
        let crumbs = |peer: &mut RawPeer, files: &[OwnedFd]| {
            let bytes = announcing(1, b"");
            assert!(send(peer, &bytes[..1], files));
            assert!(send(peer, &bytes[1..2], files));
        };
        fails_with(crumbs, undeclared(253)).await;
        // More than agreed: the header says it all.
        let over = |peer: &mut RawPeer, files: &[OwnedFd]| {
            assert!(send(peer, &announcing(5, b"x"), &files[..5]));
        };
        fails_with(over, ProtocolError::DescriptorsNotAllowed { count: 5, limit: 4 }).await;
        bystander.check().await;
    });
}

/// Many at once, before and behind the greeting; what is held meanwhile is bounded.
fn a_thousand_undeclared(engine: EngineChoice) {
    block_on(engine, async {
        let mut bystander = Bystander::new();
        bystander.check().await;
        let flood = |peer: &mut RawPeer, files: &[OwnedFd]| {
            for _ in 0..40 {
                // The connection may be closed by now.
                send(peer, &frame(FrameKind::Unknown(99), b"luggage"), files);
            }
        };
        fails_with(flood, ProtocolError::DescriptorsUndeclared { count: 253 }).await;
        // With the greeting itself, nobody reading: at most the bound and one message more are held.
        let (ours, theirs) = sockets();
        let before = process::descriptors();
        let files = files(253);
        let peer = RawPeer::new(theirs);
        let mut connection = adopt(ours, options());
        assert!(send(&peer, &greeting().encode(), &files));
        for _ in 0..20 {
            assert!(send(&peer, &announcing(1, b"x"), &files));
        }
        for _ in 0..50 {
            ringpost::yield_now().await;
        }
        let held = process::descriptors() - before - files.len();
        assert!(held <= 253 + 64, "{held} are held");
        let found = connection.recv().await.expect_err("undeclared");
        let source = ProtocolError::DescriptorsUndeclared { count: 253 };
        assert_eq!(found, RecvError::Closed(Closed::Protocol(Box::new(source))));
        drop((connection, peer, files));
        until("all are closed", || process::descriptors() == before - 2).await;
        bystander.check().await;
    });
}

/// Descriptors with the bytes of a greeting belong to no message: whoever waits for the greeting, or only sends, does
/// not gather them.
fn a_greeting_in_crumbs(engine: EngineChoice) {
    block_on(engine, async {
        let mut bystander = Bystander::new();
        bystander.check().await;
        // One at a time, and all in one.
        for crumb in [1, 63, 64] {
            let (ours, theirs) = sockets();
            let before = process::descriptors();
            let mut connection = adopt(ours, options());
            let client = thread::spawn(move || {
                let mut peer = RawPeer::new(theirs);
                let files = files(253);
                for bytes in greeting().encode().chunks(crumb) {
                    // The connection may be closed by now.
                    if !send(&peer, bytes, &files) {
                        break;
                    }
                }
                peer.read_hello();
                let error = ProtocolError::DescriptorsUndeclared { count: 253 };
                assert_eq!(peer.read_reject(), error.to_string());
                peer.expect_end();
            });
            let source = ProtocolError::DescriptorsUndeclared { count: 253 };
            let refused = Closed::Protocol(Box::new(source));
            assert_eq!(connection.ready().await, Err(refused.clone()));
            assert_eq!(connection.send(b"x").await, Err(SendError::Closed(refused)));
            join(client).await;
            drop(connection);
            until("all are closed", || process::descriptors() == before - 2).await;
        }
        bystander.check().await;
    });
}

/// Descriptors that were announced on a frame that is no message are closed with it.
fn frames_that_are_no_messages(engine: EngineChoice) {
    block_on(engine, async {
        let (ours, theirs) = sockets();
        let before = process::descriptors();
        let mut connection = adopt(ours, options());
        let client = thread::spawn(move || {
            let mut peer = RawPeer::new(theirs);
            peer.send(&greeting().encode());
            peer.read_hello();
            let files = files(4);
            let long = vec![5; 70_000];
            for (kind, body) in [
                (FrameKind::Unknown(77), &b"?"[..]),
                (FrameKind::Ping, b"tick"),
                (FrameKind::Unknown(200), &long),
                (FrameKind::Pong, b""),
            ] {
                let len = u32::try_from(body.len()).expect("short");
                let header = FrameHeader { kind, ..FrameHeader::message_with_descriptors(len, 4) };
                let bytes = [&header.encode()[..], body].concat();
                assert!(send(&peer, &bytes, &files));
            }
            assert!(send(&peer, &announcing(2, b"at last"), &files[2..]));
            let pong = peer.read_frame().expect("an answer");
            assert_eq!((pong.header.kind, pong.header.fds), (FrameKind::Pong, 0));
            peer
        });
        let message = connection.recv().await.expect("a message").expect("no end");
        assert_eq!(message, *b"at last");
        let found: Vec<_> = message.descriptors().iter().map(number_in).collect();
        assert_eq!(found, [2, 3]);
        drop(message);
        let peer = join(client).await;
        until("all are closed", || process::descriptors() == before).await;
        drop(peer);
    });
}

/// A socket on which somebody switched on what the kernel adds to each message: a pidfd is a
/// descriptor as well.
fn credentials_come_along(engine: EngineChoice) {
    const SO_PASSPIDFD: libc::c_int = 76;
    block_on(engine, async {
        let (ours, theirs) = sockets();
        for option in [libc::SO_PASSCRED, SO_PASSPIDFD] {
            let on: libc::c_int = 1;
            // SAFETY: the value is an int of four bytes that lives through the call.
            let result = unsafe {
                let value = (&raw const on).cast();
                libc::setsockopt(ours.as_raw_fd(), libc::SOL_SOCKET, option, value, 4)
            };
            assert_eq!(result, 0, "Linux 6.5 or later");
        }
        let before = process::descriptors();
        let (mut left, mut right): (Connection, Connection) =
            (adopt(theirs, options()), adopt(ours, options()));
        for count in [0, 1, 253, 0, 2] {
            let files = files(count);
            left.send_with_descriptors(b"hello", &files).await.expect("open");
            drop(files);
            let message = right.recv().await.expect("a message").expect("no end");
            let found: Vec<_> = message.descriptors().iter().map(number_in).collect();
            assert_eq!(found, (0..count).collect::<Vec<_>>());
            drop(message);
            assert_eq!(process::descriptors(), before);
        }
    });
}
