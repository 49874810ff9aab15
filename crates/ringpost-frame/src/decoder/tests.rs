//! Single steps, state by state. Whole streams are tested from outside, in `tests/`.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::control::ControlFrame;
use crate::features::Features;
use crate::hello::Hello;
use crate::kind::{FrameFlags, FrameKind};
use crate::profile::{ByteOrder, PrefixWidth};

#[test]
fn whole_frames_are_found_without_copying() {
    let stream = [message(b"first"), message(b""), message(b"third")].concat();
    let mut decoder = native(1024, Features::NONE, 0);
    assert_eq!(decoder.whole_message(&stream), Some(8..13));
    let frame = |len, body| Ok(Step::Frame { header: FrameHeader::message(len), body });
    assert_eq!(decoder.step(&stream), frame(5, 8..13));
    assert_eq!(decoder.whole_message(&stream[13..]), Some(8..8));
    assert_eq!(decoder.step(&stream[13..]), frame(0, 8..8));
    assert_eq!(decoder.step(&stream[21..]), frame(5, 8..13));
    assert_eq!(decoder.step(&[]), Ok(Step::NeedMore { consumed: 0 }));
    assert_eq!(decoder.position_bytes(), 34);
}

#[test]
fn a_frame_in_pieces_begins_and_goes_on() {
    let stream = message(b"hello");
    let mut decoder = native(1024, Features::NONE, 0);
    assert!(decoder.is_between_frames());
    assert_eq!(decoder.step(&stream[..3]), Ok(Step::NeedMore { consumed: 3 }));
    assert!(!decoder.is_between_frames());
    assert_eq!(decoder.end(), Ok(StreamEnd::Truncated));
    assert_eq!(decoder.step(&[]), Ok(Step::NeedMore { consumed: 0 }));
    let header = FrameHeader::message(5);
    assert_eq!(decoder.step(&stream[3..10]), Ok(Step::Begin { header, consumed: 5 }));
    assert_eq!(decoder.step(&stream[8..10]), Ok(Step::Body { consumed: 2, last: false }));
    assert_eq!(decoder.step(&[]), Ok(Step::NeedMore { consumed: 0 }));
    assert_eq!(decoder.position_bytes(), 0);
    assert_eq!(decoder.step(b"lloMORE"), Ok(Step::Body { consumed: 3, last: true }));
    assert!(decoder.is_between_frames());
    assert_eq!(decoder.position_bytes(), 13);
}

#[test]
fn a_header_that_began_earlier_can_end_with_its_whole_body_there() {
    let stream = message(b"hello");
    let mut decoder = native(1024, Features::NONE, 0);
    assert_eq!(decoder.step(&stream[..7]), Ok(Step::NeedMore { consumed: 7 }));
    let frame = Step::Frame { header: FrameHeader::message(5), body: 1..6 };
    assert_eq!(frame.consumed(), 6);
    assert_eq!(decoder.step(&stream[7..]), Ok(frame));
}

