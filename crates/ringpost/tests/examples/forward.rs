//! The proxy: everything goes through, in its own direction, with its own end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::thread;

use futures_util::future::{Either, join, select};
use ringpost::{Closed, Connection, ConnectionOptions, Listener, RecvError};
use ringpost_testkit::pattern;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::clients::{
    block_on, bounded, connect, exchange, length_prefixed, plain, read_to_end, talk,
    write_until_stuck,
};
use crate::program::{Finished, Program, engines};

/// A running proxy, and where its server is to be.
#[derive(Debug)]
struct Proxy {
    // Dropped in this order: the program before its directory.
    program: Program,
    path: PathBuf,
    to: PathBuf,
    _directory: TempDir,
}

impl Proxy {
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("proxy.sock");
        let to = directory.path().join("server.sock");
        let (listen, server) = (path.to_str().expect("UTF-8"), to.to_str().expect("UTF-8"));
        let mut all = vec!["--listen", listen, "--to", server];
        all.extend(arguments);
        let program = Program::start("forward", &all);
        let ready = program.line();
        assert!(ready.starts_with(&format!("ready: {listen} (")), "{ready}");
        Self { program, path, to, _directory: directory }
    }

    /// A client and its connection at the server, through the proxy.
    async fn pair(&self, server: &mut Listener) -> (Connection, Connection) {
        let (client, server) = join(connect(&self.path), server.accept()).await;
        (client, server.expect("the proxy connects"))
    }

    #[track_caller]
    fn finish(self) -> Finished {
        self.program.finish_by(Signal::TERM, &self.path)
    }
}

fn bind(path: &Path) -> Listener {
    Listener::bind(path).expect("a free path")
}

#[track_caller]
fn assert_aborted<T>(result: Result<T, RecvError>) {
    match result {
        Err(RecvError::Closed(Closed::Aborted)) => {}
        Err(other) => panic!("an abort, not: {other}"),
        Ok(_) => panic!("an abort"),
    }
}

#[test]
fn messages_arrive_both_ways() {
    let there = [1, 2, 255, 2047, 2048, 2049, 65_536, 1, 1, 1, 262_144, 1 << 20, 0, 999_999, 1];
    let back = [1 << 20, 1, 0, 64, 4096, 524_288, 17, 1 << 20, 31];
    for engine in engines() {
        let proxy = Proxy::start(&["--engine", engine]);
        block_on(async {
            let mut listener = bind(&proxy.to);
            let (mut client, mut server) = proxy.pair(&mut listener).await;
            let (client_side, server_side) = (
                talk(&mut client, (100, &there), (900, &back)),
                talk(&mut server, (900, &back), (100, &there)),
            );
            join(client_side, server_side).await;
        });
        proxy.finish();
    }
}

#[test]
fn many_connections_at_a_time() {
    let lengths = [10, 3000, 1, 20_000];
    let proxy = Proxy::start(&[]);
    block_on(async {
        let mut listener = bind(&proxy.to);
        let mut pairs = Vec::new();
        for _ in 0..20 {
            pairs.push(proxy.pair(&mut listener).await);
        }
        for (first, (client, server)) in (0..).zip(&mut pairs) {
            let there = (first, &lengths[..]);
            let back = (first + 1000, &lengths[..]);
            join(talk(client, there, back), talk(server, back, there)).await;
        }
    });
    proxy.finish();
}

#[test]
fn each_direction_ends_by_itself() {
    let proxy = Proxy::start(&[]);
    block_on(async {
        let mut listener = bind(&proxy.to);
        let (mut client, mut server) = proxy.pair(&mut listener).await;
        client.send(b"question").await.expect("accepted");
        client.shutdown().await.expect("taken");
        assert_eq!(server.recv().await.expect("no error").expect("a message"), *b"question");
        assert!(server.recv().await.expect("no error").is_none());
        // The other direction goes on.
        for answer in [&b"one"[..], b"two"] {
            server.send(answer).await.expect("accepted");
            assert_eq!(client.recv().await.expect("no error").expect("a message"), *answer);
        }
        server.shutdown().await.expect("taken");
        assert!(client.recv().await.expect("no error").is_none());
    });
    proxy.finish();
}

