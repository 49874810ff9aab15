//! What a simulation checks as a reactor turns.

use std::rc::Rc;

use super::{Core, Driver};
use crate::any_engine::AnyEngine;
use crate::engine::Completion;

impl Driver {
    /// In a simulation: the engine and the op table agree, and no block is lost.
    pub(super) fn check(&mut self) {
        assert_once("to try again", self.retry.iter());
        assert_once("starved", self.starved.iter());
        assert_once("resting", self.rests.iter());
        self.packets.check();
        let Self { engine, ops, pool, .. } = self;
        match &mut **engine {
            AnyEngine::Sim(engine) => {
                pool.check();
                engine.check(|token| ops.is_current(token), ops.expected());
            }
            AnyEngine::SimulatedUring(engine) => {
                pool.check();
                engine.check(|token| ops.is_current(token), ops.expected());
            }
            AnyEngine::Uring(_) | AnyEngine::Epoll(_) => {}
        }
    }

    /// In a simulation: nobody is slept over who waits for what the end of a silent send would bring.
    pub(super) fn check_parked(&self, core: &Core) {
        let waits = self.ops.silent_sends().any(|(stream, memory)| stream.waits_for_end_of(memory));
        assert!(!waits, "the end of a silent send is waited for, and the reactor parks");
        // Those of a real kernel may have ten thousand; who has failed tells everybody.
        let goes_on = !core.closed.get() && self.failure().is_none();
        if goes_on && matches!(*self.engine, AnyEngine::Sim(_) | AnyEngine::SimulatedUring(_)) {
            core.streams.borrow().check(core, self);
            core.packet_sockets.borrow().check(core, self);
        }
    }

    /// In a simulation: no silent send is taken for whole whose end is still with the engine.
    pub(super) fn check_told(&self) {
        let Self { engine, ops, .. } = self;
        let cut = |done: &Completion| ops.is_silent(done.token);
        let cut = match &**engine {
            AnyEngine::Sim(engine) => engine.completions().iter().any(cut),
            AnyEngine::SimulatedUring(engine) => engine.completions().iter().any(cut),
            AnyEngine::Uring(_) | AnyEngine::Epoll(_) => false,
        };
        assert!(!cut, "a silent send that was cut short is taken for whole");
    }

    /// In a simulation: who has sent what there was is let go of at once.
    pub(super) fn check_lingering(&self) {
        let streams = self.lingering.iter().filter(|stream| stream.is_drained()).count();
        let packets = self.packets.lingering_drained();
        assert_eq!((streams, packets), (0, 0), "dropped sockets that have sent everything linger");
    }

    /// In a simulation: beyond its bound a stream receives only what comes before its receive is cancelled, which
    /// takes some turns on a kernel that takes nothing from the queue.
    pub(crate) fn check_inbound(&self, inbound_bytes: usize, inbound_bytes_max: usize) {
        const TURNS_MAX: usize = 8;
        if matches!(*self.engine, AnyEngine::Sim(_) | AnyEngine::SimulatedUring(_)) {
            let pool_bytes = self.pool.blocks() * self.pool.shared().block_bytes() as usize;
            assert!(
                inbound_bytes < inbound_bytes_max + TURNS_MAX * pool_bytes,
                "{inbound_bytes} bytes wait for a reader, the bound is {inbound_bytes_max}"
            );
        }
    }
}

/// Nothing waits twice for the same: each time round it would wait twice as often.
pub(crate) fn assert_once<'a, T: 'a>(what: &str, waiting: impl Iterator<Item = &'a Rc<T>>) {
    let mut seen = std::collections::HashSet::new();
    for one in waiting {
        assert!(seen.insert(Rc::as_ptr(one)), "a socket is in the list twice: {what}");
    }
}
