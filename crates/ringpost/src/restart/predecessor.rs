//! The serving side: waits for a successor, and hands over to it.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use ringpost_uds::{
    self as uds, AccessPolicy, Address, BindError, BindOptions, PeerCredentials, handover,
};
use rustix::net::Shutdown;

use super::channel::{Channel, Deadline};
use super::error::{RestartError, Stage};
use super::parcel::{
    InheritedListener, ListenerParts, Parcel, check_state, encode_connection, within,
};
use super::wire::{
    self, CONNECTION_BYTES_MAX, CONNECTIONS_BYTES_MAX, Fields, Kind, MAGIC, NAME_BYTES_MAX,
    Refusal, VERSION, Writer, protocol,
};
use crate::connection::Connection;
use crate::detached::DetachedConnection;
use crate::error::AcceptError;
use crate::listener::{Listener, Shared};

/// How long a successor may take to identify itself, and to take what it is offered.
const GREETING_MS_MAX: u64 = 5_000;

/// The side of a restart that serves now. Belongs to the runtime in whose scope it was made.
///
/// It listens on a control socket of its own, mode 0600, which is handed over like the rest.
pub struct Predecessor {
    control: Rc<Control>,
    /// What goes on between two calls of [`Predecessor::successor`].
    attempt: Option<Pin<Box<Attempt>>>,
}

type Attempt = dyn Future<Output = Result<ReadySuccessor, RestartError>>;

struct Control {
    listener: Listener,
    parcel: Parcel,
    settings: PredecessorBuilder,
    /// A successor is at it, or has taken over: everybody else is refused.
    claimed: Cell<bool>,
}

/// The right of one successor to be the only one, until it has failed.
struct Claim {
    control: Rc<Control>,
    has_taken_over: bool,
}

impl Claim {
    fn new(control: Rc<Control>) -> Self {
        control.claimed.set(true);
        Self { control, has_taken_over: false }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.control.claimed.set(self.has_taken_over);
    }
}

impl Predecessor {
    /// Listens for successors at `control`, with the default settings, and hands over `parcel`.
    ///
    /// Use a path beside the one of the service, such as `/run/app/app.control`. Who may connect to it as
    /// this user can take the service over.
    ///
    /// # Errors
    ///
    /// [`BindError`] names the path and what to do.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(control: impl Into<Address>, parcel: Parcel) -> Result<Self, BindError> {
        Self::builder().bind(control, parcel)
    }

    /// Settings for a predecessor.
    pub fn builder() -> PredecessorBuilder {
        PredecessorBuilder {
            policy: AccessPolicy::anyone().same_user(),
            bind: BindOptions::new(),
            startup_ms_max: 60_000,
            commit_ms_max: 10_000,
        }
    }

    /// Waits until a successor has started up and is ready to take over. This process goes on to accept
    /// and to serve meanwhile, and for as long as it likes afterwards, within the time for the commit:
    /// see [`ReadySuccessor`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready; what goes on stands still until the
    /// next call. So call it in a loop, or in a task of its own.
    ///
    /// # Errors
    ///
    /// [`RestartError`] for each attempt that has failed: the successor crashed, hung, gave up, or was
    /// refused. This process serves as before, and calling again waits for the next one. Only after
    /// [`RestartError::is_final`] there is none. A second successor while one is at it, until its
    /// [`ReadySuccessor`] is dropped or its commit has failed, is refused and logged, and does not show up
    /// here.
    pub async fn successor(&mut self) -> Result<ReadySuccessor, RestartError> {
        poll_fn(|context| {
            let control = &self.control;
            let next = || -> Pin<Box<Attempt>> { Box::pin(next_successor(Rc::clone(control))) };
            let attempt = self.attempt.get_or_insert_with(next);
            let result = attempt.as_mut().poll(context);
            if result.is_ready() {
                self.attempt = None;
            }
            result
        })
        .await
    }

    /// The address of the control socket.
    pub fn address(&self) -> Option<&Address> {
        self.control.listener.address()
    }
}

