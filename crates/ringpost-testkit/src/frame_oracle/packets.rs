//! Packets hold exactly one frame each, and mean what a naive decoder says they mean.

use ringpost_frame::{
    Decoder, FrameHeader, FrameKind, Profile, ProtocolError, Step, packet_header, packet_message,
};

use super::drive::check_told;
use super::input::Input;
use super::reference::{self, check_byte};

/// Reads a row of packets, each as a datagram and as one of a connection in each profile.
///
/// Input: what the connection is; then each packet with its length in front. Packets of the native profile
/// get valid check bytes, and lengths, more often than not.
///
/// # Panics
///
/// If a packet is not what a naive decoder says it is, or if the fast way and the slow one differ.
pub fn packets(data: &[u8]) {
    let mut input = Input::new(data);
    let mut decoder = match input.byte() % 4 {
        0 => {
            let (prefix, limit) = (input.length_prefix(), input.plain_limit());
            Decoder::length_prefixed(prefix, limit)
        }
        1 => Decoder::bytes(),
        _ => Decoder::native(&input.agreement()),
    };
    while !input.is_empty() {
        let repair = input.byte();
        let len = usize::from(input.byte()) * if repair & 0x80 == 0 { 1 } else { 16 };
        let packet = repaired(input.bytes(len), repair);
        check_datagram(&packet);
        if !check_connected(&mut decoder, &packet) {
            break;
        }
    }
}

/// The packet with what random bytes never have right: its length, its kind and its check byte.
fn repaired(packet: &[u8], repair: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let len = packet.len();
    if let Some((header, _)) = packet.split_first_chunk_mut::<8>() {
        if repair & 1 == 0 {
            let body = u32::try_from(len - 8).expect("packets are short");
            header[..4].copy_from_slice(&body.to_le_bytes());
        }
        if repair & 0x41 == 0x41 {
            // A length near that of the packet, and most likely another one.
            header[1..4].fill(0);
        }
        if repair & 6 == 0 {
            header[4..7].copy_from_slice(&[1, 0, 0]);
        }
        if repair & 8 == 0 {
            header[7] = check_byte(&header[..7]);
        }
    }
    packet
}

/// Without an agreement: a header that is right, and whose length is that of the packet.
fn check_datagram(packet: &[u8]) {
    let found = packet_header(packet);
    let packet_bytes = packet.len();
    let expected = match packet.first_chunk::<8>() {
        None => Err(ProtocolError::PacketLength { packet_bytes, frame_bytes: 8 }),
        Some(header) => match reference::plain_header(header) {
            Err(error) => Err(error),
            Ok(header) if u64::from(header.len) + 8 == packet_bytes as u64 => Ok(header),
            Ok(header) => {
                let frame_bytes = u64::from(header.len) + 8;
                Err(ProtocolError::PacketLength { packet_bytes, frame_bytes })
            }
        },
    };
    assert_eq!(found, expected);
    if let Err(error) = &found {
        check_told(error);
    }
    let plain = found == Ok(FrameHeader::message(found.map_or(0, |header| header.len)));
    let body = packet.get(8..).filter(|_| plain);
    assert_eq!(packet_message(packet), body, "the fast way and the slow one differ");
}

/// On a connection; false once it has failed.
fn check_connected(decoder: &mut Decoder, packet: &[u8]) -> bool {
    assert!(decoder.is_between_frames(), "a packet left part of a frame behind");
    let checked = decoder.check_packet(packet);
    let header_bytes = decoder.profile().header_bytes();
    let Some(frame_bytes) = claimed(decoder.profile(), packet) else {
        assert_eq!(checked, Ok(()), "bare bytes have no rule");
        return true;
    };
    match checked {
        Ok(()) => assert_eq!(frame_bytes, Ok(packet.len() as u64), "a packet is one frame"),
        Err(ProtocolError::PacketLength { packet_bytes, frame_bytes: told }) => {
            assert_eq!(packet_bytes, packet.len());
            assert_eq!(frame_bytes, Ok(told), "what the header says");
            assert_ne!(told, packet_bytes as u64);
            return false;
        }
        Err(error) => {
            assert_eq!(frame_bytes, Err(error), "a header that is wrong");
            return false;
        }
    }
    let position = decoder.position_bytes();
    let fast = decoder.whole_message(packet);
    match decoder.step(packet) {
        Ok(Step::Frame { header, body }) => {
            assert_eq!(body, header_bytes..packet.len(), "the frame is the packet");
            assert_eq!(decoder.position_bytes(), position + packet.len() as u64);
            if let Some(fast) = fast {
                assert_eq!((fast, header.kind), (body, FrameKind::Message));
            }
            true
        }
        Ok(step) => panic!("{step:?} of a packet that holds one frame"),
        Err(error) => {
            assert_eq!(fast, None, "{error}");
            assert!(!matches!(error, ProtocolError::PacketLength { .. }));
            assert_eq!(decoder.end(), Err(error));
            false
        }
    }
}

/// The length that a packet has by its own account; `None` where there is no such thing.
fn claimed(profile: Profile, packet: &[u8]) -> Option<Result<u64, ProtocolError>> {
    match profile {
        Profile::Native => Some(match packet.first_chunk::<8>() {
            None => Ok(8),
            Some(header) => reference::plain_header(header).map(|it| u64::from(it.len) + 8),
        }),
        Profile::LengthPrefixed(prefix) => {
            let width = prefix.width.bytes();
            let Some(field) = packet.get(..width) else { return Some(Ok(width as u64)) };
            let len = reference::prefix_len(prefix, field);
            Some(Ok(len.saturating_add(width as u64)))
        }
        _ => None,
    }
}
