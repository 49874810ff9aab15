//! Settings of a connection.

use ringpost_frame::{LengthPrefix, Profile};

/// How the two ends of a connection talk. Both ends must use the same profile.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ConnectionOptions {
    pub(crate) profile: Profile,
    pub(crate) frame_bytes_max: u32,
    pub(crate) gather_bytes_min: usize,
    pub(crate) handshake_ms_max: u64,
}

impl ConnectionOptions {
    /// The longest message unless [`ConnectionOptions::frame_bytes_max`] says otherwise, bytes.
    pub const FRAME_BYTES_MAX_DEFAULT: u32 = 16 << 20;

    /// The native profile, messages of at most 16 MiB, five seconds for the greeting.
    pub fn new() -> Self {
        Self {
            profile: Profile::Native,
            frame_bytes_max: Self::FRAME_BYTES_MAX_DEFAULT,
            gather_bytes_min: 2048,
            handshake_ms_max: 5000,
        }
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
    /// because the kernel takes longer to gather them than to read a copy.
    pub fn gather_bytes_min(mut self, bytes: usize) -> Self {
        self.gather_bytes_min = bytes;
        self
    }

    /// How long the peer's greeting may take, milliseconds. At most a day.
    pub fn handshake_ms_max(mut self, milliseconds: u64) -> Self {
        self.handshake_ms_max = milliseconds;
        self
    }
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self::new()
    }
}
