//! Why sockets could not be taken from a service manager.

use std::fmt;
use std::io;

/// Why no descriptors were taken.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// There are no variables, or they promise nothing: the process was started in another way.
    #[error("no service manager passed sockets to this process (LISTEN_FDS and LISTEN_PID)")]
    NotActivated,
    /// The variables are for another process, often the parent of this one.
    #[error("LISTEN_PID is {listed}, and this is process {own}: the sockets are not for it")]
    OtherProcess {
        /// The process that the variables are for.
        listed: u32,
        /// This process.
        own: u32,
    },
    /// They were taken before, by this process.
    #[error("the sockets of LISTEN_FDS were taken before; take them once and pass them on")]
    AlreadyTaken,
    /// A variable is not of its form.
    #[error("{variable} is {value:?}, and should be {expected}")]
    Malformed {
        /// The variable.
        variable: &'static str,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// More are promised than any service has.
    #[error("LISTEN_FDS promises {count} descriptors, and at most {limit} are taken")]
    TooMany {
        /// What is promised.
        count: usize,
        /// The greatest number that is taken.
        limit: usize,
    },
    /// `LISTEN_FDNAMES` doesn't have a name for each.
    #[error("LISTEN_FDNAMES has {names} names for {descriptors} descriptors")]
    NamesMismatch {
        /// How many names there are.
        names: usize,
        /// How many descriptors are promised.
        descriptors: usize,
    },
    /// A promised descriptor is not open.
    #[error("descriptor {number}, which LISTEN_FDS promises, is not open")]
    Missing {
        /// Its number.
        number: i32,
    },
    /// A promised descriptor is close-on-exec, so it did not come through the start of this program.
    #[error(
        "descriptor {number}, which LISTEN_FDS promises, was not inherited: something in this process \
         has opened it, or taken it already"
    )]
    NotInherited {
        /// Its number.
        number: i32,
    },
    /// `/proc` is not mounted, so nobody can tell whether the descriptors were inherited.
    #[error("taking the sockets of LISTEN_FDS needs /proc, which is not mounted; mount it")]
    NoProc,
    /// The kernel refused.
    #[error("cannot take over descriptor {number}: {source}")]
    System {
        /// The number of the descriptor.
        number: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// None of the descriptors has this name.
    #[error("no descriptor has the name {name:?}; there are {}", listed(.known))]
    NoSuchName {
        /// The name asked for.
        name: String,
        /// The names of those that were not taken yet.
        known: Vec<String>,
    },
    /// What has the name is something else.
    #[error("descriptor {number} with the name {name:?} does not fit: {reason}")]
    Unfit {
        /// The name.
        name: String,
        /// The number under which it came.
        number: i32,
        /// What it is, and what was asked for.
        reason: String,
    },
}

impl ActivationError {
    /// Whether the process was simply not started with sockets.
    pub fn is_not_activated(&self) -> bool {
        matches!(self, Self::NotActivated | Self::OtherProcess { .. })
    }
}

fn listed(names: &[String]) -> impl fmt::Display {
    if names.is_empty() {
        return "none left".to_owned();
    }
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}
