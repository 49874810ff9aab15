//! A simulated kernel: one thread, no clock, and every decision taken by [`Choices`].
//!
//! It is there to find out what a reactor does if the kernel does what it seldom does, and it can be put
//! in at two seams:
//!
//! * as a third engine, `Sim`, in the place of io_uring and epoll: all requests and completions, and
//!   faults that some engine may have;
//! * as a ring, `SimulatedRing`, under the io_uring engine: its entries, its buffer ring and its flags, as
//!   the kernel reads and writes them ([`Machine::with_ring`]).
//!
//! It moves real bytes between real sockets of this process, so that shutdown(2), and calls that others
//! make by hand, mean what they always do; *when* and *how much* is decided here.
//!
//! # What is checked here
//!
//! * Memory of a send is what it was when it was pushed, whenever it is looked at.
//! * The unwritten part of a block changes all the time, and all of it when it is handed over: who looks
//!   at it too early or too late finds something else.
//! * The op table and the engine agree about what is in flight, after every turn.
//! * A wait that nothing can end is an error and not a wait.
//!
//! # Invariants
//!
//! * **X1** Memory and descriptors named by a staged or pending request are owned by the caller's op
//!   slot until its terminal completion (contract of `Engine::push`).
//! * **X2** A block in `blocks` is the engine's; bytes behind `written` have not been delivered, so no
//!   lease covers them.

mod choices;
mod entry;
mod faults;
mod group;
mod kernel;
mod ring;
#[cfg(test)]
mod ring_tests;
mod world;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

pub use self::choices::{Choices, FromBytes, Odometer, Seeded};
pub use self::faults::{Fault, Machine, Rates, RingMachine};
use self::kernel::{Flight, Kernel, Seam};
pub(crate) use self::ring::SimulatedRing;
pub use self::world::Simulation;
use self::world::World;
use crate::capabilities::{Capabilities, Support};
use crate::clock::Clock;
use crate::config::BuildError;
use crate::engine::{
    Completion, Engine, EngineError, QueueFull, Received, Request, Token, hand_over,
};
use crate::memory::shadow::{EngineRuns, Writable};
use crate::pool::{BlockId, Pool, PoolShared};
use crate::wake::Inbox;

/// Ended operations that are remembered, to be named again.
const ENDED_KEPT_MAX: usize = 16;
/// Bytes behind the written part of a block that change at every enter.
const SCRIBBLE_BYTES: usize = 128;

/// A block to receive into (X2).
struct Block {
    id: BlockId,
    written: u32,
}

/// The simulated engine. See the module documentation.
pub(crate) struct Sim {
    kernel: Kernel<Blocks>,
    staged: VecDeque<Flight>,
}

/// What the engine has of its own.
struct Blocks {
    pool: Arc<PoolShared>,
    shares_blocks: bool,
    blocks: Vec<Block>,
    completions: Vec<Completion>,
    live: Live,
    pattern: u8,
}

/// Operations that were pushed and whose end has not been taken, and some whose end was.
#[derive(Debug, Default)]
struct Live {
    tokens: BTreeSet<u64>,
    ended: VecDeque<Token>,
}

impl Live {
    fn start(&mut self, token: Token, world: &World) {
        if !self.tokens.insert(token.0) {
            world.fail("an operation was started twice");
        }
    }

    fn sent_silently(&mut self, token: Token) {
        self.tokens.remove(&token.0);
    }

    fn end(&mut self, token: Token) {
        if self.tokens.remove(&token.0) {
            if self.ended.len() == ENDED_KEPT_MAX {
                self.ended.pop_front();
            }
            self.ended.push_back(token);
        }
    }

    fn any_ended(&self, world: &World) -> Option<Token> {
        if self.ended.is_empty() {
            return None;
        }
        Some(self.ended[world.below_usize(self.ended.len())])
    }
}

impl Simulation {
    pub(crate) fn clock(&self) -> Clock {
        Clock::simulated(Rc::clone(&self.world.clock))
    }

    pub(crate) fn pool(&self, inbox: &Arc<Inbox>) -> Result<Pool, BuildError> {
        let state = self.world.state.borrow();
        Pool::new(state.machine.blocks, state.machine.block_bytes, Arc::clone(inbox))
            .map_err(BuildError::resource("the receive pool"))
    }

