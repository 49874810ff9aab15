//! What a connection has to do, as far as it follows from the bytes that both sides have sent.

use ringpost::{Closed, LengthPrefix, Profile, RecvError, SendError};
use ringpost_frame::{
    Agreement, FrameKind, HELLO_BYTES, Hello, HelloError, HelloReader, HelloStep, ProtocolError,
    StreamEnd,
};
use ringpost_testkit::frame_oracle::{Frame, reference};

/// The connection's side, and what its peer has seen and said.
pub(super) struct Model {
    pub(super) profile: Profile,
    /// The longest message of this side, bytes.
    pub(super) frame_bytes_max: u32,
    /// Messages that the connection has accepted, in order.
    pub(super) accepted: Vec<Vec<u8>>,
    /// Messages taken from the connection.
    pub(super) taken: usize,
    /// No more messages are to be accepted.
    pub(super) shut: bool,
    /// GOAWAY was asked for.
    pub(super) going: bool,
    /// What the peer has sent, and that it sends no more.
    pub(super) said: Vec<u8>,
    pub(super) ended: bool,
    /// The peer reads no more either.
    pub(super) gone: bool,
    /// What the peer has read.
    pub(super) heard: Vec<u8>,
    /// Positions in the stream have begun anew.
    pub(super) detached: bool,
}

/// What the bytes that the peer has sent mean.
pub(super) struct Inbound {
    messages: Vec<Vec<u8>>,
    pings: Vec<Vec<u8>>,
    /// Behind the messages there is a clean end.
    finished: bool,
    failure: Option<Failure>,
    native: bool,
    /// What was agreed on.
    agreement: Option<Agreement>,
}

#[derive(Debug)]
enum Failure {
    Handshake(HelloError),
    Protocol(ProtocolError, u64),
    Truncated,
    Aborted,
    Rejected,
}

impl Inbound {
    /// Whether something has to come of receiving now.
    pub(super) fn is_due(&self, taken: usize) -> bool {
        taken < self.messages.len() || self.finished || self.failure.is_some()
    }

    /// Whether nothing keeps the connection from going on elsewhere.
    pub(super) fn is_sound(&self) -> bool {
        self.failure.is_none()
    }

    /// Whether nothing keeps the connection from sending to a peer that reads: an end of what the peer says,
    /// even an improper one, does not.
    pub(super) fn lets_send(&self) -> bool {
        let greeted = !self.native || self.agreement.is_some();
        match self.failure {
            None => true,
            Some(Failure::Truncated | Failure::Aborted) => greeted,
            Some(_) => false,
        }
    }
}

impl Model {
    pub(super) fn new(profile: Profile, frame_bytes_max: u32) -> Self {
        Self {
            profile,
            frame_bytes_max,
            accepted: Vec::new(),
            taken: 0,
            shut: false,
            going: false,
            said: Vec::new(),
            ended: false,
            gone: false,
            heard: Vec::new(),
            detached: false,
        }
    }

    pub(super) fn is_native(&self) -> bool {
        matches!(self.profile, Profile::Native)
    }

    pub(super) fn inbound(&self) -> Inbound {
        let mut inbound = Inbound {
            messages: Vec::new(),
            pings: Vec::new(),
            finished: false,
            failure: None,
            native: self.is_native(),
            agreement: None,
        };
        match self.profile {
            Profile::Native => self.native(&mut inbound),
            Profile::LengthPrefixed(prefix) => self.prefixed(prefix, &mut inbound),
            _ => {
                // Cut anyhow: compared as one.
                inbound.messages.extend((!self.said.is_empty()).then(|| self.said.clone()));
                inbound.finished = self.ended;
            }
        }
        inbound
    }

