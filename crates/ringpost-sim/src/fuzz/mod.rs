//! Properties of what peers, other processes and the environment feed ringpost, checked on arbitrary input.
//!
//! As in [`ringpost_testkit::frame_oracle`], each function takes bytes that steer it: a fuzzer drives it, a
//! failing input is a file, and what is needed beyond the end reads as zero.
//!
//! - [`addresses()`]: socket addresses, names from the kernel, and the variables of a service manager.
//! - [`connection()`]: a connection against a model of it, with a peer that sends anything.
//! - [`control_messages()`]: descriptors in control messages.
//! - [`reactor()`]: scenarios on the simulated kernel, with its faults.
//! - [`restart_records()`]: what another generation of a server says in a restart.

mod addresses;
mod connection;
mod control_messages;
mod reactor;
mod restart_records;

pub use addresses::addresses;
pub use connection::connection;
pub use control_messages::control_messages;
pub use reactor::reactor;
pub use restart_records::restart_records;
