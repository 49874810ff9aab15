//! Frames that carry no message.

use core::fmt;

use crate::error::EncodeError;
use crate::header::{FrameHeader, HEADER_BYTES};
use crate::kind::{FrameFlags, FrameKind, GOAWAY_BYTES, PING_BYTES_MAX, REJECT_BYTES_MAX};

/// An encoded control frame, ready to be sent.
#[derive(Clone, Copy)]
pub struct ControlFrame {
    bytes: [u8; CAPACITY],
    len: usize,
}

impl ControlFrame {
    /// No more messages follow.
    pub fn fin() -> Self {
        Self::from_parts(FrameKind::Fin, &[])
    }

    /// Refuses the connection, for a reason that people read. A reason of more than
    /// [`REJECT_BYTES_MAX`] bytes is cut at the end of a character.
    pub fn reject(reason: &str) -> Self {
        // A character has at most four bytes, so one of these is a boundary.
        let kept = (0..4)
            .filter_map(|back| reason.get(..REJECT_BYTES_MAX as usize - back))
            .next()
            .unwrap_or(reason);
        Self::from_parts(FrameKind::Reject, kept.as_bytes())
    }

    /// The sender takes `messages_taken` messages of this connection, counted from its start, and
    /// none after them. `u64::MAX` says that it asks for an end and still takes what comes.
    pub fn go_away(messages_taken: u64) -> Self {
        Self::from_parts(FrameKind::GoAway, &messages_taken.to_le_bytes())
    }

    /// The whole frame, header first.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Copies a body that the callers have found to be of a length that `kind` has.
    fn from_parts(kind: FrameKind, body: &[u8]) -> Self {
        let mut frame = Self { bytes: [0; CAPACITY], len: HEADER_BYTES };
        let (header, rest) = frame.bytes.split_at_mut(HEADER_BYTES);
        let mut len = 0;
        for (slot, byte) in rest.iter_mut().zip(body) {
            *slot = *byte;
            len += 1;
        }
        frame.len += len as usize;
        header
            .copy_from_slice(&FrameHeader { len, kind, flags: FrameFlags::NONE, fds: 0 }.encode());
        frame
    }
}

/// Encodes a control frame.
///
/// # Errors
///
/// [`EncodeError::NotControl`] for messages and unknown kinds, [`EncodeError::ControlLength`] for a
/// body that is too long or too short for its kind.
pub fn control_frame(kind: FrameKind, body: &[u8]) -> Result<ControlFrame, EncodeError> {
    let limits = kind.control_bytes().ok_or(EncodeError::NotControl { kind })?;
    if u32::try_from(body.len()).is_ok_and(|len| limits.contains(&len)) {
        return Ok(ControlFrame::from_parts(kind, body));
    }
    let (min, max) = limits.into_inner();
    Err(EncodeError::ControlLength { kind, len: body.len(), min, max })
}

impl AsRef<[u8]> for ControlFrame {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for ControlFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControlFrame(\"{}\")", self.as_bytes().escape_ascii())
    }
}

impl PartialEq for ControlFrame {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for ControlFrame {}

const CAPACITY: usize = HEADER_BYTES + REJECT_BYTES_MAX as usize;
const _: () = assert!(PING_BYTES_MAX <= REJECT_BYTES_MAX && GOAWAY_BYTES <= REJECT_BYTES_MAX);
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_their_header_and_their_body() {
        let check = |frame: ControlFrame, kind, body: &[u8]| {
            let (header, rest) = frame.as_bytes().split_first_chunk().expect("a header");
            let header = FrameHeader::decode(*header).expect("a valid header");
            assert_eq!((header.kind, header.len as usize, rest), (kind, body.len(), body));
            assert_eq!(control_frame(kind, body), Ok(frame));
        };
        check(ControlFrame::fin(), FrameKind::Fin, b"");
        check(ControlFrame::reject("no"), FrameKind::Reject, b"no");
        check(ControlFrame::go_away(0x0102), FrameKind::GoAway, &[2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        for (character, kept) in [('a', 1024), ('é', 1024), ('€', 1023), ('🦀', 1024)] {
            for offset in 0..4 {
                let mut reason = "x".repeat(offset);
                reason.extend(core::iter::repeat_n(character, 1100));
                let frame = ControlFrame::reject(&reason);
                let body = &frame.as_bytes()[HEADER_BYTES..];
                let text = core::str::from_utf8(body).expect("whole characters");
                assert!(reason.starts_with(text));
                assert!(text.len() > 1024 - character.len_utf8());
                assert!(offset > 0 || text.len() == kept);
            }
        }
        assert_eq!(ControlFrame::reject("").as_bytes().len(), HEADER_BYTES);
    }

    #[test]
    fn what_is_no_control_frame_is_refused() {
        let refused = |kind, len: usize| control_frame(kind, &[0; 1025][..len]).err();
        for kind in [FrameKind::Message, FrameKind::Unknown(7)] {
            assert_eq!(refused(kind, 0), Some(EncodeError::NotControl { kind }));
        }
        let length = |kind, len, min, max| Some(EncodeError::ControlLength { kind, len, min, max });
        assert_eq!(refused(FrameKind::Fin, 1), length(FrameKind::Fin, 1, 0, 0));
        assert_eq!(refused(FrameKind::Ping, 65), length(FrameKind::Ping, 65, 0, 64));
        assert_eq!(refused(FrameKind::Ping, 64), None);
        assert_eq!(refused(FrameKind::Reject, 1025), length(FrameKind::Reject, 1025, 0, 1024));
        assert_eq!(refused(FrameKind::GoAway, 7), length(FrameKind::GoAway, 7, 8, 8));
    }
}
