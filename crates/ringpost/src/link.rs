//! What the two halves of a connection share: the stream, and the greeting.
//!
//! ```text
//! native:   Greeting -> (Leftover ->) Open -> (Closed)      both sides send their HELLO at once
//! plain:    Open -> (Closed)                                nothing to agree on
//! ```

use std::cell::{Cell, OnceCell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ringpost_frame::{
    Agreement, ControlFrame, Decoder, FRAME_BYTES_MAX_FLOOR, Features, HELLO_BYTES, Hello,
    HelloError, HelloReader, HelloStep, Profile, ProtocolError,
};
use ringpost_reactor::{Chunk, Inbound, Prefix, Reactor, Sleep, StreamError};

use crate::error::Closed;
use crate::options::ConnectionOptions;
use crate::wire::Wire;

/// Which half polls: each has a waker slot of its own in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Sender,
    Receiver,
}

/// Shared by [`Sender`](crate::Sender) and [`Receiver`](crate::Receiver).
pub(crate) struct Link {
    pub(crate) stream: Wire,
    pub(crate) options: ConnectionOptions,
    reactor: Reactor,
    phase: RefCell<Phase>,
    /// The longest message that may be sent now, bytes. Before the peer's greeting is there, what
    /// every agreement allows.
    pub(crate) message_bytes_max: Cell<usize>,
    /// The most descriptors that a message may have now; none before the peer's greeting.
    pub(crate) descriptors_max: Cell<u8>,
    closed: OnceCell<Box<Closed>>,
    agreement: Cell<Option<Agreement>>,
    /// FIN or REJECT has been sent.
    pub(crate) finished: Cell<bool>,
    /// This side has asked for an end (GOAWAY).
    pub(crate) going_away: Cell<bool>,
    /// The peer has asked for an end.
    pub(crate) peer_going_away: Cell<bool>,
    /// Whoever waits for that.
    going_away_waiter: Cell<Option<Waker>>,
}

enum Phase {
    Greeting(Greeting),
    /// The greeting is over; this arrived behind it, for the receiver.
    Leftover(Box<Chunk>),
    Open,
}

/// A connection may stay here for long: what most greetings do without is allocated when it is needed.
struct Greeting {
    instance: u64,
    /// The beginning of a greeting that arrives in parts.
    reader: Option<Box<HelloReader>>,
    /// Counted from when somebody waits for it first.
    deadline: Option<Instant>,
    /// The turn in which the deadline was found to be over.
    late: Option<u64>,
    /// One for each half that waits.
    alarms: Option<Box<[Option<Sleep>; 2]>>,
}

impl Link {
    pub(crate) fn new(reactor: Reactor, stream: Wire, options: ConnectionOptions) -> Rc<Self> {
        let phase = if matches!(options.profile, Profile::Native) {
            let instance = fastrand::u64(..);
            let ours = greeting_of(&options, &stream, instance);
            stream.append(Prefix::NONE, &ours.encode());
            Phase::Greeting(Greeting {
                instance,
                reader: None,
                deadline: None,
                late: None,
                alarms: None,
            })
        } else {
            Phase::Open
        };
        let limit = message_bytes_max(options).min(wire_bytes_max(&stream, &options));
        Rc::new(Self::assemble(reactor, stream, options, phase, limit))
    }

    /// A link whose greeting is over, and which has received `received` since.
    pub(crate) fn resume(
        reactor: Reactor,
        stream: Wire,
        options: ConnectionOptions,
        agreement: Option<Agreement>,
        received: Chunk,
        finished: bool,
    ) -> Rc<Self> {
        let limit = match agreement {
            Some(agreement) => agreement.frame_bytes_max as usize,
            None => message_bytes_max(options),
        };
        let phase =
            if received.is_empty() { Phase::Open } else { Phase::Leftover(Box::new(received)) };
        // One that may pass descriptors is not detached.
        let link = Self::assemble(reactor, stream, options, phase, limit);
        link.agreement.set(agreement);
        link.finished.set(finished);
        Rc::new(link)
    }

    fn assemble(
        reactor: Reactor,
        stream: Wire,
        options: ConnectionOptions,
        phase: Phase,
        message_bytes_max: usize,
    ) -> Self {
        Self {
            stream,
            options,
            reactor,
            phase: RefCell::new(phase),
            message_bytes_max: Cell::new(message_bytes_max),
            descriptors_max: Cell::new(0),
            closed: OnceCell::new(),
            agreement: Cell::new(None),
            finished: Cell::new(false),
            going_away: Cell::new(false),
            peer_going_away: Cell::new(false),
            going_away_waiter: Cell::new(None),
        }
    }

