//! The greeting, and what two greetings agree on.

use crate::error::HelloError;
use crate::features::Features;

/// The size of HELLO.
pub const HELLO_BYTES: usize = 64;
/// The first bytes of HELLO.
///
/// The first byte occurs in no UTF-8 text, so no text protocol starts like this. Read as a length
/// of 32 or 64 bits in either byte order, they announce a frame of more than a gigabyte, so no
/// length-prefixed stream starts like this by accident.
pub const MAGIC: [u8; 8] = *b"\xF5RNGPOST";
/// The lowest version of the format that this crate speaks.
pub const VERSION_MIN: u16 = 1;
/// The highest version of the format that this crate speaks.
pub const VERSION_MAX: u16 = 1;
/// The least that [`Hello::frame_bytes_max`] may be. Control frames always fit.
pub const FRAME_BYTES_MAX_FLOOR: u32 = 1024;
/// The value of [`Hello::abi`]: what later features place in memory shared with the peer is laid out
/// in little-endian order with 64-bit offsets.
pub const ABI: u16 = 1;

/// What one side says about itself, before anything else.
///
/// Both sides send it at once and neither waits for the other's. Start from [`Hello::new`] and set
/// what differs.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The lowest version of the format that the side speaks.
    pub version_min: u16,
    /// The highest version of the format that the side speaks.
    pub version_max: u16,
    /// Zero in version 1.
    pub flags: u32,
    /// Features without which the side does not talk; a subset of `supported`.
    pub required: Features,
    /// Features that the side can use.
    pub supported: Features,
    /// The longest frame body that the side takes.
    pub frame_bytes_max: u32,
    /// The most file descriptors that the side takes with one frame.
    pub fds_max: u16,
    /// Layout of memory shared by later features; [`ABI`].
    pub abi: u16,
    /// A number that tells this process's instance from others, for logs and reconnects.
    pub instance: u64,
}

impl Hello {
    /// The greeting of this crate's version without optional features. A `frame_bytes_max` below
    /// [`FRAME_BYTES_MAX_FLOOR`] is raised to it.
    pub fn new(frame_bytes_max: u32, instance: u64) -> Self {
        Self {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            flags: 0,
            required: Features::NONE,
            supported: Features::NONE,
            frame_bytes_max: frame_bytes_max.max(FRAME_BYTES_MAX_FLOOR),
            fds_max: 0,
            abi: ABI,
            instance,
        }
    }

