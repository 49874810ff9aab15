//! Parsers of what another process sends in a restart, for fuzz targets. No part of the interface.

use std::os::fd::OwnedFd;

use super::error::RestartError;
use super::successor::Inherited;
use super::wire::{Assembler, Kind, Record};
use super::{parcel, successor};
use crate::detached::DetachedConnection;

/// Goes through a restart, as the successor, with whoever is at the other end of a stream socket.
///
/// # Errors
///
/// As [`Successor::take_over`](super::Successor::take_over).
pub fn take_over(socket: OwnedFd, connections_max: usize) -> Result<Inherited, RestartError> {
    successor::take_over_from(socket, connections_max)
}

/// Kind, body and number of descriptors of each record, and the error behind them.
pub type Records = (Vec<(u8, Vec<u8>, usize)>, Option<RestartError>);

/// The records in bytes that arrive in these pieces, after all `descriptors`.
pub fn records<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    descriptors: impl IntoIterator<Item = OwnedFd>,
) -> Records {
    let mut assembler = Assembler::default();
    assembler.descriptors.extend(descriptors);
    let mut found = Vec::new();
    for piece in pieces {
        assembler.push(piece);
        loop {
            match assembler.next() {
                Ok(Some(Record { kind, body, descriptors })) => {
                    found.push((kind as u8, body, descriptors.len()));
                }
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

/// The connection that the body of a record describes, with what was said about it.
///
/// # Errors
///
/// [`RestartError::Protocol`].
pub fn decode_connection(
    body: &[u8],
    socket: OwnedFd,
) -> Result<(Vec<u8>, DetachedConnection), RestartError> {
    let (body, descriptors) = (body.to_vec(), vec![socket]);
    parcel::decode_connection(Record { kind: Kind::Connection, body, descriptors })
}

/// The body of the record that describes a connection.
pub fn encode_connection(label: &[u8], connection: &DetachedConnection) -> Vec<u8> {
    parcel::encode_connection(label, connection)
}
