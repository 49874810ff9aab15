//! Drives a decoder over a stream and writes down what it said.

use ringpost_frame::{
    Decoder, FrameHeader, FrameKind, Profile, ProtocolError, Step, StreamEnd, Unfinished,
};

/// A frame with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What stood in front of it.
    pub header: FrameHeader,
    /// Its body, put together.
    pub body: Vec<u8>,
}

/// Everything a decoder said about a stream that does not depend on how the stream was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    /// The frames, in order. In the bytes profile: all bytes as one.
    pub frames: Vec<Frame>,
    /// A frame of which only a part was there.
    pub incomplete: Option<Frame>,
    /// What the end of the stream means, or the error.
    pub end: Result<StreamEnd, ProtocolError>,
    /// Where the frame starts that was not complete or wrong, or that would have been next.
    pub position_bytes: u64,
}

/// How a stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// With [`Decoder::step`] alone.
    Steps,
    /// With [`Decoder::whole_message`] first, as the transport does.
    FastPath,
}

/// Decodes `stream` in pieces of the given sizes, used round and round; an empty list means one
/// piece. A size of zero is an empty piece.
///
/// # Panics
///
/// If a step does not fit the one before it or its input.
pub fn read_stream(
    mut decoder: Decoder,
    reader: Reader,
    stream: &[u8],
    piece_sizes: &[u8],
) -> Transcript {
    let mut log =
        Log { frames: Vec::new(), open: None, coalesce: decoder.profile() == Profile::Bytes };
    let mut rest = stream;
    let mut sizes = piece_sizes.iter().cycle();
    let all_empty = piece_sizes.iter().all(|size| *size == 0);
    while !rest.is_empty() {
        let size = match sizes.next() {
            Some(size) if !all_empty => usize::from(*size).min(rest.len()),
            _ => rest.len(),
        };
        let (piece, after) = rest.split_at(size);
        rest = after;
        check_run(&decoder, piece);
        if let Err(error) = read_piece(&mut decoder, reader, piece, &mut log) {
            check_poisoned(&mut decoder, error, rest);
            break;
        }
    }
    if decoder.end().is_ok() {
        assert_eq!(decoder.step(&[]), Ok(Step::NeedMore { consumed: 0 }), "out of nothing");
    }
    assert_eq!(
        log.open.is_some() || decoder.end() == Ok(StreamEnd::Truncated) || decoder.end().is_err(),
        !decoder.is_between_frames() || decoder.end().is_err(),
    );
    check_unfinished(&decoder, &log, stream);
    Transcript {
        frames: log.frames,
        incomplete: log.open,
        end: decoder.end(),
        position_bytes: decoder.position_bytes(),
    }
}

/// Messages in a row are found as they are one by one, whatever the header before was.
fn check_run(decoder: &Decoder, piece: &[u8]) {
    let mut run = decoder.whole_messages();
    let mut rest = piece;
    while let Some(body) = decoder.whole_message(rest) {
        let behind = &rest[body.end..];
        assert_eq!(run.split(rest), Some((&rest[body], behind)));
        rest = behind;
    }
    assert_eq!(run.split(rest), None, "a run that goes on by itself");
}

