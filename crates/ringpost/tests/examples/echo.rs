//! The echo server: what it sends back, how it starts, and how it ends.

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ringpost::{RecvError, SendError};
use ringpost_testkit::pattern;
use rustix::process::Signal;

use crate::clients::{
    block_on, connect, exchange, length_prefixed, plain, read_to_end, talk, write_until_stuck,
};
use crate::program::{Program, Server, engines};

const CONNECTIONS: u64 = 50;

/// Around the lengths at which messages are handled differently.
const LENGTHS: &[usize] = &[0, 1, 7, 64, 1024, 2047, 2048, 5000, 70_000, 3];

/// Calls `test` for every engine, with one thread and with three.
fn everywhere(profile: &str, test: impl Fn(&Server)) {
    for engine in engines() {
        for threads in ["1", "3"] {
            let arguments = ["--profile", profile, "--engine", engine, "--threads", threads];
            let server = Server::start("echo", &arguments);
            test(&server);
            server.finish_by(Signal::TERM);
        }
    }
}

#[test]
fn native_messages_come_back() {
    everywhere("native", |server| {
        block_on(async {
            let clients = (0..CONNECTIONS).map(async |client| {
                let mut connection = connect(&server.path).await;
                let first = client * 1000;
                talk(&mut connection, (first, LENGTHS), (first, LENGTHS)).await;
            });
            join_all(clients).await;
        });
    });
}

#[test]
fn length_prefixed_messages_come_back_to_a_plain_socket() {
    everywhere("le32", |server| {
        let streams: Vec<_> = (0..CONNECTIONS).map(|_| plain(&server.path)).collect();
        for (client, stream) in (0..).zip(&streams) {
            let bytes = length_prefixed(client * 1000, LENGTHS);
            assert!(exchange(stream, &bytes) == bytes, "client {client}");
        }
    });
}

#[test]
fn bytes_come_back_to_a_plain_socket() {
    everywhere("bytes", |server| {
        let streams: Vec<_> = (0..CONNECTIONS).map(|_| plain(&server.path)).collect();
        for (client, mut stream) in (0..).zip(&streams) {
            // No end of the stream is needed to be answered.
            let mut answer = [0; 5];
            stream.write_all(b"hello").expect("the server reads");
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"hello");
            let bytes = pattern::payload(client, 100_000);
            assert!(exchange(stream, &bytes) == bytes, "client {client}");
        }
    });
}

#[test]
fn long_messages_come_back() {
    let lengths = [1 << 20, 1, (1 << 20) - 1, 3 << 20];
    for engine in engines() {
        let server = Server::start("echo", &["--engine", engine]);
        block_on(async {
            let mut connection = connect(&server.path).await;
            talk(&mut connection, (7, &lengths), (7, &lengths)).await;
        });
    }
}

#[test]
fn every_spin_policy_is_known() {
    for spin in ["never", "adaptive", "always"] {
        let server = Server::start("echo", &["--spin", spin]);
        block_on(async {
            let mut connection = connect(&server.path).await;
            talk(&mut connection, (0, &[1]), (0, &[1])).await;
        });
        server.finish_by(Signal::TERM);
    }
}

#[test]
fn threads_share_the_connections() {
    let server = Server::start_with("echo", &["--threads", "3"], &[("RUST_LOG", "echo=debug")]);
    block_on(async {
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut connection = connect(&server.path).await;
            connection.send(b"here").await.expect("accepted");
            connection.recv().await.expect("no error").expect("an answer");
            open.push(connection);
        }
    });
    let finished = server.finish_by(Signal::TERM);
    for thread in [" main ", " echo-1 ", " echo-2 "] {
        let serves = |line: &&String| line.contains(thread) && line.contains("serving");
        let count = finished.errors.iter().filter(serves).count();
        assert!((16..=17).contains(&count), "{thread}: {count} of {CONNECTIONS}, {finished:#?}");
    }
}

