//! What must hold between the op table, the engine and a simulated ring after every turn.

use super::{NOT_HELD, Uring};
use crate::engine::{Completion, Token};
use crate::pool::BlockId;
use crate::sim::SimulatedRing;

impl Uring<SimulatedRing> {
    /// Checks that the op table holds what is in flight here, and nothing else. `known` says whether it
    /// has an operation, `expected` are those it has, and whether each is a silent send.
    pub(crate) fn check(
        &mut self,
        mut known: impl FnMut(Token) -> bool,
        expected: impl Iterator<Item = (Token, bool)>,
    ) {
        if self.ring.world().has_failed() {
            return;
        }
        let world = |engine: &Self, what: &'static str, token: Token, message: &str| {
            engine.ring.world().note(what, token, 0);
            engine.ring.world().fail(message);
        };
        let by_hand = self.direct.held.iter().map(|(token, _)| *token);
        let by_hand = by_hand.chain(self.direct.sends.iter().map(|(token, _)| *token));
        let by_hand: Vec<_> = by_hand.chain(self.rooms.unarmed()).collect();
        for token in self.ring.live().chain(by_hand.iter().copied()) {
            if !known(token) {
                let what = "an operation was let go of while the engine has it";
                world(self, "freed early", token, what);
            }
        }
        for (token, silent) in expected {
            let ended = self.completions.iter().any(|done| !done.more && done.token == token);
            if !silent && !ended && !self.ring.is_live(token) && !by_hand.contains(&token) {
                let what = "an operation is waited for that the engine does not have";
                world(self, "never ends", token, what);
            }
        }
        self.check_watches();
        self.check_blocks();
    }

    /// Checks that who is watched receives through the ring, and that every watch ends (invariant L1 of watches.rs).
    fn check_watches(&self) {
        let world = self.ring.world();
        let armed = |receive| self.direct.armed.iter().any(|(armed, _)| armed == receive);
        if !self.watches.receives().all(armed) {
            world.fail("a socket is watched whose receive is not in the ring");
        }
        for name in self.ring.watches() {
            if !self.watches.knows(name) {
                world.note("watched", Token(name), 0);
                world.fail("a socket is watched for ever");
            }
        }
    }

    /// What is still to be reaped.
    pub(crate) fn completions(&self) -> &[Completion] {
        &self.completions
    }

    /// Checks that engine and ring agree about each block.
    fn check_blocks(&mut self) {
        let held = self.written.iter().filter(|written| **written != NOT_HELD).count();
        if held != self.in_ring {
            self.ring.world().fail("blocks in the ring are counted wrong");
        }
        for index in 0..self.written.len() {
            let Ok(block) = BlockId::try_from(index) else { return };
            let written = self.ring.written(block);
            let named = self.ring.names(block);
            let agree = match (self.written[index], written) {
                (NOT_HELD, None) => true,
                (NOT_HELD, Some(_)) => false,
                (_, None) => named,
                (counted, Some(written)) => counted == written || named,
            };
            if !agree {
                let block = i64::from(block);
                self.ring.world().note("block", Token(u64::MAX), block);
                self.ring.world().fail("the engine and the kernel disagree about a block");
            }
        }
    }
}
