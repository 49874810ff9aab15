//! One run of a scenario, and what must hold at its end.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use ringpost::Runtime;
use ringpost::sim::{Choices, Fault, Machine, Rates, Seeded, Simulation};

use crate::rig::Rig;
use crate::scenarios::{End, Scenario};
use crate::seam::Seam;

/// What became of a run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// How often each fault happened.
    pub faults: Vec<(Fault, u64)>,
    /// Enters of the simulated kernel.
    pub enters: u64,
    /// What went wrong.
    pub failure: Option<Failure>,
}

/// What went wrong in a run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The first panic, with its place.
    pub message: String,
    /// How the simulated kernel was built.
    pub machine: String,
    /// Its last steps.
    pub trace: Vec<String>,
}

/// Turns until everything has settled after a scenario, at most.
const SETTLE_TURNS_MAX: u32 = 5000;
/// Simulated time that a scenario may take beyond its own waits: below every time limit, above what
/// rests of listeners add up to.
pub(crate) const STUCK: Duration = Duration::from_secs(30);
/// What was accepted for a peer may wait so long once its connection was dropped.
pub(crate) const LINGER: Duration = Duration::from_secs(60);
/// How long a send rests that the kernel had no memory for.
const REST: Duration = Duration::from_millis(10);
/// Turns for all rests to end, some of which the kernel ends early.
const REST_TURNS_MAX: u32 = 64;

