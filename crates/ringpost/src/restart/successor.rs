//! The starting side: takes over from a predecessor.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ringpost_uds::handover::{self, HandoverError};
use ringpost_uds::{self as uds, AccessPolicy, Address};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::error::{RestartError, Stage};
use super::parcel::{InheritedListener, ListenerParts, decode_connection, within};
use super::wire::{
    self, Assembler, CONNECTIONS_BYTES_MAX, DESCRIPTORS_MAX, Fields, Kind, LISTENERS_MAX, MAGIC,
    NAME_BYTES_MAX, Record, Refusal, VERSION, Writer, protocol,
};
use crate::detached::DetachedConnection;

/// How long the predecessor may take to answer and to offer its sockets.
const OFFER_WAIT_MAX: Duration = Duration::from_secs(10);
/// What the predecessor is given beyond its own limit for the commit: it notices first.
const COMMIT_MARGIN: Duration = Duration::from_secs(5);
/// Retries of a connect to a predecessor that is busy accepting.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
const CONNECT_PAUSE: Duration = Duration::from_millis(2);
/// How long a process whose connections have ended may take to be dead: the kernel closes its descriptors
/// first.
const END_WAIT_MAX: Duration = Duration::from_secs(2);
/// Bytes received at once.
const READ_BYTES: usize = 64 << 10;
/// Descriptors that have come before the record they belong to is complete.
const UNCLAIMED_MAX: usize = 2 * handover::DESCRIPTORS_PER_SEND_MAX;

/// The side of a restart that starts up. It has the predecessor's sockets and does not serve yet.
///
/// Its calls block the thread, for bounded times: this is start-up work. Dropping it tells the predecessor
/// to go on; so does a crash.
#[derive(Debug)]
pub struct Successor {
    channel: Blocking,
    listeners: Vec<ListenerParts>,
    descriptors: Vec<(String, OwnedFd)>,
    state: Vec<u8>,
    commit_wait: Duration,
    /// The process of the predecessor.
    process: Option<OwnedFd>,
    /// Readable once the predecessor has given this one up.
    revocation: Option<OwnedFd>,
    connections_max: usize,
}

impl Successor {
    /// Connects to the predecessor's control socket, and receives what it hands over, with the default
    /// settings. Blocks the thread, normally for less than a millisecond, at most some 15 seconds.
    ///
    /// # Errors
    ///
    /// With [`RestartError::is_no_predecessor`] there is none: start as the first one, and bind. Otherwise
    /// the predecessor serves, and this process should end.
    pub fn connect(control: impl Into<Address>) -> Result<Self, RestartError> {
        Self::builder().connect(control)
    }

    /// Settings for a successor.
    pub fn builder() -> SuccessorBuilder {
        SuccessorBuilder { policy: AccessPolicy::anyone().same_user(), connections_max: 0 }
    }

    /// What the predecessor's parcel says about its state.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// Takes a named descriptor out of the parcel.
    pub fn descriptor(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.descriptors.iter().position(|(known, _)| known == name)?;
        Some(self.descriptors.swap_remove(index).1)
    }

    /// The names of the listeners in the parcel.
    pub fn listeners(&self) -> impl Iterator<Item = &str> {
        self.listeners.iter().map(|parts| parts.name.as_str()).filter(|name| !name.is_empty())
    }

