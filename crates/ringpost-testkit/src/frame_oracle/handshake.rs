//! Two sides greet each other: both come to the same agreement, or both to a typed error.

use ringpost_frame::{
    Agreement, Decoder, FRAME_BYTES_MAX_FLOOR, Features, FrameHeader, FrameKind, HELLO_BYTES,
    Hello, HelloError, HelloReader, HelloStep, LengthPrefix, PrefixWidth, ProtocolError, Step,
    StreamEnd, control_frame,
};

use super::input::Input;

/// One side: what it says, and what it makes of what it hears.
struct Side {
    speaks: Speaks,
    reader: HelloReader,
    outcome: Option<Outcome>,
    decoder: Option<Decoder>,
    /// What it says, and how much of that has left.
    output: Vec<u8>,
    sent: usize,
}

/// What a side expects and says.
#[derive(Debug, Clone, Copy)]
enum Speaks {
    Native(Hello),
    Prefixed(LengthPrefix, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Agreed(Agreement),
    Greeting(HelloError),
    Framing(ProtocolError),
    /// The other side has sent REJECT.
    Rejected,
}

/// Lets two sides greet each other, each in its own version, with its own limits, features and profile,
/// whose bytes arrive in any pieces and in any order of the two directions.
///
/// Input: two sides; then, for each delivery, a byte with the direction and the size of the piece.
///
/// # Panics
///
/// If one side agrees and the other does not, if they agree on different things or on more than either can
/// do, or if the frames behind the greetings are not what was agreed on.
pub fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let mut sides = [side(&mut input), side(&mut input)];
    let speaks = [sides[0].speaks, sides[1].speaks];
    while let Some(way) = next_way(&sides, input.byte()) {
        let size = usize::from(input.byte() % 80);
        let size = if input.is_empty() { usize::MAX } else { size };
        let from = &mut sides[way];
        let end = from.sent.saturating_add(size).min(from.output.len());
        let piece = from.output[from.sent..end].to_vec();
        from.sent = end;
        sides[1 - way].hear(&piece);
    }
    for side in &mut sides {
        side.hear_end();
    }
    check(speaks, [&sides[0], &sides[1]]);
}

/// Which side's bytes arrive next; none once all have.
fn next_way(sides: &[Side; 2], choice: u8) -> Option<usize> {
    let waits = |way: usize| sides[way].sent < sides[way].output.len();
    let chosen = usize::from(choice % 2);
    [chosen, 1 - chosen].into_iter().find(|way| waits(*way))
}

fn side(input: &mut Input<'_>) -> Side {
    let speaks = match input.byte() % 8 {
        0 => Speaks::Prefixed(input.length_prefix(), input.plain_limit().min(PLAIN_LIMIT_MAX)),
        _ => Speaks::Native(greeting(input)),
    };
    let output = match speaks {
        Speaks::Native(hello) => hello.encode().to_vec(),
        Speaks::Prefixed(prefix, limit) => {
            let body = vec![0xF5; usize::from(input.byte()).min(limit as usize)];
            let mut header = [0; 8];
            let profile = ringpost_frame::Profile::LengthPrefixed(prefix);
            let len = profile.write_message_header(body.len(), &mut header).expect("a short body");
            [&header[..len], &body].concat()
        }
    };
    let decoder = match speaks {
        Speaks::Native(_) => None,
        Speaks::Prefixed(prefix, limit) => Some(Decoder::length_prefixed(prefix, limit)),
    };
    Side { speaks, reader: HelloReader::new(), outcome: None, decoder, output, sent: 0 }
}

/// A greeting that may be sent, in most cases one that others can agree with.
fn greeting(input: &mut Input<'_>) -> Hello {
    let [versions, required, supported, limit, fds_max, odd] = input.array();
    let mut hello = Hello::new(u32::from(limit) * 64, input.u64());
    hello.version_min = 1 + u16::from(versions % 4);
    hello.version_max = hello.version_min + u16::from(versions / 4 % 4);
    hello.supported = Features(u64::from(supported) << (odd % 57));
    hello.required = hello.supported & Features(u64::from(required) << (odd % 57));
    hello.fds_max = u16::from(fds_max);
    match odd {
        250 => hello.frame_bytes_max = u32::MAX,
        251 => hello.fds_max = u16::MAX,
        252 => hello.abi = u16::from(limit),
        253 => hello.version_max = u16::MAX,
        254 => hello.supported = Features(u64::MAX),
        _ => {}
    }
    hello
}

impl Side {
    fn hear(&mut self, mut piece: &[u8]) {
        if let (Speaks::Native(ours), None) = (self.speaks, self.outcome) {
            match self.reader.step(piece) {
                Ok(HelloStep::NeedMore { consumed }) => {
                    assert_eq!(consumed, piece.len(), "a reader that needs more uses all");
                    return;
                }
                Ok(HelloStep::Complete { hello, consumed }) => {
                    piece = &piece[consumed..];
                    match ours.agree(&hello) {
                        Ok(agreement) => self.agree(agreement),
                        Err(error) => self.refuse(error),
                    }
                }
                Err(error) => self.refuse(error),
            }
        }
        match self.outcome {
            Some(Outcome::Agreed(_)) | None => self.hear_frames(piece),
            Some(_) => {}
        }
    }

    /// Goes on as a connection does: a longest message, and the end.
    fn agree(&mut self, agreement: Agreement) {
        self.outcome = Some(Outcome::Agreed(agreement));
        self.decoder = Some(Decoder::native(&agreement));
        let header = FrameHeader::message(agreement.frame_bytes_max.min(BODY_BYTES_MAX));
        self.output.extend_from_slice(&header.encode());
        self.output.resize(self.output.len() + header.len as usize, 0xA5);
        let fin = control_frame(FrameKind::Fin, b"").expect("FIN has no body");
        self.output.extend_from_slice(fin.as_bytes());
    }

