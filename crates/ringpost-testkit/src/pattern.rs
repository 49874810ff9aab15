//! Payloads that tell which message they are and where a byte belongs, so that a lost, doubled, swapped
//! or torn one is found.

/// The payload of message number `sequence`.
pub fn payload(sequence: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(sequence, &mut bytes);
    bytes
}

/// Writes the payload of message number `sequence`.
pub fn fill(sequence: u64, bytes: &mut [u8]) {
    let start = sequence.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut word = start;
    let mut words = bytes.chunks_exact_mut(8);
    for chunk in &mut words {
        chunk.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(0xD1B5_4A32_D192_ED03);
    }
    let rest = words.into_remainder();
    let len = rest.len();
    rest.copy_from_slice(&word.to_le_bytes()[..len]);
}

/// Checks the payload of message number `sequence`.
///
/// # Panics
///
/// If it is not that; the message says where.
#[track_caller]
pub fn check(sequence: u64, len: usize, bytes: &[u8]) {
    assert_eq!(bytes.len(), len, "length of message {sequence}");
    let expected = payload(sequence, len);
    if bytes != expected {
        let at = bytes.iter().zip(&expected).position(|(found, expected)| found != expected);
        panic!("message {sequence} of {len} bytes differs from byte {at:?} on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_and_shifts_differ() {
        for len in [1, 7, 8, 9, 100] {
            assert_ne!(payload(1, len), payload(2, len));
        }
        let long = payload(3, 64);
        assert_ne!(long[8..16], long[..8]);
        check(3, 64, &long);
    }

    #[test]
    #[expect(clippy::should_panic_without_expect, reason = "any failure of the check will do")]
    #[should_panic]
    fn a_wrong_byte_is_found() {
        let mut bytes = payload(3, 64);
        bytes[63] ^= 1;
        check(3, 64, &bytes);
    }
}
