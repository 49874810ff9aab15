//! The test vectors, read and written.

use std::path::PathBuf;
use std::process::Command;

use ringpost_frame::{
    Agreement, ByteOrder, Decoder, Features, FrameFlags, FrameHeader, FrameKind, Hello, HelloError,
    LengthPrefix, PrefixWidth, Profile, ProtocolError, Step, StreamEnd, packet_header,
    packet_message,
};
use ringpost_testkit::frame_oracle::{Frame, Reader, Transcript, read_stream};
use serde_json::Value;

#[test]
fn greetings() {
    for vector in section("hello", 18) {
        let bytes = bytes(&vector["bytes"]).try_into().expect("64 bytes");
        let decoded = Hello::decode(&bytes);
        assert_eq!(decoded.err().map(hello_error_name), text(&vector["error"]), "{vector}");
        let Ok(decoded) = decoded else { continue };
        let fields = &vector["fields"];
        let mut hello = Hello::new(number(&fields["frame_bytes_max"]), wide(&fields["instance"]));
        hello.version_min = number(&fields["version_min"]);
        hello.version_max = number(&fields["version_max"]);
        hello.flags = number(&fields["flags"]);
        hello.required = Features(wide(&fields["required"]));
        hello.supported = Features(wide(&fields["supported"]));
        hello.fds_max = number(&fields["fds_max"]);
        hello.abi = number(&fields["abi"]);
        assert_eq!(decoded, hello);
        assert_eq!(hello.encode(), bytes, "{vector}");
    }
}

#[test]
fn agreements() {
    for vector in section("agreements", 16) {
        let hello = |name: &str| {
            let bytes = bytes(&vector[name]).try_into().expect("64 bytes");
            Hello::decode(&bytes).expect("a valid greeting")
        };
        let found = hello("local").agree(&hello("peer"));
        assert_eq!(found.err().map(hello_error_name), text(&vector["error"]), "{vector}");
        let Ok(found) = found else { continue };
        let expected = &vector["agreement"];
        assert_eq!(found.version, number::<u16>(&expected["version"]), "{vector}");
        assert_eq!(found.features.0, wide(&expected["features"]), "{vector}");
        assert_eq!(found.frame_bytes_max, number::<u32>(&expected["frame_bytes_max"]), "{vector}");
        assert_eq!(found.fds_max, number::<u16>(&expected["fds_max"]), "{vector}");
        assert_eq!(found.peer_instance, wide(&expected["peer_instance"]), "{vector}");
    }
}

#[test]
fn headers() {
    for vector in section("headers", 136) {
        let bytes = bytes(&vector["bytes"]).try_into().expect("8 bytes");
        let decoded = FrameHeader::decode(bytes);
        assert_eq!(decoded.err().map(error_name), text(&vector["error"]), "{vector}");
        let Ok(decoded) = decoded else { continue };
        assert_eq!(decoded, header(&vector["fields"], number(&vector["fields"]["len"])));
        assert_eq!(decoded.encode(), bytes, "{vector}");
    }
}

#[test]
fn streams() {
    for vector in section("streams", 39) {
        let stream = bytes(&vector["bytes"]);
        let decoder = Decoder::native(&agreement(&vector["agreement"]));
        let found = check_stream(&vector, &decoder, &stream, |frame| {
            let body = bytes(&frame["body"]);
            Frame { header: header(frame, u32::try_from(body.len()).expect("short")), body }
        });
        let mut encoded = Vec::new();
        for frame in &found.frames {
            encoded.extend_from_slice(&frame.header.encode());
            encoded.extend_from_slice(&frame.body);
        }
        let complete = usize::try_from(found.position_bytes).expect("short");
        assert_eq!(encoded, stream[..complete], "{vector}");
    }
}

#[test]
fn length_prefixed_streams() {
    for vector in section("length_prefixed", 56) {
        let stream = bytes(&vector["bytes"]);
        let prefix = length_prefix(&vector);
        let decoder = Decoder::length_prefixed(prefix, number(&vector["frame_bytes_max"]));
        let found = check_stream(&vector, &decoder, &stream, |frame| {
            let body = bytes(frame);
            let len = u32::try_from(body.len()).expect("short");
            Frame { header: FrameHeader::message(len), body }
        });
        let mut encoded = Vec::new();
        for frame in &found.frames {
            let mut field = [0; 8];
            let profile = Profile::LengthPrefixed(prefix);
            let written = profile.write_message_header(frame.body.len(), &mut field);
            encoded.extend_from_slice(&field[..written.expect("short")]);
            encoded.extend_from_slice(&frame.body);
        }
        let complete = usize::try_from(found.position_bytes).expect("short");
        assert_eq!(encoded, stream[..complete], "{vector}");
    }
}

#[test]
fn packets() {
    let mut hello = Hello::new(1024, 0);
    hello.supported = Features(7);
    hello.fds_max = 253;
    let agreement = hello.agree(&hello).expect("equal greetings agree");
    for vector in section("packets", 23) {
        let packet = bytes(&vector["bytes"]);
        let found = packet_header(&packet);
        assert_eq!(found.err().map(error_name), text(&vector["error"]), "{vector}");
        let checked = Decoder::native(&agreement).check_packet(&packet);
        assert_eq!(checked, found.map(|_| ()), "{vector}");
        let plain = found.is_ok_and(|header| header == FrameHeader::message(header.len));
        assert_eq!(packet_message(&packet), packet.get(8..).filter(|_| plain), "{vector}");
        let Ok(found) = found else { continue };
        assert_eq!(found, header(&vector["fields"], number(&vector["fields"]["len"])));
        assert_eq!([&found.encode()[..], &packet[8..]].concat(), packet, "{vector}");
    }
}