    /// Reads a greeting.
    ///
    /// # Errors
    ///
    /// Refuses a wrong magic, reserved bytes that are not zero, and what
    /// [`validate`](Self::validate) refuses.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        let mut fields = Fields(bytes);
        let magic: [u8; 8] = fields.take();
        if magic != MAGIC {
            return Err(magic_error(magic));
        }
        let hello = Self {
            version_min: u16::from_le_bytes(fields.take()),
            version_max: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            required: Features(u64::from_le_bytes(fields.take())),
            supported: Features(u64::from_le_bytes(fields.take())),
            frame_bytes_max: u32::from_le_bytes(fields.take()),
            fds_max: u16::from_le_bytes(fields.take()),
            abi: u16::from_le_bytes(fields.take()),
            instance: u64::from_le_bytes(fields.take()),
        };
        let reserved: [u8; RESERVED_BYTES] = fields.take();
        first_not_zero(FLAGS_OFFSET, &hello.flags.to_le_bytes())?;
        first_not_zero(RESERVED_OFFSET, &reserved)?;
        hello.validate()?;
        Ok(hello)
    }

    /// Whether this greeting is one that may be sent.
    ///
    /// # Errors
    ///
    /// Refuses, in this order: flags that are not zero, an impossible version range, required
    /// features that are not supported, and a frame limit below the floor.
    pub fn validate(&self) -> Result<(), HelloError> {
        first_not_zero(FLAGS_OFFSET, &self.flags.to_le_bytes())?;
        if self.version_min == 0 || self.version_min > self.version_max {
            return Err(HelloError::VersionRange { min: self.version_min, max: self.version_max });
        }
        let unsupported = self.required - self.supported;
        if !unsupported.is_empty() {
            return Err(HelloError::RequiredUnsupported { bits: unsupported.0 });
        }
        if self.frame_bytes_max < FRAME_BYTES_MAX_FLOOR {
            return Err(HelloError::FrameLimitTooSmall {
                value: self.frame_bytes_max,
                floor: FRAME_BYTES_MAX_FLOOR,
            });
        }
        Ok(())
    }

    /// The bytes to send. They decode to an equal greeting if it is [valid](Self::validate).
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let fields: [&[u8]; 10] = [
            &MAGIC,
            &self.version_min.to_le_bytes(),
            &self.version_max.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.required.0.to_le_bytes(),
            &self.supported.0.to_le_bytes(),
            &self.frame_bytes_max.to_le_bytes(),
            &self.fds_max.to_le_bytes(),
            &self.abi.to_le_bytes(),
            &self.instance.to_le_bytes(),
        ];
        for (slot, byte) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *slot = *byte;
        }
        bytes
    }

    /// What both sides can do: the highest common version, the features that both support, and
    /// the smaller of the limits.
    ///
    /// Both sides come to the same result, or both to an error: `ours.agree(&theirs)` there is
    /// `theirs.agree(&ours)` here, except for [`Agreement::peer_instance`].
    ///
    /// # Errors
    ///
    /// Refuses, in this order: a greeting that is not [valid](Self::validate), version ranges
    /// without overlap, features that one side requires and the other lacks, and different layouts.
    pub fn agree(&self, peer: &Self) -> Result<Agreement, HelloError> {
        self.validate()?;
        peer.validate()?;
        let version = self.version_max.min(peer.version_max);
        if version < self.version_min.max(peer.version_min) {
            return Err(HelloError::NoCommonVersion {
                local_min: self.version_min,
                local_max: self.version_max,
                peer_min: peer.version_min,
                peer_max: peer.version_max,
            });
        }
        let features = self.supported & peer.supported;
        let missing = (self.required | peer.required) - features;
        if !missing.is_empty() {
            return Err(HelloError::MissingFeatures { bits: missing.0 });
        }
        if self.abi != peer.abi {
            return Err(HelloError::AbiMismatch { local: self.abi, peer: peer.abi });
        }
        let fds_max = if features.contains(Features::DESCRIPTORS) {
            self.fds_max.min(peer.fds_max)
        } else {
            0
        };
        Ok(Agreement {
            version,
            features,
            frame_bytes_max: self.frame_bytes_max.min(peer.frame_bytes_max),
            fds_max,
            peer_instance: peer.instance,
        })
    }
}

/// What both sides can do; see [`Hello::agree`].
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// The highest version that both speak.
    pub version: u16,
    /// The features that both support.
    pub features: Features,
    /// The longest frame body that both take.
    pub frame_bytes_max: u32,
    /// The most file descriptors with one frame; zero without [`Features::DESCRIPTORS`].
    pub fds_max: u16,
    /// The peer's [`Hello::instance`].
    pub peer_instance: u64,
}

/// Tells a byte-swapped ringpost from anything else.
pub(crate) fn magic_error(found: [u8; 8]) -> HelloError {
    if found == MAGIC_SWAPPED { HelloError::ByteOrder } else { HelloError::BadMagic { found } }
}

fn first_not_zero(offset: usize, bytes: &[u8]) -> Result<(), HelloError> {
    match bytes.iter().zip(offset..).find(|(value, _)| **value != 0) {
        Some((&value, offset)) => Err(HelloError::Reserved { offset, value }),
        None => Ok(()),
    }
}

/// The rest of a greeting that is being read. It never runs short: the sizes taken add up to
/// [`HELLO_BYTES`], which [`Hello::decode`]'s fields and the assertion below fix at compile time.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *field
    }
}

