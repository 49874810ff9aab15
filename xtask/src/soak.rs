//! `cargo xtask soak`: the soak, which is part of the benchmark program, optimised.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::root;

/// Arguments of `cargo xtask soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct SoakArgs {
    /// Given to the soak
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &SoakArgs) -> Result<()> {
    // Keeps the terminal, for the progress bar, and has no limit: how long it takes is an argument.
    let mut command = Command::new("cargo");
    // In the folder where this was called: a relative path of its arguments is meant from there.
    command
        .args(["run", "--release", "--locked", "--package", "ringpost-bench", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .args(["--", "soak"])
        .args(&arguments.arguments);
    println!(
        "$ cargo run --release --locked --package ringpost-bench -- soak {}",
        arguments.arguments.join(" ")
    );
    // In the place of this process: its signals and its exit code are the program's.
    Err(command.exec()).context("cannot start cargo")
}
