//! The chunks that a message lies in. How many there are is up to the peer, so nothing here takes longer the more
//! there are, and many small ones become one.

use bytes::Bytes;
use ringpost_reactor::Chunk;

/// Chunks that are never gathered.
const APART_FEW: usize = 16;
/// Behind them, chunks shorter than this are.
const SMALL_BYTES: usize = 256;
/// How much of them is gathered in one chunk.
const GATHERED_BYTES: usize = 16 << 10;
/// Places of a list that are kept for the next message.
const KEPT_MAX: usize = 64;

/// Chunks in order. Added to behind, and taken in front.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chunks {
    /// The first `taken` are empty.
    list: Vec<Chunk>,
    taken: usize,
    /// Bytes of the others.
    bytes: usize,
    /// Small chunks behind them, on their way into one.
    gathered: Vec<u8>,
}

impl Chunks {
    /// Adds the next chunk; [`Chunks::finish`] when it was the last one. Of many the small ones are gathered by a
    /// copy: a list of them would take many times the memory that they do.
    pub(crate) fn push(&mut self, chunk: Chunk) {
        let apart = match self.list.last_mut() {
            Some(last) if self.gathered.is_empty() => {
                let bytes = chunk.len();
                last.try_extend(chunk).map(|()| self.bytes += bytes)
            }
            _ => Err(chunk),
        };
        let Err(chunk) = apart else { return };
        if self.list.len() < APART_FEW || chunk.len() >= SMALL_BYTES {
            self.finish();
            self.add(chunk);
            return;
        }
        chunk.count_copied(chunk.len());
        self.gathered.extend_from_slice(chunk.as_slice());
        if self.gathered.len() >= GATHERED_BYTES {
            self.finish();
        }
    }

    /// Makes a chunk of what was gathered.
    pub(crate) fn finish(&mut self) {
        if !self.gathered.is_empty() {
            let gathered = Bytes::from(std::mem::take(&mut self.gathered));
            self.add(Chunk::Copied(gathered));
        }
    }

    fn add(&mut self, chunk: Chunk) {
        self.bytes += chunk.len();
        self.list.push(chunk);
    }

    /// Takes the first chunk.
    pub(crate) fn pop(&mut self) -> Option<Chunk> {
        let chunk = self.list.get_mut(self.taken)?;
        let chunk = std::mem::replace(chunk, Chunk::Copied(Bytes::new()));
        self.taken += 1;
        self.bytes -= chunk.len();
        Some(chunk)
    }

    /// Drops all, and keeps the memory of a short list.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.list.shrink_to(KEPT_MAX);
        self.gathered.clear();
        (self.taken, self.bytes) = (0, 0);
    }

    /// The chunks.
    #[inline]
    pub(crate) fn as_slice(&self) -> &[Chunk] {
        self.list.get(self.taken..).unwrap_or_default()
    }

    /// Their bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.taken >= self.list.len()
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = Chunk> {
        self.list.into_iter().skip(self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(bytes: &[u8]) -> Chunk {
        Chunk::Copied(Bytes::copy_from_slice(bytes))
    }

    fn contents(chunks: &Chunks) -> Vec<u8> {
        chunks.as_slice().iter().flat_map(|chunk| chunk.as_slice()).copied().collect()
    }

    #[test]
    fn many_small_ones_become_one() {
        let mut chunks = Chunks::default();
        let mut expected = Vec::new();
        for number in 0..100_000_u32 {
            // A large one now and then.
            let len = if number % 10_000 == 9_999 { 1000 } else { 1 + number as usize % 3 };
            let bytes = vec![number.to_le_bytes()[0]; len];
            chunks.push(copied(&bytes));
            expected.extend(bytes);
        }
        chunks.finish();
        assert_eq!(chunks.bytes(), expected.len());
        assert!(contents(&chunks) == expected);
        let count = chunks.as_slice().len();
        assert!(count < APART_FEW + 50, "{count} chunks");
    }

    #[test]
    fn taken_in_order() {
        let mut chunks = Chunks::default();
        assert!(chunks.is_empty() && chunks.pop().is_none());
        for number in 0..5 {
            chunks.push(copied(&[number; 300]));
        }
        chunks.finish();
        for number in 0..3 {
            assert_eq!(chunks.bytes(), 300 * (5 - usize::from(number)));
            assert_eq!(chunks.pop().expect("one is left").as_slice(), [number; 300]);
        }
        assert_eq!(contents(&chunks), [[3; 300], [4; 300]].concat());
        assert_eq!(chunks.clone().into_iter().count(), 2);
        chunks.clear();
        assert!(chunks.is_empty() && chunks.bytes() == 0);
        chunks.push(copied(b"again"));
        assert_eq!(chunks.pop().expect("one").as_slice(), b"again");
        assert!(chunks.is_empty());
    }
}
