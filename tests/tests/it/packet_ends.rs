//! How connections over packets end when the peer closes in the middle of something: of what arrives and of what is
//! sent.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringpost::{
    ByteOrder, Closed, ConnectionOptions, EngineChoice, LengthPrefix, PrefixWidth, ProtocolError,
    RecvError,
};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{adopt, block_on, join, packet_sockets};
use rustix::net::SendFlags;

on_both_engines!(an_empty_packet_is_no_end, a_reset_in_the_middle_of_a_batch);

fn send(socket: &UnixStream, packet: &[u8]) {
    let sent = rustix::net::send(socket, packet, SendFlags::NOSIGNAL).expect("room");
    assert_eq!(sent, packet.len());
}

/// What is behind it arrives, wherever a receive of several packets ends.
fn an_empty_packet_is_no_end(engine: EngineChoice) {
    block_on(engine, async {
        for empty in 0..20 {
            let (ours, theirs) = packet_sockets();
            for number in 0..20_u8 {
                if number == empty {
                    send(&theirs, b"");
                } else {
                    send(&theirs, &[number]);
                }
            }
            drop(theirs);
            let mut connection = adopt(ours, ConnectionOptions::new().bytes());
            for number in (0..20_u8).filter(|number| *number != empty) {
                let message = connection.recv().await.expect("open").expect("more is to come");
                assert_eq!(*message, [number], "behind an empty packet {empty}");
            }
            assert!(connection.recv().await.expect("a clean end").is_none());

            // Of a profile with frames it is an error.
            let (ours, theirs) = packet_sockets();
            for packet in [&b"\0\x01a"[..], b"\0\x01b", b"\0\x01c", b"", b"\0\x01d"] {
                send(&theirs, packet);
            }
            drop(theirs);
            let prefix = LengthPrefix { width: PrefixWidth::U16, byte_order: ByteOrder::Big };
            let options = ConnectionOptions::new().length_prefixed(prefix);
            let mut connection = adopt(ours, options);
            for body in [b"a", b"b", b"c"] {
                assert_eq!(*connection.recv().await.expect("open").expect("no end"), *body);
            }
            let Err(RecvError::Protocol { source, .. }) = connection.recv().await else {
                panic!("the empty packet is passed over");
            };
            assert!(
                matches!(source, ProtocolError::PacketLength { packet_bytes: 0, .. }),
                "{source}"
            );
        }
    });
}

/// The kernel tells of it once, to the packet at which it broke off the call, and of a plain end from then on.
fn a_reset_in_the_middle_of_a_batch(engine: EngineChoice) {
    /// Every hundredth or so is met in the middle.
    const CLOSES: u32 = 1000;
    block_on(engine, async {
        for round in 0..CLOSES {
            let (ours, theirs) = packet_sockets();
            let mut connection = adopt(ours, ConnectionOptions::new().bytes());
            connection.send(b"unread").await.expect("open");
            connection.flush().await.expect("open");
            for _ in 0..63 {
                connection.halves().0.try_send(&[7; 1500]).expect("it fits the queue");
            }
            let now = Arc::new(AtomicBool::new(false));
            let begin = Arc::clone(&now);
            let after = Duration::from_nanos(u64::from(round % 300) * 500);
            let closing = thread::spawn(move || {
                while !begin.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                let start = Instant::now();
                while start.elapsed() < after {
                    std::hint::spin_loop();
                }
                drop(theirs);
            });
            now.store(true, Ordering::Relaxed);
            let end = connection.recv().await.map(|_| ());
            assert_eq!(end, Err(RecvError::Closed(Closed::Aborted)), "close {round}");
            join(closing).await;
        }
    });
}
