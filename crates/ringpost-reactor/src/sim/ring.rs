//! A simulated ring: the io_uring engine's own code on a kernel that does what it seldom does.
//!
//! It reads the entries and the buffer ring that the engine builds, as the kernel does, and answers with
//! completion queue entries. What it does on purpose:
//!
//! * An enter that does not take everything leaves out the rest: no task work, no flush, no wait.
//! * Operations complete only in an enter with `GETEVENTS` (deferred task work); that there is something is
//!   seen in the flags before.
//! * Completions that do not fit go to an overflow list, which only such an enter flushes, and end what would
//!   otherwise go on.
//! * Errors hide behind a count: who has submitted something is told how much, and nothing else.
//! * A buffer is named with an end or an error though nothing was taken (shared buffers), and taken for
//!   nothing (others).

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::cqueue;
use io_uring::squeue::Entry;

use super::entry::decode;
use super::group::Group;
use super::kernel::{Flight, Kernel, Seam, Waited};
use super::world::World;
use super::{Fault, Live, RingMachine, Simulation};
use crate::engine::{QueueFull, Request, Token};
use crate::memory::shadow::Writable;
use crate::pool::{BlockId, Pool, PoolShared};
use crate::spin::Spin;
use crate::uring::{Completed, Ring, Setup, Uring, is_watch};

const GETEVENTS: u32 = 1;
const NO_IOWAIT: u32 = 1 << 7;

/// `IORING_CQE_F_BUFFER`.
const BUFFER: u32 = 1;
/// `IORING_CQE_F_MORE`.
const MORE: u32 = 1 << 1;
/// `IORING_CQE_F_BUF_MORE`.
const BUFFER_MORE: u32 = 1 << 4;
const BUFFER_SHIFT: u32 = 16;

/// Names no operation.
const NOBODY: u64 = u64::MAX - 1;

/// Looks at the flags in a row that find nothing, until a spin counts as one without end.
const IDLE_LOOKS_MAX: u32 = 200_000;
/// Idle looks after which one takes a microsecond longer.
const IDLE_LOOKS_PER_US: u32 = 16;

/// The simulated ring. See the module documentation.
pub(crate) struct SimulatedRing {
    kernel: Kernel<Queue>,
    staged: VecDeque<Flight>,
    machine: RingMachine,
    entries: usize,
    pool: Arc<PoolShared>,
    /// Looks at the flags in a row that found nothing.
    idle_looks: u32,
    /// What every enter says once one has failed.
    failed: Option<i32>,
}

/// The completion queue, what does not fit it, and the buffer ring.
struct Queue {
    group: Option<Group>,
    completed: VecDeque<Completed>,
    completed_max: usize,
    overflow: VecDeque<Completed>,
    live: Live,
}

/// A buffer as completion flags name it.
struct Named {
    block: BlockId,
    more: bool,
}

impl Simulation {
    /// The io_uring engine on a simulated ring.
    pub(crate) fn ring_engine(&self, pool: &Pool) -> io::Result<Uring<SimulatedRing>> {
        let (machine, incremental) = {
            let state = self.world.state.borrow();
            (state.machine.ring.clone().unwrap_or_default(), state.machine.shares_blocks)
        };
        let setup = Setup { entries: machine.entries_asked, incremental, register_ring: true };
        setup.build_with(pool.shared(), |entries, no_sqarray| {
            SimulatedRing::attempt(&self.world, &machine, pool.shared(), entries, no_sqarray)
        })
    }
}

impl SimulatedRing {
    /// Puts this into the completion queue, whoever may have asked for it.
    #[cfg(test)]
    pub(crate) fn complete_for_test(&mut self, done: Completed) {
        self.kernel.seam.add(done);
    }

