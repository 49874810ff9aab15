//! A second thread that lives as long as a variant and plays the other end, one round at a time.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use super::clock::Sample;
use super::sys;

/// Which CPUs the two ends of a two-thread comparison run on.
#[derive(Clone, Debug, Default)]
pub(super) struct Placement {
    allowed: Vec<usize>,
}

impl Placement {
    /// Two CPUs, one for each end, if there are two.
    pub(super) fn new(pin: bool) -> Self {
        let allowed = if pin { sys::allowed_cpus() } else { Vec::new() };
        Self { allowed: if allowed.len() >= 2 { allowed } else { Vec::new() } }
    }

    /// Puts the calling thread to the near end.
    pub(super) fn near(&self) {
        if let Some(cpu) = self.allowed.first() {
            sys::run_on(&[*cpu]);
        }
    }

    fn far(&self) {
        if let Some(cpu) = self.allowed.get(1) {
            sys::run_on(&[*cpu]);
        }
    }

    /// Lets the calling thread run where it could at first.
    pub(super) fn anywhere(&self) {
        if !self.allowed.is_empty() {
            sys::run_on(&self.allowed);
        }
    }
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    rounds: Option<Sender<u64>>,
    samples: Receiver<Result<Sample>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread, has it `build` its state there, and waits until it has.
    pub(super) fn spawn<B, F>(placement: &Placement, build: B) -> Result<Self>
    where
        B: FnOnce() -> Result<F> + Send + 'static,
        F: FnMut(u64) -> Result<Sample>,
    {
        let (rounds, orders) = channel::<u64>();
        let (reports, samples) = channel();
        let placement = placement.clone();
        let thread = std::thread::Builder::new().name("far".into()).spawn(move || {
            placement.far();
            let mut work = match build() {
                Ok(work) => work,
                Err(error) => {
                    let _ = reports.send(Err(error));
                    return;
                }
            };
            if reports.send(Ok(Sample::NOTHING)).is_err() {
                return;
            }
            for messages in orders {
                if reports.send(work(messages)).is_err() {
                    return;
                }
            }
        })?;
        let worker = Self { rounds: Some(rounds), samples, thread: Some(thread) };
        worker.finish()?;
        Ok(worker)
    }

    /// Starts a round of `messages` messages.
    pub(super) fn start(&self, messages: u64) -> Result<()> {
        let rounds = self.rounds.as_ref().context("the worker has been told to end")?;
        rounds.send(messages).context("the worker has ended")
    }

    /// Waits for the outcome of the round.
    pub(super) fn finish(&self) -> Result<Sample> {
        self.samples.recv().context("the worker has ended")?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.rounds = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
