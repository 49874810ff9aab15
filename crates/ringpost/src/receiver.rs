//! The receiving half of a connection: finds messages in received bytes and lends them in place.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll};

use ringpost_frame::{
    ControlFrame, Decoder, FrameHeader, FrameKind, HEADER_BYTES, HELLO_BYTES, Profile,
    ProtocolError, Step, StreamEnd, Unfinished, WholeMessages, control_frame,
};
use ringpost_reactor::{Chunk, DescriptorClaim, Inbound, Prefix};

use crate::error::{Closed, RecvError};
use crate::link::{Half, Link};
use crate::message::{Frame, Message, Pieces, Run, RunKind};

/// The receiving half of a connection.
///
/// Messages arrive in order. `Ok(None)` is the clean end: the peer said that it was finished (or, with
/// a plain profile, closed between two messages). Anything else that ends the stream is an error. In the native
/// profile a crashed peer is thus never taken for a finished one; a plain profile can't tell.
///
/// Control frames (PING, GOAWAY, unknown kinds that may be skipped) are dealt with on the way.
pub struct Receiver {
    link: Rc<Link>,
    decoder: Option<Decoder>,
    /// What is being decoded, from `cursor` on.
    current: Option<Chunk>,
    cursor: usize,
    /// How much of the current chunk the decoder has been told of.
    told: usize,
    /// The kind of the frame that began in earlier chunks.
    partial: Option<FrameKind>,
    /// What has arrived of it.
    pieces: Pieces,
    /// The descriptors that came with it.
    announced: Option<Box<Announced>>,
    /// A batch met a message whose descriptors were lost, and that has not been told yet.
    lost: Option<Box<Lost>>,
    /// For the next one, while `pieces` or the message lent last is in use.
    spare: Pieces,
    /// Made with the first message that a batch lent out of pieces, and kept for the next ones.
    assembled: Option<Box<Assembled>>,
    end: Option<Result<(), Box<RecvError>>>,
}

/// What a batch lends that does not lie whole in the current chunk.
#[derive(Default)]
struct Assembled {
    /// A message that lay in pieces, or that came with descriptors.
    message: Option<Message>,
    /// Where the receiver's cursor is as long as the batch has lent nothing after it.
    cursor: usize,
    /// It is the first of a run that has not been asked for it yet.
    unasked: Cell<bool>,
    /// What is to be decoded behind the first of a run, and from where on. It is not the current chunk, so that nothing
    /// of it is lent before.
    behind: Option<(Chunk, usize)>,
}

/// A message whose descriptors were lost.
struct Lost {
    /// The number of descriptors.
    declared: u8,
    /// The rest of its chunk. It is not the current one, so that nothing of it is lent before the loss is told.
    behind: Option<Chunk>,
}

/// What came with a frame whose header announces descriptors.
enum Announced {
    /// It announces none.
    Nothing,
    /// All of them.
    Whole(Vec<OwnedFd>),
    /// This process could not take all of them; they are this many.
    Lost(u8),
}

impl Announced {
    /// The message that they came with.
    fn join(self, message: Message) -> Result<Next, RecvError> {
        match self {
            Self::Nothing => Ok(Next::Assembled(message)),
            Self::Whole(descriptors) => Ok(Next::Assembled(message.with_descriptors(descriptors))),
            Self::Lost(declared) => Err(RecvError::DescriptorsLost { declared }),
        }
    }
}

/// What the decoder found next.
enum Next {
    /// A whole message in the current chunk; the cursor is behind it.
    Whole(Range<usize>),
    /// A message that lay in pieces, or with descriptors.
    Assembled(Message),
    /// Nothing complete in what has arrived.
    Nothing,
}

impl Receiver {
    pub(crate) fn new(link: Rc<Link>) -> Self {
        Self {
            decoder: link.decoder(),
            // Only a link that goes on from elsewhere has something before its first chunk.
            current: link.take_leftover(),
            link,
            cursor: 0,
            told: 0,
            partial: None,
            pieces: Pieces::default(),
            announced: None,
            lost: None,
            spare: Pieces::default(),
            assembled: None,
            end: None,
        }
    }

