//! Hot restart: a new process takes over from a running one, and no client notices.
//!
//! The new process, the *successor*, connects to a control socket of the old one, its *predecessor*, and
//! receives the listening sockets, the ownership of their paths, any other descriptors and state of the
//! application. Then it starts up, which may take long and may fail. Only when it says that it is ready does
//! the predecessor stop accepting; it serves what it has to its end, and exits. If the successor crashes,
//! hangs or gives up before that, the predecessor goes on as if nothing had happened.
//!
//! ```text
//! predecessor   accepts ....................... paused | drains ........ ends
//!                      \ sockets                ^   \  ^
//! successor             starts up ........ ready/    \ taken | accepts .......
//! ```
//!
//! # What is promised
//!
//! - **No connect is refused.** The listening socket exists throughout. For the moment in which nobody
//!   accepts, clients wait in its backlog.
//! - **No accepted connection is dropped.** What the kernel had accepted for the predecessor is served by it,
//!   or handed over.
//! - **One owner.** There is one point at which ownership passes, the successor's TAKEN, and whoever dies
//!   around it, the other knows. Only where the predecessor could give no descriptor for its process
//!   (pidfd_open(2)), a successor can't tell its death from a connection that has ended, and ends itself. The
//!   path is removed by the owner at its end, and by nobody else. A process that is killed leaves nothing that
//!   has to be cleaned by hand. (A successor that was given up, and has not noticed, has the sockets as long as it
//!   lives or until it asks to take over: if its predecessor is killed meanwhile, that process must end before
//!   another can bind. End a successor that takes too long.)
//! - **One successor at a time.** A second one is refused.
//! - **Every wait ends**, by limits that have names.
//!
//! Established connections stay with the predecessor, which asks their peers to reconnect ([`Drain`],
//! GOAWAY). If the successor [asks for them](SuccessorBuilder::connections_max), the predecessor can hand
//! them over instead ([`Connection::detach`](crate::Connection::detach)): the peer notices nothing.
//!
//! # What is not
//!
//! A successor that dies after it has taken over is not replaced; whoever supervises it starts another, which
//! finds the stale path and binds anew. A client that waits in the backlog during a restart sees the former
//! process in [`Connection::peer_credentials`](crate::Connection::peer_credentials); later ones see the
//! successor. State is what the application says; memory is not shared. Both
//! generations must be on one host and, unless a policy says otherwise, of one user.
//!
//! # Example
//!
//! `examples/restart.rs` is a server that replaces itself on SIGHUP. In short:
//!
//! ```no_run
//! use std::time::Duration;
//! use ringpost::restart::{Drain, Parcel, Predecessor, Successor};
//! use ringpost::{Listener, Runtime};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Take over from a predecessor if there is one.
//! let successor = match Successor::connect("/run/app/control") {
//!     Ok(successor) => Some(successor),
//!     Err(error) if error.is_no_predecessor() => None,
//!     Err(error) => return Err(error.into()),
//! };
//! let runtime = Runtime::new()?; // and whatever else start-up takes
//! runtime.block_on(async {
//!     let (mut listener, mut predecessor);
//!     match successor {
//!         Some(successor) => {
//!             let mut inherited = successor.take_over()?;
//!             let socket = inherited.listener("app").ok_or("an older version without it")?;
//!             listener = socket.listen(Listener::builder());
//!             let parcel = Parcel::new().listener("app", &listener)?;
//!             predecessor = Predecessor::builder().inherit(inherited.into_control(), parcel);
//!         }
//!         None => {
//!             listener = Listener::bind("/run/app/socket")?;
//!             let parcel = Parcel::new().listener("app", &listener)?;
//!             predecessor = Predecessor::bind("/run/app/control", parcel)?;
//!         }
//!     }
//!     let drain = Drain::new();
//!     ringpost::spawn(async move {
//!         loop {
//!             match predecessor.successor().await {
//!                 Ok(ready) => {
//!                     if ready.commit(b"").await.is_ok() {
//!                         break; // accepting ends
//!                     }
//!                 }
//!                 Err(error) if error.is_final() => break,
//!                 Err(error) => eprintln!("no restart: {error}"),
//!             }
//!         }
//!     });
//!     while let Ok(connection) = listener.accept().await {
//!         let hold = drain.hold();
//!         ringpost::spawn(async move {
//!             // Serve it; see `Drain`.
//!             drop((connection, hold));
//!         });
//!     }
//!     drop(listener);
//!     drain.begin();
//!     Ok(drain.finished(Duration::from_secs(30)).await?)
//! })
//! # }
//! ```

mod channel;
mod drain;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod parcel;
mod predecessor;
mod successor;
mod wire;

pub use drain::{Drain, Hold, Unfinished};
pub use error::{RestartError, Stage};
pub use parcel::{InheritedListener, Parcel};
pub use predecessor::{NotCommitted, NotSent, Predecessor, PredecessorBuilder, ReadySuccessor};
pub use successor::{Inherited, Successor, SuccessorBuilder};
pub use wire::{
    CONNECTION_BYTES_MAX, CONNECTIONS_BYTES_MAX, CONNECTIONS_MAX, DESCRIPTORS_MAX, LISTENERS_MAX,
    NAME_BYTES_MAX, STATE_BYTES_MAX,
};

/// The longest limit that can be set, milliseconds: a day.
const LIMIT_MS_MAX: u64 = 24 * 60 * 60 * 1000;