impl fmt::Debug for Predecessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Predecessor")
            .field("address", &self.address())
            .field("attempt", &self.attempt.is_some())
            .finish_non_exhaustive()
    }
}

/// Settings of a [`Predecessor`].
#[derive(Debug, Clone)]
pub struct PredecessorBuilder {
    policy: AccessPolicy,
    bind: BindOptions,
    startup_ms_max: u64,
    commit_ms_max: u64,
}

impl PredecessorBuilder {
    /// Who may take over; processes of the same user by default. They must be able to connect to the control
    /// socket, too: see [`mode`](Self::mode) and [`owner`](Self::owner).
    pub fn policy(mut self, policy: AccessPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The permission bits of the control socket, exactly; 0600 by default. Connecting takes write permission.
    pub fn mode(mut self, mode: u32) -> Self {
        self.bind = self.bind.mode(mode);
        self
    }

    /// The owner of the control socket, set before it can be connected to.
    pub fn owner(mut self, uid: Option<u32>, gid: Option<u32>) -> Self {
        self.bind = self.bind.owner(uid, gid);
        self
    }

    /// How long a successor may take to start up, milliseconds: 60,000 by default, at most a day.
    pub fn startup_ms_max(mut self, milliseconds: u64) -> Self {
        self.startup_ms_max = milliseconds.min(super::LIMIT_MS_MAX);
        self
    }

    /// How long handing over may take once the successor is ready, milliseconds: 10,000 by default, at most
    /// a day. Only a part of this time, usually far below a millisecond, nobody accepts.
    pub fn commit_ms_max(mut self, milliseconds: u64) -> Self {
        self.commit_ms_max = milliseconds.min(super::LIMIT_MS_MAX);
        self
    }

    /// Listens for successors at `control`.
    ///
    /// # Errors
    ///
    /// As [`Predecessor::bind`].
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(
        self,
        control: impl Into<Address>,
        parcel: Parcel,
    ) -> Result<Predecessor, BindError> {
        let listener = Listener::builder().bind_options(self.bind.clone()).bind(control)?;
        Ok(self.serve(listener, parcel))
    }

    /// Listens for the next successor on the control socket that a predecessor has handed over.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn inherit(self, control: InheritedListener, parcel: Parcel) -> Predecessor {
        let listener = control.listen(Listener::builder());
        self.serve(listener, parcel)
    }

    fn serve(self, listener: Listener, parcel: Parcel) -> Predecessor {
        let claimed = Cell::new(false);
        let control = Control { listener, parcel, settings: self, claimed };
        Predecessor { control: Rc::new(control), attempt: None }
    }
}

/// Serves one successor, and turns others away meanwhile.
async fn next_successor(control: Rc<Control>) -> Result<ReadySuccessor, RestartError> {
    let shared = control.listener.shared();
    let socket = loop {
        let accepted = poll_fn(|context| shared.poll_accept(context)).await;
        let socket = accepted.map_err(|error| match error {
            AcceptError::HandedOver => RestartError::HandedOver,
            AcceptError::RuntimeEnded => RestartError::RuntimeEnded,
            AcceptError::Kernel { errno } => {
                RestartError::Accept { source: std::io::Error::from_raw_os_error(errno) }
            }
        })?;
        if !control.claimed.get() {
            break socket;
        }
        refuse_second(&socket);
    };
    let claim = Claim::new(Rc::clone(&control));
    let mut attempt = pin!(serve(claim, socket));
    poll_fn(|context| {
        // An end of the listener shows up again when the next successor is waited for.
        while let Poll::Ready(Ok(other)) = shared.poll_accept(context) {
            refuse_second(&other);
        }
        attempt.as_mut().poll(context)
    })
    .await
}

fn refuse_second(socket: &OwnedFd) {
    tracing::warn!("a second successor is refused: one is taking over");
    refuse(socket, Refusal::Busy, "another successor is taking over");
}

