//! What this kernel's io_uring really does, tried on a socket pair before anything relies on it.
//!
//! Versions lie: distributions backport, sandboxes intercept. The outcome is kept for the life of the
//! process, so only the first runtime pays for it (about a tenth of a millisecond).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{Setup, Uring};
use crate::capabilities::{Capabilities, Support};
use crate::engine::{Completion, Engine, EngineError, Request, Token};
use crate::memory::ForkMark;
use crate::pool::Pool;
use crate::wake::Inbox;

/// What the preflight found, or the error that rules the engine out.
pub(crate) fn preflight() -> Result<Capabilities, Refusal> {
    static OUTCOME: OnceLock<Result<Capabilities, Refusal>> = OnceLock::new();
    if let Some(outcome) = OUTCOME.get() {
        return outcome.clone();
    }
    let outcome = run();
    if matches!(&outcome, Err(Refusal::Errno(errno)) if !is_lasting(*errno)) {
        return outcome;
    }
    OUTCOME.get_or_init(|| outcome).clone()
}

/// Whether the kernel would say the same again. Want of memory (locked memory is charged per user and given
/// back late) or of descriptors may pass, so it is not kept.
fn is_lasting(errno: i32) -> bool {
    matches!(errno, libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL)
}

/// Why io_uring can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A set-up call failed.
    Errno(i32),
    /// It could be set up and then did not do what it must.
    Behaviour(&'static str),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<EngineError> for Refusal {
    fn from(EngineError::Fatal { source, .. }: EngineError) -> Self {
        source.into()
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Errno(errno.raw_os_error())
    }
}

const BLOCK_BYTES: u32 = 4096;
const BLOCKS: u16 = 4;
/// Bound of every wait here; nothing needs to wait at all on a kernel that works.
const PATIENCE: Duration = Duration::from_millis(200);

/// What is sent. Whether the kernel is done with it is what is to be found out, so that it is never freed; of zeros that
/// are only read it takes no memory.
static DATA: OnceLock<Vec<u8>> = OnceLock::new();

struct Bench {
    engine: Uring,
    pool: Pool,
    left: OwnedFd,
    right: OwnedFd,
    batch: Vec<Completion>,
}

fn run() -> Result<Capabilities, Refusal> {
    let incremental = match Bench::new(true) {
        Ok(mut bench) => match bench.receives() {
            Ok(()) => Support::Yes,
            Err(Refusal::Behaviour(what)) => Support::No(what.into()),
            Err(refusal) => return Err(refusal),
        },
        Err(Refusal::Errno(libc::EINVAL)) => {
            Support::No("incremental buffers are refused (Linux 6.12 has them)".into())
        }
        Err(refusal) => return Err(refusal),
    };
    if !incremental.is_yes() {
        Bench::new(false)?.receives()?;
    }
    let mut bench = Bench::new(incremental.is_yes())?;
    let registered_ring = if bench.engine.is_registered() {
        Support::Yes
    } else {
        Support::No("registering the ring descriptor is refused (Linux 5.18 has it)".into())
    };
    let silent_sends = support(bench.silent_sends())?;
    let end_of_file = support(Bench::new(incremental.is_yes())?.end_of_file())?;
    Ok(Capabilities { incremental, silent_sends, end_of_file, registered_ring })
}

fn support(outcome: Result<(), Refusal>) -> Result<Support, Refusal> {
    match outcome {
        Ok(()) => Ok(Support::Yes),
        Err(Refusal::Behaviour(what)) => Ok(Support::No(what.into())),
        Err(refusal) => Err(refusal),
    }
}

const RECEIVE: Token = Token(1);
const SEND: Token = Token(2);

impl Bench {
    fn new(incremental: bool) -> Result<Self, Refusal> {
        // First what may fail: a pool whose blocks are with an engine can only be leaked.
        let (left, right) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let inbox = Arc::new(Inbox::new(1, ForkMark::none())?);
        let mut pool = Pool::new(BLOCKS, BLOCK_BYTES, inbox)?;
        let setup = Setup { entries: 16, incremental, register_ring: true };
        let mut engine = setup.build(Arc::clone(pool.shared()))?;
        while let Some(block) = pool.take_free() {
            engine.provide(block);
        }
        Ok(Self { engine, pool, left, right, batch: Vec::new() })
    }

    fn push(&mut self, token: Token, request: Request) -> Result<(), Refusal> {
        // SAFETY: the receive blocks live as long as the kernel may write them (pool invariant P3); sends here point
        // to memory that lives as long as the process.
        let pushed = unsafe { self.engine.push(token, request) };
        pushed.map_err(|_| Refusal::Behaviour("a fresh submission queue has no room"))
    }

