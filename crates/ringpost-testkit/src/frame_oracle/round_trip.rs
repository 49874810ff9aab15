//! What was encoded is what is decoded.

use ringpost_frame::{
    ByteOrder, ControlFrame, Decoder, Features, FrameFlags, FrameHeader, FrameKind, Hello,
    LengthPrefix, PrefixWidth, Profile, StreamEnd, control_frame, message_header,
};

use super::drive::{Frame, Transcript, check_told};
use super::input::Input;
use super::splits::compare;

/// Makes frames of all kinds from the input, encodes them and decodes the bytes.
///
/// Input: the sizes of the pieces; then for each frame its kind, flags, descriptors, length and body.
///
/// # Panics
///
/// If a frame does not come back as it was, or two ways of encoding one differ.
pub fn round_trip(data: &[u8]) {
    let mut input = Input::new(data);
    let piece_sizes = input.piece_sizes();
    let mut frames = Vec::new();
    let mut stream = Vec::new();
    let mut end = StreamEnd::Aborted;
    while !input.is_empty() && end != StreamEnd::Rejected {
        let Some(frame) = frame(&mut input) else { continue };
        match frame.header.kind {
            FrameKind::Message | FrameKind::Fin if end == StreamEnd::Clean => continue,
            FrameKind::Fin => end = StreamEnd::Clean,
            FrameKind::Reject => end = StreamEnd::Rejected,
            _ => {}
        }
        stream.extend_from_slice(&frame.header.encode());
        stream.extend_from_slice(&frame.body);
        check_other_encoders(&frame);
        frames.push(frame);
    }

    let mut hello = Hello::new(1 << 20, 0);
    hello.supported = Features::FRAGMENTS | Features::EXTENSIONS | Features::DESCRIPTORS;
    hello.fds_max = 255;
    let agreement = hello.agree(&hello).expect("a greeting of this version agrees with itself");
    let position_bytes = u64::try_from(stream.len()).expect("usize has 64 bits at most");
    let expected = Transcript { frames, incomplete: None, end: Ok(end), position_bytes };
    compare(&Decoder::native(&agreement), &stream, piece_sizes, Some(expected));
}

/// A valid frame, or `None` for the kind that does not exist.
fn frame(input: &mut Input<'_>) -> Option<Frame> {
    let kind = match input.byte() {
        // Messages are what connections are for.
        128.. => FrameKind::Message,
        code => FrameKind::from_code(code)?,
    };
    let [flags, fds] = input.array();
    let len = u32::from(input.byte()) * if flags & 0x80 == 0 { 1 } else { 16 };
    let len = kind.control_bytes().map_or(len, |limits| len.clamp(*limits.start(), *limits.end()));
    let mut body = input.bytes(usize::try_from(len).expect("less than 4096")).to_vec();
    if kind == FrameKind::GoAway {
        body.resize(8, 0);
    }
    let flags = match kind {
        FrameKind::Message => FrameFlags(flags) & FrameFlags::KNOWN,
        FrameKind::Unknown(_) => FrameFlags::NONE,
        _ => FrameFlags(flags) & FrameFlags::CRITICAL,
    };
    let len = u32::try_from(body.len()).expect("less than 4096");
    Some(Frame { header: FrameHeader { len, kind, flags, fds }, body })
}

/// Every encoder writes the same header.
fn check_other_encoders(frame: &Frame) {
    let Frame { header, body } = frame;
    let encoded = header.encode();
    assert_eq!(FrameHeader::decode(encoded), Ok(*header));
    if *header == FrameHeader::message(header.len) {
        assert_eq!(message_header(header.len).to_le_bytes(), encoded);
        let mut written = [0; 8];
        assert_eq!(Profile::Native.write_message_header(body.len(), &mut written), Ok(8));
        assert_eq!(written, encoded);
    }
    let with_descriptors = FrameHeader::message_with_descriptors(header.len, header.fds);
    if header.kind == FrameKind::Message && header.flags.is_empty() {
        assert_eq!(with_descriptors, *header);
    }
    match control_frame(header.kind, body) {
        Ok(control) if header.flags.is_empty() && header.fds == 0 => {
            assert_eq!(control.as_ref(), [&encoded[..], body].concat());
            let same = match header.kind {
                FrameKind::Fin => control == ControlFrame::fin(),
                FrameKind::GoAway => {
                    let taken = body.as_slice().try_into().map_or(0, u64::from_le_bytes);
                    control == ControlFrame::go_away(taken)
                }
                FrameKind::Reject => match str::from_utf8(body) {
                    Ok(reason) => control == ControlFrame::reject(reason),
                    Err(_) => true,
                },
                _ => true,
            };
            assert!(same, "{control:?} is another one");
        }
        Ok(_) => {}
        Err(error) => {
            check_told(&error);
            assert_eq!(header.kind.control_bytes(), None);
        }
    }
    check_refused(header.kind, body);
}

/// What no frame can be is refused, and nothing is written.
fn check_refused(kind: FrameKind, body: &[u8]) {
    if let Some(limits) = kind.control_bytes() {
        let longer = vec![b'x'; *limits.end() as usize + 1 + body.len()];
        check_told(&control_frame(kind, &longer).expect_err("it is too long"));
        let long = str::from_utf8(&longer).expect("letters");
        let cut = ControlFrame::reject(long);
        assert!(cut.as_bytes().len() <= 8 + 1024, "a reason is cut");
    }
    let prefixed = PrefixWidth::ALL
        .map(|width| Profile::LengthPrefixed(LengthPrefix { width, byte_order: ByteOrder::Big }));
    for profile in prefixed.into_iter().chain([Profile::Native, Profile::Bytes]) {
        let mut nothing = [0xA5; 1];
        let (len, wanted) = (body.len(), profile.header_bytes());
        match profile.write_message_header(len, &mut nothing) {
            Ok(size) => assert_eq!((size, wanted), (0, 0)),
            Err(error) => check_told(&error),
        }
        assert_eq!(nothing, [0xA5], "written where there is no room");
        let mut header = [0; 8];
        if let Err(error) = profile.write_message_header(usize::MAX, &mut header) {
            check_told(&error);
            assert_eq!(header, [0; 8], "written, and refused");
        }
    }
}