#[test]
fn an_abort_arrives_as_one_behind_what_was_sent() {
    for engine in engines() {
        let proxy = Proxy::start(&["--engine", engine]);
        block_on(async {
            let mut listener = bind(&proxy.to);

            let (mut client, mut server) = proxy.pair(&mut listener).await;
            client.send(b"last words").await.expect("accepted");
            client.flush().await.expect("taken");
            drop(client);
            assert_eq!(server.recv().await.expect("no error").expect("a message"), *b"last words");
            assert_aborted(server.recv().await);

            let (mut client, mut server) = proxy.pair(&mut listener).await;
            // One direction has ended cleanly before.
            client.shutdown().await.expect("taken");
            server.send(b"last words").await.expect("accepted");
            server.flush().await.expect("taken");
            assert!(server.recv().await.expect("no error").is_none());
            drop(server);
            assert_eq!(client.recv().await.expect("no error").expect("a message"), *b"last words");
            assert_aborted(client.recv().await);
        });
        proxy.finish();
    }
}

/// Both ways, and once; messages go on.
#[test]
fn a_wish_to_end_is_passed_on() {
    let proxy = Proxy::start(&[]);
    block_on(async {
        let mut listener = bind(&proxy.to);
        let (mut client, mut server) = proxy.pair(&mut listener).await;
        let (mut from, mut to) = (&mut server, &mut client);
        for _ in 0..2 {
            from.halves().0.go_away().expect("open");
            from.send(b"behind it").await.expect("open");
            let message = to.recv().await.expect("open").expect("no end");
            assert_eq!(message, *b"behind it");
            let (sender, receiver) = to.halves();
            let wish = sender.peer_going_away();
            assert!(matches!(select(pin!(receiver.recv()), pin!(wish)).await, Either::Right(_)));
            std::mem::swap(&mut from, &mut to);
        }
        client.shutdown().await.expect("open");
        assert!(server.recv().await.expect("a clean end").is_none());
        server.shutdown().await.expect("open");
        assert!(client.recv().await.expect("a clean end").is_none());
    });
    proxy.finish();
}

#[test]
fn a_refusal_arrives_with_its_reason() {
    let proxy = Proxy::start(&[]);
    block_on(async {
        let mut listener = bind(&proxy.to);
        let (mut client, server) = proxy.pair(&mut listener).await;
        server.refuse("closed for today");
        match client.recv().await.expect_err("refused") {
            RecvError::Closed(Closed::Rejected { reason }) => {
                assert_eq!(*reason, *"closed for today");
            }
            other => panic!("a reason, not: {other}"),
        }
    });
    proxy.finish();
}

#[test]
fn a_message_over_the_servers_limit_is_refused() {
    let proxy = Proxy::start(&[]);
    block_on(async {
        let options = ConnectionOptions::new().frame_bytes_max(4096);
        let mut listener = Listener::builder().connection(options).bind(&*proxy.to).expect("free");
        let (mut client, mut server) = proxy.pair(&mut listener).await;
        client.send(&[1; 4096]).await.expect("accepted");
        assert_eq!(server.recv().await.expect("no error").expect("a message").len(), 4096);
        client.send(&[2; 10_000]).await.expect("within the proxy's own limit");
        for side in [&mut client, &mut server] {
            match side.recv().await.expect_err("refused") {
                RecvError::Closed(Closed::Rejected { reason }) => {
                    assert!(reason.contains("4096"), "{reason}");
                }
                other => panic!("a reason, not: {other}"),
            }
        }
    });
    proxy.finish();
}

#[test]
fn long_messages_are_not_copied() {
    let lengths = [1 << 20; 24];
    for engine in engines() {
        let proxy = Proxy::start(&["--engine", engine, "--stats"]);
        block_on(async {
            let mut listener = bind(&proxy.to);
            let (mut client, mut server) = proxy.pair(&mut listener).await;
            join(
                talk(&mut client, (0, &lengths), (50, &[])),
                talk(&mut server, (50, &[]), (0, &lengths)),
            )
            .await;
        });
        let finished = proxy.finish();
        let [line] = &finished.output[..] else { panic!("one line: {finished:#?}") };
        let numbers: Vec<u64> =
            line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let [received, copied] = numbers[..] else { panic!("two numbers: {line}") };
        assert!(received > 24 << 20, "{line}");
        // On a busy machine the pool may run low, and some pieces are copied out of it.
        assert!(copied * 20 < received, "{line}");
    }
}

