//! The engines that are held to the contract.

use std::sync::Arc;

use super::bench::{Bench, Shape};
use super::skip;
use crate::engine::Engine;
use crate::epoll::Epoll;
use crate::pool::Pool;
use crate::uring::{Setup, Uring};
use crate::wake::Inbox;

/// An engine, and what is to be expected of it.
pub(super) trait Subject: Sized {
    type Engine: Engine;
    /// What it is called in reports.
    const NAME: &'static str;
    /// Many receives share a block.
    const SHARED: bool;
    /// Waits are real ones, so that another thread can end them.
    const REAL: bool = true;
    /// How often each test runs; a round decides what faults happen.
    const ROUNDS: u64 = 1;

    /// The engine with a pool, or why there is none here.
    fn build(shape: Shape, round: u64) -> Result<(Self::Engine, Pool), String>;
}

fn pool(shape: Shape) -> Result<Pool, String> {
    let inbox = Arc::new(Inbox::for_test());
    Pool::new(shape.blocks, shape.block_bytes, inbox).map_err(|error| error.to_string())
}

fn uring(shape: Shape, incremental: bool) -> Result<(Uring, Pool), String> {
    let pool = pool(shape)?;
    let setup = Setup { entries: shape.queue_max, incremental, register_ring: true };
    let engine = setup.build(Arc::clone(pool.shared())).map_err(|error| error.to_string())?;
    Ok((engine, pool))
}

/// io_uring with blocks that many receives share.
pub(super) struct UringShared;

impl Subject for UringShared {
    type Engine = Uring;
    const NAME: &'static str = "io_uring with shared blocks";
    const SHARED: bool = true;

    fn build(shape: Shape, _round: u64) -> Result<(Uring, Pool), String> {
        uring(shape, true)
    }
}

/// io_uring with a block for each receive.
pub(super) struct UringPlain;

impl Subject for UringPlain {
    type Engine = Uring;
    const NAME: &'static str = "io_uring with plain blocks";
    const SHARED: bool = false;

    fn build(shape: Shape, _round: u64) -> Result<(Uring, Pool), String> {
        uring(shape, false)
    }
}

pub(super) struct OnEpoll;

impl Subject for OnEpoll {
    type Engine = Epoll;
    const NAME: &'static str = "epoll";
    const SHARED: bool = true;

    fn build(shape: Shape, _round: u64) -> Result<(Epoll, Pool), String> {
        let pool = pool(shape)?;
        let engine = Epoll::new(Arc::clone(pool.shared())).map_err(|error| error.to_string())?;
        Ok((engine, pool))
    }
}

#[cfg(feature = "sim")]
pub(super) mod simulated {
    use super::{Arc, Inbox, Pool, Shape, Subject, Uring};
    use crate::sim::{Choices, Fault, Machine, Rates, Seeded, Sim, SimulatedRing, Simulation};

    /// Faults that the contract speaks of: an engine may do that, and every test must bear it.
    const WITHIN_THE_CONTRACT: &[Fault] = &[
        Fault::QueueRefused,
        Fault::PartialEnter,
        Fault::EnterInterrupted,
        Fault::Held,
        Fault::AtOnce,
        Fault::InARow,
        Fault::Shuffled,
        Fault::ShortReceive,
        Fault::ShortSend,
        Fault::SendEnds,
        Fault::SilentShort,
        Fault::BlockOdd,
        Fault::BlockFinished,
        Fault::BlockEmpty,
        Fault::CancelRace,
        Fault::TimePasses,
    ];

    /// Faults of a ring that its engine hides.
    const OF_THE_RING: &[Fault] = &[
        Fault::EnterBusy,
        Fault::EnterAgain,
        Fault::Overflow,
        Fault::BufferFlagLost,
        Fault::FlagSpurious,
        Fault::Announced,
    ];

    pub(in crate::conformance) fn machine(shape: Shape, shared: bool) -> Machine {
        Machine {
            queue_max: shape.queue_max as usize,
            block_bytes: shape.block_bytes,
            blocks: shape.blocks,
            shares_blocks: shared,
            silent_sends: true,
            end_of_file: true,
            faults_max: 10_000,
            enters_max: 1_000_000,
            ring: None,
        }
    }

    pub(in crate::conformance) fn built(simulation: &Simulation) -> Result<(Sim, Pool), String> {
        let inbox = Arc::new(Inbox::for_test());
        let pool = simulation.pool(&inbox).map_err(|error| error.to_string())?;
        Ok((simulation.engine(&pool), pool))
    }

