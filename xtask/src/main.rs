//! The runner of the workspace: `cargo xtask <command>`.
//!
//! This file only parses and dispatches; each command has a file of its own.

#![forbid(unsafe_code)]

mod bench;
mod canaries;
mod ci;
mod coverage;
mod doctor;
mod fuzz;
mod loom;
mod miri;
mod reliability;
mod results;
mod run;
mod san;
mod sim;
mod soak;
mod source;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Tests, checks and measures ringpost")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs all tests, examples and documentation tests, and prints one line with the sums
    Test(test::TestArgs),
    /// Does what continuous integration does, and prints how long each step took
    Ci(ci::CiArgs),
    /// Runs the benchmarks; all arguments, --help too, go to the benchmark program
    #[command(disable_help_flag = true)]
    Bench(bench::BenchArgs),
    /// Checks the concurrent protocols on every interleaving
    Loom(loom::LoomArgs),
    /// Runs the fuzz targets, each for a given time
    Fuzz(fuzz::FuzzArgs),
    /// Says which lines the stored inputs of the fuzz targets reach, and fails below a bound
    Coverage(coverage::CoverageArgs),
    /// Runs ringpost on a simulated kernel with faults, by seed
    Sim(sim::SimArgs),
    /// Loads ringpost with everything at once for minutes, which has to be flat; all arguments, --help too,
    /// go to the soak
    #[command(disable_help_flag = true)]
    Soak(soak::SoakArgs),
    /// Puts known bugs in, and checks that each is found
    Canaries(canaries::CanariesArgs),
    /// Runs the tests under AddressSanitizer, with leaks, and ThreadSanitizer; needs a nightly toolchain
    San(san::SanArgs),
    /// Interprets what needs no kernel, with strict provenance; needs a nightly toolchain with Miri
    Miri(miri::MiriArgs),
    /// Checks the project's own rules
    Tidy(tidy::TidyArgs),
    /// Says what this machine offers to ringpost, and what it lacks
    Doctor(doctor::DoctorArgs),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test(arguments) => test::run(&arguments),
        Command::Ci(arguments) => ci::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Loom(arguments) => loom::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Coverage(arguments) => coverage::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Canaries(arguments) => canaries::run(&arguments),
        Command::San(arguments) => san::run(&arguments),
        Command::Miri(arguments) => miri::run(&arguments),
        Command::Tidy(arguments) => tidy::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