    /// The decoder for what follows the greeting, once that is there.
    pub(crate) fn decoder(&self) -> Option<Decoder> {
        match self.options.profile {
            Profile::Native => self.agreement.get().map(|agreement| Decoder::native(&agreement)),
            Profile::LengthPrefixed(prefix) => {
                Some(Decoder::length_prefixed(prefix, self.options.frame_bytes_max))
            }
            _ => Some(Decoder::bytes()),
        }
    }

    pub(crate) fn take_leftover(&self) -> Option<Chunk> {
        let mut phase = self.phase.borrow_mut();
        if !matches!(*phase, Phase::Leftover(_)) {
            return None;
        }
        match std::mem::replace(&mut *phase, Phase::Open) {
            Phase::Leftover(chunk) => Some(*chunk),
            _ => None,
        }
    }

    pub(crate) fn agreement(&self) -> Option<Agreement> {
        self.agreement.get()
    }

    pub(crate) fn outbound_bytes_max(&self) -> usize {
        self.reactor.config().outbound_bytes_max
    }

    /// The longest message that the wire can carry, bytes.
    pub(crate) fn wire_bytes_max(&self) -> usize {
        wire_bytes_max(&self.stream, &self.options)
    }

    pub(crate) fn is_open(&self) -> bool {
        !matches!(*self.phase.borrow(), Phase::Greeting(_))
    }

    pub(crate) fn closed(&self) -> Result<(), Closed> {
        match self.closed.get() {
            Some(closed) => Err(Closed::clone(closed)),
            None => Ok(()),
        }
    }

    /// The reason for an error of the stream: the one this side closed it for, if there is one.
    pub(crate) fn explain(&self, error: StreamError) -> Closed {
        self.closed().err().unwrap_or_else(|| error.into())
    }

