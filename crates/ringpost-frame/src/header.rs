//! The eight bytes in front of every frame of the native profile.

use crate::error::ProtocolError;
use crate::kind::{FrameFlags, FrameKind};

/// The size of a frame header.
pub const HEADER_BYTES: usize = 8;

/// What stands in front of a frame.
///
/// As a little-endian 64-bit word: bits 0..32 length, 32..40 kind, 40..48 flags, 48..56 number of
/// descriptors, 56..64 check byte of the 56 bits before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of body that follow the header.
    pub len: u32,
    /// What the frame is for.
    pub kind: FrameKind,
    /// The flags on it.
    pub flags: FrameFlags,
    /// File descriptors that travel with it.
    pub fds: u8,
}

impl FrameHeader {
    /// The header of a message with `len` bytes, without flags or descriptors.
    pub const fn message(len: u32) -> Self {
        Self { len, kind: FrameKind::Message, flags: FrameFlags::NONE, fds: 0 }
    }

    /// The header of a message with `len` bytes that `fds` file descriptors travel with.
    pub const fn message_with_descriptors(len: u32, fds: u8) -> Self {
        Self { fds, ..Self::message(len) }
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// Refuses, in this order: a check byte that does not match, kind zero, unknown flags, an
    /// unknown kind with [`FrameFlags::CRITICAL`], and a control frame whose kind does not have
    /// bodies of this length. What depends on the [`Agreement`](crate::Agreement) is left to the
    /// [`Decoder`](crate::Decoder).
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let word = u64::from_le_bytes(bytes);
        if with_check(word & !CHECK_MASK) != word {
            let [.., expected] = with_check(word & !CHECK_MASK).to_le_bytes();
            return Err(ProtocolError::HeaderCheck { header: bytes, expected });
        }
        let [l0, l1, l2, l3, kind, flags, fds, _check] = bytes;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = FrameKind::from_code(kind).ok_or(ProtocolError::ZeroKind)?;
        if flags & !FrameFlags::KNOWN.0 != 0 {
            return Err(ProtocolError::UnknownFlags { bits: flags & !FrameFlags::KNOWN.0 });
        }
        let flags = FrameFlags(flags);
        if let FrameKind::Unknown(kind) = kind
            && flags.contains(FrameFlags::CRITICAL)
        {
            return Err(ProtocolError::UnknownCritical { kind });
        }
        if let Some(limits) = kind.control_bytes()
            && !limits.contains(&len)
        {
            let (min, max) = limits.into_inner();
            return Err(ProtocolError::ControlLength { kind, len, min, max });
        }
        Ok(Self { len, kind, flags, fds })
    }

    /// The bytes of this header, with its check byte.
    ///
    /// Writes any header, also one that [`decode`](Self::decode) refuses.
    pub const fn encode(&self) -> [u8; HEADER_BYTES] {
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        let bytes = [l0, l1, l2, l3, self.kind.code(), self.flags.0, self.fds, 0];
        with_check(u64::from_le_bytes(bytes)).to_le_bytes()
    }
}

/// The header of a message without flags or descriptors, as the word whose little-endian bytes are
/// sent. Equal to [`FrameHeader::message`] encoded, and the only form that
/// [`Decoder::whole_message`](crate::Decoder::whole_message) accepts.
#[inline(always)]
pub const fn message_header(len: u32) -> u64 {
    with_check(len as u64 | MESSAGE_BITS)
}

/// Adds the check byte to a header word whose upper byte is zero.
///
/// A change of one bit in the lower 56 adds or subtracts the multiplier, shifted left by the bit's
/// place. The top byte of that difference is some eight adjacent bits of the multiplier, give or
/// take a carry. No eight adjacent bits of it from bit 1 on are all zeros or all ones, so the
/// check byte changes with every single bit; the test walks through all of them.
#[inline(always)]
const fn with_check(low: u64) -> u64 {
    low | ((low ^ CHECK_SEED).wrapping_mul(CHECK_MULTIPLIER) & CHECK_MASK)
}