/// Tells a successor why it is refused. It fits the empty socket.
fn refuse(socket: &OwnedFd, refusal: Refusal, reason: &str) {
    let body = Writer::default().u8(refusal as u8).u16(VERSION).bytes(wire::reason(reason)).0;
    let record = [&wire::header(Kind::Refused, body.len(), 0), body.as_slice()].concat();
    let _ = handover::send(socket, &record, &[]);
}

/// From the connection of a successor until it is ready.
async fn serve(claim: Claim, socket: OwnedFd) -> Result<ReadySuccessor, RestartError> {
    let settings = &claim.control.settings;
    let peer = uds::peer_credentials(&socket)
        .map_err(|source| RestartError::system("read the successor's credentials", source))?;
    let groups = || ringpost_reactor::peer_groups(&socket);
    if let Err(denied) = settings.policy.check_with_groups(&peer, groups) {
        let reason = denied.to_string();
        refuse(&socket, Refusal::Denied, &reason);
        return Err(RestartError::Denied { peer, reason });
    }
    let mut channel = Channel::new(socket);
    let connections_max = greet(&mut channel).await?;
    tracing::info!(%peer, "a successor starts");
    offer(&claim.control, &mut channel).await?;
    let ready = channel.next(Stage::StartUp, Deadline::after(settings.startup_ms_max)).await?;
    if ready.kind != Kind::Ready || !ready.body.is_empty() {
        return Err(protocol("something other than READY"));
    }
    let deadline = Deadline::after(settings.commit_ms_max);
    let connections = Lent::new();
    let received_bytes = 0;
    Ok(ReadySuccessor {
        claim,
        channel,
        peer,
        deadline,
        connections_max,
        connections,
        received_bytes,
    })
}

/// Takes the successor's HELLO. How many connections it wants.
async fn greet(channel: &mut Channel) -> Result<usize, RestartError> {
    let hello = channel.next(Stage::Greeting, Deadline::after(GREETING_MS_MAX)).await?;
    let mut fields = Fields(&hello.body);
    if hello.kind != Kind::Hello || fields.u64()? != MAGIC {
        return Err(protocol("no greeting"));
    }
    let theirs = fields.u16()?;
    if theirs != VERSION {
        let body = Writer::default().u8(Refusal::Version as u8).u16(VERSION).bytes(b"version").0;
        channel.give_up(Kind::Refused, &body);
        return Err(RestartError::Version { theirs, ours: VERSION });
    }
    let connections = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
    fields.end()?;
    Ok(connections.min(wire::CONNECTIONS_MAX))
}

/// Hands over the parcel.
async fn offer(control: &Control, channel: &mut Channel) -> Result<(), RestartError> {
    let deadline = Deadline::after(GREETING_MS_MAX);
    let stage = Stage::Offer;
    let named = control.parcel.listeners()?;
    let own = [(String::new(), Rc::clone(control.listener.shared()))];
    for (name, listener) in own.iter().chain(&named) {
        let parts = ListenerParts::of(name, listener)?;
        let (body, descriptors) = parts.encode();
        channel.send(stage, Kind::Listener, &body, &descriptors, deadline).await?;
    }
    for (name, descriptor) in control.parcel.descriptors() {
        let body = Writer::default().bytes(name.as_bytes()).0;
        channel.send(stage, Kind::Descriptor, &body, &[descriptor.as_fd()], deadline).await?;
    }
    channel.send(stage, Kind::State, control.parcel.state_bytes(), &[], deadline).await?;
    // With it the successor can tell a predecessor that is dead from one that has lost patience.
    let ourselves = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    );
    // A dead one may have lost patience, and handed over to somebody else, before it died. Without either the successor
    // takes over from no dead one.
    let revocation = channel.revocable().map(|revocation| revocation.try_clone_to_owned());
    let descriptors = match (ourselves, revocation) {
        (Ok(ourselves), Some(Ok(revocation))) => vec![ourselves, revocation],
        _ => Vec::new(),
    };
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let settings = &control.settings;
    let body = Writer::default().u64(settings.startup_ms_max).u64(settings.commit_ms_max).0;
    channel.send(stage, Kind::Offer, &body, &descriptors, deadline).await
}

