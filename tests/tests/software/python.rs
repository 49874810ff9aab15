//! Programs in Python, with its standard library alone: as tutorials show them, with the library's own
//! framing, and with the client that comes with the wire format.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ringpost::{
    ByteOrder, Connection, ConnectionOptions, EngineChoice, LengthPrefix, Listener, PrefixWidth,
    RecvError,
};
use ringpost_testkit::child::skip;
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, blocking, echo};
use ringpost_tests::software::client::{self, Client};
use ringpost_tests::software::example::{self, Example, engine_word};
use ringpost_tests::software::programs::{self, Needed};
use ringpost_tests::software::service::Home;

on_both_engines!(
    a_tutorials_client,
    a_tutorials_server,
    asyncio,
    multiprocessing_client,
    multiprocessing_server,
    our_client_in_python,
    our_client_as_server,
    our_client_sees_ends,
    length_prefixed_client,
    from_a_shell,
);

const NEEDED: &[Needed] = &[Needed { program: "python3", package: "python3" }];

/// Longest message of these tests, and some around what matters to either side.
const LENGTHS: &[usize] =
    &[0, 1, 5, 1023, 1024, 1025, 2048, 16_384, 16_385, 65_535, 65_536, 300_000, 1 << 20, 0, 3];

/// Starts a script that finds the client module, with these words.
fn python(script: &str, words: &[&Path]) -> Client {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", module()).args(["-B", "-c", script]).args(words);
    Client::start(&mut command, "")
}

/// The directory of `ringpost_client.py`.
fn module() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/ringpost-frame/clients/python")
}

async fn ended_well(python: Client) -> String {
    blocking(move || python.finish().successful().to_owned()).await
}

/// Connects once somebody listens.
async fn connect(path: &Path, options: ConnectionOptions) -> Connection {
    loop {
        match Connection::connect_with(path, options).await {
            Ok(connection) => return connection,
            // Bounded by whoever runs this.
            Err(_) => ringpost::sleep(Duration::from_millis(2)).await,
        }
    }
}

fn prefixed(byte_order: ByteOrder) -> ConnectionOptions {
    let prefix = LengthPrefix { width: PrefixWidth::U32, byte_order };
    ConnectionOptions::new().length_prefixed(prefix)
}

/// The format's own tests.
#[test]
fn the_module_keeps_to_the_vectors() {
    if !programs::here_or_skip("python::the_module_keeps_to_the_vectors", NEEDED) {
        return;
    }
    let mut command = Command::new("python3");
    command.arg("-B").arg(module().join("test_ringpost_client.py"));
    let outcome = client::run(&mut command, "");
    assert!(outcome.status.success(), "{outcome}");
}

// As tutorials have it, with a path that is written into the program.

const TUTORIAL_CLIENT: &str = r#"
import socket

client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
client.connect("/tmp/uds_socket")
client.sendall(b"Hello from client")
data = client.recv(1024)
print("answer:", data.decode())
client.close()
"#;

const TUTORIAL_SERVER: &str = r#"
import os
import socket

path = "/tmp/uds_socket"
if os.path.exists(path):
    os.remove(path)
server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
server.bind(path)
server.listen(1)
connection, _ = server.accept()
data = connection.recv(1024)
print("received:", data.decode())
connection.sendall(b"Hello from server")
connection.close()
"#;

/// Starts a script that has this directory in the place of `/tmp`, as a container with a volume would.
fn in_place_of_tmp(directory: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let shell = r#"mount --bind "$0" /tmp && cd / && exec python3 -B -c "$1""#;
    command.args(["--mount", "--", "sh", "-c", shell]).arg(directory).arg(script);
    command
}

fn tutorial(test: &str, home: &Home) -> bool {
    if !programs::here_or_skip(test, NEEDED) {
        return false;
    }
    let outcome = client::run(&mut in_place_of_tmp(home.path(), "print(1)"), "");
    if !outcome.status.success() {
        let errors = String::from_utf8_lossy(&outcome.errors).replace('\n', " ");
        skip(test, &format!("no directory can be mounted in a namespace of its own: {errors}"));
    }
    outcome.status.success()
}

