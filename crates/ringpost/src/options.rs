//! Settings of a connection.

use ringpost_frame::{LengthPrefix, Profile};
use ringpost_uds::SocketKind;

/// How the two ends of a connection talk. Both ends must use the same profile.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ConnectionOptions {
    pub(crate) profile: Profile,
    pub(crate) frame_bytes_max: u32,
    pub(crate) gather_bytes_min: usize,
    pub(crate) handshake_ms_max: u64,
    pub(crate) descriptors_max: u8,
    pub(crate) descriptors_held_max: u16,
    pub(crate) seqpacket: bool,
}

impl ConnectionOptions {
    /// The longest message unless [`ConnectionOptions::frame_bytes_max`] says otherwise, bytes.
    pub const FRAME_BYTES_MAX_DEFAULT: u32 = 16 << 20;
    /// The most file descriptors that the kernel passes with one message (SCM_MAX_FD, unix(7)).
    pub const DESCRIPTORS_MAX: u8 = 253;

    /// The native profile, messages of at most 16 MiB without file descriptors, five seconds for the
    /// greeting.
    pub fn new() -> Self {
        Self {
            profile: Profile::Native,
            frame_bytes_max: Self::FRAME_BYTES_MAX_DEFAULT,
            gather_bytes_min: 2048,
            handshake_ms_max: 5000,
            descriptors_max: 0,
            descriptors_held_max: 64,
            seqpacket: false,
        }
    }

    /// A socket that carries packets (SOCK_SEQPACKET): each frame is one packet, at most 1 MiB with its
    /// header, and no longer than the socket's send buffer takes (208 KiB on most hosts; `net.core.wmem_default`).
    /// The same API; streams are faster, because they carry many messages at once.
    ///
    /// Packets pass no descriptors: [`descriptors_max`](Self::descriptors_max) has no effect.
    /// With [`ConnectionOptions::bytes`] each packet is a message. An empty one is accepted and not sent: it
    /// would be taken for the end (recv(2)).
    pub fn seqpacket(mut self) -> Self {
        self.seqpacket = true;
        self
    }

    pub(crate) fn socket_kind(&self) -> SocketKind {
        if self.seqpacket { SocketKind::SeqPacket } else { SocketKind::Stream }
    }

    /// ringpost's own framing, length-prefixed messages, or bare bytes.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Length-prefixed messages, byte-compatible with the length-delimited codecs of other libraries.
    pub fn length_prefixed(self, prefix: LengthPrefix) -> Self {
        self.profile(Profile::LengthPrefixed(prefix))
    }

    /// No framing: what is received is handed out as it comes.
    pub fn bytes(self) -> Self {
        self.profile(Profile::Bytes)
    }

    /// The longest message to send or receive, bytes; at least 1024. With the native profile the smaller
    /// of both sides' limits counts.
    pub fn frame_bytes_max(mut self, bytes: u32) -> Self {
        self.frame_bytes_max = bytes.max(ringpost_frame::FRAME_BYTES_MAX_FLOOR);
        self
    }

    /// Payloads given as [`Bytes`](bytes::Bytes) or [`Message`](crate::Message) are sent from where
    /// they lie from this length on, 2048 bytes by default; shorter ones are copied into the batch,
    /// because the kernel takes longer to gather them than to read a copy. Of a message in pieces that is
    /// decided for each piece.
    pub fn gather_bytes_min(mut self, bytes: usize) -> Self {
        self.gather_bytes_min = bytes;
        self
    }

    /// How long the peer's greeting may take from when somebody waits for it, milliseconds. At most a day.
    pub fn handshake_ms_max(mut self, milliseconds: u64) -> Self {
        self.handshake_ms_max = milliseconds;
        self
    }

    /// The most file descriptors with one message, to send or to receive; none by default, at most
    /// [`DESCRIPTORS_MAX`](Self::DESCRIPTORS_MAX). The smaller of both sides' limits counts. Only the
    /// native profile over a Unix-domain socket has them.
    ///
    /// A connection of which none are expected costs nothing more, and from Linux 6.16 on nobody can send
    /// it any (SO_PASSRIGHTS); on older kernels they are closed on arrival. A connection that may receive
    /// some is served with a poll and recvmsg(2) in place of multishot receives: somewhat more work for
    /// each message. If the peer turns out to have none, it is served as any other from the greeting on.
    ///
    /// Those that nobody takes are closed on the runtime's thread, which takes as long as the peer has arranged:
    /// closing a TCP socket that lingers (SO_LINGER, socket(7)), or a file of a FUSE file system, may wait for
    /// others. Let only peers pass descriptors that may do so.
    pub fn descriptors_max(mut self, count: u8) -> Self {
        self.descriptors_max = count.min(Self::DESCRIPTORS_MAX);
        self
    }

    /// How many file descriptors a connection may have received and not yet handed out with their
    /// messages before receiving pauses, 64 by default; those of one message may go beyond it, and those of the message
    /// that is just being received. They count
    /// towards RLIMIT_NOFILE, and what arrives beyond that is lost
    /// ([`RecvError::DescriptorsLost`](crate::RecvError::DescriptorsLost)). What a program keeps of the
    /// messages it has taken is its own.
    pub fn descriptors_held_max(mut self, count: u16) -> Self {
        self.descriptors_held_max = count;
        self
    }

    /// Whether descriptors may be received.
    pub(crate) fn takes_descriptors(&self) -> bool {
        self.descriptors_max > 0 && !self.seqpacket && matches!(self.profile, Profile::Native)
    }
}

const _: () = assert!(
    ConnectionOptions::DESCRIPTORS_MAX as usize == ringpost_reactor::DESCRIPTORS_PER_MESSAGE_MAX
);

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self::new()
    }
}