/// A successor that has started up. This process still owns the sockets and accepts.
///
/// Hand connections over if you like, then [`commit`](Self::commit). Dropping it instead tells the
/// successor to give up; connections handed over are closed then, unless [`abort`](Self::abort) is
/// called for.
#[must_use = "dropping it sends the successor away"]
pub struct ReadySuccessor {
    claim: Claim,
    channel: Channel,
    peer: PeerCredentials,
    deadline: Deadline,
    connections_max: usize,
    connections: Lent,
    /// What they have received and not taken, bytes.
    received_bytes: usize,
}

/// Connections that have been sent, and are ours until the commit. Dropping them ends them, wherever they are: a
/// successor that does not look may have them for long.
#[derive(Debug)]
struct Lent {
    connections: Vec<(Vec<u8>, DetachedConnection)>,
    /// The successor may have taken over.
    in_doubt: bool,
    /// A child that this one forks ends nothing of its parent's.
    process: u32,
}

impl Lent {
    fn new() -> Self {
        Self { connections: Vec::new(), in_doubt: false, process: std::process::id() }
    }

    /// Takes them out: they go on here, or with the successor.
    fn take(&mut self) -> Vec<(Vec<u8>, DetachedConnection)> {
        std::mem::take(&mut self.connections)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.in_doubt || self.process != std::process::id() {
            return;
        }
        for (_, connection) in &self.connections {
            // Whose peer has gone is ended already.
            let _ = rustix::net::shutdown(connection, Shutdown::Both);
        }
    }
}

impl ReadySuccessor {
    /// Who it is.
    pub fn credentials(&self) -> PeerCredentials {
        self.peer
    }

    /// How many connections it takes; zero if it has not asked for any.
    pub fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// Hands over an established connection, with up to [`NAME_BYTES_MAX`] bytes that say to the successor
    /// what it is. This process keeps it, unused, until the commit: if that fails, the connection goes on
    /// here.
    ///
    /// # Cancel safety
    ///
    /// None: if the future is dropped before it is ready, the connection is closed and the restart fails.
    ///
    /// # Errors
    ///
    /// [`NotSent`] has the connection. After [`RestartError::TooMuch`] the restart can go on without it,
    /// otherwise it has failed.
    pub async fn send_connection(
        &mut self,
        label: &[u8],
        connection: DetachedConnection,
    ) -> Result<(), NotSent> {
        if let Err(error) = self.check_connection(label, &connection) {
            return Err(NotSent { error, connection });
        }
        let body = encode_connection(label, &connection);
        // Its descriptor leaves with the first byte: from then on it ends with the others.
        self.connections.connections.push((label.to_vec(), connection));
        let Self { channel, connections, deadline, received_bytes, .. } = self;
        let Some((_, connection)) = connections.connections.last() else { return Ok(()) };
        let received = connection.received.len();
        let descriptors = [connection.as_fd()];
        let stage = Stage::Connections;
        let sent = channel.send(stage, Kind::Connection, &body, &descriptors, *deadline).await;
        match sent {
            Ok(()) => {
                *received_bytes += received;
                Ok(())
            }
            Err(error) => match connections.connections.pop() {
                Some((_, connection)) => Err(NotSent { error, connection }),
                None => Ok(()),
            },
        }
    }

    fn check_connection(
        &self,
        label: &[u8],
        connection: &DetachedConnection,
    ) -> Result<(), RestartError> {
        within("connections:", self.connections.connections.len() + 1, self.connections_max)?;
        within("bytes to say what a connection is:", label.len(), NAME_BYTES_MAX)?;
        let received = connection.received.len();
        within("bytes received and not taken:", received, CONNECTION_BYTES_MAX)?;
        let all = self.received_bytes + received;
        within("bytes received and not taken:", all, CONNECTIONS_BYTES_MAX)
    }

