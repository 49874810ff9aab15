//! ringpost on a simulated kernel: scenarios, what must hold in them, and runs by seed.
//!
//! One run is one scenario with one source of choices, on one thread. The choices decide how the simulated
//! kernel is built, which faults it has, and what the scenario does, so that a seed and the name of
//! a scenario say everything (with the same build). `cargo xtask sim` runs many of them.
#![forbid(unsafe_code)]

mod flow;
pub mod fuzz;
mod names;
mod raw;
mod rig;
pub mod run;
pub mod scenarios;
mod seam;
pub mod steps;
pub mod sweep;

pub use run::{Failure, Outcome, run, run_seed};
pub use scenarios::Scenario;
pub use seam::Seam;
