//! The framings a connection can have.

/// How messages are told apart on a connection.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// ringpost's own frames, after an exchange of HELLO.
    Native,
    /// A length in front of each message and nothing else. No greeting, no control frames: the end
    /// of the stream between two messages is a clean end.
    LengthPrefixed(LengthPrefix),
    /// No framing. Whatever arrives is handed on.
    Bytes,
}

impl Profile {
    /// The size of what stands in front of each message.
    pub const fn header_bytes(&self) -> usize {
        match self {
            Self::Native => crate::HEADER_BYTES,
            Self::LengthPrefixed(prefix) => prefix.width.bytes(),
            Self::Bytes => 0,
        }
    }
}

/// The length field of [`Profile::LengthPrefixed`]. It counts the body only.
///
/// The default, 32 bits big-endian, is the default of tokio's `LengthDelimitedCodec` too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct LengthPrefix {
    /// The size of the field.
    pub width: PrefixWidth,
    /// The order of its bytes.
    pub byte_order: ByteOrder,
}

impl LengthPrefix {
    /// The most that the field can state.
    pub const fn len_max(&self) -> u64 {
        u64::MAX >> self.spare_bits()
    }

    /// The length that the first bytes of `window` state. What stands behind them does not matter.
    #[inline(always)]
    pub(crate) const fn read(&self, window: [u8; 8]) -> u64 {
        match self.byte_order {
            ByteOrder::Little => u64::from_le_bytes(window) & self.len_max(),
            ByteOrder::Big => u64::from_be_bytes(window) >> self.spare_bits(),
        }
    }

    /// The field that states `len`, as the word whose first little-endian bytes are sent. The bytes behind the field
    /// are zero, as long as `len` is within [`len_max`](Self::len_max).
    #[inline(always)]
    pub const fn word(&self, len: u64) -> u64 {
        match self.byte_order {
            ByteOrder::Little => len,
            ByteOrder::Big => (len << self.spare_bits()).swap_bytes(),
        }
    }

    /// How many bits the field is shorter than 64.
    const fn spare_bits(&self) -> u32 {
        match self.width {
            PrefixWidth::U16 => 48,
            PrefixWidth::U32 => 32,
            PrefixWidth::U64 => 0,
        }
    }
}

/// The size of a length field.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PrefixWidth {
    /// Two bytes.
    U16,
    /// Four bytes.
    #[default]
    U32,
    /// Eight bytes.
    U64,
}

impl PrefixWidth {
    /// Every width.
    pub const ALL: [Self; 3] = [Self::U16, Self::U32, Self::U64];

    /// The number of bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }
}

/// The order of the bytes in a length field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    #[default]
    Big,
}

impl ByteOrder {
    /// Both orders.
    pub const ALL: [Self; 2] = [Self::Little, Self::Big];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_reads_back_and_ignores_what_stands_behind_it() {
        for width in PrefixWidth::ALL {
            for byte_order in ByteOrder::ALL {
                let prefix = LengthPrefix { width, byte_order };
                for len in [0, 1, 0x1234, prefix.len_max() - 1, prefix.len_max()] {
                    let mut window = prefix.word(len).to_le_bytes();
                    for byte in window.iter_mut().skip(width.bytes()) {
                        assert_eq!(*byte, 0);
                        *byte = 0xA5;
                    }
                    assert_eq!(prefix.read(window), len, "{prefix:?}");
                }
            }
        }
    }

    #[test]
    fn fields_have_the_bytes_that_their_names_say() {
        let check = |width, byte_order, bytes: &[u8]| {
            let written = LengthPrefix { width, byte_order }.word(0x0102).to_le_bytes();
            assert_eq!(&written[..width.bytes()], bytes);
        };
        check(PrefixWidth::U16, ByteOrder::Little, &[2, 1]);
        check(PrefixWidth::U16, ByteOrder::Big, &[1, 2]);
        check(PrefixWidth::U32, ByteOrder::Little, &[2, 1, 0, 0]);
        check(PrefixWidth::U32, ByteOrder::Big, &[0, 0, 1, 2]);
        check(PrefixWidth::U64, ByteOrder::Little, &[2, 1, 0, 0, 0, 0, 0, 0]);
        check(PrefixWidth::U64, ByteOrder::Big, &[0, 0, 0, 0, 0, 0, 1, 2]);
    }
}