    /// Hands over: all listeners of the parcel stop accepting, the successor is told, and says that it has
    /// taken over. From then on the paths are its own, and accepting here ends with
    /// [`AcceptError::HandedOver`] once all that had been accepted before has been taken: serve it to its end
    /// (see [`Drain`](super::Drain)), drop listeners and [`Predecessor`], and end.
    ///
    /// `state` is what the successor is told last, at most [`STATE_BYTES_MAX`](super::STATE_BYTES_MAX)
    /// bytes.
    ///
    /// While nobody accepts, clients wait in the backlog: no connect is refused.
    ///
    /// # Cancel safety
    ///
    /// The hand-over is a task of the runtime and goes on to its end if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`NotCommitted`]: the successor has not taken over. Listeners accept again, the paths are still
    /// owned by this process, and the connections are given back. Only where this process can't hear the successor's
    /// answer any more ([`RestartError::is_deaf`]) that is not known: then the paths are left alone, and the connections
    /// are not given back, as they may be the successor's.
    pub async fn commit(self, state: &[u8]) -> Result<(), NotCommitted> {
        let state = state.to_vec();
        match crate::spawn(commit(self, state)).await {
            Ok(result) => result,
            Err(_) => {
                Err(NotCommitted { error: RestartError::RuntimeEnded, connections: Vec::new() })
            }
        }
    }

    /// Sends the successor away, and takes back the connections.
    pub fn abort(mut self, reason: &str) -> Vec<(Vec<u8>, Connection)> {
        self.channel.give_up(Kind::GiveUp, wire::reason(reason));
        take_back(self.connections.take())
    }
}

impl fmt::Debug for ReadySuccessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadySuccessor")
            .field("peer", &self.peer)
            .field("connections", &self.connections.connections.len())
            .finish_non_exhaustive()
    }
}

fn take_back(connections: Vec<(Vec<u8>, DetachedConnection)>) -> Vec<(Vec<u8>, Connection)> {
    connections.into_iter().map(|(label, connection)| (label, connection.attach())).collect()
}

async fn commit(mut ready: ReadySuccessor, state: Vec<u8>) -> Result<(), NotCommitted> {
    let peer = ready.peer;
    match try_commit(&mut ready, &state).await {
        Ok(()) => {
            ready.channel.settled = true;
            tracing::info!(%peer, "the successor has taken over");
            // Our descriptors of the connections are closed, which the peers don't notice.
            drop(ready.connections.take());
            Ok(())
        }
        Err(error) => {
            ready.channel.give_up(Kind::GiveUp, wire::reason(&error.to_string()));
            // In doubt the connections may be the successor's: two would read them.
            let in_doubt = ready.connections.in_doubt;
            if in_doubt {
                tracing::error!(%peer, %error, "whether the successor has taken over is not known");
            } else {
                tracing::warn!(%peer, %error, "the successor has not taken over; this process goes on");
            }
            let ours = if in_doubt { Vec::new() } else { ready.connections.take() };
            Err(NotCommitted { error, connections: take_back(ours) })
        }
    }
}

