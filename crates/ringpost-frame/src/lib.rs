//! Wire format of ringpost: what two processes say to each other over a stream socket.
//!
//! This crate holds the byte layout and the state machines around it, and nothing else. It opens no
//! socket, reads no clock, allocates no memory and contains no `unsafe` code. The caller brings the
//! received bytes in pieces of any size and is told what they mean; the same bytes give the same
//! answer however they were cut.
//!
//! - [`Hello`] is the 64-byte greeting that both sides send at once; [`Hello::agree`] computes what
//!   both can do, [`HelloReader`] collects a greeting that arrives in pieces.
//! - [`FrameHeader`] is the 8 bytes in front of every frame; [`message_header`] is its fast form.
//! - [`Decoder`] finds the frames in received bytes without copying them; [`WholeMessages`] is its fast form for many
//!   messages in a row.
//! - [`Profile`] names the framing of a connection: ringpost's own, or one of the plain ones that
//!   peers without this library speak. It writes the headers of outgoing messages.
//! - [`ControlFrame`] holds an encoded FIN, REJECT, PING, PONG or GOAWAY.
//!
//! `SPEC.md` in this crate states the format byte by byte, and `vectors/` holds test vectors for
//! implementations in other languages.
//!
//! # Example
//!
//! ```
//! use ringpost_frame::{Decoder, Hello, Profile, Step};
//!
//! // Both sides have sent their HELLO; each computes the same agreement.
//! let ours = Hello::new(1 << 20, 1);
//! let theirs = Hello::decode(&Hello::new(64 << 10, 2).encode())?;
//! let agreement = ours.agree(&theirs)?;
//! assert_eq!(agreement.frame_bytes_max, 64 << 10);
//!
//! let mut stream = [0; 13];
//! let header_bytes = Profile::Native.write_message_header(5, &mut stream)?;
//! stream[header_bytes..].copy_from_slice(b"hello");
//!
//! // All in one piece: the fast path.
//! let mut decoder = Decoder::native(&agreement);
//! assert_eq!(decoder.whole_message(&stream), Some(8..13));
//!
//! // Cut in the middle of the body: the steps.
//! let (first, second) = stream.split_at(10);
//! assert!(matches!(decoder.step(first)?, Step::Begin { consumed: 8, .. }));
//! assert_eq!(decoder.step(&first[8..])?, Step::Body { consumed: 2, last: false });
//! assert_eq!(decoder.step(second)?, Step::Body { consumed: 3, last: true });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does not do
//!
//! - It authenticates nobody and encrypts nothing. The check byte of a header finds a stream that
//!   lost its place; an attacker can compute it.
//! - It does not look at message bodies.
//! - It counts nothing that needs time: deadlines for half-sent frames are the caller's.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod control;
mod decoder;
mod encoder;
mod error;
mod features;
mod header;
mod hello;
mod hello_reader;
mod kind;
mod packet;
mod profile;

pub use control::{ControlFrame, control_frame};
pub use decoder::{Decoder, Step, StreamEnd, Unfinished, WholeMessages};
pub use error::{EncodeError, HelloError, ProtocolError};
pub use features::Features;
pub use header::{FrameHeader, HEADER_BYTES, message_header};
pub use hello::{
    ABI, Agreement, FRAME_BYTES_MAX_FLOOR, HELLO_BYTES, Hello, MAGIC, VERSION_MAX, VERSION_MIN,
};
pub use hello_reader::{HelloReader, HelloStep};
pub use kind::{FrameFlags, FrameKind, GOAWAY_BYTES, PING_BYTES_MAX, REJECT_BYTES_MAX};
pub use packet::{packet_header, packet_message};
pub use profile::{ByteOrder, LengthPrefix, PrefixWidth, Profile};
