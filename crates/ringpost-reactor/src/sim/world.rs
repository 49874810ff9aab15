//! What a simulation and whoever runs it share: choices, clock, faults, and what has happened.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Choices, Fault, Machine, Rates};
use crate::engine::Token;
use crate::spin::Spin;

/// A simulated kernel, as whoever runs the simulation sees it. Clones are the same one.
///
/// Everything happens on one thread, and nothing in it but [`Choices`] decides: not the time, no order of
/// addresses. Sockets are real ones, whose bytes the simulation moves when and in the lengths that it
/// chooses.
#[derive(Debug, Clone)]
pub struct Simulation {
    pub(super) world: Rc<World>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(super) clock: Rc<Cell<Instant>>,
    pub(super) state: RefCell<State>,
    /// The operation that is looked at.
    subject: Cell<u64>,
}

#[derive(Debug)]
pub(super) struct State {
    choices: Box<dyn Choices>,
    pub(super) machine: Machine,
    rates: Rates,
    faults_left: u32,
    counts: [u64; Fault::ALL.len()],
    pub(super) enters: u64,
    trace: VecDeque<Event>,
    failed: bool,
    pub(super) operations_left: usize,
    pub(super) completions_untold: usize,
    /// From this enter on the kernel refuses every one.
    refused_from: Option<u64>,
}

/// One line of the trace.
#[derive(Debug, Clone, Copy)]
struct Event {
    enter: u64,
    what: &'static str,
    token: Token,
    value: i64,
}

/// Lines of the trace that are kept.
const TRACE_MAX: usize = 120;
/// Longest time that passes by itself during an enter, microseconds.
const PASSES_US_MAX: u32 = 1000;

impl Simulation {
    /// A kernel that decides by these choices, without faults at first.
    pub fn new(choices: impl Choices + 'static, machine: Machine) -> Self {
        let state = State {
            choices: Box::new(choices),
            faults_left: machine.faults_max,
            machine,
            rates: Rates::NONE,
            counts: [0; Fault::ALL.len()],
            enters: 0,
            trace: VecDeque::with_capacity(TRACE_MAX),
            failed: false,
            operations_left: 0,
            completions_untold: 0,
            refused_from: None,
        };
        let clock = Rc::new(Cell::new(Instant::now()));
        Self { world: Rc::new(World { clock, state: RefCell::new(state), subject: Cell::new(0) }) }
    }

    /// How often faults happen from now on.
    pub fn set_rates(&self, rates: Rates) {
        self.world.state.borrow_mut().rates = rates;
    }

    /// A number below `n` from the same source that decides everything else.
    pub fn below(&self, n: u32) -> u32 {
        self.world.below(n)
    }

    /// After so many more enters the kernel refuses every one (EIO): an engine can't go on then. What is in
    /// flight stays there, and the kernel may use its memory for as long as it likes.
    pub fn refuse_after(&self, enters: u64) {
        let mut state = self.world.state.borrow_mut();
        state.refused_from = Some(state.enters + enters + 1);
    }

    /// Has the clock jump.
    pub fn advance(&self, time: Duration) {
        self.world.clock.set(self.now() + time);
    }

    /// The simulated time.
    pub fn now(&self) -> Instant {
        self.world.clock.get()
    }

    /// How the reactor is to wait.
    pub(crate) fn spin(&self) -> Spin {
        let state = self.world.state.borrow();
        state.machine.ring.as_ref().map_or(Spin::Never, |ring| ring.spin)
    }

    /// True if the io_uring engine runs on a simulated ring.
    pub(crate) fn has_ring(&self) -> bool {
        self.world.state.borrow().machine.ring.is_some()
    }

    /// Enters so far.
    pub fn enters(&self) -> u64 {
        self.world.state.borrow().enters
    }

    /// How often each fault has happened.
    pub fn faults(&self) -> Vec<(Fault, u64)> {
        let state = self.world.state.borrow();
        Fault::ALL.iter().map(|&fault| (fault, state.counts[fault as usize])).collect()
    }

