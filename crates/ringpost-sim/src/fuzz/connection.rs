//! One connection, told what to do one thing after another, with a peer that is bare bytes.

mod model;

use std::future::poll_fn;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use ringpost::restart::fuzz;
use ringpost::sim::{FromBytes, Machine, Simulation};
use ringpost::{Connection, ConnectionOptions, Profile, Runtime, SendError, yield_now};
use ringpost_frame::{FrameFlags, FrameHeader, FrameKind, Hello};
use ringpost_testkit::frame_oracle::Input;
use ringpost_testkit::pattern;

use self::model::Model;
use crate::run::{descriptors, settle};

/// Has a connection do what the input says, on a simulated kernel without faults, and compares what comes
/// of each step with a model that knows the bytes which both sides have sent.
///
/// Input: the kernel, the bounds and the profile; then steps: sends of all kinds and lengths, flush and
/// shutdown, receives of all kinds, each polled a number of times and dropped; what the peer sends, proper
/// frames or any bytes; what it reads; how it ends; the connection taken off its runtime and put back, as in a
/// restart; and its end.
///
/// # Panics
///
/// If a message is lost, doubled, torn or out of order, if an error has no reason or an end does not come, if
/// something waits for ever, or if descriptors or operations are left.
pub fn connection(data: &[u8]) {
    let before = descriptors();
    play(data);
    assert_eq!(descriptors(), before, "descriptors are left");
}

fn play(data: &[u8]) {
    let mut input = Input::new(data);
    let [kernel, bounds, profile] = input.array();
    let machine = Machine {
        queue_max: 64,
        block_bytes: [16 << 10, 4096, 512, 100][usize::from(kernel % 4)],
        blocks: [32, 4][usize::from(kernel / 4 % 2)],
        shares_blocks: kernel & 0x10 == 0,
        silent_sends: kernel & 0x20 == 0,
        end_of_file: kernel & 0x40 == 0,
        faults_max: 0,
        enters_max: 2_000_000,
        ring: None,
    };
    let bound = |place: u8| [256 << 10, 1, 1000, 20_000][usize::from(place % 4)];
    let simulation = Simulation::new(FromBytes::new(Vec::new()), machine);
    let runtime = Runtime::builder()
        .outbound_bytes_max(bound(bounds))
        .inbound_bytes_max(bound(bounds / 4))
        .linger(LINGER)
        .build_simulated(&simulation)
        .expect("a runtime");
    let greeted = profile & 0xC != 0;
    let profile = match profile % 4 {
        0 | 1 => Profile::Native,
        2 => Profile::LengthPrefixed(input.length_prefix()),
        _ => Profile::Bytes,
    };
    let frame_bytes_max = [16 << 20, 1024, 5000, 70_000][usize::from(bounds / 16 % 4)];
    let gather = [2048, 1, 64 << 10][usize::from(bounds / 64 % 3)];
    let options = ConnectionOptions::new()
        .profile(profile)
        .frame_bytes_max(frame_bytes_max)
        .gather_bytes_min(gather)
        .handshake_ms_max(HANDSHAKE_MS_MAX);
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        theirs.set_nonblocking(true).expect("sockets can");
        let connection = Connection::from_socket(OwnedFd::from(ours), options);
        let mut play = Play {
            model: Model::new(profile, frame_bytes_max),
            connection: Some(connection),
            peer: Some(theirs),
        };
        if greeted && play.model.is_native() {
            play.write(&Hello::new(GREETING_BYTES_MAX, 7).encode());
        }
        for _ in 0..STEPS_MAX {
            if input.is_empty() {
                break;
            }
            play.step(&mut input).await;
        }
        play.end().await;
    });
    settle(&runtime);
    drop(runtime);
    assert_eq!(simulation.operations_left(), 0, "operations are left");
}

struct Play {
    model: Model,
    connection: Option<Connection>,
    peer: Option<UnixStream>,
}

impl Play {
    async fn step(&mut self, input: &mut Input<'_>) {
        let [step, detail] = input.array();
        match step % 24 {
            0..=3 => self.send(step, detail).await,
            4 => self.batch(detail).await,
            5 => self.flush(detail).await,
            6 => self.shutdown(detail).await,
            7 => self.go_away(),
            8..=10 => self.receive(detail, detail & 0x80 != 0).await,
            11 => self.receive_batch(detail).await,
            12 => self.pass_on(detail).await,
            13 => self.detach().await,
            14 => self.write(&Hello::new(u32::from(detail) * 64, 7).encode()),
            15 | 16 => self.write_message(detail),
            17 => self.write_control(detail, input),
            18 => {
                let bytes = input.bytes(detail.into());
                self.write(bytes);
            }
            19 | 20 => self.read(usize::from(detail) * 256),
            21 => self.end_peer(detail),
            22 if detail < 64 => self.drop_connection().await,
            22 => self.write_frame(detail, input),
            _ => turns(detail.into()).await,
        }
        self.model.check_heard(false);
    }

