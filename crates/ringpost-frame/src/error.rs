//! What can be wrong with a greeting, a stream or a header to be written.
//!
//! All errors are small and `Copy`: a poisoned decoder hands out the same one again and again.

use core::error::Error;
use core::fmt;

use crate::features::Features;
use crate::hello::HELLO_BYTES;
use crate::kind::FrameKind;

/// Why two sides cannot talk, found in HELLO.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloError {
    /// The peer speaks something else.
    BadMagic {
        /// The first bytes it sent; zero where nothing has arrived yet.
        found: [u8; 8],
    },
    /// The magic arrived byte-swapped: the peer writes big-endian.
    ByteOrder,
    /// A flag or reserved byte that must be zero is not.
    Reserved {
        /// Offset of the first such byte in HELLO.
        offset: usize,
        /// Its value.
        value: u8,
    },
    /// The version range is empty or starts at zero.
    VersionRange {
        /// Lowest version stated.
        min: u16,
        /// Highest version stated.
        max: u16,
    },
    /// A HELLO requires features that it does not itself support.
    RequiredUnsupported {
        /// The features in question, as bits of [`Features`].
        bits: u64,
    },
    /// A greeting in a packet that holds more or less than that.
    PacketLength {
        /// The length of the packet.
        bytes: usize,
    },
    /// A frame limit below the smallest that the format allows.
    FrameLimitTooSmall {
        /// The limit stated.
        value: u32,
        /// The smallest allowed.
        floor: u32,
    },
    /// The version ranges have nothing in common.
    NoCommonVersion {
        /// Our lowest version.
        local_min: u16,
        /// Our highest version.
        local_max: u16,
        /// The peer's lowest version.
        peer_min: u16,
        /// The peer's highest version.
        peer_max: u16,
    },
    /// One side requires what the other does not support.
    MissingFeatures {
        /// The missing features, as bits of [`Features`].
        bits: u64,
    },
    /// The sides use different layouts for what later features place outside frames.
    AbiMismatch {
        /// Our layout.
        local: u16,
        /// The peer's layout.
        peer: u16,
    },
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadMagic { found } => {
                write!(
                    f,
                    "the peer does not speak ringpost: it began with \"{}\"",
                    found.escape_ascii()
                )
            }
            Self::ByteOrder => f.write_str("the peer sent its HELLO in big-endian byte order"),
            Self::Reserved { offset, value } => {
                write!(f, "HELLO byte {offset} must be zero and is {value:#04x}")
            }
            Self::VersionRange { min, max } => {
                write!(f, "HELLO states the impossible version range {min} to {max}")
            }
            Self::RequiredUnsupported { bits } => {
                write!(f, "HELLO requires features that it does not support: {}", Features(bits))
            }
            Self::PacketLength { bytes } => {
                write!(f, "HELLO came in a packet of {bytes} bytes, it must have {HELLO_BYTES}")
            }
            Self::FrameLimitTooSmall { value, floor } => {
                write!(f, "HELLO limits frames to {value} bytes, the least allowed is {floor}")
            }
            Self::NoCommonVersion { local_min, local_max, peer_min, peer_max } => write!(
                f,
                "no common version: we speak {local_min} to {local_max}, \
                 the peer speaks {peer_min} to {peer_max}"
            ),
            Self::MissingFeatures { bits } => {
                write!(f, "one side requires features that the other lacks: {}", Features(bits))
            }
            Self::AbiMismatch { local, peer } => {
                write!(f, "memory layouts differ: ours is {local}, the peer's is {peer}")
            }
        }
    }
}

impl Error for HelloError {}

/// What a peer did that the format forbids. The connection cannot go on after it.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// The check byte does not match: these bytes are no frame header.
    HeaderCheck {
        /// The eight bytes found where a header should be.
        header: [u8; 8],
        /// The check byte they should end with.
        expected: u8,
    },
    /// The kind is zero, which no frame has.
    ZeroKind,
    /// A flag that this version does not know.
    UnknownFlags {
        /// The unknown bits.
        bits: u8,
    },
    /// A kind that this version does not know, marked as not to be skipped.
    UnknownCritical {
        /// The code of the kind.
        kind: u8,
    },
    /// A control frame with a body length that its kind does not have.
    ControlLength {
        /// The kind of the frame.
        kind: FrameKind,
        /// The length stated in the header.
        len: u32,
        /// The least it may be.
        min: u32,
        /// The most it may be.
        max: u32,
    },
    /// A flag whose feature was not agreed, or that this kind of frame never has.
    FlagsNotAllowed {
        /// The kind of the frame.
        kind: FrameKind,
        /// The bits that may not be set.
        bits: u8,
    },
    /// More file descriptors announced than were agreed.
    DescriptorsNotAllowed {
        /// The number stated in the header.
        count: u8,
        /// The most allowed; zero if descriptors were not agreed.
        limit: u16,
    },
    /// A frame came with another number of file descriptors than its header announces.
    DescriptorCount {
        /// The number stated in the header.
        declared: u8,
        /// The number that came; zero if none did.
        received: u16,
    },
    /// File descriptors came with bytes that are not the start of a frame that announces some.
    DescriptorsUndeclared {
        /// How many.
        count: u16,
    },
    /// A frame longer than the limit.
    FrameTooLarge {
        /// The length stated in the header.
        len: u64,
        /// The most allowed.
        limit: u32,
    },
    /// A packet that does not hold exactly one frame.
    PacketLength {
        /// The length of the packet.
        packet_bytes: usize,
        /// The length of the frame that it starts with; of a header, if it has not even that.
        frame_bytes: u64,
    },
    /// A message or a second FIN after FIN.
    AfterFin {
        /// The kind of the frame.
        kind: FrameKind,
    },
    /// A frame after REJECT, which is always the last.
    AfterReject {
        /// The kind of the frame.
        kind: FrameKind,
    },
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::HeaderCheck { header, expected } => write!(
                f,
                "no frame header: {:#018x} does not end with the check byte {expected:#04x}",
                u64::from_be_bytes(header)
            ),
            Self::ZeroKind => f.write_str("a frame header states the kind 0, which no frame has"),
            Self::UnknownFlags { bits } => {
                write!(f, "a frame header has unknown flags {bits:#04x}")
            }
            Self::UnknownCritical { kind } => {
                write!(f, "a frame of the unknown kind {kind:#04x} may not be skipped")
            }
            Self::ControlLength { kind, len, min, max } if min == max => {
                write!(f, "a {kind} frame has {len} bytes, it must have {min}")
            }
            Self::ControlLength { kind, len, max, .. } => {
                write!(f, "a {kind} frame has {len} bytes, the limit is {max}")
            }
            Self::FlagsNotAllowed { kind, bits } => {
                write!(f, "a {kind} frame has flags {bits:#04x} that were not agreed for it")
            }
            Self::DescriptorsNotAllowed { count, limit } => {
                write!(f, "a frame announces {count} file descriptors, the limit is {limit}")
            }
            Self::DescriptorCount { declared, received } => {
                write!(f, "a frame announces {declared} file descriptors, {received} came with it")
            }
            Self::DescriptorsUndeclared { count } => {
                write!(f, "{count} file descriptors came that no frame announces")
            }
            Self::FrameTooLarge { len, limit } => {
                write!(f, "a frame has {len} bytes, the limit is {limit}")
            }
            Self::PacketLength { packet_bytes, frame_bytes } => write!(
                f,
                "a packet of {packet_bytes} bytes does not hold exactly one frame, which has \
                 {frame_bytes} bytes"
            ),
            Self::AfterFin { kind } => write!(f, "a {kind} frame came after FIN"),
            Self::AfterReject { kind } => write!(f, "a {kind} frame came after REJECT"),
        }
    }
}

