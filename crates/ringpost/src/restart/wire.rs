//! The records that two generations of a server exchange.
//!
//! ```text
//! record:  u32 length of the body | u8 kind | u8 descriptors | u16 zero | body     little-endian
//!
//! successor                         predecessor
//! HELLO magic, version, wanted  ->
//!                               <-  LISTENER, DESCRIPTOR ..., STATE, OFFER time to start and to commit
//!    (starts up)                      (goes on to accept)
//! READY                         ->
//!                                     (stops accepting)
//!                               <-  CONNECTION ..., STATE, COMMIT
//! TAKEN                         ->
//!    (accepts)                        (serves what it has to its end)
//! ```
//!
//! Instead of its next record either side may send GIVE_UP with a reason, and the predecessor REFUSED.
//! Until TAKEN has been received the predecessor is the owner. A record that `send` has taken is in the
//! other process's queue, so no doubt is left: a predecessor that waits no longer for TAKEN shuts down its
//! receiving end and looks once more; after that the successor's `send` fails.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;

use ringpost_uds::handover::DESCRIPTORS_PER_SEND_MAX;

use super::error::RestartError;

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"RINGHAND");
pub(super) const VERSION: u16 = 1;
pub(super) const HEADER_BYTES: usize = 8;

/// Listeners in a parcel.
pub const LISTENERS_MAX: usize = 64;
/// Named descriptors in a parcel.
pub const DESCRIPTORS_MAX: usize = 256;
/// Length of a name, or of what the application says about a connection, bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// State of the application in a parcel, and once more at the commit, bytes.
pub const STATE_BYTES_MAX: usize = 1 << 20;
/// Connections in one restart.
pub const CONNECTIONS_MAX: usize = 1 << 16;
/// What one connection has received and not taken, bytes.
pub const CONNECTION_BYTES_MAX: usize = 32 << 20;
/// What all connections of one restart have received and not taken, bytes.
pub const CONNECTIONS_BYTES_MAX: usize = 256 << 20;
/// Length of a reason, bytes.
pub(super) const REASON_BYTES_MAX: usize = 1024;
/// Room for the fields around the longest variable part of a record; those of a listener are two paths and two
/// names.
const FIELDS_BYTES_MAX: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 1,
    Ready = 2,
    Taken = 3,
    GiveUp = 4,
    Refused = 5,
    Listener = 6,
    Descriptor = 7,
    State = 8,
    Offer = 9,
    Connection = 10,
    Commit = 11,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        const ALL: [Kind; 11] = [
            Kind::Hello,
            Kind::Ready,
            Kind::Taken,
            Kind::GiveUp,
            Kind::Refused,
            Kind::Listener,
            Kind::Descriptor,
            Kind::State,
            Kind::Offer,
            Kind::Connection,
            Kind::Commit,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// The longest body, bytes.
    fn body_bytes_max(self) -> usize {
        match self {
            Self::Connection => CONNECTION_BYTES_MAX + FIELDS_BYTES_MAX,
            Self::State => STATE_BYTES_MAX,
            Self::Listener => FIELDS_BYTES_MAX,
            _ => REASON_BYTES_MAX + 64,
        }
    }
}

/// Why a predecessor refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Refusal {
    Busy = 1,
    Denied = 2,
    Version = 3,
}

/// A record that has arrived.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// The header of a record whose body has `len` bytes.
pub(super) fn header(kind: Kind, len: usize, descriptors: usize) -> [u8; HEADER_BYTES] {
    debug_assert!(len <= kind.body_bytes_max() && descriptors <= DESCRIPTORS_PER_SEND_MAX);
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let descriptors = u8::try_from(descriptors).unwrap_or(u8::MAX);
    let [a, b, c, d] = len.to_le_bytes();
    [a, b, c, d, kind as u8, descriptors, 0, 0]
}

/// Puts records together from bytes and descriptors as they arrive.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    bytes: Vec<u8>,
    taken: usize,
    /// Those that no record has claimed yet.
    pub(super) descriptors: VecDeque<OwnedFd>,
}

impl Assembler {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes of records that are not complete.
    pub(super) fn pending(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// The next whole record.
    pub(super) fn next(&mut self) -> Result<Option<Record>, RestartError> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind, descriptors, zero @ ..] = *header;
        let Some(kind) = Kind::from_code(kind).filter(|_| zero == [0, 0]) else {
            return Err(protocol("an unknown record"));
        };
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if len > kind.body_bytes_max() {
            return Err(protocol("a record that is too long"));
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let wanted = usize::from(descriptors);
        // They come with the first byte of a record, so they are here when its last one is.
        if wanted > self.descriptors.len() || wanted > DESCRIPTORS_PER_SEND_MAX {
            return Err(protocol("descriptors are missing"));
        }
        let body = body.to_vec();
        self.taken += HEADER_BYTES + len;
        let descriptors = self.descriptors.drain(..wanted).collect();
        Ok(Some(Record { kind, body, descriptors }))
    }
}

