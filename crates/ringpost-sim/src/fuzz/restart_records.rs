//! What a predecessor says in a restart, and the records themselves.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use ringpost::restart::{Inherited, RestartError, fuzz};
use ringpost_testkit::frame_oracle::Input;
use ringpost_uds::{Address, BindOptions, handover};
use tempfile::TempDir;

use crate::run::descriptors;

/// Goes through a restart as its successor, with a predecessor that says what the input wants, over a real
/// socket; and reads the same bytes as bare records.
///
/// Input: how many connections are asked for, and sizes of pieces; then the records, proper ones with the
/// descriptors they need, or spoiled ones.
///
/// # Panics
///
/// If proper records have another outcome than the protocol says, if cutting the bytes makes a difference,
/// or if a descriptor is left at the end.
pub fn restart_records(data: &[u8]) {
    let before = descriptors();
    play(data);
    assert_eq!(descriptors(), before, "descriptors are left");
}

fn play(data: &[u8]) {
    let mut input = Input::new(data);
    let connections_max = usize::from(input.byte() % 8);
    let count = usize::from(input.byte() % 8);
    let pieces = input.bytes(count).to_vec();
    let mut told = Told::new(connections_max);
    let (mut ours, theirs) = UnixStream::pair().expect("sockets");
    // The successor never waits: all is there, and then the end.
    ours.set_nonblocking(true).expect("sockets can");
    theirs.set_nonblocking(true).expect("sockets can");
    let mut stream = Vec::new();
    let mut announced = 0;
    while !input.is_empty() && stream.len() < STREAM_BYTES_MAX {
        let Record { bytes, descriptors } = record(&mut input, &mut told);
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        if bytes.is_empty() || handover::send(&ours, &bytes, &borrowed).ok() != Some(bytes.len()) {
            // No room for more.
            told.expected = None;
            break;
        }
        announced += descriptors.len();
        stream.extend_from_slice(&bytes);
    }
    ours.shutdown(Shutdown::Write).expect("connected");
    let found = fuzz::take_over(OwnedFd::from(theirs), connections_max);
    told.check(found);
    check_answers(&mut ours);
    check_cuts(&stream, &pieces, announced);
}

/// A record on its way.
struct Record {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// What proper records lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    TookOver { listeners: usize, connections: Vec<(Vec<u8>, usize)>, state: Vec<u8>, ended: bool },
    GaveUp(String),
    Busy,
    Denied,
    Version(u16),
    Refused,
    Ended,
}

/// What has been said so far, as long as all of it was proper.
struct Told {
    expected: Option<Stage>,
    connections_max: usize,
    directory: Option<TempDir>,
}

#[derive(Debug, Default)]
struct Stage {
    control: bool,
    listeners: usize,
    offered: bool,
    /// With a descriptor by which the end of the predecessor is seen.
    process: bool,
    state: Vec<u8>,
    connections: Vec<(Vec<u8>, usize)>,
    outcome: Option<Outcome>,
}

impl Told {
    fn new(connections_max: usize) -> Self {
        Self { expected: Some(Stage::default()), connections_max, directory: None }
    }

    /// Notes what a record means that is proper by itself.
    fn note(&mut self, kind: u8, note: Note) {
        let connections_max = self.connections_max;
        let Some(stage) = self.expected.as_mut().filter(|stage| stage.outcome.is_none()) else {
            return;
        };
        let outcome = match (kind, note) {
            (_, Note::Outcome(outcome)) => Some(outcome),
            (LISTENER, Note::Listener { control }) if !stage.offered => {
                // Listeners of the parcel, and the control socket.
                stage.listeners += 1;
                stage.control |= control;
                (stage.listeners > LISTENERS_MAX + 1).then_some(Outcome::Refused)
            }
            (DESCRIPTOR, _) if !stage.offered => None,
            (STATE, Note::State(state)) => {
                stage.state = state;
                None
            }
            (OFFER, Note::Offer { process }) if !stage.offered && stage.control => {
                stage.offered = true;
                stage.process = process;
                stage.state.clear();
                None
            }
            (CONNECTION, Note::Connection(label, received)) if stage.offered => {
                stage.connections.push((label, received));
                (stage.connections.len() > connections_max).then_some(Outcome::Refused)
            }
            (COMMIT, _) if stage.offered => Some(stage.took_over(false)),
            _ => Some(Outcome::Refused),
        };
        stage.outcome = outcome;
    }