async fn try_commit(ready: &mut ReadySuccessor, state: &[u8]) -> Result<(), RestartError> {
    check_state(state)?;
    let stage = Stage::Commit;
    let deadline = ready.deadline;
    let mut listeners: Vec<Rc<Shared>> =
        ready.claim.control.parcel.listeners()?.into_iter().map(|(_, listener)| listener).collect();
    listeners.push(Rc::clone(ready.claim.control.listener.shared()));
    let mut paused = Paused { listeners, in_doubt: false };
    for listener in &paused.listeners {
        let left = deadline.at.saturating_duration_since(std::time::Instant::now());
        let pause = poll_fn(|context| listener.listener.poll_paused(context));
        crate::timeout(left, pause).await.map_err(|_| deadline.passed(stage))?;
    }
    ready.channel.send(stage, Kind::State, state, &[], deadline).await?;
    ready.channel.check(stage)?;
    // From here on nobody but the successor knows, until it is heard. What else would be said it had to take for a word
    // against what it finds in its queue.
    (paused.in_doubt, ready.connections.in_doubt, ready.channel.settled) = (true, true, true);
    let sent = ready.channel.send(stage, Kind::Commit, &[], &[], deadline).await;
    let sent_whole = sent.is_ok();
    let answer = match sent {
        Ok(()) => ready.channel.next(stage, deadline).await,
        Err(error) => Err(error),
    };
    let answer = match answer {
        // Too late, unless it is in the queue already.
        Err(error @ RestartError::TimedOut { .. }) => match ready.channel.last(stage).await {
            Err(unheard) if unheard.is_deaf() => Err(unheard),
            Err(_) => Err(error),
            answer => answer,
        },
        answer => answer,
    };
    if let Err(error) = &answer
        && sent_whole
        && error.is_deaf()
    {
        // It may have answered, and can't be heard.
        return answer.map(drop);
    }
    (paused.in_doubt, ready.connections.in_doubt, ready.channel.settled) = (false, false, false);
    if answer?.kind != Kind::Taken {
        return Err(protocol("something other than TAKEN"));
    }
    ready.claim.has_taken_over = true;
    for listener in std::mem::take(&mut paused.listeners) {
        listener.hand_over();
    }
    Ok(())
}

/// Listeners that have stopped accepting and go on unless they are taken out.
struct Paused {
    listeners: Vec<Rc<Shared>>,
    /// The successor may have taken over, and nobody will look any more.
    in_doubt: bool,
}

impl Drop for Paused {
    fn drop(&mut self) {
        for listener in &self.listeners {
            if self.in_doubt {
                // The runtime ends in the middle of a commit: the path may be the successor's by now.
                // Left alone if it is not, it is a stale one, which the next start replaces.
                listener.release_path();
            }
            listener.listener.resume();
        }
    }
}

/// A connection that could not be handed over.
#[derive(Debug, thiserror::Error)]
#[error("the connection could not be handed over: {error}")]
pub struct NotSent {
    /// Why not.
    #[source]
    pub error: RestartError,
    /// The connection, to [attach](DetachedConnection::attach) again.
    pub connection: DetachedConnection,
}

/// A successor that has not taken over.
#[derive(Debug, thiserror::Error)]
#[error("the successor has not taken over: {error}")]
pub struct NotCommitted {
    /// Why not.
    #[source]
    pub error: RestartError,
    /// The connections that were to be handed over, with what was said about them. None if the successor
    /// can't be heard any more ([`RestartError::is_deaf`]): they may be its own.
    pub connections: Vec<(Vec<u8>, Connection)>,
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::{ConnectionOptions, EngineChoice, Runtime};

    const LIMIT: Duration = Duration::from_secs(20);

    /// The failure of a socket comes back each time: whoever would try again must be told that it is no use.
    #[test]
    fn a_socket_that_does_not_accept_is_the_end() {
        for engine in [EngineChoice::Auto, EngineChoice::Epoll] {
            let runtime = Runtime::builder().engine(engine).build().expect("a runtime");
            runtime.block_on(async {
                // The other end is closed, so that epoll sees something happen.
                let (connected, _) = UnixStream::pair().expect("a pair");
                let listener = Listener::from_socket(connected.into(), ConnectionOptions::new());
                let mut predecessor = Predecessor::builder().serve(listener, Parcel::new());
                for _ in 0..2 {
                    let error = crate::timeout(LIMIT, predecessor.successor()).await;
                    let error = error.expect("in time").expect_err("it does not listen");
                    assert!(error.is_final(), "{error}");
                    assert!(error.to_string().contains("Invalid argument"), "{error}");
                }
            });
        }
    }
}