    /// Says that this process has started up, waits until the predecessor has stopped accepting, and takes
    /// over. Blocks the thread, normally for a millisecond, at most for the predecessor's limit
    /// ([`commit_ms_max`](super::PredecessorBuilder::commit_ms_max)) and five seconds.
    ///
    /// A predecessor that has died since it offered its sockets is taken over from as well, if it could give a
    /// descriptor for its process (pidfd_open(2)), by which its death is certain.
    ///
    /// # Errors
    ///
    /// With [`RestartError::is_no_predecessor`] it has given its paths up and ended: start as the first one, and
    /// bind. Otherwise the predecessor serves, and this process should end.
    pub fn take_over(mut self) -> Result<Inherited, RestartError> {
        let deadline = Instant::now() + self.commit_wait;
        let mut connections = Vec::new();
        let mut state = Vec::new();
        let committed = self.channel.send(Stage::Commit, Kind::Ready, &[]).and_then(|()| {
            self.await_commit(&mut connections, &mut state, deadline)?;
            self.channel.send(Stage::Commit, Kind::Taken, &[])
        });
        let predecessor_ended = match committed {
            Ok(()) => false,
            Err(RestartError::Ended { .. }) => {
                // It may have said why before it closed.
                self.channel.farewell(Stage::Commit)?;
                self.await_end()?;
                self.channel.settled = true;
                // One that has ended in order has no word for a successor if it is in a hurry.
                self.listeners.iter().try_for_each(ListenerParts::check_held)?;
                true
            }
            Err(error) => {
                self.channel.give_up(&error.to_string());
                return Err(error);
            }
        };
        self.channel.settled = true;
        let mut listeners: Vec<_> = self.listeners.drain(..).map(ListenerParts::own).collect();
        let control = listeners.iter().position(|listener| listener.name().is_empty());
        let control = control.map(|index| listeners.remove(index));
        Ok(Inherited {
            control: control.ok_or_else(|| protocol("no control socket"))?,
            listeners,
            connections,
            state,
            predecessor_ended,
        })
    }

    fn await_commit(
        &mut self,
        connections: &mut Vec<(Vec<u8>, DetachedConnection)>,
        state: &mut Vec<u8>,
        deadline: Instant,
    ) -> Result<(), RestartError> {
        let mut bytes = 0;
        loop {
            // Also of one that never stops talking; and what is found long after is not to be acted on.
            in_time(Stage::Commit, deadline, self.commit_wait)?;
            let record = self.channel.next(Stage::Commit, deadline, self.commit_wait)?;
            match record.kind {
                Kind::Connection => {
                    let (label, connection) = decode_connection(record)?;
                    bytes += connection.received.len();
                    within("connections:", connections.len() + 1, self.connections_max)?;
                    within("bytes received and not taken:", bytes, CONNECTIONS_BYTES_MAX)?;
                    connections.push((label, connection));
                }
                Kind::State => *state = record.body,
                Kind::Commit => return Ok(()),
                _ => return Err(protocol("something other than COMMIT")),
            }
        }
    }

    /// The predecessor's connection has ended without a word. If its process has ended as well, its sockets
    /// are ours; otherwise it goes on to serve.
    fn await_end(&mut self) -> Result<(), RestartError> {
        // Without a descriptor for the process (pidfd_open refused) nobody can tell, and no server is better
        // than two: a living predecessor's reason may have found no room in the socket.
        if let Some(process) = &self.process
            && wait_readable(process, Instant::now() + END_WAIT_MAX)?
        {
            // It may have given this one up before, and handed over to another: what it said about that found no
            // room, or has come by now.
            self.channel.farewell(Stage::Commit)?;
            if let Some(revocation) = &self.revocation
                && wait_readable(revocation, Instant::now())?
            {
                self.channel.settled = true;
                let reason = "the predecessor had no room for the reason".into();
                return Err(RestartError::GaveUp { stage: Stage::Commit, reason });
            }
            return Ok(());
        }
        self.channel.settled = true;
        Err(RestartError::Ended { stage: Stage::Commit })
    }
}

/// Settings of a [`Successor`].
#[derive(Debug, Clone)]
pub struct SuccessorBuilder {
    policy: AccessPolicy,
    connections_max: usize,
}

impl SuccessorBuilder {
    /// Whose service may be taken over; one of the same user by default.
    pub fn policy(mut self, policy: AccessPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Asks for established connections, at most so many; at most
    /// [`CONNECTIONS_MAX`](super::CONNECTIONS_MAX). None by default.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.connections_max = connections.min(wire::CONNECTIONS_MAX);
        self
    }

