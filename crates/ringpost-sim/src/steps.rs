//! Drop at every step: of each script, each part and the runtime go at each of its steps.
//!
//! The parts of a script are futures that hold what they work with: a connection, a half, a listener, a
//! handle. They are polled here and not as tasks, so that any of them can be dropped between two turns of
//! the runtime, and so that they outlive it. A step is a poll of a part or a turn.

mod scripts;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringpost::sim::{Choices, FromBytes, Seeded};
use ringpost::{Handle, Runtime};

use crate::rig::Rig;
use crate::run::{Bounds, Failure, Stage, play};
use crate::scenarios::End;
use crate::seam::Seam;

pub use self::scripts::SCRIPTS;

/// A script.
#[expect(missing_debug_implementations, reason = "a function")]
#[non_exhaustive]
pub struct Script {
    /// What it is called.
    pub name: &'static str,
    parts: fn(&Rig) -> Vec<Part>,
    /// Its parts can be polled without a runtime.
    outlives: bool,
}

/// A part of a script.
pub(crate) struct Part {
    name: &'static str,
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    woken: Arc<Woken>,
}

struct Woken {
    woken: AtomicBool,
    /// The runtime must not wait then.
    handle: Handle,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
        self.handle.wake();
    }
}

impl Part {
    pub(crate) fn new(
        rig: &Rig,
        name: &'static str,
        future: impl Future<Output = ()> + 'static,
    ) -> Self {
        let woken = Arc::new(Woken { woken: AtomicBool::new(true), handle: rig.handle() });
        Self { name, future: Some(Box::pin(future)), woken }
    }

    fn is_ready(&self) -> bool {
        self.future.is_some() && self.woken.woken.load(Ordering::Relaxed)
    }

    /// Polls it if it was woken. True if it was.
    fn run(&mut self) -> bool {
        if !self.is_ready() {
            return false;
        }
        self.woken.woken.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&self.woken));
        let Some(future) = &mut self.future else { return false };
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.future = None;
        }
        true
    }
}

/// What goes, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Nothing,
    Part(usize),
    Runtime,
}

/// What a sweep over the steps has done.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Stepped {
    /// Scripts played.
    pub runs: u64,
    /// What went wrong, and in which run.
    pub failures: Vec<(String, Failure)>,
}

/// Polls of a part once the runtime is gone, at most: it is told at once, behind what has arrived in small pieces.
const LATE_POLLS_MAX: u32 = 5000;
/// Steps of a script, at most.
const STEPS_MAX: u32 = 20_000;

/// Plays a script, and then again for each of its steps and each part, and the runtime, that can go there:
/// on a plain kernel, or with the machine, the faults and the choices of a seed, at each seam.
pub fn step_through(script: &Script, seed: Option<u64>) -> Stepped {
    let mut stepped = Stepped::default();
    for &seam in Seam::ALL {
        step_through_at(script, seam, seed, &mut stepped);
    }
    stepped
}

fn step_through_at(script: &Script, seam: Seam, seed: Option<u64>, stepped: &mut Stepped) {
    let Some((steps, parts)) = attempt(script, seam, seed, Loss::Nothing, 0, stepped) else {
        return;
    };
    let losses = (0..parts).map(Loss::Part).chain([Loss::Runtime]);
    for loss in losses {
        for step in 0..=steps {
            if attempt(script, seam, seed, loss, step, stepped).is_none() {
                break;
            }
        }
    }
}

/// The steps that the script took, and its parts; nothing if it went wrong.
fn attempt(
    script: &Script,
    seam: Seam,
    seed: Option<u64>,
    loss: Loss,
    at: u32,
    stepped: &mut Stepped,
) -> Option<(u32, usize)> {
    fastrand::seed(1);
    let mut choices: Box<dyn Choices> = match seed {
        Some(seed) => Box::new(Seeded::new(seed)),
        None => Box::new(FromBytes::new(Vec::new())),
    };
    let (machine, rates) = seam.choose(&mut choices);
    let bytes = [20_000, 1000, 1][choices.below(3) as usize];
    let bounds =
        Bounds { outbound_bytes_max: bytes, inbound_bytes_max: bytes, accept_queue_max: 2 };
    let name = format!("{}{}", script.name, seam.suffix());
    let label = format!("script {name}, seed {seed:?}, {loss:?} at step {at}");
    let mut counts = (0, 0);
    let outcome = play(choices, machine, &label, End::Settled, |simulation| {
        let stage = Stage::new(simulation, bounds, rates);
        let parts = stage.runtime.enter(|| (script.parts)(&stage.rig));
        counts.1 = parts.len();
        counts.0 = go_through(stage, parts, loss, at, script.outlives);
    });
    stepped.runs += 1;
    if let Some(failure) = outcome.failure {
        stepped.failures.push((label, failure));
        return None;
    }
    Some(counts)
}

fn go_through(stage: Stage, mut parts: Vec<Part>, loss: Loss, at: u32, outlives: bool) -> u32 {
    let mut step = 0;
    loop {
        for index in 0..=parts.len() {
            if step == at {
                match loss {
                    Loss::Nothing => {}
                    // Outside of the runtime's scope.
                    Loss::Part(lost) => parts[lost].future = None,
                    Loss::Runtime => {
                        drop(stage);
                        if outlives {
                            end_without(parts);
                        }
                        return step;
                    }
                }
            }
            if parts.iter().all(|part| part.future.is_none()) {
                stage.check_time();
                stage.be_calm();
                stage.settle();
                return step;
            }
            match parts.get_mut(index) {
                Some(part) => {
                    if !stage.runtime.enter(|| part.run()) {
                        continue;
                    }
                }
                None => turn(&stage.runtime, &parts),
            }
            step += 1;
            assert!(step < STEPS_MAX, "no end is in sight");
        }
    }
}

fn turn(runtime: &Runtime, parts: &[Part]) {
    let ready = parts.iter().any(Part::is_ready);
    runtime.turn(ready.then_some(Duration::ZERO)).expect("the engine goes on");
}

/// The runtime is gone: every part was woken, and comes to its end without it.
fn end_without(mut parts: Vec<Part>) {
    for _ in 0..LATE_POLLS_MAX {
        for part in &mut parts {
            part.run();
        }
    }
    let left: Vec<_> =
        parts.iter().filter(|part| part.future.is_some()).map(|part| part.name).collect();
    assert!(left.is_empty(), "the runtime is gone, and {left:?} wait for ever");
}

/// Lets the others have some turns.
pub(crate) async fn pause() {
    let mut turns = 4;
    poll_fn(|context| {
        if turns == 0 {
            return Poll::Ready(());
        }
        turns -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
