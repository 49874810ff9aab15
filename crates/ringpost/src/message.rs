//! Received messages: lent in place, and copied only when one slice is asked for of what lies in
//! pieces.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use bytes::{Buf, Bytes};
use ringpost_reactor::Chunk;

use crate::chunks::Chunks;

/// A received message that may be kept, sent to another thread, and dropped anywhere.
///
/// It holds the receive memory that it lies in; drop it or copy it out
/// ([`Message::into_owned`]) before keeping many for long.
///
/// File descriptors that came with it are its own: they are closed with it unless they are taken
/// ([`Message::take_descriptors`]).
///
/// `Deref` gives the bytes as one slice. A message that lies in several pieces (it straddled two receive
/// blocks) is joined by a copy at the first such use; [`Message::chunks`] and [`Buf`] never copy.
pub struct Message {
    first: Chunk,
    rest: Option<Box<Rest>>,
}

/// The pieces of a message as they arrive. Kept after use, so that a message in pieces allocates
/// nothing but the first time.
#[derive(Default)]
pub(crate) struct Pieces {
    rest: Option<Box<Rest>>,
}

impl Pieces {
    /// True if it holds no memory to list pieces in.
    pub(crate) fn is_unused(&self) -> bool {
        self.rest.is_none()
    }

    /// Adds the next piece.
    pub(crate) fn push(&mut self, piece: Chunk) {
        self.rest.get_or_insert_default().chunks.push(piece);
    }

    /// The message that the pieces make up.
    pub(crate) fn take(&mut self) -> Message {
        let Some(mut rest) = self.rest.take() else {
            return Message::whole(Chunk::Copied(Bytes::new()));
        };
        rest.chunks.finish();
        let first = rest.chunks.pop().unwrap_or_else(|| Chunk::Copied(Bytes::new()));
        if rest.chunks.is_empty() {
            rest.chunks.clear();
            self.rest = Some(rest);
            return Message::whole(first);
        }
        Message { first, rest: Some(rest) }
    }

    /// Drops the pieces.
    pub(crate) fn clear(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.chunks.clear();
        }
    }
}

/// What few messages have.
#[derive(Default)]
struct Rest {
    /// The pieces behind the first; empty for a message in one piece.
    chunks: Chunks,
    joined: OnceLock<Box<[u8]>>,
    descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The first piece.
    pub(crate) fn first_piece(&self) -> &Chunk {
        &self.first
    }

    pub(crate) fn whole(chunk: Chunk) -> Self {
        // An empty message must not hold a block.
        let first = if chunk.is_empty() { Chunk::Copied(Bytes::new()) } else { chunk };
        Self { first, rest: None }
    }

    /// Lets go of the chunks and keeps the memory that listed them.
    pub(crate) fn recycle(self) -> Option<Pieces> {
        let mut rest = self.rest?;
        rest.chunks.clear();
        rest.joined = OnceLock::new();
        rest.descriptors.clear();
        Some(Pieces { rest: Some(rest) })
    }

    /// The same message with descriptors.
    pub(crate) fn with_descriptors(mut self, descriptors: Vec<OwnedFd>) -> Self {
        self.rest.get_or_insert_default().descriptors = descriptors;
        self
    }

    /// The file descriptors that came with the message, in the order in which they were sent. They are
    /// close-on-exec. What they refer to is the peer's choice: check it before use.
    pub fn descriptors(&self) -> &[OwnedFd] {
        self.rest.as_ref().map_or(&[], |rest| &rest.descriptors)
    }

