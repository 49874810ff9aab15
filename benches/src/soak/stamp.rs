//! What the soak's messages hold: a number, their length, a check of both, and bytes that follow from them.
//!
//! Each direction of each connection has a key of its own, so that a message that was lost, doubled, swapped,
//! torn, or delivered to somebody else is found, and where.

use anyhow::{Result, bail, ensure};

/// Bytes before the body: number (8), length (4), check (4), little-endian.
pub(crate) const HEAD_BYTES: usize = 16;

/// Writes and checks the messages of one direction of a connection, in order.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    key: u64,
    next: u64,
    expected: Vec<u8>,
}

impl Stamp {
    pub(crate) fn new(key: u64) -> Self {
        Self { key, next: 0, expected: Vec::new() }
    }

    /// Numbers from `first` on.
    pub(crate) fn starting_at(key: u64, first: u64) -> Self {
        Self { key, next: first, expected: Vec::new() }
    }

    /// The number of the next message: how many there were.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Writes the next message without going on to the one after it.
    pub(crate) fn fill(&self, bytes: &mut [u8]) {
        fill(self.key, self.next, bytes);
    }

    /// The message that was written has been accepted.
    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }

    /// Writes the next message into memory of its own, and goes on.
    pub(crate) fn make(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.max(HEAD_BYTES)];
        self.fill(&mut bytes);
        self.advance();
        bytes
    }

    /// Checks that this is the next message, of `len` bytes in whatever pieces, and goes on.
    pub(crate) fn check<'a>(
        &mut self,
        len: usize,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<()> {
        ensure!(len >= HEAD_BYTES, "message {} has only {len} bytes", self.next);
        self.expected.resize(len, 0);
        fill(self.key, self.next, &mut self.expected);
        let mut at = 0;
        for piece in pieces {
            if piece != &self.expected[at..at + piece.len()] {
                bail!("{}", self.complaint(at, piece));
            }
            at += piece.len();
        }
        self.next += 1;
        Ok(())
    }

    fn complaint(&self, at: usize, piece: &[u8]) -> String {
        let wrong =
            piece.iter().zip(&self.expected[at..]).position(|(found, wanted)| found != wanted);
        let byte = at + wrong.unwrap_or(0);
        let number = |bytes: &[u8]| bytes.first_chunk().map(|head| u64::from_le_bytes(*head));
        match number(piece).filter(|_| at == 0) {
            Some(found) if found != self.next => format!(
                "expected message {}, found what may be message {found}: lost, doubled or out of order",
                self.next
            ),
            _ => format!(
                "message {} of {} bytes differs from byte {byte} on",
                self.next,
                self.expected.len()
            ),
        }
    }
}

/// The number that a message says it has.
pub(crate) fn number_of(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|head| u64::from_le_bytes(*head))
}

fn fill(key: u64, number: u64, bytes: &mut [u8]) {
    let len = u32::try_from(bytes.len()).expect("a message below 4 GiB");
    let start = mix(key ^ mix(number) ^ u64::from(len));
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..HEAD_BYTES].copy_from_slice(&start.to_le_bytes()[..4]);
    pattern(start, 0, &mut bytes[HEAD_BYTES..]);
}

/// Bytes of an endless stream from `position` on.
pub(crate) fn pattern(key: u64, position: u64, bytes: &mut [u8]) {
    let mut word = position / 8;
    let skip = usize::try_from(position % 8).expect("below eight");
    let head = (8 - skip).min(8).min(bytes.len());
    let (first, rest) = bytes.split_at_mut(if skip == 0 { 0 } else { head });
    if !first.is_empty() {
        let end = skip + first.len();
        first.copy_from_slice(&word_of(key, word).to_le_bytes()[skip..end]);
        word += 1;
    }
    for chunk in rest.chunks_mut(8) {
        let len = chunk.len();
        chunk.copy_from_slice(&word_of(key, word).to_le_bytes()[..len]);
        word += 1;
    }
}

fn word_of(key: u64, index: u64) -> u64 {
    (key ^ index.wrapping_mul(0xD1B5_4A32_D192_ED03))
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .rotate_left(29)
}

/// Spreads every bit of `value` over the result.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(stamp: &mut Stamp, bytes: &[u8]) -> Result<()> {
        stamp.check(bytes.len(), std::iter::once(bytes))
    }

    #[test]
    fn what_is_written_is_accepted_in_order_only() -> Result<()> {
        let (mut writer, mut reader) = (Stamp::new(7), Stamp::new(7));
        let messages: Vec<_> = (0..4).map(|len| writer.make(len * 37)).collect();
        checked(&mut reader, &messages[0])?;
        let lost = checked(&mut reader, &messages[2]).expect_err("message 1 is missing");
        assert!(
            lost.to_string().contains("expected message 1, found what may be message 2"),
            "{lost}"
        );
        checked(&mut reader, &messages[1])?;
        assert!(checked(&mut reader, &messages[1]).is_err(), "doubled");
        let (first, rest) = messages[2].split_at(20);
        reader.check(messages[2].len(), [first, rest].into_iter())?;
        Ok(())
    }

    #[test]
    fn every_byte_counts() {
        let message = Stamp::new(7).make(100);
        for byte in 0..message.len() {
            let mut torn = message.clone();
            torn[byte] ^= 1;
            assert!(checked(&mut Stamp::new(7), &torn).is_err(), "byte {byte}");
        }
        assert!(checked(&mut Stamp::new(7), &message[..99]).is_err(), "cut");
        assert!(checked(&mut Stamp::new(8), &message).is_err(), "somebody else's");
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let mut whole = [0; 64];
        pattern(3, 0, &mut whole);
        for cut in 0..64 {
            let (mut left, mut right) = (vec![0; cut], vec![0; 64 - cut]);
            pattern(3, 0, &mut left);
            pattern(3, cut as u64, &mut right);
            assert_eq!([left, right].concat(), whole, "cut at {cut}");
        }
    }
}
