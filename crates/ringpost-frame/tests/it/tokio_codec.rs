//! `LengthPrefixed` and tokio's `LengthDelimitedCodec` are the same format.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use ringpost_frame::{ByteOrder, Decoder, LengthPrefix, PrefixWidth, Profile, StreamEnd};
use ringpost_testkit::frame_oracle::{Reader, read_stream};
use tokio_util::codec::{Decoder as _, Encoder as _, LengthDelimitedCodec};

fn tokio_codec(prefix: LengthPrefix, frame_bytes_max: usize) -> LengthDelimitedCodec {
    let mut builder = LengthDelimitedCodec::builder();
    match prefix.width {
        PrefixWidth::U16 => builder.length_field_type::<u16>(),
        PrefixWidth::U32 => builder.length_field_type::<u32>(),
        PrefixWidth::U64 => builder.length_field_type::<u64>(),
        other => panic!("tokio has no {other:?}"),
    };
    match prefix.byte_order {
        ByteOrder::Little => builder.little_endian(),
        ByteOrder::Big => builder.big_endian(),
    };
    builder.max_frame_length(frame_bytes_max).new_codec()
}

fn prefixes() -> impl Iterator<Item = LengthPrefix> {
    PrefixWidth::ALL
        .into_iter()
        .flat_map(|width| ByteOrder::ALL.map(|byte_order| LengthPrefix { width, byte_order }))
}

fn tokio_encode(prefix: LengthPrefix, bodies: &[Vec<u8>]) -> BytesMut {
    let mut codec = tokio_codec(prefix, 1 << 20);
    let mut stream = BytesMut::new();
    for body in bodies {
        codec.encode(Bytes::copy_from_slice(body), &mut stream).expect("bodies of this size");
    }
    stream
}

fn ringpost_encode(prefix: LengthPrefix, bodies: &[Vec<u8>]) -> BytesMut {
    let mut stream = BytesMut::new();
    for body in bodies {
        let mut header = [0; 8];
        let profile = Profile::LengthPrefixed(prefix);
        let written = profile.write_message_header(body.len(), &mut header).expect("short bodies");
        stream.extend_from_slice(&header[..written]);
        stream.extend_from_slice(body);
    }
    stream
}

/// All messages, and whether the stream is in order and ends between two of them.
fn tokio_decode(prefix: LengthPrefix, limit: u32, stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut codec = tokio_codec(prefix, usize::try_from(limit).expect("at least 32 bits"));
    let mut stream = BytesMut::from(stream);
    let mut bodies = Vec::new();
    loop {
        match codec.decode_eof(&mut stream) {
            Ok(Some(body)) => bodies.push(body.to_vec()),
            Ok(None) => return (bodies, true),
            Err(_) => return (bodies, false),
        }
    }
}

fn ringpost_decode(prefix: LengthPrefix, limit: u32, stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let decoder = Decoder::length_prefixed(prefix, limit);
    let found = read_stream(decoder, Reader::FastPath, stream, &[]);
    let bodies = found.frames.into_iter().map(|frame| frame.body).collect();
    // The one difference: a stream that ends between a length and its body is in order for tokio.
    let ends_behind_length = found.incomplete.is_some_and(|frame| frame.body.is_empty());
    (bodies, found.end == Ok(StreamEnd::Clean) || ends_behind_length)
}

proptest! {
    #[test]
    fn each_reads_what_the_other_writes(bodies in vec(vec(any::<u8>(), 0..700), 0..20)) {
        for prefix in prefixes() {
            let stream = tokio_encode(prefix, &bodies);
            prop_assert_eq!(&stream, &ringpost_encode(prefix, &bodies));
            prop_assert_eq!(ringpost_decode(prefix, 1024, &stream), (bodies.clone(), true));
            prop_assert_eq!(tokio_decode(prefix, 1024, &stream), (bodies.clone(), true));
        }
    }

    #[test]
    fn both_refuse_the_same_streams(
        bodies in vec(vec(any::<u8>(), 0..40), 0..6),
        limit in 0_u32..40,
        lost in 0_usize..40,
        spoiled in any::<proptest::sample::Index>(),
        with in any::<u8>(),
    ) {
        for prefix in prefixes() {
            let mut stream = ringpost_encode(prefix, &bodies);
            stream.truncate(stream.len().saturating_sub(lost));
            if !stream.is_empty() {
                let at = spoiled.index(stream.len());
                stream[at] ^= with;
            }
            prop_assert_eq!(
                ringpost_decode(prefix, limit, &stream),
                tokio_decode(prefix, limit, &stream)
            );
        }
    }
}

#[test]
fn both_have_the_same_limits() {
    for prefix in prefixes() {
        for len in [0, 65_535, 65_536, 70_000] {
            let body = vec![0xAB; len];
            let mut stream = BytesMut::new();
            let tokio = tokio_codec(prefix, 1 << 20).encode(Bytes::from(body), &mut stream);
            let mut header = [0; 8];
            let ours = Profile::LengthPrefixed(prefix).write_message_header(len, &mut header);
            assert_eq!(ours.is_ok(), tokio.is_ok(), "{prefix:?}, {len} bytes");
            if let Ok(written) = ours {
                assert_eq!(header[..written], stream[..written]);
            }
        }
        let limits = [(0, true), (1, true), (2, false)];
        for (len, admitted) in limits {
            let stream = ringpost_encode(prefix, &[vec![7; len]]);
            let ours = ringpost_decode(prefix, 1, &stream);
            assert_eq!(ours.1, admitted);
            assert_eq!(ours, tokio_decode(prefix, 1, &stream), "{prefix:?}, {len} bytes");
        }
    }
}

#[test]
fn a_stream_that_ends_between_a_length_and_its_body_is_truncated_for_ringpost_only() {
    for prefix in prefixes() {
        let mut stream = ringpost_encode(prefix, &[b"whole".to_vec(), b"lost".to_vec()]);
        stream.truncate(stream.len() - 4);
        assert_eq!(tokio_decode(prefix, 1024, &stream), (vec![b"whole".to_vec()], true));
        let decoder = Decoder::length_prefixed(prefix, 1024);
        let found = read_stream(decoder, Reader::FastPath, &stream, &[]);
        assert_eq!((found.frames.len(), found.end), (1, Ok(StreamEnd::Truncated)));
    }
}
