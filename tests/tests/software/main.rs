//! Unmodified software of others over ringpost, on the real kernel: one module for each.
//!
//! What is not installed is skipped, with the names of the Debian packages. The examples must have been
//! built (`cargo build --package ringpost --examples`).

mod activation;
mod mariadb;
mod postgres;
mod postgres_forwarded;
mod python;
mod redis;
mod tokio_codec;
mod tokio_postgres;