thread_local! {
    /// Panics of this thread's run, and where they were.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// What this thread runs.
    static LABEL: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs a scenario with the choices of a seed, which are others at each seam.
pub fn run_seed(scenario: &Scenario, seam: Seam, seed: u64) -> Outcome {
    fastrand::seed(seed);
    let name = scenario.name.bytes().chain(seam.suffix().bytes());
    let name = name.fold(0_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let label = format!("{}{}, seed {seed}", scenario.name, seam.suffix());
    run_labelled(scenario, seam, Box::new(Seeded::new(seed ^ name << 32)), label)
}

/// Runs a scenario with these choices, on this thread alone.
pub fn run(scenario: &Scenario, seam: Seam, choices: Box<dyn Choices>) -> Outcome {
    run_labelled(scenario, seam, choices, format!("{}{}", scenario.name, seam.suffix()))
}

fn run_labelled(
    scenario: &Scenario,
    seam: Seam,
    mut choices: Box<dyn Choices>,
    label: String,
) -> Outcome {
    let (machine, rates) = seam.choose(&mut choices);
    play(choices, machine, &label, scenario.end, |simulation| {
        let below = |n| simulation.below(n) as usize;
        let bounds = Bounds {
            outbound_bytes_max: Bounds::BYTES[below(4)],
            inbound_bytes_max: Bounds::BYTES[below(4)],
            accept_queue_max: [1024, 1, 2, 4][below(4)],
        };
        let stage = Stage::new(simulation, bounds, rates);
        stage.perform(scenario.body, scenario.end);
    })
}

/// Runs `body` on a simulation with these choices, and looks for what must not be: panics, operations
/// that have not ended, descriptors. `label` says what it is, should the process abort.
pub(crate) fn play(
    choices: Box<dyn Choices>,
    machine: Machine,
    label: &str,
    end: End,
    body: impl FnOnce(&Simulation),
) -> Outcome {
    keep_panics();
    PANICS.take();
    LABEL.set(label.into());
    let described = format!("{machine:?}");
    let simulation = Simulation::new(choices, machine);
    let before = descriptors();
    let ended = catch_unwind(AssertUnwindSafe(|| body(&simulation))).is_ok();
    let mut panics = PANICS.take();
    if ended && panics.is_empty() {
        let operations = simulation.operations_left();
        let leaked: Vec<RawFd> = descriptors().difference(&before).copied().collect();
        if end == End::Leaked {
            // The receive blocks keep the doorbell open.
            if leaked.len() > 1 + simulation.completions_untold() {
                panics.push(format!("descriptors {leaked:?} are left"));
            }
            for descriptor in leaked {
                let _ = nix::unistd::close(descriptor);
            }
        } else if operations > 0 {
            panics.push(format!("{operations} operations are left"));
        } else if !leaked.is_empty() || descriptors() != before {
            panics.push(format!("descriptors {before:?} became {:?}", descriptors()));
        }
    }
    let failure = panics.into_iter().next().map(|message| Failure {
        message,
        machine: described,
        trace: simulation.trace(),
    });
    Outcome { faults: simulation.faults(), enters: simulation.enters(), failure }
}

/// Bounds that a runtime is built with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) outbound_bytes_max: usize,
    pub(crate) inbound_bytes_max: usize,
    pub(crate) accept_queue_max: usize,
}

impl Bounds {
    /// Bounds of queues that differ much, bytes.
    const BYTES: [usize; 4] = [256 << 10, 1, 1000, 20_000];
}

/// A runtime, and what programs on it have at hand.
pub(crate) struct Stage {
    pub(crate) runtime: Runtime,
    pub(crate) rig: Rig,
    simulation: Simulation,
    start: Instant,
}

impl Stage {
    pub(crate) fn new(simulation: &Simulation, bounds: Bounds, rates: Rates) -> Self {
        let runtime = Runtime::builder()
            .outbound_bytes_max(bounds.outbound_bytes_max)
            .inbound_bytes_max(bounds.inbound_bytes_max)
            .accept_queue_max(bounds.accept_queue_max)
            .linger(LINGER)
            .build_simulated(simulation)
            .expect("a runtime");
        simulation.set_rates(rates.clone());
        let rig = Rig::new(simulation.clone(), rates, runtime.handle(), bounds.outbound_bytes_max);
        Self { runtime, rig, simulation: simulation.clone(), start: simulation.now() }
    }

    /// Plays a program to its end, and has everything settle if nothing may be left of it.
    pub(crate) fn perform(self, program: impl FnOnce(Rig) -> Body, end: End) {
        self.runtime.block_on(program(self.rig.clone()));
        self.check_time();
        self.be_calm();
        if end == End::Settled {
            self.settle();
        }
    }

    /// No more time has passed than a program has waited itself, and a bit.
    pub(crate) fn check_time(&self) {
        let took = self.simulation.now() - self.start;
        assert!(took < self.rig.slept() + STUCK, "something was stuck for {took:?}");
    }

    /// Ends the faults.
    pub(crate) fn be_calm(&self) {
        self.simulation.set_rates(Rates::NONE);
    }

    /// See [`settle`].
    pub(crate) fn settle(&self) {
        settle(&self.runtime);
    }
}

/// Without faults, everything comes to an end: of what the program had, nothing is left. No time passes, but for
/// what rests because the kernel had no memory, and for both ends of a connection that were dropped with bytes for
/// each other: neither reads, until they give up.
pub(crate) fn settle(runtime: &Runtime) {
    if settles(runtime) {
        return;
    }
    if runtime.stats().connections_lingering > 0 {
        // Rests that began at different times end one after the other; each ends a wait, and so may the kernel.
        for _ in 0..REST_TURNS_MAX {
            runtime.turn(Some(REST)).expect("the engine goes on");
        }
        if settles(runtime) {
            return;
        }
    }
    if runtime.stats().connections_lingering >= 2 {
        runtime.turn(Some(LINGER)).expect("the engine goes on");
        if settles(runtime) {
            return;
        }
    }
    let stats = runtime.stats();
    panic!(
        "{} operations, {} blocks, {} timers and {} dropped connections are never let go of",
        stats.operations_in_flight,
        stats.pool_blocks_leased,
        stats.timers_pending,
        stats.connections_lingering
    );
}

fn settles(runtime: &Runtime) -> bool {
    for _ in 0..SETTLE_TURNS_MAX {
        runtime.turn(Some(Duration::ZERO)).expect("the engine goes on");
        let stats = runtime.stats();
        // The doorbell stays.
        if stats.operations_in_flight <= 1
            && stats.pool_blocks_leased == 0
            && stats.timers_pending == 0
            && stats.connections_lingering == 0
        {
            return true;
        }
    }
    false
}

/// Descriptors that are open.
pub(crate) fn descriptors() -> BTreeSet<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return BTreeSet::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut numbers: Vec<RawFd> = names.filter_map(|name| name.parse().ok()).collect();
    // The last one is that of the directory, which has closed by now.
    numbers.retain(|&number| rustix::fs::readlink(format!("/proc/self/fd/{number}"), []).is_ok());
    numbers.into_iter().collect()
}

/// Has panics of runs kept in place of printed. A second one in a run may be that of a destructor, which
/// ends the process before anybody has printed the first: both are told at once, and of which run they are.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            PANICS.with_borrow_mut(|panics| {
                panics.push(panic.to_string());
                if panics.len() > 1 {
                    LABEL.with_borrow(|label| eprintln!("{label}: {}", panics.join("\nthen ")));
                }
            });
        }));
    });
}

/// Bodies of scenarios.
pub(crate) type Body = std::pin::Pin<Box<dyn Future<Output = ()>>>;