fn a_tutorials_client(engine: EngineChoice) {
    let home = Home::new();
    if !tutorial("python::a_tutorials_client", &home) {
        return;
    }
    block_on(engine, async {
        let bytes = ConnectionOptions::new().bytes();
        let mut listener = Listener::builder().connection(bytes).bind(home.join("uds_socket"));
        let listener = listener.as_mut().expect("a free path");
        // One after the other, as a server has it.
        for _ in 0..3 {
            let mut python = in_place_of_tmp(home.path(), TUTORIAL_CLIENT);
            let python = Client::start(&mut python, "");
            let mut connection = listener.accept().await.expect("it connects");
            let question = connection.recv().await.expect("bytes").expect("no end");
            assert_eq!(question, *b"Hello from client");
            connection.send(b"Hello from server").await.expect("it reads");
            connection.flush().await.expect("it reads");
            assert!(connection.recv().await.expect("no error").is_none(), "an end");
            assert_eq!(ended_well(python).await, "answer: Hello from server\n");
        }
    });
}

fn a_tutorials_server(engine: EngineChoice) {
    let home = Home::new();
    if !tutorial("python::a_tutorials_server", &home) {
        return;
    }
    block_on(engine, async {
        // It finds what the one before has left.
        for _ in 0..3 {
            let mut python = in_place_of_tmp(home.path(), TUTORIAL_SERVER);
            let python = Client::start(&mut python, "");
            let bytes = ConnectionOptions::new().bytes();
            let mut connection = connect(&home.join("uds_socket"), bytes).await;
            connection.send(b"Hello from client").await.expect("it reads");
            let answer = connection.recv().await.expect("bytes").expect("no end");
            assert_eq!(answer, *b"Hello from server");
            assert!(connection.recv().await.expect("no error").is_none(), "an end");
            assert_eq!(ended_well(python).await, "received: Hello from client\n");
        }
    });
}

// What is in the standard library.

const ASYNCIO: &str = r#"
import asyncio, sys

async def talk(number):
    reader, writer = await asyncio.open_unix_connection(sys.argv[1])
    data = bytes([number]) * (number * 5000 + 1)
    writer.write(data)
    writer.write_eof()
    assert await reader.read() == data
    writer.close()
    await writer.wait_closed()

async def main():
    await asyncio.wait_for(asyncio.gather(*map(talk, range(50))), 20)

asyncio.run(main())
"#;

/// Many connections of one event loop to the `echo` example.
fn asyncio(engine: EngineChoice) {
    if !programs::here_or_skip("python::asyncio", NEEDED) {
        return;
    }
    let home = Home::new();
    let path = home.join("echo.sock");
    let server = start_echo(&path, engine, "bytes");
    python(ASYNCIO, &[&path]).finish().successful();
    server.stop();
}

fn start_echo(path: &Path, engine: EngineChoice, profile: &str) -> Example {
    let mut command = example::command("echo");
    command.args(["--engine", engine_word(engine), "--profile", profile, "--path"]).arg(path);
    Example::start(&mut command)
}

/// `multiprocessing` puts a big-endian length of 32 bits in front of its messages.
const MULTIPROCESSING_CLIENT: &str = r#"
import sys
from multiprocessing.connection import Client

with Client(sys.argv[1], family="AF_UNIX") as connection:
    for length in map(int, sys.argv[2:]):
        body = bytes(i * length & 255 for i in range(min(length, 1000))).ljust(length, b"x")
        connection.send_bytes(body)
        assert connection.recv_bytes() == body
    connection.send({"an object": [1, 2.5, None]})
    assert connection.recv() == {"an object": [1, 2.5, None]}
"#;

