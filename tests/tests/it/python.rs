//! Another language, with nothing but its standard library, talks to a server.

use std::process::{Command, Stdio};
use std::time::Duration;

use ringpost::{ByteOrder, ConnectionOptions, EngineChoice, LengthPrefix, Listener, PrefixWidth};
use ringpost_testkit::child::skip;
use ringpost_testkit::patience::eventually;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, blocking, echo, place};

on_both_engines!(length_prefixed, native, descriptors);

/// As the wire format's page gives it.
const LENGTH_PREFIXED: &str = r#"
import socket, struct, sys
sock = socket.socket(socket.AF_UNIX); sock.settimeout(10); sock.connect(sys.argv[1])
stream = sock.makefile("rb")
for body in [b"", b"hello", bytes(range(256)) * 100]:
    sock.sendall(struct.pack("<I", len(body)) + body)
    assert stream.read(*struct.unpack("<I", stream.read(4))) == body
sock.shutdown(socket.SHUT_WR)
assert stream.read() == b""
"#;

const NATIVE: &str = r#"
import socket, struct, sys
def frame(kind, body=b""):
    head = struct.pack("<IBBB", len(body), kind, 0, 0)
    word = int.from_bytes(head, "little") ^ 0x0052494E47504F53
    return head + bytes([(word * 0x9E3779B97F4A7C15 % 2**64) >> 56]) + body
sock = socket.socket(socket.AF_UNIX); sock.settimeout(10); sock.connect(sys.argv[1])
stream = sock.makefile("rb")
sock.sendall(struct.pack("<8sHHIQQIHHQ16x", b"\xf5RNGPOST", 1, 1, 0, 0, 0, 1 << 20, 0, 1, 42))
assert stream.read(64)[:12] == b"\xf5RNGPOST\1\0\1\0"
for body in [b"", b"hello", bytes(range(256)) * 100]:
    sock.sendall(frame(1, body))
    assert stream.read(8 + len(body)) == frame(1, body)
sock.sendall(frame(4, b"ping") + frame(2))
assert stream.read() == frame(5, b"ping") + frame(2)
"#;

/// Descriptors with `socket.send_fds`, and an answer read with `socket.recv_fds`.
const DESCRIPTORS: &str = r#"
import os, socket, struct, sys
def frame(kind, body=b"", fds=0):
    head = struct.pack("<IBBB", len(body), kind, 0, fds)
    word = int.from_bytes(head, "little") ^ 0x0052494E47504F53
    return head + bytes([(word * 0x9E3779B97F4A7C15 % 2**64) >> 56]) + body
def receive(sock, wanted):
    data, fds = b"", []
    while len(data) < wanted:
        part, more, flags, _ = socket.recv_fds(sock, wanted - len(data), 253)
        assert part and not flags & socket.MSG_CTRUNC
        data, fds = data + part, fds + more
    return data, fds
sock = socket.socket(socket.AF_UNIX); sock.settimeout(10); sock.connect(sys.argv[1])
sock.sendall(struct.pack("<8sHHIQQIHHQ16x", b"\xf5RNGPOST", 1, 1, 0, 0, 4, 1 << 20, 253, 1, 42))
hello, fds = receive(sock, 64)
assert struct.unpack_from("<QIH", hello, 24) == (4, 16 << 20, 253) and not fds
for count, body in [(1, b"one"), (3, b""), (253, b"many" * 1000), (0, b"none"), (2, bytes(300000))]:
    files = [os.memfd_create("test") for _ in range(count)]
    for index, file in enumerate(files):
        os.pwrite(file, b"file %d" % index, 0)
    data = frame(1, body, count)
    # The descriptors go with the first byte of their frame; the rest may go in any way.
    sent = socket.send_fds(sock, [data], files) if files else 0
    sock.sendall(data[sent:])
    [os.close(file) for file in files]
    answer, fds = receive(sock, len(data))
    assert answer == data
    assert [os.pread(file, 20, 0) for file in fds] == [b"file %d" % i for i in range(count)]
    [os.close(file) for file in fds]
sock.sendall(frame(2))
assert receive(sock, 8) == (frame(2), [])
"#;

fn converse(test: &str, engine: EngineChoice, script: &str, options: ConnectionOptions) {
    let found = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return skip(test, "python3 is not installed");
    }
    let (_directory, path) = place();
    block_on(engine, async {
        let mut listener = Listener::builder().connection(options).bind(&path).expect("bind");
        let mut python = Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .stderr(Stdio::piped())
            .spawn()
            .expect("start python3");
        echo(listener.accept().await.expect("accept")).await;
        blocking(move || {
            let ended = || python.try_wait().expect("our child").is_some();
            eventually("python3 ends", Duration::from_secs(10), ended);
            let output = python.wait_with_output().expect("our child");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        })
        .await;
    });
}

fn length_prefixed(engine: EngineChoice) {
    let prefix = LengthPrefix { width: PrefixWidth::U32, byte_order: ByteOrder::Little };
    let options = ConnectionOptions::new().length_prefixed(prefix);
    converse("python::length_prefixed", engine, LENGTH_PREFIXED, options);
}

fn native(engine: EngineChoice) {
    converse("python::native", engine, NATIVE, ConnectionOptions::new());
}

fn descriptors(engine: EngineChoice) {
    let options = ConnectionOptions::new().descriptors_max(253);
    converse("python::descriptors", engine, DESCRIPTORS, options);
}
