//! The profiles for peers that do not speak ringpost.

use ringpost_frame::{Decoder, FrameHeader, Profile, StreamEnd};

use super::drive::{Frame, Reader, Transcript, read_stream};
use super::input::Input;
use super::reference;
use super::splits::compare;

/// Decodes a stream with a length-prefixed profile and with a naive decoder; then frames the same
/// bytes as messages and reads those back; then reads the stream as bytes.
///
/// Input: width, order, limit; the sizes of the pieces; the stream.
///
/// # Panics
///
/// If the decoders differ or a message does not come back.
pub fn plain_profiles(data: &[u8]) {
    let mut input = Input::new(data);
    let (prefix, limit) = (input.length_prefix(), input.plain_limit());
    let piece_sizes = input.piece_sizes();
    let stream = input.rest();

    let decoder = Decoder::length_prefixed(prefix, limit);
    let expected = reference::length_prefixed(prefix, limit, stream);
    compare(&decoder, stream, piece_sizes, Some(expected));

    let messages: Vec<&[u8]> = stream.chunk_by(|left, right| left <= right).collect();
    let mut encoded = Vec::new();
    for message in &messages {
        let mut header = [0; 8];
        let profile = Profile::LengthPrefixed(prefix);
        let written = profile.write_message_header(message.len(), &mut header);
        encoded.extend_from_slice(&header[..written.expect("messages are shorter than 64 KiB")]);
        encoded.extend_from_slice(message);
    }
    let decoder = Decoder::length_prefixed(prefix, u32::MAX);
    let decoded = read_stream(decoder, Reader::FastPath, &encoded, piece_sizes);
    assert!(decoded.frames.iter().map(|frame| frame.body.as_slice()).eq(messages));
    assert_eq!(decoded.end, Ok(StreamEnd::Clean));

    let len = u32::try_from(stream.len()).expect("inputs are shorter than 4 GiB");
    let all = Frame { header: FrameHeader::message(len), body: stream.to_vec() };
    let expected = Transcript {
        frames: if stream.is_empty() { Vec::new() } else { vec![all] },
        incomplete: None,
        end: Ok(StreamEnd::Clean),
        position_bytes: u64::from(len),
    };
    compare(&Decoder::bytes(), stream, piece_sizes, Some(expected));
}