#[test]
fn length_prefixed_packets() {
    for vector in section("prefixed_packets", 48) {
        let packet = bytes(&vector["bytes"]);
        let prefix = length_prefix(&vector);
        let mut decoder = Decoder::length_prefixed(prefix, 1024);
        let checked = decoder.check_packet(&packet);
        assert_eq!(checked.err().map(error_name), text(&vector["error"]), "{vector}");
        if checked.is_err() {
            continue;
        }
        let body = bytes(&vector["body"]);
        let Ok(Step::Frame { body: found, .. }) = decoder.step(&packet) else {
            panic!("a packet is one frame: {vector}");
        };
        assert_eq!(packet[found], body, "{vector}");
    }
}

/// The vectors are what the second implementation makes of the specification.
#[test]
#[cfg_attr(miri, ignore = "starts a program")]
fn the_reference_implementation_writes_the_same_vectors() {
    let program = directory().join("reference.py");
    match Command::new("python3").arg("-B").arg(&program).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(
                String::from_utf8_lossy(&output.stdout) == file(),
                "vectors.json is not what reference.py writes"
            );
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no python3 here");
        }
        Err(error) => panic!("python3 does not start: {error}"),
    }
}

fn check_stream(
    vector: &Value,
    decoder: &Decoder,
    stream: &[u8],
    frame: impl Fn(&Value) -> Frame,
) -> Transcript {
    let found = read_stream(decoder.clone(), Reader::Steps, stream, &[]);
    for sizes in [&[][..], &[1], &[7], &[3, 0, 200]] {
        let again = read_stream(decoder.clone(), Reader::FastPath, stream, sizes);
        assert_eq!(again, found, "{vector}");
    }
    let frames = vector["frames"].as_array().expect("a list");
    assert_eq!(found.frames, frames.iter().map(frame).collect::<Vec<_>>(), "{vector}");
    assert_eq!(found.end.err().map(error_name), text(&vector["error"]), "{vector}");
    assert_eq!(found.end.ok().map(end_name), text(&vector["end"]), "{vector}");
    assert_eq!(found.position_bytes, number::<u64>(&vector["position"]), "{vector}");
    found
}

fn length_prefix(vector: &Value) -> LengthPrefix {
    let width = match number(&vector["width_bytes"]) {
        2_u8 => PrefixWidth::U16,
        4 => PrefixWidth::U32,
        8 => PrefixWidth::U64,
        other => panic!("no length field has {other} bytes"),
    };
    let byte_order = match vector["byte_order"].as_str() {
        Some("little") => ByteOrder::Little,
        Some("big") => ByteOrder::Big,
        other => panic!("no byte order is called {other:?}"),
    };
    LengthPrefix { width, byte_order }
}

fn agreement(value: &Value) -> Agreement {
    let mut hello = Hello::new(number(&value["frame_bytes_max"]), 0);
    hello.supported = Features(wide(&value["features"]));
    hello.fds_max = number(&value["fds_max"]);
    hello.agree(&hello).expect("equal greetings agree")
}

fn header(value: &Value, len: u32) -> FrameHeader {
    FrameHeader {
        len,
        kind: FrameKind::from_code(number(&value["kind"])).expect("a kind"),
        flags: FrameFlags(number(&value["flags"])),
        fds: number(&value["fds"]),
    }
}

/// The names that the vectors use are the names of the variants.
fn error_name(error: ProtocolError) -> String {
    variant_name(&format!("{error:?}"))
}

fn hello_error_name(error: HelloError) -> String {
    variant_name(&format!("{error:?}"))
}

fn end_name(end: StreamEnd) -> String {
    variant_name(&format!("{end:?}"))
}

fn variant_name(debug: &str) -> String {
    debug.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

/// A part of the vectors. The count is there so that none gets lost unnoticed.
fn section(name: &str, count: usize) -> Vec<Value> {
    let vectors: Value = serde_json::from_str(&file()).expect("the vectors are JSON");
    let section = vectors[name].as_array().expect("a list").clone();
    assert_eq!(section.len(), count, "{name}");
    section
}

fn file() -> String {
    std::fs::read_to_string(directory().join("vectors.json")).expect("the vectors are there")
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn number<T: TryFrom<u64>>(value: &Value) -> T {
    let number = value.as_u64().unwrap_or_else(|| panic!("{value} is no number"));
    T::try_from(number).unwrap_or_else(|_| panic!("{number} is too large"))
}

fn wide(value: &Value) -> u64 {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
    let digits = digits.unwrap_or_else(|| panic!("{value} is no hexadecimal number"));
    u64::from_str_radix(digits, 16).expect("hexadecimal digits")
}

fn bytes(value: &Value) -> Vec<u8> {
    let digits = value.as_str().expect("hexadecimal digits").as_bytes();
    assert!(digits.len().is_multiple_of(2));
    let digit = |digit: u8| char::from(digit).to_digit(16).expect("hexadecimal digits");
    let byte =
        |pair: &[u8]| u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).expect("two digits");
    digits.chunks_exact(2).map(byte).collect()
}
