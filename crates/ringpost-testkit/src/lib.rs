//! Peers, fault scripts and oracles for ringpost, shared by tests, fuzz targets and benchmarks.
//!
//! Not published. Functions here panic when a property does not hold; that is their result.
#![forbid(unsafe_code)]

pub mod child;
pub mod corpus;
pub mod frame_oracle;
pub mod patience;
pub mod pattern;
pub mod peer;
pub mod process;
pub mod trace;

pub use nix::sys::signal::Signal;
