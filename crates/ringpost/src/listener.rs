//! Accepting connections.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll};

use ringpost_reactor::let_descriptors_pass;
use ringpost_uds::{
    self as uds, AccessPolicy, Activation, ActivationError, Address, AdoptError, BindError,
    BindOptions, PathGuard,
};
use rustix::io::Errno;
use rustix::net::SocketType;

use crate::byte_stream::ByteStream;
use crate::connection::Connection;
use crate::error::AcceptError;
use crate::executor::Inner;
use crate::options::ConnectionOptions;
use crate::runtime::yield_now;

/// Accepts connections on a Unix-domain socket. Belongs to the runtime in whose scope it was made.
///
/// Dropping it stops accepting and removes the socket's path, unless the path has become somebody
/// else's; connections taken before go on. Those that have been accepted and not taken are closed; to hand a socket on
/// without loss is what [`restart`](crate::restart) is for. An abstract name, or a socket that came from elsewhere, is let
/// go of in the next turn of the runtime.
pub struct Listener {
    shared: Rc<Shared>,
    policy: AccessPolicy,
    options: ConnectionOptions,
    /// Peers that the policy has refused.
    refused: Cell<u64>,
}

/// Refusals in a row before other tasks have their turn.
const REFUSALS_MAX: u32 = 16;

/// What a [`restart::Parcel`](crate::restart::Parcel) knows of a listener.
pub(crate) struct Shared {
    pub(crate) listener: ringpost_reactor::Listener,
    /// Removes the path; dropped after the socket has stopped accepting.
    pub(crate) guard: RefCell<Option<PathGuard>>,
    pub(crate) address: Option<Address>,
    handed_over: Cell<bool>,
}

impl Shared {
    fn new(socket: OwnedFd, guard: Option<PathGuard>, address: Option<Address>) -> Rc<Self> {
        Rc::new(Self {
            listener: Inner::current().reactor.adopt_listener(socket),
            guard: RefCell::new(guard),
            address,
            handed_over: Cell::new(false),
        })
    }

    /// Lets go of the path, which is another process's from now on.
    pub(crate) fn release_path(&self) {
        if let Some(guard) = self.guard.take() {
            guard.release();
        }
    }

    /// The end of a paused listener whose socket another process serves.
    pub(crate) fn hand_over(&self) {
        self.handed_over.set(true);
        self.release_path();
        self.listener.end();
    }

    pub(crate) fn poll_accept(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Result<OwnedFd, AcceptError>> {
        self.listener.poll_accept(context).map_err(|error| {
            if self.handed_over.get() { AcceptError::HandedOver } else { error.into() }
        })
    }
}

impl Listener {
    /// Binds `address` with the default settings: mode 0600, nobody's live socket is replaced, a stale
    /// one is.
    ///
    /// An address is a path, or `@name` in the abstract namespace.
    ///
    /// # Errors
    ///
    /// [`BindError`] names the path and what to do.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(address: impl Into<Address>) -> Result<Self, BindError> {
        Self::builder().bind(address)
    }

    /// Settings for a listener.
    pub fn builder() -> ListenerBuilder {
        ListenerBuilder {
            bind: BindOptions::new(),
            policy: AccessPolicy::anyone(),
            options: ConnectionOptions::new(),
        }
    }