fn multiprocessing_client(engine: EngineChoice) {
    if !programs::here_or_skip("python::multiprocessing_client", NEEDED) {
        return;
    }
    let home = Home::new();
    let path = home.join("test.sock");
    let lengths: Vec<PathBuf> = LENGTHS.iter().map(|len| len.to_string().into()).collect();
    let words: Vec<&Path> = [&path].into_iter().chain(&lengths).map(PathBuf::as_path).collect();
    block_on(engine, async {
        let listener = Listener::builder().connection(prefixed(ByteOrder::Big)).bind(&path);
        let mut listener = listener.expect("a free path");
        let python = python(MULTIPROCESSING_CLIENT, &words);
        echo(listener.accept().await.expect("it connects")).await;
        ended_well(python).await;
    });
}

const MULTIPROCESSING_SERVER: &str = r#"
import sys
from multiprocessing.connection import Listener

with Listener(sys.argv[1], family="AF_UNIX") as listener, listener.accept() as connection:
    try:
        while True:
            connection.send_bytes(connection.recv_bytes())
    except EOFError:
        pass
"#;

fn multiprocessing_server(engine: EngineChoice) {
    if !programs::here_or_skip("python::multiprocessing_server", NEEDED) {
        return;
    }
    let home = Home::new();
    let path = home.join("test.sock");
    block_on(engine, async {
        let python = python(MULTIPROCESSING_SERVER, &[&path]);
        let mut connection = connect(&path, prefixed(ByteOrder::Big)).await;
        exchange(&mut connection).await;
        connection.shutdown().await.expect("it reads");
        assert!(connection.recv().await.expect("no error").is_none(), "an end");
        ended_well(python).await;
    });
}

/// Sends a message of each length, one at a time, and expects it back.
async fn exchange(connection: &mut Connection) {
    for (sequence, &len) in (0..).zip(LENGTHS) {
        connection.send_with(len, |body| pattern::fill(sequence, body)).await.expect("it reads");
        let answer = connection.recv().await.expect("no error").expect("an answer");
        pattern::check(sequence, len, &answer);
    }
}

// The client that comes with the wire format.

const OUR_CLIENT: &str = r#"
import sys
from ringpost_client import Connection

with Connection.connect(sys.argv[1]) as connection:
    bodies = [bytes(range(256)) * (n * n) + b"!" * n for n in range(40)]
    # The answers wait in the buffers between the two, so not all of them at a time.
    for body in bodies:
        connection.send(body)
        assert connection.recv() == body
    for body in bodies[:10]:
        connection.send(body)
    assert connection.ping(b"ping") >= 0
    assert connection.ping(bytes(64)) >= 0
    assert [connection.recv() for _ in range(10)] == bodies[:10]
    assert connection.agreement()["version"] == 1
    connection.finish()
    assert connection.recv() is None
"#;

fn our_client_in_python(engine: EngineChoice) {
    if !programs::here_or_skip("python::our_client_in_python", NEEDED) {
        return;
    }
    let home = Home::new();
    let path = home.join("echo.sock");
    let server = start_echo(&path, engine, "native");
    let clients: Vec<Client> = (0..3).map(|_| python(OUR_CLIENT, &[&path])).collect();
    for client in clients {
        client.finish().successful();
    }
    server.stop();
}

const OUR_SERVER: &str = r#"
import socket, sys
from ringpost_client import Connection

with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1])
    server.listen()
    with Connection(server.accept()[0]) as connection:
        for message in connection:
            connection.send(message)
        connection.finish()
        # Whoever has sent FIN and received FIN closes; this side second.
        connection.socket.recv(1)
"#;

fn our_client_as_server(engine: EngineChoice) {
    if !programs::here_or_skip("python::our_client_as_server", NEEDED) {
        return;
    }
    let home = Home::new();
    let path = home.join("test.sock");
    block_on(engine, async {
        let python = python(OUR_SERVER, &[&path]);
        let mut connection = connect(&path, ConnectionOptions::new()).await;
        exchange(&mut connection).await;
        connection.shutdown().await.expect("it reads");
        assert!(connection.recv().await.expect("no error").is_none(), "a clean end");
        drop(connection);
        ended_well(python).await;
    });
}

const ENDS: &str = r#"
import sys
from ringpost_client import *

