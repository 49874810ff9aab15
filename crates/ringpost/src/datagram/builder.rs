//! Settings of a datagram socket, and the ways to make one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringpost_frame::HEADER_BYTES;
use ringpost_reactor::{PacketOptions, prepare_packet_socket};
use ringpost_uds::{
    self as uds, AccessPolicy, Activation, ActivationError, Address, AdoptError, BindError,
    BindOptions, ConnectError, SocketKind,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Datagram;
use crate::executor::Inner;

/// What is in a packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatagramProfile {
    /// One frame of the native format: eight bytes of header, then the message. Packets that are something
    /// else are told as errors; frames of unknown kinds are skipped.
    #[default]
    Native,
    /// The packet is the message, for peers that know nothing of ringpost. It may be empty.
    Plain,
}

impl DatagramProfile {
    pub(super) fn header_bytes(self) -> usize {
        match self {
            Self::Native => HEADER_BYTES,
            Self::Plain => 0,
        }
    }
}

/// Settings of a [`Datagram`].
#[derive(Debug, Clone)]
pub struct DatagramBuilder {
    settings: Settings,
    bind: BindOptions,
    inbound_bytes_max: Option<usize>,
    inbound_packets_max: usize,
    outbound_bytes_max: Option<usize>,
    send_buffer_bytes: Option<usize>,
}

/// What a socket needs to remember.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) profile: DatagramProfile,
    pub(super) packet_bytes_max: usize,
    pub(super) outbound_packets_max: usize,
    pub(super) credentials: bool,
    pub(super) policy: AccessPolicy,
}

impl DatagramBuilder {
    /// The longest packet that any setting allows, bytes.
    pub const PACKET_BYTES_MAX: usize = PacketOptions::PACKET_BYTES_MAX;

    pub(super) fn new() -> Self {
        let defaults = PacketOptions::new(false);
        Self {
            settings: Settings {
                profile: DatagramProfile::default(),
                packet_bytes_max: defaults.packet_bytes_max,
                outbound_packets_max: defaults.outbound_packets_max,
                credentials: false,
                policy: AccessPolicy::anyone(),
            },
            bind: BindOptions::new(),
            inbound_bytes_max: None,
            inbound_packets_max: defaults.inbound_packets_max,
            outbound_bytes_max: None,
            send_buffer_bytes: None,
        }
    }

    /// What is in a packet; the native profile by default. Both sides must use the same.
    pub fn profile(mut self, profile: DatagramProfile) -> Self {
        self.settings.profile = profile;
        self
    }

    /// The packet is the message, for peers that know nothing of ringpost.
    pub fn plain(self) -> Self {
        self.profile(DatagramProfile::Plain)
    }

