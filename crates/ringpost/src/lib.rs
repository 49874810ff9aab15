//! Messages between processes on one Linux host, with as little delay and CPU as the kernel allows.
//!
//! ringpost carries framed messages over Unix-domain sockets. Its reactor runs on io_uring, and on
//! epoll where io_uring is refused; the API is the same.
//!
//! * **Received messages are lent in place.** The kernel writes into a pool; [`Receiver`] finds the
//!   frames there and hands out [`Message`]s and batches of [`Frame`]s that point into it.
//! * **Sends are batched by construction.** Whatever is queued while a send is in flight leaves as one
//!   send, and on io_uring the sends of all connections of a turn leave in one system call.
//! * **File descriptors travel with messages** ([`Sender::send_with_descriptors`],
//!   [`Message::take_descriptors`]), bound to theirs and to no other, where both sides ask for it
//!   ([`ConnectionOptions::descriptors_max`]).
//! * **Every queue has a bound.** A slow reader slows its sender, nobody else.
//!
//! # Example
//!
//! ```
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("hello.sock");
//! use ringpost::{Connection, Listener, Runtime};
//!
//! let runtime = Runtime::new()?;
//! runtime.block_on(async {
//!     let mut listener = Listener::bind(&path)?;
//!     let server = ringpost::spawn(async move {
//!         let mut connection = listener.accept().await?;
//!         let question = connection.recv().await?.expect("a message");
//!         connection.send(&question.to_ascii_uppercase()).await?;
//!         connection.shutdown().await?;
//!         Ok::<(), Box<dyn std::error::Error>>(())
//!     });
//!     let mut client = Connection::connect(&path).await?;
//!     client.send(b"hello").await?;
//!     assert_eq!(&client.recv().await?.expect("an answer")[..], b"HELLO");
//!     server.await?
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//!
//! * Messages of a connection arrive whole, in order, at most once; a clean end ([`Sender::shutdown`])
//!   and an abort are told apart, in the native profile.
//! * What [`Sender::flush`] has confirmed is in the kernel: it is delivered as long as the peer lives
//!   and reads, whatever happens to this process.
//! * No byte sequence that a peer sends makes a connection use more memory than its named bounds, hang
//!   another connection, or panic.
//! * Memory that the kernel may write is never freed before the kernel is done with it, whatever is
//!   dropped or leaked.
//!
//! # Not guaranteed
//!
//! * Delivery of what was accepted and not flushed when a process dies.
//! * Secrecy or authentication beyond what the kernel says about the peer ([`PeerCredentials`],
//!   [`PeerProcess`]).
//!
//! # Requirements
//!
//! Linux 6.1 for io_uring, any supported Linux for epoll. [`Runtime::engine`] tells which runs and why.
#![forbid(unsafe_code)]

mod byte_stream;
mod chunks;
mod connection;
mod datagram;
mod detached;
mod error;
mod executor;
mod handle;
mod link;
mod listener;
mod message;
mod options;
mod receiver;
pub mod restart;
mod runtime;
mod sender;
mod time;
mod wire;

#[doc = include_str!("../../../README.md")]
#[cfg(doctest)]
struct Readme;

pub use byte_stream::{ByteReader, ByteStream, ByteWriter};
pub use connection::Connection;
pub use datagram::{
    Datagram, DatagramBuilder, DatagramProfile, DatagramReceiver, DatagramRecvError,
    DatagramSendError, DatagramSender, DatagramStats, Destination, Packet, PacketBatch, PacketRef,
};
pub use detached::{DetachError, DetachErrorReason, DetachedConnection};
pub use error::{AcceptError, Closed, ConnectError, RecvError, SendError};
pub use executor::{JoinError, JoinHandle, Panic};
pub use handle::{Handle, SubmitError};
pub use listener::{Listener, ListenerBuilder};
pub use message::{Frame, Message, Run};
pub use options::ConnectionOptions;
pub use receiver::{Batch, Frames, Receiver};
pub use ringpost_frame::{
    Agreement, ByteOrder, Features, FrameKind, HelloError, LengthPrefix, PrefixWidth, Profile,
    ProtocolError,
};
#[cfg(feature = "sim")]
pub use ringpost_reactor::sim;
pub use ringpost_reactor::{
    BuildError, Capabilities, EngineChoice, EngineError, EngineKind, EngineReason, EngineReport,
    SocketName, Spin, Stats, Support, UringUnavailable,
};
pub use ringpost_sync::{BlockingRecvError, Canceled, OneshotReceiver, OneshotSender, oneshot};
pub use ringpost_uds::ConnectError as SocketConnectError;
pub use ringpost_uds::handover::HandoverError;
pub use ringpost_uds::{
    AccessDenied, AccessPolicy, Activation, ActivationError, Address, AddressError, AdoptError,
    BindError, BindOptions, ConnectErrorKind, Descriptor, FileKind, Inherited, PeerCredentials,
    PeerProcess, PeerProcessError, SocketDomain, SocketKind, SocketState, Step,
};
pub use runtime::{Runtime, RuntimeBuilder, spawn, stats, yield_now};
pub use sender::{SendBatch, Sender};
pub use time::{Elapsed, sleep, sleep_until, timeout};
