//! Turns steering bytes into choices.

use ringpost_frame::{Agreement, ByteOrder, Features, Hello, LengthPrefix, PrefixWidth};

/// Steering bytes that have not been used. Reads zeros once they are gone.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `bytes` is to be used.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next `len` bytes, or as many as there are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Whether all bytes have been used.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All bytes that have not been used.
    pub const fn rest(self) -> &'a [u8] {
        self.0
    }

    /// One of `items`.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::from(self.byte()) % items.len()]
    }

    /// Sizes of the pieces a stream is cut into; up to 15, to be used round and round.
    pub fn piece_sizes(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte() % 16);
        self.bytes(count)
    }

    /// An agreement with any features and a limit of 1024 or more bytes.
    pub fn agreement(&mut self) -> Agreement {
        let mut hello = Hello::new(self.pick(&FRAME_LIMITS), 0);
        hello.supported = Features(u64::from(self.byte() % 8));
        hello.fds_max = u16::from(self.byte());
        hello.agree(&hello).expect("a greeting of this version agrees with itself")
    }

    /// Any length field.
    pub fn length_prefix(&mut self) -> LengthPrefix {
        LengthPrefix { width: self.pick(&PrefixWidth::ALL), byte_order: self.pick(&ByteOrder::ALL) }
    }

    /// A limit at which plain profiles may have their edges, bytes.
    pub fn plain_limit(&mut self) -> u32 {
        self.pick(&PLAIN_LIMITS)
    }
}

const FRAME_LIMITS: [u32; 4] = [1024, 1025, 65_536, u32::MAX];
const PLAIN_LIMITS: [u32; 8] = [0, 1, 7, 255, 256, 65_535, 65_536, u32::MAX];
