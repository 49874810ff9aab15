//! Collects a greeting that arrives in pieces.

use crate::error::HelloError;
use crate::hello::{HELLO_BYTES, Hello, MAGIC, MAGIC_SWAPPED, magic_error};

/// Collects the peer's HELLO from received bytes, in pieces of any size.
///
/// A peer that speaks something else is found at its first wrong byte, not after 64 of them: it
/// may be waiting for an answer to a shorter request.
#[derive(Debug, Clone)]
pub struct HelloReader {
    bytes: [u8; HELLO_BYTES],
    filled: usize,
    outcome: Option<Result<Hello, HelloError>>,
}

impl HelloReader {
    /// A reader at the start of a stream.
    pub const fn new() -> Self {
        Self { bytes: [0; HELLO_BYTES], filled: 0, outcome: None }
    }

    /// Looks at the next received bytes. The caller drops the consumed front of them; what is left
    /// are frames.
    ///
    /// Once complete, a reader consumes nothing more and gives the same greeting again.
    ///
    /// # Errors
    ///
    /// Everything that [`Hello::decode`] refuses, and again on every later call.
    pub fn step(&mut self, input: &[u8]) -> Result<HelloStep, HelloError> {
        if let Some(outcome) = self.outcome {
            return outcome.map(|hello| HelloStep::Complete { hello, consumed: 0 });
        }
        let consumed = input.len().min(HELLO_BYTES - self.filled);
        for (slot, byte) in self.bytes.iter_mut().skip(self.filled).zip(input) {
            *slot = *byte;
        }
        self.filled += consumed;
        if self.filled == HELLO_BYTES {
            let outcome = Hello::decode(&self.bytes);
            self.outcome = Some(outcome);
            return outcome.map(|hello| HelloStep::Complete { hello, consumed });
        }
        if !self.may_become(MAGIC) && !self.may_become(MAGIC_SWAPPED) {
            let [m0, m1, m2, m3, m4, m5, m6, m7, ..] = self.bytes;
            let error = magic_error([m0, m1, m2, m3, m4, m5, m6, m7]);
            self.outcome = Some(Err(error));
            return Err(error);
        }
        Ok(HelloStep::NeedMore { consumed })
    }

    /// How many bytes of the greeting have arrived.
    pub const fn received_bytes(&self) -> usize {
        self.filled
    }

    fn may_become(&self, magic: [u8; 8]) -> bool {
        self.bytes.iter().zip(magic).take(self.filled).all(|(have, want)| *have == want)
    }
}

impl Default for HelloReader {
    fn default() -> Self {
        Self::new()
    }
}

/// What a [`HelloReader`] makes of its input.
///
/// Not `#[non_exhaustive]`: a caller that overlooks a step would hang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloStep {
    /// All input was used and the greeting is not complete.
    NeedMore {
        /// Bytes of the input that were used; all of it.
        consumed: usize,
    },
    /// The greeting is complete and valid.
    Complete {
        /// What the peer says.
        hello: Hello,
        /// Bytes of the input that belong to it.
        consumed: usize,
    },
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_collected_whatever_its_pieces() {
        let hello = Hello::new(4096, 7);
        let mut stream = [0xEE; HELLO_BYTES + 4];
        stream[..HELLO_BYTES].copy_from_slice(&hello.encode());
        for cut in 0..HELLO_BYTES {
            let (first, second) = stream.split_at(cut);
            let mut reader = HelloReader::new();
            assert_eq!(reader.step(first), Ok(HelloStep::NeedMore { consumed: cut }));
            assert_eq!(reader.received_bytes(), cut);
            let consumed = HELLO_BYTES - cut;
            assert_eq!(reader.step(second), Ok(HelloStep::Complete { hello, consumed }));
            let again = HelloStep::Complete { hello, consumed: 0 };
            assert_eq!(reader.step(&second[consumed..]), Ok(again));
        }
    }

    #[test]
    fn a_stranger_is_found_at_its_first_wrong_byte() {
        let refused = Err(HelloError::BadMagic { found: *b"SSH-2.0-" });
        let mut reader = HelloReader::new();
        assert_eq!(reader.step(b"SSH-2.0-client\r\n"), refused);
        assert_eq!(reader.step(b"more"), refused);

        let mut reader = HelloReader::new();
        let refused = Err(HelloError::BadMagic { found: *b"\xF5R!\0\0\0\0\0" });
        assert_eq!(reader.step(b"\xF5R"), Ok(HelloStep::NeedMore { consumed: 2 }));
        assert_eq!(reader.step(b"!"), refused);
    }

    #[test]
    fn a_big_endian_peer_is_not_taken_for_a_stranger_too_early() {
        let mut bytes = Hello::new(4096, 7).encode();
        bytes[..8].reverse();
        let mut reader = HelloReader::new();
        assert_eq!(reader.step(&bytes[..1]), Ok(HelloStep::NeedMore { consumed: 1 }));
        assert_eq!(reader.step(&bytes[1..]), Err(HelloError::ByteOrder));
    }
}