    async fn send(&mut self, form: u8, detail: u8) {
        let Some(connection) = &mut self.connection else { return };
        let body = pattern::payload(self.model.accepted.len() as u64, length(detail));
        let (len, polls) = (body.len(), usize::from(detail >> 4));
        let sent = match form % 4 {
            0 => Some(connection.try_send(&body)),
            1 => attempt(connection.send(&body), polls).await,
            2 => attempt(connection.send_bytes(Bytes::from(body.clone())), polls).await,
            _ => {
                let fill = |bytes: &mut [u8]| bytes.copy_from_slice(&body);
                attempt(connection.send_with(len, fill), polls).await
            }
        };
        self.sent(sent, body);
    }

    fn sent(&mut self, sent: Option<Result<(), SendError>>, body: Vec<u8>) {
        let inbound = self.model.inbound();
        match sent {
            Some(Ok(())) => self.model.accept(&inbound, body),
            Some(Err(error)) => {
                let queued = self.connection.as_mut().map_or(0, |it| it.halves().0.queued_bytes());
                self.model.refuse(&inbound, body.len(), queued, &error);
            }
            None => {}
        }
    }

    async fn batch(&mut self, detail: u8) {
        let Some(connection) = &mut self.connection else { return };
        let sender = connection.halves().0;
        let Some(batch) = attempt(sender.batch(), usize::from(detail >> 4)).await else { return };
        let inbound = self.model.inbound();
        match batch {
            Ok(mut batch) => {
                for _ in 0..=detail % 8 {
                    let len = length(detail.wrapping_mul(7)) % 3000;
                    let body = pattern::payload(self.model.accepted.len() as u64, len);
                    match batch.push(&body) {
                        Ok(()) => self.model.accept(&inbound, body),
                        Err(error) => {
                            self.model.refuse(&inbound, len, usize::MAX, &error);
                            break;
                        }
                    }
                }
            }
            Err(error) => self.model.refuse(&inbound, 0, usize::MAX, &error),
        }
    }

    async fn flush(&mut self, detail: u8) {
        let Some(connection) = &mut self.connection else { return };
        match attempt(connection.flush(), detail.into()).await {
            Some(Ok(())) => {
                assert_eq!(connection.halves().0.queued_bytes(), 0, "flushed, and bytes wait");
            }
            Some(Err(error)) => self.model.broken(&self.model.inbound(), &error),
            None => {}
        }
    }

    async fn shutdown(&mut self, detail: u8) {
        let Some(connection) = &mut self.connection else { return };
        let ended = attempt(connection.shutdown(), detail.into()).await;
        self.model.shut = true;
        if let Some(Err(error)) = ended {
            self.model.broken(&self.model.inbound(), &error);
        }
    }

    fn go_away(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        match connection.go_away() {
            Ok(()) => {
                assert!(self.model.is_native() && !self.model.shut, "GOAWAY can't be said");
                self.model.going = true;
            }
            Err(SendError::OtherProfile) => assert!(!self.model.is_native(), "it has GOAWAY"),
            Err(error) => self.model.refuse(&self.model.inbound(), 0, 0, &error),
        }
    }

    /// Receives once: dropped after some polls if `drops`, else until what is due has come.
    async fn receive(&mut self, detail: u8, drops: bool) {
        let Some(connection) = &mut self.connection else { return };
        let inbound = self.model.inbound();
        let due = inbound.is_due(self.model.taken_messages());
        let polls = match (drops, due) {
            (true, _) => usize::from(detail % 4),
            (false, true) => DUE_POLLS,
            (false, false) => IDLE_POLLS,
        };
        match attempt(connection.recv(), polls).await {
            Some(Ok(Some(message))) => self.model.take(&inbound, &message),
            Some(Ok(None)) => self.model.take_end(&inbound, Ok(())),
            Some(Err(error)) => self.model.take_end(&inbound, Err(&error)),
            None if drops => {}
            None => self.model.nothing_came(&inbound),
        }
    }

