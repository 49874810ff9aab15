//! One run of a scenario, and what must hold at its end.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use ringpost::Runtime;
use ringpost::sim::{Choices, Fault, Rates, Seeded, Simulation};

use crate::rig::Rig;
use crate::scenarios::Scenario;
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
const STUCK: Duration = Duration::from_secs(30);
const LINGER: Duration = Duration::from_secs(60);

thread_local! {
    /// Panics of this thread's run, and where they were.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs a scenario with the choices of a seed, which are others at each seam.
pub fn run_seed(scenario: &Scenario, seam: Seam, seed: u64) -> Outcome {
    fastrand::seed(seed);
    let name = scenario.name.bytes().chain(seam.suffix().bytes());
    let name = name.fold(0_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    run(scenario, seam, Box::new(Seeded::new(seed ^ name << 32)))
}

/// Runs a scenario with these choices, on this thread alone.
pub fn run(scenario: &Scenario, seam: Seam, mut choices: Box<dyn Choices>) -> Outcome {
    keep_panics();
    PANICS.take();
    let (machine, rates) = seam.choose(&mut choices);
    let described = format!("{machine:?}");
    let simulation = Simulation::new(choices, machine);
    let descriptors = descriptors();
    let ended = catch_unwind(AssertUnwindSafe(|| play(scenario, &simulation, rates)));
    let mut panics = PANICS.take();
    if ended.is_ok() && panics.is_empty() {
        if simulation.operations_left() > 0 {
            panics.push(format!("{} operations are left", simulation.operations_left()));
        }
        let now = self::descriptors();
        if now != descriptors {
            panics.push(format!("{descriptors} descriptors became {now}"));
        }
    }
    let failure = panics.into_iter().next().map(|message| Failure {
        message,
        machine: described,
        trace: simulation.trace(),
    });
    Outcome { faults: simulation.faults(), enters: simulation.enters(), failure }
}

fn play(scenario: &Scenario, simulation: &Simulation, rates: Rates) {
    let bound = |place: usize| [256 << 10, 1, 1000, 20_000][place];
    let below = |n| simulation.below(n) as usize;
    let outbound_bytes_max = bound(below(4));
    let runtime = Runtime::builder()
        .outbound_bytes_max(outbound_bytes_max)
        .inbound_bytes_max(bound(below(4)))
        .accept_queue_max([1024, 1, 2, 4][below(4)])
        .linger(LINGER)
        .build_simulated(simulation)
        .expect("a runtime");
    simulation.set_rates(rates.clone());
    let rig = Rig::new(simulation.clone(), rates, outbound_bytes_max);
    let start = simulation.now();
    runtime.block_on((scenario.body)(rig.clone()));
    let took = simulation.now() - start;
    assert!(took < rig.slept() + STUCK, "something was stuck for {took:?}");
    simulation.set_rates(Rates::NONE);
    if scenario.settles {
        settle(&runtime);
    }
}

/// Without faults, everything comes to an end: of what the scenario had, nothing is left.
pub(crate) fn settle(runtime: &Runtime) {
    for _ in 0..SETTLE_TURNS_MAX {
        runtime.turn(Some(Duration::ZERO)).expect("the engine goes on");
        let stats = runtime.stats();
        // The doorbell stays.
        if stats.operations_in_flight <= 1 && stats.pool_blocks_leased == 0 {
            return;
        }
    }
    let stats = runtime.stats();
    panic!(
        "{} operations and {} blocks are never given back",
        stats.operations_in_flight, stats.pool_blocks_leased
    );
}

pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Has panics of runs kept in place of printed.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
        }));
    });
}

/// Bodies of scenarios.
pub(crate) type Body = std::pin::Pin<Box<dyn Future<Output = ()>>>;
