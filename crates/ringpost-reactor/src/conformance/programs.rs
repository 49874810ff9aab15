//! Programs that nobody wrote: requests, cancels and what far ends do, by chance, within the caller's part
//! of the contract. The referee looks on, and at the end everything that was written must arrive and
//! everything that was taken must be read. Recorded on a real kernel, the simulation must admit them.

use super::bench::{Bench, Shape};
use super::conformance;
use super::subjects::Subject;
use super::trace::{Ask, Line};
use crate::engine::Token;

conformance! {
    every:
        by_chance [FEW]
        by_chance_with_plenty;
    plain: ;
}

/// So few blocks that they run out.
pub(super) const FEW: Shape =
    Shape { blocks: 4, block_bytes: 8192, queue_max: 64, provided: 2, spare: 0 };

/// Programs for each engine, and steps of each.
const PROGRAMS: u64 = 12;
const STEPS: u32 = 120;

/// Numbers that follow from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        usize::try_from((self.0 >> 33) % n).unwrap()
    }

    fn len(&mut self) -> usize {
        match self.below(8) {
            0 => 1,
            1 => 8192,
            2 => self.below(90_000),
            _ => self.below(3000),
        }
    }
}

/// What is under way for a pair.
#[derive(Debug, Default)]
struct Work {
    line: Line,
    input: Option<Token>,
    output: Option<Token>,
    hangup: Option<Token>,
    far_shut: bool,
    far_closed: bool,
    near_shut: bool,
}

impl Work {
    /// Forgets what has ended.
    fn look<S: Subject>(&mut self, bench: &Bench<S>) {
        for token in [&mut self.input, &mut self.output, &mut self.hangup] {
            token.take_if(|token| !bench.referee().is_live(*token));
        }
    }
}

fn ask_output(chance: &mut Chance) -> Ask {
    let silent = chance.below(2) == 0;
    match chance.below(4) {
        0 => Ask::Writable,
        1 => {
            let count = [1, 2, 5, 128][chance.below(4)];
            Ask::SendParts { lens: (0..count).map(|_| chance.below(600)).collect(), silent }
        }
        _ => Ask::Send { len: chance.len(), silent },
    }
}

fn step<S: Subject>(bench: &mut Bench<S>, works: &mut Vec<Work>, chance: &mut Chance) {
    if works.is_empty() || works.len() < 4 && chance.below(20) == 0 {
        works.push(Work { line: bench.pair(), ..Work::default() });
    }
    let chosen = chance.below(works.len() as u64);
    let work = &mut works[chosen];
    work.look(bench);
    let line = work.line;
    match chance.below(16) {
        0..3 if !work.far_shut => drop(bench.write(line, chance.len())),
        3..5 if !work.far_closed => drop(bench.read(line, chance.len())),
        5..7 if work.input.is_none() => {
            let ask = if chance.below(4) == 0 { Ask::Readable } else { Ask::Receive };
            work.input = bench.push(line, ask);
        }
        7..9 if work.output.is_none() => {
            work.output = bench.push(line, ask_output(chance));
        }
        9 if work.hangup.is_none() => work.hangup = bench.push(line, Ask::Hangup),
        10 => {
            let all = [work.input, work.output, work.hangup];
            if let Some(target) = all[chance.below(3)] {
                // What is silent ends within its enter, and staged before it is not looked at.
                bench.push(line, Ask::Cancel(target));
            }
        }
        11 => drop(bench.provide()),
        12 => match chance.below(12) {
            0 if !work.far_shut && work.output.is_none() => {
                bench.far_shut(line);
                work.far_shut = true;
            }
            1 if !work.far_closed => {
                bench.far_close(line);
                work.far_shut = true;
                work.far_closed = true;
            }
            2 if !work.near_shut => {
                bench.near_shut(line);
                work.near_shut = true;
            }
            _ => {}
        },
        _ => bench.enter(),
    }
}

pub(super) fn play<S: Subject>(bench: &mut Bench<S>, seed: u64) {
    let mut chance = Chance(seed);
    let mut works = Vec::new();
    for _ in 0..STEPS {
        step(bench, &mut works, &mut chance);
    }
    // Everything that was written arrives.
    bench.perform();
    bench.provide_all();
    for work in &mut works {
        work.look(bench);
        if let Some(input) = work.input {
            bench.cancel(input);
            bench.end(input);
        }
        let mut receive = None;
        while bench.referee().delivered(work.line) < bench.referee().written(work.line) {
            let token = *receive.get_or_insert_with(|| bench.receive(work.line));
            if !bench.next(token).more {
                receive = None;
            }
            bench.provide_all();
        }
    }
    bench.finish();
}

fn all<S: Subject>(bench: &Bench<S>) {
    let shape = bench.shape();
    let first = bench.round() * PROGRAMS;
    for seed in first..first + PROGRAMS {
        let mut bench = Bench::<S>::new(shape, seed).expect("there was one before");
        play(&mut bench, seed);
    }
}

fn by_chance<S: Subject>(bench: &mut Bench<S>) {
    all(bench);
}

fn by_chance_with_plenty<S: Subject>(bench: &mut Bench<S>) {
    all(bench);
}
