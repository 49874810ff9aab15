//! Writes the headers of outgoing messages.

use crate::error::EncodeError;
use crate::header::message_header;
use crate::profile::Profile;

impl Profile {
    /// Writes the header of a message with `len` body bytes into the front of `out` and returns its
    /// size, [`header_bytes`](Self::header_bytes). The body is the caller's to place behind it.
    ///
    /// The agreed frame limit is the caller's to keep; this checks what the length field can hold.
    ///
    /// # Errors
    ///
    /// [`EncodeError::TooLong`] if the length field cannot hold `len`, and
    /// [`EncodeError::OutputTooShort`] if `out` cannot hold the header. Nothing is written then.
    #[inline]
    pub fn write_message_header(&self, len: usize, out: &mut [u8]) -> Result<usize, EncodeError> {
        let (header, size) = match self {
            Self::Native => {
                let Ok(len) = u32::try_from(len) else {
                    return Err(EncodeError::TooLong { len, limit: u64::from(u32::MAX) });
                };
                (message_header(len).to_le_bytes(), self.header_bytes())
            }
            Self::LengthPrefixed(prefix) => {
                let limit = prefix.len_max();
                let field = u64::try_from(len).ok().filter(|field| *field <= limit);
                let field = field.ok_or(EncodeError::TooLong { len, limit })?;
                (prefix.word(field).to_le_bytes(), self.header_bytes())
            }
            Self::Bytes => return Ok(0),
        };
        let available = out.len();
        match (out.get_mut(..size), header.get(..size)) {
            (Some(front), Some(header)) => {
                front.copy_from_slice(header);
                Ok(size)
            }
            _ => Err(EncodeError::OutputTooShort { needed: size, available }),
        }
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{ByteOrder, LengthPrefix, PrefixWidth};

    #[test]
    fn a_length_that_does_not_fit_writes_nothing() {
        let check = |profile: Profile, limit: u64| {
            let mut out = [0xEE; 8];
            let Some(len) = limit.checked_add(1).and_then(|len| usize::try_from(len).ok()) else {
                return;
            };
            let refused = Err(EncodeError::TooLong { len, limit });
            assert_eq!(profile.write_message_header(len, &mut out), refused);
            assert_eq!(out, [0xEE; 8]);
            let written = profile.write_message_header(len - 1, &mut out);
            assert_eq!(written, Ok(profile.header_bytes()));
        };
        check(Profile::Native, u64::from(u32::MAX));
        for width in PrefixWidth::ALL {
            for byte_order in ByteOrder::ALL {
                let prefix = LengthPrefix { width, byte_order };
                check(Profile::LengthPrefixed(prefix), prefix.len_max());
            }
        }
    }

    #[test]
    fn an_output_that_is_too_short_is_refused_and_a_longer_one_keeps_its_rest() {
        let mut out = [0xEE; 9];
        let refused = EncodeError::OutputTooShort { needed: 8, available: 7 };
        assert_eq!(Profile::Native.write_message_header(1, &mut out[..7]), Err(refused));
        assert_eq!(out, [0xEE; 9]);
        assert_eq!(Profile::Native.write_message_header(1, &mut out), Ok(8));
        assert_eq!(out[8], 0xEE);
        assert_eq!(Profile::Bytes.write_message_header(usize::MAX, &mut []), Ok(0));
    }
}
