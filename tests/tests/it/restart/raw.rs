//! A successor that speaks by hand, and stops wherever it likes.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ringpost_uds::handover;

pub(crate) const READY: u8 = 2;
pub(crate) const TAKEN: u8 = 3;
pub(crate) const GIVE_UP: u8 = 4;
pub(crate) const REFUSED: u8 = 5;
pub(crate) const OFFER: u8 = 9;
pub(crate) const COMMIT: u8 = 11;

/// Its descriptors are lost: it only reads bytes.
pub(crate) struct RawSuccessor {
    pub(crate) stream: UnixStream,
}

impl RawSuccessor {
    pub(crate) fn connect(control: &Path) -> Self {
        let stream = UnixStream::connect(control).expect("a predecessor listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        Self { stream }
    }

    /// Connects, greets, and takes the offer.
    pub(crate) fn offered(control: &Path) -> Self {
        let mut successor = Self::connect(control);
        successor.send(1, &hello(1));
        successor.read_to(OFFER);
        successor
    }

    /// The same, with the descriptors that came with OFFER and what came before, in order.
    pub(crate) fn offered_with_descriptors(control: &Path) -> (Self, VecDeque<OwnedFd>) {
        let mut successor = Self::connect(control);
        successor.send(1, &hello(1));
        let (mut bytes, mut descriptors) = (Vec::new(), VecDeque::new());
        let mut buffer = vec![0; 64 << 10];
        let patience = Instant::now() + Duration::from_secs(10);
        while last_record(&bytes) != Some(OFFER) {
            match handover::receive(&successor.stream, &mut buffer, &mut descriptors) {
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.is_would_block() => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < patience, "no offer");
        }
        (successor, descriptors)
    }

    pub(crate) fn send(&mut self, kind: u8, body: &[u8]) {
        self.try_send(kind, body).expect("the predecessor reads");
    }

    pub(crate) fn try_send(&mut self, kind: u8, body: &[u8]) -> std::io::Result<()> {
        let [a, b, c, d] = u32::try_from(body.len()).expect("short").to_le_bytes();
        self.stream.write_all(&[&[a, b, c, d, kind, 0, 0, 0], body].concat())
    }

    /// Reads records up to one of this kind; its body.
    #[track_caller]
    pub(crate) fn read_to(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let mut header = [0; 8];
            self.stream.read_exact(&mut header).expect("a record");
            let [a, b, c, d, found, ..] = header;
            let mut body = vec![0; u32::from_le_bytes([a, b, c, d]) as usize];
            self.stream.read_exact(&mut body).expect("all of it");
            if found == kind {
                return body;
            }
        }
    }
}

/// The kind of the last record, if nothing is behind it.
fn last_record(mut bytes: &[u8]) -> Option<u8> {
    let mut last = None;
    while let Some((&[a, b, c, d, kind, ..], rest)) = bytes.split_first_chunk::<8>() {
        bytes = rest.get(u32::from_le_bytes([a, b, c, d]) as usize..)?;
        last = Some(kind);
    }
    last.filter(|_| bytes.is_empty())
}

/// The body of HELLO in this version of the protocol.
pub(crate) fn hello(version: u16) -> Vec<u8> {
    [&b"RINGHAND"[..], &version.to_le_bytes(), &4u32.to_le_bytes()].concat()
}
