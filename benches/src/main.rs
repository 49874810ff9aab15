//! Benchmarks of ringpost against what else moves messages between two processes on a host.
//!
//! A sample is a server process and a client process, both started from this program, see [`role`].
//! All contenders send the same framed messages ([`payload`], [`frame`]), check every byte that
//! they receive, and are measured by the same clock ([`meter`]). Samples of the contenders of a
//! scenario are interleaved, and those that the machine disturbed are taken again ([`probe`]).
//!
//! ```text
//! cli ─► plan ─► runner ─► sample ─► two processes: role ─► contenders
//!                  │                                          │ traffic, payload, frame
//!                  ▼                                          ▼
//!               results ─► summary ─► report, targets       meter ─► syscalls, sys
//! ```
//!
//! [`soak`] is another program in the same one: a mixed load for minutes, which has to be flat.

// Counts of messages and nanoseconds become floating-point figures throughout.
#![expect(clippy::cast_precision_loss, reason = "53 bits are enough for a benchmark's counts")]

mod cli;
mod contenders;
mod frame;
mod interrupt;
mod machine;
mod meter;
mod pace;
mod payload;
mod plan;
mod probe;
mod process;
mod report;
mod results;
mod role;
mod runner;
mod sample;
mod scenario;
mod soak;
mod stats;
mod summary;
mod sys;
mod syscalls;
mod targets;
mod traffic;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let result = match arguments.command {
        Some(cli::Command::Role { order }) => role::run(&order),
        Some(cli::Command::Soak(options)) => soak::run(&options),
        Some(cli::Command::SoakRole { order }) => soak::run_role(&order),
        None if arguments.options.list => report::list(),
        None => runner::run(&arguments.options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
