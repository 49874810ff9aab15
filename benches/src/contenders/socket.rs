//! Sockets of the hand-written contenders.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;

use super::{Client, Server, Waiting};

/// Listens, says so, and accepts all connections of the workload.
pub(super) fn accept_all(server: &Server) -> Result<Vec<OwnedFd>> {
    let listener = UnixListener::bind(&server.path).context("bind")?;
    server.ready()?;
    let accepted = (0..server.workload.connections)
        .map(|_| Ok(listener.accept().context("accept")?.0.into()))
        .collect();
    // Nobody else is to connect; what the clean-up of the directory leaves undone does not matter.
    let _ = fs::remove_file(&server.path);
    accepted
}

/// Makes all connections of the workload.
pub(super) fn connect_all(client: &Client) -> Result<Vec<OwnedFd>> {
    (0..client.workload.connections)
        .map(|_| Ok(UnixStream::connect(client.path()).context("connect")?.into()))
        .collect()
}

/// A connection used with plain calls that wait, or that are repeated until they succeed.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
}

impl Link {
    pub(super) fn new(socket: OwnedFd, waiting: Waiting) -> Result<Self> {
        rustix::io::ioctl_fionbio(&socket, waiting == Waiting::Spin).context("FIONBIO")?;
        Ok(Self { socket })
    }

    /// Receives something; zero means that the peer has closed.
    pub(super) fn read(&self, space: &mut [u8]) -> Result<usize> {
        loop {
            match rustix::io::read(self.socket.as_fd(), &mut *space) {
                Ok(count) => return Ok(count),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno).context("read"),
            }
        }
    }

    /// Sends everything.
    pub(super) fn write_all(&self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(self.socket.as_fd(), bytes) {
                Ok(0) => bail!("write took nothing"),
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno).context("write"),
            }
        }
        Ok(())
    }
}
