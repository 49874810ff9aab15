//! Finds the frames in received bytes.

use core::ops::Range;

use crate::error::ProtocolError;
use crate::header::{FrameHeader, HEADER_BYTES, message_header};
use crate::hello::Agreement;
use crate::packet::{packet_header, packet_message};
use crate::profile::{LengthPrefix, Profile};

mod rules;
mod whole;

use rules::{Phase, Rules};
pub use whole::WholeMessages;

/// Finds the frames in received bytes, without copying bodies.
///
/// The caller shows it the next contiguous piece of what was received, drops as much from the front
/// as it is told, and shows it the rest. It holds at most the eight bytes of an incomplete header.
///
/// | state | step | next state |
/// |---|---|---|
/// | between frames (at the start) | `Frame` | between frames |
/// | | `NeedMore`, input not empty | in a header |
/// | | `Begin` | in a body |
/// | in a header | `NeedMore` | in a header |
/// | | `Frame` | between frames |
/// | | `Begin` | in a body |
/// | in a body | `NeedMore`, input empty | in a body |
/// | | `Body`, not `last` | in a body |
/// | | `Body`, `last` | between frames |
///
/// An error, which only a header can have, leads to the poisoned state, which gives it for ever.
///
/// # Invariants
///
/// - `fast_bound` is zero unless the decoder is between frames and a plain message may come next;
///   then it is one more than the longest body allowed.
/// - `partial` is zero from `partial_len` on.
/// - `partial_len` is less than the header size of the profile.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// See the invariants. Folds state and limit into one comparison for the fast path.
    fast_bound: u64,
    profile: Profile,
    state: State,
    partial: [u8; HEADER_BYTES],
    partial_len: usize,
    rules: Rules,
    /// Stream offset of the frame that `state` is about.
    frame_start: u64,
    /// The header of the frame whose body is being read.
    begun: FrameHeader,
}

impl Decoder {
    /// A decoder for what follows the peer's HELLO. Offsets count from the first byte after it.
    pub fn native(agreement: &Agreement) -> Self {
        Self::new(Profile::Native, Rules::agreed(agreement))
    }

    /// A decoder for messages with nothing but their length in front.
    pub fn length_prefixed(prefix: LengthPrefix, frame_bytes_max: u32) -> Self {
        Self::new(Profile::LengthPrefixed(prefix), Rules::plain(frame_bytes_max))
    }

    /// A decoder that hands on whatever arrives.
    pub fn bytes() -> Self {
        Self::new(Profile::Bytes, Rules::plain(u32::MAX))
    }

    fn new(profile: Profile, rules: Rules) -> Self {
        let mut decoder = Self {
            fast_bound: 0,
            profile,
            state: State::Header,
            partial: [0; HEADER_BYTES],
            partial_len: 0,
            rules,
            frame_start: 0,
            begun: FrameHeader::message(0),
        };
        decoder.set_fast_bound();
        decoder
    }

