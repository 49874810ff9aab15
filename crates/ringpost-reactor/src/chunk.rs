//! Received bytes on their way to a reader: lent from the pool, or copied when the pool runs low.

use bytes::Bytes;

use crate::pool::Lease;

/// A run of received bytes. May be dropped on any thread.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Chunk {
    /// Lent in place.
    Leased(Lease),
    /// Copied, so that a slow reader does not hold the pool.
    Copied(Bytes),
}

impl Chunk {
    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Leased(lease) => lease.as_slice(),
            Self::Copied(bytes) => bytes,
        }
    }

    /// Number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Leased(lease) => lease.len(),
            Self::Copied(bytes) => bytes.len(),
        }
    }

    /// True if no bytes are left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops the first `bytes` bytes from the view.
    ///
    /// # Panics
    ///
    /// If `bytes` is more than [`Chunk::len`].
    #[inline]
    pub fn advance(&mut self, bytes: usize) {
        match self {
            Self::Leased(lease) => lease.advance(bytes),
            Self::Copied(copy) => bytes::Buf::advance(copy, bytes),
        }
    }

    /// A second view of `range` of these bytes; copies nothing.
    ///
    /// # Panics
    ///
    /// If the range is not within the chunk.
    #[inline]
    #[must_use]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::Leased(lease) => Self::Leased(lease.slice(range)),
            Self::Copied(bytes) => Self::Copied(bytes.slice(range)),
        }
    }

    /// Takes `next` into this chunk if it continues it in memory; gives it back otherwise.
    pub fn try_extend(&mut self, next: Self) -> Result<(), Self> {
        match (self, next) {
            (Self::Leased(lease), Self::Leased(next)) => {
                lease.try_extend(next).map_err(Self::Leased)
            }
            (_, next) => Err(next),
        }
    }

    /// Counts `bytes` that the reader copied out of lent memory
    /// ([`Stats::bytes_copied`](crate::Stats::bytes_copied)); for copied chunks they are counted already.
    pub fn count_copied(&self, bytes: usize) {
        if let Self::Leased(lease) = self {
            lease.count_copied(bytes);
        }
    }

    /// The bytes as [`Bytes`], without a copy.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Leased(lease) => Bytes::from_owner(lease),
            Self::Copied(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}