    pub(crate) fn engine(&self, pool: &Pool) -> Sim {
        let blocks = Blocks {
            pool: Arc::clone(pool.shared()),
            shares_blocks: self.world.state.borrow().machine.shares_blocks,
            blocks: Vec::new(),
            completions: Vec::new(),
            live: Live::default(),
            pattern: 0,
        };
        Sim { kernel: Kernel::new(Rc::clone(&self.world), blocks), staged: VecDeque::new() }
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let state = self.world.state.borrow();
        let support = |on| if on { Support::Yes } else { Support::No("simulated".into()) };
        Capabilities {
            incremental: support(state.machine.shares_blocks),
            silent_sends: support(state.machine.silent_sends),
            end_of_file: support(state.machine.end_of_file),
            registered_ring: Support::Yes,
        }
    }
}

impl Sim {
    pub(crate) fn shares_blocks(&self) -> bool {
        self.kernel.seam.shares_blocks
    }

    /// What is still to be reaped.
    pub(crate) fn completions(&self) -> &[Completion] {
        &self.kernel.seam.completions
    }

    /// Checks that the op table holds what is in flight here, and nothing else. `known` says whether it
    /// has an operation, `expected` are those it has, and whether each is a silent send.
    pub(crate) fn check(
        &self,
        mut known: impl FnMut(Token) -> bool,
        expected: impl Iterator<Item = (Token, bool)>,
    ) {
        let world = &self.kernel.world;
        let live = &self.kernel.seam.live.tokens;
        if world.has_failed() {
            return;
        }
        for &token in live {
            if !known(Token(token)) {
                world.note("freed early", Token(token), 0);
                world.fail("an operation was let go of while the engine has it");
            }
        }
        for (token, silent) in expected {
            if !silent && !live.contains(&token.0) {
                world.note("never ends", token, 0);
                world.fail("an operation is waited for that the engine does not have");
            }
        }
    }
}

impl Blocks {
    fn room_bytes(&self, index: usize) -> usize {
        (self.pool.block_bytes() - self.blocks[index].written) as usize
    }

    /// Writes something else to memory that nobody may look at.
    fn scribble(&mut self, index: usize, len: usize) {
        self.pattern = self.pattern.wrapping_mul(5).wrapping_add(0x3B);
        let pattern = self.pattern;
        let len = len.min(self.room_bytes(index));
        self.room(index, len).fill(MaybeUninit::new(pattern));
    }
}

impl Seam for Blocks {
    type Place = Received;
    const TRIES_AT_ONCE: bool = false;
    const POLLS_TELL_SHUTDOWNS: bool = false;

    fn choose(&mut self, world: &World) -> Option<(usize, usize)> {
        if self.blocks.is_empty() {
            return None;
        }
        let odd = self.blocks.len() > 1 && world.has(Fault::BlockOdd);
        let index = if odd { world.below_usize(self.blocks.len()) } else { 0 };
        Some((index, self.room_bytes(index)))
    }

    fn room(&mut self, index: usize, len: usize) -> Writable<'_> {
        let Block { id, written } = self.blocks[index];
        let start = self.pool.offset_of(id) + written as usize;
        // SAFETY: the block is this engine's, and nothing behind `written` has been delivered (X2).
        unsafe { self.pool.region().writable(start, len) }
    }

    fn deliver(&mut self, world: &World, index: usize, len: usize) -> Received {
        let block = &mut self.blocks[index];
        let len = u32::try_from(len).unwrap_or(0);
        let offset = block.written;
        block.written += len;
        let full = block.written == self.pool.block_bytes();
        let last = full || !self.shares_blocks || world.has(Fault::BlockFinished);
        let received = Received { block: block.id, offset, len, last };
        if last {
            self.blocks.remove(index);
        }
        received
    }

    fn empty(&mut self, world: &World) -> Option<Received> {
        if self.blocks.is_empty() || !world.has(Fault::BlockEmpty) {
            return None;
        }
        let Block { id, written } = self.blocks.remove(0);
        Some(Received { block: id, offset: written, len: 0, last: true })
    }

    fn post(&mut self, token: Token, result: i32, more: bool, received: Option<Received>) {
        self.completions.push(Completion { token, result, more, received });
    }

    fn sent_silently(&mut self, token: Token) {
        self.live.sent_silently(token);
    }

    fn goes_on(&self) -> bool {
        true
    }

    fn has_completed(&self) -> bool {
        !self.completions.is_empty()
    }

    fn has_just_ended(&self, token: Token) -> bool {
        self.completions.iter().any(|done| done.token == token && !done.more)
    }

    fn repeat_old(&mut self, world: &World) {
        let Some(token) = self.live.any_ended(world) else { return };
        let received = match world.below(3) {
            1 if !self.blocks.is_empty() => {
                let Block { id, written } = self.blocks.remove(0);
                let len = self.pool.block_bytes() - written;
                Some(Received { block: id, offset: written, len, last: true })
            }
            _ => None,
        };
        let result = [0, -libc::ECANCELED, -libc::EINVAL][world.below_usize(3)];
        world.note("stale", token, result.into());
        self.completions.push(Completion { token, result, more: world.below(2) == 1, received });
    }
}

