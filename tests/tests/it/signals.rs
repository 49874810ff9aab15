//! Signals that a program must not meet because of its peers.

use std::fs::File;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use ringpost::{Connection, ConnectionOptions, EngineChoice, SendError, spawn};
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::rig::{adopt, block_on, pair, sockets};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

on_both_engines_alone!(a_gone_peer_raises_no_signal);

/// Sends until it is told that nobody is there any more.
async fn until_refused(mut connection: Connection, body: &Bytes, gather: bool) {
    loop {
        let sent = if gather {
            connection.halves().0.send_bytes(body.clone()).await
        } else {
            connection.send(body).await
        };
        match (sent, connection.flush().await) {
            (Ok(()), Ok(())) => {}
            (Err(SendError::Closed(_)), _) | (_, Err(SendError::Closed(_))) => return,
            other => panic!("{other:?}"),
        }
    }
}

fn a_gone_peer_raises_no_signal(engine: EngineChoice) {
    // Rust ignores SIGPIPE at the start of a program; C programs, and those who load a library, do not.
    // SAFETY: the process has been started for this test alone, and the default action has no handler.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    assert_ne!(before, libc::SIG_ERR);
    block_on(engine, async {
        let bytes = ConnectionOptions::new().bytes().gather_bytes_min(1);
        let body = Bytes::from(vec![7; 3000]);
        for gather in [false, true] {
            let (ours, theirs) = sockets();
            drop(theirs);
            until_refused(adopt(ours, bytes), &body, gather).await;

            let flags = SocketFlags::CLOEXEC;
            let (ours, theirs): (OwnedFd, OwnedFd) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                    .expect("a pair");
            drop(theirs);
            until_refused(Connection::from_socket(ours, bytes.seqpacket()), &body, gather).await;
        }
        let (mut left, mut right) = pair(ConnectionOptions::new().descriptors_max(1));
        let greeted = spawn(async move { right.ready().await.map(|()| right) });
        left.ready().await.expect("a greeting");
        drop(greeted.await.expect("no panic").expect("a greeting"));
        let null = File::open("/dev/null").expect("always there");
        while left.send_with_descriptors(b"x", &[&null]).await.is_ok() {}
    });
}