    /// Operations that had not ended when the reactor went; zero before.
    pub fn operations_left(&self) -> usize {
        self.world.state.borrow().operations_left
    }

    /// Completions that the kernel still kept back when the reactor went; zero before. What they accepted is open in
    /// this process, and nobody has heard of it.
    pub fn completions_untold(&self) -> usize {
        self.world.state.borrow().completions_untold
    }

    /// The last steps, oldest first: at most 120 lines.
    pub fn trace(&self) -> Vec<String> {
        self.world.state.borrow().trace.iter().map(ToString::to_string).collect()
    }
}

impl World {
    pub(super) fn below(&self, n: u32) -> u32 {
        self.state.borrow_mut().choices.below(n)
    }

    pub(super) fn below_usize(&self, n: usize) -> usize {
        self.below(u32::try_from(n).unwrap_or(u32::MAX)) as usize
    }

    /// Faults asked about from now on would happen to this operation.
    pub(super) fn about(&self, token: Token) {
        self.subject.set(token.0);
    }

    /// Whether this fault happens now.
    pub(super) fn has(&self, fault: Fault) -> bool {
        let mut state = self.state.borrow_mut();
        let rate = u32::from(state.rates.of(fault));
        if rate == 0 || state.faults_left == 0 || state.failed {
            return false;
        }
        let happens = state.choices.happens(fault, self.subject.get(), rate);
        if happens {
            state.faults_left -= 1;
            state.counts[fault as usize] += 1;
        }
        happens
    }

    /// A fault that nobody decided on has happened.
    pub(super) fn happened(&self, fault: Fault) {
        self.state.borrow_mut().counts[fault as usize] += 1;
    }

    /// A length from one to `max`; all of it without the fault.
    pub(super) fn length(&self, fault: Fault, max: usize) -> usize {
        if max < 2 || !self.has(fault) {
            return max;
        }
        1 + match self.below(4) {
            0 => 0,
            1 => self.below_usize(max.min(16)),
            2 => max / 2 - 1,
            _ => self.below_usize(max),
        }
    }

    pub(super) fn one_of(&self, errnos: &[i32]) -> i32 {
        -errnos[self.below_usize(errnos.len())]
    }

    pub(crate) fn note(&self, what: &'static str, token: Token, value: i64) {
        let mut state = self.state.borrow_mut();
        if state.failed {
            return;
        }
        if state.trace.len() == TRACE_MAX {
            state.trace.pop_front();
        }
        let enter = state.enters;
        state.trace.push_back(Event { enter, what, token, value });
    }

    /// An enter begins: counts it, and may have time pass.
    pub(super) fn enter(&self) {
        let late = {
            let mut state = self.state.borrow_mut();
            state.enters += 1;
            state.enters > state.machine.enters_max
        };
        if late {
            self.fail("no end is in sight: the bound of enters is reached");
        }
        if self.has(Fault::TimePasses) {
            let passed = Duration::from_micros(u64::from(self.below(PASSES_US_MAX)));
            self.clock.set(self.clock.get() + passed);
        }
    }

    /// Whether enters are refused by now.
    pub(crate) fn refuses(&self) -> bool {
        let state = self.state.borrow();
        state.refused_from.is_some_and(|enter| state.enters >= enter)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.state.borrow().failed
    }

    /// Something has happened that must not: panics, the first time. From then on nothing is checked, so
    /// that what is left can be taken down.
    #[track_caller]
    pub(crate) fn fail(&self, what: &str) {
        let first = !std::mem::replace(&mut self.state.borrow_mut().failed, true);
        assert!(!first || std::thread::panicking(), "simulation: {what}");
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enter, what, token, value } = self;
        let (slot, generation) = (token.slot(), token.generation());
        write!(f, "enter {enter:>6}  {what:<16} op {slot}.{generation}  {value}")
    }
}
