//! How a stream is cut does not matter, and what goes in comes out.

use proptest::collection::vec;
use proptest::prelude::*;
use ringpost_frame::{
    ByteOrder, ControlFrame, Decoder, FrameHeader, FrameKind, Hello, LengthPrefix, PrefixWidth,
    Profile, ProtocolError, StreamEnd, message_header,
};
use ringpost_testkit::frame_oracle::{self, Reader, Transcript, read_stream};

/// A stream with every state of the decoder in it: empty and other messages, control frames with and
/// without a body, a frame to be skipped, FIN.
fn native_stream() -> Vec<u8> {
    let ping = FrameHeader { kind: FrameKind::Ping, ..FrameHeader::message(3) };
    let later = FrameHeader { kind: FrameKind::Unknown(0x42), ..FrameHeader::message(2) };
    [
        &message_header(2).to_le_bytes()[..],
        b"hi",
        &message_header(0).to_le_bytes(),
        &ping.encode(),
        b"abc",
        &later.encode(),
        b"??",
        &message_header(9).to_le_bytes(),
        b"long ones",
        ControlFrame::go_away(3).as_bytes(),
        ControlFrame::fin().as_bytes(),
    ]
    .concat()
}

fn native_decoder() -> Decoder {
    let hello = Hello::new(1024, 0);
    Decoder::native(&hello.agree(&hello).expect("equal greetings agree"))
}

fn prefixed_decoders() -> impl Iterator<Item = (Profile, Decoder)> {
    PrefixWidth::ALL.into_iter().flat_map(|width| {
        ByteOrder::ALL.map(|byte_order| {
            let prefix = LengthPrefix { width, byte_order };
            (Profile::LengthPrefixed(prefix), Decoder::length_prefixed(prefix, 1024))
        })
    })
}

fn framed(profile: Profile, bodies: &[&[u8]]) -> Vec<u8> {
    let mut stream = Vec::new();
    for body in bodies {
        let mut header = [0; 8];
        let written = profile.write_message_header(body.len(), &mut header).expect("short bodies");
        stream.extend_from_slice(&header[..written]);
        stream.extend_from_slice(body);
    }
    stream
}

/// Decodes every prefix of the stream, cut in every way into three pieces; all must say the same.
fn check_all_splits(decoder: &Decoder, stream: &[u8]) -> Transcript {
    let read = |reader, sizes: &[u8]| read_stream(decoder.clone(), reader, stream, sizes);
    let whole = read(Reader::Steps, &[]);
    let len = u8::try_from(stream.len()).expect("a short stream");
    for first in 0..=len {
        for second in 0..=len - first {
            for reader in [Reader::Steps, Reader::FastPath] {
                let found = read(reader, &[first, second, u8::MAX]);
                assert_eq!(found, whole, "{reader:?}, cut after {first} and {second} bytes");
            }
        }
    }
    whole
}

#[test]
fn every_split_of_a_native_stream_decodes_alike() {
    let stream = native_stream();
    let whole = check_all_splits(&native_decoder(), &stream);
    assert_eq!((whole.frames.len(), whole.end), (7, Ok(StreamEnd::Clean)));
    assert_eq!(whole.position_bytes, stream.len() as u64);
}

#[test]
#[cfg_attr(
    miri,
    ignore = "decodes half a million times; the whole stream is cut in every way above"
)]
fn every_split_of_every_truncated_native_stream_decodes_alike() {
    let stream = native_stream();
    for len in 0..stream.len() {
        let cut = check_all_splits(&native_decoder(), &stream[..len]);
        assert!(matches!(cut.end, Ok(StreamEnd::Truncated | StreamEnd::Aborted)), "{len} bytes");
    }
}

#[test]
fn every_split_of_a_wrong_stream_gives_the_same_error_in_the_same_place() {
    let mut stream = native_stream();
    let good = stream.len();
    stream.extend_from_slice(&message_header(2).to_le_bytes());
    stream.extend_from_slice(b"no");
    let whole = check_all_splits(&native_decoder(), &stream);
    assert_eq!(whole.end, Err(ProtocolError::AfterFin { kind: FrameKind::Message }));
    assert_eq!(whole.position_bytes, good as u64);
}

#[test]
fn every_split_of_a_length_prefixed_stream_decodes_alike() {
    let bodies: [&[u8]; 5] = [b"hi", b"", b"", b"a longer message", b"x"];
    for (profile, decoder) in prefixed_decoders() {
        let stream = framed(profile, &bodies);
        let whole = check_all_splits(&decoder, &stream);
        assert!(whole.frames.iter().map(|frame| frame.body.as_slice()).eq(bodies));
        assert_eq!(whole.end, Ok(StreamEnd::Clean));
        let cut = check_all_splits(&decoder, &stream[..stream.len() - 1]);
        assert_eq!((cut.frames.len(), cut.end), (5 - 1, Ok(StreamEnd::Truncated)));
    }
}

#[test]
fn every_single_bit_flip_in_a_native_header_ends_the_stream_there() {
    let stream = native_stream();
    for bit in 0..64 {
        let mut spoiled = stream.clone();
        spoiled[10 + bit / 8] ^= 1 << (bit % 8);
        let found = read_stream(native_decoder(), Reader::FastPath, &spoiled, &[]);
        assert!(matches!(found.end, Err(ProtocolError::HeaderCheck { .. })), "bit {bit}");
        assert_eq!((found.frames.len(), found.position_bytes), (1, 10));
    }
}

proptest! {
    #[test]
    fn messages_come_back_in_pieces_of_any_size(
        bodies in vec(vec(any::<u8>(), 0..300), 0..20),
        piece_sizes in vec(any::<u8>(), 0..20),
    ) {
        let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        let all = prefixed_decoders().chain([(Profile::Native, native_decoder())]);
        for (profile, decoder) in all {
            let stream = framed(profile, &bodies);
            for reader in [Reader::Steps, Reader::FastPath] {
                let found = read_stream(decoder.clone(), reader, &stream, &piece_sizes);
                prop_assert!(found.frames.iter().map(|frame| frame.body.as_slice()).eq(bodies.clone()));
                prop_assert_eq!(found.position_bytes, stream.len() as u64);
            }
        }
    }

    #[test]
    fn oracles_hold_on_random_input(data in vec(any::<u8>(), 0..400)) {
        frame_oracle::decoder_all_splits(&data);
        frame_oracle::round_trip(&data);
        frame_oracle::hello(&data);
        frame_oracle::plain_profiles(&data);
    }

    #[test]
    fn a_header_is_valid_for_one_check_byte_at_most(first_seven in any::<[u8; 7]>()) {
        let [a, b, c, d, e, f, g] = first_seven;
        let valid = (0..=u8::MAX)
            .filter(|check| {
                let found = FrameHeader::decode([a, b, c, d, e, f, g, *check]);
                !matches!(found, Err(ProtocolError::HeaderCheck { .. }))
            })
            .count();
        prop_assert_eq!(valid, 1);
    }
}
