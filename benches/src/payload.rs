//! What messages hold, and the check that every receiver makes of every byte.
//!
//! A payload is eight bytes of head, little-endian, followed by bytes of a fixed template. The head
//! is the message's number on its connection, shifted left by one; the lowest bit asks the receiver
//! to send the message back. In request/reply scenarios every message asks for that, in one-way
//! scenarios only the last one of a phase does, so that one server serves them all.
//!
//! All contenders share this module. A check of 64 bytes costs about 1.5 ns of CPU time on the
//! reference machine, see the test `check_is_cheap`.

use std::sync::Arc;

use anyhow::{Error, Result, anyhow, ensure};

/// The bytes that messages of one length consist of.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: Box<[u8]>,
}

impl Template {
    pub(crate) fn new(length: usize) -> Arc<Self> {
        assert!(length >= HEAD_BYTES, "a payload has room for its head");
        // Any full-period generator does: the bytes have to differ from their neighbours.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state.to_be_bytes()[0]
        };
        Arc::new(Self { bytes: (0..length).map(|_| next()).collect() })
    }

    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the whole message.
    #[inline]
    pub(crate) fn fill(&self, number: u64, reply_wanted: bool, payload: &mut [u8]) {
        payload.copy_from_slice(&self.bytes);
        stamp(number, reply_wanted, payload);
    }

    /// Checks the whole message; says whether a reply is wanted.
    #[inline]
    fn check(&self, number: u64, payload: &[u8]) -> Result<bool> {
        if let Some((head, rest)) = payload.split_first_chunk::<HEAD_BYTES>() {
            let head = u64::from_le_bytes(*head);
            if head >> 1 == number && same(rest, &self.bytes[HEAD_BYTES..]) {
                return Ok(head & 1 == 1);
            }
        }
        Err(self.complaint(number, payload))
    }

    /// What is wrong with a message that did not pass the check.
    #[cold]
    fn complaint(&self, number: u64, payload: &[u8]) -> Error {
        if payload.len() != self.length() {
            return anyhow!("message {number} has {} bytes", payload.len());
        }
        let found = payload.first_chunk().map_or(0, |head| u64::from_le_bytes(*head) >> 1);
        if found != number {
            return anyhow!("message {found} arrived instead of {number}");
        }
        anyhow!("message {number} is corrupt")
    }
}

/// Numbers a message that already holds the template, which is what a sender of large messages from
/// a buffer that it uses again has to do for each.
pub(crate) fn stamp(number: u64, reply_wanted: bool, payload: &mut [u8]) {
    let head = number << 1 | u64::from(reply_wanted);
    payload[..HEAD_BYTES].copy_from_slice(&head.to_le_bytes());
}

/// Checks the messages of one connection, in order and without a gap.
#[derive(Debug)]
pub(crate) struct Inspector {
    template: Arc<Template>,
    expected: u64,
}

impl Inspector {
    pub(crate) fn new(template: Arc<Template>) -> Self {
        Self { template, expected: 0 }
    }

    /// Checks the next message of the connection; says whether it has to be sent back.
    #[inline]
    pub(crate) fn inspect(&mut self, payload: &[u8]) -> Result<bool> {
        let reply_wanted = self.template.check(self.expected, payload)?;
        self.expected += 1;
        Ok(reply_wanted)
    }

    /// The same for a message that lies in several pieces.
    pub(crate) fn inspect_pieces<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<bool> {
        let mut head = [0; HEAD_BYTES];
        let mut offset = 0;
        for mut piece in pieces {
            if offset < HEAD_BYTES {
                let (front, rest) = piece.split_at(piece.len().min(HEAD_BYTES - offset));
                head[offset..offset + front.len()].copy_from_slice(front);
                offset += front.len();
                piece = rest;
            }
            let expected = self.template.bytes.get(offset..offset + piece.len());
            ensure!(piece.is_empty() || expected == Some(piece), "a message in pieces is corrupt");
            offset += piece.len();
        }
        ensure!(offset == self.template.length(), "a message in pieces has {offset} bytes");
        let head = u64::from_le_bytes(head);
        ensure!(head >> 1 == self.expected, "message {} arrived out of order", head >> 1);
        self.expected += 1;
        Ok(head & 1 == 1)
    }
}

