//! The sending half of a connection.

use std::fmt;
use std::future::poll_fn;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use ringpost_frame::{ControlFrame, Decoder, FrameHeader, HEADER_BYTES, Profile, message_header};
use ringpost_reactor::{Appender, Chunk, DescriptorSendError, Payload, Prefix};

use crate::error::SendError;
use crate::link::{Half, Link};
use crate::message::{Message, Run, RunKind};
use crate::wire::WireAppender;

/// The sending half of a connection.
///
/// A message is *accepted* when a send returns `Ok`: it is queued, bounded by
/// [`outbound_bytes_max`](crate::RuntimeBuilder::outbound_bytes_max), and leaves with everything else
/// that is queued at the end of the runtime's turn (on io_uring in one system call with what other connections
/// send). [`Sender::flush`] waits until the kernel has it.
///
/// Dropping both halves closes the connection; what was accepted still leaves in the background, at
/// most [`linger`](crate::RuntimeBuilder::linger) long and as long as the runtime lives: at its end, what does not
/// fit the socket is lost, so flush or shut down first. Without [`Sender::shutdown`] a peer of the native profile
/// sees an abort.
pub struct Sender {
    link: Rc<Link>,
    native: bool,
    /// Messages with descriptors sent since this half last let the runtime turn for it.
    direct_sends: u32,
}

/// Messages with descriptors sent in a row before others get a turn: they don't wait in a queue, so
/// nothing else would make their sender pause while the peer reads.
const DIRECT_SENDS_MAX: u32 = 64;

impl Sender {
    pub(crate) fn new(link: Rc<Link>) -> Self {
        let native = matches!(link.options.profile, Profile::Native);
        Self { link, native, direct_sends: 0 }
    }

    /// Waits until the peer's greeting is there. Sending does so by itself where it must; a
    /// [batch](Sender::batch) does not. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::Closed) if the two sides can't talk, or the peer is silent for longer than
    /// [`handshake_ms_max`](crate::ConnectionOptions::handshake_ms_max).
    pub async fn ready(&mut self) -> Result<(), crate::Closed> {
        poll_fn(|context| self.link.poll_open(Half::Sender, context)).await
    }