/// Writes the fields of a body.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Bytes with their length in front.
    pub(super) fn bytes(self, value: &[u8]) -> Self {
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        let mut writer = self.u32(len);
        writer.0.extend_from_slice(value);
        writer
    }
}

/// Reads the fields of a body.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RestartError> {
        let (field, rest) =
            self.0.split_first_chunk().ok_or_else(|| protocol("a record is cut short"))?;
        self.0 = rest;
        Ok(*field)
    }

    pub(super) fn u8(&mut self) -> Result<u8, RestartError> {
        self.take().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, RestartError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, RestartError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, RestartError> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self, limits: Range<usize>) -> Result<&'a [u8], RestartError> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if !limits.contains(&len) {
            return Err(protocol("a field of the wrong length"));
        }
        let (field, rest) =
            self.0.split_at_checked(len).ok_or_else(|| protocol("a field is cut short"))?;
        self.0 = rest;
        Ok(field)
    }

    pub(super) fn name(&mut self, limits: Range<usize>) -> Result<String, RestartError> {
        let bytes = self.bytes(limits)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| protocol("a name is no text"))
    }

    pub(super) fn end(self) -> Result<(), RestartError> {
        if self.0.is_empty() { Ok(()) } else { Err(protocol("a record has more than its fields")) }
    }
}

pub(super) fn protocol(what: &'static str) -> RestartError {
    RestartError::Protocol { what }
}

/// A reason as it is sent: at most [`REASON_BYTES_MAX`] bytes, cut at the end of a character.
pub(super) fn reason(text: &str) -> &[u8] {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.as_bytes().get(..end).unwrap_or_default()
}

/// A reason for people's eyes.
pub(super) fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Kind, body: &[u8], descriptors: usize) -> Vec<u8> {
        [&header(kind, body.len(), descriptors), body].concat()
    }

    #[test]
    fn records_are_found_however_they_are_cut() {
        let all = [record(Kind::State, b"state", 0), record(Kind::Ready, b"", 0)].concat();
        for cut in 0..=all.len() {
            let mut assembler = Assembler::default();
            let mut found = Vec::new();
            for part in [&all[..cut], &all[cut..]] {
                assembler.push(part);
                while let Some(record) = assembler.next().expect("proper") {
                    found.push((record.kind, record.body));
                }
            }
            assert_eq!(found, [(Kind::State, b"state".to_vec()), (Kind::Ready, Vec::new())]);
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let check = |bytes: &[u8]| {
            let mut assembler = Assembler::default();
            assembler.push(bytes);
            let error = assembler.next().expect_err("refused");
            assert!(matches!(error, RestartError::Protocol { .. }), "{error}");
        };
        check(&[0; 8]);
        check(&[0, 0, 0, 0, 12, 0, 0, 0]);
        check(&[0, 0, 0, 0, 2, 0, 1, 0]);
        check(&[0, 0, 0, 0, 2, 1, 0, 0]);
        check(&[0xFF, 0xFF, 0xFF, 0xFF, 10, 0, 0, 0]);
        check(&[0xFF, 0xFF, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn fields_read_back_and_have_bounds() {
        let body = Writer::default().u8(1).u16(2).u32(3).u64(4).bytes(b"name").0;
        let mut fields = Fields(&body);
        assert_eq!(fields.u8().ok(), Some(1));
        assert_eq!(fields.u16().ok(), Some(2));
        assert_eq!(fields.u32().ok(), Some(3));
        assert_eq!(fields.u64().ok(), Some(4));
        assert_eq!(fields.name(1..5).ok().as_deref(), Some("name"));
        fields.end().expect("nothing more");
        let named = Writer::default().bytes(b"name").0;
        assert!(Fields(&named).name(0..4).is_err());
        assert!(Fields(&named[..7]).name(0..9).is_err());
        assert!(Fields(&[4, 0, 0, 0, 0xFF]).name(0..9).is_err());
        assert!(Fields(b"x").end().is_err());
    }

    #[test]
    fn a_reason_is_cut_at_a_character() {
        assert_eq!(reason("short"), b"short");
        let long = "ü".repeat(REASON_BYTES_MAX);
        assert_eq!(reason(&format!("x{long}")).len(), REASON_BYTES_MAX - 1);
        assert_eq!(readable(b"a\nb\xFF"), "a\u{FFFD}b\u{FFFD}");
    }
}