    /// Connects to the predecessor.
    ///
    /// # Errors
    ///
    /// As [`Successor::connect`].
    pub fn connect(self, control: impl Into<Address>) -> Result<Successor, RestartError> {
        let address = control.into();
        let give_up = Instant::now() + END_WAIT_MAX;
        loop {
            match self.attempt(&address) {
                // A living predecessor says why it ends. The kernel takes some milliseconds to end the
                // sockets of a killed one; then there is none, or nobody listens.
                Err(RestartError::Ended { .. }) if Instant::now() < give_up => {
                    std::thread::sleep(CONNECT_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn attempt(&self, address: &Address) -> Result<Successor, RestartError> {
        let give_up = Instant::now() + CONNECT_WAIT_MAX;
        let socket = loop {
            match uds::connect(address) {
                Ok(socket) => break socket,
                Err(error) if error.is_backlog_full() && Instant::now() < give_up => {
                    std::thread::sleep(CONNECT_PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        };
        let peer = uds::peer_credentials(&socket).map_err(|source| RestartError::System {
            step: "read the credentials of the predecessor at",
            address: Some(address.clone()),
            source,
        })?;
        let groups = || ringpost_reactor::peer_groups(&socket);
        if let Err(denied) = self.policy.check_with_groups(&peer, groups) {
            return Err(RestartError::Denied { peer, reason: denied.to_string() });
        }
        let mut channel = Blocking::new(socket);
        let connections = u32::try_from(self.connections_max).unwrap_or(u32::MAX);
        let hello = Writer::default().u64(MAGIC).u16(VERSION).u32(connections).0;
        match channel.send(Stage::Greeting, Kind::Hello, &hello) {
            // It may have refused before it has read anything; that is found next.
            Ok(()) | Err(RestartError::Ended { .. }) => {}
            Err(error) => return Err(error),
        }
        let received = receive_offer(channel, self.connections_max);
        if let Err(RestartError::Denied { reason, .. }) = received {
            return Err(RestartError::Denied { peer, reason });
        }
        received
    }
}

/// Receives the parcel.
fn receive_offer(mut channel: Blocking, connections_max: usize) -> Result<Successor, RestartError> {
    let deadline = Instant::now() + OFFER_WAIT_MAX;
    let mut listeners: Vec<ListenerParts> = Vec::new();
    let mut descriptors = Vec::new();
    let mut state = Vec::new();
    loop {
        let record = in_time(Stage::Offer, deadline, OFFER_WAIT_MAX)
            .and_then(|()| channel.next(Stage::Offer, deadline, OFFER_WAIT_MAX));
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                channel.give_up(&error.to_string());
                return Err(error);
            }
        };
        match record.kind {
            Kind::Listener => {
                // One more is the control socket.
                within("listeners:", listeners.len(), LISTENERS_MAX)?;
                listeners.push(ListenerParts::decode(record)?);
            }
            Kind::Descriptor => {
                within("descriptors:", descriptors.len() + 1, DESCRIPTORS_MAX)?;
                let mut fields = Fields(&record.body);
                let name = fields.name(0..NAME_BYTES_MAX + 1)?;
                fields.end()?;
                let descriptor = record.descriptors.into_iter().next();
                descriptors
                    .push((name, descriptor.ok_or_else(|| protocol("a descriptor is missing"))?));
            }
            Kind::State => state = record.body,
            Kind::Offer => {
                let mut fields = Fields(&record.body);
                let (_startup, commit) = (fields.u64()?, fields.u64()?);
                fields.end()?;
                let commit = Duration::from_millis(commit.min(super::LIMIT_MS_MAX));
                if !listeners.iter().any(|parts| parts.name.is_empty()) {
                    return Err(protocol("no control socket"));
                }
                let mut theirs = record.descriptors.into_iter();
                return Ok(Successor {
                    channel,
                    listeners,
                    descriptors,
                    state,
                    commit_wait: commit + COMMIT_MARGIN,
                    process: theirs.next(),
                    revocation: theirs.next(),
                    connections_max,
                });
            }
            _ => return Err(protocol("something other than an offer")),
        }
    }
}

/// Goes through a restart with whoever is at the other end of `socket`.
#[cfg(feature = "fuzz")]
pub(super) fn take_over_from(
    socket: OwnedFd,
    connections_max: usize,
) -> Result<Inherited, RestartError> {
    let channel = Blocking::new(socket);
    receive_offer(channel, connections_max)?.take_over()
}

/// What a successor has taken over: it is the server now.
///
/// What is not taken out is closed when this is dropped, and paths are removed then.
#[derive(Debug)]
pub struct Inherited {
    control: InheritedListener,
    listeners: Vec<InheritedListener>,
    connections: Vec<(Vec<u8>, DetachedConnection)>,
    state: Vec<u8>,
    predecessor_ended: bool,
}

impl Inherited {
    /// Takes a named listener out.
    pub fn listener(&mut self, name: &str) -> Option<InheritedListener> {
        let index = self.listeners.iter().position(|listener| listener.name() == name)?;
        Some(self.listeners.swap_remove(index))
    }

    /// Takes out the established connections, in the order in which they were handed over, with what the
    /// predecessor said about each.
    pub fn connections(&mut self) -> Vec<(Vec<u8>, DetachedConnection)> {
        std::mem::take(&mut self.connections)
    }

    /// What the predecessor said at the commit; empty if it said nothing or had died.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// Whether the predecessor had died before it could finish. Connections that it still served have ended
    /// with it.
    pub fn predecessor_ended(&self) -> bool {
        self.predecessor_ended
    }

    /// The control socket, for [`PredecessorBuilder::inherit`](super::PredecessorBuilder::inherit): this
    /// process is the next predecessor.
    pub fn into_control(self) -> InheritedListener {
        self.control
    }
}

/// Records in both directions, with blocking waits that end.
struct Blocking {
    socket: OwnedFd,
    input: Assembler,
    settled: bool,
    /// A child that this one forks has no say.
    process: u32,
}

impl Blocking {
    fn new(socket: OwnedFd) -> Self {
        let (input, process) = (Assembler::default(), std::process::id());
        Self { socket, input, settled: false, process }
    }

    /// Sends a short record. There is room for it: at most three of them are ever sent.
    fn send(&mut self, stage: Stage, kind: Kind, body: &[u8]) -> Result<(), RestartError> {
        let record = [&wire::header(kind, body.len(), 0), body].concat();
        match handover::send(&self.socket, &record, &[]) {
            Ok(count) if count == record.len() => Ok(()),
            Ok(_) => Err(protocol("a socket without room for a record")),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                    Err(RestartError::Ended { stage })
                }
                _ => Err(RestartError::system("send to the predecessor", error)),
            },
        }
    }

    /// The next record.
    fn next(
        &mut self,
        stage: Stage,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Record, RestartError> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Some(record) = self.input.next()? {
                return said(record, stage);
            }
            if self.input.descriptors.len() > UNCLAIMED_MAX {
                return Err(protocol("more descriptors than records say"));
            }
            match handover::receive(&self.socket, &mut buffer, &mut self.input.descriptors) {
                Ok(0) => return Err(RestartError::Ended { stage }),
                Ok(count) => self.input.push(&buffer[..count]),
                Err(error) if error.is_would_block() => {
                    if !wait_readable(&self.socket, deadline)? {
                        return Err(timed_out(stage, limit));
                    }
                }
                Err(HandoverError::Receive { source })
                    if Errno::from_io_error(&source) == Some(Errno::CONNRESET) =>
                {
                    return Err(RestartError::Ended { stage });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the predecessor said last, if that was a reason to give up.
    fn farewell(&mut self, stage: Stage) -> Result<(), RestartError> {
        loop {
            match self.next(stage, Instant::now(), Duration::ZERO) {
                Ok(_) => {}
                Err(error @ (RestartError::GaveUp { .. } | RestartError::Busy)) => {
                    self.settled = true;
                    return Err(error);
                }
                Err(_) => return Ok(()),
            }
        }
    }

    fn give_up(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.settled, true) && self.process == std::process::id() {
            let _ = self.send(Stage::Commit, Kind::GiveUp, wire::reason(reason));
        }
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        self.give_up("the successor has not started up");
    }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocking").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Refusals are errors.
fn said(record: Record, stage: Stage) -> Result<Record, RestartError> {
    match record.kind {
        Kind::GiveUp => Err(RestartError::GaveUp { stage, reason: wire::readable(&record.body) }),
        Kind::Refused => {
            let mut fields = Fields(&record.body);
            let (refusal, theirs) = (fields.u8()?, fields.u16()?);
            let reason = wire::readable(fields.bytes(0..wire::REASON_BYTES_MAX + 1)?);
            Err(match refusal {
                code if code == Refusal::Busy as u8 => RestartError::Busy,
                code if code == Refusal::Denied as u8 => {
                    // Completed by whoever knows the other side's credentials.
                    let peer = uds::PeerCredentials::new(None, 0, 0);
                    RestartError::Denied { peer, reason }
                }
                code if code == Refusal::Version as u8 => {
                    RestartError::Version { theirs, ours: VERSION }
                }
                _ => RestartError::GaveUp { stage, reason },
            })
        }
        _ => Ok(record),
    }
}

fn in_time(stage: Stage, deadline: Instant, limit: Duration) -> Result<(), RestartError> {
    if Instant::now() < deadline { Ok(()) } else { Err(timed_out(stage, limit)) }
}

fn timed_out(stage: Stage, limit: Duration) -> RestartError {
    let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    RestartError::TimedOut { stage, milliseconds }
}

/// Waits until there is something to read, or the other end is gone. False if the time was up.
fn wait_readable(descriptor: impl AsFd, deadline: Instant) -> Result<bool, RestartError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut wanted = [PollFd::new(&descriptor, PollFlags::IN)];
        match rustix::event::poll(&mut wanted, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(RestartError::system("wait for the predecessor", errno)),
        }
    }
}

const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Successor>();
    is_send::<Inherited>();
};

#[cfg(test)]
mod tests {
    use super::*;

    /// A predecessor may end the connection without a word and live on, so its silence proves nothing.
    #[test]
    fn who_says_nothing_and_can_not_be_seen_to_end_is_alive() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let channel = Blocking::new(ours.into());
        let successor = Successor {
            channel,
            listeners: Vec::new(),
            descriptors: Vec::new(),
            state: Vec::new(),
            commit_wait: COMMIT_MARGIN,
            process: None,
            revocation: None,
            connections_max: 0,
        };
        drop(theirs);
        let error = successor.take_over().expect_err("the sockets are the predecessor's");
        assert!(matches!(error, RestartError::Ended { stage: Stage::Commit }), "{error}");
    }

    /// Its predecessor is dead, but had lost patience before, and another one may have taken over.
    #[test]
    fn who_was_given_up_takes_nothing_over() {
        for given_up in [0, 1] {
            let mut child = std::process::Command::new("true").spawn().expect("a child");
            let pid = rustix::process::Pid::from_child(&child);
            let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
            child.wait().expect("it ends");
            let flags = rustix::event::EventfdFlags::CLOEXEC;
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
            let successor = Successor {
                channel: Blocking::new(ours.into()),
                listeners: Vec::new(),
                descriptors: Vec::new(),
                state: Vec::new(),
                commit_wait: COMMIT_MARGIN,
                process: Some(process.expect("a child")),
                revocation: rustix::event::eventfd(given_up, flags).ok(),
                connections_max: 0,
            };
            // A part of a record found room.
            let part = &wire::header(Kind::State, 1000, 0);
            handover::send(&theirs, part, &[]).expect("room");
            drop(theirs);
            let error = successor.take_over().expect_err("it has no control socket in any case");
            match error {
                RestartError::GaveUp { .. } => assert_eq!(given_up, 1),
                RestartError::Protocol { what } => {
                    assert_eq!((given_up, what), (0, "no control socket"));
                }
                other => panic!("{other}"),
            }
        }
    }

    /// As after a fork: the socket is its parent's, whose restart goes on.
    #[test]
    fn another_process_gives_nothing_up() {
        use std::io::Read;

        for (is_ours, tells) in [(true, true), (false, false)] {
            let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
            let mut channel = Blocking::new(ours.into());
            channel.process += u32::from(!is_ours);
            drop(channel);
            let mut said = Vec::new();
            theirs.read_to_end(&mut said).expect("the end");
            assert_eq!(!said.is_empty(), tells);
        }
    }
}