    /// Takes over a listening stream or packet socket, for example an inherited one. Its path, if it has one,
    /// stays when the listener is dropped. It is made non-blocking.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn from_socket(socket: OwnedFd, options: ConnectionOptions) -> Self {
        // Failing here means that the descriptor is no socket; accepting says so.
        let _ = rustix::io::ioctl_fionbio(&socket, true);
        Self::builder().connection(options).take_over(socket)
    }

    /// As [`Listener::from_socket`], for a descriptor that may be anything: it has to be a listening
    /// Unix-domain stream socket, or packet socket if the options say so. See [`ListenerBuilder::adopt_socket`].
    ///
    /// # Errors
    ///
    /// [`AdoptError`] says what it is instead, and gives it back.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn try_from_socket(
        socket: OwnedFd,
        options: ConnectionOptions,
    ) -> Result<Self, AdoptError> {
        Self::builder().connection(options).adopt_socket(socket)
    }

    /// The listening socket that the service manager passed under this name, with the default settings.
    /// See [`ListenerBuilder::activated`].
    ///
    /// # Errors
    ///
    /// [`ActivationError`] says which names there are, or what has this one.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn from_activation(
        activation: &mut Activation,
        name: &str,
    ) -> Result<Self, ActivationError> {
        Self::builder().activated(activation, name)
    }

    /// Waits for the next connection that the policy lets in. Its greeting goes on in the background:
    /// a silent peer holds up nobody else.
    ///
    /// A peer that the policy refuses is told so, and accepting goes on. The log has the first, second, fourth,
    /// eighth and so on of them. While the process is out of descriptors accepting rests and goes on by itself.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// [`AcceptError`] if the socket can't accept any more.
    pub async fn accept(&mut self) -> Result<Connection, AcceptError> {
        let socket = self.accept_socket().await?;
        Ok(Connection::from_socket(socket, self.options))
    }

    /// As [`Listener::accept`], for a connection that another runtime is to serve: hand the socket over
    /// with [`Handle::submit`](crate::Handle::submit) and make it a connection there with
    /// [`Connection::from_socket`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`].
    pub async fn accept_socket(&mut self) -> Result<OwnedFd, AcceptError> {
        let options = self.options;
        self.accept_allowed(|socket, reason| {
            Connection::from_socket(socket, options).refuse(reason);
        })
        .await
    }

    /// As [`Listener::accept`], for peers that speak a protocol of their own: no greeting, no framing,
    /// whatever [`ListenerBuilder::connection`] says. A peer that the policy refuses finds an end of
    /// the stream.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped before it is ready.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`], and EPROTOTYPE if this listener's connections are packets.
    pub async fn accept_stream(&mut self) -> Result<ByteStream, AcceptError> {
        if rustix::net::sockopt::socket_type(self.as_fd()) == Ok(SocketType::SEQPACKET) {
            return Err(AcceptError::Kernel { errno: Errno::PROTOTYPE.raw_os_error() });
        }
        let socket = self.accept_allowed(|socket, _| drop(ByteStream::from_socket(socket))).await?;
        Ok(ByteStream::from_socket(socket))
    }

    /// Waits for the next connection that the policy lets in; `refuse` gets the others, with the reason.
    async fn accept_allowed(&self, refuse: impl Fn(OwnedFd, &str)) -> Result<OwnedFd, AcceptError> {
        loop {
            for _ in 0..REFUSALS_MAX {
                let socket = poll_fn(|context| self.shared.poll_accept(context)).await?;
                let Some(reason) = self.denial(&socket) else { return Ok(socket) };
                refuse(socket, &reason);
            }
            yield_now().await;
        }
    }

    /// Why the policy refuses this peer.
    fn denial(&self, socket: &OwnedFd) -> Option<String> {
        if self.policy.is_anyone() {
            return None;
        }
        let reason = match uds::peer_credentials(socket) {
            Ok(peer) => {
                let groups = || ringpost_reactor::peer_groups(socket);
                self.policy.check_with_groups(&peer, groups).err()?.to_string()
            }
            Err(error) => format!("the peer's credentials can't be read: {error}"),
        };
        let refused = self.refused.get().wrapping_add(1);
        self.refused.set(refused);
        // Anyone can come many times: the log grows with the logarithm.
        if refused.is_power_of_two() {
            tracing::warn!(%reason, refused, "connection refused by the access policy");
        }
        Some(reason)
    }

    /// The address, unless the socket was taken over.
    pub fn address(&self) -> Option<&Address> {
        self.shared.address.as_ref()
    }

    pub(crate) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    /// True while the path still leads to this socket. Of use for paths only: false for an abstract name, true for a socket
    /// that came from elsewhere.
    pub fn is_in_place(&self) -> bool {
        self.shared.guard.borrow().as_ref().is_none_or(PathGuard::is_in_place)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.listener.socket()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

/// Settings of a [`Listener`].
#[derive(Debug, Clone)]
pub struct ListenerBuilder {
    bind: BindOptions,
    policy: AccessPolicy,
    options: ConnectionOptions,
}

impl ListenerBuilder {
    /// The permission bits of the socket, exactly; 0600 by default. Connecting takes write permission.
    pub fn mode(mut self, mode: u32) -> Self {
        self.bind = self.bind.mode(mode);
        self
    }

    /// The owner of the socket, set before it can be connected to.
    pub fn owner(mut self, uid: Option<u32>, gid: Option<u32>) -> Self {
        self.bind = self.bind.owner(uid, gid);
        self
    }

    /// Everything about binding; the kind of socket is that of [`ListenerBuilder::connection`].
    pub fn bind_options(mut self, options: BindOptions) -> Self {
        self.bind = options;
        self
    }

    /// Who may connect, besides what the permission bits say; anyone by default.
    pub fn policy(mut self, policy: AccessPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// How accepted connections talk, and over which kind of socket.
    pub fn connection(mut self, options: ConnectionOptions) -> Self {
        self.options = options;
        self
    }

    /// Binds the address.
    ///
    /// # Errors
    ///
    /// [`BindError`] names the path and what to do.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(self, address: impl Into<Address>) -> Result<Listener, BindError> {
        let bind = self.bind.clone().kind(self.options.socket_kind());
        let bound = uds::bind(&address.into(), &bind)?;
        Ok(self.serve(bound))
    }

    /// Binds an abstract name that the kernel chooses; [`Listener::address`] has it. Mode and owner
    /// have no effect on it; anyone in the network namespace may connect whom the policy lets in.
    ///
    /// # Errors
    ///
    /// [`BindError`] if all such names are taken.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn autobind(self) -> Result<Listener, BindError> {
        let bound = uds::autobind(&self.bind.clone().kind(self.options.socket_kind()))?;
        Ok(self.serve(bound))
    }

    /// Takes over a listening Unix-domain stream socket, or packet socket if the options say so, that others
    /// have made. What was said about binding has no effect; its path, if it has one, stays when the listener is dropped. It is made
    /// non-blocking, for everyone who holds the same socket, and close-on-exec.
    ///
    /// # Errors
    ///
    /// [`AdoptError`] says what it is instead, and gives it back.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn adopt_socket(self, socket: OwnedFd) -> Result<Listener, AdoptError> {
        let socket = uds::adopt_listener(socket, self.options.socket_kind())?;
        Ok(self.take_over(socket))
    }

    /// As [`adopt_socket`](Self::adopt_socket), for the socket that the service manager passed under this name
    /// (`FileDescriptorName=` in a systemd socket unit; by default the name of the unit).
    ///
    /// # Errors
    ///
    /// [`ActivationError`] says which names there are, or what has this one.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn activated(
        self,
        activation: &mut Activation,
        name: &str,
    ) -> Result<Listener, ActivationError> {
        let socket = activation.listener(name, self.options.socket_kind())?;
        Ok(self.take_over(socket))
    }

    fn serve(self, bound: uds::Bound) -> Listener {
        let address = bound.address().clone();
        let (socket, guard) = bound.into_parts();
        self.listen(socket, Some(guard), Some(address))
    }

    fn take_over(self, socket: OwnedFd) -> Listener {
        self.listen(socket, None, None)
    }

    fn listen(
        self,
        socket: OwnedFd,
        guard: Option<PathGuard>,
        address: Option<Address>,
    ) -> Listener {
        // For connections that wait to be accepted, which inherit it.
        let_descriptors_pass(socket.as_fd(), self.options.takes_descriptors());
        Listener {
            shared: Shared::new(socket, guard, address),
            policy: self.policy,
            options: self.options,
            refused: Cell::new(0),
        }
    }

    /// Accepts on a socket that another process has handed over. Of the settings for binding only the
    /// backlog counts; path, mode and owner stay as they are.
    pub(crate) fn adopt(
        self,
        socket: OwnedFd,
        guard: Option<PathGuard>,
        address: Option<Address>,
    ) -> Listener {
        // Listening again tells clients who we are (SO_PEERCRED: "at the time of the call to listen(2)",
        // unix(7)). If it fails they see the process before us, which is nothing to fail for.
        let backlog = i32::try_from(self.bind.backlog_len()).unwrap_or(i32::MAX);
        let _ = rustix::net::listen(&socket, backlog);
        self.listen(socket, guard, address)
    }
}