    /// Accepts a copy of `body` if there is room. Never waits.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] without room, [`SendError::NotReady`] for more than 1024 bytes before the
    /// peer's greeting is there, [`SendError::TooLarge`] over the limit, [`SendError::Finished`] after
    /// [`Sender::shutdown`]; otherwise the end of the connection. Nothing has been accepted then.
    #[inline]
    pub fn try_send(&mut self, body: &[u8]) -> Result<(), SendError> {
        if body.len() > self.link.message_bytes_max.get() || self.link.finished.get() {
            self.look_for_greeting(body.len())?;
        }
        let prefix = self.prefix(body.len());
        let appended = self.link.stream.try_append(prefix, body);
        match appended {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.full()),
            Err(error) => Err(self.link.explain(error).into()),
        }
    }

    /// Accepts a copy of `body`, waiting for room.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing has been accepted.
    ///
    /// # Errors
    ///
    /// As [`Sender::try_send`], without `Full` and `NotReady`.
    #[inline]
    pub async fn send(&mut self, body: &[u8]) -> Result<(), SendError> {
        // Most sends find room; only the others make a future of it.
        if self.has_room(body.len()) {
            self.link.stream.append(self.prefix(body.len()), body);
            return Ok(());
        }
        self.room(body.len()).await?;
        self.link.stream.append(self.prefix(body.len()), body);
        Ok(())
    }

    /// Accepts a message of `len` bytes that `fill` writes in place, waiting for room. The bytes are
    /// zero at first.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, `fill` has not been called and nothing has been
    /// accepted.
    ///
    /// # Errors
    ///
    /// As [`Sender::send`].
    pub async fn send_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), SendError> {
        if self.has_room(len) {
            self.link.stream.append_with(self.prefix(len), len, fill);
            return Ok(());
        }
        self.room(len).await?;
        self.link.stream.append_with(self.prefix(len), len, fill);
        Ok(())
    }

    /// Accepts a message of `len` bytes that `fill` writes in place, if there is room. Never waits. The
    /// bytes are zero at first.
    ///
    /// # Errors
    ///
    /// As [`Sender::try_send`]; `fill` has not been called then.
    #[inline]
    pub fn try_send_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), SendError> {
        if len > self.link.message_bytes_max.get() || self.link.finished.get() {
            self.look_for_greeting(len)?;
        }
        match self.link.stream.has_room() {
            Ok(true) => {}
            Ok(false) => return Err(self.full()),
            Err(error) => return Err(self.link.explain(error).into()),
        }
        let prefix = self.prefix(len);
        self.link.stream.append_with(prefix, len, fill);
        Ok(())
    }

    /// Waits for room, and then takes many messages in a row: for producers that have more than one
    /// at hand, this is the fastest way. What was pushed is queued as the batch goes, the last of it when
    /// it is dropped; until then what was accepted just before may wait with it, and answers to a peer's PING
    /// behind it.
    ///
    /// ```
    /// # async fn example(sender: &mut ringpost::Sender, rows: &[[u8; 16]]) -> Result<(), ringpost::SendError> {
    /// let mut rows = rows.iter();
    /// while rows.len() > 0 {
    ///     let mut batch = sender.batch().await?;
    ///     while batch.has_room() && let Some(row) = rows.next() {
    ///         batch.push(row)?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing has been accepted.
    ///
    /// The greeting is not waited for: until it is there, more than 1024 bytes are refused
    /// ([`SendError::NotReady`]). See [`Sender::ready`].
    ///
    /// # Errors
    ///
    /// [`SendError::Finished`] after [`Sender::shutdown`]; the end of the connection.
    pub async fn batch(&mut self) -> Result<SendBatch<'_>, SendError> {
        if !self.link.stream.is_packets() {
            // One look in the usual case. Packets are asked for room first: to open a batch in vain would take a failure
            // that is told once.
            if let Ok(batch) = self.open_batch()
                && batch.has_room()
            {
                return Ok(batch);
            }
        } else if self.has_room(0) {
            return self.open_batch();
        }
        self.room(0).await?;
        self.open_batch()
    }

    /// Takes messages in a row as [`Sender::batch`], without waiting: there may be no room.
    ///
    /// # Errors
    ///
    /// [`SendError::Finished`] after a shutdown, or the end of the connection.
    pub fn try_batch(&mut self) -> Result<SendBatch<'_>, SendError> {
        self.open_batch()
    }

    #[inline(always)]
    fn open_batch(&self) -> Result<SendBatch<'_>, SendError> {
        if self.link.finished.get() {
            return Err(self.refusal(0));
        }
        let appender = self.link.stream.appender().map_err(|error| self.link.explain(error))?;
        let usual = Usual::new(self.link.options.profile, self.link.message_bytes_max.get());
        Ok(SendBatch { appender, usual, sender: self })
    }

    /// Accepts `body`, waiting for room. From
    /// [`gather_bytes_min`](crate::ConnectionOptions::gather_bytes_min) bytes on it is not copied: the
    /// kernel reads it where it lies.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing has been accepted.
    ///
    /// # Errors
    ///
    /// As [`Sender::send`].
    pub async fn send_bytes(&mut self, body: Bytes) -> Result<(), SendError> {
        if body.len() < self.link.options.gather_bytes_min {
            return self.send(&body).await;
        }
        self.room(body.len()).await?;
        let prefix = self.prefix(body.len());
        self.link.stream.append_shared(prefix, Payload::Bytes(body));
        Ok(())
    }

    /// Sends a copy of `body` with file descriptors, which stay open here: the receiver gets
    /// descriptors of its own for the same files, and the caller may close its own once this has returned.
    /// Files, sockets, pipes, memory files and whatever else can be passed
    /// (unix(7), SCM_RIGHTS) but io_uring instances.
    ///
    /// Such a message does not wait in the outbound queue. What was accepted before is handed to the
    /// kernel, which then takes the descriptors with the beginning of the message, or refuses them. So
    /// `Ok` means that they are on their way, and nothing that can't be delivered is kept open. What does
    /// not fit the socket of a long body is queued as usual.
    ///
    /// Without any descriptors this is [`Sender::send`].
    ///
    /// ```
    /// # async fn example(sender: &mut ringpost::Sender) -> Result<(), Box<dyn std::error::Error>> {
    /// let log = std::fs::File::open("/dev/null")?;
    /// sender.send_with_descriptors(b"write here", &[log]).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing of the message has been sent.
    ///
    /// # Errors
    ///
    /// [`SendError::TooManyDescriptors`], [`SendError::DescriptorsRefused`], or as [`Sender::send`].
    /// Nothing of the message has been sent then.
    pub async fn send_with_descriptors(
        &mut self,
        body: &[u8],
        descriptors: &[impl AsFd],
    ) -> Result<(), SendError> {
        if descriptors.is_empty() {
            return self.send(body).await;
        }
        self.let_others_go().await;
        let taken = poll_fn(|context| {
            self.poll_send_with_descriptors(context, body.len(), &[body], descriptors)
        })
        .await?;
        self.append_rest(taken, body, descriptors.len());
        Ok(())
    }

    /// As [`Sender::send_with_descriptors`], if the kernel takes the message and everything before it
    /// now. Never waits.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] if the kernel does not, [`SendError::NotReady`] before the peer's greeting is
    /// there; else as [`Sender::send_with_descriptors`]. Nothing of the message has been sent then.
    pub fn try_send_with_descriptors(
        &mut self,
        body: &[u8],
        descriptors: &[impl AsFd],
    ) -> Result<(), SendError> {
        if descriptors.is_empty() {
            return self.try_send(body);
        }
        // Whoever waits in this half holds `&mut self`, so no waker is lost.
        let mut context = Context::from_waker(Waker::noop());
        let parts = &[body];
        match self.poll_send_with_descriptors(&mut context, body.len(), parts, descriptors) {
            Poll::Ready(taken) => {
                self.append_rest(taken?, body, descriptors.len());
                Ok(())
            }
            Poll::Pending if self.link.is_open() => Err(self.full()),
            Poll::Pending => Err(SendError::NotReady),
        }
    }

    /// Passes a received message on, waiting for room. Its pieces are not copied from
    /// [`gather_bytes_min`](crate::ConnectionOptions::gather_bytes_min) bytes on; seldom is there more than one.
    /// File descriptors that came with it go on with it; if they can't, they are closed, and nothing is sent.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing has been accepted, and the message is dropped with it.
    ///
    /// # Errors
    ///
    /// As [`Sender::send`]; of a message with descriptors also as [`Sender::send_with_descriptors`]. The message is
    /// dropped then.
    pub async fn send_message(&mut self, message: Message) -> Result<(), SendError> {
        if !message.descriptors().is_empty() {
            return self.send_message_with_descriptors(message).await;
        }
        let len = message.len();
        self.room(len).await?;
        let prefix = self.prefix(len);
        self.append_message(prefix, message);
        Ok(())
    }

    /// Passes received frames on as they are, waiting for room: however many messages the run holds,
    /// none is copied or looked at. Both connections must use the same profile. Over packets each message is a packet
    /// of its own, and waits for room by itself.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is ready, nothing has been accepted; over packets, none or some of the
    /// first messages of the run. The run is dropped with it.
    ///
    /// # Errors
    ///
    /// [`SendError::OtherProfile`]; [`SendError::TooLarge`] if the longest message of the run is over
    /// this connection's limit (nothing of the run has been accepted then); else as [`Sender::send_message`].
    pub async fn send_run(&mut self, run: Run) -> Result<(), SendError> {
        if run.profile != self.link.options.profile {
            return Err(SendError::OtherProfile);
        }
        self.room(run.longest).await?;
        match run.kind {
            RunKind::Framed(chunk) if self.link.stream.is_packets() => {
                self.send_frames(&chunk).await?;
            }
            RunKind::Framed(chunk) => self.append_chunk(Prefix::NONE, chunk),
            RunKind::Single(message) if message.descriptors().is_empty() => {
                let prefix = self.prefix(message.len());
                self.append_message(prefix, message);
            }
            RunKind::Single(message) => self.send_message_with_descriptors(message).await?,
        }
        Ok(())
    }

    /// Waits until the kernel has everything accepted so far: it is then delivered even if this
    /// process is killed, as long as the peer lives and reads.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and repeated at will.
    ///
    /// # Errors
    ///
    /// The end of the connection: something accepted can't be delivered.
    pub async fn flush(&mut self) -> Result<(), SendError> {
        poll_fn(|context| {
            self.poll_greeting(context)?;
            let flushed = self.link.stream.poll_flushed(context);
            flushed.map_err(|error| self.link.explain(error).into())
        })
        .await
    }

    /// Says that no more messages follow (FIN), and waits until the kernel has everything. The peer
    /// receives all of it and then a clean end. Receiving goes on.
    ///
    /// # Cancel safety
    ///
    /// Repeat it if it was dropped before it was ready; FIN is sent once.
    ///
    /// # Errors
    ///
    /// The end of the connection: something accepted can't be delivered.
    pub async fn shutdown(&mut self) -> Result<(), SendError> {
        if !self.link.finished.replace(true) && self.native {
            self.link.stream.append(Prefix::NONE, ControlFrame::fin().as_bytes());
        }
        self.flush().await?;
        self.link.stream.shutdown_write();
        Ok(())
    }

    /// Asks the peer to end the connection when it suits it (GOAWAY), once however often this is called (a connection
    /// that has [moved](crate::Connection::detach) may say it again); what it still sends is taken.
    /// Only the native profile can say so. See [`Receiver::peer_is_going_away`](crate::Receiver::peer_is_going_away).
    ///
    /// # Errors
    ///
    /// [`SendError::Finished`] after a shutdown, [`SendError::OtherProfile`] if the profile has no such
    /// frame, or the end of the connection.
    pub fn go_away(&mut self) -> Result<(), SendError> {
        self.link.closed()?;
        if !self.native {
            return Err(SendError::OtherProfile);
        }
        if self.link.finished.get() {
            return Err(SendError::Finished);
        }
        self.link.stream.has_room().map_err(|error| self.link.explain(error))?;
        if !self.link.going_away.replace(true) {
            self.link.stream.append(Prefix::NONE, ControlFrame::go_away(u64::MAX).as_bytes());
        }
        Ok(())
    }

    /// Waits until the peer has asked for an end of the connection (GOAWAY). Finish what is open then,
    /// and [`shutdown`](Self::shutdown).
    ///
    /// The frame is found by receiving, so this is ready only while somebody receives. If the peer never
    /// asks it waits for ever:
    ///
    /// ```
    /// # use std::pin::pin;
    /// # use futures_util::future::{Either, select};
    /// # async fn example(mut connection: ringpost::Connection) -> Result<(), Box<dyn std::error::Error>> {
    /// let (sender, receiver) = connection.halves();
    /// match select(pin!(receiver.recv()), pin!(sender.peer_going_away())).await {
    ///     Either::Left((message, _)) => drop(message?),
    ///     // A server that ends, or is replaced: this connection is finished, and the next one is made.
    ///     Either::Right(((), _)) => sender.shutdown().await?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// May be dropped and repeated at will. One waiter at a time. The future does not borrow the sender; as
    /// long as it exists the connection stays open.
    pub fn peer_going_away(&self) -> impl Future<Output = ()> + use<> {
        let link = Rc::clone(&self.link);
        poll_fn(move |context| link.poll_peer_going_away(context))
    }

    /// Bytes accepted and not yet handed to the kernel.
    pub fn queued_bytes(&self) -> usize {
        self.link.stream.outbound_bytes()
    }

    /// The longest message that may be sent now, bytes. Grows once the peer's greeting is there.
    pub fn message_bytes_max(&self) -> usize {
        self.link.message_bytes_max.get()
    }

    /// The most file descriptors that a message may have now: zero before the peer's greeting is there,
    /// and if this side or the other takes none.
    pub fn descriptors_max(&self) -> usize {
        self.link.descriptors_max.get().into()
    }

    #[cold]
    async fn send_message_with_descriptors(&mut self, message: Message) -> Result<(), SendError> {
        self.let_others_go().await;
        let len = message.len();
        let taken = {
            let parts: Vec<&[u8]> = message.chunks().collect();
            poll_fn(|context| {
                let descriptors = message.descriptors();
                self.poll_send_with_descriptors(context, len, &parts, descriptors)
            })
            .await?
        };
        let sent = self.append_rest_of_header(taken, len, message.descriptors().len());
        let mut skipped = 0;
        for mut chunk in message.into_chunks() {
            let done = (sent - skipped).min(chunk.len());
            skipped += done;
            chunk.advance(done);
            if chunk.is_empty() {
                continue;
            }
            self.append_chunk(Prefix::NONE, chunk);
        }
        Ok(())
    }

    /// Lets the runtime turn after many messages with descriptors.
    async fn let_others_go(&mut self) {
        self.direct_sends += 1;
        if self.direct_sends >= DIRECT_SENDS_MAX {
            self.direct_sends = 0;
            crate::runtime::yield_now().await;
        }
    }

    /// Sends the front of a message of `len` bytes with its descriptors: the number of bytes taken,
    /// header included.
    fn poll_send_with_descriptors(
        &self,
        context: &mut Context<'_>,
        len: usize,
        parts: &[&[u8]],
        descriptors: &[impl AsFd],
    ) -> Poll<Result<usize, SendError>> {
        if !self.link.is_open() && !self.link.finished.get() && self.native {
            match self.link.poll_open(Half::Sender, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(opened) => opened?,
            }
        }
        if len > self.link.message_bytes_max.get() || self.link.finished.get() {
            return Poll::Ready(Err(self.refusal(len)));
        }
        self.link.closed()?;
        let limit = self.descriptors_max();
        let count = descriptors.len();
        if count > limit {
            return Poll::Ready(Err(SendError::TooManyDescriptors { count, limit }));
        }
        let header = u64::from_le_bytes(header_with_descriptors(len, count));
        let header = Prefix::word(header);
        self.link.stream.poll_send_with_descriptors(context, header, parts, descriptors).map_err(
            |error| match error {
                DescriptorSendError::Refused { errno } => SendError::DescriptorsRefused { errno },
                DescriptorSendError::Ended(error) => self.link.explain(error).into(),
                // The enum is open; what it may gain is an end of the stream as well.
                _ => SendError::Closed(crate::error::Closed::Aborted),
            },
        )
    }

    /// Queues what the kernel has not taken of a message with descriptors.
    fn append_rest(&self, taken: usize, body: &[u8], descriptors: usize) {
        let sent = self.append_rest_of_header(taken, body.len(), descriptors);
        if sent < body.len() {
            self.link.stream.append(Prefix::NONE, &body[sent..]);
        }
    }

    /// The number of bytes of the body that were taken; what was not of the header is queued.
    fn append_rest_of_header(&self, taken: usize, len: usize, descriptors: usize) -> usize {
        let header = header_with_descriptors(len, descriptors);
        if let Some(rest) = header.get(taken..).filter(|rest| !rest.is_empty()) {
            self.link.stream.append(Prefix::NONE, rest);
        }
        taken.saturating_sub(header.len())
    }

    /// Passes whole frames on to packets, one in each. How many there are the peer they came from has chosen, so the
    /// bound holds for each.
    async fn send_frames(&self, frames: &Chunk) -> Result<(), SendError> {
        let profile = self.link.options.profile;
        let mut start = 0;
        while let Some(len) = frame_bytes(profile, frames.as_slice().get(start..)) {
            if !self.has_room(0) {
                self.room(0).await?;
            }
            self.append_chunk(Prefix::NONE, frames.slice(start..start + len));
            start += len;
        }
        Ok(())
    }

    fn append_message(&self, prefix: Prefix, message: Message) {
        if self.link.stream.is_packets() && !message.is_contiguous() {
            // A packet is not sent in parts.
            self.link.stream.append_with(prefix, message.len(), |bytes| message.copy_to(bytes));
            return;
        }
        let mut prefix = prefix;
        for chunk in message.into_chunks() {
            self.append_chunk(prefix, chunk);
            prefix = Prefix::NONE;
        }
    }

    /// Queues a piece of a message. The peer it came from has chosen how long each is, so that is decided for each.
    fn append_chunk(&self, prefix: Prefix, chunk: Chunk) {
        if chunk.len() >= self.link.options.gather_bytes_min {
            self.link.stream.append_shared(prefix, payload(chunk));
        } else {
            chunk.count_copied(chunk.len());
            self.link.stream.append(prefix, chunk.as_slice());
        }
    }

    /// True if a message of `len` bytes may be accepted now.
    #[inline]
    fn has_room(&self, len: usize) -> bool {
        len <= self.link.message_bytes_max.get()
            && !self.link.finished.get()
            && matches!(self.link.stream.has_prompt_room(), Ok(true))
    }

    /// Waits until a message of `len` bytes may be accepted.
    async fn room(&self, len: usize) -> Result<(), SendError> {
        poll_fn(|context| self.poll_room(len, context)).await
    }

    fn poll_room(&self, len: usize, context: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        if len > self.link.message_bytes_max.get() || self.link.finished.get() {
            if self.link.is_open() || self.link.finished.get() {
                return Poll::Ready(Err(self.refusal(len)));
            }
            match self.link.poll_open(Half::Sender, context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(closed)) => return Poll::Ready(Err(closed.into())),
                Poll::Ready(Ok(())) if len > self.link.message_bytes_max.get() => {
                    return Poll::Ready(Err(self.refusal(len)));
                }
                Poll::Ready(Ok(())) => {}
            }
        }
        self.poll_greeting(context)?;
        self.link.stream.poll_room(context).map_err(|error| self.link.explain(error).into())
    }

    /// Whoever waits before the peer's greeting has come waits for that no longer than agreed.
    fn poll_greeting(&self, context: &mut Context<'_>) -> Result<(), SendError> {
        if self.native && !self.link.is_open() {
            match self.link.poll_open(Half::Sender, context) {
                Poll::Ready(opened) => opened?,
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// Takes the peer's greeting if it has arrived, for a message that is longer than what may be sent
    /// before it. An error if that does not help.
    #[cold]
    fn look_for_greeting(&self, len: usize) -> Result<(), SendError> {
        if !self.link.is_open() && !self.link.finished.get() {
            // Whoever waits for the greeting in this half holds `&mut self`, so no waker is lost.
            let mut context = Context::from_waker(Waker::noop());
            let _ = self.link.poll_open(Half::Sender, &mut context);
            if len <= self.link.message_bytes_max.get() {
                return Ok(());
            }
        }
        Err(self.refusal(len))
    }

    /// Why a message of `len` bytes can't be accepted whatever the queue.
    #[cold]
    fn refusal(&self, len: usize) -> SendError {
        if let Err(closed) = self.link.closed() {
            return closed.into();
        }
        if self.link.finished.get() {
            return SendError::Finished;
        }
        let ours = (self.link.options.frame_bytes_max as usize).min(self.link.wire_bytes_max());
        if !self.link.is_open() && len <= ours {
            return SendError::NotReady;
        }
        let limit = if self.link.is_open() { self.link.message_bytes_max.get() } else { ours };
        SendError::TooLarge { len, limit }
    }

    #[cold]
    fn full(&self) -> SendError {
        SendError::Full {
            queued: self.link.stream.outbound_bytes(),
            limit: self.link.outbound_bytes_max(),
        }
    }

    /// What goes in front of a message of `len` bytes, which is within `message_bytes_max`.
    #[inline]
    fn prefix(&self, len: usize) -> Prefix {
        message_prefix(self.link.options.profile, len)
    }
}

/// Queues many messages in a row. See [`Sender::batch`].
#[derive(Debug)]
pub struct SendBatch<'sender> {
    appender: WireAppender<'sender>,
    usual: Usual,
    sender: &'sender Sender,
}

/// What a batch frames without a call.
#[derive(Debug)]
struct Usual {
    /// Messages with fewer bytes than this; none on a connection that frames nothing.
    bytes_end: usize,
    profile: Profile,
    /// The length of the last message, and what went in front of it: many streams consist of messages of one length.
    known_bytes: usize,
    known_prefix: Prefix,
}

impl Usual {
    #[inline(always)]
    fn new(profile: Profile, message_bytes_max: usize) -> Self {
        let bytes_end = match profile {
            Profile::Native | Profile::LengthPrefixed(_) => message_bytes_max.saturating_add(1),
            _ => 0,
        };
        Self { bytes_end, profile, known_bytes: usize::MAX, known_prefix: Prefix::NONE }
    }

    /// What goes in front of a message of `len` bytes, if it is a usual one.
    #[inline(always)]
    fn prefix(&mut self, len: usize) -> Option<Prefix> {
        if len != self.known_bytes {
            if len >= self.bytes_end {
                return None;
            }
            self.known_prefix = message_prefix(self.profile, len);
            self.known_bytes = len;
        }
        Some(self.known_prefix)
    }
}

impl<'sender> SendBatch<'sender> {
    /// True if this batch takes another message; otherwise drop it and wait for another ([`Sender::batch`]). It
    /// takes what the outbound queue had room for when it was made, and with nothing in flight at most 256 KiB with
    /// what was queued, however high the bound: what has gathered leaves before more does.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.appender.has_room()
    }

    /// Accepts a copy of `body`. The end of the connection is not looked for: a batch that is held while that comes
    /// goes nowhere, as the next use of the [`Sender`] tells.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] without room, with the limit of this batch; [`SendError::NotReady`] and
    /// [`SendError::TooLarge`] as [`Sender::try_send`]. Nothing has been accepted then.
    #[inline(always)]
    pub fn push(&mut self, body: &[u8]) -> Result<(), SendError> {
        if let Some((appender, prefix)) = self.at_hand(body.len())
            && appender.try_append(prefix, body)
        {
            return Ok(());
        }
        self.push_slow(body)
    }

    /// Accepts a message of `len` bytes that `fill` writes in place; they are zero at first.
    ///
    /// # Errors
    ///
    /// As [`SendBatch::push`]; `fill` has not been called then.
    #[inline(always)]
    pub fn push_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<(), SendError> {
        let Some((appender, prefix)) = self.at_hand(len) else {
            return self.push_with_slow(len, fill);
        };
        match appender.try_append_with(prefix, len, fill) {
            None => Ok(()),
            Some(fill) => self.push_with_slow(len, fill),
        }
    }

    /// The usual case: a message on a byte stream that may be as long. What appends it, and what goes in front of it.
    #[inline(always)]
    fn at_hand(&mut self, len: usize) -> Option<(&mut Appender<'sender>, Prefix)> {
        let appender = self.appender.stream()?;
        Some((appender, self.usual.prefix(len)?))
    }

    #[inline(never)]
    fn push_slow(&mut self, body: &[u8]) -> Result<(), SendError> {
        self.check(body.len())?;
        self.appender.append(self.sender.prefix(body.len()), body);
        Ok(())
    }

    #[inline(never)]
    fn push_with_slow(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), SendError> {
        self.check(len)?;
        self.appender.append_with(self.sender.prefix(len), len, fill);
        Ok(())
    }

    fn check(&mut self, len: usize) -> Result<(), SendError> {
        if len >= self.usual.bytes_end {
            // Since the batch was made the peer's greeting may have come, and another task may have taken it.
            let link = &self.sender.link;
            if len > link.message_bytes_max.get() {
                self.sender.look_for_greeting(len)?;
            }
            self.usual = Usual::new(link.options.profile, link.message_bytes_max.get());
        }
        if self.appender.has_room() { Ok(()) } else { Err(self.full()) }
    }

    #[cold]
    fn full(&self) -> SendError {
        let held = match &self.appender {
            WireAppender::Stream(appender) => appender.held_bytes(),
            WireAppender::Packets { .. } => 0,
        };
        let queued = self.sender.link.stream.outbound_bytes() + held;
        SendError::Full { queued, limit: self.appender.limit_bytes() }
    }
}

