//! The engine chosen at run time, dispatched without indirection.

use std::sync::Arc;
use std::time::Instant;

use crate::capabilities::{EngineChoice, EngineKind, EngineReason, EngineReport, UringUnavailable};
use crate::config::{BLOCK_PLAIN_BYTES, BLOCK_SHARED_BYTES, BuildError, Config};
use crate::early::EarlyWakes;
use crate::engine::{Completion, Engine, EngineError, QueueFull, Request, Token};
use crate::epoll::Epoll;
use crate::memory::shadow::EngineRuns;
use crate::pool::{BlockId, Pool};
use crate::uring::{Refusal, Setup, Uring, preflight};
use crate::wake::Inbox;

/// Submission entries of a ring. More connections than this that become active in one turn cost
/// another enter, nothing else.
const RING_ENTRIES: u32 = 1024;

/// Either engine.
#[derive(Debug)]
pub(crate) enum AnyEngine {
    Uring(Box<Uring>),
    Epoll(Box<Epoll>),
    #[cfg(feature = "sim")]
    Sim(Box<crate::sim::Sim>),
    #[cfg(feature = "sim")]
    SimulatedUring(Box<Uring<crate::sim::SimulatedRing>>),
}

macro_rules! each {
    ($self:expr, $engine:ident => $call:expr) => {
        match $self {
            Self::Uring($engine) => $call,
            Self::Epoll($engine) => $call,
            #[cfg(feature = "sim")]
            Self::Sim($engine) => $call,
            #[cfg(feature = "sim")]
            Self::SimulatedUring($engine) => $call,
        }
    };
}

impl AnyEngine {
    /// Builds the engine that `config` and the environment ask for, with its pool.
    pub(crate) fn choose(
        config: &Config,
        inbox: &Arc<Inbox>,
    ) -> Result<(Self, Pool, EngineReport), BuildError> {
        let (choice, forced) = match config.engine {
            EngineChoice::Auto => match std::env::var_os("RINGPOST_ENGINE") {
                None => (EngineChoice::Auto, EngineReason::Works),
                Some(value) => {
                    let choice = match value.to_str() {
                        Some("uring") => EngineChoice::Uring,
                        Some("epoll") => EngineChoice::Epoll,
                        Some("auto" | "") => EngineChoice::Auto,
                        _ => {
                            let value = value.to_string_lossy().into_owned();
                            return Err(BuildError::Environment { value });
                        }
                    };
                    (choice, EngineReason::ForcedByEnvironment)
                }
            },
            choice => (choice, EngineReason::ForcedByBuilder),
        };
        match choice {
            EngineChoice::Epoll => Self::epoll(config, inbox, forced),
            EngineChoice::Uring => Self::uring(config, inbox, forced)?
                .map_err(|refusal| BuildError::Uring(explain(&refusal))),
            EngineChoice::Auto => match Self::uring(config, inbox, EngineReason::Works)? {
                Ok(built) => Ok(built),
                Err(refusal) => {
                    let reason = explain(&refusal);
                    tracing::info!(%reason, "falling back to epoll");
                    Self::epoll(config, inbox, EngineReason::Fallback(reason))
                }
            },
        }
    }

