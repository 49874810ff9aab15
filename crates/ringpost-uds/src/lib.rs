//! Socket hygiene for Unix-domain sockets: everything that has to happen before the first byte flows.
//!
//! A socket in the file system outlives the process that made it, is guarded by permission bits that
//! the umask meddles with, has a name of at most 107 bytes, and can be replaced by anyone who may
//! write to its directory. This crate deals with all of that and then hands out plain file
//! descriptors, non-blocking and close-on-exec, for whatever reactor the caller uses.
//!
//! - [`bind()`] takes a path over race-free: of several starters exactly one wins, a stale socket is
//!   replaced atomically, a live one and anything that is not a socket are left alone, and the
//!   socket is never reachable with wider permissions than asked for.
//! - [`handover`] passes a listening socket and its path to another process, and any descriptors.
//! - [`PathGuard`] removes the path when the server ends, unless the path has become somebody
//!   else's in the meantime.
//! - [`connect()`] makes one attempt and says in words why it failed.
//! - [`peer_credentials`], [`peer_process`] and [`AccessPolicy`] tell who is on the other side and
//!   whether they may be.
//! - [`Activation`] takes the sockets that a service manager passed, [`adopt_listener`],
//!   [`adopt_connection`] and [`adopt_datagram`] any other one, after a look at what it is.
//!
//! # What it does not do
//!
//! It spawns nothing and never touches the process umask or the working directory, which other threads
//! share. It waits in one place: [`bind()`] gives the lock of a killed owner, and then its socket, up to
//! 250 ms each to end.
//!
//! # Requirements
//!
//! Linux. Paths longer than 107 bytes, listening at one longer than 98 whose directory has more than 88, modes that
//! the umask would narrow, and [`Activation`] need `/proc` mounted. [`peer_process`] needs Linux 6.5.
//!
//! # Example
//!
//! ```
//! use ringpost_uds::{Address, BindOptions, bind, connect, peer_credentials};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("app.sock");
//! let address = Address::from(path.as_path());
//! let server = bind(&address, &BindOptions::new().mode(0o660))?;
//! let client = connect(&address)?;
//! assert_eq!(peer_credentials(&client)?.pid, Some(std::process::id()));
//! drop(server);
//! assert!(!path.exists());
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod activation;
mod activation_error;
mod address;
mod bind;
mod bind_error;
mod connect;
mod credentials;
mod descriptor;
mod directory;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod guard;
pub mod handover;
mod liveness;
mod lock;
mod options;
mod policy;
mod process;
mod reason;
mod temporary;

pub use activation::{Activation, Inherited};
pub use activation_error::ActivationError;
pub use address::{Address, AddressError};
pub use bind::{Bound, autobind, bind, bind_prepared};
pub use bind_error::{BindError, FileKind, Step};
pub use connect::{ConnectError, ConnectErrorKind, connect, connect_kind, connect_socket};
pub use credentials::{PeerCredentials, peer_credentials};
pub use descriptor::{
    AdoptError, Descriptor, SocketDomain, SocketState, adopt_connection, adopt_datagram,
    adopt_listener,
};
pub use guard::PathGuard;
pub use options::{BindOptions, SocketKind};
pub use policy::{AccessDenied, AccessPolicy};
pub use process::{PeerProcess, PeerProcessError, peer_process};
