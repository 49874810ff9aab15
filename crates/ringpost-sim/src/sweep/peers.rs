//! The other actors of a sweep: who sends at leisure, and who reads late.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use ringpost::{Connection, ConnectionOptions, Message};

use crate::flow::Flow;
use crate::rig::Rig;

/// Lengths of the messages of a sweep, bytes: with and without body, within and beyond a greeting's
/// limit, beyond blocks, sockets and queues.
pub(super) const LENGTHS: &[usize] = &[64, 0, 3000, 1, 9000, 500];
/// Messages in one direction.
pub(super) const MESSAGES: u64 = 9;
/// From which length on messages are sent from where they lie, bytes.
const GATHER_BYTES_MIN: usize = 2000;
/// What a reader leaves others to do between two messages, microseconds.
const PAUSE_US: u64 = 200;

/// Two connected sockets that hold next to nothing.
pub(super) fn sockets() -> (OwnedFd, OwnedFd) {
    let (left, right) = UnixStream::pair().expect("sockets");
    for socket in [&left, &right] {
        rustix::net::sockopt::set_socket_send_buffer_size(socket, 1).expect("a size");
    }
    (left.into(), right.into())
}

pub(super) fn options() -> ConnectionOptions {
    ConnectionOptions::new().gather_bytes_min(GATHER_BYTES_MIN)
}

pub(super) fn pair(options: ConnectionOptions) -> (Connection, Connection) {
    let (left, right) = sockets();
    (Connection::from_socket(left, options), Connection::from_socket(right, options))
}

/// Sends messages with pauses, and ends properly.
pub(super) async fn write(rig: Rig, flow: Flow, mut connection: Connection) {
    for _ in 0..MESSAGES {
        rig.rest(PAUSE_US).await;
        let body = flow.payload(flow.accepted());
        connection.send(&body).await.expect("room");
        flow.accept(connection.halves().0, body.len());
    }
    connection.shutdown().await.expect("a proper end");
    assert!(connection.recv().await.expect("a clean end").is_none(), "a message of nobody");
}

/// Reads late, expects all of a flow and a clean end, and ends properly.
pub(super) async fn read(rig: Rig, flow: Flow, mut connection: Connection) {
    let mut kept: Option<Message> = None;
    let mut taken = 0;
    rig.rest(PAUSE_US).await;
    while let Some(message) = connection.recv().await.expect("messages and an end") {
        flow.check(taken, &message);
        taken += 1;
        // A block is lent all the time.
        if taken % 3 == 1 {
            kept = Some(message);
        }
        rig.rest(PAUSE_US).await;
    }
    drop(kept);
    assert_eq!(taken, flow.accepted(), "messages are missing");
    connection.shutdown().await.expect("a proper end");
}
