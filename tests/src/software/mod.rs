//! Software that is not ours, started and stopped by tests: servers with their own clients, and the
//! `forward` example between them.
//!
//! Every server has its own data in a temporary directory and listens on a Unix socket in it, and
//! nowhere else. It ends with the value that stands for it.

pub mod client;
pub mod example;
pub mod postgres;
pub mod programs;
pub mod service;