#[test]
fn any_protocol_goes_through_as_bytes() {
    for engine in engines() {
        let proxy = Proxy::start(&["--profile", "bytes", "--engine", engine]);
        let listener = UnixListener::bind(&proxy.to).expect("a free path");
        // Greets first, reads to the end, then answers: each direction ends by itself.
        let server = thread::spawn(move || {
            for _ in 0..3 {
                let mut stream = bounded(listener.accept().expect("the proxy connects").0);
                stream.write_all(b"220 ready\r\n").expect("the proxy reads");
                let mut received = Vec::new();
                stream.read_to_end(&mut received).expect("an end");
                received.reverse();
                stream.write_all(&received).expect("the proxy reads");
            }
        });
        for len in [0, 5, 700_000] {
            let mut stream = plain(&proxy.path);
            let mut greeting = [0; 11];
            stream.read_exact(&mut greeting).expect("a greeting");
            assert_eq!(&greeting, b"220 ready\r\n");
            let bytes = pattern::payload(1, len);
            let mut answer = exchange(&stream, &bytes);
            answer.reverse();
            assert!(answer == bytes, "{len} bytes");
        }
        server.join().expect("the server is content");
        proxy.finish();
    }
}

#[test]
fn length_prefixed_messages_go_through() {
    let proxy = Proxy::start(&["--profile", "le32"]);
    let listener = UnixListener::bind(&proxy.to).expect("a free path");
    let stream = plain(&proxy.path);
    let server = bounded(listener.accept().expect("the proxy connects").0);
    let there = length_prefixed(0, &[0, 1, 100, 5000, 300_000]);
    let back = length_prefixed(9, &[2049, 1]);
    thread::scope(|scope| {
        let received = scope.spawn(|| exchange(&server, &back));
        assert!(exchange(&stream, &there) == back);
        assert!(received.join().expect("no panic") == there);
    });
    proxy.finish();
}

#[test]
fn a_server_that_does_not_read_slows_its_client() {
    let proxy = Proxy::start(&["--profile", "bytes", "--stats"]);
    let listener = UnixListener::bind(&proxy.to).expect("a free path");
    let stream = plain(&proxy.path);
    let server = bounded(listener.accept().expect("the proxy connects").0);
    let written = write_until_stuck(&stream, &[7; 65_536]);
    assert!(written < 8 << 20, "{written} bytes are on the way");
    stream.shutdown(Shutdown::Write).expect("connected");
    // All of it arrives once the server reads.
    assert_eq!(read_to_end(&server).len() as u64, written);
    proxy.finish();
}

#[test]
fn clients_without_a_server_learn_why_and_the_proxy_goes_on() {
    let proxy = Proxy::start(&[]);
    let missing = proxy.to.to_str().expect("UTF-8").to_owned();
    block_on(async {
        for _ in 0..3 {
            let mut client = connect(&proxy.path).await;
            match client.recv().await.expect_err("refused") {
                RecvError::Closed(Closed::Rejected { reason }) => {
                    assert!(reason.contains(&missing), "{reason}");
                }
                other => panic!("a reason, not: {other}"),
            }
        }
        let mut listener = bind(&proxy.to);
        let (mut client, mut server) = proxy.pair(&mut listener).await;
        join(talk(&mut client, (0, &[5]), (1, &[6])), talk(&mut server, (1, &[6]), (0, &[5])))
            .await;
    });
    let finished = proxy.finish();
    assert!(finished.errors.iter().all(|line| line.contains(&missing)), "{finished:#?}");

    let proxy = Proxy::start(&["--profile", "bytes"]);
    assert_eq!(read_to_end(&plain(&proxy.path)), b"", "bare bytes have no word for it");
    proxy.finish();
}

#[test]
fn the_end_of_the_proxy_is_no_clean_end() {
    for signal in [Signal::TERM, Signal::INT] {
        let proxy = Proxy::start(&[]);
        block_on(async {
            let mut listener = bind(&proxy.to);
            let (mut client, mut server) = proxy.pair(&mut listener).await;
            client.send(b"on its way").await.expect("accepted");
            assert_eq!(server.recv().await.expect("no error").expect("a message"), *b"on its way");
            proxy.program.signal(signal);
            assert_aborted(client.recv().await);
            assert_aborted(server.recv().await);
        });
        let path = proxy.path.clone();
        proxy.program.finish_by(signal, &path);
    }
}
