//! The simulated kernel admits what real kernels do.
//!
//! A recorded trace is played to the simulation: what was asked for is asked for again, on sockets of the
//! same kind, and at each enter the simulation, whose decisions are steered by what is recorded, must
//! complete exactly that. There is an acceptor for the contract, too (the [referee](super::referee)), and
//! all engines' traces satisfy it; but a simulation that keeps a contract could still be one that never
//! does what the kernel does. What is shown here is the stronger half: there is a sequence of
//! [`Choices`] with which it does *this*. Both together say that the real behaviour lies within the
//! simulated one, and the simulated one within the contract.
//!
//! What counts as the same: for each enter, what became of each operation, in its order: results, blocks,
//! offsets, lengths, `last`, and what was left staged; and what the far ends read and wrote. Completions of
//! *different* operations within one enter may change places, as the contract gives them no order.
//! Only the faults named in [`NEEDED`] are used for it: what else the simulation does is harsher than
//! the kernel has been here.
//!
//! Not covered: spinning, where the io_uring engine itself receives by hand.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use super::bench::{Bench, Shape};
use super::skip;
use super::subjects::Subject;
use super::subjects::simulated::{built, machine};
use super::trace::{self, Ask, Event};
use crate::engine::Token;
use crate::pool::Pool;
use crate::sim::{Choices, Fault, Machine, Rates, Sim, Simulation};

/// The faults with which everything recorded is admitted.
const NEEDED: &[Fault] = &[
    Fault::QueueRefused,
    Fault::PartialEnter,
    Fault::EnterInterrupted,
    Fault::Held,
    Fault::AtOnce,
    Fault::Shuffled,
    Fault::InARow,
    Fault::ShortReceive,
    Fault::ShortSend,
    Fault::SendEnds,
    Fault::ReceiveEnds,
    Fault::AcceptEnds,
    Fault::BlockFinished,
    Fault::BlockEmpty,
    Fault::CancelRace,
];

/// Questions of one enter: beyond them the simulation runs in a circle.
const QUESTIONS_MAX: usize = 100_000;

/// What is recorded of the present step.
#[derive(Debug, Default)]
struct Plan {
    /// Completions of this enter that are still to come.
    expected: Vec<(usize, Event)>,
    /// The one that each operation was let go on for.
    present: BTreeMap<u64, (usize, Event)>,
    /// Operations in the order in which they were asked about last, and their places in what is recorded.
    asked: Vec<usize>,
    /// The next numbers are an order for the operations of a round.
    shuffle: bool,
    /// The push was refused.
    refused: bool,
    /// Requests that the enter leaves staged.
    left: usize,
    /// Answers to the next questions for a number.
    answers: VecDeque<Answer>,
    questions: usize,
    /// Sends that wait for room; these take what fits also if nothing is told of them.
    sends: BTreeSet<u64>,
    cancels: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Exactly(usize),
    /// So much less than the bound.
    Less(usize),
}

thread_local! {
    static PLAN: Rc<RefCell<Plan>> = Rc::default();
}

/// Answers as the recorded completions demand.
#[derive(Debug)]
struct Guide {
    plan: Rc<RefCell<Plan>>,
}

impl Choices for Guide {
    fn below(&mut self, n: u32) -> u32 {
        let mut plan = self.plan.borrow_mut();
        if std::mem::take(&mut plan.shuffle) {
            plan.put_in_order(n as usize);
        }
        let number = match plan.answers.pop_front() {
            Some(Answer::Exactly(number)) => u32::try_from(number).unwrap_or(u32::MAX),
            Some(Answer::Less(less)) => n.saturating_sub(u32::try_from(less).unwrap_or(n)),
            // As many rounds as there may be.
            None => u32::MAX,
        };
        number.min(n.saturating_sub(1))
    }

    fn happens(&mut self, fault: Fault, operation: u64, _rate: u32) -> bool {
        self.plan.borrow_mut().happens(fault, Token(operation))
    }
}

impl Plan {
    /// Lets an operation go on for its next completion in this enter; false if there is none.
    fn let_go_on(&mut self, operation: Token) -> bool {
        let Some(index) = self.expected.iter().position(|(_, event)| is_of(event, operation))
        else {
            self.present.remove(&operation.0);
            return false;
        };
        let next = if goes_on(&self.expected[index].1) {
            self.expected.remove(index)
        } else {
            self.expected[index].clone()
        };
        self.present.insert(operation.0, next);
        true
    }

    /// True if, of what goes on, this operation is the next.
    fn is_next(&self, operation: Token) -> bool {
        let its = self.expected.iter().position(|(_, event)| is_of(event, operation));
        let other = |(_, event): &(usize, Event)| goes_on(event) && !is_of(event, operation);
        let other = self.expected.iter().position(other).unwrap_or(usize::MAX);
        let itself = |its: usize| !is_cancelled(&self.expected[its].1);
        its.is_some_and(|its| its < other && itself(its))
    }

