//! Descriptors in control messages, found by numbers and by a second, naive parser.

use ringpost_reactor::fuzz::{Found, descriptors, write_descriptors};
use ringpost_testkit::frame_oracle::Input;

/// Parses a control buffer as a receive does. Nothing is owned or closed.
///
/// Input: how much of the buffer counts; then control messages, with their lengths as they are or spoiled,
/// and bare bytes.
///
/// # Panics
///
/// If the parser finds descriptors that a naive one does not, or misses some, or if what a send writes is
/// not what a receive finds.
pub fn control_messages(data: &[u8]) {
    let mut input = Input::new(data);
    let cut = input.byte();
    let mut bytes = Vec::new();
    while !input.is_empty() && bytes.len() < BUFFER_BYTES_MAX {
        message(&mut input, &mut bytes);
    }
    let mut whole = bytes.len();
    bytes.resize(whole.next_multiple_of(WORD_BYTES), PADDING);
    match cut {
        0..=127 => {}
        128..=250 => whole = whole.saturating_sub(usize::from(cut - 127)),
        // The kernel has written less than the length says.
        _ => whole = whole.saturating_add(usize::from(cut)),
    }
    let words: Vec<usize> = bytes
        .chunks_exact(WORD_BYTES)
        .map(|word| usize::from_ne_bytes(word.try_into().expect("eight bytes")))
        .collect();
    let found = descriptors(&words, whole);
    let expected = naive(&bytes, whole);
    assert_eq!(found, expected, "{bytes:x?}, {whole} bytes of them");
    check_written(&found);
}

/// One control message, or bytes that are none.
fn message(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    let [form, len] = input.array();
    let body = usize::from(len) * if form & 0x80 == 0 { 1 } else { 4 };
    let body = input.bytes(body);
    if form & 0x70 == 0x70 {
        bytes.extend_from_slice(body);
        return;
    }
    let (level, kind) = match form & 7 {
        0..=2 => (SOL_SOCKET, SCM_RIGHTS),
        3 => (SOL_SOCKET, SCM_PIDFD),
        4 => (SOL_SOCKET, SCM_CREDENTIALS),
        5 => (SOL_SOCKET, SCM_INQ),
        6 => (SOL_TCP, SCM_RIGHTS),
        _ => (i32::from(input.byte()), i32::from(input.byte())),
    };
    let len = HEADER_BYTES + body.len();
    let stated = match form >> 3 & 7 {
        0..=4 => len,
        5 => usize::try_from(input.u64()).unwrap_or(usize::MAX),
        6 => len.saturating_add(input.byte().into()),
        _ => len.saturating_sub(input.byte().into()),
    };
    bytes.extend_from_slice(&stated.to_ne_bytes());
    bytes.extend_from_slice(&level.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(body);
    // The next header is aligned (cmsg(3)); a spoiled length leads the parser elsewhere.
    bytes.resize(bytes.len().next_multiple_of(WORD_BYTES), PADDING);
}

/// What cmsg(3) says, byte by byte, over the words that count. A message that goes beyond the end, or is
/// shorter than its header, ends it.
fn naive(bytes: &[u8], written: usize) -> Vec<Found> {
    let end = written.min(bytes.len()) / WORD_BYTES * WORD_BYTES;
    let mut found = Vec::new();
    let mut at = 0;
    while end - at >= HEADER_BYTES {
        let len = usize::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if len < HEADER_BYTES || len > end - at {
            break;
        }
        let level = number(bytes, at + 8);
        let kind = number(bytes, at + 12);
        if level == SOL_SOCKET && (kind == SCM_RIGHTS || kind == SCM_PIDFD) {
            let mut place = at + HEADER_BYTES;
            while place + NUMBER_BYTES <= at + len {
                let number = number(bytes, place);
                if number >= 0 && kind == SCM_RIGHTS {
                    found.push(Found::Passed(number));
                } else if number >= 0 {
                    found.push(Found::Added(number));
                }
                place += NUMBER_BYTES;
            }
        }
        at += len.next_multiple_of(WORD_BYTES);
    }
    found
}

fn number(bytes: &[u8], at: usize) -> i32 {
    i32::from_ne_bytes(bytes[at..at + NUMBER_BYTES].try_into().expect("four bytes"))
}

/// What was found is written as a send does, and found again.
fn check_written(found: &[Found]) {
    let numbers: Vec<i32> = found
        .iter()
        .map(|found| match found {
            Found::Passed(number) | Found::Added(number) => *number,
        })
        .collect();
    let mut control = [usize::MAX; 130];
    let Some(written) = write_descriptors(&mut control, &numbers) else {
        assert!(HEADER_BYTES + numbers.len() * NUMBER_BYTES > size_of_val(&control), "no room");
        return;
    };
    let expected: Vec<Found> = numbers.into_iter().map(Found::Passed).collect();
    assert_eq!(descriptors(&control, written), expected, "written and found again");
}

/// The buffer that a receive has.
const BUFFER_BYTES_MAX: usize = 4096;
/// Behind a body; read by mistake, it makes numbers that a descriptor can have.
const PADDING: u8 = 0x11;
const WORD_BYTES: usize = 8;
const NUMBER_BYTES: usize = 4;
/// Length, level and kind (cmsg(3)).
const HEADER_BYTES: usize = 16;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const SCM_CREDENTIALS: i32 = 2;
const SCM_PIDFD: i32 = 4;
const SCM_INQ: i32 = 84;
const SOL_TCP: i32 = 6;
