//! Which engine runs, why, and what it found the kernel able to do.

use std::fmt;

/// Whether a feature is used, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Support {
    /// It works here and is used.
    Yes,
    /// It is not used, for this reason.
    No(String),
}

impl Support {
    /// True for [`Support::Yes`].
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Yes)
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No(reason) => write!(f, "no: {reason}"),
        }
    }
}

/// What the io_uring preflight found. Each entry was tried on a socket pair of this process, not
/// read off a version number.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Many receives share one block (`IOU_PBUF_RING_INC`, Linux 6.12).
    pub incremental: Support,
    /// Sends that fit complete without a completion.
    pub silent_sends: Support,
    /// End of file right behind data was seen when it was tried. A hang-up poll guards each connection all the
    /// same: busy kernels that pass have been seen to lose one.
    pub end_of_file: Support,
    /// The ring is entered through a registered index (Linux 5.18).
    pub registered_ring: Support,
}

/// The engines there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineKind {
    /// io_uring.
    Uring,
    /// epoll(7) and ordinary system calls.
    Epoll,
    /// None: a simulation ([`sim`](crate::sim)).
    #[cfg(feature = "sim")]
    Simulated,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
            #[cfg(feature = "sim")]
            Self::Simulated => "simulation",
        })
    }
}

/// Which engine to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EngineChoice {
    /// io_uring where it works, else epoll. The environment variable `RINGPOST_ENGINE`
    /// (`uring`, `epoll` or `auto`) overrides this choice, and only this one.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// Why the running engine was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineReason {
    /// io_uring passed its preflight.
    Works,
    /// The builder asked for this engine.
    ForcedByBuilder,
    /// `RINGPOST_ENGINE` asked for this engine.
    ForcedByEnvironment,
    /// io_uring can't be used here.
    Fallback(UringUnavailable),
}

impl fmt::Display for EngineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("io_uring passed its preflight"),
            Self::ForcedByBuilder => f.write_str("forced by the builder"),
            Self::ForcedByEnvironment => f.write_str("forced by RINGPOST_ENGINE"),
            Self::Fallback(reason) => write!(f, "io_uring can't be used: {reason}"),
        }
    }
}

/// Why io_uring can't be used on this host or in this process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UringUnavailable {
    /// EPERM while `/proc/sys/kernel/io_uring_disabled` says it is switched off.
    #[error("the sysctl kernel.io_uring_disabled is {value} (EPERM)")]
    DisabledBySysctl {
        /// 1: for users outside `kernel.io_uring_group`; 2: for everybody.
        value: u32,
    },
    /// EPERM without the sysctl: a seccomp filter, as in Docker's default profile, or another policy.
    #[error("the call is not permitted (EPERM): a seccomp profile or security policy refuses it")]
    NotPermitted,
    /// ENOSYS: the kernel was built without it, or a filter pretends so.
    #[error("the kernel has no io_uring, or a seccomp profile says so (ENOSYS)")]
    NotImplemented,
    /// ENOMEM: the ring does not fit the locked-memory limit of this user.
    #[error(
        "no memory for the ring (ENOMEM): RLIMIT_MEMLOCK is {limit} for all of this user's rings"
    )]
    NoMemory {
        /// The limit in force, as text ("8388608 bytes" or "unlimited").
        limit: String,
    },
    /// EINVAL: set-up flags that the engine requires are unknown (Linux before 6.1).
    #[error("required set-up flags are refused (EINVAL): Linux 6.1 or later is needed")]
    TooOld,
    /// It can be set up but does not behave.
    #[error("the preflight failed: {what}")]
    Misbehaves {
        /// What went wrong.
        what: String,
    },
    /// Any other error number.
    #[error("set-up failed with error {errno}")]
    Errno {
        /// The error number.
        errno: i32,
    },
}

/// The running engine: which, why, and what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineReport {
    /// Which engine runs.
    pub kind: EngineKind,
    /// Why it was chosen.
    pub reason: EngineReason,
    /// What the preflight found; `None` on epoll.
    pub capabilities: Option<Capabilities>,
}

impl fmt::Display for EngineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.kind, self.reason)
    }
}