    /// Waits until the greeting is over. Cancel safe.
    pub(crate) fn poll_open(
        &self,
        half: Half,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Closed>> {
        self.closed()?;
        let mut phase = self.phase.borrow_mut();
        let Phase::Greeting(greeting) = &mut *phase else { return Poll::Ready(Ok(())) };
        let outcome = loop {
            // Either half may take the bytes; both are woken when some arrive.
            let arrived = half == Half::Receiver || self.stream.poll_arrival(context).is_ready();
            let inbound = if arrived { self.stream.poll_receive(context) } else { Poll::Pending };
            let mut chunk = match inbound {
                Poll::Ready(Ok(Inbound::Chunk(chunk))) => chunk,
                Poll::Ready(Ok(Inbound::Truncated { len })) => {
                    break Err(self.refuse(HelloError::PacketLength { bytes: len }));
                }
                Poll::Ready(Ok(_)) => break Err(Closed::Aborted),
                Poll::Ready(Err(error)) => break Err(error.into()),
                Poll::Pending => {
                    let alarm = &mut greeting.alarms.get_or_insert_default()[half as usize];
                    let at = *greeting.deadline.get_or_insert_with(|| {
                        let limit = Duration::from_millis(self.options.handshake_ms_max);
                        self.reactor.now() + limit.min(HANDSHAKE_MAX)
                    });
                    let alarm = alarm.get_or_insert_with(|| self.reactor.sleep_until(at));
                    if Pin::new(alarm).poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    // What lies in the socket is found in a turn: one more, if there was none since it was late.
                    let turns = self.reactor.turns();
                    if *greeting.late.get_or_insert(turns) == turns {
                        // Without a borrow: it may run code of others.
                        drop(phase);
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    let milliseconds = self.options.handshake_ms_max;
                    break Err(Closed::HandshakeTimeout { milliseconds });
                }
            };
            let mut whole = HelloReader::new();
            let reader = greeting.reader.as_deref_mut().unwrap_or(&mut whole);
            match reader.step(chunk.as_slice()) {
                // Whoever speaks something else learns nothing, in packets of whatever length.
                Err(error @ HelloError::BadMagic { .. }) => break Err(self.refuse(error)),
                // A greeting is exactly one packet.
                _ if self.stream.is_packets() && chunk.len() != HELLO_BYTES => {
                    break Err(self.refuse(HelloError::PacketLength { bytes: chunk.len() }));
                }
                Ok(HelloStep::NeedMore { .. }) => {
                    if let Some(closed) = self.refuse_strays() {
                        break Err(closed);
                    }
                    if greeting.reader.is_none() {
                        greeting.reader = Some(Box::new(whole));
                    }
                }
                Ok(HelloStep::Complete { hello, consumed }) => {
                    chunk.advance(consumed);
                    // With more behind the greeting the receiver tells whose they are.
                    if chunk.is_empty()
                        && let Some(closed) = self.refuse_strays()
                    {
                        break Err(closed);
                    }
                    let ours = greeting_of(&self.options, &self.stream, greeting.instance);
                    match ours.agree(&hello) {
                        Ok(agreement) => break Ok((agreement, chunk)),
                        Err(error) => break Err(self.refuse(error)),
                    }
                }
                Err(error) => break Err(self.refuse(error)),
            }
        };
        *phase = Phase::Open;
        Poll::Ready(match outcome {
            Ok((agreement, chunk)) => {
                let limit = agreement.frame_bytes_max as usize;
                self.message_bytes_max.set(limit.min(self.wire_bytes_max()));
                // Ours is 253 at most.
                self.descriptors_max.set(u8::try_from(agreement.fds_max).unwrap_or(0));
                if agreement.fds_max == 0 && self.options.takes_descriptors() {
                    self.stream.refuse_descriptors();
                }
                self.agreement.set(Some(agreement));
                if !chunk.is_empty() {
                    *phase = Phase::Leftover(Box::new(chunk));
                }
                Ok(())
            }
            Err(closed) => {
                drop(phase);
                self.close(closed.clone());
                Err(closed)
            }
        })
    }

    /// GOAWAY has come.
    pub(crate) fn set_peer_going_away(&self) {
        self.peer_going_away.set(true);
        if let Some(waiter) = self.going_away_waiter.take() {
            waiter.wake();
        }
    }

    /// Waits for GOAWAY, which comes while somebody receives.
    pub(crate) fn poll_peer_going_away(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.peer_going_away.get() {
            return Poll::Ready(());
        }
        self.going_away_waiter.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    /// Descriptors that came with a greeting belong to no message, and nobody else would look for them while nothing
    /// is received.
    fn refuse_strays(&self) -> Option<Closed> {
        let count = self.stream.undeclared_descriptors(0);
        if count == 0 {
            return None;
        }
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        let error = ProtocolError::DescriptorsUndeclared { count };
        self.reject(&error.to_string());
        Some(Closed::Protocol(Box::new(error)))
    }

    /// Tells the peer why it is refused.
    fn refuse(&self, error: HelloError) -> Closed {
        // A peer that speaks something else could not read it.
        if !matches!(error, HelloError::BadMagic { .. }) {
            self.reject(&error.to_string());
        }
        Closed::Handshake(Box::new(error))
    }

    /// Sends REJECT with a reason that people read, if the peer speaks the native profile.
    pub(crate) fn reject(&self, reason: &str) {
        if matches!(self.options.profile, Profile::Native) && !self.finished.replace(true) {
            self.stream.append(Prefix::NONE, ControlFrame::reject(reason).as_bytes());
        }
    }

    /// Ends the connection for this reason; the first one stays.
    pub(crate) fn close(&self, closed: Closed) {
        self.closed.get_or_init(|| Box::new(closed));
        self.stream.close();
    }
}

fn wire_bytes_max(wire: &Wire, options: &ConnectionOptions) -> usize {
    wire.frame_bytes_max().saturating_sub(options.profile.header_bytes())
}

/// The longest message that may be sent before the peer has said anything, bytes.
fn message_bytes_max(options: ConnectionOptions) -> usize {
    match options.profile {
        Profile::Native => FRAME_BYTES_MAX_FLOOR.min(options.frame_bytes_max) as usize,
        Profile::LengthPrefixed(prefix) => {
            let width = usize::try_from(prefix.len_max()).unwrap_or(usize::MAX);
            width.min(options.frame_bytes_max as usize)
        }
        _ => usize::MAX,
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// What this side says about itself.
fn greeting_of(options: &ConnectionOptions, stream: &Wire, instance: u64) -> Hello {
    let mut hello = Hello::new(options.frame_bytes_max, instance);
    if stream.takes_descriptors() {
        hello.supported = Features::DESCRIPTORS;
        hello.fds_max = options.descriptors_max.into();
    }
    hello
}

/// Longest wait for a greeting that a setting can ask for.
const HANDSHAKE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
