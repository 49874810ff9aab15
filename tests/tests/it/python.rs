//! Another language, with nothing but its standard library, talks to a server.

use std::process::{Command, Stdio};
use std::time::Duration;

use ringpost::{ByteOrder, ConnectionOptions, EngineChoice, LengthPrefix, Listener, PrefixWidth};
use ringpost_testkit::child::skip;
use ringpost_testkit::patience::eventually;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, blocking, echo, place};

on_both_engines!(length_prefixed, native);

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
