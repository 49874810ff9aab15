//! What a frame is for, and the flags on it.

use core::fmt;
use core::ops::{BitAnd, BitOr, RangeInclusive};

/// The most bytes a PING or PONG carries.
pub const PING_BYTES_MAX: u32 = 64;
/// The most bytes of reason a REJECT carries.
pub const REJECT_BYTES_MAX: u32 = 1024;
/// The bytes a GOAWAY carries, always.
pub const GOAWAY_BYTES: u32 = 8;

/// What a frame is for.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// A message of the application; code 1.
    Message,
    /// The sender has no more messages; code 2. End of stream without it is an abort.
    Fin,
    /// The sender refuses the connection or what came over it, with a reason; code 3. Its last frame.
    Reject,
    /// Asks for a [`Pong`](Self::Pong) with the same body; code 4.
    Ping,
    /// Answers a [`Ping`](Self::Ping); code 5.
    Pong,
    /// The sender will take no more messages after a stated number; code 6.
    GoAway,
    /// A code that this version has no name for. Never 0..=6 when it comes from a decoder.
    Unknown(u8),
}

impl FrameKind {
    /// The kind with this code, or `None` for 0, which is no kind.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::Message),
            2 => Some(Self::Fin),
            3 => Some(Self::Reject),
            4 => Some(Self::Ping),
            5 => Some(Self::Pong),
            6 => Some(Self::GoAway),
            other => Some(Self::Unknown(other)),
        }
    }

    /// The byte that stands for this kind in a header.
    pub const fn code(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Fin => 2,
            Self::Reject => 3,
            Self::Ping => 4,
            Self::Pong => 5,
            Self::GoAway => 6,
            Self::Unknown(code) => code,
        }
    }

    /// The body lengths that a control frame of this kind may have; `None` where only the agreed
    /// frame limit counts.
    pub const fn control_bytes(self) -> Option<RangeInclusive<u32>> {
        match self {
            Self::Fin => Some(0..=0),
            Self::Reject => Some(0..=REJECT_BYTES_MAX),
            Self::Ping | Self::Pong => Some(0..=PING_BYTES_MAX),
            Self::GoAway => Some(GOAWAY_BYTES..=GOAWAY_BYTES),
            Self::Message | Self::Unknown(_) => None,
        }
    }
}

/// Prints the name the specification uses.
impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message => f.write_str("MSG"),
            Self::Fin => f.write_str("FIN"),
            Self::Reject => f.write_str("REJECT"),
            Self::Ping => f.write_str("PING"),
            Self::Pong => f.write_str("PONG"),
            Self::GoAway => f.write_str("GOAWAY"),
            Self::Unknown(code) => write!(f, "kind {code:#04x}"),
        }
    }
}

/// The flag bits of a frame header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FrameFlags(pub u8);

impl FrameFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Another fragment of the same message follows; needs
    /// [`Features::FRAGMENTS`](crate::Features::FRAGMENTS).
    pub const MORE: Self = Self(1 << 0);
    /// The body starts with an extension block; needs
    /// [`Features::EXTENSIONS`](crate::Features::EXTENSIONS).
    pub const EXT: Self = Self(1 << 1);
    /// A receiver that does not know the kind must end the connection; without it, it skips the frame.
    pub const CRITICAL: Self = Self(1 << 2);
    /// Every flag that this version knows.
    pub const KNOWN: Self = Self(Self::MORE.0 | Self::EXT.0 | Self::CRITICAL.0);

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitAnd for FrameFlags {
    type Output = Self;

    /// The flags that are in both sets.
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for FrameFlags {
    type Output = Self;

    /// The flags that are in either set.
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_but_zero_is_a_kind_with_that_code() {
        assert_eq!(FrameKind::from_code(0), None);
        for code in 1..=u8::MAX {
            let kind = FrameKind::from_code(code).expect("only 0 is no kind");
            assert_eq!(kind.code(), code);
            assert_eq!(matches!(kind, FrameKind::Unknown(_)), code > 6);
        }
    }

    #[test]
    fn control_frames_fit_the_smallest_frame_limit() {
        for code in 1..=u8::MAX {
            let limits = FrameKind::from_code(code).and_then(FrameKind::control_bytes);
            assert_eq!(limits.is_some(), (2..=6).contains(&code));
            assert!(limits.is_none_or(|limits| *limits.end() <= crate::FRAME_BYTES_MAX_FLOOR));
        }
    }
}