    pub(super) fn attempt(
        world: &Rc<World>,
        machine: &RingMachine,
        pool: &Arc<PoolShared>,
        entries: u32,
        no_sqarray: bool,
    ) -> io::Result<Self> {
        if no_sqarray && !machine.no_sqarray {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if entries > machine.entries_max {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        let queue = Queue {
            group: None,
            completed: VecDeque::new(),
            completed_max: machine.completions_max,
            overflow: VecDeque::new(),
            live: Live::default(),
        };
        Ok(Self {
            kernel: Kernel::new(Rc::clone(world), queue),
            staged: VecDeque::new(),
            machine: machine.clone(),
            entries: entries as usize,
            pool: Arc::clone(pool),
            idle_looks: 0,
            failed: None,
        })
    }

    pub(crate) fn world(&self) -> &World {
        &self.kernel.world
    }

    /// Names of the polls that wake the engine early, without those whose cancel is staged.
    pub(crate) fn watches(&self) -> impl Iterator<Item = u64> {
        let staged = self.staged.iter().map(|flight| flight.token);
        let watches = staged.chain(self.kernel.watches.iter().copied());
        let cancelled = |watch: Token| {
            let cancels = |flight: &Flight| matches!(flight.request, Request::Cancel { target, .. } if target == watch);
            self.staged.iter().any(cancels)
        };
        watches.filter(move |watch| is_watch(watch.0) && !cancelled(*watch)).map(|watch| watch.0)
    }

    /// Operations whose end has not been taken out of the queue.
    pub(crate) fn live(&self) -> impl Iterator<Item = Token> {
        self.kernel.seam.live.tokens.iter().map(|token| Token(*token))
    }

    pub(crate) fn is_live(&self, token: Token) -> bool {
        self.kernel.seam.live.tokens.contains(&token.0)
    }

    /// Bytes written of a block that the kernel has; `None` if it has it not.
    pub(crate) fn written(&mut self, block: BlockId) -> Option<u32> {
        let Kernel { world, seam, .. } = &mut self.kernel;
        let group = seam.group.as_mut()?;
        group.look(world);
        group.written(block)
    }

    /// True if a completion that has not been taken out of the queue names a block.
    pub(crate) fn names(&self, block: BlockId) -> bool {
        let Queue { completed, overflow, .. } = &self.kernel.seam;
        completed
            .iter()
            .chain(overflow)
            .any(|done| done.flags & BUFFER != 0 && done.flags >> BUFFER_SHIFT == u32::from(block))
    }

    /// What an enter says if it does nothing at all.
    fn refusal(&mut self, submit: u32) -> Option<i32> {
        let Kernel { world, seam, .. } = &mut self.kernel;
        if self.failed.is_none() && world.has(Fault::EnterFails) {
            self.failed = Some(-world.one_of(&[libc::EBADR, libc::EBADFD, libc::EFAULT]));
        }
        if world.has_failed() {
            // The run is over; who enters again and again would never see it.
            return Some(libc::EBADFD);
        }
        if self.failed.is_some() {
            return self.failed;
        }
        if world.has(Fault::EnterBusy) {
            seam.flush();
            if !seam.overflow.is_empty() || world.below(2) == 0 {
                return Some(libc::EBUSY);
            }
        }
        (submit > 0 && world.has(Fault::EnterAgain)).then_some(libc::EAGAIN)
    }

    /// Takes entries: how many, or that none could be taken.
    fn take(&mut self, submit: u32) -> Result<u32, i32> {
        let submit = self.staged.len().min(submit as usize);
        let mut count = submit;
        if submit > 0 && self.kernel.world.has(Fault::PartialEnter) {
            count = self.kernel.world.below_usize(submit);
            if count == 0 {
                return Err(libc::EAGAIN);
            }
        }
        for flight in self.staged.drain(..count) {
            self.kernel.perform(flight);
        }
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// A look at the flags finds nothing: time goes by for who spins.
    fn idle(&mut self) {
        self.idle_looks += 1;
        let world = &self.kernel.world;
        if self.idle_looks > IDLE_LOOKS_MAX {
            world.fail("a spin waits for what can't happen");
        }
        if self.machine.spin != Spin::Never {
            let step = Duration::from_micros(u64::from(1 + self.idle_looks / IDLE_LOOKS_PER_US));
            world.clock.set(world.clock.get() + step);
        }
    }
}

impl Queue {
    /// Moves what fits from the overflow list to the queue.
    fn flush(&mut self) {
        while self.completed.len() < self.completed_max {
            let Some(done) = self.overflow.pop_front() else { break };
            self.completed.push_back(done);
        }
    }

    /// A receive that was taken back is armed again under its name: what was said late about the first one
    /// can't be told from what is said about this one, so that nothing is.
    fn forget_late(&mut self, token: Token) {
        self.live.ended.retain(|ended| *ended != token);
        for done in self.completed.iter_mut().chain(&mut self.overflow) {
            if done.user_data == token.0 {
                done.user_data = NOBODY;
            }
        }
    }

    fn add(&mut self, done: Completed) {
        if self.goes_on() {
            self.completed.push_back(done);
        } else {
            self.overflow.push_back(done);
        }
    }

    /// Answers something that was never asked.
    fn answer_nobody(&mut self, world: &World) {
        let user_data = match (world.below(3), self.live.tokens.first()) {
            // Of the slot's use two thousand million times ago, or of no slot.
            (0, Some(live)) => live ^ 1 << 63,
            (1, _) => u64::MAX,
            _ => NOBODY,
        };
        let result = [0, 5, -libc::EINVAL][world.below_usize(3)];
        world.note("unknown", Token(user_data), result.into());
        if !self.live.tokens.contains(&user_data) {
            let flags = if world.below(2) == 1 { MORE } else { 0 };
            self.add(Completed { user_data, result, flags });
        }
    }
}

impl Seam for Queue {
    type Place = Named;
    const TRIES_AT_ONCE: bool = true;
    const POLLS_TELL_SHUTDOWNS: bool = true;

    fn choose(&mut self, world: &World) -> Option<(usize, usize)> {
        let group = self.group.as_mut()?;
        group.look(world);
        Some((0, group.room_bytes()?))
    }

    fn room(&mut self, _buffer: usize, len: usize) -> Writable<'_> {
        self.group.as_ref().expect("a buffer was chosen").room(len)
    }

    fn deliver(&mut self, _world: &World, _buffer: usize, len: usize) -> Named {
        let taken = self.group.as_mut().and_then(|group| group.commit(len));
        let (block, more) = taken.expect("a buffer was chosen");
        Named { block, more }
    }

    fn empty(&mut self, world: &World) -> Option<Named> {
        let group = self.group.as_mut()?;
        group.look(world);
        group.next()?;
        if !world.has(Fault::BlockEmpty) {
            return None;
        }
        if group.incremental {
            let more = !world.has(Fault::BufferFlagLost);
            return group.next().map(|block| Named { block, more });
        }
        group.take().map(|block| Named { block, more: false })
    }

    fn post(&mut self, token: Token, result: i32, more: bool, place: Option<Named>) {
        let mut flags = if more { MORE } else { 0 };
        if let Some(Named { block, more }) = place {
            flags |= BUFFER | u32::from(block) << BUFFER_SHIFT;
            flags |= if more { BUFFER_MORE } else { 0 };
        }
        self.add(Completed { user_data: token.0, result, flags });
    }

    fn sent_silently(&mut self, token: Token) {
        self.live.sent_silently(token);
    }

    fn goes_on(&self) -> bool {
        self.overflow.is_empty() && self.completed.len() < self.completed_max
    }

    fn has_completed(&self) -> bool {
        !self.completed.is_empty()
    }

    fn has_just_ended(&self, token: Token) -> bool {
        let its = |done: &&Completed| done.user_data == token.0;
        self.completed.iter().filter(its).any(|done| !cqueue::more(done.flags))
    }

    fn repeat_old(&mut self, world: &World) {
        let Some(token) = self.live.any_ended(world) else { return };
        let more = world.below(2) == 1;
        if world.below(3) == 1
            && let Some((_, room)) = self.choose(world)
        {
            // Bytes that belong to nobody, in a buffer that is gone for them.
            let len = [room, 1 + world.below_usize(room)][world.below_usize(2)];
            let place = self.deliver(world, 0, len);
            world.note("stale bytes", token, i64::try_from(len).unwrap_or(0));
            return self.post(token, i32::try_from(len).unwrap_or(0), more, Some(place));
        }
        let result = [0, -libc::ECANCELED, -libc::EINVAL][world.below_usize(3)];
        world.note("stale", token, result.into());
        self.post(token, result, more, None);
    }
}

impl Ring for SimulatedRing {
    unsafe fn push(&mut self, entry: &Entry) -> Result<(), QueueFull> {
        let Kernel { world, seam, .. } = &mut self.kernel;
        if self.staged.len() >= self.entries {
            world.happened(Fault::QueueRefused);
            return Err(QueueFull);
        }
        let group = seam.group.as_ref().map_or(0, |group| group.id);
        match decode(entry, group) {
            Ok((token, request)) => {
                // Cancels of the engine's own share a name, and nobody above knows of its polls.
                if token != Token(u64::MAX) && !is_watch(token.0) {
                    seam.live.start(token, world);
                    seam.forget_late(token);
                }
                // SAFETY: what the entry points to is valid until its end (contract of this function).
                self.staged.push_back(unsafe { Flight::new(token, request) });
            }
            Err(what) => world.fail(what),
        }
        Ok(())
    }

    fn queued(&self) -> usize {
        self.staged.len()
    }

    fn enter(
        &mut self,
        submit: u32,
        want: u32,
        flags: u32,
        timeout: Option<Duration>,
    ) -> Result<u32, i32> {
        self.kernel.world.enter();
        if self.kernel.world.refuses() {
            return Err(libc::EIO);
        }
        self.idle_looks = 0;
        if flags & !(GETEVENTS | NO_IOWAIT) != 0
            || (flags & NO_IOWAIT != 0 && !self.machine.no_iowait)
        {
            self.kernel.world.fail("an enter with flags that were not agreed on");
            return Err(libc::EINVAL);
        }
        if let Some(group) = &mut self.kernel.seam.group {
            group.look(&self.kernel.world);
            group.scribble_all();
        }
        if let Some(errno) = self.refusal(submit) {
            return Err(errno);
        }
        let taken = self.take(submit)?;
        if taken < submit || flags & GETEVENTS == 0 {
            return Ok(taken);
        }
        let Self { kernel, .. } = self;
        kernel.disturb();
        if kernel.world.has(Fault::UnknownData) {
            kernel.seam.answer_nobody(&kernel.world);
        }
        kernel.let_go();
        kernel.run();
        kernel.seam.flush();
        let mut waited = Waited::Completed;
        if want > 0 {
            let deadline = timeout.map(|timeout| kernel.world.clock.get() + timeout);
            waited = kernel.wait(deadline);
            kernel.seam.flush();
        }
        if !kernel.seam.overflow.is_empty() {
            kernel.world.happened(Fault::Overflow);
        }
        match waited {
            Waited::Interrupted if taken == 0 => Err(libc::EINTR),
            Waited::TimedOut if taken == 0 => Err(libc::ETIME),
            _ => Ok(taken),
        }
    }

    fn drain(&mut self, mut each: impl FnMut(Completed)) {
        let Queue { completed, live, .. } = &mut self.kernel.seam;
        while let Some(done) = completed.pop_front() {
            if done.flags & MORE == 0 {
                live.end(Token(done.user_data));
            }
            each(done);
        }
    }

    fn has_completed(&mut self) -> bool {
        self.kernel.seam.has_completed()
    }

    fn must_enter(&mut self) -> bool {
        if self.has_overflowed() || self.kernel.world.has(Fault::FlagSpurious) {
            return true;
        }
        self.kernel.let_go();
        let ready = self.kernel.is_ready();
        if !ready {
            self.idle();
        }
        ready
    }

    fn has_overflowed(&mut self) -> bool {
        !self.kernel.seam.overflow.is_empty()
    }

    unsafe fn register_buffers(
        &mut self,
        address: u64,
        entries: u16,
        group: u16,
        flags: u16,
    ) -> io::Result<()> {
        if !entries.is_power_of_two() || self.kernel.seam.group.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.kernel.seam.group = Some(Group::new(&self.pool, group, address, entries, flags));
        Ok(())
    }

    fn unregister_buffers(&mut self, group: u16) -> io::Result<()> {
        if self.kernel.receives() {
            self.kernel.world.fail("the buffers were taken back under a receive");
        }
        match self.kernel.seam.group.take() {
            Some(taken) if taken.id == group => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    fn register_ring(&mut self) -> io::Result<()> {
        if self.machine.registers {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
    }

    fn has_no_iowait(&self) -> bool {
        self.machine.no_iowait
    }

    fn now(&self) -> Instant {
        self.kernel.world.clock.get()
    }
}

impl Drop for SimulatedRing {
    fn drop(&mut self) {
        let Kernel { world, seam, .. } = &mut self.kernel;
        // The kernel may look until the very end.
        if let Some(group) = &mut seam.group {
            group.look(world);
        }
        let mut state = world.state.borrow_mut();
        state.operations_left = seam.live.tokens.len();
        state.completions_untold = seam.overflow.len();
    }
}
