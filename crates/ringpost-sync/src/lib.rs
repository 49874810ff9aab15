//! The concurrent protocols of ringpost: how threads wake a reactor, hand it work, give receive
//! memory back to it and learn what became of a request. No I/O, no system calls, no unsafe code.
//!
//! | type | protocol | who may call |
//! |---|---|---|
//! | [`WakeWord`] | sleep and wake-up in one atomic word | any producer; one consumer |
//! | [`Mailbox`] | bounded queue of commands with wake-up and close | any producer; one consumer |
//! | [`LeaseCount`] | how many leases of one receive block are out | any holder of a lease |
//! | [`ReturnQueue`] | blocks on their way back to the reactor | any holder; one owner |
//! | [`oneshot()`] | the answer to one request | one sender, one receiver |
//! | [`Shutdown`] | when the last handle is gone | any holder of a handle |
//!
//! # How it is checked
//!
//! Everything concurrent is imported from the private module `primitive`, which is std and
//! crossbeam in a normal build and loom in a test build with `--cfg loom`. `cargo xtask loom` then
//! explores the interleavings (and the stale reads that the memory model allows) of every model in
//! `src/models`. Each model has twins: the same model over a protocol with one ordering
//! weakened or one re-check left out (module `mutation`). A twin that passes means that
//! the model proves nothing, and fails the run.
//!
//! # A reactor and its handles
//!
//! ```
//! use std::sync::{Arc, Condvar, Mutex};
//! use ringpost_sync::{Doorbell, Mailbox};
//!
//! // A reactor rings an eventfd; a condition variable shows the same contract.
//! #[derive(Default)]
//! struct Bell(Mutex<bool>, Condvar);
//!
//! impl Bell {
//!     fn wait(&self) {
//!         let mut rung = self.0.lock().unwrap();
//!         while !*rung {
//!             rung = self.1.wait(rung).unwrap();
//!         }
//!         *rung = false;
//!     }
//! }
//!
//! impl Doorbell for Bell {
//!     fn ring(&self) {
//!         *self.0.lock().unwrap() = true;
//!         self.1.notify_one();
//!     }
//! }
//!
//! let mailbox = Arc::new(Mailbox::new(8, Bell::default()));
//! let producer = std::thread::spawn({
//!     let mailbox = Arc::clone(&mailbox);
//!     move || {
//!         mailbox.push("hello").unwrap();
//!         mailbox.seal();
//!     }
//! });
//!
//! let mut received = Vec::new();
//! loop {
//!     mailbox.wake().take();
//!     let last = mailbox.is_sealed(); // before the queue is drained
//!     while let Some(item) = mailbox.pop() {
//!         received.push(item);
//!     }
//!     if last {
//!         break;
//!     }
//!     if mailbox.wake().park() {
//!         mailbox.doorbell().wait();
//!         mailbox.wake().unpark();
//!     }
//! }
//! mailbox.close();
//! assert_eq!(received, ["hello"]);
//! # producer.join().unwrap();
//! ```

#![forbid(unsafe_code)]
// `clippy.toml` bans the concurrent types of std outside the facade. The lint sees through
// re-exports, so it bites where the facade hands out loom's types: `cargo xtask loom` runs clippy
// on that build.
#![cfg_attr(
    not(all(test, loom)),
    allow(
        clippy::disallowed_types,
        clippy::disallowed_methods,
        reason = "checked in the loom build of the tests"
    )
)]

mod doorbell;
mod lease;
mod mailbox;
mod mutation;
mod oneshot;
mod primitive;
mod returns;
mod shutdown;
mod wake;

#[cfg(all(test, loom))]
mod models;

pub use doorbell::Doorbell;
pub use lease::LeaseCount;
pub use mailbox::{Mailbox, PushError};
#[cfg(not(all(test, loom)))]
pub use oneshot::BlockingRecvError;
pub use oneshot::{Canceled, OneshotReceiver, OneshotSender, oneshot};
pub use returns::ReturnQueue;
pub use shutdown::Shutdown;
pub use wake::WakeWord;