    /// Takes the file descriptors out of the message; what is not taken is closed with it.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.rest.as_mut().map(|rest| std::mem::take(&mut rest.descriptors)).unwrap_or_default()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.first.len() + self.rest.as_ref().map_or(0, |rest| rest.chunks.bytes())
    }

    /// True for a message of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if the message lies in one piece, so that `Deref` copies nothing.
    pub fn is_contiguous(&self) -> bool {
        self.rest.as_ref().is_none_or(|rest| rest.chunks.is_empty())
    }

    /// The pieces of the message, in order. Copies nothing.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let rest = self.rest.iter().flat_map(|rest| rest.chunks.as_slice());
        std::iter::once(&self.first).chain(rest).map(Chunk::as_slice)
    }

    /// The message as [`Bytes`]: without a copy if it lies in one piece. Descriptors are closed.
    pub fn into_bytes(self) -> Bytes {
        if self.is_contiguous() { self.first.into_bytes() } else { Bytes::from(self.into_owned()) }
    }

    /// A copy that holds no receive memory. Descriptors are closed.
    pub fn into_owned(self) -> Vec<u8> {
        self.count_copied();
        self.chunks().collect::<Vec<_>>().concat()
    }

    /// Copies the message to as many bytes.
    pub(crate) fn copy_to(&self, mut bytes: &mut [u8]) {
        self.count_copied();
        for chunk in self.chunks() {
            let Some((front, rest)) = bytes.split_at_mut_checked(chunk.len()) else { return };
            front.copy_from_slice(chunk);
            bytes = rest;
        }
    }

    /// Each piece knows whether its bytes have been copied already.
    fn count_copied(&self) {
        self.first.count_copied(self.first.len());
        for chunk in self.rest.iter().flat_map(|rest| rest.chunks.as_slice()) {
            chunk.count_copied(chunk.len());
        }
    }

    pub(crate) fn into_chunks(self) -> impl Iterator<Item = Chunk> {
        let rest = self.rest.map(|rest| rest.chunks).unwrap_or_default();
        std::iter::once(self.first).chain(rest.into_iter())
    }

    fn joined<'message>(&'message self, rest: &'message Rest) -> &'message [u8] {
        if rest.chunks.is_empty() {
            return self.first.as_slice();
        }
        rest.joined.get_or_init(|| {
            self.count_copied();
            self.chunks().collect::<Vec<_>>().concat().into()
        })
    }
}

impl Deref for Message {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.rest {
            None => self.first.as_slice(),
            Some(rest) => self.joined(rest),
        }
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Buf for Message {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.first.as_slice()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len(), "advance beyond the message");
        loop {
            let step = count.min(self.first.len());
            self.first.advance(step);
            count -= step;
            if !self.first.is_empty() {
                break;
            }
            let Some(rest) = &mut self.rest else { break };
            let Some(next) = rest.chunks.pop() else { break };
            self.first = next;
            if rest.chunks.is_empty() && rest.descriptors.is_empty() {
                self.rest = None;
            }
        }
        if let Some(rest) = &mut self.rest {
            rest.joined = OnceLock::new();
        }
    }
}

/// A clone has the same bytes, and no descriptors: they stay with the original.
impl Clone for Message {
    fn clone(&self) -> Self {
        let pieces = self.rest.as_ref().filter(|rest| !rest.chunks.is_empty());
        let rest = pieces.map(|rest| {
            let chunks = rest.chunks.clone();
            Box::new(Rest { chunks, joined: rest.joined.clone(), ..Rest::default() })
        });
        Self { first: self.first.clone(), rest }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("len", &self.len())
            .field("contiguous", &self.is_contiguous())
            .field("descriptors", &self.descriptors().len())
            .finish()
    }
}

impl PartialEq<[u8]> for Message {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl<const N: usize> PartialEq<[u8; N]> for Message {
    fn eq(&self, other: &[u8; N]) -> bool {
        **self == other[..]
    }
}

/// A message borrowed from a [`Batch`](crate::Batch): no reference count, no copy.
#[derive(Clone, Copy)]
pub struct Frame<'batch> {
    bytes: &'batch [u8],
    /// What `bytes` lie in, for [`Frame::retain`].
    chunk: &'batch Chunk,
    /// Of a message in pieces or with descriptors.
    rest: Option<&'batch Rest>,
}

impl<'batch> Frame<'batch> {
    #[inline(always)]
    pub(crate) fn new(chunk: &'batch Chunk, bytes: &'batch [u8]) -> Self {
        Self { bytes, chunk, rest: None }
    }

