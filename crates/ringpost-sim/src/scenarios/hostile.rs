//! Peers that break the protocol.

use ringpost::{Closed, Connection, HelloError, ProtocolError, RecvError, SendError, spawn};
use ringpost_frame::{
    ControlFrame, Features, FrameFlags, FrameHeader, FrameKind, HEADER_BYTES, HELLO_BYTES, Hello,
};
use ringpost_testkit::peer;

use crate::flow::{Flow, SMALL, TINY};
use crate::raw::Raw;
use crate::rig::Rig;

/// Limits of messages, bytes.
const LIMITS: [u32; 2] = [16 << 20, 20_000];
/// What the other side may say before it is told.
const NOTE: [u8; 100] = [3; 100];
const REASON: &str = "not you";

/// What a peer sends, and what is to be found of it.
#[derive(Debug)]
struct Attack {
    bytes: Vec<u8>,
    expected: Expected,
    /// It goes without reading what it is told.
    abrupt: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected {
    Finished,
    Aborted,
    Truncated,
    Rejected,
    /// Found at the first wrong byte, whatever has arrived of the others.
    Magic,
    Greeting(HelloError),
    Frame {
        position: u64,
        source: ProtocolError,
    },
}

/// Peers with wrong greetings, wrong frames, random bytes and streams that end anywhere: each is found to be
/// what it is, after all that was right before it, and told why; a bystander notices nothing.
pub(crate) async fn hostile(rig: Rig) {
    let mut tasks = Vec::new();
    let (left, right) = rig.pair(rig.options());
    let flow = Flow::new(&rig, SMALL);
    let count = 1 + rig.below(20) as u64;
    tasks.push(spawn({
        let flow = flow.clone();
        async move {
            let mut left = left;
            flow.send_all(left.halves().0, count).await.expect("room");
            left.shutdown().await.expect("a proper end");
            assert!(matches!(left.recv().await, Ok(None)), "the reader ends properly");
        }
    }));
    tasks.push(spawn(async move {
        let mut right = right;
        flow.receive_all(right.halves().1).await;
        right.shutdown().await.expect("a proper end");
    }));
    for _ in 0..=rig.below(4) {
        let (ours, theirs) = rig.sockets();
        let flow = Flow::new(&rig, [TINY, SMALL][rig.below(2)]);
        let limit = LIMITS[rig.below(LIMITS.len())];
        let attack = Attack::choose(&rig, &flow, limit);
        let options = rig.options().frame_bytes_max(limit);
        let (expected, abrupt) = (attack.expected.clone(), attack.abrupt);
        let start = attack.bytes.iter().copied().take(8).collect();
        tasks.push(spawn(attacks(Raw::new(&rig, theirs), attack)));
        let victim = Victim { rig: rig.clone(), flow, expected, abrupt, start };
        tasks.push(spawn(victim.suffer(Connection::from_socket(ours.into(), options))));
        rig.dawdle().await;
    }
    for task in tasks {
        task.await.expect("nobody is harmed");
    }
}

impl Attack {
    fn choose(rig: &Rig, flow: &Flow, limit: u32) -> Self {
        let abrupt = rig.once_in(4);
        let mut bytes = peer::greeting().to_vec();
        if rig.once_in(3) {
            let (greeting, expected) = greeting(rig);
            return Self { bytes: greeting, expected, abrupt };
        }
        let count = rig.below(6) as u64;
        // Where frames end.
        let mut ends = vec![bytes.len()];
        for sequence in 0..count {
            bytes.extend(peer::message(&flow.payload(sequence)));
            ends.push(bytes.len());
        }
        let whole = bytes.len();
        if rig.below(2) == 0 {
            bytes.extend(ControlFrame::fin().as_bytes());
            let len = rig.below(bytes.len() + 1);
            let expected = if len == bytes.len() {
                Expected::Finished
            } else if len < HELLO_BYTES || ends.contains(&len) {
                Expected::Aborted
            } else {
                Expected::Truncated
            };
            bytes.truncate(len);
            ends[1..].iter().filter(|&&end| end <= len).for_each(|_| flow.accept_one());
            return Self { bytes, expected, abrupt };
        }
        (0..count).for_each(|_| flow.accept_one());
        let (frame, error) = frame(rig, limit);
        bytes.extend(frame);
        // Not looked at any more.
        bytes.extend((0..rig.below(50)).map(|_| 0xA5));
        let position = (whole - HELLO_BYTES) as u64;
        let expected =
            error.map_or(Expected::Rejected, |source| Expected::Frame { position, source });
        Self { bytes, expected, abrupt }
    }
}

/// A wrong greeting, and what is wrong with it.
fn greeting(rig: &Rig) -> (Vec<u8>, Expected) {
    let mut hello = Hello::new(16 << 20, 7);
    let error = match rig.below(12) {
        0 => {
            hello.flags = 1 << rig.below(8);
            HelloError::Reserved { offset: 12, value: u8::try_from(hello.flags).expect("a byte") }
        }
        1 => {
            hello.version_min = 0;
            HelloError::VersionRange { min: 0, max: hello.version_max }
        }
        2 => {
            (hello.version_min, hello.version_max) = (3, 2);
            HelloError::VersionRange { min: 3, max: 2 }
        }
        3 => {
            let bits = 1 << rig.below(60);
            hello.required = Features(bits);
            HelloError::RequiredUnsupported { bits }
        }
        4 => {
            let value = u32::try_from(rig.below(1024)).expect("small");
            hello.frame_bytes_max = value;
            HelloError::FrameLimitTooSmall { value, floor: 1024 }
        }
        5 => {
            (hello.version_min, hello.version_max) = (2, 9);
            HelloError::NoCommonVersion { local_min: 1, local_max: 1, peer_min: 2, peer_max: 9 }
        }
        6 => {
            let bits = 1 << rig.below(60);
            (hello.required, hello.supported) = (Features(bits), Features(bits));
            HelloError::MissingFeatures { bits }
        }
        7 => {
            hello.abi = 2;
            HelloError::AbiMismatch { local: 1, peer: 2 }
        }
        8 => {
            let offset = 48 + rig.below(16);
            let mut bytes = hello.encode().to_vec();
            bytes[offset] = 0x40;
            return (bytes, Expected::Greeting(HelloError::Reserved { offset, value: 0x40 }));
        }
        9 => {
            let mut bytes = hello.encode().to_vec();
            bytes[..8].reverse();
            return (bytes, Expected::Greeting(HelloError::ByteOrder));
        }
        10 => {
            let mut bytes = hello.encode().to_vec();
            bytes[1 + rig.below(7)] ^= 1 << rig.below(8);
            return (bytes, Expected::Magic);
        }
        _ => return (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Expected::Magic),
    };
    (hello.encode().to_vec(), Expected::Greeting(error))
}

/// A frame that ends a connection, and what is wrong with it; nothing if it is a refusal.
fn frame(rig: &Rig, limit: u32) -> (Vec<u8>, Option<ProtocolError>) {
    let code = u8::try_from(7 + rig.below(249)).expect("a byte");
    let mut header =
        FrameHeader { len: 0, kind: FrameKind::Message, flags: FrameFlags::NONE, fds: 0 };
    let error = match rig.below(8) {
        0 => {
            let mut bytes = [0; HEADER_BYTES];
            bytes.fill_with(|| u8::try_from(rig.below(256)).expect("a byte"));
            let error = FrameHeader::decode(bytes).err();
            if let Some(error @ ProtocolError::HeaderCheck { .. }) = error {
                return (bytes.to_vec(), Some(error));
            }
            // It has the right check byte by chance.
            bytes[7] ^= 1;
            return (bytes.to_vec(), FrameHeader::decode(bytes).err());
        }
        1 => {
            header.kind = FrameKind::Unknown(0);
            ProtocolError::ZeroKind
        }
        2 => {
            let bits = 8 << rig.below(5);
            header.flags = FrameFlags(bits);
            ProtocolError::UnknownFlags { bits }
        }
        3 => {
            (header.kind, header.flags) = (FrameKind::Unknown(code), FrameFlags::CRITICAL);
            ProtocolError::UnknownCritical { kind: code }
        }
        4 => {
            let kinds =
                [(FrameKind::Ping, 0, 64), (FrameKind::Fin, 0, 0), (FrameKind::GoAway, 8, 8)];
            let (kind, min, max) = kinds[rig.below(3)];
            let len = [max + 1, u32::MAX][rig.below(2)];
            (header.kind, header.len) = (kind, len);
            ProtocolError::ControlLength { kind, len, min, max }
        }
        5 => {
            header.fds = [1, 255][rig.below(2)];
            ProtocolError::DescriptorsNotAllowed { count: header.fds, limit: 0 }
        }
        6 => {
            let len = [limit + 1, 1 << 31, u32::MAX][rig.below(3)];
            header.kind = [FrameKind::Message, FrameKind::Unknown(code)][rig.below(2)];
            header.len = len;
            ProtocolError::FrameTooLarge { len: len.into(), limit }
        }
        _ => return (ControlFrame::reject(REASON).as_bytes().to_vec(), None),
    };
    (header.encode().to_vec(), Some(error))
}

async fn attacks(mut peer: Raw, attack: Attack) {
    let Attack { bytes, expected, abrupt } = attack;
    peer.send(&bytes).await;
    if abrupt {
        return;
    }
    if matches!(expected, Expected::Finished | Expected::Aborted | Expected::Truncated) {
        peer.shut_down_write();
    }
    let told = peer.read_to_end().await;
    let Some((hello, mut rest)) = told.split_first_chunk::<HELLO_BYTES>() else {
        assert!(peer.was_waited_for(), "no greeting");
        return;
    };
    Hello::decode(hello).expect("a proper greeting");
    let mut reason = None;
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_BYTES>() {
        assert_eq!(reason, None, "more after a refusal");
        let header = FrameHeader::decode(*header).expect("a proper header");
        let Some((body, behind)) = behind.split_at_checked(header.len as usize) else {
            assert!(peer.was_waited_for(), "a frame without its end");
            return;
        };
        match header.kind {
            FrameKind::Message => assert_eq!(body, NOTE, "a message of nobody"),
            FrameKind::Reject => reason = Some(String::from_utf8(body.to_vec()).expect("a text")),
            kind => panic!("an unexpected {kind}"),
        }
        rest = behind;
    }
    if peer.was_waited_for() {
        return;
    }
    assert!(rest.is_empty(), "the stream ends within a frame");
    let due = match expected {
        Expected::Greeting(error) => Some(error.to_string()),
        Expected::Frame { source, .. } => Some(source.to_string()),
        _ => None,
    };
    assert_eq!(reason, due, "the reason");
}

struct Victim {
    rig: Rig,
    flow: Flow,
    expected: Expected,
    abrupt: bool,
    /// The first bytes that its peer sends.
    start: Vec<u8>,
}

impl Victim {
    async fn suffer(self, mut connection: Connection) {
        let Self { rig, flow, expected, abrupt, start } = self;
        if rig.below(2) == 0 {
            // Told or not.
            let _ = connection.try_send(&NOTE);
        }
        rig.dawdle().await;
        let (taken, end) = flow.receive(connection.halves().1, u64::MAX).await;
        let again = connection.recv().await.map(|message| assert!(message.is_none()));
        assert_eq!(again, end, "another end");
        if abrupt && end == Err(RecvError::Closed(Closed::Aborted)) {
            assert!(taken <= flow.accepted(), "messages of nobody");
            return;
        }
        assert_eq!(taken, flow.accepted(), "messages are missing before {end:?}");
        let closed = match (&expected, &end) {
            (Expected::Finished, Ok(())) => return,
            (Expected::Truncated, Err(RecvError::Truncated)) => return,
            (Expected::Aborted, Err(RecvError::Closed(Closed::Aborted))) => return,
            (Expected::Rejected, Err(RecvError::Closed(closed @ Closed::Rejected { reason })))
                if reason == REASON =>
            {
                closed.clone()
            }
            (
                Expected::Greeting(due),
                Err(RecvError::Closed(closed @ Closed::Handshake(error))),
            ) if **error == *due => closed.clone(),
            (Expected::Magic, Err(RecvError::Closed(closed @ Closed::Handshake(error)))) => {
                let HelloError::BadMagic { found } = **error else { panic!("{error:?}") };
                // What had not arrived yet is zero.
                let arrived = |len| found[..len] == start[..len] && found[len..] == [0; 8][len..];
                assert!((1..=8).any(arrived), "{found:?} of {start:?}");
                closed.clone()
            }
            (Expected::Frame { position, source }, Err(RecvError::Protocol { .. })) => {
                let (position, source) = (*position, *source);
                assert_eq!(end, Err(RecvError::Protocol { position, source }));
                Closed::Protocol(Box::new(source))
            }
            _ => panic!("{expected:?} became {end:?}"),
        };
        let sent = connection.send(&NOTE).await;
        assert_eq!(sent, Err(SendError::Closed(closed)), "after {end:?}");
    }
}
