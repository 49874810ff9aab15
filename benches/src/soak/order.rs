//! What the processes of a soak are told, and what they say.
//!
//! A process is this program again, with its order as one JSON argument. From then on it is told by lines on its
//! standard input, and answers by lines of JSON on its standard output. What it writes to its standard error is
//! the reason of a failure.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ringpost::EngineChoice;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::{census::Census, clients::Kind};

/// What a process is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// With which it has to end.
    pub(crate) parent_pid: i32,
    pub(crate) engine: Engine,
    pub(crate) directory: PathBuf,
    pub(crate) role: Role,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Role {
    Server,
    Client { kind: Kind, seed: u64 },
}

/// The engine of a soak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// io_uring
    Uring,
    /// epoll
    Epoll,
}

impl Engine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }

    /// Operations that each connection has from its first moment to its end: the receive, and on io_uring the
    /// poll that guards it.
    pub(crate) fn lasting_operations(self) -> u64 {
        match self {
            Self::Uring => 2,
            Self::Epoll => 1,
        }
    }

    pub(crate) fn choice(self) -> EngineChoice {
        match self {
            Self::Uring => EngineChoice::Uring,
            Self::Epoll => EngineChoice::Epoll,
        }
    }
}

/// A line to a process.
pub(crate) mod told {
    /// Say how you are.
    pub(crate) const SAMPLE: &str = "sample";
    /// End all load, in good order, and then yourself. (The server is told by SIGTERM.)
    pub(crate) const STOP: &str = "stop";
}

/// A line of a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Said {
    /// It has begun; what it was before any load.
    Ready(Box<Census>),
    Sample(Box<Census>),
    /// All load has ended.
    Done(Box<Census>),
}

/// Runs one of the processes.
pub(crate) fn run(order: &str) -> Result<()> {
    let order: Order = serde_json::from_str(order).context("parameters of the process")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("death signal")?;
    // The parent may have ended before that call.
    if getppid().map(Pid::as_raw_pid) != Some(order.parent_pid) {
        bail!("the soak has ended");
    }
    match order.role {
        Role::Server => super::server::run(&order),
        Role::Client { kind, seed } => super::clients::run(&order, kind, seed),
    }
}