#[test]
fn the_ready_line_names_path_and_engine() {
    for (flag, engine) in [("uring", "io_uring"), ("epoll", "epoll")] {
        if !engines().contains(&flag) {
            continue;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("a socket");
        let path = path.to_str().expect("UTF-8");
        let forced = Program::start("echo", &["--path", path, "--engine", flag]);
        assert_eq!(forced.line(), format!("ready: {path} ({engine}: forced by the builder)"));
        forced.finish_by(Signal::TERM, Path::new(path));

        let environment = [("RINGPOST_ENGINE", flag)];
        let chosen = Program::start_with("echo", &["--path", path], &environment);
        assert_eq!(chosen.line(), format!("ready: {path} ({engine}: forced by RINGPOST_ENGINE)"));
    }
    if engines().contains(&"uring") {
        let server = Program::start("echo", &["--path", "@ringpost-example-test"]);
        let expected = "ready: @ringpost-example-test (io_uring: io_uring passed its preflight)";
        assert_eq!(server.line(), expected);
    }
}

#[test]
fn a_second_start_is_refused_in_one_line() {
    let server = Server::start("echo", &[]);
    let path = server.path.to_str().expect("UTF-8");
    let second = Program::start("echo", &["--path", path]).finish();
    assert_eq!(second.code, Some(1), "{second:#?}");
    assert!(second.output.is_empty(), "{second:#?}");
    let [line] = &second.errors[..] else { panic!("one line: {second:#?}") };
    assert!(line.starts_with("echo: ") && line.contains(path), "{line}");
    assert!(line.contains("in use"), "{line}");

    block_on(async {
        let mut connection = connect(&server.path).await;
        talk(&mut connection, (0, &[5]), (0, &[5])).await;
    });
    server.finish_by(Signal::TERM);
}

#[test]
fn other_failures_to_start_take_one_line_too() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").expect("writable");
    let missing = directory.path().join("missing/server.sock");
    for path in [&file, &missing] {
        let path = path.to_str().expect("UTF-8");
        let finished = Program::start("echo", &["--path", path, "--threads", "2"]).finish();
        assert_eq!(finished.code, Some(1), "{finished:#?}");
        let [line] = &finished.errors[..] else { panic!("one line: {finished:#?}") };
        assert!(line.contains(directory.path().to_str().expect("UTF-8")), "{line}");
    }
    assert_eq!(std::fs::read(&file).expect("still there"), b"precious");
    let finished = Program::start("echo", &["--path", "x", "--threads", "0"]).finish();
    assert_eq!(finished.code, Some(2), "{finished:#?}");
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("server.sock");
    let arguments = ["--path", path.to_str().expect("UTF-8")];
    let killed = Program::start("echo", &arguments);
    killed.line();
    killed.signal(Signal::KILL);
    assert_eq!(killed.finish().code, None);
    assert!(path.exists(), "a killed server leaves its socket");
    // At once: the kernel tears the killed process's ring down a few milliseconds later, and until then
    // the socket still takes connections.
    let next = Program::start("echo", &arguments);
    next.line();
    block_on(async {
        let mut connection = connect(&path).await;
        talk(&mut connection, (0, &[5]), (0, &[5])).await;
    });
    next.finish_by(Signal::TERM, &path);
}

#[test]
fn what_came_before_the_stop_is_answered() {
    const MESSAGES: u64 = 500;
    for engine in engines() {
        for (signal, threads) in [(Signal::TERM, "1"), (Signal::INT, "3")] {
            let server = Server::start("echo", &["--engine", engine, "--threads", threads]);
            block_on(async {
                let mut busy = connect(&server.path).await;
                let idle = connect(&server.path).await;
                for sequence in 0..MESSAGES {
                    let fill = |body: &mut [u8]| pattern::fill(sequence, body);
                    busy.send_with(300, fill).await.expect("accepted");
                }
                busy.flush().await.expect("the server's kernel has it");
                server.program.signal(signal);
                for sequence in 0..MESSAGES {
                    let answer = busy.recv().await.expect("no error").expect("an answer");
                    pattern::check(sequence, 300, &answer);
                }
                for mut connection in [busy, idle] {
                    assert!(connection.recv().await.expect("no error").is_none(), "a clean end");
                    let mut send = async || {
                        connection.send(b"too late").await?;
                        connection.flush().await
                    };
                    assert!(matches!(send().await, Err(SendError::Closed(_))));
                }
            });
            server.finish_by(signal);
        }
    }
}

#[test]
fn plain_sockets_get_their_answers_and_an_end_too() {
    for profile in ["le32", "bytes"] {
        let server = Server::start("echo", &["--profile", profile]);
        let mut stream = plain(&server.path);
        let first = length_prefixed(9, &[4]);
        stream.write_all(&first).expect("room");
        let mut answer = first.clone();
        stream.read_exact(&mut answer).expect("an answer: the connection has been accepted");
        assert_eq!(answer, first);
        let bytes = length_prefixed(0, &[1, 2, 3, 50_000]);
        stream.write_all(&bytes).expect("room");
        server.program.signal(Signal::TERM);
        assert!(read_to_end(&stream) == bytes);
        server.finish_by(Signal::TERM);
    }
}

#[test]
fn a_peer_that_does_not_read_is_cut() {
    for engine in engines() {
        let server = Server::start("echo", &["--profile", "bytes", "--engine", engine]);
        let stream = plain(&server.path);
        write_until_stuck(&stream, &[7; 65_536]);
        let start = Instant::now();
        let finished = server.finish_by(Signal::TERM);
        let took = start.elapsed();
        assert!(took > Duration::from_millis(900) && took < Duration::from_secs(4), "{took:?}");
        assert!(finished.errors.iter().any(|line| line.contains("cut")), "{finished:#?}");
    }
}

#[test]
fn a_killed_server_is_no_clean_end() {
    let server = Server::start("echo", &[]);
    block_on(async {
        let mut connection = connect(&server.path).await;
        connection.send(b"hello").await.expect("accepted");
        connection.recv().await.expect("no error").expect("an answer");
        server.program.signal(Signal::KILL);
        assert!(matches!(connection.recv().await, Err(RecvError::Closed(_))));
    });
}