    fn check(self, found: Result<Inherited, RestartError>) {
        let found = match found {
            Ok(mut inherited) => {
                let mut listeners = 1;
                while inherited.listener("").is_some() {
                    listeners += 1;
                }
                while inherited.listener("app").is_some() {
                    listeners += 1;
                }
                let state = inherited.state().to_vec();
                let ended = inherited.predecessor_ended();
                let connections = inherited.connections().into_iter();
                let connections =
                    connections.map(|(label, one)| (label, one.received_bytes())).collect();
                Outcome::TookOver { listeners, connections, state, ended }
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                outcome_of(error)
            }
        };
        let Some(mut stage) = self.expected else { return };
        let expected =
            stage.outcome.take().unwrap_or_else(|| match stage.offered && stage.process {
                // It has ended without a word, and its process with it.
                true => stage.took_over(true),
                false => Outcome::Ended,
            });
        assert_eq!(found, expected);
    }
}

impl Stage {
    fn took_over(&mut self, ended: bool) -> Outcome {
        Outcome::TookOver {
            listeners: self.listeners,
            connections: std::mem::take(&mut self.connections),
            state: std::mem::take(&mut self.state),
            ended,
        }
    }
}

fn outcome_of(error: RestartError) -> Outcome {
    match error {
        RestartError::GaveUp { reason, .. } => {
            assert!(!reason.chars().any(char::is_control), "{reason:?} is for people's eyes");
            Outcome::GaveUp(reason)
        }
        RestartError::Busy => Outcome::Busy,
        RestartError::Denied { .. } => Outcome::Denied,
        RestartError::Version { theirs, .. } => Outcome::Version(theirs),
        RestartError::Ended { .. } => Outcome::Ended,
        RestartError::Protocol { .. }
        | RestartError::TooMuch { .. }
        | RestartError::Handover { .. } => Outcome::Refused,
        other => panic!("{other} by what the predecessor has said"),
    }
}

/// What a proper record says.
enum Note {
    Nothing,
    Listener { control: bool },
    Offer { process: bool },
    State(Vec<u8>),
    Connection(Vec<u8>, usize),
    Outcome(Outcome),
}

fn record(input: &mut Input<'_>, told: &mut Told) -> Record {
    let [form, spoil] = input.array();
    let mut descriptors = Vec::new();
    let (kind, body, note) = match form % 12 {
        0 | 1 => listener(input, told, &mut descriptors),
        2 => {
            descriptors.push(null());
            let name = named(input);
            (DESCRIPTOR, sized(&name), within(&name, Note::Nothing))
        }
        3 => {
            let state = rest_of(input);
            (STATE, state.clone(), Note::State(state))
        }
        4 => {
            // A process that has ended: readable at once.
            let process = form & 0x80 == 0;
            descriptors.extend(process.then(null));
            let waits = [[0; 8], input.array()].concat();
            (OFFER, waits, Note::Offer { process })
        }
        5..=7 => connection(input, &mut descriptors),
        8 => (COMMIT, Vec::new(), Note::Nothing),
        9 => {
            let reason = rest_of(input);
            let readable = readable(&reason);
            (GIVE_UP, reason, Note::Outcome(Outcome::GaveUp(readable)))
        }
        10 => refused(input),
        _ => (input.byte() % 16, rest_of(input), Note::Outcome(Outcome::Refused)),
    };
    let mut bytes = u32::try_from(body.len()).expect("short").to_le_bytes().to_vec();
    bytes.extend_from_slice(&[kind, u8::try_from(descriptors.len()).expect("few"), 0, 0]);
    bytes.extend_from_slice(&body);
    // A kind of its own is anything, and so is a spoiled record: only that all ends well is known.
    if form % 12 == 11 || spoil >= SPOILED {
        told.expected = None;
    } else {
        told.note(kind, note);
    }
    match spoil {
        0..SPOILED => {}
        200..=215 => bytes.truncate(usize::from(input.byte())),
        216..=231 => {
            let at = usize::from(input.byte()) % bytes.len();
            bytes[at] = input.byte();
        }
        232..=239 => descriptors.clear(),
        240..=247 => descriptors.insert(0, null()),
        _ => bytes = rest_of(input),
    }
    Record { bytes, descriptors }
}

