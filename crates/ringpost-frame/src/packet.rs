//! Frames on sockets that carry packets: exactly one in each.

use crate::error::ProtocolError;
use crate::header::{FrameHeader, HEADER_BYTES, message_header};

/// The message in a packet that holds exactly one plain message: one without flags or descriptors. `None`
/// for any other packet; [`packet_header`] knows more.
#[inline(always)]
pub fn packet_message(packet: &[u8]) -> Option<&[u8]> {
    let (header, body) = packet.split_first_chunk()?;
    let len = u32::try_from(body.len()).ok()?;
    (u64::from_le_bytes(*header) == message_header(len)).then_some(body)
}

/// The header of the frame that a packet holds, whose body is the rest of the packet.
///
/// # Errors
///
/// What [`FrameHeader::decode`] refuses, then [`ProtocolError::PacketLength`] if the packet does not hold
/// exactly one frame.
pub fn packet_header(packet: &[u8]) -> Result<FrameHeader, ProtocolError> {
    let packet_bytes = packet.len();
    let Some((header, _)) = packet.split_first_chunk() else {
        return Err(ProtocolError::PacketLength { packet_bytes, frame_bytes: HEADER_BYTES as u64 });
    };
    let header = FrameHeader::decode(*header)?;
    let frame_bytes = HEADER_BYTES as u64 + u64::from(header.len);
    if frame_bytes != packet_bytes as u64 {
        return Err(ProtocolError::PacketLength { packet_bytes, frame_bytes });
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::kind::{FrameFlags, FrameKind};

    fn packet(header: FrameHeader, body: &[u8]) -> Vec<u8> {
        [&header.encode()[..], body].concat()
    }

    #[test]
    fn a_packet_holds_exactly_one_frame() {
        let whole = packet(FrameHeader::message(3), b"abc");
        assert_eq!(packet_message(&whole), Some(&b"abc"[..]));
        assert_eq!(packet_header(&whole), Ok(FrameHeader::message(3)));
        for len in 0..whole.len() {
            let frame_bytes = if len < HEADER_BYTES { 8 } else { 11 };
            let error = ProtocolError::PacketLength { packet_bytes: len, frame_bytes };
            assert_eq!(packet_header(&whole[..len]), Err(error));
            assert_eq!(packet_message(&whole[..len]), None);
        }
        let longer = [&whole[..], b"x"].concat();
        let error = ProtocolError::PacketLength { packet_bytes: 12, frame_bytes: 11 };
        assert_eq!(packet_header(&longer), Err(error));
        assert_eq!(packet_message(&longer), None);
    }

    #[test]
    fn only_plain_messages_are_messages() {
        for (kind, flags, fds) in [
            (FrameKind::Ping, FrameFlags::NONE, 0),
            (FrameKind::Unknown(9), FrameFlags::NONE, 0),
            (FrameKind::Message, FrameFlags::MORE, 0),
            (FrameKind::Message, FrameFlags::NONE, 1),
        ] {
            let header = FrameHeader { len: 1, kind, flags, fds };
            let packet = packet(header, b"x");
            assert_eq!(packet_message(&packet), None);
            assert_eq!(packet_header(&packet), Ok(header));
        }
        let empty = packet(FrameHeader::message(0), b"");
        assert_eq!(packet_message(&empty), Some(&[][..]));
    }
}
