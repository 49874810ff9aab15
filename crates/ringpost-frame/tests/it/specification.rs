//! What SPEC.md states in bytes and names is what the code does.

use ringpost_frame::{
    ControlFrame, Decoder, FrameHeader, HELLO_BYTES, Hello, HelloReader, HelloStep, MAGIC, Profile,
    StreamEnd, message_header,
};
use ringpost_testkit::frame_oracle::{Reader, read_stream};

const SPECIFICATION: &str = include_str!("../../SPEC.md");

#[test]
fn the_conversation_is_what_an_encoder_writes_and_a_decoder_reads() {
    let (_, section) = SPECIFICATION.split_once("\n## 9. ").expect("section 9");
    let block = section.split("```").nth(1).expect("a block of bytes");
    let stated: Vec<u8> = block
        .lines()
        .filter_map(|line| line.split("    ").next())
        .flat_map(|bytes| bytes.split_whitespace().map(|digits| u8::from_str_radix(digits, 16)))
        .collect::<Result<_, _>>()
        .expect("hexadecimal bytes");

    let hello = Hello::new(65_536, 0x1122_3344_5566_7788);
    let mut written = hello.encode().to_vec();
    let mut header = [0; 8];
    assert_eq!(Profile::Native.write_message_header(2, &mut header), Ok(8));
    written.extend_from_slice(&header);
    written.extend_from_slice(b"hi");
    written.extend_from_slice(ControlFrame::fin().as_bytes());
    assert_eq!(stated, written);

    let step = HelloReader::new().step(&stated);
    assert_eq!(step, Ok(HelloStep::Complete { hello, consumed: HELLO_BYTES }));
    let agreement = Hello::new(1024, 1).agree(&hello).expect("the same version");
    let decoder = Decoder::native(&agreement);
    let found = read_stream(decoder, Reader::FastPath, &stated[HELLO_BYTES..], &[]);
    assert_eq!(found.end, Ok(StreamEnd::Clean));
    assert_eq!(found.frames[0].body, b"hi");
}

#[test]
fn stated_headers_and_magic() {
    let states = |bytes: &[u8]| {
        let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        assert!(SPECIFICATION.contains(&format!("`{}`", digits.join(" "))), "{digits:?}");
    };
    states(&MAGIC);
    states(&message_header(0).to_le_bytes());
    states(&FrameHeader::message(64).encode());
}
