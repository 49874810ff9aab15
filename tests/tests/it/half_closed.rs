//! A peer that has ended its direction and does not read: who sends to it waits, and costs nothing.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use ringpost::{Connection, ConnectionOptions, EngineChoice, Spin, sleep};
use ringpost_frame::{Features, FrameKind, Hello};
use ringpost_testkit::pattern;
use ringpost_testkit::peer::{RawPeer, frame};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{adopt, builder, join, poll_at_most, run, sockets};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::passing::options;

on_both_engines!(
    a_stream_with_descriptors,
    a_packet_connection,
    closed_without_reading,
    given_up_while_it_waits,
    the_runtime_ends_while_it_waits,
);

const LEN: usize = 4000;
/// Long enough for thousands of turns.
const WATCHED: Duration = Duration::from_millis(300);
/// Turns and system calls of a runtime that only waits, at most.
const IDLE_MAX: u64 = 50;

fn half_closed_stream() -> (Connection, RawPeer) {
    let (ours, theirs) = sockets();
    let mut hello = Hello::new(1 << 20, 1);
    hello.supported = Features::DESCRIPTORS;
    hello.fds_max = 4;
    let mut peer = theirs.try_clone().expect("a descriptor");
    peer.write_all(&hello.encode()).expect("room");
    peer.write_all(&frame(FrameKind::Fin, &[])).expect("room");
    theirs.shutdown(Shutdown::Write).expect("connected");
    (adopt(ours, options()), RawPeer::new(theirs))
}

/// Sends until no more is accepted, and sees that the runtime rests then. Tells how many were.
async fn fill_and_watch(connection: &mut Connection) -> u64 {
    // Its end has been seen.
    assert!(connection.recv().await.expect("a clean end").is_none());
    let mut sent = 0;
    loop {
        let sending = connection.send_with(LEN, |bytes| pattern::fill(sent, bytes));
        match poll_at_most(100, sending).await {
            Some(outcome) => outcome.expect("the peer is there"),
            None => break,
        }
        sent += 1;
    }
    let before = ringpost::stats();
    sleep(WATCHED).await;
    let after = ringpost::stats();
    let turns = after.turns - before.turns;
    let calls = after.system_calls - before.system_calls;
    assert!(turns < IDLE_MAX && calls < IDLE_MAX, "{turns} turns, {calls} system calls");
    sent
}

fn a_stream_with_descriptors(engine: EngineChoice) {
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    run(&runtime, async {
        let (mut connection, mut peer) = half_closed_stream();
        let sent = fill_and_watch(&mut connection).await;
        let reader = thread::spawn(move || {
            peer.read_hello();
            for sequence in 0..sent {
                pattern::check(sequence, LEN, &peer.read_message());
            }
        });
        connection.flush().await.expect("the peer reads");
        join(reader).await;
    });
}

fn a_packet_connection(engine: EngineChoice) {
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    run(&runtime, async {
        let kind = SocketType::SEQPACKET;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.expect("a pair of sockets");
        rustix::net::shutdown(&theirs, rustix::net::Shutdown::Write).expect("connected");
        let mut connection = Connection::from_socket(ours, ConnectionOptions::new().bytes());
        let sent = fill_and_watch(&mut connection).await;
        let reader = thread::spawn(move || read_packets(&theirs, sent));
        connection.flush().await.expect("the peer reads");
        join(reader).await;
    });
}

fn read_packets(socket: &OwnedFd, count: u64) {
    let limit = Some(Duration::from_secs(10));
    rustix::net::sockopt::set_socket_timeout(socket, rustix::net::sockopt::Timeout::Recv, limit)
        .expect("a socket");
    let mut packet = vec![0; 2 * LEN];
    for sequence in 0..count {
        let (len, _) = rustix::net::recv(socket, &mut packet[..], RecvFlags::empty()).expect("one");
        pattern::check(sequence, LEN, &packet[..len]);
    }
}

/// The wait ends with the peer.
fn closed_without_reading(engine: EngineChoice) {
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    run(&runtime, async {
        let (mut connection, peer) = half_closed_stream();
        fill_and_watch(&mut connection).await;
        drop(peer);
        connection.flush().await.expect_err("nobody is there");
    });
}

/// A dropped connection lingers, and is then given up: its operations end, its descriptor is closed.
fn given_up_while_it_waits(engine: EngineChoice) {
    const LINGER: Duration = Duration::from_millis(100);
    let runtime = builder(engine).spin(Spin::Never).linger(LINGER).build().expect("a runtime");
    run(&runtime, async {
        let (mut connection, peer) = half_closed_stream();
        fill_and_watch(&mut connection).await;
        drop(connection);
        let mut rests = 0;
        // The doorbell stays.
        while ringpost::stats().operations_in_flight > 1 {
            assert!(rests < 1000, "{:?}", ringpost::stats());
            rests += 1;
            sleep(Duration::from_millis(10)).await;
        }
        drop(peer);
    });
}

/// The end of a runtime waits neither for the peer nor for its own limit.
fn the_runtime_ends_while_it_waits(engine: EngineChoice) {
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    let (connection, peer) = run(&runtime, async {
        let (mut connection, peer) = half_closed_stream();
        fill_and_watch(&mut connection).await;
        (connection, peer)
    });
    drop(runtime);
    drop(connection);
    // What is in the socket can be read, and then there is an end: nothing holds the socket any more.
    let mut bytes = Vec::new();
    peer.stream().read_to_end(&mut bytes).expect("an end");
    assert!(!bytes.is_empty());
}