    /// Answers such that the last `count` operations asked about go on in the order of what is recorded.
    fn put_in_order(&mut self, count: usize) {
        let mut places = self.asked.split_off(self.asked.len().saturating_sub(count));
        let mut wanted = places.clone();
        wanted.sort_unstable();
        for last in (1..places.len()).rev() {
            let from =
                places[..=last].iter().position(|&place| place == wanted[last]).unwrap_or(last);
            self.answers.push_back(Answer::Exactly(last - from));
            places.swap(last, from);
        }
    }

    fn happens(&mut self, fault: Fault, operation: Token) -> bool {
        use Answer::{Exactly, Less};
        self.questions += 1;
        if fault == Fault::CancelRace {
            self.let_go_on(operation);
        }
        if let Fault::AtOnce | Fault::InARow = fault {
            return self.is_next(operation) && self.let_go_on(operation);
        }
        let waits_for_room = self.sends.contains(&operation.0);
        if fault == Fault::Held && (self.let_go_on(operation) || waits_for_room) {
            let place = self.present.get(&operation.0).map_or(usize::MAX, |(place, _)| *place);
            self.asked.push(place);
            return false;
        }
        let (result, more, range) = match self.present.get(&operation.0) {
            Some(&(_, Event::Done { result, more, range, .. })) => (Some(result), more, range),
            _ => (None, true, None),
        };
        // A length is asked for in two steps: of which kind it is, and which.
        let mut length = |len: usize| {
            self.answers.extend([Exactly(3), Exactly(len - 1)]);
            true
        };
        match fault {
            Fault::QueueRefused => self.refused,
            Fault::CancelRace => self.cancels.contains(&operation.0) && result == Some(0),
            Fault::Shuffled => {
                self.shuffle = true;
                true
            }
            Fault::PartialEnter => {
                let left = self.left;
                self.answers.extend((left > 0).then_some(Less(left)));
                left > 0
            }
            Fault::EnterInterrupted => self.expected.is_empty() || self.questions > QUESTIONS_MAX,
            Fault::Held => {
                self.answers.push_back(Exactly(0));
                true
            }
            Fault::ShortSend if result.is_none() => {
                // All but a byte, at most.
                self.answers.extend([Exactly(3), Less(2)]);
                true
            }
            Fault::ShortReceive => range.is_some_and(|range| length(range.len.max(1) as usize)),
            Fault::SendEnds => result.is_some(),
            Fault::ReceiveEnds | Fault::AcceptEnds => !more,
            Fault::BlockFinished => range.is_some_and(|range| range.last),
            Fault::BlockEmpty => range.is_some_and(|range| range.len == 0),
            _ => false,
        }
    }
}

/// The simulation, guided by the plan of this thread.
struct Guided<const SHARED: bool>;

impl<const SHARED: bool> Subject for Guided<SHARED> {
    type Engine = Sim;
    const NAME: &'static str = "guided simulation";
    const SHARED: bool = SHARED;
    const REAL: bool = false;

    fn build(shape: Shape, _round: u64) -> Result<(Sim, Pool), String> {
        let guide = Guide { plan: PLAN.with(Rc::clone) };
        let machine = Machine { faults_max: u32::MAX, ..machine(shape, SHARED) };
        let simulation = Simulation::new(guide, machine);
        let mut rates = Rates::NONE;
        NEEDED.iter().for_each(|&fault| rates.set(fault, 128));
        simulation.set_rates(rates);
        built(&simulation)
    }
}

/// Plays a trace to the guided simulation; the error says where they part.
fn admit(events: &[Event]) -> Result<(), String> {
    match events.first() {
        Some(Event::Pool { shared: true, .. }) => admit_with::<true>(events),
        Some(Event::Pool { .. }) => admit_with::<false>(events),
        _ => Err("a trace begins with the pool".into()),
    }
}

fn admit_with<const SHARED: bool>(events: &[Event]) -> Result<(), String> {
    let Some(&Event::Pool { blocks, block_bytes, .. }) = events.first() else { return Ok(()) };
    let shape = Shape { blocks, block_bytes, queue_max: 1 << 20, provided: 0, spare: 0 };
    let plan = PLAN.with(Rc::clone);
    *plan.borrow_mut() = Plan::default();
    let mut bench = Bench::<Guided<SHARED>>::new(shape, 0)?;
    let mut clients = Vec::new();
    let mut index = 1;
    while let Some(event) = events.get(index) {
        let mark = bench.trace.len();
        // A step is an input and what it told.
        let outputs = events[index + 1..].iter().take_while(|event| is_output(event));
        let step = &events[index..=index + outputs.count()];
        let Plan { mut sends, mut cancels, .. } = plan.take();
        if let Event::Push { token, ask, .. } = event {
            if ask.offers().is_some() && !ask.is_silent() {
                sends.insert(token.0);
            }
            if let Ask::Cancel(_) = ask {
                cancels.insert(token.0);
            }
        }
        *plan.borrow_mut() = Plan {
            sends,
            cancels,
            expected: step
                .iter()
                .filter(|event| matches!(event, Event::Done { .. }))
                .cloned()
                .enumerate()
                .collect(),
            refused: step.contains(&Event::Full),
            left: match step.last() {
                Some(Event::Staged(left)) => *left,
                _ => 0,
            },
            ..Plan::default()
        };
        match event {
            Event::Pair(_) => drop(bench.pair()),
            Event::Listener(_) => drop(bench.listener()),
            Event::Bell(_) => drop(bench.bell()),
            Event::Write(line, len) => drop(bench.write(*line, *len)),
            Event::Read(line, len) => drop(bench.read(*line, *len)),
            Event::FarShut(line) => bench.far_shut(*line),
            Event::FarClose(line) => bench.far_close(*line),
            Event::NearShut(line) => bench.near_shut(*line),
            Event::Connect(line) => clients.push(bench.connect(*line)),
            Event::Ring(line) => bench.ring(*line),
            Event::Provide(_) => drop(bench.provide()),
            Event::Push { line, ask, .. } => drop(bench.push(*line, ask.clone())),
            Event::Enter { wait } => bench.enter_guided(*wait),
            Event::Surrender(_) => bench.surrender(),
            _ => return Err(format!("line {}: {event}: told by nobody", index + 1)),
        }
        let (played, recorded) = (canonical(&bench.trace[mark..]), canonical(step));
        if played != recorded {
            return Err(format!(
                "{}line {}: recorded was\n{}and the simulation told\n{}",
                trace::write(&events[..index]),
                index + 1,
                trace::write(&recorded),
                trace::write(&played)
            ));
        }
        index += step.len();
    }
    Ok(())
}

