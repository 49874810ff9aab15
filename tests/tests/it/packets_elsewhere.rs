//! Packets to and from other programs: Python with nothing but its standard library, and processes that are
//! killed.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringpost::{Address, ConnectionOptions, Datagram, DatagramSendError, EngineChoice, Listener};
use ringpost_testkit::child::skip;
use ringpost_testkit::patience::eventually;
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, blocking, echo, place, until};

on_both_engines!(
    datagram_client_in_python,
    datagram_server_in_python,
    native_datagrams_in_python,
    seqpacket_client_in_python,
    a_killed_receiver
);

const DATAGRAM_CLIENT: &str = r#"
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); sock.settimeout(10)
sock.bind(sys.argv[1] + ".client")
for body in [b"", b"hello", bytes(range(256)) * 100]:
    sock.sendto(body, sys.argv[1])
    answer, sender = sock.recvfrom(1 << 20)
    assert (answer, sender) == (body, sys.argv[1]), (len(answer), sender)
sock.sendto(b"end", sys.argv[1])
"#;

const DATAGRAM_SERVER: &str = r#"
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); sock.settimeout(10)
sock.bind(sys.argv[1])
print("bound", flush=True)
while True:
    body, sender = sock.recvfrom(1 << 20)
    if body == b"end": break
    sock.sendto(body, sender)
"#;

/// From the wire format's page.
const FRAME: &str = r#"
import socket, struct, sys
def frame(kind, body=b""):
    head = struct.pack("<IBBB", len(body), kind, 0, 0)
    word = int.from_bytes(head, "little") ^ 0x0052494E47504F53
    return head + bytes([(word * 0x9E3779B97F4A7C15 % 2**64) >> 56]) + body
"#;

const NATIVE_DATAGRAMS: &str = r#"
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); sock.settimeout(10)
sock.bind(sys.argv[1] + ".client")
for body in [b"", b"hello", bytes(range(256)) * 100]:
    sock.sendto(frame(200, b"skipped"), sys.argv[1])
    sock.sendto(frame(1, body), sys.argv[1])
    assert sock.recvfrom(1 << 20) == (frame(1, body), sys.argv[1])
sock.sendto(frame(1, b"end"), sys.argv[1])
"#;

const SEQPACKET: &str = r#"
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); sock.settimeout(10)
sock.connect(sys.argv[1])
sock.send(struct.pack("<8sHHIQQIHHQ16x", b"\xf5RNGPOST", 1, 1, 0, 0, 0, 1 << 20, 0, 1, 42))
hello = sock.recv(1 << 20)
assert len(hello) == 64 and hello[:12] == b"\xf5RNGPOST\1\0\1\0", hello
for body in [b"", b"hello", bytes(range(256)) * 100]:
    sock.send(frame(1, body))
    assert sock.recv(1 << 20) == frame(1, body)
sock.send(frame(4, b"ping")); sock.send(frame(2))
assert sock.recv(1 << 20) == frame(5, b"ping")
assert sock.recv(1 << 20) == frame(2)
assert sock.recv(1 << 20) == b""
"#;

/// Starts a script, or says why it can't be.
fn python(test: &str, script: &str, path: &std::path::Path) -> Option<Child> {
    let found = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        skip(test, "python3 is not installed");
        return None;
    }
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(path).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command.spawn().expect("start python3"))
}

async fn finish(mut python: Child) {
    blocking(move || {
        let ended = || python.try_wait().expect("our child").is_some();
        eventually("python3 ends", Duration::from_secs(15), ended);
        let output = python.wait_with_output().expect("our child");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    })
    .await;
}

/// Sends every packet back until one says that it is the last.
async fn reflect(mut socket: Datagram) {
    loop {
        let packet = socket.recv().await.expect("a packet");
        if *packet == *b"end" {
            break;
        }
        socket.send_to(packet.sender_name(), &packet).await.expect("the client is there");
    }
}

fn datagram_client_in_python(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let socket = Datagram::builder().plain().bind(&path).expect("bind");
        let test = "packets_elsewhere::datagram_client_in_python";
        let Some(python) = python(test, DATAGRAM_CLIENT, &path) else { return };
        reflect(socket).await;
        finish(python).await;
    });
}

fn native_datagrams_in_python(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let socket = Datagram::bind(&path).expect("bind");
        let test = "packets_elsewhere::native_datagrams_in_python";
        let script = [FRAME, NATIVE_DATAGRAMS].concat();
        let Some(python) = python(test, &script, &path) else { return };
        reflect(socket).await;
        finish(python).await;
    });
}

fn datagram_server_in_python(engine: EngineChoice) {
    let (directory, path) = place();
    block_on(engine, async {
        let test = "packets_elsewhere::datagram_server_in_python";
        let Some(python) = python(test, DATAGRAM_SERVER, &path) else { return };
        let client_path = directory.path().join("client.sock");
        let mut client = Datagram::builder().plain().bind(&client_path).expect("bind");
        until("python3 has bound", || client.connect_to(&path).is_ok()).await;
        for (sequence, len) in [0, 1, 1000, 100_000].into_iter().enumerate() {
            let sequence = sequence as u64;
            client.send(&pattern::payload(sequence, len)).await.expect("room");
            let answer = client.recv().await.expect("a packet");
            pattern::check(sequence, len, &answer);
            assert_eq!(answer.sender(), Some(Address::from(&path)));
        }
        client.send(b"end").await.expect("room");
        finish(python).await;
        // It left its path behind, and nobody there.
        until("the end is seen", || client.try_send(b"x").is_err()).await;
        let gone = DatagramSendError::Gone { to: Some(Address::from(&path)) };
        assert_eq!(client.send(b"x").await, Err(gone));
        drop(Datagram::bind(&path).expect("a stale path"));
    });
}

fn seqpacket_client_in_python(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let options = ConnectionOptions::new().seqpacket();
        let mut listener = Listener::builder().connection(options).bind(&path).expect("bind");
        let test = "packets_elsewhere::seqpacket_client_in_python";
        let script = [FRAME, SEQPACKET].concat();
        let Some(python) = python(test, &script, &path) else { return };
        echo(listener.accept().await.expect("accept")).await;
        finish(python).await;
    });
}

/// A receiver in another process is killed, and another takes its place.
fn a_killed_receiver(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let sender = Datagram::builder().plain().unbound().expect("a socket");
        let gone = DatagramSendError::Gone { to: Some(Address::from(&path)) };
        for round in 0..3 {
            let test = "packets_elsewhere::a_killed_receiver";
            let script = DATAGRAM_SERVER.replace("sock.sendto(body, sender)", "pass");
            let Some(mut server) = python(test, &script, &path) else { return };
            until("python3 has bound", || sender.connect_to(&path).is_ok()).await;
            for _ in 0..50 {
                sender.send(b"x").await.expect("room");
            }
            sender.flush().await.expect("taken");
            server.kill().expect("our child");
            server.wait().expect("our child");
            let mut failure = None;
            until("the end is seen", || {
                failure = sender.try_send(b"x").err();
                !matches!(failure, None | Some(DatagramSendError::Full { .. }))
            })
            .await;
            assert_eq!(failure, Some(gone.clone()), "round {round}");
            // What it left at the path gives way to the next one.
            let mut receiver = Datagram::builder().plain().bind(&path).expect("a stale path");
            sender.send(b"back").await.expect("somebody receives again");
            assert_eq!(*receiver.recv().await.expect("a packet"), *b"back");
        }
    });
}