    fn native(&self, inbound: &mut Inbound) {
        let ended = self.ended.then_some(Failure::Aborted);
        let (agreement, rest) = match HelloReader::new().step(&self.said) {
            Ok(HelloStep::NeedMore { .. }) => {
                inbound.failure = ended;
                return;
            }
            Ok(HelloStep::Complete { hello, consumed }) => {
                match Hello::new(self.frame_bytes_max, 0).agree(&hello) {
                    Ok(agreement) => (agreement, &self.said[consumed..]),
                    Err(error) => {
                        inbound.failure = Some(Failure::Handshake(error));
                        return;
                    }
                }
            }
            Err(error) => {
                inbound.failure = Some(Failure::Handshake(error));
                return;
            }
        };
        inbound.agreement = Some(agreement);
        let transcript = reference::native(&agreement, rest);
        for frame in transcript.frames {
            match frame.header.kind {
                FrameKind::Message => inbound.messages.push(frame.body),
                FrameKind::Ping => inbound.pings.push(frame.body),
                FrameKind::Fin => inbound.finished = true,
                FrameKind::Reject => {
                    inbound.failure = Some(Failure::Rejected);
                    return;
                }
                _ => {}
            }
        }
        inbound.failure = match transcript.end {
            Err(error) => Some(Failure::Protocol(error, transcript.position_bytes)),
            Ok(StreamEnd::Truncated) if self.ended => Some(Failure::Truncated),
            Ok(StreamEnd::Aborted) => ended,
            Ok(_) => None,
        };
    }

    fn prefixed(&self, prefix: LengthPrefix, inbound: &mut Inbound) {
        let transcript = reference::length_prefixed(prefix, self.frame_bytes_max, &self.said);
        inbound.messages = transcript.frames.into_iter().map(|frame| frame.body).collect();
        match transcript.end {
            Err(error) => {
                inbound.failure = Some(Failure::Protocol(error, transcript.position_bytes));
            }
            Ok(StreamEnd::Truncated) if self.ended => inbound.failure = Some(Failure::Truncated),
            Ok(StreamEnd::Clean) => inbound.finished = self.ended,
            Ok(_) => {}
        }
    }

    /// The next message was taken.
    pub(super) fn take(&mut self, inbound: &Inbound, body: &[u8]) {
        if matches!(self.profile, Profile::Bytes) {
            assert!(!body.is_empty(), "an empty piece");
            let end = self.taken + body.len();
            assert_eq!(self.said.get(self.taken..end), Some(body), "bytes as they were sent");
            self.taken = end;
            return;
        }
        let expected = inbound.messages.get(self.taken).expect("a message of nobody");
        assert!(body == expected, "message {} is another one", self.taken);
        self.taken += 1;
    }

    /// `count` messages were taken together, and are sent again as they are: their bodies.
    pub(super) fn take_run(&mut self, inbound: &Inbound, count: u64) -> Vec<Vec<u8>> {
        let count = usize::try_from(count).expect("few");
        let run = inbound.messages.get(self.taken..self.taken + count);
        let run = run.expect("messages of nobody").to_vec();
        self.taken += count;
        run
    }

    /// Nothing more comes: the clean end, or an error.
    pub(super) fn take_end(&self, inbound: &Inbound, end: Result<(), &RecvError>) {
        let whole = match self.profile {
            Profile::Bytes => self.taken == self.said.len(),
            _ => self.taken == inbound.messages.len(),
        };
        let Err(error) = end else {
            assert!(inbound.finished, "an end that nobody has said");
            assert!(whole, "an end before the last message");
            return;
        };
        // What was sent to a peer that has gone may end both directions.
        if self.gone && matches!(error, RecvError::Closed(Closed::Aborted | Closed::Kernel { .. }))
        {
            return;
        }
        assert!(whole, "{error}, and messages are missing");
        let Some(failure) = &inbound.failure else { panic!("{error} for no reason") };
        let same = match (failure, error) {
            (Failure::Protocol(expected, at), RecvError::Protocol { source, position }) => {
                source == expected && (self.detached || position == at)
            }
            (Failure::Handshake(expected), RecvError::Closed(Closed::Handshake(error))) => {
                std::mem::discriminant(expected) == std::mem::discriminant(&**error)
            }
            (Failure::Truncated, RecvError::Truncated)
            | (Failure::Aborted, RecvError::Closed(Closed::Aborted))
            | (Failure::Rejected, RecvError::Closed(Closed::Rejected { .. })) => true,
            _ => false,
        };
        assert!(same, "{failure:?} became {error:?}");
    }

    /// Nothing came of receiving for a long time.
    pub(super) fn nothing_came(&self, inbound: &Inbound) {
        assert!(!inbound.is_due(self.taken_messages()), "receiving waits for what is there");
    }

    /// Messages taken; of bare bytes, whether all were.
    pub(super) fn taken_messages(&self) -> usize {
        match self.profile {
            Profile::Bytes => usize::from(self.taken == self.said.len()),
            _ => self.taken,
        }
    }