    fn ring(simulation: &Simulation) -> Result<(Uring<SimulatedRing>, Pool), String> {
        let inbox = Arc::new(Inbox::for_test());
        let pool = simulation.pool(&inbox).map_err(|error| error.to_string())?;
        let engine = simulation.ring_engine(&pool).map_err(|error| error.to_string())?;
        Ok((engine, pool))
    }

    pub(in crate::conformance) struct SimShared;

    impl Subject for SimShared {
        type Engine = Sim;
        const NAME: &'static str = "simulation with shared blocks";
        const SHARED: bool = true;
        const REAL: bool = false;

        fn build(shape: Shape, round: u64) -> Result<(Sim, Pool), String> {
            built(&Simulation::new(Seeded::new(round), machine(shape, true)))
        }
    }

    pub(in crate::conformance) struct SimPlain;

    impl Subject for SimPlain {
        type Engine = Sim;
        const NAME: &'static str = "simulation with plain blocks";
        const SHARED: bool = false;
        const REAL: bool = false;

        fn build(shape: Shape, round: u64) -> Result<(Sim, Pool), String> {
            built(&Simulation::new(Seeded::new(round), machine(shape, false)))
        }
    }

    /// The io_uring engine on a simulated ring.
    pub(in crate::conformance) struct RingShared;

    impl Subject for RingShared {
        type Engine = Uring<SimulatedRing>;
        const NAME: &'static str = "io_uring on a simulated ring";
        const SHARED: bool = true;
        const REAL: bool = false;

        fn build(shape: Shape, round: u64) -> Result<(Self::Engine, Pool), String> {
            ring(&Simulation::new(Seeded::new(round), machine(shape, true)))
        }
    }

    pub(in crate::conformance) struct RingPlain;

    impl Subject for RingPlain {
        type Engine = Uring<SimulatedRing>;
        const NAME: &'static str = "io_uring on a simulated ring, with plain blocks";
        const SHARED: bool = false;
        const REAL: bool = false;

        fn build(shape: Shape, round: u64) -> Result<(Self::Engine, Pool), String> {
            ring(&Simulation::new(Seeded::new(round), machine(shape, false)))
        }
    }

    /// With faults that the contract allows, other ones in each round.
    pub(in crate::conformance) struct SimFaults;

    impl Subject for SimFaults {
        type Engine = Sim;
        const NAME: &'static str = "simulation with faults";
        const SHARED: bool = true;
        const REAL: bool = false;
        const ROUNDS: u64 = 40;

        fn build(shape: Shape, round: u64) -> Result<(Sim, Pool), String> {
            built(&disturbed(shape, round, WITHIN_THE_CONTRACT.iter()))
        }
    }

    /// The io_uring engine on a ring with such faults and its own.
    pub(in crate::conformance) struct RingFaults;

    impl Subject for RingFaults {
        type Engine = Uring<SimulatedRing>;
        const NAME: &'static str = "io_uring on a simulated ring with faults";
        const SHARED: bool = true;
        const REAL: bool = false;
        const ROUNDS: u64 = 40;

        fn build(shape: Shape, round: u64) -> Result<(Self::Engine, Pool), String> {
            ring(&disturbed(shape, round, WITHIN_THE_CONTRACT.iter().chain(OF_THE_RING)))
        }
    }

    fn disturbed<'a>(
        shape: Shape,
        round: u64,
        faults: impl Iterator<Item = &'a Fault>,
    ) -> Simulation {
        let mut choices = Seeded::new(round ^ 0xFA17);
        let mut rates = Rates::NONE;
        for &fault in faults {
            if choices.below(2) == 0 {
                rates.set(fault, [8, 24, 64, 128][choices.below(4) as usize]);
            }
        }
        let simulation = Simulation::new(choices, machine(shape, true));
        simulation.set_rates(rates);
        simulation
    }
}

/// Runs a test on an engine, as often as it has rounds. Says so if there is none here.
pub(super) fn run<S: Subject>(name: &str, shape: Shape, test: impl Fn(&mut Bench<S>)) {
    for round in 0..S::ROUNDS {
        match Bench::new(shape, round) {
            Ok(mut bench) => {
                if S::ROUNDS > 1 {
                    println!("round {round}");
                }
                test(&mut bench);
                bench.finish();
            }
            Err(reason) => {
                skip(&format!("{name} on {}: {reason}", S::NAME));
                return;
            }
        }
    }
}