#[inline]
fn same(left: &[u8], right: &[u8]) -> bool {
    // With the length known to the compiler this is a few vector instructions; a call of the
    // library's comparison, which equality of the two arrays would become, costs twice as much.
    let small = (<&[u8; SMALL_REST]>::try_from(left), <&[u8; SMALL_REST]>::try_from(right));
    let (Ok(left), Ok(right)) = small else { return left == right };
    let words = left.as_chunks::<8>().0.iter().zip(right.as_chunks::<8>().0);
    let different = words.fold(0, |different, (left, right)| {
        different | (u64::from_ne_bytes(*left) ^ u64::from_ne_bytes(*right))
    });
    different == 0
}

const HEAD_BYTES: usize = 8;
const SMALL_REST: usize = 64 - HEAD_BYTES;

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;
    use crate::sys::ProcessClock;

    #[test]
    fn good_messages_pass_in_order() -> Result<()> {
        for length in [8, 9, 64, 65_536] {
            let template = Template::new(length);
            let mut inspector = Inspector::new(Arc::clone(&template));
            let mut payload = vec![0; length];
            for number in 0..20 {
                let reply_wanted = number % 3 == 0;
                template.fill(number, reply_wanted, &mut payload);
                assert_eq!(inspector.inspect(&payload)?, reply_wanted);
            }
        }
        Ok(())
    }

    #[test]
    fn every_flipped_bit_is_caught() {
        let template = Template::new(64);
        let mut payload = vec![0; 64];
        for bit in 0..64 * 8 {
            template.fill(7, false, &mut payload);
            payload[bit / 8] ^= 1 << (bit % 8);
            let answer = template.check(7, &payload);
            // The lowest bit is the only one with another meaning: it asks for a reply.
            assert!(if bit == 0 { matches!(answer, Ok(true)) } else { answer.is_err() }, "{bit}");
        }
    }

    #[test]
    fn pieces_are_checked_like_a_whole() -> Result<()> {
        let template = Template::new(64);
        let mut payload = vec![0; 64];
        template.fill(0, true, &mut payload);
        for cut in 0..=64 {
            let (front, rest) = payload.split_at(cut);
            let mut inspector = Inspector::new(Arc::clone(&template));
            assert!(inspector.inspect_pieces([front, rest].into_iter())?);
            assert!(inspector.inspect_pieces([front, rest].into_iter()).is_err());
        }
        for bit in 1..64 * 8 {
            payload[bit / 8] ^= 1 << (bit % 8);
            let (front, rest) = payload.split_at(5);
            let mut inspector = Inspector::new(Arc::clone(&template));
            assert!(inspector.inspect_pieces([front, rest].into_iter()).is_err(), "{bit}");
            payload[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(())
    }

    #[test]
    fn a_flipped_bit_of_a_large_message_is_caught() {
        let template = Template::new(65_536);
        let mut payload = vec![0; 65_536];
        for at in (8..65_536).step_by(509).chain([65_535]) {
            template.fill(1, false, &mut payload);
            payload[at] ^= 0x10;
            assert!(template.check(1, &payload).is_err(), "{at}");
        }
    }

    #[test]
    fn gaps_repeats_and_wrong_lengths_are_caught() -> Result<()> {
        let template = Template::new(64);
        let mut payload = vec![0; 64];
        let mut inspector = Inspector::new(Arc::clone(&template));
        template.fill(0, true, &mut payload);
        inspector.inspect(&payload)?;
        assert!(inspector.inspect(&payload).is_err(), "a repeat");
        template.fill(2, true, &mut payload);
        assert!(inspector.inspect(&payload).is_err(), "a gap");
        template.fill(1, true, &mut payload);
        assert!(inspector.inspect(&payload[..63]).is_err(), "a short one");
        assert!(inspector.inspect(&payload[..5]).is_err(), "one without a head");
        Ok(())
    }

    #[test]
    #[ignore = "a measurement: run with --release -- --ignored --nocapture"]
    fn check_is_cheap() -> Result<()> {
        let template = Template::new(64);
        let mut messages = vec![0; 64 * 1000];
        for (number, payload) in (0..).zip(messages.chunks_exact_mut(64)) {
            template.fill(number, false, payload);
        }
        let clock = ProcessClock::of(0)?;
        let start = clock.now_ns()?;
        for _ in 0..10_000 {
            let mut inspector = Inspector::new(Arc::clone(&template));
            for payload in black_box(&messages).chunks_exact(64) {
                inspector.inspect(payload)?;
            }
        }
        println!("{} ns for ten million checks", clock.now_ns()? - start);
        Ok(())
    }
}
