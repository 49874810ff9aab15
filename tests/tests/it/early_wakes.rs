//! A thread that waits for an answer is woken when the peer reads the question, as long as that pays.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use ringpost::{Connection, ConnectionOptions, EngineChoice, stats};
use ringpost_testkit::process;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{LIMIT, adopt, block_on, place, sockets};

on_both_engines!(
    answers_that_follow_at_once_pay,
    answers_that_come_late_end_it,
    many_connections_are_left_alone,
    a_closed_connection_is_let_go_of
);

const QUESTION: &[u8; 64] = &[7; 64];

/// A connection and its peer on a thread of its own, which answers every question after this long.
fn peer(delay: Duration) -> (Connection, thread::JoinHandle<()>) {
    let (ours, mut theirs) = sockets();
    let peer = thread::spawn(move || {
        theirs.set_read_timeout(Some(LIMIT)).expect("a socket");
        let mut question = [0; QUESTION.len()];
        // Until there are no more.
        while theirs.read_exact(&mut question).is_ok() {
            thread::sleep(delay);
            theirs.write_all(&question).expect("somebody waits for it");
        }
    });
    (adopt(ours, ConnectionOptions::new().bytes()), peer)
}

async fn ask(connection: &mut Connection) {
    connection.send(QUESTION).await.expect("the peer reads");
    let mut bytes = 0;
    while bytes < QUESTION.len() {
        let answer = connection.recv().await.expect("an answer").expect("no end");
        assert!(answer.iter().all(|byte| *byte == QUESTION[0]));
        bytes += answer.len();
    }
    assert_eq!(bytes, QUESTION.len());
}

/// Wake-ups ahead of an answer so far.
fn early_wakes() -> u64 {
    let stats = stats();
    stats.early_wakes_paid + stats.early_wakes_unpaid
}

fn answers_that_follow_at_once_pay(engine: EngineChoice) {
    block_on(engine, async {
        let (mut connection, peer) = peer(Duration::ZERO);
        for _ in 0..500 {
            ask(&mut connection).await;
        }
        let stats = stats();
        assert!(stats.early_wakes_paid > 0, "{stats:?}");
        drop(connection);
        peer.join().expect("no panic");
    });
}

fn answers_that_come_late_end_it(engine: EngineChoice) {
    const QUESTIONS: u64 = 100;
    // 16 for nothing in a row, and some that a busy machine has made look well spent.
    const WAKES_MAX: u64 = 80;
    block_on(engine, async {
        let (mut connection, peer) = peer(Duration::from_millis(20));
        for _ in 0..QUESTIONS {
            ask(&mut connection).await;
        }
        let stats = stats();
        assert!(stats.early_wakes_unpaid > 0, "{stats:?}");
        assert!(early_wakes() <= WAKES_MAX, "{stats:?}");
        drop(connection);
        peer.join().expect("no panic");
    });
}

fn many_connections_are_left_alone(engine: EngineChoice) {
    block_on(engine, async {
        let (mut connections, peers): (Vec<_>, Vec<_>) =
            (0..20).map(|_| peer(Duration::ZERO)).unzip();
        for connection in &mut connections {
            ask(connection).await;
        }
        let before = early_wakes();
        for _ in 0..20 {
            for connection in &mut connections {
                ask(connection).await;
            }
        }
        assert_eq!(early_wakes(), before);
        drop(connections);
        for peer in peers {
            peer.join().expect("no panic");
        }
    });
}

/// What watches a socket may hold it, so that it has to go with the connection.
fn a_closed_connection_is_let_go_of(engine: EngineChoice) {
    block_on(engine, async {
        let (directory, path) = place();
        let listener = UnixListener::bind(&path).expect("a free path");
        let client = UnixStream::connect(&path).expect("somebody listens");
        let (accepted, _) = listener.accept().expect("a client");
        drop(listener);
        let (mut connection, peer) = peer(Duration::ZERO);
        let watched = adopt(accepted, ConnectionOptions::new().bytes());
        // It parks with both.
        ask(&mut connection).await;
        assert_eq!(process::sockets_below(directory.path()), 1);
        drop(watched);
        ask(&mut connection).await;
        assert_eq!(process::sockets_below(directory.path()), 0);
        drop((connection, client));
        peer.join().expect("no panic");
    });
}
