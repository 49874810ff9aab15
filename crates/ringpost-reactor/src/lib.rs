//! The reactor of ringpost: engines, op table, leased receive buffers, batched sends, timers.
//!
//! One reactor serves one thread. It moves bytes: what a message is, it does not know. The public
//! face of all this is the `ringpost` crate; this one is for those who build another transport on it.
//!
//! * [`Reactor::turn`] stages, enters the engine once, and dispatches.
//! * [`Stream`] lends received bytes in place as [`Chunk`]s and sends what is appended to it in batches.
//! * [`Listener`] accepts into a bounded queue.
//! * [`Config`] names every bound; [`Stats`] tells what happened; [`EngineReport`] why it happened on
//!   this engine.
//!
//! # Requirements
//!
//! Linux 6.1 for io_uring (deferred task work), any supported Linux for epoll. What the kernel really
//! does is tried at start-up, see [`Capabilities`].

mod ancillary;
mod any_engine;
mod by_hand;
mod capabilities;
mod chunk;
mod clock;
mod config;
#[cfg(test)]
mod conformance;
mod early;
#[cfg(test)]
mod early_tests;
mod engine;
mod epoll;
mod epoll_watches;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod leakable;
mod lingering;
mod listener;
mod memory;
mod open;
mod ops;
mod outbound;
mod packet;
mod packet_cell;
mod packet_inbox;
mod packet_io;
mod packet_pace;
#[cfg(feature = "sim")]
mod packet_parked;
mod packet_queue;
#[cfg(feature = "sim")]
mod parked;
mod peer_groups;
mod pool;
mod reactor;
#[cfg(test)]
mod readiness_tests;
mod retries;
#[cfg(feature = "sim")]
pub mod sim;
mod spin;
mod stats;
mod stream;
mod timers;
mod uring;
mod waiters;
mod wake;

pub use ancillary::{DESCRIPTORS_PER_MESSAGE_MAX, let_descriptors_pass};
pub use capabilities::{
    Capabilities, EngineChoice, EngineKind, EngineReason, EngineReport, Support, UringUnavailable,
};
pub use chunk::Chunk;
pub use config::{BuildError, Config};
pub use engine::EngineError;
pub use listener::Listener;
pub use memory::Prefix;
pub use outbound::Payload;
pub use packet::{
    Accepted, BatchRoom, PacketError, PacketOptions, Packets, SendFailure, prepare_packet_socket,
};
pub use packet_inbox::{Arrived, PacketView, ReceivedPacket, Truncated};
pub use packet_io::{Credentials, SocketName};
pub use peer_groups::peer_groups;
pub use pool::Lease;
pub use reactor::{Reactor, Sleep, Wait};
pub use spin::Spin;
pub use stats::Stats;
pub use stream::{Appender, DescriptorClaim, DescriptorSendError, Inbound, Stream, StreamError};
pub use waiters::{Place, Waiters};
pub use wake::{Bell, Inbox, Parcel};
