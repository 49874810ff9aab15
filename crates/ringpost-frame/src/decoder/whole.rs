//! Many whole messages in a row: one look at a header says all of the next if it is as the last one.

use core::fmt;

use super::Decoder;
use crate::header::HEADER_BYTES;
use crate::profile::Profile;

/// Cuts [whole messages](Decoder::whole_message) off the front of received bytes, one after another.
///
/// It remembers the header that it saw last: messages of one length, of which many streams consist, take a few
/// instructions each. What it finds does not depend on that. The decoder needs no word of what was taken, except
/// [`Decoder::advance_position`] where positions matter.
///
/// ```
/// use ringpost_frame::{Decoder, FrameHeader, Hello};
///
/// let hello = Hello::new(1 << 20, 1);
/// let decoder = Decoder::native(&hello.agree(&hello)?);
/// let one = FrameHeader::message(2).encode();
/// let stream = [&one[..], b"ab", &one[..], b"cd", &one[..], b"e"].concat();
/// let mut messages = decoder.whole_messages();
/// let (body, rest) = messages.split(&stream).expect("a whole message");
/// assert_eq!(body, b"ab");
/// let (body, rest) = messages.split(rest).expect("a whole message");
/// assert_eq!(body, b"cd");
/// assert_eq!(messages.split(rest), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct WholeMessages<'decoder> {
    decoder: Option<&'decoder Decoder>,
    /// The bits of a header that say everything of a message.
    mask: u64,
    /// What they were in the last one.
    known: u64,
    /// Bytes of that message with its header; more than any input has before there was one.
    known_frame_bytes: usize,
    header_bytes: usize,
}

impl WholeMessages<'_> {
    /// Of no decoder: it finds nothing.
    pub const fn none() -> Self {
        Self { decoder: None, mask: 0, known: 0, known_frame_bytes: usize::MAX, header_bytes: 0 }
    }

    /// The body of the whole message that `input` starts with, and what lies behind it.
    #[inline(always)]
    pub fn split<'input>(&mut self, input: &'input [u8]) -> Option<(&'input [u8], &'input [u8])> {
        if let Some(window) = input.first_chunk()
            && u64::from_le_bytes(*window) & self.mask == self.known
            && let Some((frame, rest)) = input.split_at_checked(self.known_frame_bytes)
            && let Some(body) = frame.get(self.header_bytes..)
        {
            return Some((body, rest));
        }
        // The end of a run is not worth another look.
        if input.is_empty() { None } else { self.split_other(input) }
    }

    /// A message that is not as the last one.
    #[inline]
    fn split_other<'input>(&mut self, input: &'input [u8]) -> Option<(&'input [u8], &'input [u8])> {
        let range = self.decoder?.whole_message(input)?;
        let (frame, rest) = input.split_at_checked(range.end)?;
        let body = frame.get(range.start..)?;
        if let Some(window) = input.first_chunk() {
            self.known = u64::from_le_bytes(*window) & self.mask;
            self.known_frame_bytes = range.end;
        }
        Some((body, rest))
    }
}

impl fmt::Debug for WholeMessages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WholeMessages").field("decoder", &self.decoder).finish_non_exhaustive()
    }
}

impl Decoder {
    /// [`whole_message`](Self::whole_message) for many messages in a row.
    #[inline]
    pub const fn whole_messages(&self) -> WholeMessages<'_> {
        let header_bytes = self.profile.header_bytes();
        let mask = match self.profile {
            // The check byte, too: a header that differs in any bit is another one.
            Profile::Native => u64::MAX,
            // The field lies in front, whatever the order of its bytes.
            Profile::LengthPrefixed(prefix) => prefix.len_max(),
            Profile::Bytes => 0,
        };
        WholeMessages {
            decoder: Some(self),
            mask,
            known: 0,
            known_frame_bytes: usize::MAX,
            header_bytes,
        }
    }
}

const _: () = assert!(HEADER_BYTES == size_of::<u64>(), "a header is one word");
