//! The framing of the hand-written contenders: a little-endian `u32` length, then the payload.

use anyhow::{Context, Result, ensure};

/// Length of the prefix.
pub(crate) const HEADER_BYTES: usize = 4;

/// The prefix of a payload of `length` bytes.
pub(crate) fn header(length: usize) -> [u8; HEADER_BYTES] {
    u32::try_from(length).expect("payloads are short").to_le_bytes()
}

/// Writes the prefix of a frame that fills `frame`: where its payload goes.
pub(crate) fn framed(frame: &mut [u8]) -> &mut [u8] {
    let (prefix, payload) = frame.split_at_mut(HEADER_BYTES);
    prefix.copy_from_slice(&header(payload.len()));
    payload
}

/// Appends a frame whose payload is a copy of `payload`.
pub(crate) fn encode(payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&header(payload.len()));
    out.extend_from_slice(payload);
}

/// Appends a frame whose payload of `length` bytes is written in place.
pub(crate) fn encode_with(length: usize, out: &mut Vec<u8>, write: impl FnOnce(&mut [u8])) {
    out.extend_from_slice(&header(length));
    let start = out.len();
    out.resize(start + length, 0);
    write(&mut out[start..]);
}

/// The payload of a packet that is one frame.
pub(crate) fn whole(packet: &[u8]) -> Result<&[u8]> {
    let payload = packet.split_first_chunk::<HEADER_BYTES>().and_then(|(header, payload)| {
        (u32::from_le_bytes(*header) as usize == payload.len()).then_some(payload)
    });
    payload.with_context(|| format!("a packet of {} bytes is not one frame", packet.len()))
}

/// A receive buffer that lends the frames in it without copying them.
///
/// It starts again at its beginning whenever it is empty, so that the memory in use stays in the
/// cache, and moves bytes only if a frame would not fit in what is left of the buffer.
///
/// Where in its page it begins is not left to the allocator: some processors copy many times more slowly to a place a
/// few bytes behind the source's (ARCHITECTURE, "Measured decisions"), and the kernel's sources begin at page borders.
#[derive(Debug)]
pub(crate) struct FrameBuffer {
    bytes: Box<[u8]>,
    /// The first byte that is used, and the end of those.
    base: usize,
    limit: usize,
    start: usize,
    end: usize,
}

const PAGE_BYTES: usize = 4096;
/// Where in its page a buffer begins: frames of a prefix and a power of two bytes stay clear of the slow places.
const PLACE_IN_PAGE: usize = 512;

impl FrameBuffer {
    /// A buffer of `capacity` bytes, which is at least one frame.
    pub(crate) fn new(capacity: usize) -> Self {
        let bytes = vec![0; capacity + PAGE_BYTES].into_boxed_slice();
        let base = (PLACE_IN_PAGE + PAGE_BYTES - bytes.as_ptr().addr() % PAGE_BYTES) % PAGE_BYTES;
        Self { bytes, base, limit: base + capacity, start: base, end: base }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where the next bytes have to be received; never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.is_empty() {
            self.start = self.base;
            self.end = self.base;
        } else if self.frame_end() > self.limit {
            self.bytes.copy_within(self.start..self.end, self.base);
            self.end = self.base + (self.end - self.start);
            self.start = self.base;
        }
        &mut self.bytes[self.end..self.limit]
    }

    /// Takes note of `count` bytes received into [`Self::space`].
    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.limit, "no more was received than there was space for");
    }

    /// The payload of the next frame, if all of it is there.
    pub(crate) fn next_frame(&mut self) -> Result<Option<&[u8]>> {
        let received = &self.bytes[self.start..self.end];
        let Some((header, rest)) = received.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header) as usize;
        let Some(payload) = rest.get(..length) else {
            let capacity = self.limit - self.base;
            ensure!(HEADER_BYTES + length <= capacity, "frame of {length} bytes");
            return Ok(None);
        };
        self.start += HEADER_BYTES + length;
        Ok(Some(payload))
    }

    /// Where the frame that has begun to arrive will end.
    fn frame_end(&self) -> usize {
        let received = &self.bytes[self.start..self.end];
        let length = received
            .first_chunk::<HEADER_BYTES>()
            .map_or(1, |header| u32::from_le_bytes(*header) as usize);
        self.start + HEADER_BYTES + length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `stream` in pieces of `piece` bytes and returns the payloads found.
    fn parse(stream: &[u8], piece: usize, capacity: usize) -> Result<Vec<Vec<u8>>> {
        let mut buffer = FrameBuffer::new(capacity);
        let mut payloads = Vec::new();
        let mut rest = stream;
        while !rest.is_empty() {
            let space = buffer.space();
            assert!(!space.is_empty());
            let count = piece.min(space.len()).min(rest.len());
            space[..count].copy_from_slice(&rest[..count]);
            buffer.filled(count);
            rest = &rest[count..];
            while let Some(payload) = buffer.next_frame()? {
                payloads.push(payload.to_vec());
            }
        }
        assert!(buffer.is_empty());
        Ok(payloads)
    }

    #[test]
    fn frames_survive_any_fragmentation() -> Result<()> {
        let wanted: Vec<Vec<u8>> = (0..50_u8).map(|n| vec![n; usize::from(n) % 13]).collect();
        let mut stream = Vec::new();
        for payload in &wanted {
            encode(payload, &mut stream);
        }
        for piece in 1..40 {
            for capacity in [16, 17, 31, 64, 4096] {
                assert_eq!(parse(&stream, piece, capacity)?, wanted, "{piece} {capacity}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_buffer_begins_where_copies_are_fast() {
        for capacity in [16, 4096, 100_000, 300_000] {
            let mut buffer = FrameBuffer::new(capacity);
            let space = buffer.space();
            assert_eq!(
                (space.as_ptr().addr() % PAGE_BYTES, space.len()),
                (PLACE_IN_PAGE, capacity)
            );
        }
    }

    #[test]
    fn a_packet_is_one_frame() -> Result<()> {
        let mut packet = Vec::new();
        encode(b"abc", &mut packet);
        assert_eq!(whole(&packet)?, b"abc");
        for length in 0..packet.len() {
            assert!(whole(&packet[..length]).is_err(), "{length}");
        }
        packet.push(0);
        assert!(whole(&packet).is_err(), "a byte too much");
        assert_eq!(whole(&header(0))?, b"");
        Ok(())
    }

    #[test]
    fn a_frame_larger_than_the_buffer_is_refused() {
        let mut stream = Vec::new();
        encode(&[1; 100], &mut stream);
        assert!(parse(&stream, 8, 64).is_err());
    }

    #[test]
    fn written_in_place_is_the_same_frame() {
        let (mut copied, mut written) = (Vec::new(), Vec::new());
        encode(b"abc", &mut copied);
        encode_with(3, &mut written, |payload| payload.copy_from_slice(b"abc"));
        assert_eq!(copied, written);
        assert_eq!(copied, b"\x03\0\0\0abc");
    }
}