fn listener(
    input: &mut Input<'_>,
    told: &mut Told,
    descriptors: &mut Vec<OwnedFd>,
) -> (u8, Vec<u8>, Note) {
    let [form, tag] = input.array();
    let control = form % 2 == 0;
    let mut body = sized(if control { b"" } else { b"app" });
    body.push(tag % 3);
    body.extend(sized(&named(input)));
    let note = Note::Listener { control };
    if form < 0xC0 {
        let listener = UnixListener::from(unnamed());
        descriptors.push(OwnedFd::from(listener));
        body.push(0);
        return (LISTENER, body, note);
    }
    let directory = told.directory.get_or_insert_with(|| TempDir::new().expect("room"));
    let address = Address::from(directory.path().join(format!("{form}.sock")));
    let Ok(bound) = ringpost_uds::bind(&address, &BindOptions::new()) else {
        // There is one of this name.
        descriptors.push(null());
        body.push(0);
        return (LISTENER, body, Note::Outcome(Outcome::Refused));
    };
    let (socket, guard) = bound.into_parts();
    let parts = guard.parts().expect("descriptors").expect("a path");
    body.push(1);
    body.extend(sized(directory.path().as_os_str().as_encoded_bytes()));
    body.extend(sized(parts.name.as_encoded_bytes()));
    descriptors.extend([socket, parts.directory, parts.socket_file, parts.lock]);
    guard.release();
    (LISTENER, body, note)
}

fn connection(input: &mut Input<'_>, descriptors: &mut Vec<OwnedFd>) -> (u8, Vec<u8>, Note) {
    let [profile, width, order, agreed] = input.array();
    let (profile, width) = (profile % 3, [2, 4, 8][usize::from(width % 3)]);
    let mut body = vec![profile, width, order % 2];
    body.extend_from_slice(&65_536_u32.to_le_bytes());
    body.extend_from_slice(&input.u64().to_le_bytes());
    body.extend_from_slice(&input.u64().to_le_bytes());
    // Native ones have an agreement, others none.
    let mut possible = true;
    if profile == 0 {
        let version = u16::from(agreed % 4);
        let limit = 1020 + u32::from(agreed);
        body.push(1);
        body.extend_from_slice(&version.to_le_bytes());
        body.extend_from_slice(&input.array::<8>());
        body.extend_from_slice(&limit.to_le_bytes());
        body.extend_from_slice(&input.array::<10>());
        // A limit below the floor is raised.
        possible = version > 0;
    } else {
        body.push(0);
    }
    body.push(order & 1);
    let (label, received) = (named(input), rest_of(input));
    let proper = possible && label.len() <= NAME_BYTES_MAX;
    body.extend(sized(&label));
    body.extend(sized(&received));
    let (end, _) = UnixStream::pair().expect("sockets");
    descriptors.push(end.into());
    let found = fuzz::decode_connection(&body, null());
    assert_eq!(found.is_ok(), proper, "{:?}", found.err());
    if let Ok((found_label, connection)) = found {
        assert_eq!(found_label, label);
        let mut encoded = fuzz::encode_connection(&found_label, &connection);
        // Of the length field only the profile that has one keeps anything, and a limit is raised.
        encoded[1..3].copy_from_slice(&body[1..3]);
        if profile != 0 {
            assert_eq!(encoded, body, "written down again");
        }
        let (_, again) = fuzz::decode_connection(&encoded, null()).expect("it was proper");
        assert_eq!(again.agreement(), connection.agreement());
        assert_eq!(again.received_bytes(), received.len());
    }
    let note = match proper {
        true => Note::Connection(label, received.len()),
        false => Note::Outcome(Outcome::Refused),
    };
    (CONNECTION, body, note)
}

fn refused(input: &mut Input<'_>) -> (u8, Vec<u8>, Note) {
    let [code, low, high] = input.array();
    let reason = rest_of(input);
    let mut body = vec![code % 5, low, high];
    body.extend(sized(&reason));
    let outcome = match code % 5 {
        1 => Outcome::Busy,
        2 => Outcome::Denied,
        3 => Outcome::Version(u16::from_le_bytes([low, high])),
        _ => Outcome::GaveUp(readable(&reason)),
    };
    (REFUSED, body, Note::Outcome(outcome))
}