/// [`MAGIC`] with its bytes in reverse order.
pub(crate) const MAGIC_SWAPPED: [u8; 8] = u64::from_le_bytes(MAGIC).to_be_bytes();
const FLAGS_OFFSET: usize = 12;
const RESERVED_OFFSET: usize = 48;
const RESERVED_BYTES: usize = HELLO_BYTES - RESERVED_OFFSET;
const _: () = assert!(RESERVED_OFFSET == 8 + 2 + 2 + 4 + 8 + 8 + 4 + 2 + 2 + 8);
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_the_layout_is_where_the_specification_says() {
        let hello = Hello {
            version_min: 0x0102,
            version_max: 0x0304,
            flags: 0,
            required: Features(0x1112_1314_1516_1718),
            supported: Features(0x3132_3334_3536_3738),
            frame_bytes_max: 0x4142_4344,
            fds_max: 0x5152,
            abi: 0x6162,
            instance: 0x7172_7374_7576_7778,
        };
        let expected = b"\xF5RNGPOST\x02\x01\x04\x03\0\0\0\0\
            \x18\x17\x16\x15\x14\x13\x12\x11\x38\x37\x36\x35\x34\x33\x32\x31\
            \x44\x43\x42\x41\x52\x51\x62\x61\x78\x77\x76\x75\x74\x73\x72\x71\
            \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(hello.encode(), *expected);
        assert_eq!(Hello::decode(expected), Ok(hello));
    }

    #[test]
    fn bytes_that_must_be_zero_are_named() {
        let plain = Hello::new(4096, 7).encode();
        for offset in (12..16).chain(48..64) {
            let mut bytes = plain;
            bytes[offset] = 0x40;
            assert_eq!(Hello::decode(&bytes), Err(HelloError::Reserved { offset, value: 0x40 }),);
            // The first of several.
            bytes[63] = 0x40;
            assert_eq!(Hello::decode(&bytes), Err(HelloError::Reserved { offset, value: 0x40 }),);
        }
    }

    #[test]
    fn the_magic_is_no_text_and_no_small_length() {
        assert!(core::str::from_utf8(&MAGIC[..1]).is_err());
        let [a, b, c, d, ..] = MAGIC;
        for len in [u32::from_le_bytes([a, b, c, d]), u32::from_be_bytes([a, b, c, d])] {
            assert!(len > 1 << 30);
        }
        for len in [u64::from_le_bytes(MAGIC), u64::from_be_bytes(MAGIC)] {
            assert!(len > 1 << 60);
        }
    }

    #[test]
    fn a_big_endian_peer_is_told_from_a_stranger() {
        let mut bytes = Hello::new(4096, 7).encode();
        bytes[..8].reverse();
        assert_eq!(Hello::decode(&bytes), Err(HelloError::ByteOrder));
        assert_eq!(Hello::decode(&[0; 64]), Err(HelloError::BadMagic { found: [0; 8] }));
    }

    #[test]
    fn a_small_frame_limit_is_raised_when_made_and_refused_when_received() {
        assert_eq!(Hello::new(0, 0).frame_bytes_max, FRAME_BYTES_MAX_FLOOR);
        let mut hello = Hello::new(0, 0);
        hello.frame_bytes_max = 1023;
        let refused = HelloError::FrameLimitTooSmall { value: 1023, floor: 1024 };
        assert_eq!(Hello::decode(&hello.encode()), Err(refused));
        assert_eq!(hello.agree(&Hello::new(0, 0)), Err(refused));
        assert_eq!(Hello::new(0, 0).agree(&hello), Err(refused));
    }

    #[test]
    fn descriptors_count_only_where_both_support_them() {
        let mut ours = Hello::new(4096, 1);
        let mut theirs = Hello::new(4096, 2);
        ours.fds_max = 16;
        theirs.fds_max = 8;
        assert_eq!(ours.agree(&theirs).map(|agreement| agreement.fds_max), Ok(0));
        ours.supported = Features::DESCRIPTORS;
        assert_eq!(ours.agree(&theirs).map(|agreement| agreement.fds_max), Ok(0));
        theirs.supported = Features::DESCRIPTORS;
        assert_eq!(ours.agree(&theirs).map(|agreement| agreement.fds_max), Ok(8));
    }
}