impl Engine for Sim {
    unsafe fn push(&mut self, token: Token, request: Request) -> Result<(), QueueFull> {
        let Kernel { world, seam, .. } = &mut self.kernel;
        let full = self.staged.len() >= world.state.borrow().machine.queue_max;
        if full || world.has(Fault::QueueRefused) {
            world.note("queue full", token, 0);
            return Err(QueueFull);
        }
        seam.live.start(token, world);
        // SAFETY: the caller has just promised that it is valid.
        self.staged.push_back(unsafe { Flight::new(token, request) });
        Ok(())
    }

    fn staged(&self) -> usize {
        self.staged.len()
    }

    fn enter(&mut self, wait: bool, deadline: Option<Instant>) -> Result<(), EngineError> {
        let Self { kernel, staged } = self;
        kernel.world.enter();
        if kernel.world.refuses() {
            let source = std::io::Error::from_raw_os_error(libc::EIO);
            return Err(EngineError::Fatal { call: "io_uring_enter", source });
        }
        for index in 0..kernel.seam.blocks.len() {
            kernel.seam.scribble(index, SCRIBBLE_BYTES);
        }
        let mut count = staged.len();
        if count > 0 && kernel.world.has(Fault::PartialEnter) {
            count = kernel.world.below_usize(count);
        }
        staged.drain(..count).for_each(|flight| kernel.perform(flight));
        kernel.disturb();
        kernel.let_go();
        kernel.run();
        // As with a kernel that has not taken all of the queue, there is no wait then.
        if wait && staged.is_empty() {
            kernel.wait(deadline);
        }
        Ok(())
    }

    fn reap(&mut self, batch: &mut Vec<Completion>) {
        let Blocks { completions, live, .. } = &mut self.kernel.seam;
        for done in completions.iter().filter(|done| !done.more) {
            live.end(done.token);
        }
        hand_over(completions, batch);
    }

    fn settle(&mut self) {}

    fn ready(&mut self) -> bool {
        true
    }

    fn spin(&mut self, _on: bool) {}

    fn extra_blocks(&self) -> usize {
        0
    }

    fn provide(&mut self, block: BlockId) {
        let Kernel { world, seam, .. } = &mut self.kernel;
        if seam.blocks.iter().any(|held| held.id == block) {
            world.fail("a block was provided that the engine has");
        }
        seam.blocks.push(Block { id: block, written: 0 });
        seam.scribble(seam.blocks.len() - 1, usize::MAX);
    }

    fn surrender_blocks(&mut self) -> Vec<BlockId> {
        self.kernel.seam.blocks.drain(..).map(|block| block.id).collect()
    }

    fn system_calls(&self) -> u64 {
        self.kernel.system_calls
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // A kernel that goes on with what an engine has given up on still finds the memory.
        if self.kernel.world.refuses() {
            let _runs = EngineRuns::new();
            self.kernel.compare_all(self.staged.iter());
        }
        let Kernel { world, seam, .. } = &self.kernel;
        world.state.borrow_mut().operations_left = seam.live.tokens.len();
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("live", &self.kernel.seam.live.tokens.len())
            .finish_non_exhaustive()
    }
}
