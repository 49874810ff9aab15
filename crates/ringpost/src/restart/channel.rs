//! The predecessor's end of the connection to a successor, on the runtime.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ringpost_reactor::{Inbound, Stream, StreamError};
use ringpost_uds::handover;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::error::{RestartError, Stage};
use super::wire::{self, Assembler, Kind, Record};
use crate::executor::Inner;

/// Bytes of records from a successor that have arrived and are not complete: none of them is longer.
const INPUT_BYTES_MAX: usize = 4096;
/// First and longest pause between attempts to send to a successor that does not read at once.
const SEND_PAUSE_MIN: Duration = Duration::from_micros(200);
const SEND_PAUSE_MAX: Duration = Duration::from_millis(10);

/// Records in both directions. Dropping it tells the successor that nothing comes of it, unless that has
/// been settled.
#[derive(Debug)]
pub(super) struct Channel {
    stream: Stream,
    input: Assembler,
    pub(super) settled: bool,
    /// The rest of a record did not leave, so nothing else may.
    broken: bool,
    /// What tells the successor that nothing comes of it where there is no room for a record (eventfd(2)). It has a
    /// copy.
    revocation: Option<OwnedFd>,
    /// A child that this one forks has no say.
    process: u32,
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        let stream = Inner::current().reactor.adopt_stream(socket);
        let (input, process) = (Assembler::default(), std::process::id());
        Self { stream, input, settled: false, broken: false, revocation: None, process }
    }

    /// Makes what the successor can see that it has been given up by. `None` if the kernel has none.
    pub(super) fn revocable(&mut self) -> Option<BorrowedFd<'_>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        self.revocation = rustix::event::eventfd(0, flags).ok();
        self.revocation.as_ref().map(AsFd::as_fd)
    }

    /// Sends a record. By hand: the reactor's sends carry no descriptors, and with room in the socket, as
    /// nearly always, this is one call.
    pub(super) async fn send(
        &mut self,
        stage: Stage,
        kind: Kind,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<(), RestartError> {
        if self.broken {
            return Err(RestartError::Ended { stage });
        }
        let record = [&wire::header(kind, body.len(), descriptors.len()), body].concat();
        let mut rest = record.as_slice();
        let mut descriptors = descriptors;
        let mut pause = SEND_PAUSE_MIN;
        self.broken = true;
        while !rest.is_empty() {
            match handover::send(self.stream.socket(), rest, descriptors) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    descriptors = &[];
                    pause = SEND_PAUSE_MIN;
                }
                Err(error) => match Errno::from_io_error(&error) {
                    // Room comes as the successor reads; a Unix-domain socket tells no poll of ours.
                    Some(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => {
                        deadline.check(stage)?;
                        crate::sleep(pause).await;
                        pause = (pause * 2).min(SEND_PAUSE_MAX);
                    }
                    Some(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                        return Err(RestartError::Ended { stage });
                    }
                    _ => return Err(RestartError::system("send to the successor", error)),
                },
            }
        }
        self.broken = false;
        Ok(())
    }

    /// The next record of the successor, which sends no descriptors.
    pub(super) async fn next(
        &mut self,
        stage: Stage,
        deadline: Deadline,
    ) -> Result<Record, RestartError> {
        let left = deadline.at.saturating_duration_since(Instant::now());
        match crate::timeout(left, self.record(stage)).await {
            Ok(result) => result,
            Err(_) => Err(deadline.passed(stage)),
        }
    }

    async fn record(&mut self, stage: Stage) -> Result<Record, RestartError> {
        loop {
            if let Some(record) = self.input.next()? {
                if record.kind == Kind::GiveUp {
                    let reason = wire::readable(&record.body);
                    return Err(RestartError::GaveUp { stage, reason });
                }
                return Ok(record);
            }
            match poll_fn(|context| self.stream.poll_receive(context)).await {
                Ok(Inbound::Chunk(chunk))
                    if self.input.pending() + chunk.len() <= INPUT_BYTES_MAX =>
                {
                    self.input.push(chunk.as_slice());
                }
                Ok(Inbound::Chunk(_)) => return Err(wire::protocol("more than was asked for")),
                Ok(_) | Err(StreamError::PeerGone) => return Err(RestartError::Ended { stage }),
                // This process can't hear the successor any more, which may well be there.
                Err(StreamError::Kernel { errno }) => {
                    let source = io::Error::from_raw_os_error(errno);
                    return Err(RestartError::system("hear the successor", source));
                }
                Err(_) => return Err(RestartError::RuntimeEnded),
            }
        }
    }

    /// What the successor has said unasked, or why it can't be heard; with nothing there, nothing is wrong.
    pub(super) fn check(&mut self, stage: Stage) -> Result<(), RestartError> {
        let record = pin!(self.record(stage));
        match record.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(_)) => Err(wire::protocol("more than was asked for")),
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    /// Takes no more records than have been sent by now: what the successor sends later fails. Gives the
    /// next of them, if there is one.
    pub(super) async fn last(&mut self, stage: Stage) -> Result<Record, RestartError> {
        // unix(7) sockets: SHUT_RD makes the other end's sends fail with EPIPE; what is in the queue can
        // still be read, and then the end of the stream, so that this waits for nobody.
        let _ = rustix::net::shutdown(self.stream.socket(), Shutdown::Read);
        self.record(stage).await
    }

    /// Tells the successor why nothing comes of it. Best effort, and the last thing that is sent.
    pub(super) fn give_up(&mut self, kind: Kind, body: &[u8]) {
        if std::mem::replace(&mut self.settled, true) || self.process != std::process::id() {
            return;
        }
        if let Some(revocation) = &self.revocation {
            // A counter of zero has room for one.
            let _ = rustix::io::write(revocation, &1_u64.to_ne_bytes());
        }
        if !self.broken {
            let record = [&wire::header(kind, body.len(), 0), body].concat();
            let _ = handover::send(self.stream.socket(), &record, &[]);
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.give_up(Kind::GiveUp, b"the predecessor goes on by itself");
    }
}

/// Until when something may take, and how long that was at first, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    milliseconds: u64,
}

impl Deadline {
    pub(super) fn after(milliseconds: u64) -> Self {
        let milliseconds = milliseconds.min(super::LIMIT_MS_MAX);
        Self { at: Instant::now() + Duration::from_millis(milliseconds), milliseconds }
    }

    pub(super) fn check(&self, stage: Stage) -> Result<(), RestartError> {
        if Instant::now() < self.at { Ok(()) } else { Err(self.passed(stage)) }
    }

    pub(super) fn passed(&self, stage: Stage) -> RestartError {
        RestartError::TimedOut { stage, milliseconds: self.milliseconds }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::Runtime;

    /// As after a fork: the socket is its parent's, whose restart goes on.
    #[test]
    fn another_process_gives_nothing_up() {
        let runtime = Runtime::new().expect("a runtime");
        for (is_ours, tells) in [(true, true), (false, false)] {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            runtime.block_on(async {
                let mut channel = Channel::new(ours.into());
                channel.process += u32::from(!is_ours);
            });
            runtime.turn(Some(Duration::ZERO)).expect("the engine runs");
            let mut said = Vec::new();
            theirs.read_to_end(&mut said).expect("the end");
            assert_eq!(!said.is_empty(), tells);
        }
    }
}