    async fn receive_batch(&mut self, detail: u8) {
        let Some(connection) = &mut self.connection else { return };
        let inbound = self.model.inbound();
        match attempt(connection.recv_batch(), usize::from(detail)).await {
            Some(Ok(Some(mut batch))) => {
                for _ in 0..detail % 16 {
                    let Some(frame) = batch.next() else { break };
                    self.model.take(&inbound, &frame.bytes());
                }
            }
            Some(Ok(None)) => self.model.take_end(&inbound, Ok(())),
            Some(Err(error)) => self.model.take_end(&inbound, Err(&error)),
            None => {}
        }
    }

    /// Sends back what has come, as it is.
    async fn pass_on(&mut self, detail: u8) {
        let Some(connection) = &mut self.connection else { return };
        let inbound = self.model.inbound();
        if detail.is_multiple_of(2) {
            match attempt(connection.recv(), usize::from(detail)).await {
                Some(Ok(Some(message))) => {
                    self.model.take(&inbound, &message);
                    let body = message.to_vec();
                    let sent = attempt(connection.send_message(message), usize::from(detail));
                    let sent = sent.await;
                    self.sent(sent, body);
                }
                Some(Ok(None)) => self.model.take_end(&inbound, Ok(())),
                Some(Err(error)) => self.model.take_end(&inbound, Err(&error)),
                None => {}
            }
            return;
        }
        if matches!(self.model.profile, Profile::Bytes) {
            return;
        }
        let (sender, receiver) = connection.halves();
        match attempt(receiver.recv_run(), usize::from(detail)).await {
            Some(Ok(Some(run))) => {
                let bodies = self.model.take_run(&inbound, run.messages());
                let sent = attempt(sender.send_run(run), usize::from(detail)).await;
                match sent {
                    Some(Ok(())) => {
                        bodies.into_iter().for_each(|body| self.model.accept(&inbound, body));
                    }
                    Some(Err(error)) => {
                        let longest = bodies.iter().map(Vec::len).max().unwrap_or(0);
                        self.model.refuse(&inbound, longest, usize::MAX, &error);
                    }
                    None => {}
                }
            }
            Some(Ok(None)) => self.model.take_end(&inbound, Ok(())),
            Some(Err(error)) => self.model.take_end(&inbound, Err(&error)),
            None => {}
        }
    }

    /// Takes the connection off its runtime and puts it back, as a record of a restart in between.
    async fn detach(&mut self) {
        let sound = self.model.inbound().is_sound();
        let greeted = !self.model.is_native() || self.model.said.len() >= 64;
        if !sound || !greeted || self.model.gone {
            return;
        }
        let Some(connection) = self.connection.take() else { return };
        let connection = match connection.detach(FLUSH_MAX).await {
            Ok(detached) => {
                self.model.detached = true;
                let record = fuzz::encode_connection(b"label", &detached);
                let socket = std::os::fd::AsFd::as_fd(&detached).try_clone_to_owned();
                drop(detached);
                let (label, again) = fuzz::decode_connection(&record, socket.expect("a number"))
                    .expect("what was written down");
                assert_eq!(label, b"label");
                again.attach()
            }
            Err(error) => *error.connection,
        };
        self.connection = Some(connection);
    }

