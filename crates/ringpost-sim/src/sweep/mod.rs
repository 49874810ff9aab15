//! Drop everywhere: the future of each public operation is dropped at each of its waits.
//!
//! An operation has a program, in which it is one of the actors, and repeated until it comes to its end.
//! The program is played again and again: the operation's future is dropped at its first wait, at its
//! second, and so on, until it has fewer. What was accepted or had arrived must then be what the
//! operation promises, everything goes on, and nothing is left at the end.

mod bytes;
mod connecting;
mod cut;
mod datagrams;
mod peers;
mod receiving;
mod runtime;
mod sending;

use ringpost::sim::{Choices, Fault, FromBytes, Seeded};

use self::cut::{Cut, When};
use crate::rig::Rig;
use crate::run::{Body, Bounds, Failure, Stage, play};
use crate::scenarios::End;
use crate::seam::Seam;

/// An operation, and the program that it is dropped in.
#[expect(missing_debug_implementations, reason = "a function")]
#[non_exhaustive]
pub struct Operation {
    /// What it is called in the sources: the type and the function, or the function.
    pub name: &'static str,
    program: fn(Rig, Cut) -> Body,
}

macro_rules! operations {
    ($($name:literal $program:expr;)*) => {
        &[$(Operation {
            name: $name,
            program: |rig, cut| Box::pin(($program)(rig, cut)),
        },)*]
    };
}
use operations;

/// All operations.
pub fn all() -> impl Iterator<Item = &'static Operation> {
    [
        sending::OPERATIONS,
        receiving::OPERATIONS,
        connecting::OPERATIONS,
        bytes::OPERATIONS,
        datagrams::OPERATIONS,
        runtime::OPERATIONS,
    ]
    .into_iter()
    .flatten()
}

/// Operations that are dropped elsewhere, and where.
pub const ELSEWHERE: &[(&str, &str)] = &[
    ("Future for Guarded::poll", "private, and around every task: the sweeps of tasks"),
    ("ReadySuccessor::send_connection", "takes two processes: the tests of restarts"),
    ("ReadySuccessor::commit", "takes two processes: the tests of restarts"),
];

/// What a sweep has done.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Swept {
    /// Programs played.
    pub runs: u64,
    /// What went wrong, and in which run.
    pub failures: Vec<(String, Failure)>,
}

/// Waits of one operation, at most: more of them mean that it never comes to its end.
const WAITS_MAX: u32 = 2000;

/// Under which circumstances an operation is swept.
#[derive(Debug, Clone)]
enum Circumstances {
    /// A kernel that has plenty, and small queues.
    Plain,
    /// Queues of one message, few blocks and one request at a time.
    Scarce,
    /// A kernel of old: no shared blocks, no silent sends, lost ends.
    Old,
    /// Faults by seed.
    Seeded(u64),
}

/// Plays an operation's program for each wait of the operation, on kernels without faults, at each seam.
pub fn sweep(operation: &Operation) -> Swept {
    let mut swept = Swept::default();
    for circumstances in [Circumstances::Plain, Circumstances::Scarce, Circumstances::Old] {
        for &seam in Seam::ALL {
            sweep_under(operation, seam, &circumstances, &mut swept);
        }
    }
    swept
}

/// Plays it for each wait with the machine, the faults and the choices of a seed.
pub fn sweep_seed(operation: &Operation, seed: u64) -> Swept {
    let mut swept = Swept::default();
    for &seam in Seam::ALL {
        sweep_under(operation, seam, &Circumstances::Seeded(seed), &mut swept);
    }
    swept
}

fn sweep_under(
    operation: &Operation,
    seam: Seam,
    circumstances: &Circumstances,
    swept: &mut Swept,
) {
    for when in When::ALL {
        for wait in 0.. {
            let cut = Cut::new(wait, when);
            let name = format!("{}{}", operation.name, seam.suffix());
            let label = format!("sweep of {name}, {circumstances:?}, {when:?} {wait}");
            let failure = attempt(operation, seam, circumstances, &cut, &label);
            swept.runs += 1;
            if let Some(failure) = failure {
                swept.failures.push((label, failure));
                break;
            }
            if !cut.is_done() {
                break;
            }
            assert!(wait < WAITS_MAX, "{label}: it waits for ever");
        }
    }
}

fn attempt(
    operation: &Operation,
    seam: Seam,
    circumstances: &Circumstances,
    cut: &Cut,
    label: &str,
) -> Option<Failure> {
    fastrand::seed(1);
    let mut choices: Box<dyn Choices> = match circumstances {
        Circumstances::Seeded(seed) => Box::new(Seeded::new(*seed)),
        _ => Box::new(FromBytes::new(Vec::new())),
    };
    let (mut machine, rates) = seam.choose(&mut choices);
    let bytes = match circumstances {
        Circumstances::Plain => 20_000,
        Circumstances::Scarce => 1,
        Circumstances::Old => 1000,
        Circumstances::Seeded(_) => [20_000, 1, 1000][choices.below(3) as usize],
    };
    match circumstances {
        Circumstances::Scarce => {
            machine.queue_max = 1;
            machine.block_bytes = 512;
            machine.blocks = 4;
        }
        Circumstances::Old => {
            machine.shares_blocks = false;
            machine.silent_sends = false;
            machine.end_of_file = false;
            machine.blocks = 8;
        }
        Circumstances::Plain | Circumstances::Seeded(_) => {}
    }
    let bounds =
        Bounds { outbound_bytes_max: bytes, inbound_bytes_max: bytes, accept_queue_max: 2 };
    debug_assert_eq!(rates.of(Fault::PeerGone), 0);
    play(choices, machine, label, End::Settled, |simulation| {
        let program = operation.program;
        let cut = cut.clone();
        Stage::new(simulation, bounds, rates).perform(|rig| program(rig, cut), End::Settled);
    })
    .failure
}
