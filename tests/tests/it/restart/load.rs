//! Clients that never rest and count everything.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringpost_frame::{FrameKind, HEADER_BYTES, HELLO_BYTES};
use ringpost_testkit::pattern;
use ringpost_testkit::peer::{RawPeer, frame, greeting, message};

/// Clients on threads, until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pub(crate) answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn new() -> Self {
        Self { stop: Arc::default(), answered: Arc::default(), clients: Vec::new() }
    }

    fn add(&mut self, client: impl FnOnce(&AtomicBool, &AtomicU64) + Send + 'static) {
        let (stop, answered) = (Arc::clone(&self.stop), Arc::clone(&self.answered));
        self.clients.push(thread::spawn(move || client(&stop, &answered)));
    }

    /// A client that connects, exchanges some messages, ends properly, and connects again.
    pub(crate) fn comes_and_goes(&mut self, path: &str) {
        let path = PathBuf::from(path);
        self.add(move |stop, answered| {
            let mut sequence = 0;
            while !stop.load(Ordering::Relaxed) {
                // Any refusal fails here.
                let mut peer = RawPeer::connect(&path);
                peer.send(&greeting());
                // Sent before anybody has accepted.
                for number in sequence..sequence + 8 {
                    peer.send(&message(&pattern::payload(number, length(number))));
                }
                peer.read_hello();
                for number in sequence..sequence + 8 {
                    let body = next_message(&mut peer);
                    pattern::check(number, length(number), &body);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                sequence += 8;
                peer.send(&frame(FrameKind::Fin, &[]));
                loop {
                    let end = peer.read_frame().expect("FIN and no abort");
                    match end.header.kind {
                        FrameKind::GoAway => {}
                        FrameKind::Fin => break,
                        other => panic!("{other:?} after all answers"),
                    }
                }
                peer.expect_end();
            }
        });
    }

    /// A client whose one connection stays open for ever: a writer that cuts the stream at odd places, and a
    /// reader that checks every answer.
    pub(crate) fn stays(&mut self, path: &str, native: bool) {
        let stream = UnixStream::connect(path).expect("the first generation listens");
        let limit = Some(Duration::from_secs(15));
        stream.set_read_timeout(limit).expect("a socket");
        stream.set_write_timeout(limit).expect("a socket");
        let mut writer = stream.try_clone().expect("a descriptor");
        let sent = Arc::new(AtomicU64::new(0));
        let done = Arc::new(AtomicBool::new(false));
        let (all_sent, is_done) = (Arc::clone(&sent), Arc::clone(&done));
        self.add(move |stop, _| {
            if native {
                writer.write_all(&greeting()).expect("taken");
            }
            let mut rng = fastrand::Rng::with_seed(11);
            let mut number = 0;
            let mut pending = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..rng.u64(1..6) {
                    let body = pattern::payload(number, length(number));
                    if native {
                        pending.extend(message(&body));
                    } else {
                        let len = u32::try_from(body.len()).expect("short");
                        pending.extend(len.to_be_bytes());
                        pending.extend(body);
                    }
                    number += 1;
                }
                // Most of the time a part of a message, often of a header, stays behind.
                let whole = pending.len();
                let cut = whole - rng.usize(0..whole.min(40));
                writer.write_all(&pending[..cut]).expect("taken");
                pending.drain(..cut);
                if rng.u8(..) < 40 {
                    thread::sleep(Duration::from_micros(rng.u64(0..2000)));
                }
            }
            writer.write_all(&pending).expect("taken");
            all_sent.store(number, Ordering::Relaxed);
            is_done.store(true, Ordering::Release);
        });
        self.add(move |_, answered| {
            let mut reader = Reader { stream, native };
            if native {
                reader.exactly(HELLO_BYTES);
            }
            let mut number = 0;
            while !done.load(Ordering::Acquire) || number < sent.load(Ordering::Relaxed) {
                // The last answer may have come before the writer was done.
                let Some(body) = reader.message() else { continue };
                pattern::check(number, length(number), &body);
                number += 1;
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Answers so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until more have been answered, so that there is traffic between two events.
    #[track_caller]
    pub(crate) fn wait_for(&self, more: u64) {
        let target = self.answered() + more;
        let answered = Arc::clone(&self.answered);
        ringpost_testkit::patience::eventually("answers", Duration::from_secs(20), || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client has failed");
            answered.load(Ordering::Relaxed) >= target
        });
    }

    /// Ends the clients; what has failed in one of them fails here.
    pub(crate) fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        self.answered()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Most messages are short; some straddle receive blocks.
fn length(number: u64) -> usize {
    match number % 97 {
        96 => 150_000,
        rest if rest % 10 == 9 => 5000,
        rest => usize::try_from(rest).expect("small"),
    }
}

fn next_message(peer: &mut RawPeer) -> Vec<u8> {
    loop {
        let next = peer.read_frame().expect("a message and no end");
        match next.header.kind {
            FrameKind::Message => return next.body,
            FrameKind::GoAway => {}
            other => panic!("{other:?} instead of a message"),
        }
    }
}

struct Reader {
    stream: UnixStream,
    native: bool,
}

impl Reader {
    fn exactly(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("an answer in time");
        bytes
    }

    /// The next message; `None` if none begins for a while.
    fn message(&mut self) -> Option<Vec<u8>> {
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
        let mut first = [0];
        match self.stream.read(&mut first) {
            Ok(1) => {}
            Ok(_) => panic!("the connection has ended"),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return None;
            }
            Err(error) => panic!("no answer: {error}"),
        }
        self.stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a socket");
        let rest = self.exactly(if self.native { HEADER_BYTES - 1 } else { 3 });
        let len = if self.native {
            assert_eq!(rest[3], 1, "nothing but messages: the peer notices nothing");
            u32::from_le_bytes([first[0], rest[0], rest[1], rest[2]])
        } else {
            u32::from_be_bytes([first[0], rest[0], rest[1], rest[2]])
        };
        Some(self.exactly(len as usize))
    }
}