    pub(crate) fn of(message: &'batch Message) -> Self {
        let rest = message.rest.as_deref();
        Self { bytes: message.first.as_slice(), chunk: &message.first, rest }
    }

    /// The pieces behind the first.
    #[inline]
    fn pieces(&self) -> &'batch [Chunk] {
        self.rest.map_or(&[], |rest| rest.chunks.as_slice())
    }

    /// The file descriptors that came with the message. Unless they are taken before the next message
    /// ([`Batch::take_descriptors`](crate::Batch::take_descriptors)), the batch closes them.
    pub fn descriptors(&self) -> &'batch [OwnedFd] {
        self.rest.map_or(&[], |rest| &rest.descriptors)
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len() + self.rest.map_or(0, |rest| rest.chunks.bytes())
    }

    /// True for a message of no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if they lie in one piece, as nearly all do.
    #[inline]
    pub fn as_slice(&self) -> Option<&'batch [u8]> {
        if self.pieces().is_empty() { Some(self.bytes) } else { None }
    }

    /// The bytes as one slice: borrowed if they lie in one piece, else joined by a copy.
    #[inline]
    pub fn bytes(&self) -> Cow<'batch, [u8]> {
        match self.as_slice() {
            Some(bytes) => Cow::Borrowed(bytes),
            None => Cow::Owned(self.to_vec()),
        }
    }

    /// The pieces of the message, in order. Copies nothing.
    #[inline]
    pub fn chunks(&self) -> impl Iterator<Item = &'batch [u8]> + use<'batch> {
        std::iter::once(self.bytes).chain(self.pieces().iter().map(Chunk::as_slice))
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.chunk.count_copied(self.bytes.len());
        self.pieces().iter().for_each(|piece| piece.count_copied(piece.len()));
        self.chunks().collect::<Vec<_>>().concat()
    }

    /// A [`Message`] of the same bytes, without descriptors, that outlives the batch. Copies nothing but the small pieces of
    /// one that lies in very many.
    pub fn retain(&self) -> Message {
        let base = self.chunk.as_slice().as_ptr().addr();
        let start = self.bytes.as_ptr().addr() - base;
        let first = self.chunk.slice(start..start + self.bytes.len());
        if self.pieces().is_empty() {
            return Message::whole(first);
        }
        let mut pieces = Pieces::default();
        pieces.push(first);
        self.pieces().iter().for_each(|piece| pieces.push(piece.clone()));
        pieces.take()
    }
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Whole messages in the framing in which they arrived, to be passed on without looking inside.
/// See [`Receiver::recv_run`](crate::Receiver::recv_run).
#[derive(Debug)]
pub struct Run {
    pub(crate) kind: RunKind,
    pub(crate) profile: ringpost_frame::Profile,
    pub(crate) messages: u64,
    /// Length of the longest message, bytes.
    pub(crate) longest: usize,
}

#[derive(Debug)]
pub(crate) enum RunKind {
    /// Headers and bodies as they were received.
    Framed(Chunk),
    /// One message that lay in pieces, without its header.
    Single(Message),
}

impl Run {
    /// Number of messages.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes, with headers if they are part of it.
    pub fn len(&self) -> usize {
        match &self.kind {
            RunKind::Framed(chunk) => chunk.len(),
            RunKind::Single(message) => message.len(),
        }
    }

    /// True if there is nothing in it; does not happen to a run that was received.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use ringpost_reactor::{Config, Reactor, Wait};

    use super::*;

    fn copied(bytes: &'static [u8]) -> Chunk {
        Chunk::Copied(Bytes::from_static(bytes))
    }

    fn pieces() -> Message {
        let mut pieces = Pieces::default();
        for piece in [&b"ab"[..], b"cde", b"f"] {
            pieces.push(copied(piece));
        }
        pieces.take()
    }

    #[test]
    fn pieces_read_like_a_whole() {
        let message = pieces();
        assert!(!message.is_contiguous());
        assert_eq!(message.len(), 6);
        assert_eq!(message, *b"abcdef");
        assert_eq!(message.chunks().count(), 3);
        assert_eq!(message.clone().into_bytes(), &b"abcdef"[..]);
        assert_eq!(message.into_owned(), b"abcdef");
    }

