//! End-to-end and fault tests of ringpost on the real kernel; this library is what they share.
//!
//! `tests/it` holds the tests, one module for each group; `tests/software` those that run software of
//! others; `tests/allocations.rs` and `tests/byte_stream_allocations.rs` are apart because they replace the
//! allocator; `tests/faults` does to processes what happens to them: kills, stops, limits, forks. Tests that count descriptors or memory, or change limits, run in a process of their own.

pub mod counting;
pub mod engines;
pub mod privileges;
pub mod residue;
pub mod rig;
pub mod software;

#[doc = include_str!("../../docs/containers.md")]
#[cfg(doctest)]
struct ContainersPage;