    /// Enters until a completion for `token` is there or the patience is used up.
    fn next(&mut self, token: Token) -> Result<Option<Completion>, Refusal> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = false;
        loop {
            if let Some(index) = self.batch.iter().position(|done| done.token == token) {
                return Ok(Some(self.batch.remove(index)));
            }
            if last {
                return Ok(None);
            }
            // A process that stood still meanwhile has to look once more.
            last = Instant::now() >= deadline;
            self.engine.enter(true, Some(deadline))?;
            self.engine.reap(&mut self.batch);
        }
    }

    fn expect_data(&mut self, expected: &[u8]) -> Result<(), Refusal> {
        let done = self.next(RECEIVE)?.ok_or(Refusal::Behaviour("a receive never completed"))?;
        if !done.more || usize::try_from(done.result).ok() != Some(expected.len()) {
            return Err(Refusal::Behaviour("a multishot receive ended or came short"));
        }
        let range = done.received.ok_or(Refusal::Behaviour("a receive used no provided block"))?;
        let lease = self.pool.lease(range.block, range.offset, range.len);
        if range.last {
            self.pool.retire(range.block);
        }
        if lease.as_slice() == expected {
            Ok(())
        } else {
            Err(Refusal::Behaviour("received bytes are not where they were said to be"))
        }
    }

    /// Multishot receive delivers several messages, in place, in order.
    fn receives(&mut self) -> Result<(), Refusal> {
        self.push(RECEIVE, Request::Receive { fd: self.left.as_raw_fd() })?;
        self.engine.enter(false, None)?;
        for message in [&b"first"[..], b"second message", b"x"] {
            rustix::io::write(&self.right, message)?;
            self.expect_data(message)?;
        }
        Ok(())
    }

    /// A silent send says nothing when whole, EAGAIN when nothing fitted, the count when short.
    fn silent_sends(&mut self) -> Result<(), Refusal> {
        let data = DATA.get_or_init(|| vec![0; 1 << 20]);
        let small = Request::Send {
            fd: self.left.as_raw_fd(),
            data: data.as_ptr(),
            len: 100,
            silent: true,
        };
        self.push(SEND, small)?;
        self.engine.enter(false, None)?;
        self.engine.reap(&mut self.batch);
        if !self.batch.is_empty() {
            return Err(Refusal::Behaviour("a silent send that was whole posted a completion"));
        }
        let large = Request::Send {
            fd: self.left.as_raw_fd(),
            data: data.as_ptr(),
            len: 1 << 20,
            silent: true,
        };
        self.push(SEND, large)?;
        self.engine.enter(false, None)?;
        self.engine.reap(&mut self.batch);
        let short = self.batch.pop().filter(|done| done.token == SEND && !done.more);
        let short = short.ok_or(Refusal::Behaviour("a short silent send posted nothing"))?;
        self.push(SEND, large)?;
        self.engine.enter(false, None)?;
        self.engine.reap(&mut self.batch);
        if self.batch.pop().map(|done| done.result) != Some(-libc::EAGAIN) {
            return Err(Refusal::Behaviour("a silent send into a full socket did not say EAGAIN"));
        }
        let arrived = drain(self.right.as_fd())?;
        if u64::try_from(short.result).ok().map(|count| count + 100) != Some(arrived) {
            return Err(Refusal::Behaviour("a short silent send told a wrong count"));
        }
        Ok(())
    }

    /// Data and end of file that arrive together are both delivered. Linux before the fix of
    /// CVE-2026-23473 may lose the latter.
    fn end_of_file(&mut self) -> Result<(), Refusal> {
        self.push(RECEIVE, Request::Receive { fd: self.left.as_raw_fd() })?;
        self.engine.enter(false, None)?;
        rustix::io::write(&self.right, b"last words")?;
        rustix::net::shutdown(&self.right, rustix::net::Shutdown::Write)?;
        self.expect_data(b"last words")?;
        match self.next(RECEIVE)? {
            Some(done) if done.result == 0 && !done.more => Ok(()),
            _ => Err(Refusal::Behaviour("end of file right behind data is lost")),
        }
    }
}

fn drain(fd: impl AsFd) -> Result<u64, Refusal> {
    let mut buffer = vec![0_u8; 1 << 16];
    let mut total = 0;
    loop {
        match rustix::io::read(&fd, &mut buffer[..]) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(total),
            Ok(count) => total += count as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // End the receive, so that no block is with the kernel when the pool goes.
        for fd in [&self.left, &self.right] {
            let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
        }
        let cancel = Request::Cancel { target: RECEIVE, fd: self.left.as_raw_fd() };
        // SAFETY: a cancel points to no memory.
        let _ = unsafe { self.engine.push(Token(3), cancel) };
        let _ = self.engine.enter(false, None);
        self.batch.clear();
        self.engine.reap(&mut self.batch);
        for done in &self.batch {
            if let Some(range) = done.received.filter(|range| range.last) {
                self.pool.retire(range.block);
            }
        }
        for block in self.engine.surrender_blocks() {
            self.pool.retire(block);
        }
        let _ = self.pool.collect_returns();
        self.pool.check();
    }
}