    /// The longest packet to send or receive, bytes, header included: 256 KiB by default, 72 bytes to 1 MiB.
    /// What can be sent also depends on the [send buffer](Self::send_buffer_bytes).
    pub fn packet_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.packet_bytes_max = bytes.clamp(PACKET_BYTES_MIN, Self::PACKET_BYTES_MAX);
        self
    }

    /// The kernel's send buffer of the socket, bytes (SO_SNDBUF), up to the sysctl `net.core.wmem_max`. It
    /// bounds the longest packet, and what may be under way to all receivers together, unread packets included: one
    /// that does not read may take all of it. The default is the sysctl
    /// `net.core.wmem_default`, 208 KiB on most hosts.
    pub fn send_buffer_bytes(mut self, bytes: usize) -> Self {
        self.send_buffer_bytes = Some(bytes);
        self
    }

    /// Receive memory that packets may hold before receiving is paused, bytes; the runtime's
    /// [`inbound_bytes_max`](crate::RuntimeBuilder::inbound_bytes_max) by default. One batch may go beyond it.
    /// What the socket then holds makes senders wait.
    pub fn inbound_bytes_max(mut self, bytes: usize) -> Self {
        self.inbound_bytes_max = Some(bytes);
        self
    }

    /// Packets that may have been received and not taken before receiving is paused; 1024 by default, at
    /// least 1. One batch may go beyond it.
    pub fn inbound_packets_max(mut self, packets: usize) -> Self {
        self.inbound_packets_max = packets.max(1);
        self
    }

    /// Bytes that may have been accepted and not sent before senders wait; the runtime's
    /// [`outbound_bytes_max`](crate::RuntimeBuilder::outbound_bytes_max) by default. One packet may go beyond
    /// it.
    pub fn outbound_bytes_max(mut self, bytes: usize) -> Self {
        self.outbound_bytes_max = Some(bytes);
        self
    }

    /// Packets that may have been accepted and not sent before senders wait; 1024 by default, at least 1. Those for one
    /// destination take at most as much of three quarters of this, and of the bytes, as they leave free: it may turn
    /// out to be full. The last quarter is for destinations for which nothing waits, a packet for each.
    pub fn outbound_packets_max(mut self, packets: usize) -> Self {
        self.settings.outbound_packets_max = packets.max(1);
        self
    }

    /// Lets the kernel say of each packet who sent it (SO_PASSCRED, unix(7)): see
    /// [`Packet::credentials`](crate::Packet::credentials). Packets cost more with it. What lies in the queue of a
    /// socket that was made elsewhere, from before it was taken over, has none; a service manager sets
    /// `PassCredentials=yes` for that.
    ///
    /// With it the kernel gives a socket that has no name one of its own, as for
    /// [`autobind`](Self::autobind), when it first sends or connects (unix(7)).
    pub fn credentials(mut self, on: bool) -> Self {
        self.settings.credentials = on;
        self
    }

    /// Whose packets are taken; anyone's by default. Others are dropped and counted. Implies
    /// [credentials](Self::credentials) unless anyone is allowed. A packet does not tell the supplementary
    /// groups of its sender, so that rules about them allow nobody here, and a packet without credentials is refused.
    pub fn policy(mut self, policy: AccessPolicy) -> Self {
        self.settings.credentials |= !policy.is_anyone();
        self.settings.policy = policy;
        self
    }

    /// The permission bits of the socket, exactly; 0600 by default. Sending takes write permission.
    pub fn mode(mut self, mode: u32) -> Self {
        self.bind = self.bind.mode(mode);
        self
    }

    /// The owner of the socket. Until it is set, the socket has narrower permissions than asked for.
    pub fn owner(mut self, uid: Option<u32>, gid: Option<u32>) -> Self {
        self.bind = self.bind.owner(uid, gid);
        self
    }

    /// Everything about binding; the kind is always datagram.
    pub fn bind_options(mut self, options: BindOptions) -> Self {
        self.bind = options;
        self
    }

    /// Binds the address. See [`Datagram::bind`].
    ///
    /// # Errors
    ///
    /// [`BindError`] names the path and what to do.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn bind(self, address: impl Into<Address>) -> Result<Datagram, BindError> {
        let address = address.into();
        let options = self.bind.clone().kind(SocketKind::Datagram);
        let (socket, guard) =
            uds::bind_prepared(&address, &options, &|socket| self.prepare(socket))?.into_parts();
        Ok(self.adopt(socket, |packets, settings| {
            Datagram::adopt(packets, settings, Some(guard), Some(address))
        }))
    }

    /// A socket to which the kernel gives a free name in the abstract namespace (unix(7), "autobind"), so that
    /// it can be replied to.
    ///
    /// # Errors
    ///
    /// The kernel has no socket or no name for us.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn autobind(self) -> io::Result<Datagram> {
        let socket = new_socket()?;
        self.prepare(socket.as_fd());
        rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
        Ok(self.from_socket(socket))
    }

    /// A socket without a name, connected to `address`. See [`Datagram::connect`].
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the address and the reason.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn connect(self, address: impl Into<Address>) -> Result<Datagram, ConnectError> {
        let address = address.into();
        let socket = uds::connect_kind(&address, SocketKind::Datagram)?;
        let datagram = self.from_socket(socket);
        datagram.sender.remember_peer(address);
        Ok(datagram)
    }

    /// A socket without a name and without a peer. See [`Datagram::unbound`].
    ///
    /// # Errors
    ///
    /// The kernel has no socket for us.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn unbound(self) -> io::Result<Datagram> {
        Ok(self.from_socket(new_socket()?))
    }

    /// Two sockets that are connected to each other and have no names.
    ///
    /// # Errors
    ///
    /// The kernel has no sockets for us.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn pair(self) -> io::Result<(Datagram, Datagram)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (left, right) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok((self.clone().from_socket(left), self.from_socket(right)))
    }

    /// Takes over a Unix-domain datagram socket that others have made, bound or not, connected or not. What
    /// was said about binding has no effect; its path, if it has one, stays when the socket is dropped. It is
    /// made non-blocking, for everyone who holds the same socket, and close-on-exec; nobody can send descriptors
    /// to it any more (SO_PASSRIGHTS, Linux 6.16).
    ///
    /// # Errors
    ///
    /// [`AdoptError`] says what it is instead, and gives it back.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn adopt_socket(self, socket: OwnedFd) -> Result<Datagram, AdoptError> {
        Ok(self.from_socket(uds::adopt_datagram(socket)?))
    }

    /// As [`adopt_socket`](Self::adopt_socket), for the socket that the service manager passed under this name
    /// (`ListenDatagram=` and `FileDescriptorName=` in a systemd socket unit; by default the name of the unit).
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
    ) -> Result<Datagram, ActivationError> {
        Ok(self.from_socket(activation.datagram(name)?))
    }

    /// As [`adopt_socket`](Self::adopt_socket), for a descriptor that is known to be a Unix-domain datagram
    /// socket: nothing is checked, and with anything else sending and receiving fail. Its path, if it has one, stays when the
    /// socket is dropped. If it is connected and its receiver goes away, it can't be connected anew but with
    /// [`Datagram::connect_to`].
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn from_socket(self, socket: OwnedFd) -> Datagram {
        self.adopt(socket, |packets, settings| Datagram::adopt(packets, settings, None, None))
    }

    /// For the first packet that can be sent to it. What the kernel refuses, adopting it meets again.
    fn prepare(&self, socket: BorrowedFd<'_>) {
        let _ = prepare_packet_socket(socket, self.settings.credentials);
    }

    fn adopt(
        self,
        socket: OwnedFd,
        finish: impl FnOnce(ringpost_reactor::Packets, Settings) -> Datagram,
    ) -> Datagram {
        if let Some(bytes) = self.send_buffer_bytes {
            // A value out of range is brought into it; the outcome bounds `message_bytes_max`.
            let bytes = bytes.min(i32::MAX as usize);
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, bytes);
        }
        let reactor = Inner::current().reactor.clone();
        let config = reactor.config();
        let mut options = PacketOptions::new(false);
        options.packet_bytes_max = self.settings.packet_bytes_max;
        options.inbound_bytes_max =
            self.inbound_bytes_max.unwrap_or(config.inbound_bytes_max).max(1);
        options.inbound_packets_max = self.inbound_packets_max;
        options.outbound_bytes_max =
            self.outbound_bytes_max.unwrap_or(config.outbound_bytes_max).max(1);
        options.outbound_packets_max = self.settings.outbound_packets_max;
        options.credentials = self.settings.credentials;
        finish(reactor.adopt_packets(socket, options), self.settings)
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?)
}

/// A header and a few bytes.
const PACKET_BYTES_MIN: usize = 72;