path = sys.argv[1]
with Connection.connect(path) as connection:
    connection.send(b"bye")        # without finish(): an abort
with Connection.connect(path) as connection:
    connection.send(b"refuse me")
    try:
        connection.recv()
        sys.exit("no reason")
    except Rejected as rejected:
        assert str(rejected) == "not you", rejected
with Connection.connect(path) as connection:
    connection.send(b"vanish")
    try:
        connection.recv()
        sys.exit("no abort")
    except Aborted:
        pass
with Connection.connect(path, frame_bytes_max=1024) as connection:
    connection.reject("I do not\nlike it")
"#;

/// Each kind of end that the format tells apart, in both directions.
fn our_client_sees_ends(engine: EngineChoice) {
    if !programs::here_or_skip("python::our_client_sees_ends", NEEDED) {
        return;
    }
    let home = Home::new();
    let path = home.join("test.sock");
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("a free path");
        let python = python(ENDS, &[&path]);
        for expected in [&b"bye"[..], b"refuse me", b"vanish"] {
            let mut connection = listener.accept().await.expect("it connects");
            let message = connection.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *expected);
            match expected {
                b"bye" => {
                    let end = connection.recv().await.map(|_| ()).expect_err("an abort");
                    assert_eq!(end, RecvError::Closed(ringpost::Closed::Aborted));
                }
                b"refuse me" => connection.refuse("not you"),
                _ => drop(connection),
            }
        }
        let mut connection = listener.accept().await.expect("it connects");
        match connection.recv().await.map(|_| ()).expect_err("a refusal") {
            RecvError::Closed(ringpost::Closed::Rejected { reason }) => {
                assert!(reason.contains("like it"), "{reason}");
            }
            other => panic!("a refusal, not: {other}"),
        }
        ended_well(python).await;
    });
}

const LENGTH_PREFIXED: &str = r#"
import sys
from ringpost_client import LengthPrefixed

with LengthPrefixed.connect(sys.argv[1], byte_order="little") as connection:
    bodies = [b"x" * (n * n * 70) for n in range(100)]
    for body in bodies:
        connection.send(body)
        assert connection.recv() == body
    for body in bodies[:10]:
        connection.send(body)
    connection.finish()
    assert list(connection) == bodies[:10]
"#;

fn length_prefixed_client(engine: EngineChoice) {
    if !programs::here_or_skip("python::length_prefixed_client", NEEDED) {
        return;
    }
    let home = Home::new();
    let path = home.join("echo.sock");
    let server = start_echo(&path, engine, "le32");
    python(LENGTH_PREFIXED, &[&path]).finish().successful();
    server.stop();
}

fn from_a_shell(engine: EngineChoice) {
    if !programs::here_or_skip("python::from_a_shell", NEEDED) {
        return;
    }
    let home = Home::new();
    let path = home.join("echo.sock");
    let run = |words: &[&str]| {
        let mut command = Command::new("python3");
        command.arg("-B").arg(module().join("ringpost_client.py")).arg(&path).args(words);
        client::run(&mut command, "")
    };
    let missing = run(&["hello"]);
    assert_eq!(missing.status.code(), Some(1), "{missing}");
    assert!(String::from_utf8_lossy(&missing.errors).contains("FileNotFoundError"), "{missing}");
    let server = start_echo(&path, engine, "native");
    assert_eq!(run(&["hello", "", "world"]).successful(), "hello\n\nworld\n");
    assert_eq!(run(&[]).successful(), "");
    // More than the buffers between the two hold: the answers are received meanwhile.
    let long = "x".repeat(100_000);
    assert_eq!(run(&[&*long; 10]).successful(), format!("{long}\n").repeat(10));
    let many: Vec<String> = (0..700).map(|number| format!("{number:01000}")).collect();
    let words: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(run(&words).successful(), many.join("\n") + "\n");
    server.stop();
    // A server that speaks something else is recognised.
    let server = start_echo(&path, engine, "le32");
    let other = run(&["hello"]);
    assert_eq!(other.status.code(), Some(1), "{other}");
    server.stop();
}
