//! Which io_uring features pay off on `AF_UNIX` stream sockets?
//!
//! Each comparison measures a baseline A and one or more alternatives in many short rounds that are
//! interleaved (A B C, C B A, ...), and prints the ratio of the medians, the middle half of the
//! ratios seen within single rounds, and a verdict. The rings are made with the `io-uring` crate and
//! system calls alone, set up the way the reactor sets up its own, so that one feature at a time can
//! be taken away or added.
//!
//! ```text
//! cargo run --release --package ringpost-bench --bin ring_features -- [--list] [--only 1,5] [--rounds 80]
//! ```

#[path = "../ring_features/mod.rs"]
mod ring_features;

use anyhow::Result;
use clap::Parser;

use ring_features::{Plan, machine, run};

#[derive(Debug, Parser)]
#[command(about = "Measures which io_uring features pay off on AF_UNIX stream sockets")]
struct Arguments {
    /// List the comparisons and end.
    #[arg(long)]
    list: bool,
    /// Measure only these groups, for example `1,5`.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=9))]
    only: Vec<u8>,
    /// Rounds of each comparison.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(3..=1000))]
    rounds: u32,
    /// Leave the placement of the two threads to the scheduler.
    #[arg(long)]
    no_pin: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let plan = Plan { only: arguments.only, rounds: arguments.rounds, pin: !arguments.no_pin };
    if arguments.list {
        for line in plan.list() {
            println!("{line}");
        }
        return Ok(());
    }
    println!("before: {}", machine());
    println!("{}", run(&plan)?);
    println!("after:  {}", machine());
    Ok(())
}
