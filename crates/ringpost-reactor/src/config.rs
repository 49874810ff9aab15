//! Settings of a reactor, and why one can't be built.

use std::io;

use crate::capabilities::{EngineChoice, UringUnavailable};
use crate::spin::Spin;

/// Settings of a reactor. Every bound has a name here.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Config {
    /// Which engine to use.
    pub engine: EngineChoice,
    /// How to wait.
    pub spin: Spin,
    /// Memory to receive into, bytes. Virtual until touched.
    pub pool_bytes: usize,
    /// Bytes a connection may have received and not yet taken before its receive is paused. What lies apart
    /// counts as 96 bytes more each, which is what it costs.
    pub inbound_bytes_max: usize,
    /// Bytes a connection may have accepted and not yet handed to the kernel before senders wait. One
    /// message may go beyond it.
    pub outbound_bytes_max: usize,
    /// Connections accepted and not yet taken before accepting pauses.
    pub accept_queue_max: usize,
    /// Work from other threads that may be queued.
    pub inbox_capacity: usize,
    /// How long bytes of a dropped connection may still wait to be sent, milliseconds.
    pub linger_ms_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engine: EngineChoice::Auto,
            spin: Spin::default(),
            pool_bytes: 4 << 20,
            inbound_bytes_max: 256 << 10,
            outbound_bytes_max: 256 << 10,
            accept_queue_max: 1024,
            inbox_capacity: 4096,
            linger_ms_max: 5000,
        }
    }
}

/// Bytes of a block that many receives share.
pub(crate) const BLOCK_SHARED_BYTES: u32 = 128 << 10;
/// Bytes of a block that one receive takes whole.
pub(crate) const BLOCK_PLAIN_BYTES: u32 = 8 << 10;
/// Smallest pool: four shared blocks.
pub(crate) const POOL_BYTES_MIN: usize = 4 * BLOCK_SHARED_BYTES as usize;
/// Largest pool: what 2^15 plain blocks, the limit of a buffer ring, hold.
pub(crate) const POOL_BYTES_MAX: usize = (BLOCK_PLAIN_BYTES as usize) << 15;

impl Config {
    pub(crate) fn validate(&self) -> Result<(), BuildError> {
        let within = |name, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(BuildError::Setting { name, value, min, max })
            }
        };
        within("pool_bytes", self.pool_bytes, POOL_BYTES_MIN, POOL_BYTES_MAX)?;
        within("inbound_bytes_max", self.inbound_bytes_max, 1, 1 << 30)?;
        within("outbound_bytes_max", self.outbound_bytes_max, 1, 1 << 30)?;
        within("accept_queue_max", self.accept_queue_max, 1, 1 << 20)?;
        within("inbox_capacity", self.inbox_capacity, 1, 1 << 20)
    }
}

/// Why a reactor can't be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// io_uring was demanded and can't be used.
    #[error("io_uring was demanded but can't be used: {0}")]
    Uring(#[source] UringUnavailable),
    /// `RINGPOST_ENGINE` names no engine.
    #[error("RINGPOST_ENGINE is {value:?}; it may be uring, epoll or auto")]
    Environment {
        /// What it says.
        value: String,
    },
    /// A setting is out of range.
    #[error("{name} is {value}; it may be {min} to {max}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: usize,
        /// Smallest allowed value.
        min: usize,
        /// Largest allowed value.
        max: usize,
    },
    /// The kernel refused a resource.
    #[error("can't get {what}: {source}")]
    Resource {
        /// What was asked for.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl BuildError {
    pub(crate) fn resource(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Resource { what, source }
    }
}