    fn refuse(&mut self, error: HelloError) {
        self.outcome = Some(Outcome::Greeting(error));
        if !matches!(error, HelloError::BadMagic { .. }) {
            let reason = error.to_string();
            let reject = control_frame(FrameKind::Reject, reason.as_bytes()).expect("it is short");
            self.output.extend_from_slice(reject.as_bytes());
        }
    }

    fn hear_frames(&mut self, mut piece: &[u8]) {
        let Some(decoder) = &mut self.decoder else { return };
        while !piece.is_empty() {
            match decoder.step(piece) {
                Ok(step) => {
                    if let Step::Frame { header, .. } | Step::Begin { header, .. } = &step
                        && header.kind == FrameKind::Reject
                    {
                        self.outcome = Some(Outcome::Rejected);
                    }
                    piece = &piece[step.consumed()..];
                }
                Err(error) => {
                    self.outcome = Some(Outcome::Framing(error));
                    return;
                }
            }
        }
    }

    /// The other side has said all it had to say.
    fn hear_end(&mut self) {
        if let (Speaks::Native(_), None) = (self.speaks, self.outcome) {
            assert!(self.reader.received_bytes() < HELLO_BYTES, "a whole greeting was not read");
        }
        if let Some(Outcome::Agreed(_)) = self.outcome {
            let decoder = self.decoder.as_ref().expect("agreed");
            assert_eq!(decoder.end(), Ok(StreamEnd::Clean), "both sides had agreed");
        }
    }
}

fn check(speaks: [Speaks; 2], sides: [&Side; 2]) {
    match speaks {
        [Speaks::Native(ours), Speaks::Native(theirs)] => {
            let [here, there] = sides.map(|side| side.outcome.expect("a whole greeting has come"));
            check_native(&ours, &theirs, here, there);
        }
        [Speaks::Native(_), Speaks::Prefixed(..)] => check_foreign(sides[0], sides[1]),
        [Speaks::Prefixed(..), Speaks::Native(_)] => check_foreign(sides[1], sides[0]),
        [Speaks::Prefixed(..), Speaks::Prefixed(..)] => {}
    }
}

fn check_native(ours: &Hello, theirs: &Hello, here: Outcome, there: Outcome) {
    match (here, there, expected(ours, theirs)) {
        (Outcome::Agreed(here), Outcome::Agreed(there), Some(expected)) => {
            let [version, limit, fds_max] = expected;
            for (found, peer) in [(here, theirs), (there, ours)] {
                assert_eq!(u32::from(found.version), version, "{found:?}");
                assert_eq!(found.frame_bytes_max, limit, "{found:?}");
                assert_eq!(u32::from(found.fds_max), fds_max, "{found:?}");
                assert_eq!(found.features.0, ours.supported.0 & theirs.supported.0, "{found:?}");
                assert_eq!(found.peer_instance, peer.instance, "{found:?}");
            }
        }
        (Outcome::Greeting(here), Outcome::Greeting(there), None) => {
            let kind = |error: &HelloError| std::mem::discriminant(error);
            assert_eq!(kind(&here), kind(&there), "{here:?} and {there:?}");
        }
        (here, there, expected) => panic!("{here:?} and {there:?}, where {expected:?} was due"),
    }
}

/// Version, frame limit and descriptors that two valid greetings lead to, from the specification: the highest common
/// version, and the smaller of the limits.
fn expected(ours: &Hello, theirs: &Hello) -> Option<[u32; 3]> {
    let versions = |hello: &Hello| hello.version_min..=hello.version_max;
    let version = versions(ours).rev().find(|version| versions(theirs).contains(version))?;
    let common = ours.supported.0 & theirs.supported.0;
    let met = |hello: &Hello| hello.required.0 & common == hello.required.0;
    if !met(ours) || !met(theirs) || ours.abi != theirs.abi {
        return None;
    }
    let smaller = |a: u32, b: u32| if a < b { a } else { b };
    let limit = smaller(ours.frame_bytes_max, theirs.frame_bytes_max);
    assert!(limit >= FRAME_BYTES_MAX_FLOOR);
    // Bit 2 of the features.
    let passes = common & 4 != 0;
    let fds_max = if passes { smaller(ours.fds_max.into(), theirs.fds_max.into()) } else { 0 };
    Some([version.into(), limit, fds_max])
}

/// A native side and one of the length-prefixed profile never agree.
fn check_foreign(native: &Side, foreign: &Side) {
    if foreign.output.iter().zip(ringpost_frame::MAGIC).any(|(have, want)| *have != want) {
        assert!(
            matches!(native.outcome, Some(Outcome::Greeting(HelloError::BadMagic { .. }))),
            "{:?}",
            native.outcome
        );
    } else {
        // So short that it could still become a greeting.
        assert_eq!(native.outcome, None);
    }
    let Speaks::Prefixed(prefix, _) = foreign.speaks else { return };
    if prefix.width != PrefixWidth::U16 {
        assert!(
            matches!(foreign.outcome, Some(Outcome::Framing(ProtocolError::FrameTooLarge { .. }))),
            "{:?}",
            foreign.outcome
        );
    }
}

/// The longest message that a side sends here.
const BODY_BYTES_MAX: u32 = 20_000;
/// A side with a limit over a gigabyte takes a greeting for the beginning of a message.
const PLAIN_LIMIT_MAX: u32 = 1 << 30;
