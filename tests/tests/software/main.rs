//! Unmodified software of others over ringpost, on the real kernel: one module for each.

mod postgres;
mod tokio_postgres;
