//! Why a restart did not come about.

use std::fmt;
use std::io;
use std::path::PathBuf;

use ringpost_uds::{self as uds, Address, PeerCredentials, handover::HandoverError};

/// Where in a restart something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The successor identifies itself.
    Greeting,
    /// The predecessor hands over its sockets.
    Offer,
    /// The successor starts up.
    StartUp,
    /// The predecessor has stopped accepting, and hands over connections.
    Connections,
    /// The successor takes over.
    Commit,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greeting => "the greeting",
            Self::Offer => "handing over sockets",
            Self::StartUp => "the successor's start-up",
            Self::Connections => "handing over connections",
            Self::Commit => "the take-over",
        })
    }
}

/// Why a restart did not come about, on either side. Whatever the reason, the predecessor goes on to serve
/// if it lives.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestartError {
    /// The predecessor could not be reached. Only if [`is_no_predecessor`](Self::is_no_predecessor) says so is there
    /// none, and this process starts as the first one; otherwise it may serve, and this process should end.
    #[error(transparent)]
    Connect(#[from] uds::ConnectError),
    /// The other process may not take part.
    #[error("{peer} may not take part in a restart: {reason}")]
    Denied {
        /// Who it is.
        peer: PeerCredentials,
        /// Why not.
        reason: String,
    },
    /// Another successor is at it: one at a time.
    #[error("another successor is taking over; only one at a time")]
    Busy,
    /// The other process gave up, for this reason.
    #[error("the other process gave up during {stage}: {reason}")]
    GaveUp {
        /// When.
        stage: Stage,
        /// What it said.
        reason: String,
    },
    /// The other process is gone.
    #[error("the other process ended during {stage}")]
    Ended {
        /// When.
        stage: Stage,
    },
    /// The predecessor had removed a path in order before it ended; another server may have it by now. Start as the
    /// first one.
    #[error(
        "the predecessor gave {} up and ended; start as the first one", .path.display()
    )]
    PathGivenUp {
        /// The path.
        path: PathBuf,
    },
    /// The other process took too long.
    #[error("{stage} took longer than {milliseconds} ms")]
    TimedOut {
        /// What.
        stage: Stage,
        /// The limit.
        milliseconds: u64,
    },
    /// The other process said something that the protocol does not have.
    #[error("the other process broke the restart protocol: {what}")]
    Protocol {
        /// What was wrong.
        what: &'static str,
    },
    /// The other process speaks another version of the protocol.
    #[error("the other process speaks version {theirs} of the restart protocol, this one {ours}")]
    Version {
        /// Its version.
        theirs: u16,
        /// This process's.
        ours: u16,
    },
    /// More was to be handed over than fits.
    #[error("{what} {value}, at most {limit} can be handed over")]
    TooMuch {
        /// What, as the beginning of a sentence.
        what: &'static str,
        /// How much.
        value: usize,
        /// The limit.
        limit: usize,
    },
    /// A name is there twice.
    #[error("{name:?} is in the parcel twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A listener of the parcel has been dropped.
    #[error("the listener {name:?} of the parcel has been dropped")]
    ListenerGone {
        /// Its name.
        name: String,
    },
    /// A socket can't be passed on.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The control socket has been handed over: this process has a successor.
    #[error("this process has handed over to a successor")]
    HandedOver,
    /// The runtime has ended.
    #[error("the runtime has ended")]
    RuntimeEnded,
    /// The kernel refuses to accept on the control socket, for good: no successor can come any more.
    #[error("the kernel refuses to accept a successor: {source}")]
    Accept {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("cannot {step}{}: {source}", of(.address))]
    System {
        /// What was being done.
        step: &'static str,
        /// With what.
        address: Option<Address>,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl RestartError {
    /// Whether there is no predecessor, so that this process starts as the first one.
    pub fn is_no_predecessor(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_no_server(),
            Self::PathGivenUp { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn system(step: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System { step, address: None, source: source.into() }
    }

    /// Whether this process can't hear the other one any more, whatever that has said: its runtime has ended, or the
    /// kernel refuses to receive.
    pub fn is_deaf(&self) -> bool {
        matches!(self, Self::RuntimeEnded | Self::System { .. })
    }

    /// Whether accepting successors is over, after which asking again is of no use.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::HandedOver | Self::RuntimeEnded | Self::Accept { .. })
    }
}

fn of(address: &Option<Address>) -> String {
    address.as_ref().map_or_else(String::new, |address| format!(" {address}"))
}