    fn write(&mut self, bytes: &[u8]) {
        let Some(peer) = &mut self.peer else { return };
        if self.model.ended {
            return;
        }
        match peer.write(bytes) {
            Ok(count) => self.model.said.extend_from_slice(&bytes[..count]),
            // The connection has gone, or there is no room.
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ),
                "{error}"
            ),
        }
    }

    fn write_message(&mut self, detail: u8) {
        let body = pattern::payload(self.model.said.len() as u64, length(detail));
        let mut header = [0; 8];
        let Ok(len) = self.model.profile.write_message_header(body.len(), &mut header) else {
            return;
        };
        self.write(&[&header[..len], &body].concat());
    }

    fn write_control(&mut self, detail: u8, input: &mut Input<'_>) {
        let kind = match detail % 8 {
            0 | 1 => FrameKind::Ping,
            2 => FrameKind::Pong,
            3 => FrameKind::Fin,
            4 => FrameKind::GoAway,
            5 if detail >= 192 => FrameKind::Reject,
            _ => FrameKind::Unknown(7 + detail % 32),
        };
        let len = match kind {
            FrameKind::Fin => 0,
            FrameKind::GoAway => 8,
            _ => usize::from(detail) / 4,
        };
        let mut body = input.bytes(len).to_vec();
        body.resize(len, 0);
        let header = FrameHeader {
            len: u32::try_from(len).expect("short"),
            kind,
            flags: FrameFlags::NONE,
            fds: 0,
        };
        self.write(&[&header.encode()[..], &body].concat());
    }

    /// A frame with any flags, descriptors and length, proper or not.
    fn write_frame(&mut self, detail: u8, input: &mut Input<'_>) {
        let [kind, flags, fds, high] = input.array();
        let kind = FrameKind::from_code(kind % 12).unwrap_or(FrameKind::Message);
        let len = u32::from(detail) << (high % 24);
        let header = FrameHeader { len, kind, flags: FrameFlags(flags & 0xF), fds: fds & 1 };
        self.write(&header.encode());
    }

    fn read(&mut self, most: usize) {
        let Some(peer) = &mut self.peer else { return };
        let mut buffer = vec![0; most];
        match peer.read(&mut buffer) {
            Ok(count) => self.model.heard.extend_from_slice(&buffer[..count]),
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset),
                "{error}"
            ),
        }
    }

    fn end_peer(&mut self, detail: u8) {
        let Some(peer) = &mut self.peer else { return };
        self.model.ended = true;
        // Fails once the connection has gone.
        let _ = peer.shutdown(Shutdown::Write);
        if detail >= 128 {
            self.model.gone = true;
            self.peer = None;
        }
    }

    /// What was accepted still leaves.
    async fn drop_connection(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let whole = self.model.inbound().lets_send();
        drop(connection);
        if self.peer.is_some() {
            self.read_to_end().await;
            self.model.check_heard(whole);
        }
        turns(2).await;
    }

    /// Reads until the connection's end has come.
    async fn read_to_end(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..DUE_POLLS {
            match peer.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => self.model.heard.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => yield_now().await,
                // What the peer had sent was not received to its end.
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                    return;
                }
            }
        }
        panic!("a connection that was dropped does not end");
    }

    /// A peer that reads gets everything.
    async fn end(mut self) {
        if let (Some(connection), Some(peer)) = (&mut self.connection, &mut self.peer) {
            let mut buffer = vec![0; READ_BYTES];
            let mut polls = 0;
            let flushed = loop {
                if let Some(flushed) = attempt(connection.flush(), 1).await {
                    break flushed;
                }
                while let Ok(count @ 1..) = peer.read(&mut buffer) {
                    self.model.heard.extend_from_slice(&buffer[..count]);
                }
                polls += 1;
                assert!(polls < DUE_POLLS, "a flush does not end, and the peer reads");
            };
            while let Ok(count @ 1..) = peer.read(&mut buffer) {
                self.model.heard.extend_from_slice(&buffer[..count]);
            }
            match flushed {
                Ok(()) => self.model.check_heard(self.model.inbound().lets_send()),
                Err(error) => self.model.broken(&self.model.inbound(), &error),
            }
        }
        self.drop_connection().await;
    }
}

/// Polls a future some times, and drops it.
async fn attempt<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for turn in 0..=polls {
        let ready = poll_fn(|context| {
            Poll::Ready(match Pin::as_mut(&mut future).poll(context) {
                Poll::Ready(value) => Some(value),
                Poll::Pending => None,
            })
        })
        .await;
        if ready.is_some() {
            return ready;
        }
        if turn < polls {
            yield_now().await;
        }
    }
    None
}

async fn turns(count: usize) {
    for _ in 0..count {
        yield_now().await;
    }
}

/// Lengths of messages: around those at which something changes.
fn length(detail: u8) -> usize {
    const LENGTHS: [usize; 16] =
        [0, 1, 7, 64, 100, 500, 1000, 1024, 1025, 2048, 3000, 5000, 5001, 20_000, 65_536, 140_000];
    LENGTHS[usize::from(detail % 16)]
}

/// What a peer takes that greets at once, bytes.
const GREETING_BYTES_MAX: u32 = 100_000;
/// Steps of one run.
const STEPS_MAX: usize = 200;
/// Turns in which nothing comes, where nothing is to come.
const IDLE_POLLS: usize = 20;
/// Turns in which what is due has come: a message in blocks of 100 bytes takes more than a thousand.
const DUE_POLLS: usize = 20_000;
const READ_BYTES: usize = 64 << 10;
/// Longer than any run, in simulated time.
const HANDSHAKE_MS_MAX: u64 = 3_600_000;
const LINGER: Duration = Duration::from_secs(3600);
const FLUSH_MAX: Duration = Duration::from_millis(10);