const MESSAGE_BITS: u64 = (FrameKind::Message.code() as u64) << 32;
const CHECK_MASK: u64 = 0xFF << 56;
/// The letters RINGPOS, so that a header of zeros is refused.
const CHECK_SEED: u64 = 0x52_494E_4750_4F53;
/// 2^64 divided by the golden ratio, made odd.
const CHECK_MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{GOAWAY_BYTES, PING_BYTES_MAX};

    #[test]
    fn the_word_is_the_message_header() {
        for len in (0..=u32::BITS).flat_map(|bit| [(1 << bit) - 1_u64, 1 << bit]) {
            let Ok(len) = u32::try_from(len) else { continue };
            let header = FrameHeader::message(len);
            assert_eq!(message_header(len).to_le_bytes(), header.encode());
            assert_eq!(FrameHeader::decode(header.encode()), Ok(header));
        }
    }

    #[test]
    fn a_message_with_descriptors_is_no_plain_one() {
        for fds in 1..=u8::MAX {
            let header = FrameHeader::message_with_descriptors(64, fds);
            assert_ne!(header.encode(), message_header(64).to_le_bytes());
            assert_eq!(FrameHeader::decode(header.encode()), Ok(header));
        }
        assert_eq!(FrameHeader::message_with_descriptors(64, 0), FrameHeader::message(64));
    }

    #[test]
    fn every_combination_of_kind_flags_and_descriptors_reads_back_or_is_refused() {
        let mut valid = 0;
        for code in 0..=u8::MAX {
            let kind = FrameKind::from_code(code);
            let len = if kind == Some(FrameKind::GoAway) { GOAWAY_BYTES } else { 0 };
            for flags in 0..=u8::MAX {
                for fds in [0, 1, 0x80, u8::MAX] {
                    let header = FrameHeader {
                        len,
                        kind: kind.unwrap_or(FrameKind::Unknown(0)),
                        flags: FrameFlags(flags),
                        fds,
                    };
                    let expected = match kind {
                        None => Err(ProtocolError::ZeroKind),
                        Some(_) if flags > 7 => {
                            Err(ProtocolError::UnknownFlags { bits: flags & 0xF8 })
                        }
                        Some(FrameKind::Unknown(kind)) if flags >= 4 => {
                            Err(ProtocolError::UnknownCritical { kind })
                        }
                        Some(_) => Ok(header),
                    };
                    valid += u32::from(expected.is_ok());
                    assert_eq!(FrameHeader::decode(header.encode()), expected);
                }
            }
        }
        // Six known kinds with eight sets of flags, 249 unknown ones with four.
        assert_eq!(valid, 4 * (6 * 8 + 249 * 4));
    }

    #[test]
    fn no_single_bit_flip_of_a_header_goes_unnoticed() {
        for header in sample() {
            let word = u64::from_le_bytes(header.encode());
            for bit in 0..64 {
                let found = FrameHeader::decode((word ^ (1 << bit)).to_le_bytes());
                assert!(
                    matches!(found, Err(ProtocolError::HeaderCheck { .. })),
                    "{header:?}, bit {bit}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn most_double_bit_flips_are_noticed() {
        let (mut flips, mut missed) = (0, 0);
        for header in sample() {
            let word = u64::from_le_bytes(header.encode());
            for first in 0..64 {
                for second in first + 1..64 {
                    let spoiled = word ^ (1 << first) ^ (1 << second);
                    let found = FrameHeader::decode(spoiled.to_le_bytes());
                    flips += 1;
                    missed += u32::from(!matches!(found, Err(ProtocolError::HeaderCheck { .. })));
                }
            }
        }
        // A random byte would miss one in 256.
        assert!(missed * 128 < flips, "{missed} of {flips}");
    }

    #[test]
    fn repeated_bytes_are_no_header() {
        for byte in 0..=u8::MAX {
            assert!(FrameHeader::decode([byte; HEADER_BYTES]).is_err(), "{byte:#04x}");
        }
        let zeros = FrameHeader::decode([0; HEADER_BYTES]);
        assert_eq!(zeros, Err(ProtocolError::HeaderCheck { header: [0; 8], expected: 0xAB }));
        assert!(matches!(
            FrameHeader::decode(crate::MAGIC),
            Err(ProtocolError::HeaderCheck { .. })
        ));
    }

    #[test]
    fn control_frames_have_the_lengths_of_their_kind() {
        let decode = |kind, len| {
            let header = FrameHeader { kind, ..FrameHeader::message(len) };
            FrameHeader::decode(header.encode()).map(|_| ())
        };
        let refused =
            |kind, len, min, max| Err(ProtocolError::ControlLength { kind, len, min, max });
        assert_eq!(decode(FrameKind::Fin, 1), refused(FrameKind::Fin, 1, 0, 0));
        assert_eq!(decode(FrameKind::Ping, PING_BYTES_MAX), Ok(()));
        assert_eq!(decode(FrameKind::Ping, 65), refused(FrameKind::Ping, 65, 0, 64));
        assert_eq!(decode(FrameKind::Pong, 65), refused(FrameKind::Pong, 65, 0, 64));
        assert_eq!(decode(FrameKind::Reject, 1024), Ok(()));
        assert_eq!(decode(FrameKind::Reject, 1025), refused(FrameKind::Reject, 1025, 0, 1024));
        assert_eq!(decode(FrameKind::GoAway, 7), refused(FrameKind::GoAway, 7, 8, 8));
        assert_eq!(decode(FrameKind::GoAway, 8), Ok(()));
        assert_eq!(decode(FrameKind::GoAway, 9), refused(FrameKind::GoAway, 9, 8, 8));
        assert_eq!(decode(FrameKind::Unknown(7), u32::MAX), Ok(()));
    }

    /// Valid headers of every kind, with all bits of the length in use somewhere.
    fn sample() -> impl Iterator<Item = FrameHeader> {
        let messages = (0..32).map(|bit| FrameHeader::message(0x9E37_79B9_u32.rotate_left(bit)));
        let others = (2..=u8::MAX).filter_map(FrameKind::from_code).map(|kind| {
            let len = kind.control_bytes().map_or(0xFFFF, |limits| *limits.end());
            FrameHeader { kind, ..FrameHeader::message(len) }
        });
        messages.chain(others)
    }
}