    /// A refusal is no error when there is a fallback, hence two results.
    fn uring(
        config: &Config,
        inbox: &Arc<Inbox>,
        reason: EngineReason,
    ) -> Result<Result<(Self, Pool, EngineReport), Refusal>, BuildError> {
        let capabilities = match preflight() {
            Ok(capabilities) => capabilities,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let incremental = capabilities.incremental.is_yes();
        let block_bytes = if incremental { BLOCK_SHARED_BYTES } else { BLOCK_PLAIN_BYTES };
        let pool = pool(config, block_bytes, inbox)?;
        let setup = Setup { entries: RING_ENTRIES, incremental, register_ring: true };
        Ok(match setup.build(Arc::clone(pool.shared())) {
            Ok(engine) => {
                let report = EngineReport {
                    kind: EngineKind::Uring,
                    reason,
                    capabilities: Some(capabilities),
                };
                Ok((Self::Uring(Box::new(engine)), pool, report))
            }
            Err(error) => Err(error.into()),
        })
    }

    fn epoll(
        config: &Config,
        inbox: &Arc<Inbox>,
        reason: EngineReason,
    ) -> Result<(Self, Pool, EngineReport), BuildError> {
        let pool = pool(config, BLOCK_SHARED_BYTES, inbox)?;
        let engine =
            Epoll::new(Arc::clone(pool.shared())).map_err(BuildError::resource("an epoll set"))?;
        let report = EngineReport { kind: EngineKind::Epoll, reason, capabilities: None };
        Ok((Self::Epoll(Box::new(engine)), pool, report))
    }

    /// The engine and the pool of a simulation.
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(
        simulation: &crate::sim::Simulation,
        inbox: &Arc<Inbox>,
    ) -> Result<(Self, Pool, EngineReport), BuildError> {
        let pool = simulation.pool(inbox)?;
        let engine = if simulation.has_ring() {
            let engine = simulation.ring_engine(&pool).map_err(BuildError::resource("the ring"))?;
            Self::SimulatedUring(Box::new(engine))
        } else {
            Self::Sim(Box::new(simulation.engine(&pool)))
        };
        let report = EngineReport {
            kind: EngineKind::Simulated,
            reason: EngineReason::ForcedByBuilder,
            capabilities: Some(simulation.capabilities()),
        };
        Ok((engine, pool, report))
    }

    /// True of io_uring, also on a simulated ring.
    #[cfg(feature = "sim")]
    pub(crate) fn is_ring(&self) -> bool {
        matches!(self, Self::Uring(_) | Self::SimulatedUring(_))
    }

    /// True if `ready` makes system calls.
    pub(crate) fn is_direct(&self) -> bool {
        match self {
            Self::Uring(engine) => engine.is_direct(),
            Self::Epoll(_) => true,
            #[cfg(feature = "sim")]
            Self::Sim(_) => true,
            #[cfg(feature = "sim")]
            Self::SimulatedUring(engine) => engine.is_direct(),
        }
    }

    /// True if many receives share a block, so that few blocks with the engine are enough.
    pub(crate) fn shares_blocks(&self) -> bool {
        match self {
            Self::Uring(engine) => engine.is_incremental(),
            Self::Epoll(_) => true,
            #[cfg(feature = "sim")]
            Self::Sim(engine) => engine.shares_blocks(),
            #[cfg(feature = "sim")]
            Self::SimulatedUring(engine) => engine.is_incremental(),
        }
    }
}

fn pool(config: &Config, block_bytes: u32, inbox: &Arc<Inbox>) -> Result<Pool, BuildError> {
    let blocks = config.pool_bytes / block_bytes as usize;
    let blocks = u16::try_from(blocks.min(1 << 15)).unwrap_or(1 << 15);
    Pool::new(blocks, block_bytes, Arc::clone(inbox))
        .map_err(BuildError::resource("the receive pool"))
}

/// Puts a refusal into words that say what to change.
fn explain(refusal: &Refusal) -> UringUnavailable {
    match refusal {
        Refusal::Errno(libc::EPERM | libc::EACCES) => {
            let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            match text.ok().and_then(|text| text.trim().parse().ok()) {
                Some(value @ 1..) => UringUnavailable::DisabledBySysctl { value },
                _ => UringUnavailable::NotPermitted,
            }
        }
        Refusal::Errno(libc::ENOSYS) => UringUnavailable::NotImplemented,
        Refusal::Errno(libc::ENOMEM) => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            let limit = limit.map_or_else(|| "unlimited".into(), |bytes| format!("{bytes} bytes"));
            UringUnavailable::NoMemory { limit }
        }
        Refusal::Errno(libc::EINVAL) => UringUnavailable::TooOld,
        Refusal::Errno(errno) => UringUnavailable::Errno { errno: *errno },
        Refusal::Behaviour(what) => UringUnavailable::Misbehaves { what: (*what).into() },
    }
}

impl Engine for AnyEngine {
    #[inline]
    unsafe fn push(&mut self, token: Token, request: Request) -> Result<(), QueueFull> {
        each!(self, engine => {
            // SAFETY: the caller's promise is handed on.
            unsafe { engine.push(token, request) }
        })
    }

    #[inline]
    fn staged(&self) -> usize {
        each!(self, engine => engine.staged())
    }

    #[inline]
    fn enter(&mut self, wait: bool, deadline: Option<Instant>) -> Result<(), EngineError> {
        let _runs = EngineRuns::new();
        each!(self, engine => engine.enter(wait, deadline))
    }

    #[inline]
    fn reap(&mut self, batch: &mut Vec<Completion>) {
        each!(self, engine => engine.reap(batch));
    }

    #[inline]
    fn settle(&mut self) {
        each!(self, engine => engine.settle());
    }

    #[inline]
    fn ready(&mut self) -> bool {
        let _runs = EngineRuns::new();
        each!(self, engine => engine.ready())
    }

    #[inline]
    fn spin(&mut self, on: bool) {
        each!(self, engine => engine.spin(on));
    }

    #[inline]
    fn extra_blocks(&self) -> usize {
        each!(self, engine => engine.extra_blocks())
    }

    #[inline]
    fn provide(&mut self, block: BlockId) {
        each!(self, engine => engine.provide(block));
    }

    fn surrender_blocks(&mut self) -> Vec<BlockId> {
        each!(self, engine => engine.surrender_blocks())
    }

    fn system_calls(&self) -> u64 {
        each!(self, engine => engine.system_calls())
    }

    fn early_wakes(&self) -> EarlyWakes {
        each!(self, engine => engine.early_wakes())
    }
}