    /// Waits for the next message.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// [`RecvError`], repeated on every later call, but for [`RecvError::DescriptorsLost`]: then one
    /// message is lost, and the next call goes on behind it.
    pub async fn recv(&mut self) -> Result<Option<Message>, RecvError> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    /// Polls for the next message, as [`Receiver::recv`].
    pub fn poll_recv(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Message>, RecvError>> {
        if let Some(message) = self.let_go() {
            return Poll::Ready(Ok(Some(message)));
        }
        self.tell_lost()?;
        loop {
            match self.next() {
                Ok(Next::Whole(range)) => {
                    if let Some(message) = self.take_whole(range) {
                        return Poll::Ready(Ok(Some(message)));
                    }
                }
                Ok(Next::Assembled(message)) => return Poll::Ready(Ok(Some(message))),
                Ok(Next::Nothing) => match self.poll_more(context) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                },
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Waits until messages are there, and lends all that have arrived. `None` is the clean end. A batch
    /// may turn out empty: then only control frames or part of a message had arrived.
    ///
    /// The frames of a batch are borrowed: no reference count and no copy each. What the batch was not
    /// asked for stays for the next call.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// [`RecvError`], after the messages before it have been lent; repeated on every later call, but for
    /// [`RecvError::DescriptorsLost`].
    pub async fn recv_batch(&mut self) -> Result<Option<Batch<'_>>, RecvError> {
        if poll_fn(|context| self.poll_input(context)).await? {
            Ok(Some(Batch { receiver: self }))
        } else {
            Ok(None)
        }
    }

    /// Waits for messages and takes as many as lie together, in their framing, to be passed on by
    /// [`Sender::send_run`](crate::Sender::send_run) without a copy. A message with file descriptors is a
    /// run of its own, and they are passed on with it. `None` is the clean end.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// [`RecvError`], repeated on every later call, but for [`RecvError::DescriptorsLost`].
    pub async fn recv_run(&mut self) -> Result<Option<Run>, RecvError> {
        poll_fn(|context| self.poll_run(context)).await
    }

    fn poll_run(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Run>, RecvError>> {
        if let Some(message) = self.let_go() {
            return Poll::Ready(Ok(Some(self.single(message))));
        }
        self.tell_lost()?;
        loop {
            if let Some(run) = self.whole_run() {
                return Poll::Ready(Ok(Some(run)));
            }
            match self.next() {
                Ok(Next::Whole(range)) => {
                    let Some(message) = self.take_whole(range) else { continue };
                    return Poll::Ready(Ok(Some(self.single(message))));
                }
                Ok(Next::Assembled(message)) => {
                    return Poll::Ready(Ok(Some(self.single(message))));
                }
                Ok(Next::Nothing) => match self.poll_more(context) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                },
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// True once the peer has asked for an end of the connection (GOAWAY): finish what is open, then
    /// [`shutdown`](crate::Sender::shutdown).
    pub fn peer_is_going_away(&self) -> bool {
        self.link.peer_going_away.get()
    }

    fn single(&self, message: Message) -> Run {
        let profile = self.link.options.profile;
        let longest = message.len();
        Run { kind: RunKind::Single(message), profile, messages: 1, longest }
    }

    /// The plain whole messages at the cursor, with their headers.
    fn whole_run(&mut self) -> Option<Run> {
        let decoder = self.decoder.as_ref()?;
        let current = self.current.as_ref()?;
        let input = current.as_slice().get(self.cursor..)?;
        let mut whole = decoder.whole_messages();
        let mut behind = input;
        let mut messages = 0;
        let mut longest = 0;
        while let Some((body, rest)) = whole.split(behind) {
            longest = longest.max(body.len());
            behind = rest;
            messages += 1;
        }
        if messages == 0 {
            return None;
        }
        let len = input.len() - behind.len();
        let chunk = current.slice(self.cursor..self.cursor + len);
        self.cursor += len;
        if self.current.as_ref().is_some_and(|current| self.cursor >= current.len()) {
            self.set_current(None);
        }
        let profile = self.link.options.profile;
        Some(Run { kind: RunKind::Framed(chunk), profile, messages, longest })
    }

    /// The message at `range` of the current chunk; the chunk itself if it ends with it.
    fn take_whole(&mut self, range: Range<usize>) -> Option<Message> {
        let current = self.current.as_ref()?;
        if range.end < current.len() {
            return Some(Message::whole(current.slice(range)));
        }
        let mut chunk = self.current.take()?;
        self.set_current(None);
        chunk.advance(range.start);
        Some(Message::whole(chunk))
    }

    /// The body of the plain whole message at the cursor, if there is one; the cursor is then behind
    /// it, possibly at the end of the chunk, which whoever uses the range lets go of.
    #[inline(always)]
    fn next_whole(&mut self) -> Option<Range<usize>> {
        let decoder = self.decoder.as_ref()?;
        let input = self.current.as_ref()?.as_slice().get(self.cursor..)?;
        let body = decoder.whole_message(input)?;
        let start = self.cursor;
        self.cursor += body.end;
        Some(start + body.start..start + body.end)
    }

    /// True if a plain whole message is at the cursor.
    #[inline(always)]
    fn starts_whole(&self) -> bool {
        let input = self.current.as_ref().and_then(|current| current.as_slice().get(self.cursor..));
        let (Some(decoder), Some(input)) = (&self.decoder, input) else { return false };
        decoder.whole_message(input).is_some()
    }

    /// Tells the decoder what the fast path has taken.
    fn tell(&mut self) {
        if let Some(decoder) = &mut self.decoder {
            decoder.advance_position((self.cursor - self.told) as u64);
        }
        self.told = self.cursor;
    }

    /// Lets go of the current chunk, all of which has been decoded.
    #[inline]
    fn let_go_of_current(&mut self) {
        if self.current.is_some() {
            self.set_current(None);
        }
    }

    /// Makes `chunk` the current one, at its start.
    fn set_current(&mut self, chunk: Option<Chunk>) {
        self.tell();
        self.current = chunk;
        self.cursor = 0;
        self.told = 0;
    }

    /// Decodes at the cursor. Waits for nothing.
    #[inline]
    fn next(&mut self) -> Result<Next, RecvError> {
        match self.next_whole() {
            Some(range) => Ok(Next::Whole(range)),
            None => self.next_slow(),
        }
    }

    #[cold]
    fn next_slow(&mut self) -> Result<Next, RecvError> {
        self.tell();
        loop {
            let (Some(decoder), Some(current)) = (&mut self.decoder, &self.current) else {
                return Ok(Next::Nothing);
            };
            let input = current.as_slice().get(self.cursor..).unwrap_or_default();
            if input.is_empty() {
                self.set_current(None);
                return Ok(Next::Nothing);
            }
            let step = match decoder.step(input) {
                Ok(step) => step,
                Err(error) => return Err(self.protocol_error(error)),
            };
            let start = self.cursor;
            self.cursor += step.consumed();
            self.told = self.cursor;
            match step {
                Step::NeedMore { .. } => {}
                Step::Frame { header, body } => {
                    let range = start + body.start..start + body.end;
                    if header.kind == FrameKind::Message && header.fds == 0 {
                        return Ok(Next::Whole(range));
                    }
                    let message = Message::whole(current.slice(range));
                    let frame_bytes = HEADER_BYTES as u64 + u64::from(header.len);
                    let position = decoder.position_bytes() - frame_bytes;
                    let announced = self.claim(header, position)?;
                    if header.kind == FrameKind::Message {
                        return announced.join(message);
                    }
                    self.control(header.kind, &message)?;
                }
                Step::Begin { header, .. } => {
                    let position = decoder.position_bytes();
                    self.announced = match self.claim(header, position)? {
                        Announced::Nothing => None,
                        announced => Some(Box::new(announced)),
                    };
                    self.partial = Some(header.kind);
                    if self.pieces.is_unused() {
                        std::mem::swap(&mut self.pieces, &mut self.spare);
                    }
                }
                Step::Body { consumed, last } => {
                    let piece = current.slice(start..start + consumed);
                    let Some(kind) = self.partial else { continue };
                    if !matches!(kind, FrameKind::Unknown(_)) {
                        self.pieces.push(piece);
                    }
                    if last {
                        self.partial = None;
                        let message = self.pieces.take();
                        let announced = self
                            .announced
                            .take()
                            .map_or(Announced::Nothing, |announced| *announced);
                        if kind == FrameKind::Message {
                            return announced.join(message);
                        }
                        self.control(kind, &message)?;
                    }
                }
            }
        }
    }

    /// The descriptors that a frame announces, whose header lies at `position` behind the greeting.
    fn claim(&mut self, header: FrameHeader, position: u64) -> Result<Announced, RecvError> {
        let FrameHeader { fds: declared, .. } = header;
        if declared == 0 {
            return Ok(Announced::Nothing);
        }
        let received = match self.link.stream.claim_descriptors(HELLO_BYTES as u64 + position) {
            Ok(DescriptorClaim::Whole(found)) if found.len() == usize::from(declared) => {
                return Ok(Announced::Whole(found));
            }
            Ok(DescriptorClaim::Lost) => return Ok(Announced::Lost(declared)),
            Ok(DescriptorClaim::Whole(found)) => count(found.len()),
            Ok(_) => 0,
            Err(strays) => {
                let source = ProtocolError::DescriptorsUndeclared { count: count(strays) };
                return Err(self.protocol_error_at(position, source));
            }
        };
        let source = ProtocolError::DescriptorCount { declared, received };
        Err(self.protocol_error_at(position, source))
    }

    /// Once everything taken has been decoded: descriptors that came with none of it end the
    /// connection.
    fn check_undeclared(&mut self) -> Result<(), RecvError> {
        if self.link.descriptors_max.get() == 0 {
            return Ok(());
        }
        let kept = self.decoder.as_ref().map_or(0, Decoder::header_bytes_kept);
        match self.link.stream.undeclared_descriptors(kept) {
            0 => Ok(()),
            strays => {
                let source = ProtocolError::DescriptorsUndeclared { count: count(strays) };
                Err(self.protocol_error(source))
            }
        }
    }

    fn control(&mut self, kind: FrameKind, body: &[u8]) -> Result<(), RecvError> {
        match kind {
            FrameKind::Ping => {
                // A peer has at most one PING unanswered (SPEC.md, section 4), so one answer at a time may
                // go beyond the bound of the queue; one that breaks the rule gets no more than that. Once
                // an answer has left there has been room, and the next may go beyond.
                if !self.link.finished.get()
                    && let Ok(pong) = control_frame(FrameKind::Pong, body)
                {
                    self.link.stream.append_beyond(pong.as_bytes());
                }
            }
            FrameKind::GoAway => self.link.set_peer_going_away(),
            FrameKind::Reject => {
                let reason = readable(body);
                let closed = Closed::Rejected { reason };
                self.link.close(closed.clone());
                return Err(self.end_with(closed.into()));
            }
            // The decoder keeps what FIN means; the others have no effect.
            _ => {}
        }
        Ok(())
    }

    /// What has been received and not been handed out, as bytes which put another receiver of this
    /// connection into the state of this one. `behind` is what came after the current chunk.
    ///
    /// A message in pieces starts anew with its header; what the peer has said about its end is said again.
    pub(crate) fn into_received(mut self, behind: Vec<Chunk>) -> Vec<u8> {
        let unasked = self.let_go();
        self.tell();
        let mut bytes = Vec::new();
        if self.link.peer_going_away.get() {
            bytes.extend_from_slice(ControlFrame::go_away(u64::MAX).as_bytes());
        }
        let decoder = self.decoder.as_ref();
        if matches!(self.link.options.profile, Profile::Native)
            && decoder.is_some_and(Decoder::is_finished)
        {
            bytes.extend_from_slice(ControlFrame::fin().as_bytes());
        }
        if let Some(message) = unasked {
            self.put_header(message.len(), &mut bytes);
            message.chunks().for_each(|piece| bytes.extend_from_slice(piece));
        }
        match decoder.and_then(Decoder::unfinished) {
            Some(Unfinished::Header(part)) => bytes.extend_from_slice(part),
            Some(Unfinished::Body { mut header, remaining }) => {
                if matches!(header.kind, FrameKind::Unknown(_)) {
                    // Nothing of it is kept: what is left to skip is a frame of its own.
                    header.len = remaining;
                }
                if matches!(self.link.options.profile, Profile::Native) {
                    bytes.extend_from_slice(&header.encode());
                } else {
                    self.put_header(header.len as usize, &mut bytes);
                }
                self.pieces.take().chunks().for_each(|piece| bytes.extend_from_slice(piece));
            }
            None => {}
        }
        if let Some(current) = &self.current {
            bytes.extend_from_slice(current.as_slice().get(self.cursor..).unwrap_or_default());
        }
        let leftover = self.link.take_leftover();
        leftover.iter().chain(&behind).for_each(|chunk| bytes.extend_from_slice(chunk.as_slice()));
        bytes
    }

    fn put_header(&self, len: usize, bytes: &mut Vec<u8>) {
        let mut header = [0; Prefix::BYTES_MAX];
        if let Ok(size) = self.link.options.profile.write_message_header(len, &mut header) {
            bytes.extend_from_slice(&header[..size]);
        }
    }

    /// The error after which nothing more is received.
    pub(crate) fn failure(&self) -> Option<RecvError> {
        self.end.clone().and_then(Result::err).map(|error| *error)
    }

    #[cold]
    fn protocol_error(&mut self, source: ProtocolError) -> RecvError {
        let position = self.decoder.as_ref().map_or(0, Decoder::position_bytes);
        self.protocol_error_at(position, source)
    }

    #[cold]
    fn protocol_error_at(&mut self, position: u64, source: ProtocolError) -> RecvError {
        self.link.reject(&source.to_string());
        self.link.close(Closed::Protocol(Box::new(source)));
        self.end_with(RecvError::Protocol { position, source })
    }

    fn end_with(&mut self, error: RecvError) -> RecvError {
        self.set_current(None);
        self.partial = None;
        self.pieces.clear();
        self.announced = None;
        self.end = Some(Err(Box::new(error.clone())));
        error
    }

    /// Lets go of the message in pieces or with descriptors that was lent last, and keeps its list for the
    /// next one. The message itself if it was not asked for.
    #[inline]
    fn let_go(&mut self) -> Option<Message> {
        if self.assembled_message().is_some() { self.let_go_of_assembled() } else { None }
    }

    /// Out of the way of receives that have nothing to let go of.
    #[inline(never)]
    fn let_go_of_assembled(&mut self) -> Option<Message> {
        let assembled = self.assembled.as_mut()?;
        let message = assembled.message.take()?;
        let unasked = assembled.unasked.replace(false);
        self.resume();
        if unasked {
            return Some(message);
        }
        if let Some(pieces) = message.recycle() {
            self.spare = pieces;
        }
        None
    }

    /// Keeps a message for a run of its own: it stays, before all that follows, until it is asked for.
    fn keep_unasked(&mut self, message: Message) {
        self.tell();
        let behind = self.current.take().map(|chunk| (chunk, self.cursor));
        (self.cursor, self.told) = (0, 0);
        let assembled = self.assembled.get_or_insert_default();
        **assembled =
            Assembled { message: Some(message), cursor: 0, unasked: Cell::new(true), behind };
    }

    fn is_unasked(&self) -> bool {
        self.assembled.as_ref().is_some_and(|assembled| assembled.unasked.get())
    }

    /// Makes what lies behind a run of one current again.
    fn resume(&mut self) {
        let behind = self.assembled.as_mut().and_then(|assembled| assembled.behind.take());
        if let Some((chunk, cursor)) = behind {
            self.set_current(Some(chunk));
            (self.cursor, self.told) = (cursor, cursor);
            self.let_go();
        }
    }

    /// Lets go of it if the fast path, which knows nothing of it, has lent another one since.
    fn let_go_of_earlier(&mut self) {
        if self.assembled.as_ref().is_some_and(|assembled| assembled.cursor != self.cursor) {
            // Another one has been lent since: it was asked for.
            let unasked = self.let_go();
            debug_assert!(unasked.is_none());
        }
    }

    fn assembled_message(&self) -> Option<&Message> {
        self.assembled.as_ref()?.message.as_ref()
    }

    /// The loss that a batch met.
    #[inline]
    fn tell_lost(&mut self) -> Result<(), RecvError> {
        match self.lost.take() {
            Some(lost) => Err(self.told_lost(*lost)),
            None => Ok(()),
        }
    }

    #[cold]
    fn told_lost(&mut self, lost: Lost) -> RecvError {
        self.set_current(lost.behind);
        RecvError::DescriptorsLost { declared: lost.declared }
    }

    /// True if something of the current chunk has not been decoded.
    #[inline]
    fn has_input(&self) -> bool {
        self.current.as_ref().is_some_and(|current| self.cursor < current.len())
    }

    /// Waits until there is undecoded input. False at the clean end.
    fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, RecvError>> {
        if self.is_unasked() {
            return Poll::Ready(Ok(true));
        }
        self.let_go();
        self.tell_lost()?;
        if self.has_input() {
            return Poll::Ready(Ok(true));
        }
        self.let_go_of_current();
        self.poll_more(context)
    }

    /// Waits for another chunk and makes it the current one. False at the clean end.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, RecvError>> {
        match &self.end {
            Some(Ok(())) => return Poll::Ready(Ok(false)),
            Some(Err(error)) => return Poll::Ready(Err(RecvError::clone(error))),
            None => {}
        }
        if self.decoder.is_none() {
            match self.link.poll_open(Half::Receiver, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(closed)) => {
                    return Poll::Ready(Err(self.end_with(closed.into())));
                }
                Poll::Ready(Ok(())) => self.decoder = self.link.decoder(),
            }
            if let Some(chunk) = self.link.take_leftover() {
                return self.begin(chunk);
            }
        }
        self.check_undeclared()?;
        match self.link.stream.poll_receive(context) {
            // FIN has come. A peer may wait for ours before it closes, so that waiting for the end of
            // the stream might be for ever.
            Poll::Pending if self.decoder.as_ref().is_some_and(Decoder::is_finished) => {
                Poll::Ready(Ok(false))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(Inbound::Chunk(chunk))) => self.begin(chunk),
            Poll::Ready(Ok(Inbound::Truncated { len })) => {
                let header = self.link.options.profile.header_bytes();
                let len = len.saturating_sub(header) as u64;
                let limit = self.link.options.frame_bytes_max;
                let error = ProtocolError::FrameTooLarge { len, limit };
                Poll::Ready(Err(self.protocol_error(error)))
            }
            Poll::Ready(Ok(_)) => Poll::Ready(self.at_end_of_file()),
            Poll::Ready(Err(error)) => {
                // After a clean end of the messages, how the socket goes is of no concern.
                if self.decoder.as_ref().is_some_and(Decoder::is_finished) {
                    self.end = Some(Ok(()));
                    return Poll::Ready(Ok(false));
                }
                let closed = self.link.explain(error);
                Poll::Ready(Err(self.end_with(closed.into())))
            }
        }
    }

    #[inline(always)]
    fn begin(&mut self, chunk: Chunk) -> Poll<Result<bool, RecvError>> {
        if let Err(error) = self.check_packet(&chunk) {
            return Poll::Ready(Err(self.protocol_error(error)));
        }
        self.set_current(Some(chunk));
        Poll::Ready(Ok(true))
    }

    /// Whether a packet holds exactly one frame; a chunk of a stream may hold anything.
    #[inline]
    fn check_packet(&self, chunk: &Chunk) -> Result<(), ProtocolError> {
        match &self.decoder {
            Some(decoder) if self.link.stream.is_packets() => {
                decoder.check_packet(chunk.as_slice())
            }
            _ => Ok(()),
        }
    }

    fn at_end_of_file(&mut self) -> Result<bool, RecvError> {
        let end = self.decoder.as_ref().map_or(Ok(StreamEnd::Aborted), Decoder::end);
        let error = match end {
            Ok(StreamEnd::Clean) => {
                self.end = Some(Ok(()));
                return Ok(false);
            }
            Ok(StreamEnd::Truncated) => RecvError::Truncated,
            Ok(_) => Closed::Aborted.into(),
            Err(source) => RecvError::Protocol {
                position: self.decoder.as_ref().map_or(0, Decoder::position_bytes),
                source,
            },
        };
        Err(self.end_with(error))
    }
}

fn count(descriptors: usize) -> u16 {
    u16::try_from(descriptors).unwrap_or(u16::MAX)
}

/// A peer's text for people's eyes: it can't forge lines or steer a terminal.
fn readable(text: &[u8]) -> String {
    let mut readable = String::with_capacity(text.len());
    for character in String::from_utf8_lossy(text).chars() {
        if character.is_control() {
            readable.extend(character.escape_default());
        } else {
            readable.push(character);
        }
    }
    readable
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("link", &self.link).finish_non_exhaustive()
    }
}

/// Messages that have arrived, lent in place. See [`Receiver::recv_batch`].
#[derive(Debug)]
pub struct Batch<'receiver> {
    receiver: &'receiver mut Receiver,
}

impl Batch<'_> {
    /// The next message, without waiting; `None` when all that have arrived were lent. An error in the
    /// stream shows up in the next [`Receiver::recv_batch`].
    #[expect(clippy::should_implement_trait, reason = "items borrow from the batch")]
    #[inline(always)]
    pub fn next(&mut self) -> Option<Frame<'_>> {
        match self.receiver.next_whole() {
            Some(range) => {
                let chunk = self.receiver.current.as_ref()?;
                Some(Frame::new(chunk, chunk.as_slice().get(range)?))
            }
            None => self.next_slow(),
        }
    }

    /// The next messages that lie together, without waiting; `None` when all that have arrived were
    /// lent. The fastest way through many small messages:
    ///
    /// ```
    /// # async fn example(receiver: &mut ringpost::Receiver) -> Result<(), ringpost::RecvError> {
    /// # let mut sum = 0;
    /// while let Some(mut batch) = receiver.recv_batch().await? {
    ///     while let Some(frames) = batch.next_run() {
    ///         for frame in frames {
    ///             sum += frame.len();
    ///         }
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[inline]
    pub fn next_run(&mut self) -> Option<Frames<'_>> {
        if !self.receiver.starts_whole() {
            // One message the general way: it brings the next chunk, and deals with what is no message.
            match self.advance_slow()? {
                // It was found as it lies, and stays in the batch until it is asked for.
                Found::Whole(range) if self.receiver.told < self.receiver.cursor => {
                    let header_bytes = self.receiver.link.options.profile.header_bytes();
                    self.receiver.cursor = range.start.checked_sub(header_bytes)?;
                }
                found => return self.run_of_one(found),
            }
        }
        let Receiver { decoder, current, cursor, .. } = &mut *self.receiver;
        let (Some(decoder), Some(chunk)) = (decoder, current) else { return None };
        let rest = chunk.as_slice().get(*cursor..)?;
        let whole = decoder.whole_messages();
        Some(Frames { rest, whole, chunk, cursor: Some(cursor), single: None })
    }

    /// A run of a message that does not lie whole in the current chunk, or that was not found there as it lies.
    #[cold]
    fn run_of_one(&mut self, found: Found) -> Option<Frames<'_>> {
        let receiver = &mut *self.receiver;
        if !receiver.is_unasked() {
            let message = match found {
                Found::Whole(range) => Message::whole(receiver.current.as_ref()?.slice(range)),
                Found::Assembled => receiver.assembled.as_mut()?.message.take()?,
            };
            receiver.keep_unasked(message);
        }
        let Assembled { message, unasked, .. } = receiver.assembled.as_deref()?;
        let message = message.as_ref()?;
        Some(Frames {
            rest: &[],
            whole: WholeMessages::none(),
            chunk: message.first_piece(),
            cursor: None,
            single: Some((message, unasked)),
        })
    }

    /// Takes the file descriptors of the message that was lent last, if it came with some. After the next
    /// message they can't be taken any more; they are closed then or soon after it, at the latest when
    /// something is received behind this batch.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        if self.receiver.is_unasked() {
            return Vec::new();
        }
        self.receiver.let_go_of_earlier();
        let message =
            self.receiver.assembled.as_mut().and_then(|assembled| assembled.message.as_mut());
        message.map(Message::take_descriptors).unwrap_or_default()
    }

    /// Control frames, messages in pieces, and the next chunk if it has arrived.
    #[cold]
    fn advance_slow(&mut self) -> Option<Found> {
        if self.receiver.is_unasked() {
            return Some(Found::Assembled);
        }
        self.receiver.resume();
        self.receiver.let_go_of_earlier();
        let found = self.find();
        if matches!(found, Some(Found::Whole(_))) {
            self.receiver.let_go();
        }
        if let Some(assembled) = &mut self.receiver.assembled {
            assembled.cursor = self.receiver.cursor;
        }
        found
    }

    fn find(&mut self) -> Option<Found> {
        let receiver = &mut *self.receiver;
        // What lies behind an end that has been found is not to be used.
        if receiver.lost.is_some() || receiver.end.is_some() {
            return None;
        }
        loop {
            let next = if receiver.has_input() {
                receiver.next()
            } else {
                receiver.let_go_of_current();
                Ok(Next::Nothing)
            };
            match next {
                Ok(Next::Whole(range)) => return Some(Found::Whole(range)),
                Ok(Next::Assembled(message)) => {
                    receiver.let_go();
                    receiver.assembled.get_or_insert_default().message = Some(message);
                    return Some(Found::Assembled);
                }
                Ok(Next::Nothing) => {
                    receiver.check_undeclared().ok()?;
                    let chunk = receiver.link.stream.try_receive()?;
                    if let Err(error) = receiver.check_packet(&chunk) {
                        // Kept for the next call of `recv_batch`.
                        receiver.protocol_error(error);
                        return None;
                    }
                    receiver.set_current(Some(chunk));
                }
                Err(RecvError::DescriptorsLost { declared }) => {
                    let mut behind = receiver.current.take();
                    if let Some(chunk) = &mut behind {
                        chunk.advance(receiver.cursor);
                    }
                    receiver.set_current(None);
                    receiver.lost = Some(Box::new(Lost { declared, behind }));
                    return None;
                }
                // Kept for the next call of `recv_batch`.
                Err(_) => return None,
            }
        }
    }

    #[cold]
    fn next_slow(&mut self) -> Option<Frame<'_>> {
        match self.advance_slow()? {
            Found::Whole(range) => {
                let chunk = self.receiver.current.as_ref()?;
                Some(Frame::new(chunk, chunk.as_slice().get(range)?))
            }
            Found::Assembled => {
                let assembled = self.receiver.assembled.as_deref()?;
                assembled.unasked.set(false);
                assembled.message.as_ref().map(Frame::of)
            }
        }
    }
}

