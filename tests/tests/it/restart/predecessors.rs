//! Predecessors that talk nonsense, or stop in the middle: the successor says so, and keeps nothing of it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use ringpost::restart::{RestartError, Successor};
use ringpost_tests::rig::{LIMIT, place};
use ringpost_uds::handover;

use super::raw::{COMMIT, OFFER, hello};

/// The head of a record.
fn head(kind: u8, body_bytes: u32, descriptors: u8) -> [u8; 8] {
    let [a, b, c, d] = body_bytes.to_le_bytes();
    [a, b, c, d, kind, descriptors, 0, 0]
}

/// What a successor makes of a predecessor that answers its greeting so and then ends.
fn answered(answer: impl FnOnce(&mut UnixStream) + Send + 'static) -> RestartError {
    let (_directory, control) = place();
    let listener = UnixListener::bind(&control).expect("free");
    let predecessor = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a successor");
        let mut greeting = vec![0; 8 + hello(1).len()];
        stream.read_exact(&mut greeting).expect("a greeting");
        answer(&mut stream);
        let _ = stream.shutdown(Shutdown::Both);
    });
    let error = Successor::connect(&control).expect_err("nonsense");
    predecessor.join().expect("no panic");
    error
}

#[test]
fn nonsense_is_named() {
    let cases = [
        (head(99, 0, 0), "an unknown record"),
        (head(OFFER, u32::MAX, 0), "a record that is too long"),
        (head(OFFER, 0, 1), "descriptors are missing"),
        (head(OFFER, 0, u8::MAX), "descriptors are missing"),
        (head(COMMIT, 0, 0), "something other than an offer"),
    ];
    for (bytes, expected) in cases {
        let error = answered(move |stream| stream.write_all(&bytes).expect("room")).to_string();
        assert!(error.contains("broke the restart protocol"), "{error}");
        assert!(error.contains(expected), "{bytes:?}: {error}, and not {expected}");
    }
}

/// One that dies before it has offered anything is none: the next attempt finds nobody.
#[test]
fn death_in_the_middle() {
    for bytes in [&[][..], &head(OFFER, 10, 0)[..3], &head(OFFER, 10, 0)] {
        let bytes = bytes.to_vec();
        let error = answered(move |stream| stream.write_all(&bytes).expect("room"));
        assert!(error.is_no_predecessor(), "{error}");
    }
}

/// A record that takes its time, and descriptors with every byte of it.
#[test]
fn descriptors_without_end() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let error = answered(move |stream| {
        stream.write_all(&head(OFFER, 1000, 0)).expect("room");
        for _ in 0..1000 {
            let four = [theirs.as_fd(); handover::DESCRIPTORS_PER_SEND_MAX];
            // The successor has had enough long before.
            if handover::send(&*stream, b"x", &four).is_err() {
                break;
            }
        }
    })
    .to_string();
    assert!(error.contains("more descriptors than records say"), "{error}");
    // The last of them is closed, so this is the end.
    ours.set_read_timeout(Some(LIMIT)).expect("a socket");
    assert_eq!((&ours).read(&mut [0]).expect("an end"), 0);
}
