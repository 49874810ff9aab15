//! Parsers of what comes from outside, for fuzz targets. No part of the interface.
//!
//! Descriptors are numbers here: nothing of this owns or closes one.

use std::os::fd::RawFd;

use crate::ancillary::{Kind, each_descriptor, write_rights};
use crate::packet_io::SocketName;

/// A descriptor number found in a control buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A peer passed it.
    Passed(RawFd),
    /// The kernel added it.
    Added(RawFd),
}

/// The descriptors in the first `written` bytes of a control buffer, as a receive finds them.
pub fn descriptors(control: &[usize], written: usize) -> Vec<Found> {
    let mut all = Vec::new();
    each_descriptor(control, written, |kind, number| {
        all.push(match kind {
            Kind::Passed => Found::Passed(number),
            Kind::Added => Found::Added(number),
        });
    });
    all
}

/// Writes a control message with these descriptors, as a send does: its bytes, or `None` without room.
pub fn write_descriptors(control: &mut [usize], numbers: &[RawFd]) -> Option<usize> {
    write_rights(control, numbers.iter().copied())
}

/// The name that a receive takes from an address of `address_bytes` bytes, family included, whose path is
/// `path`.
pub fn socket_name(path: &[u8; SocketName::BYTES_MAX + 1], address_bytes: u32) -> SocketName {
    SocketName::received(path, address_bytes)
}

/// Bytes of the address that a send gives the kernel for `name`, family included.
pub fn address_bytes(name: &SocketName) -> u32 {
    name.address_bytes()
}
