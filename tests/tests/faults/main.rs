//! Faults that the real kernel brings about, in processes of their own, on both engines: what the survivor
//! sees, and what is left.
//!
//! Sweeps kill or stall a child before each of its system calls in turn.

mod bursts;
mod clocks;
mod ends;
mod forked;
mod killed;
mod limits;
mod locked_memory;
mod places;
mod refused_later;
mod roles;
mod signals;
mod starved;
mod stopped;
mod sweep;