    /// Looks at `input`, the next received bytes, and says what is there.
    ///
    /// The caller then drops the consumed front and calls again, with the rest or with more. Any
    /// piece may be empty. How the stream is cut changes the steps and never the frames.
    ///
    /// # Errors
    ///
    /// What the peer did that the format forbids. Found as soon as the header is complete, before
    /// any byte of that frame's body is consumed. Every later call gives the same error.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, ProtocolError> {
        let step = match (self.state, self.profile) {
            (State::Poisoned(error), _) => return Err(error),
            (State::Body { remaining, after }, _) => self.step_body(input, remaining, after),
            (State::Header, Profile::Bytes) => self.step_bytes(input),
            (State::Header, Profile::Native | Profile::LengthPrefixed(_)) => {
                match self.step_header(input) {
                    Ok(step) => step,
                    Err(error) => {
                        self.state = State::Poisoned(error);
                        self.fast_bound = 0;
                        return Err(error);
                    }
                }
            }
        };
        self.set_fast_bound();
        Ok(step)
    }

    /// Tells the decoder that the caller took `bytes` of the stream as
    /// [whole messages](Self::whole_message), so that [`position_bytes`](Self::position_bytes)
    /// stays right. One call for a batch is enough.
    #[inline]
    pub const fn advance_position(&mut self, bytes: u64) {
        self.frame_start = self.frame_start.saturating_add(bytes);
    }

    /// The fast path: where the body of the next message lies in `input`, if the decoder is between
    /// frames and `input` starts with a whole message without flags or descriptors.
    ///
    /// The message is taken by dropping `range.end` bytes from the front; the decoder needs no word
    /// of it, except [`advance_position`](Self::advance_position) where positions matter. On `None`
    /// call [`step`](Self::step), which also knows why.
    #[inline(always)]
    pub fn whole_message(&self, input: &[u8]) -> Option<Range<usize>> {
        if !matches!(self.profile, Profile::Native) {
            return self.whole_prefixed(input);
        }
        let (header, rest) = input.split_first_chunk()?;
        let word = u64::from_le_bytes(*header);
        let len = (word & 0xFFFF_FFFF) as u32;
        if word != message_header(len)
            || u64::from(len) >= self.fast_bound
            || (len as usize) > rest.len()
        {
            return None;
        }
        Some(HEADER_BYTES..HEADER_BYTES + len as usize)
    }

    /// Whether a packet holds exactly one frame, on sockets that carry packets: one frame each. What the
    /// frame is, and whether it may come now, is for [`step`](Self::step) to say.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::PacketLength`], or what is wrong with its header.
    pub fn check_packet(&self, packet: &[u8]) -> Result<(), ProtocolError> {
        match self.profile {
            Profile::Native if packet_message(packet).is_some() => Ok(()),
            Profile::Native => packet_header(packet).map(|_| ()),
            Profile::LengthPrefixed(prefix) => {
                let width = prefix.width.bytes();
                let frame_bytes = match packet.first_chunk() {
                    _ if packet.len() < width => width as u64,
                    Some(window) => prefix.read(*window).saturating_add(width as u64),
                    None => prefix.read(padded(packet)).saturating_add(width as u64),
                };
                if frame_bytes == packet.len() as u64 {
                    return Ok(());
                }
                Err(ProtocolError::PacketLength { packet_bytes: packet.len(), frame_bytes })
            }
            Profile::Bytes => Ok(()),
        }
    }

    /// Whether no part of a frame has been consumed: the end of the stream here cuts no frame in
    /// two. In the native profile that is a clean end only after FIN; see [`end`](Self::end).
    pub const fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header) && self.partial_len == 0
    }

    /// How many bytes of an incomplete header have been consumed; they end where the input begins.
    pub const fn header_bytes_kept(&self) -> usize {
        self.partial_len
    }

    /// What of a frame has been consumed without being complete, for whoever goes on with the stream
    /// elsewhere: another decoder that is shown these bytes again (and, in a body, what was consumed of
    /// it) is in the state of this one.
    pub fn unfinished(&self) -> Option<Unfinished<'_>> {
        match self.state {
            State::Body { remaining, .. } => {
                Some(Unfinished::Body { header: self.begun, remaining })
            }
            State::Header if self.partial_len > 0 => {
                Some(Unfinished::Header(self.partial.get(..self.partial_len)?))
            }
            State::Header | State::Poisoned(_) => None,
        }
    }

    /// Whether the peer has said that it sends no more messages.
    pub const fn is_finished(&self) -> bool {
        matches!(self.rules.phase, Phase::Finished)
    }

    /// What it means if the stream ends here.
    ///
    /// # Errors
    ///
    /// The error that poisoned the decoder.
    pub const fn end(&self) -> Result<StreamEnd, ProtocolError> {
        match self.state {
            State::Poisoned(error) => Err(error),
            State::Body { .. } => Ok(StreamEnd::Truncated),
            State::Header if self.partial_len > 0 => Ok(StreamEnd::Truncated),
            State::Header => match (self.profile, self.rules.phase) {
                (Profile::Native, Phase::Open) => Ok(StreamEnd::Aborted),
                (Profile::Native, Phase::Rejected) => Ok(StreamEnd::Rejected),
                _ => Ok(StreamEnd::Clean),
            },
        }
    }

    /// Stream offset of the current frame's first header byte: of the one that is being read, else
    /// of the next one, else of the one with the error.
    pub const fn position_bytes(&self) -> u64 {
        self.frame_start
    }

    /// The longest body this decoder lets pass.
    pub const fn frame_bytes_max(&self) -> u32 {
        self.rules.frame_bytes_max
    }

    /// The framing this decoder reads.
    pub const fn profile(&self) -> Profile {
        self.profile
    }

    #[inline]
    fn whole_prefixed(&self, input: &[u8]) -> Option<Range<usize>> {
        let Profile::LengthPrefixed(prefix) = self.profile else {
            return None;
        };
        let width = prefix.width.bytes();
        let rest_bytes = input.len().checked_sub(width)?;
        let len = match input.first_chunk() {
            Some(window) => prefix.read(*window),
            None => prefix.read(padded(input)),
        };
        if len >= self.fast_bound {
            return None;
        }
        let len = usize::try_from(len).ok().filter(|len| *len <= rest_bytes)?;
        Some(width..width + len)
    }

    fn step_bytes(&mut self, input: &[u8]) -> Step {
        if input.is_empty() {
            return Step::NeedMore { consumed: 0 };
        }
        let len = u32::try_from(input.len()).unwrap_or(u32::MAX);
        self.advance_position(u64::from(len));
        Step::Frame { header: FrameHeader::message(len), body: 0..len as usize }
    }

    fn step_body(&mut self, input: &[u8], remaining: u32, after: u64) -> Step {
        if input.is_empty() {
            return Step::NeedMore { consumed: 0 };
        }
        let taken = u32::try_from(input.len()).map_or(remaining, |len| len.min(remaining));
        let remaining = remaining - taken;
        if remaining == 0 {
            self.state = State::Header;
            self.frame_start = after;
        } else {
            self.state = State::Body { remaining, after };
        }
        Step::Body { consumed: taken as usize, last: remaining == 0 }
    }

    fn step_header(&mut self, input: &[u8]) -> Result<Step, ProtocolError> {
        let header_bytes = self.profile.header_bytes();
        let (bytes, consumed) = match input.first_chunk() {
            Some(window) if self.partial_len == 0 => (*window, header_bytes),
            _ => {
                let consumed = input.len().min(header_bytes - self.partial_len);
                let target = self.partial.iter_mut().skip(self.partial_len);
                target.zip(input.iter().take(consumed)).for_each(|(slot, byte)| *slot = *byte);
                self.partial_len += consumed;
                if self.partial_len < header_bytes {
                    return Ok(Step::NeedMore { consumed });
                }
                self.partial_len = 0;
                (core::mem::take(&mut self.partial), consumed)
            }
        };
        let header = match self.profile {
            Profile::LengthPrefixed(prefix) => self.rules.admit_len(prefix.read(bytes))?,
            _ => self.rules.admit(FrameHeader::decode(bytes)?)?,
        };
        let frame_bytes = header_bytes as u64 + u64::from(header.len);
        let after = self.frame_start.saturating_add(frame_bytes);
        let body_bytes = header.len as usize;
        if body_bytes <= input.len() - consumed {
            self.frame_start = after;
            return Ok(Step::Frame { header, body: consumed..consumed + body_bytes });
        }
        self.begun = header;
        self.state = State::Body { remaining: header.len, after };
        Ok(Step::Begin { header, consumed })
    }

    /// Keeps the invariant of `fast_bound`.
    fn set_fast_bound(&mut self) {
        let plain_may_come = self.is_between_frames()
            && matches!(self.rules.phase, Phase::Open)
            && !self.rules.in_fragments
            && !matches!(self.profile, Profile::Bytes);
        self.fast_bound =
            if plain_may_come { u64::from(self.rules.frame_bytes_max) + 1 } else { 0 };
    }
}

