//! Datagram sockets as they are made: what holds from the first packet on, names, buffers.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use ringpost::{AccessPolicy, Datagram, EngineChoice, timeout};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, join, place};

use crate::datagrams::plain;

on_both_engines!(the_first_packet_has_credentials, names, send_buffers);

/// A client that waits for its server may send the moment it is bound.
fn the_first_packet_has_credentials(engine: EngineChoice) {
    const STARTS: u32 = 100;
    let own = rustix::process::geteuid().as_raw();
    let (directory, _) = place();
    block_on(engine, async {
        for start in 0..STARTS {
            let path = directory.path().join(start.to_string());
            let waited_for = path.clone();
            let go = Arc::new(Barrier::new(2));
            let ready = Arc::clone(&go);
            let client = thread::spawn(move || {
                let socket = UnixDatagram::unbound().expect("a socket");
                ready.wait();
                let give_up = Instant::now() + Duration::from_secs(10);
                while socket.send_to(b"first", &waited_for).is_err() {
                    assert!(Instant::now() < give_up, "no server in time");
                }
            });
            go.wait();
            let policy = AccessPolicy::anyone().allow_uid(own);
            let mut server = plain().policy(policy).bind(&path).expect("bind");
            let received = timeout(Duration::from_secs(10), server.recv()).await;
            let packet = received.expect("it is not refused").expect("a packet");
            assert_eq!(*packet, *b"first");
            assert_eq!(packet.credentials().map(|peer| peer.uid), Some(own));
            assert_eq!(server.stats().denied, 0, "start {start}");
            join(client).await;
        }
    });
}

fn names(engine: EngineChoice) {
    block_on(engine, async {
        assert_eq!(Datagram::unbound().expect("a socket").local_address(), None);
        let (left, right) = Datagram::builder().pair().expect("a pair");
        assert_eq!((left.local_address(), right.local_address()), (None, None));
        let named = Datagram::builder().autobind().expect("a name");
        assert!(named.local_address().is_some_and(|address| address.as_path().is_none()));
        // The kernel gives one to who says who it is.
        let (_directory, path) = place();
        let mut server = plain().bind(&path).expect("bind");
        let client = plain().credentials(true).unbound().expect("a socket");
        assert_eq!(client.local_address(), None);
        client.send_to(&path, b"who").await.expect("accepted");
        client.flush().await.expect("sent");
        let packet = server.recv().await.expect("a packet");
        assert!(client.local_address().is_some());
        assert_eq!(packet.sender(), client.local_address());
    });
}

/// As far as the kernel allows.
fn send_buffers(engine: EngineChoice) {
    block_on(engine, async {
        let longest = |bytes| {
            let builder = plain().packet_bytes_max(1 << 20).send_buffer_bytes(bytes);
            builder.unbound().expect("a socket").message_bytes_max()
        };
        let greatest = longest(1 << 30);
        assert!(longest(0) < greatest);
        for bytes in [i32::MAX as usize, 1 << 31, 4 << 30, usize::MAX] {
            assert_eq!(longest(bytes), greatest);
        }
    });
}
