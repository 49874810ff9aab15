//! A peer that is no ringpost: a bare socket, on which anything may be said.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringpost::sleep;

use crate::rig::Rig;
use crate::run::{LINGER, STUCK};

/// Looks again after so long, and after more and more when nothing has come.
const PAUSE: Duration = Duration::from_micros(100);
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// An end that is awaited comes before so much time has passed with nothing.
const END_MAX: Duration = Duration::from_secs(20);
/// Bytes that somebody is to read are taken before so much time has passed: a connection that was dropped with
/// bytes that this peer does not read either lingers before it lets go.
const TAKEN_MAX: Duration = LINGER.saturating_add(Duration::from_secs(5));
/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;

/// One end of a connection whose other end is a [`Connection`](ringpost::Connection). It waits by turns,
/// because the runtime is on the same thread.
#[derive(Debug)]
pub(crate) struct Raw {
    rig: Rig,
    socket: UnixStream,
    waited_max: Duration,
}

impl Raw {
    pub(crate) fn new(rig: &Rig, socket: UnixStream) -> Self {
        socket.set_nonblocking(true).expect("a socket");
        Self { rig: rig.clone(), socket, waited_max: Duration::ZERO }
    }

    /// Sends bytes, cut anywhere. False if nobody takes them any more.
    pub(crate) async fn send(&mut self, mut bytes: &[u8]) -> bool {
        let piece_bytes_max = [usize::MAX, 100, 7, 4000][self.rig.below(4)].max(bytes.len() / 64);
        let mut pause = PAUSE;
        let (mut waited, mut in_a_row) = (Duration::ZERO, Duration::ZERO);
        while !bytes.is_empty() {
            let len = 1 + self.rig.below(bytes.len().min(piece_bytes_max));
            match self.socket.write(&bytes[..len]) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    pause = PAUSE;
                    (waited, in_a_row) = (Duration::ZERO, Duration::ZERO);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(waited < TAKEN_MAX, "nobody takes {} bytes", bytes.len());
                    waited += pause;
                    let start = self.rig.now();
                    sleep(pause).await;
                    // Who spins may have looked at the clock long after.
                    let passed = self.rig.now() - start;
                    self.rig.waits(passed);
                    in_a_row += passed;
                    self.waited_max = self.waited_max.max(in_a_row);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(error) => {
                    let kind = error.kind();
                    let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&kind);
                    assert!(gone, "{error}");
                    return false;
                }
            }
            if self.rig.once_in(4) {
                sleep(PAUSE).await;
            }
        }
        true
    }

    /// All that comes before the end, which is a proper one or a reset.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut found = Vec::new();
        let mut bytes = vec![0; READ_BYTES];
        let mut pause = PAUSE;
        let mut waited = Duration::ZERO;
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return found,
                Ok(count) => {
                    found.extend_from_slice(&bytes[..count]);
                    (pause, waited) = (PAUSE, Duration::ZERO);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(waited < END_MAX, "no end after {} bytes", found.len());
                    waited += pause;
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                    return found;
                }
            }
        }
    }

    /// The other side has lingered until it gave up: this one read nothing, having bytes that nobody took.
    pub(crate) fn was_waited_for(&self) -> bool {
        self.waited_max > STUCK
    }

    /// Nothing more comes.
    pub(crate) fn shut_down_write(&self) {
        // The other side may have gone.
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}