    #[test]
    fn buf_walks_the_pieces() {
        let mut message = pieces();
        assert_eq!(message[..3], *b"abc");
        assert_eq!(message.get_u8(), b'a');
        assert_eq!(message, *b"bcdef");
        message.advance(3);
        assert_eq!(message.chunk(), b"e");
        assert_eq!(message, *b"ef");
        message.advance(2);
        assert!(message.is_empty());
        assert!(!message.has_remaining());
    }

    #[test]
    fn descriptors_change_nothing_about_the_bytes() {
        let descriptors = || vec![OwnedFd::from(std::fs::File::open("/dev/null").unwrap())];
        let mut message = Message::whole(copied(b"abcdef")).with_descriptors(descriptors());
        assert!(message.is_contiguous());
        assert_eq!(message, *b"abcdef");
        assert_eq!(message.chunks().count(), 1);
        assert_eq!(Frame::of(&message).as_slice(), Some(&b"abcdef"[..]));
        assert_eq!(Frame::of(&message).descriptors().len(), 1);
        assert_eq!(Frame::of(&message).retain().descriptors().len(), 0);
        assert_eq!(message.clone().descriptors().len(), 0);
        message.advance(6);
        assert!(message.is_empty());
        assert_eq!(message.take_descriptors().len(), 1);
        assert_eq!(message.take_descriptors().len(), 0);

        let mut message = pieces().with_descriptors(descriptors());
        assert!(!message.is_contiguous());
        message.advance(6);
        assert!(message.is_empty());
        assert_eq!(message.descriptors().len(), 1);
        let pieces = message.recycle().unwrap();
        assert!(pieces.rest.unwrap().descriptors.is_empty());
    }

    /// Bytes that `reactor` has received and lends.
    fn leased(reactor: &Reactor, bytes: &[u8]) -> Chunk {
        let (near, mut far) = UnixStream::pair().unwrap();
        let stream = reactor.adopt_stream(near.into());
        far.write_all(bytes).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(chunk) = stream.try_receive() {
                assert!(matches!(chunk, Chunk::Leased(_)));
                assert_eq!(chunk.as_slice(), bytes);
                return chunk;
            }
            assert!(Instant::now() < deadline, "nothing arrived in time");
            reactor.turn(Wait::Until(deadline)).unwrap();
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs the engines of a kernel")]
    fn each_piece_counts_what_is_copied_of_it() {
        let reactor = Reactor::new(Config::default()).unwrap();
        let counted = |copy: &dyn Fn(Message)| {
            let mut pieces = Pieces::default();
            // The first one was counted when it was copied; the others lie in the pool.
            pieces.push(copied(b"copied"));
            pieces.push(leased(&reactor, b"lent"));
            pieces.push(copied(b", "));
            pieces.push(leased(&reactor, b"in place"));
            let before = reactor.stats().bytes_copied;
            copy(pieces.take());
            reactor.stats().bytes_copied - before
        };
        assert_eq!(counted(&|message| assert_eq!(message.chunks().count(), 4)), 0);
        assert_eq!(counted(&|message| assert_eq!(*message, *b"copiedlent, in place")), 12);
        assert_eq!(counted(&|message| drop(message.into_owned())), 12);
        assert_eq!(counted(&|message| message.copy_to(&mut [0; 20])), 12);
        assert_eq!(counted(&|message| drop(Frame::of(&message).to_vec())), 12);
    }

    #[test]
    fn frames_can_be_retained() {
        let message = pieces();
        let frame = Frame::of(&message);
        assert_eq!(frame.as_slice(), None);
        assert_eq!(frame.bytes(), &b"abcdef"[..]);
        assert_eq!(frame.retain(), *b"abcdef");
        let chunk = copied(b"0123456789");
        let frame = Frame::new(&chunk, &chunk.as_slice()[3..6]);
        assert_eq!(frame.as_slice(), Some(&b"345"[..]));
        assert_eq!(frame.retain(), *b"345");
    }
}
