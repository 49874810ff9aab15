//! How long it takes to find a frame: nanoseconds per frame over a buffer of frames that all lie
//! in the first-level cache or close to it. Run with `--release`.
//!
//! Each figure is the best of many rounds: other programs only ever add time.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use ringpost_frame::{
    ByteOrder, Decoder, FrameHeader, Hello, LengthPrefix, PrefixWidth, Profile, message_header,
};

fn main() -> Result<(), Box<dyn Error>> {
    let hello = Hello::new(1 << 20, 0);
    let agreement = hello.agree(&hello)?;
    println!("{:<44} {:>9}", "64 KiB of frames with 64 bytes of body", "ns/frame");

    let native = Decoder::native(&agreement);
    let mixed = stream(Profile::Native, &MIXED)?;
    report("native, 9 lengths, whole_message", &mixed, |stream| by_whole_message(&native, stream));
    report("native, 9 lengths, whole_messages", &mixed, |stream| by_run(&native, stream));
    let stream = stream(Profile::Native, &[64])?;
    report("native, whole_message", &stream, |stream| by_whole_message(&native, stream));
    report("native, whole_messages", &stream, |stream| by_run(&native, stream));
    report("native, step", &stream, |stream| by_step(native.clone(), stream));
    for width in PrefixWidth::ALL {
        for byte_order in ByteOrder::ALL {
            let prefix = LengthPrefix { width, byte_order };
            let stream = self::stream(Profile::LengthPrefixed(prefix), &[64])?;
            let decoder = Decoder::length_prefixed(prefix, 1 << 20);
            let name = format!("{width:?} {byte_order:?}-endian, whole_message");
            report(&name, &stream, |stream| by_whole_message(&decoder, stream));
            let name = format!("{width:?} {byte_order:?}-endian, whole_messages");
            report(&name, &stream, |stream| by_run(&decoder, stream));
        }
    }

    let lengths: Vec<u32> = (0..1024).collect();
    report_each("message_header", lengths.len(), || {
        let sum = |sum: u64, len: &u32| sum.wrapping_add(message_header(black_box(*len)));
        black_box(black_box(&lengths).iter().fold(0, sum));
    });
    let headers: Vec<[u8; 8]> =
        lengths.iter().map(|len| FrameHeader::message(*len).encode()).collect();
    report_each("FrameHeader::decode", headers.len(), || {
        let valid = |header: &&[u8; 8]| FrameHeader::decode(black_box(**header)).is_ok();
        assert_eq!(black_box(&headers).iter().filter(valid).count(), headers.len());
    });
    Ok(())
}

/// Lengths that no two messages in a row share, 64 bytes on average.
const MIXED: [usize; 9] = [64, 16, 112, 48, 80, 32, 96, 24, 104];

fn stream(profile: Profile, lengths: &[usize]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut stream = Vec::new();
    for len in lengths.iter().cycle() {
        if stream.len() + profile.header_bytes() + len > 64 << 10 {
            break;
        }
        let mut header = [0; 8];
        let written = profile.write_message_header(*len, &mut header)?;
        stream.extend_from_slice(&header[..written]);
        stream.resize(stream.len() + len, 0xAB);
    }
    Ok(stream)
}

/// Finds every frame and touches its first byte, as a receiver would.
fn by_whole_message(decoder: &Decoder, mut input: &[u8]) -> usize {
    let mut frames = 0;
    while let Some(body) = decoder.whole_message(input) {
        black_box(input.get(body.start));
        input = &input[body.end..];
        frames += 1;
    }
    frames
}

fn by_run(decoder: &Decoder, mut input: &[u8]) -> usize {
    let mut run = decoder.whole_messages();
    let mut frames = 0;
    while let Some((body, rest)) = run.split(input) {
        black_box(body.first());
        input = rest;
        frames += 1;
    }
    frames
}

fn by_step(mut decoder: Decoder, mut input: &[u8]) -> usize {
    let mut frames = 0;
    while !input.is_empty()
        && let Ok(step) = decoder.step(input)
    {
        input = &input[step.consumed()..];
        frames += 1;
    }
    frames
}

fn report(name: &str, stream: &[u8], read: impl Fn(&[u8]) -> usize) {
    let frames = read(stream);
    report_each(name, frames, || assert_eq!(read(black_box(stream)), frames));
}

fn report_each(name: &str, items: usize, run: impl Fn()) {
    let mut best = f64::INFINITY;
    for _ in 0..20_000 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    let nanoseconds = best * 1e9 / f64::from(u32::try_from(items).unwrap_or(u32::MAX));
    println!("{name:<44} {nanoseconds:>9.2}");
}