fn is_of(event: &Event, operation: Token) -> bool {
    matches!(event, Event::Done { token, .. } if *token == operation)
}

fn is_cancelled(event: &Event) -> bool {
    matches!(event, Event::Done { result, .. } if *result == -libc::ECANCELED)
}

fn goes_on(event: &Event) -> bool {
    matches!(event, Event::Done { more: true, .. })
}

fn is_output(event: &Event) -> bool {
    matches!(event, Event::Full | Event::Done { .. } | Event::Staged(_))
}

/// Completions by operation, each in its order; surrendered blocks by number.
fn canonical(step: &[Event]) -> Vec<Event> {
    let mut step = step.to_vec();
    step.sort_by_key(|event| match event {
        Event::Done { token, .. } => (1, token.0),
        Event::Staged(_) => (2, 0),
        _ => (0, 0),
    });
    for event in &mut step {
        if let Event::Surrender(blocks) = event {
            blocks.sort_unstable();
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use super::super::programs::{self, FEW};
    use super::super::recorded::{COMMITTED, record, scenarios};
    use super::super::subjects::{OnEpoll, UringPlain, UringShared};
    use super::*;

    #[track_caller]
    fn is_admitted(name: &str, events: &[Event]) {
        if let Err(error) = admit(events) {
            panic!("{name} is not admitted: {error}");
        }
    }

    #[test]
    fn committed_traces_are_admitted() {
        for (name, text) in COMMITTED {
            is_admitted(name, &trace::read(text).unwrap());
        }
    }

    fn this_kernel<S: Subject>() {
        for scenario in scenarios::<S>() {
            let name = scenario.0;
            if let Some(events) = record(scenario) {
                is_admitted(&format!("{name} on {}", S::NAME), &events);
            }
        }
    }

    /// What the kernel did not do is not admitted: each line that was told, told otherwise.
    #[test]
    fn changed_traces_are_not_admitted() {
        for (name, text) in COMMITTED {
            let events = trace::read(text).unwrap();
            let told = events.iter().enumerate().filter(|(_, event)| is_output(event));
            // Every seventh: each is a run of its own.
            for (index, event) in told.step_by(7) {
                let mut changed = events.clone();
                match &mut changed[index] {
                    Event::Done { result, range: Some(range), .. } => {
                        *result += 1;
                        range.len += 1;
                    }
                    Event::Done { result, .. } => *result -= 1,
                    Event::Staged(count) => *count += 99,
                    _ => continue,
                }
                assert!(admit(&changed).is_err(), "{name}: {event} became {}", changed[index]);
            }
        }
    }

    fn programs<S: Subject>() {
        for shape in [Shape::default(), FEW] {
            for seed in 0..60 {
                let Ok(mut bench) = Bench::<S>::new(shape, 0) else {
                    skip(&format!("programs: {} can't be had here", S::NAME));
                    return;
                };
                programs::play(&mut bench, seed);
                let events = std::mem::take(&mut bench.trace);
                is_admitted(&format!("program {seed} on {}", S::NAME), &events);
            }
        }
    }

    #[test]
    fn programs_on_epoll_are_admitted() {
        programs::<OnEpoll>();
    }

    #[test]
    fn programs_on_uring_are_admitted() {
        programs::<UringShared>();
    }

    #[test]
    fn programs_on_uring_with_plain_blocks_are_admitted() {
        programs::<UringPlain>();
    }

    #[test]
    fn epoll_here_is_admitted() {
        this_kernel::<OnEpoll>();
    }

    #[test]
    fn uring_here_is_admitted() {
        this_kernel::<UringShared>();
    }

    #[test]
    fn uring_with_plain_blocks_here_is_admitted() {
        this_kernel::<UringPlain>();
    }
}