fn read_piece(
    decoder: &mut Decoder,
    reader: Reader,
    mut piece: &[u8],
    log: &mut Log,
) -> Result<(), ProtocolError> {
    loop {
        if reader == Reader::FastPath
            && let Some(body) = decoder.whole_message(piece)
        {
            assert!(decoder.is_between_frames());
            assert_eq!(body.start, decoder.profile().header_bytes());
            let len = u32::try_from(body.len()).expect("lengths have 32 bits");
            let header = FrameHeader::message(len);
            decoder.advance_position(u64::try_from(body.end).expect("usize has 64 bits at most"));
            log.frame(header, &piece[body.clone()]);
            piece = &piece[body.end..];
            continue;
        }
        let fast = decoder.whole_message(piece);
        let step = decoder.step(piece)?;
        assert!(step.consumed() <= piece.len(), "{step:?} of {} bytes", piece.len());
        if let Some(fast) = fast {
            let Step::Frame { header, body } = &step else { panic!("{fast:?} became {step:?}") };
            assert_eq!((&fast, *header), (body, FrameHeader::message(header.len)));
        }
        match step.clone() {
            Step::NeedMore { consumed } => {
                assert_eq!(consumed, piece.len(), "a decoder that needs more uses all it has");
                return Ok(());
            }
            Step::Frame { header, body } => {
                assert_eq!(u32::try_from(body.len()), Ok(header.len));
                assert!(decoder.is_between_frames());
                log.frame(header, &piece[body]);
            }
            Step::Begin { header, consumed } => {
                let rest = u32::try_from(piece.len() - consumed).unwrap_or(u32::MAX);
                assert!(header.len > rest, "a whole body of {} was begun", header.len);
                log.begin(header);
            }
            Step::Body { consumed, last } => {
                assert!(consumed > 0, "a body step without body");
                assert!(last || consumed == piece.len(), "body was left in the input");
                log.body(&piece[..consumed], last);
            }
        }
        piece = &piece[step.consumed()..];
    }
}

/// What a decoder says that it has consumed of a frame is what was shown to it.
fn check_unfinished(decoder: &Decoder, log: &Log, stream: &[u8]) {
    let start = usize::try_from(decoder.position_bytes()).expect("a short stream");
    match decoder.unfinished() {
        Some(Unfinished::Header(part)) => {
            assert_eq!(part, &stream[start..]);
            assert_eq!(part.len(), decoder.header_bytes_kept());
        }
        Some(Unfinished::Body { header, remaining }) => {
            let open = log.open.as_ref().expect("a body was begun");
            assert_eq!(header, open.header);
            assert_eq!(u32::try_from(open.body.len()), Ok(header.len - remaining));
        }
        None => assert_eq!(log.open, None, "part of a frame is forgotten"),
    }
    let finished = log.frames.iter().any(|frame| frame.header.kind == FrameKind::Fin);
    let rejected = log.frames.iter().any(|frame| frame.header.kind == FrameKind::Reject);
    assert!(!decoder.is_finished() || finished, "an end that nobody has said");
    assert!(decoder.is_finished() || !finished || rejected || log.open.is_some(), "an end is lost");
    assert!(log.frames.iter().all(|frame| {
        decoder.profile() == Profile::Bytes || frame.header.len <= decoder.frame_bytes_max()
    }));
}

/// What an error tells people is one line.
pub(super) fn check_told(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
}

/// A decoder that gave an error gives nothing else, whatever it is shown.
fn check_poisoned(decoder: &mut Decoder, error: ProtocolError, rest: &[u8]) {
    check_told(&error);
    let position = decoder.position_bytes();
    for input in [rest, &[], &FrameHeader::message(0).encode()] {
        assert_eq!(decoder.whole_message(input), None);
        assert_eq!(decoder.step(input), Err(error));
        assert_eq!(decoder.end(), Err(error));
        assert_eq!(decoder.position_bytes(), position);
        assert!(!decoder.is_between_frames());
    }
}

struct Log {
    frames: Vec<Frame>,
    open: Option<Frame>,
    /// Put everything into one frame: the bytes profile keeps no boundaries.
    coalesce: bool,
}

impl Log {
    fn frame(&mut self, header: FrameHeader, body: &[u8]) {
        assert_eq!(self.open, None, "a frame within a frame");
        match self.frames.last_mut() {
            Some(frame) if self.coalesce => {
                frame.body.extend_from_slice(body);
                frame.header.len += header.len;
            }
            _ => self.frames.push(Frame { header, body: body.to_vec() }),
        }
    }

    fn begin(&mut self, header: FrameHeader) {
        let before = self.open.replace(Frame { header, body: Vec::new() });
        assert_eq!(before, None, "a frame within a frame");
    }

    fn body(&mut self, bytes: &[u8], last: bool) {
        let mut frame = self.open.take().expect("a body without a frame");
        frame.body.extend_from_slice(bytes);
        assert_eq!(u32::try_from(frame.body.len()) == Ok(frame.header.len), last);
        if last {
            self.frames.push(frame);
        } else {
            self.open = Some(frame);
        }
    }
}
