//! The parts of the `ring_features` program.

mod catalogue;
mod clock;
mod echo;
mod hop;
mod receive;
mod ring;
mod run;
mod sys;
mod turns;
mod wake;
mod worker;

pub(crate) use run::{Plan, machine, run};
