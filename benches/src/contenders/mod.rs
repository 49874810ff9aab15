//! Everything that is compared, behind one interface.
//!
//! A contender is a server and a client, which run in two processes. To add one:
//!
//! - `serve`: listen, call [`Server::ready`], accept as many connections as the workload has, check
//!   every message with an inspector of its connection ([`Server::inspector`]), send back those
//!   for which it says so, and return when all connections have ended. A client closes with replies
//!   on their way, so a broken pipe is an end too ([`unless_closed`]).
//! - `drive`: connect to [`Client::address`]. In request/reply workloads keep `depth` requests in
//!   flight on each connection with an [`Exchange`] each, and close when [`Recorder::turn`] says
//!   no. In one-way workloads follow [`OneWaySender`].
//! - over datagrams ([`SocketKind`](crate::scenario::SocketKind)) there are no connections: the server binds the
//!   path, and returns at a message without a payload, which the client sends last.
//! - list it in [`all`].
//!
//! A name that ends in `+spin` polls instead of sleeping, on both sides. Only the one named `ringpost` does either, as
//! it sees fit.

mod blocking;
mod epoll;
mod handwritten;
mod packets;
mod ringpost;
mod ringpost_datagrams;
mod socket;
mod tokio;

use std::{
    io::{self, Write, stdout},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use rustix::io::Errno;

use crate::{
    meter::{Meter, Recorder},
    payload::{Inspector, Template},
    scenario::{Scenario, Workload},
    traffic::{Exchange, OneWaySender},
};

/// One way to move messages between two processes.
pub(crate) trait Contender: Sync {
    /// As it is selected on the command line and shown in the report.
    fn name(&self) -> &'static str;

    /// One line for the list and the report.
    fn about(&self) -> &'static str;

    /// The scenarios that it takes part in.
    fn scenarios(&self) -> &'static [Scenario];

    /// Runs the server until all connections have ended.
    fn serve(&self, server: &Server) -> Result<()>;

    /// Runs the client until the meter says that the sample is over.
    fn drive(&self, client: &Client) -> Result<()>;
}

/// All contenders, in the order in which samples are taken and shown.
pub(crate) fn all() -> Vec<&'static dyn Contender> {
    let mut all: Vec<&'static dyn Contender> = Vec::new();
    all.extend(ringpost::ALL.iter().map(|contender| contender as &dyn Contender));
    all.extend(epoll::ALL.iter().map(|contender| contender as &dyn Contender));
    all.extend(blocking::ALL.iter().map(|contender| contender as &dyn Contender));
    all.extend(handwritten::ALL.iter().map(|contender| contender as &dyn Contender));
    all.push(&tokio::Tokio);
    all
}

/// The contender of this name.
pub(crate) fn by_name(name: &str) -> Result<&'static dyn Contender> {
    all()
        .into_iter()
        .find(|contender| contender.name() == name)
        .with_context(|| format!("there is no contender {name}"))
}

/// What a server has to know.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) workload: Workload,
    /// A free path in a private directory.
    pub(crate) path: PathBuf,
    pub(crate) template: Arc<Template>,
}

impl Server {
    /// The check of one connection's messages.
    pub(crate) fn inspector(&self) -> Inspector {
        Inspector::new(Arc::clone(&self.template))
    }

    /// Says that clients may connect to [`Self::path`].
    pub(crate) fn ready(&self) -> Result<()> {
        self.ready_at(self.path.to_str().context("the path is text")?)
    }

    /// Says that clients may connect to another kind of address, such as a port that was free.
    pub(crate) fn ready_at(&self, address: &str) -> Result<()> {
        let mut out = stdout().lock();
        writeln!(out, "{address}").and_then(|()| out.flush()).context("reporting the address")
    }
}

/// What a client has to know.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) workload: Workload,
    /// What the server passed to [`Server::ready_at`], the path otherwise.
    pub(crate) address: String,
    pub(crate) template: Arc<Template>,
    pub(crate) meter: Arc<Meter>,
}

impl Client {
    pub(crate) fn path(&self) -> &Path {
        Path::new(&self.address)
    }

    /// Requests in flight per connection; one for workloads that have none.
    pub(crate) fn depth(&self) -> usize {
        self.workload.depth.unwrap_or(1)
    }

    /// The state of one connection's request/reply traffic.
    pub(crate) fn exchange(&self) -> Exchange {
        Exchange::new(Arc::clone(&self.template), self.depth())
    }

    /// Counts for one worker; call [`Recorder::finish`] at its end.
    pub(crate) fn recorder(&self) -> Recorder {
        Recorder::new(Arc::clone(&self.meter), self.workload.recorded_every())
    }

    /// The state of one-way traffic.
    pub(crate) fn sender(&self) -> OneWaySender {
        OneWaySender::new(Arc::clone(&self.template), self.recorder())
    }
}

/// Takes the failure of a connection whose client has closed it as its end: clients close as soon
/// as a sample is over, with replies on their way. If it happens earlier, the client reports it.
fn unless_closed(result: Result<()>) -> Result<()> {
    let is_closing = |cause: &(dyn std::error::Error + 'static)| {
        let kind = match (cause.downcast_ref::<io::Error>(), cause.downcast_ref::<Errno>()) {
            (Some(error), _) => error.kind(),
            (None, Some(errno)) => errno.kind(),
            (None, None) => return false,
        };
        matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
    };
    result.or_else(|error| if error.chain().any(is_closing) { Ok(()) } else { Err(error) })
}

/// How a hand-written contender waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// The kernel puts the thread to sleep.
    Park,
    /// The thread asks again and again.
    Spin,
}

/// Room for many small frames, or for some large ones.
fn buffer_bytes(workload: &Workload) -> usize {
    BUFFER_BYTES.max(4 * (workload.bytes + crate::frame::HEADER_BYTES))
}

const BUFFER_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found() -> Result<()> {
        let mut names = HashSet::new();
        for contender in all() {
            assert!(names.insert(contender.name()), "{} twice", contender.name());
            assert_eq!(by_name(contender.name())?.about(), contender.about());
        }
        assert!(by_name("none").is_err());
        Ok(())
    }

    #[test]
    fn only_a_closed_connection_is_forgiven() {
        let failed = |errno: Errno| Err(errno).context("write");
        assert!(unless_closed(failed(Errno::PIPE)).is_ok());
        assert!(unless_closed(failed(Errno::CONNRESET)).is_ok());
        assert!(unless_closed(failed(Errno::BADF)).is_err());
        assert!(unless_closed(Err(io::Error::from(io::ErrorKind::BrokenPipe).into())).is_ok());
        assert!(unless_closed(Err(anyhow::anyhow!("corrupt"))).is_err());
    }
}