#[test]
fn the_fast_path_takes_nothing_but_whole_plain_messages_between_frames() {
    let whole = message(b"hello");
    let fresh = native(1024, Features::NONE, 0);
    for cut in 0..whole.len() {
        assert_eq!(fresh.whole_message(&whole[..cut]), None, "{cut} bytes");
    }
    for bit in 0..64 {
        let mut spoiled = whole.clone();
        spoiled[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(fresh.whole_message(&spoiled), None, "bit {bit}");
    }
    let critical = FrameHeader { flags: FrameFlags::CRITICAL, ..FrameHeader::message(0) };
    assert_eq!(fresh.whole_message(&critical.encode()), None);
    assert_eq!(fresh.whole_message(ControlFrame::fin().as_bytes()), None);

    let none_after = |mut decoder: Decoder, input: &[u8]| {
        assert_eq!(decoder.whole_message(&whole), Some(8..13));
        let step = decoder.step(input);
        assert_eq!(decoder.whole_message(&whole), None, "{step:?}");
    };
    none_after(fresh.clone(), &whole[..1]);
    none_after(fresh.clone(), &whole[..8]);
    none_after(fresh.clone(), ControlFrame::fin().as_bytes());
    none_after(fresh.clone(), ControlFrame::reject("").as_bytes());
    none_after(fresh, &[0; 8]);
    let more = FrameHeader { flags: FrameFlags::MORE, ..FrameHeader::message(0) };
    none_after(native(1024, Features::FRAGMENTS, 0), &more.encode());
}

#[test]
fn the_fast_path_returns_when_a_frame_in_pieces_is_complete() {
    let whole = message(b"hello");
    let mut decoder = native(1024, Features::FRAGMENTS, 0);
    for cut in 1..whole.len() {
        let mut rest = &whole[..];
        for piece_end in [cut, whole.len()] {
            while rest.len() > whole.len() - piece_end {
                let piece = &rest[..rest.len() - (whole.len() - piece_end)];
                let consumed = decoder.step(piece).map(|step| step.consumed());
                rest = &rest[consumed.expect("a valid stream")..];
            }
        }
        assert_eq!(decoder.whole_message(&whole), Some(8..13), "cut at {cut}");
    }
    let more = FrameHeader { flags: FrameFlags::MORE, ..FrameHeader::message(0) };
    assert!(decoder.step(&more.encode()).is_ok());
    assert!(decoder.step(&whole).is_ok());
    assert_eq!(decoder.whole_message(&whole), Some(8..13));
}

#[test]
fn lengths_up_to_the_limit_pass_and_one_more_does_not() {
    let limit = 1500;
    let exact = FrameHeader::message(limit);
    let over = FrameHeader::message(limit + 1).encode();
    let mut decoder = native(limit, Features::NONE, 0);
    assert_eq!(decoder.whole_message(&[&exact.encode()[..], &[0; 1500]].concat()), Some(8..1508));
    let mut over_whole = over.to_vec();
    over_whole.resize(8 + 1501, 0);
    assert_eq!(decoder.whole_message(&over_whole), None);
    let too_large = Err(ProtocolError::FrameTooLarge { len: 1501, limit });
    assert_eq!(decoder.clone().step(&over_whole), too_large);
    assert_eq!(decoder.step(&over), too_large);
}

#[test]
fn a_poisoned_decoder_repeats_its_error() {
    let mut decoder = native(1024, Features::NONE, 0);
    assert!(decoder.step(&message(b"fine")).is_ok());
    let error = decoder.step(&[0xFF; 8]).expect_err("no header");
    assert!(matches!(error, ProtocolError::HeaderCheck { expected: 0xCB, .. }), "{error:?}");
    for input in [&[][..], &message(b"fine"), ControlFrame::fin().as_bytes()] {
        assert_eq!(decoder.step(input), Err(error));
        assert_eq!(decoder.whole_message(input), None);
    }
    assert_eq!(decoder.end(), Err(error));
    assert_eq!(decoder.position_bytes(), 12);
    assert!(!decoder.is_between_frames());
}

#[test]
fn the_end_of_a_stream_is_clean_only_after_fin() {
    let mut decoder = native(1024, Features::NONE, 0);
    assert_eq!(decoder.end(), Ok(StreamEnd::Aborted));
    assert!(decoder.step(ControlFrame::fin().as_bytes()).is_ok());
    assert!(decoder.is_finished());
    assert_eq!(decoder.end(), Ok(StreamEnd::Clean));
    let ping = FrameHeader { kind: FrameKind::Ping, ..FrameHeader::message(0) };
    assert!(decoder.step(&ping.encode()).is_ok());
    assert_eq!(decoder.end(), Ok(StreamEnd::Clean));
    let after = ProtocolError::AfterFin { kind: FrameKind::Message };
    assert_eq!(decoder.clone().step(&message(b"")), Err(after));
    assert!(decoder.step(ControlFrame::reject("why not").as_bytes()).is_ok());
    assert_eq!(decoder.end(), Ok(StreamEnd::Rejected));
    let after = ProtocolError::AfterReject { kind: FrameKind::Fin };
    assert_eq!(decoder.step(ControlFrame::fin().as_bytes()), Err(after));

    let prefixed = Decoder::length_prefixed(LengthPrefix::default(), 10);
    assert_eq!(prefixed.end(), Ok(StreamEnd::Clean));
    assert_eq!(Decoder::bytes().end(), Ok(StreamEnd::Clean));
}

#[test]
fn what_was_not_agreed_is_refused() {
    let flagged = |flags| FrameHeader { flags, ..FrameHeader::message(0) }.encode();
    let with_fds = |fds| FrameHeader { fds, ..FrameHeader::message(0) }.encode();
    let kind = FrameKind::Message;
    let mut plain = native(1024, Features::NONE, 9);
    let refused = |bits| Err(ProtocolError::FlagsNotAllowed { kind, bits });
    assert_eq!(plain.clone().step(&flagged(FrameFlags::MORE)), refused(1));
    assert_eq!(plain.clone().step(&flagged(FrameFlags::EXT)), refused(2));
    assert_eq!(plain.clone().step(&flagged(FrameFlags::KNOWN)), refused(3));
    let refused = |count, limit| Err(ProtocolError::DescriptorsNotAllowed { count, limit });
    assert_eq!(plain.step(&with_fds(1)), refused(1, 0));

    assert!(native(1024, Features::FRAGMENTS, 0).step(&flagged(FrameFlags::MORE)).is_ok());
    assert!(native(1024, Features::EXTENSIONS, 0).step(&flagged(FrameFlags::EXT)).is_ok());
    let mut decoder = native(1024, Features::DESCRIPTORS, 9);
    assert!(decoder.step(&with_fds(9)).is_ok());
    assert_eq!(decoder.step(&with_fds(10)), refused(10, 9));
}

#[test]
fn length_prefixes_of_all_widths_and_orders() {
    for width in PrefixWidth::ALL {
        for byte_order in ByteOrder::ALL {
            let prefix = LengthPrefix { width, byte_order };
            let header_bytes = width.bytes();
            let mut stream = prefix.word(3).to_le_bytes()[..header_bytes].to_vec();
            stream.extend_from_slice(b"abc");
            let mut decoder = Decoder::length_prefixed(prefix, 3);
            let body = header_bytes..header_bytes + 3;
            assert_eq!(decoder.whole_message(&stream), Some(body.clone()));
            stream.extend_from_slice(&[0xFF; 16]);
            assert_eq!(decoder.whole_message(&stream), Some(body.clone()));
            for cut in 0..body.end {
                assert_eq!(decoder.whole_message(&stream[..cut]), None);
            }
            let header = FrameHeader::message(3);
            assert_eq!(decoder.step(&stream), Ok(Step::Frame { header, body }));
            let too_large = ProtocolError::FrameTooLarge { len: prefix.len_max(), limit: 3 };
            assert_eq!(decoder.whole_message(&[0xFF; 16]), None);
            assert_eq!(decoder.step(&[0xFF; 16]), Err(too_large));
        }
    }
}

/// What was seen in the message before must not make the next one pass, nor let one go unseen.
#[test]
fn a_run_finds_what_single_looks_find() {
    let mut decoders = vec![native(40, Features::NONE, 0), Decoder::bytes()];
    for width in PrefixWidth::ALL {
        for byte_order in ByteOrder::ALL {
            decoders.push(Decoder::length_prefixed(LengthPrefix { width, byte_order }, 40));
        }
    }
    for decoder in decoders {
        for lengths in [&[5, 5, 5, 5][..], &[5, 0, 0, 5, 5, 40, 40, 5], &[1], &[0], &[7, 41, 7]] {
            let mut stream = Vec::new();
            for len in lengths {
                let mut header = [0; HEADER_BYTES];
                let size = decoder.profile().write_message_header(*len, &mut header).unwrap();
                stream.extend_from_slice(&header[..size]);
                stream.resize(stream.len() + len, 0xA5);
            }
            for end in 0..=stream.len() {
                for spoiled in [None, Some(end / 2)] {
                    let mut stream = stream[..end].to_vec();
                    if let Some(byte) = spoiled.and_then(|at| stream.get_mut(at)) {
                        *byte ^= 0x10;
                    }
                    let mut run = decoder.whole_messages();
                    let mut rest = &stream[..];
                    while let Some(body) = decoder.whole_message(rest) {
                        let behind = &rest[body.end..];
                        assert_eq!(run.split(rest), Some((&rest[body], behind)), "{lengths:?}");
                        rest = behind;
                    }
                    assert_eq!(run.split(rest), None, "{lengths:?} up to {end}");
                }
            }
        }
    }
    assert_eq!(WholeMessages::none().split(&message(b"hello")), None);
}

#[test]
fn bytes_are_handed_on_as_they_come() {
    let mut decoder = Decoder::bytes();
    assert_eq!(decoder.step(&[]), Ok(Step::NeedMore { consumed: 0 }));
    let header = FrameHeader::message(3);
    assert_eq!(decoder.step(b"abc"), Ok(Step::Frame { header, body: 0..3 }));
    assert_eq!(decoder.whole_message(b"abc"), None);
    assert_eq!(decoder.position_bytes(), 3);
    assert!(decoder.is_between_frames());
}

fn native(frame_bytes_max: u32, features: Features, fds_max: u16) -> Decoder {
    let mut hello = Hello::new(frame_bytes_max, 0);
    hello.supported = features;
    hello.fds_max = fds_max;
    Decoder::native(&hello.agree(&hello).expect("equal greetings agree"))
}

fn message(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a short body");
    [&message_header(len).to_le_bytes()[..], body].concat()
}

#[test]
fn the_unfinished_part_puts_another_decoder_into_the_same_state() {
    let stream = [message(b"first"), message(b"a longer one")].concat();
    for cut in 0..=stream.len() {
        let mut decoder = native(1024, Features::NONE, 0);
        let mut rest = &stream[..cut];
        let mut bodies = Vec::new();
        let mut partial = Vec::new();
        while !rest.is_empty() {
            let step = decoder.step(rest).unwrap();
            match &step {
                Step::Frame { body, .. } => bodies.push(rest[body.clone()].to_vec()),
                Step::Body { consumed, last: false } => partial = rest[..*consumed].to_vec(),
                Step::Body { .. } => unreachable!("a frame is cut once"),
                Step::Begin { .. } => partial.clear(),
                Step::NeedMore { .. } => {}
            }
            rest = &rest[step.consumed()..];
        }
        let again = match decoder.unfinished() {
            None => {
                assert!(decoder.is_between_frames());
                Vec::new()
            }
            Some(Unfinished::Header(part)) => part.to_vec(),
            Some(Unfinished::Body { header, remaining }) => {
                assert_eq!(header.len as usize, partial.len() + remaining as usize);
                [&header.encode()[..], &partial].concat()
            }
        };
        let mut other = native(1024, Features::NONE, 0);
        let stream = [&again, &stream[cut..]].concat();
        let mut rest = &stream[..];
        while let Some(body) = other.whole_message(rest) {
            bodies.push(rest[body.clone()].to_vec());
            rest = &rest[body.end..];
        }
        assert!(rest.is_empty(), "cut at {cut}");
        assert_eq!(bodies, [b"first".to_vec(), b"a longer one".to_vec()], "cut at {cut}");
        assert_eq!(other.step(&[]), Ok(Step::NeedMore { consumed: 0 }));
    }
}
