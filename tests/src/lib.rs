//! End-to-end and fault tests of ringpost on the real kernel; this library is what they share.
//!
//! `tests/it` holds the tests, one module for each group; `tests/software` those that run software of
//! others; `tests/allocations.rs` is apart because it replaces the allocator. Tests that count descriptors
//! or memory, or change limits, run in a process of their own.

pub mod engines;
pub mod privileges;
pub mod rig;