/// The successor says READY once it has started up, and TAKEN or a reason; nothing else.
fn check_answers(ours: &mut UnixStream) {
    let mut bytes = Vec::new();
    if let Err(error) = ours.read_to_end(&mut bytes) {
        // It has not read all that there was.
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let (records, error) = fuzz::records(std::iter::once(&bytes[..]), []);
    assert!(error.is_none(), "{error:?} in what a successor says");
    let kinds: Vec<u8> = records.iter().map(|(kind, ..)| *kind).collect();
    let known: [&[u8]; 5] = [&[], &[GIVE_UP], &[READY], &[READY, GIVE_UP], &[READY, TAKEN]];
    assert!(known.contains(&&kinds[..]), "{kinds:?}");
}

/// Records are found however they are cut, and where they are: by a second look at the bytes.
fn check_cuts(stream: &[u8], pieces: &[u8], announced: usize) {
    let all = || (0..announced).map(|_| null());
    let (whole, error) = fuzz::records(std::iter::once(stream), all());
    let expected = naive(stream, announced);
    assert_eq!((&whole, error.is_some()), (&expected.0, expected.1));
    let mut rest = stream;
    let mut sizes = pieces.iter().map(|size| usize::from(*size).max(1)).cycle();
    let mut cut = Vec::new();
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(rest.len()).min(rest.len());
        let (piece, after) = rest.split_at(size);
        cut.push(piece);
        rest = after;
    }
    let (found, error) = fuzz::records(cut.into_iter(), all());
    assert_eq!((found, error.is_some()), expected, "cut in pieces of {pieces:?}");
}

type Records = (Vec<(u8, Vec<u8>, usize)>, bool);

/// The records by their description, and whether what follows is none.
fn naive(stream: &[u8], mut descriptors: usize) -> Records {
    let mut found = Vec::new();
    let mut rest = stream;
    while rest.len() >= 8 {
        let len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let (kind, wanted) = (rest[4], usize::from(rest[5]));
        let most = match kind {
            CONNECTION => (32 << 20) + (16 << 10),
            STATE => 1 << 20,
            LISTENER => 16 << 10,
            1..=COMMIT => 1024 + 64,
            _ => return (found, true),
        };
        if rest[6] != 0 || rest[7] != 0 || len > most {
            return (found, true);
        }
        let Some(body) = rest.get(8..8 + len) else { break };
        if wanted > descriptors.min(4) {
            return (found, true);
        }
        descriptors -= wanted;
        found.push((kind, body.to_vec(), wanted));
        rest = &rest[8 + len..];
    }
    (found, false)
}

/// Bytes with their length in front.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut sized = u32::try_from(bytes.len()).expect("short").to_le_bytes().to_vec();
    sized.extend_from_slice(bytes);
    sized
}

/// A name that is text.
fn named(input: &mut Input<'_>) -> Vec<u8> {
    match input.byte() {
        // Around the limit of 255.
        len @ 248.. => vec![b'n'; usize::from(len) + 4],
        len => input.bytes((len % 8).into()).iter().map(|byte| byte & 0x7F).collect(),
    }
}

/// A name that is too long is refused.
fn within(name: &[u8], note: Note) -> Note {
    if name.len() <= NAME_BYTES_MAX { note } else { Note::Outcome(Outcome::Refused) }
}

fn rest_of(input: &mut Input<'_>) -> Vec<u8> {
    let len = input.byte();
    input.bytes(len.into()).to_vec()
}

fn readable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(reason);
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

fn null() -> OwnedFd {
    File::open("/dev/null").expect("always there").into()
}

/// A listening socket whose name the kernel chooses.
fn unnamed() -> OwnedFd {
    let bound = ringpost_uds::autobind(&BindOptions::new()).expect("a name");
    let (socket, guard) = bound.into_parts();
    drop(guard);
    socket
}

/// What a socket buffer takes at once, with much to spare.
const STREAM_BYTES_MAX: usize = 32 << 10;
/// Forms of records from here on are spoiled.
const SPOILED: u8 = 200;
const NAME_BYTES_MAX: usize = 255;
const LISTENERS_MAX: usize = 64;
const READY: u8 = 2;
const TAKEN: u8 = 3;
const GIVE_UP: u8 = 4;
const REFUSED: u8 = 5;
const LISTENER: u8 = 6;
const DESCRIPTOR: u8 = 7;
const STATE: u8 = 8;
const OFFER: u8 = 9;
const CONNECTION: u8 = 10;
const COMMIT: u8 = 11;
