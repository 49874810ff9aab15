//! How a stream is cut does not change what is decoded.

use ringpost_frame::{Decoder, FrameKind, Profile};

use super::drive::{Reader, read_stream};
use super::input::Input;
use super::reference::{self, check_byte};

/// Decodes a stream in one piece, byte by byte and in pieces as the input says, each with and without
/// the fast path, and with a naive decoder; all must agree on frames, error and position.
///
/// Input: what the decoder is; the sizes of the pieces; the stream. Half of the native streams get
/// valid check bytes before they are decoded, so that a fuzzer need not find them.
///
/// # Panics
///
/// If any two differ.
pub fn decoder_all_splits(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => {
            let agreement = input.agreement();
            let piece_sizes = input.piece_sizes();
            let stream = input.rest();
            let expected = reference::native(&agreement, stream);
            compare(&Decoder::native(&agreement), stream, piece_sizes, Some(expected));
        }
        1 => {
            let agreement = input.agreement();
            let piece_sizes = input.piece_sizes();
            let stream = with_check_bytes(input.rest());
            let expected = reference::native(&agreement, &stream);
            compare(&Decoder::native(&agreement), &stream, piece_sizes, Some(expected));
        }
        2 => {
            let (prefix, limit) = (input.length_prefix(), input.plain_limit());
            let piece_sizes = input.piece_sizes();
            compare(&Decoder::length_prefixed(prefix, limit), input.rest(), piece_sizes, None);
        }
        _ => {
            let piece_sizes = input.piece_sizes();
            compare(&Decoder::bytes(), input.rest(), piece_sizes, None);
        }
    }
}

/// Reads `stream` in every way and compares; `expected` is what another decoder says.
pub(super) fn compare(
    decoder: &Decoder,
    stream: &[u8],
    piece_sizes: &[u8],
    expected: Option<super::Transcript>,
) {
    let expected =
        expected.unwrap_or_else(|| read_stream(decoder.clone(), Reader::Steps, stream, &[]));
    if decoder.profile() == Profile::Bytes {
        assert_eq!(
            expected.frames.iter().map(|frame| frame.body.len()).sum::<usize>(),
            stream.len()
        );
    }
    for sizes in [&[], piece_sizes, &[1]] {
        for reader in [Reader::Steps, Reader::FastPath] {
            let found = read_stream(decoder.clone(), reader, stream, sizes);
            assert_eq!(found, expected, "{reader:?} in pieces of {sizes:?}");
        }
    }
}

/// Makes the check byte right wherever a frame header should be, and its length one that this stream
/// can hold in most cases.
fn with_check_bytes(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    let mut rest = stream.as_mut_slice();
    while let Some((header, body)) = rest.split_first_chunk_mut::<8>() {
        // Two of the length bytes are kept for long frames, which few streams should have.
        if header[7] % 8 != 0 {
            header[1..4].fill(0);
        }
        if FrameKind::from_code(header[4]).is_none() && header[7] % 8 != 1 {
            header[4] = FrameKind::Message.code();
        }
        header[7] = check_byte(&header[..7]);
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(body.len());
        rest = &mut body[len..];
    }
    stream
}
