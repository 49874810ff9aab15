//! Properties of `ringpost-frame`, checked on arbitrary input.
//!
//! Each function takes bytes that steer it, so that a fuzzer can drive it and a failing input is a
//! file. Any input is meaningful; what a function needs beyond its end reads as zero.
//!
//! - [`decoder_all_splits`]: how a stream is cut does not change what is decoded.
//! - [`round_trip()`]: what was encoded is what is decoded.
//! - [`hello()`]: greetings survive encoding, and both sides agree on the same thing.
//! - [`handshake()`]: of two sides that greet each other, both agree or both don't.
//! - [`packets()`]: a packet is exactly one frame.
//! - [`plain_profiles`]: length-prefixed streams mean what a naive decoder says they mean.

mod drive;
mod greeting;
mod handshake;
mod input;
mod packets;
mod plain;
pub mod reference;
mod round_trip;
mod splits;

pub use drive::{Frame, Reader, Transcript, read_stream};
pub use greeting::hello;
pub use handshake::handshake;
pub use input::Input;
pub use packets::packets;
pub use plain::plain_profiles;
pub use round_trip::round_trip;
pub use splits::decoder_all_splits;