/// What lies at the front of a batch.
enum Found {
    /// A message in the current chunk.
    Whole(Range<usize>),
    /// A message that lay in pieces, now the assembled one.
    Assembled,
}

/// Messages that lie together. See [`Batch::next_run`]. What it is not asked for stays in the batch when it is dropped; if
/// it is leaked, all of it does.
#[derive(Debug)]
pub struct Frames<'batch> {
    /// What has not been asked for, from the first header on.
    rest: &'batch [u8],
    whole: WholeMessages<'batch>,
    /// What `rest` is the end of.
    chunk: &'batch Chunk,
    /// The receiver's, moved along at the end.
    cursor: Option<&'batch mut usize>,
    /// A message that does not lie there, and where it is told that it has been asked for.
    single: Option<(&'batch Message, &'batch Cell<bool>)>,
}

impl<'batch> Frames<'batch> {
    #[cold]
    fn next_single(&mut self) -> Option<Frame<'batch>> {
        let (message, unasked) = self.single.take()?;
        unasked.set(false);
        Some(Frame::of(message))
    }
}

impl<'batch> Iterator for Frames<'batch> {
    type Item = Frame<'batch>;

    #[inline(always)]
    fn next(&mut self) -> Option<Frame<'batch>> {
        match self.whole.split(self.rest) {
            Some((body, rest)) => {
                self.rest = rest;
                Some(Frame::new(self.chunk, body))
            }
            None => self.next_single(),
        }
    }
}

impl Drop for Frames<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(cursor) = &mut self.cursor {
            **cursor = self.chunk.len() - self.rest.len();
        }
    }
}
