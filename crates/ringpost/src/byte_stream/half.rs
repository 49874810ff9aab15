//! The two halves of a byte stream, and what the traits are made of.

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::ops::DerefMut;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ringpost_reactor::{Chunk, Inbound, Prefix, Stream, StreamError};

use crate::error::{Closed, SendError};

/// What both halves refer to.
struct Shared {
    stream: Stream,
    /// This side has been closed for writing.
    finished: Cell<bool>,
}

/// The reading half of a [`ByteStream`](crate::ByteStream), where reading is described.
///
/// Dropping it alone does not tell the peer: what still arrives waits within its bound, unread.
pub struct ByteReader {
    shared: Rc<Shared>,
    /// What has been received and not yet read; never empty.
    current: Option<Chunk>,
}

/// The writing half of a [`ByteStream`](crate::ByteStream), where writing is described.
///
/// Dropping it while the reading half lives ends the direction to the peer, in the background, behind
/// everything accepted.
pub struct ByteWriter {
    shared: Rc<Shared>,
}

pub(super) fn pair(stream: Stream) -> (ByteReader, ByteWriter) {
    let shared = Rc::new(Shared { stream, finished: Cell::new(false) });
    let reader = ByteReader { shared: Rc::clone(&shared), current: None };
    (reader, ByteWriter { shared })
}

impl ByteReader {
    pub(super) fn belongs_to(&self, writer: &ByteWriter) -> bool {
        Rc::ptr_eq(&self.shared, &writer.shared)
    }

    /// Waits until bytes can be lent; lends none at the end of the stream.
    pub(super) fn poll_lend(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        ready!(self.poll_chunk(context))?;
        Poll::Ready(Ok(self.current.as_ref().map_or(&[], Chunk::as_slice)))
    }

    /// Takes away what was lent, or the first `bytes` of it.
    pub(super) fn release(&mut self, bytes: usize) {
        if let Some(chunk) = &mut self.current {
            if bytes < chunk.len() {
                chunk.advance(bytes);
            } else {
                self.current = None;
            }
        }
    }

    /// Waits for the first byte, and hands what has arrived to `put`, piece by piece, at most `room`
    /// bytes. Tells how many; 0 is the end of the stream, unless there is no room.
    pub(super) fn poll_copy(
        &mut self,
        context: &mut Context<'_>,
        room: usize,
        mut put: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        if room == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_chunk(context))?;
        Poll::Ready(Ok(self.copy(room, &mut put)))
    }

    /// As [`ByteReader::poll_copy`], into several buffers in order.
    pub(super) fn poll_scatter<B: DerefMut<Target = [u8]>>(
        &mut self,
        context: &mut Context<'_>,
        buffers: &mut [B],
    ) -> Poll<io::Result<usize>> {
        let mut sum = 0;
        for buffer in buffers {
            if sum == 0 && !buffer.is_empty() {
                ready!(self.poll_chunk(context))?;
            }
            let copied = self.copy(buffer.len(), &mut filler(buffer));
            sum += copied;
            if copied < buffer.len() {
                break;
            }
        }
        Poll::Ready(Ok(sum))
    }

    /// Hands out what is there, at most `room` bytes. Never waits.
    fn copy(&mut self, room: usize, put: &mut impl FnMut(&[u8])) -> usize {
        let mut copied = 0;
        while copied < room {
            if self.current.is_none() {
                self.current = self.shared.stream.try_receive();
            }
            let Some(chunk) = &self.current else { break };
            let piece = chunk.len().min(room - copied);
            put(&chunk.as_slice()[..piece]);
            chunk.count_copied(piece);
            copied += piece;
            self.release(piece);
        }
        copied
    }

    /// Waits until there is a current chunk; there is none at the end of the stream.
    #[inline]
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.current.is_none() {
            match ready!(self.shared.stream.poll_receive(context)) {
                // The engines deliver no empty ones.
                Ok(Inbound::Chunk(chunk)) if chunk.is_empty() => {}
                Ok(Inbound::Chunk(chunk)) => self.current = Some(chunk),
                Ok(_) => break,
                Err(error) => return Poll::Ready(Err(failure(error, ErrorKind::ConnectionReset))),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl ByteWriter {
    /// Bytes accepted and not yet handed to the kernel.
    pub fn queued_bytes(&self) -> usize {
        self.shared.stream.outbound_bytes()
    }

    /// Waits for room, and accepts as much of `bytes` as there is room for.
    pub(super) fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(context))?;
        let piece = bytes.len().min(room);
        self.shared.stream.append(Prefix::NONE, &bytes[..piece]);
        Poll::Ready(Ok(piece))
    }

    /// As [`ByteWriter::poll_accept`], from several buffers in order.
    pub(super) fn poll_gather(
        &mut self,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if buffers.iter().all(|buffer| buffer.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(context))?;
        let mut left = room;
        for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
            let piece = buffer.len().min(left);
            self.shared.stream.append(Prefix::NONE, &buffer[..piece]);
            left -= piece;
            if left == 0 {
                break;
            }
        }
        Poll::Ready(Ok(room - left))
    }

    /// Waits until the kernel has everything accepted.
    pub(super) fn poll_flushed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared
            .stream
            .poll_flushed(context)
            .map_err(|error| failure(error, ErrorKind::BrokenPipe))
    }

    /// Ends the direction to the peer behind everything accepted, and waits for it.
    pub(super) fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        self.poll_flushed(context)
    }

    fn finish(&self) {
        if !self.shared.finished.replace(true) {
            self.shared.stream.finish();
        }
    }

    /// Waits until something may be accepted; tells how many bytes.
    #[inline]
    fn poll_room(&self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.shared.finished.get() {
            let error = io::Error::new(ErrorKind::BrokenPipe, SendError::Finished);
            return Poll::Ready(Err(error));
        }
        let stream = &self.shared.stream;
        let room = ready!(stream.poll_room(context)).and_then(|()| stream.prompt_room());
        Poll::Ready(room.map_err(|error| failure(error, ErrorKind::BrokenPipe)))
    }
}

impl Drop for ByteWriter {
    fn drop(&mut self) {
        // Without a reader this is the end of the stream, which tells the peer anyway.
        if Rc::strong_count(&self.shared) > 1 {
            self.finish();
        }
    }
}

impl AsFd for ByteReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.stream.socket()
    }
}

impl AsFd for ByteWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.stream.socket()
    }
}

impl fmt::Debug for ByteReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteReader").field("socket", &self.as_fd()).finish_non_exhaustive()
    }
}

impl fmt::Debug for ByteWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteWriter").field("socket", &self.as_fd()).finish_non_exhaustive()
    }
}

/// Puts pieces into `buffer`, one behind the other.
pub(super) fn filler(mut buffer: &mut [u8]) -> impl FnMut(&[u8]) {
    move |piece| {
        let (front, rest) = std::mem::take(&mut buffer).split_at_mut(piece.len());
        front.copy_from_slice(piece);
        buffer = rest;
    }
}

/// A stream's error for callers of the I/O traits; `gone` is what it is for them that the peer is gone.
#[cold]
fn failure(error: StreamError, gone: ErrorKind) -> io::Error {
    let kind = match error {
        StreamError::RuntimeEnded => ErrorKind::ConnectionAborted,
        StreamError::Kernel { errno } => return io::Error::from_raw_os_error(errno),
        _ => gone,
    };
    io::Error::new(kind, Closed::from(error))
}
