//! Greetings survive encoding, and both sides agree on the same thing.

use ringpost_frame::{
    Agreement, Features, HELLO_BYTES, Hello, HelloError, HelloReader, HelloStep, MAGIC,
};

use super::drive::check_told;
use super::input::Input;

/// Reads two greetings and lets them agree, as they are and made more plausible.
///
/// Input: the sizes of the pieces in which they arrive; 64 bytes each; their fields again.
///
/// # Panics
///
/// If a greeting does not survive encoding, if reading it in pieces makes a difference, or if the
/// two sides come to different agreements.
pub fn hello(data: &[u8]) {
    let mut input = Input::new(data);
    let piece_sizes = input.piece_sizes();
    let ours: [u8; HELLO_BYTES] = input.array();
    let theirs: [u8; HELLO_BYTES] = input.array();
    check_decode(&ours, piece_sizes);
    check_decode(&plausible(ours), piece_sizes);

    let built = built(&mut input);
    let encoded = built.encode();
    match built.validate() {
        Ok(()) => assert_eq!(Hello::decode(&encoded), Ok(built)),
        Err(error) => assert_eq!(Hello::decode(&encoded), Err(error)),
    }
    check_agree(&built, &self::built(&mut input));
    if let (Ok(ours), Ok(theirs)) =
        (Hello::decode(&plausible(ours)), Hello::decode(&plausible(theirs)))
    {
        check_agree(&ours, &theirs);
        check_agree(&ours, &built);
    }
}

fn check_decode(bytes: &[u8; HELLO_BYTES], piece_sizes: &[u8]) {
    let whole = Hello::decode(bytes);
    if let Err(error) = &whole {
        check_told(error);
    }
    if let Ok(hello) = whole {
        assert_eq!(hello.encode(), *bytes);
        assert_eq!(hello.validate(), Ok(()));
    }
    for sizes in [&[], piece_sizes, &[1]] {
        let in_pieces = read_in_pieces(bytes, sizes);
        // Found early, the error shows only what had arrived.
        let same = match (whole, in_pieces) {
            (Err(HelloError::BadMagic { found }), Err(HelloError::BadMagic { found: early })) => {
                let wrong = found.iter().zip(MAGIC).position(|(have, want)| *have != want);
                let wrong = wrong.expect("the magic is bad");
                found[..=wrong] == early[..=wrong]
            }
            (whole, in_pieces) => whole == in_pieces,
        };
        assert!(same, "{whole:?} became {in_pieces:?} in pieces of {sizes:?}");
    }
}

fn read_in_pieces(bytes: &[u8; HELLO_BYTES], piece_sizes: &[u8]) -> Result<Hello, HelloError> {
    let mut reader = HelloReader::default();
    // What follows a greeting is not the reader's.
    let stream = [&bytes[..], b"frames"].concat();
    let mut rest = stream.as_slice();
    let mut sizes = piece_sizes.iter().filter(|size| **size != 0).cycle();
    loop {
        let size = sizes.next().map_or(rest.len(), |size| usize::from(*size).min(rest.len()));
        let received = reader.received_bytes();
        match reader.step(&rest[..size]) {
            Ok(HelloStep::NeedMore { consumed }) => {
                assert_eq!(consumed, size);
                assert_eq!(reader.received_bytes(), received + consumed);
                rest = &rest[consumed..];
            }
            Ok(HelloStep::Complete { hello, consumed }) => {
                assert_eq!(received + consumed, HELLO_BYTES);
                let again = HelloStep::Complete { hello, consumed: 0 };
                assert_eq!(reader.step(b"frames"), Ok(again));
                return Ok(hello);
            }
            Err(error) => {
                assert_eq!(reader.step(&[]), Err(error));
                return Err(error);
            }
        }
    }
}

/// The same bytes with the parts repaired that random bytes never have right.
fn plausible(mut bytes: [u8; HELLO_BYTES]) -> [u8; HELLO_BYTES] {
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[12..16].fill(0);
    bytes[48..].fill(0);
    bytes
}

/// A greeting from a few bytes, valid more often than not.
fn built(input: &mut Input<'_>) -> Hello {
    let [version_min, versions, required, supported, limit, fds_max, odd] = input.array();
    let mut hello = Hello::new(u32::from(limit) * 64, input.u64());
    hello.version_min = u16::from(version_min % 4);
    hello.version_max = hello.version_min + u16::from(versions % 4);
    hello.supported = Features(u64::from(supported) << (odd % 57));
    hello.required = Features(u64::from(required & supported) << (odd % 57));
    hello.fds_max = u16::from(fds_max);
    match odd {
        240 => hello.required = Features(u64::from(required)),
        241 => hello.frame_bytes_max = u32::from(limit) * 8,
        242 => hello.version_max = u16::from(versions % 4),
        243 => hello.flags = u32::from(limit) << (fds_max % 25),
        244 => hello.abi = u16::from(limit),
        _ => {}
    }
    hello
}

fn check_agree(ours: &Hello, theirs: &Hello) {
    match (ours.agree(theirs), theirs.agree(ours)) {
        (Ok(here), Ok(there)) => {
            assert_eq!(here.peer_instance, theirs.instance);
            assert_eq!(there.peer_instance, ours.instance);
            let mut mirrored = there;
            mirrored.peer_instance = here.peer_instance;
            assert_eq!(here, mirrored);
            check_agreement(&here, ours);
            check_agreement(&here, theirs);
        }
        (Err(here), Err(there)) => {
            check_told(&here);
            check_mirrored(here, there);
        }
        (here, there) => panic!("one side agrees: {here:?} and {there:?}"),
    }
}

fn check_agreement(agreement: &Agreement, side: &Hello) {
    assert!((side.version_min..=side.version_max).contains(&agreement.version));
    assert!(agreement.features.contains(side.required));
    assert!(side.supported.contains(agreement.features));
    assert!(agreement.frame_bytes_max <= side.frame_bytes_max && agreement.frame_bytes_max >= 1024);
    assert!(agreement.fds_max <= side.fds_max);
    assert!(agreement.fds_max == 0 || agreement.features.contains(Features::DESCRIPTORS));
}

/// Errors of two valid greetings are mirror images. Of two invalid ones, each side names its own.
fn check_mirrored(here: HelloError, there: HelloError) {
    match (here, there) {
        (
            HelloError::NoCommonVersion { local_min, local_max, peer_min, peer_max },
            HelloError::NoCommonVersion { local_min: a, local_max: b, peer_min: c, peer_max: d },
        ) => assert_eq!((local_min, local_max, peer_min, peer_max), (c, d, a, b)),
        (
            HelloError::AbiMismatch { local, peer },
            HelloError::AbiMismatch { local: a, peer: b },
        ) => assert_eq!((local, peer), (b, a)),
        (HelloError::MissingFeatures { bits }, HelloError::MissingFeatures { bits: mirrored }) => {
            assert_eq!(bits, mirrored);
        }
        (here, there) => {
            let invalid = |error| {
                !matches!(
                    error,
                    HelloError::NoCommonVersion { .. }
                        | HelloError::AbiMismatch { .. }
                        | HelloError::MissingFeatures { .. }
                )
            };
            assert!(invalid(here) && invalid(there), "{here:?} and {there:?}");
        }
    }
}