/// What goes in front of a message of `len` bytes, which is within what that can say.
#[inline(always)]
fn message_prefix(profile: Profile, len: usize) -> Prefix {
    match profile {
        #[expect(clippy::cast_possible_truncation, reason = "within the agreed u32 limit")]
        Profile::Native => Prefix::word(message_header(len as u32)),
        Profile::LengthPrefixed(prefix) => {
            Prefix::front(prefix.word(len as u64), prefix.width.bytes())
        }
        _ => Prefix::NONE,
    }
}

/// The header of a message of `len` bytes with so many descriptors, both within the agreed limits.
fn header_with_descriptors(len: usize, descriptors: usize) -> [u8; HEADER_BYTES] {
    let len = u32::try_from(len).expect("message_bytes_max is agreed in 32 bits");
    let fds = u8::try_from(descriptors).expect("descriptors_max is 253 at most");
    FrameHeader::message_with_descriptors(len, fds).encode()
}

/// Length of the whole message that starts here, with its framing.
fn frame_bytes(profile: Profile, frames: Option<&[u8]>) -> Option<usize> {
    let frames = frames.filter(|frames| !frames.is_empty())?;
    match profile {
        Profile::Native => {
            let (len, _) = frames.split_first_chunk()?;
            Some(profile.header_bytes() + u32::from_le_bytes(*len) as usize)
        }
        Profile::LengthPrefixed(prefix) => {
            let decoder = Decoder::length_prefixed(prefix, u32::MAX);
            decoder.whole_message(frames).map(|body| body.end)
        }
        _ => Some(frames.len()),
    }
    .filter(|len| *len <= frames.len())
}

fn payload(chunk: Chunk) -> Payload {
    match chunk {
        Chunk::Leased(lease) => Payload::Lease(lease),
        chunk => Payload::Bytes(chunk.into_bytes()),
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("link", &self.link).finish()
    }
}