    /// The longest message that can have been accepted by now.
    fn longest(&self, inbound: &Inbound) -> usize {
        match self.profile {
            Profile::Native => match inbound.agreement {
                Some(agreement) => agreement.frame_bytes_max as usize,
                None => 1024,
            },
            Profile::LengthPrefixed(prefix) => {
                let most = usize::try_from(prefix.len_max()).unwrap_or(usize::MAX);
                most.min(self.frame_bytes_max as usize)
            }
            _ => usize::MAX,
        }
    }

    pub(super) fn accept(&mut self, inbound: &Inbound, body: Vec<u8>) {
        assert!(!self.shut, "accepted after the end");
        assert!(body.len() <= self.longest(inbound), "{} bytes are too many", body.len());
        self.accepted.push(body);
    }

    /// A message of `len` bytes was refused.
    pub(super) fn refuse(&self, inbound: &Inbound, len: usize, queued: usize, error: &SendError) {
        let over = self.gone || !inbound.lets_send();
        match error {
            SendError::Closed(_) => assert!(over, "{error} for no reason"),
            SendError::Finished => assert!(over || self.shut, "{error} for no reason"),
            SendError::TooLarge { len: told, limit } => {
                assert!(len == *told && len > *limit, "{error}");
                assert!(*limit >= self.longest(inbound), "{error}");
            }
            SendError::NotReady => {
                // It may have come, and not been looked at.
                assert!(self.is_native() && len > 1024, "{error}");
            }
            SendError::Full { .. } => assert!(queued > 0, "full of nothing"),
            other => panic!("{other}"),
        }
    }

    /// Something accepted can't be delivered.
    pub(super) fn broken(&self, inbound: &Inbound, error: &SendError) {
        assert!(self.gone || !inbound.lets_send(), "{error} for no reason");
    }

    /// What the peer has read is what was accepted, as far as it has come; all of it if it is `whole`.
    pub(super) fn check_heard(&self, whole: bool) {
        if self.is_native() {
            self.check_native(whole);
            return;
        }
        let mut expected = Vec::new();
        for body in &self.accepted {
            if let Profile::LengthPrefixed(_) = self.profile {
                let mut header = [0; 8];
                let len = self.profile.write_message_header(body.len(), &mut header);
                expected.extend_from_slice(&header[..len.expect("it was accepted")]);
            }
            expected.extend_from_slice(body);
        }
        assert!(expected.starts_with(&self.heard), "the peer has heard something else");
        assert!(!whole || expected == self.heard, "bytes are missing");
    }

    fn check_native(&self, whole: bool) {
        let Some((hello, rest)) = self.heard.split_first_chunk::<HELLO_BYTES>() else {
            assert!(!whole, "not even a greeting");
            return;
        };
        let hello = Hello::decode(hello).expect("a greeting");
        assert_eq!(hello.frame_bytes_max, self.frame_bytes_max);
        let anything = Hello::new(u32::MAX, 0);
        let anything = anything.agree(&anything).expect("equal greetings agree");
        let transcript = reference::native(&anything, rest);
        let inbound = self.inbound();
        let mut accepted = self.accepted.iter();
        let mut pings = inbound.pings.iter();
        let (mut finished, mut rejected) = (false, false);
        for Frame { header, body } in &transcript.frames {
            assert!(!rejected, "frames behind REJECT");
            match header.kind {
                FrameKind::Message => {
                    assert!(!finished, "a message behind the end");
                    assert!(accepted.next() == Some(body), "the peer has heard something else");
                }
                FrameKind::Pong => assert!(pings.any(|ping| ping == body), "PONG without PING"),
                FrameKind::Fin => {
                    assert!(self.shut && !finished, "FIN for no reason");
                    finished = true;
                }
                FrameKind::GoAway => assert!(self.going, "GOAWAY for no reason"),
                FrameKind::Reject => {
                    let failed = inbound.failure.is_some();
                    assert!(failed && !finished, "REJECT for no reason");
                    rejected = true;
                }
                other => panic!("{other:?} from a connection"),
            }
        }
        transcript.end.expect("frames of a connection");
        if let Some(Frame { header, body }) = &transcript.incomplete
            && header.kind == FrameKind::Message
        {
            let next = accepted.next().expect("a message of nobody");
            assert!(next.starts_with(body), "the peer has heard something else");
        }
        if whole {
            assert_eq!(transcript.incomplete, None, "a frame is not whole");
            assert_eq!(accepted.next(), None, "messages are missing");
            assert_eq!(finished, self.shut, "the end is missing");
        }
    }
}
