//! A second decoder, naive and slow, written from the specification.
//!
//! It sees the whole stream at once and shares no code with `ringpost-frame` but the types.

use ringpost_frame::{
    Agreement, ByteOrder, Features, FrameFlags, FrameHeader, FrameKind, LengthPrefix, PrefixWidth,
    ProtocolError, StreamEnd,
};

use super::drive::{Frame, Transcript};

/// What the native profile makes of `stream`.
pub fn native(agreement: &Agreement, stream: &[u8]) -> Transcript {
    let mut transcript = empty(StreamEnd::Aborted);
    let (mut finished, mut rejected) = (false, false);
    let mut rest = stream;
    while !rest.is_empty() {
        if rest.len() < 8 {
            transcript.end = Ok(StreamEnd::Truncated);
            return transcript;
        }
        let header = match native_header(agreement, &rest[..8], finished, rejected) {
            Ok(header) => header,
            Err(error) => {
                transcript.end = Err(error);
                return transcript;
            }
        };
        finished |= header.kind == FrameKind::Fin;
        rejected |= header.kind == FrameKind::Reject;
        if !take_body(&mut transcript, header, 8, &mut rest) {
            return transcript;
        }
        if finished {
            transcript.end = Ok(StreamEnd::Clean);
        }
        if rejected {
            transcript.end = Ok(StreamEnd::Rejected);
        }
    }
    transcript
}

/// What a length-prefixed profile makes of `stream`.
pub fn length_prefixed(prefix: LengthPrefix, limit: u32, stream: &[u8]) -> Transcript {
    let width = match prefix.width {
        PrefixWidth::U16 => 2,
        PrefixWidth::U32 => 4,
        PrefixWidth::U64 => 8,
        other => panic!("no reference for {other:?}"),
    };
    let mut transcript = empty(StreamEnd::Clean);
    let mut rest = stream;
    while !rest.is_empty() {
        if rest.len() < width {
            transcript.end = Ok(StreamEnd::Truncated);
            return transcript;
        }
        let len = prefix_len(prefix, &rest[..width]);
        if len > u64::from(limit) {
            transcript.end = Err(ProtocolError::FrameTooLarge { len, limit });
            return transcript;
        }
        let header = FrameHeader::message(u32::try_from(len).expect("within the limit"));
        if !take_body(&mut transcript, header, width, &mut rest) {
            return transcript;
        }
    }
    transcript
}

/// What a length field says.
pub(super) fn prefix_len(prefix: LengthPrefix, field: &[u8]) -> u64 {
    let mut digits = field.to_vec();
    if prefix.byte_order == ByteOrder::Little {
        digits.reverse();
    }
    digits.iter().fold(0, |len: u64, digit| len * 256 + u64::from(*digit))
}

/// The check byte of a header: the specification's arithmetic, in numbers that cannot overflow.
pub(super) fn check_byte(first_seven: &[u8]) -> u8 {
    let word = first_seven.iter().rev().fold(0, |word: u128, byte| word * 256 + u128::from(*byte));
    let product = (word ^ 0x52_494E_4750_4F53) * 0x9E37_79B9_7F4A_7C15;
    u8::try_from(product / (1 << 56) % 256).expect("a remainder of 256")
}

fn empty(end: StreamEnd) -> Transcript {
    Transcript { frames: Vec::new(), incomplete: None, end: Ok(end), position_bytes: 0 }
}

/// Moves one frame from `rest` to the transcript; false if only a part of it is there.
fn take_body(
    transcript: &mut Transcript,
    header: FrameHeader,
    header_bytes: usize,
    rest: &mut &[u8],
) -> bool {
    let body = &rest[header_bytes..];
    let len = usize::try_from(header.len).expect("usize has 32 bits at least");
    if body.len() < len {
        transcript.incomplete = Some(Frame { header, body: body.to_vec() });
        transcript.end = Ok(StreamEnd::Truncated);
        return false;
    }
    transcript.frames.push(Frame { header, body: body[..len].to_vec() });
    transcript.position_bytes += u64::try_from(header_bytes + len).expect("64 bits at most");
    *rest = &body[len..];
    true
}

/// A header by itself, without an agreement.
pub(super) fn plain_header(bytes: &[u8]) -> Result<FrameHeader, ProtocolError> {
    let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let (kind, flags, fds) = (bytes[4], bytes[5], bytes[6]);
    let expected = check_byte(&bytes[..7]);
    if bytes[7] != expected {
        let header = bytes.try_into().expect("eight bytes");
        return Err(ProtocolError::HeaderCheck { header, expected });
    }
    let kind = match kind {
        0 => return Err(ProtocolError::ZeroKind),
        1 => FrameKind::Message,
        2 => FrameKind::Fin,
        3 => FrameKind::Reject,
        4 => FrameKind::Ping,
        5 => FrameKind::Pong,
        6 => FrameKind::GoAway,
        other => FrameKind::Unknown(other),
    };
    if flags > 7 {
        return Err(ProtocolError::UnknownFlags { bits: flags / 8 * 8 });
    }
    if let FrameKind::Unknown(kind) = kind
        && flags >= 4
    {
        return Err(ProtocolError::UnknownCritical { kind });
    }
    let (min, max) = match kind {
        FrameKind::Fin => (0, 0),
        FrameKind::Reject => (0, 1024),
        FrameKind::Ping | FrameKind::Pong => (0, 64),
        FrameKind::GoAway => (8, 8),
        _ => (0, u32::MAX),
    };
    if len < min || len > max {
        return Err(ProtocolError::ControlLength { kind, len, min, max });
    }
    Ok(FrameHeader { len, kind, flags: FrameFlags(flags), fds })
}

fn native_header(
    agreement: &Agreement,
    bytes: &[u8],
    finished: bool,
    rejected: bool,
) -> Result<FrameHeader, ProtocolError> {
    let header = plain_header(bytes)?;
    let FrameHeader { len, kind, flags: FrameFlags(flags), fds } = header;
    let message = kind == FrameKind::Message;
    let more = message && agreement.features.0 % 2 == 1;
    let ext = message && agreement.features.0 / 2 % 2 == 1;
    let bad = (if more { 0 } else { flags & 1 }) + (if ext { 0 } else { flags & 2 });
    if bad != 0 {
        return Err(ProtocolError::FlagsNotAllowed { kind, bits: bad });
    }
    let fds_max =
        if agreement.features.contains(Features::DESCRIPTORS) { agreement.fds_max } else { 0 };
    if u16::from(fds) > fds_max {
        return Err(ProtocolError::DescriptorsNotAllowed { count: fds, limit: fds_max });
    }
    if len > agreement.frame_bytes_max {
        let limit = agreement.frame_bytes_max;
        return Err(ProtocolError::FrameTooLarge { len: u64::from(len), limit });
    }
    if rejected {
        return Err(ProtocolError::AfterReject { kind });
    }
    if finished && (message || kind == FrameKind::Fin) {
        return Err(ProtocolError::AfterFin { kind });
    }
    Ok(header)
}