/// What a [`Decoder`] finds at the front of its input.
///
/// Not `#[non_exhaustive]`: a caller that overlooks a step would lose bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing is complete, and all of the input was used.
    NeedMore {
        /// Bytes of the input that were used: all of it. At most eight of a header are kept inside.
        consumed: usize,
    },
    /// A whole body lies in the input; its header may have begun in earlier input.
    Frame {
        /// What stands in front of the body.
        header: FrameHeader,
        /// Where the body lies in the input. `body.end` bytes are consumed.
        body: Range<usize>,
    },
    /// A header is complete and its body goes beyond the input. [`Step::Body`] follows.
    Begin {
        /// What stands in front of the body.
        header: FrameHeader,
        /// Bytes of the input that belong to the header; the body starts behind them.
        consumed: usize,
    },
    /// The front of the input is body of the frame begun.
    Body {
        /// How many bytes of it.
        consumed: usize,
        /// Whether the frame is complete with them.
        last: bool,
    },
}

impl Step {
    /// How many bytes the caller drops from the front of the input.
    pub const fn consumed(&self) -> usize {
        match self {
            Self::Frame { body, .. } => body.end,
            Self::NeedMore { consumed }
            | Self::Begin { consumed, .. }
            | Self::Body { consumed, .. } => *consumed,
        }
    }
}

/// The consumed part of an incomplete frame; see [`Decoder::unfinished`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfinished<'a> {
    /// The first bytes of a header.
    Header(&'a [u8]),
    /// A header, and a part of the body behind it.
    Body {
        /// What stands in front of the body.
        header: FrameHeader,
        /// Bytes of the body that have not been consumed.
        remaining: u32,
    },
}

/// What the end of a stream means; see [`Decoder::end`].
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// The peer said all it had to say. Native: after FIN. Plain profiles: between messages.
    Clean,
    /// Native only: between frames, without FIN. The peer died or gave up; messages may be missing.
    Aborted,
    /// Native only: after REJECT.
    Rejected,
    /// Within a frame. The part that came is worth nothing.
    Truncated,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Between frames, or in a header of which `partial_len` bytes are in `partial`.
    Header,
    /// In a body with `remaining` bytes to come, more than zero; the next frame starts at `after`.
    Body {
        remaining: u32,
        after: u64,
    },
    Poisoned(ProtocolError),
}

/// The first bytes of a short input, in a window that is zero behind them.
fn padded(input: &[u8]) -> [u8; HEADER_BYTES] {
    let mut window = [0; HEADER_BYTES];
    for (slot, byte) in window.iter_mut().zip(input) {
        *slot = *byte;
    }
    window
}
#[cfg(test)]
mod tests;