impl Error for ProtocolError {}

/// Why a frame cannot be written.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodeError {
    /// The length field of the profile cannot hold this length.
    TooLong {
        /// The length of the body.
        len: usize,
        /// The most the length field holds.
        limit: u64,
    },
    /// The output is too short for the header.
    OutputTooShort {
        /// The bytes needed.
        needed: usize,
        /// The bytes there are.
        available: usize,
    },
    /// The kind is no control frame of this version.
    NotControl {
        /// The kind asked for.
        kind: FrameKind,
    },
    /// The body has a length that control frames of this kind do not have.
    ControlLength {
        /// The kind asked for.
        kind: FrameKind,
        /// The length of the body.
        len: usize,
        /// The least it may be.
        min: u32,
        /// The most it may be.
        max: u32,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooLong { len, limit } => {
                write!(f, "{len} bytes do not fit a frame whose length field ends at {limit}")
            }
            Self::OutputTooShort { needed, available } => {
                write!(f, "the header takes {needed} bytes, the output has {available}")
            }
            Self::NotControl { kind } => write!(f, "{kind} is no control frame"),
            Self::ControlLength { kind, len, min, max } => {
                write!(f, "a {kind} frame takes {min} to {max} bytes, not {len}")
            }
        }
    }
}

impl Error for EncodeError {}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn messages_name_the_value_and_the_limit() {
        let check = |error: &dyn Error, text: &str| assert_eq!(error.to_string(), text);
        check(
            &HelloError::FrameLimitTooSmall { value: 512, floor: 1024 },
            "HELLO limits frames to 512 bytes, the least allowed is 1024",
        );
        check(
            &HelloError::NoCommonVersion { local_min: 1, local_max: 2, peer_min: 4, peer_max: 7 },
            "no common version: we speak 1 to 2, the peer speaks 4 to 7",
        );
        check(
            &HelloError::BadMagic { found: *b"GET / HT" },
            "the peer does not speak ringpost: it began with \"GET / HT\"",
        );
        check(
            &HelloError::MissingFeatures { bits: 0b101 },
            "one side requires features that the other lacks: FRAGMENTS|DESCRIPTORS",
        );
        check(
            &ProtocolError::HeaderCheck { header: [0, 1, 2, 3, 4, 5, 6, 7], expected: 8 },
            "no frame header: 0x0001020304050607 does not end with the check byte 0x08",
        );
        check(
            &ProtocolError::FrameTooLarge { len: u64::MAX, limit: 4096 },
            "a frame has 18446744073709551615 bytes, the limit is 4096",
        );
        check(
            &ProtocolError::ControlLength { kind: FrameKind::GoAway, len: 9, min: 8, max: 8 },
            "a GOAWAY frame has 9 bytes, it must have 8",
        );
        check(
            &ProtocolError::ControlLength { kind: FrameKind::Ping, len: 65, min: 0, max: 64 },
            "a PING frame has 65 bytes, the limit is 64",
        );
        check(
            &ProtocolError::DescriptorCount { declared: 3, received: 2 },
            "a frame announces 3 file descriptors, 2 came with it",
        );
        check(
            &ProtocolError::DescriptorsUndeclared { count: 253 },
            "253 file descriptors came that no frame announces",
        );
        check(
            &ProtocolError::PacketLength { packet_bytes: 10, frame_bytes: 72 },
            "a packet of 10 bytes does not hold exactly one frame, which has 72 bytes",
        );
        check(&ProtocolError::AfterFin { kind: FrameKind::Message }, "a MSG frame came after FIN");
        check(
            &EncodeError::TooLong { len: 65_536, limit: 65_535 },
            "65536 bytes do not fit a frame whose length field ends at 65535",
        );
    }
}
