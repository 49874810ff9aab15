//! Waking a ring that is parked on another thread.

use std::hint::spin_loop;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use io_uring::squeue::Flags;
use io_uring::{opcode, types};

use super::clock::{Sample, Stopwatch, median, nanoseconds};
use super::ring::{Ring, Setup};
use super::run::Runner;
use super::sys;
use super::worker::{Placement, Worker};

/// How the parked ring is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bell {
    /// An eventfd that the parked ring polls (multishot, edge-triggered).
    EventFd,
    /// `IORING_REGISTER_SEND_MSG_RING`, without a ring of the caller's own.
    Blind,
    /// `MSG_RING` from the caller's ring.
    SecondRing,
    /// A futex that the parked ring waits for, armed anew for every sleep.
    Futex,
}

/// What both threads see.
struct Shared {
    /// Number of the sleep that the consumer is going into.
    sleep: AtomicU64,
    /// When the last wake-up was started, nanoseconds since `base`.
    rung: AtomicU64,
    base: Instant,
    ring: AtomicI32,
    word: AtomicU32,
    event: std::os::fd::OwnedFd,
}

impl Shared {
    fn new() -> Result<Self> {
        Ok(Self {
            sleep: AtomicU64::new(0),
            rung: AtomicU64::new(0),
            base: Instant::now(),
            ring: AtomicI32::new(-1),
            word: AtomicU32::new(0),
            event: sys::eventfd()?,
        })
    }
}

/// Producer's CPU time for a wake-up, consumer's CPU time for it, median time from the start of the
/// wake-up until the consumer runs.
pub(super) fn wake(bell: Bell, wakes: u64, placement: &Placement) -> Result<Runner> {
    let shared = Arc::new(Shared::new()?);
    let far = Arc::clone(&shared);
    let worker = Worker::spawn(placement, move || {
        let mut sleeper = Sleeper::new(bell, far)?;
        Ok(move |wakes| sleeper.sleep(wakes))
    })?;
    let target = shared.ring.load(Ordering::Acquire);
    ensure!(target >= 0, "the parked ring has no descriptor");
    let mut ringer = Ringer { ring: Ring::new(Setup::PROJECT)?, shared, bell, target };
    let mut sleeps = 0;
    Ok(Box::new(move || {
        worker.start(wakes)?;
        let mut watch = Stopwatch::thread();
        for _ in 0..wakes {
            sleeps += 1;
            while ringer.shared.sleep.load(Ordering::Acquire) != sleeps {
                spin_loop();
            }
            let asleep = Instant::now() + FALL_ASLEEP;
            while Instant::now() < asleep {
                spin_loop();
            }
            watch.start();
            ringer.ring()?;
            watch.stop();
        }
        let consumer = worker.finish()?;
        let sample = watch.sample(wakes, 0);
        Ok(Sample { latency: consumer.latency, other: consumer.cpu, ..sample })
    }))
}

/// One thread rings its own ring and reaps: the mechanism without the wake-up. The futex has to be
/// armed first, which takes an `enter` that a ring about to park makes anyway.
pub(super) fn wake_oneself(bell: Bell, wakes: u64) -> Result<Runner> {
    let shared = Arc::new(Shared::new()?);
    let mut sleeper = Sleeper::new(bell, Arc::clone(&shared))?;
    let target = sleeper.ring.as_raw_fd();
    let mut ringer = Ringer { ring: Ring::new(Setup::PROJECT)?, shared, bell, target };
    Ok(Box::new(move || {
        let mut watch = Stopwatch::thread();
        watch.start();
        for _ in 0..wakes {
            if bell == Bell::Futex {
                sleeper.arm()?;
                sleeper.ring.enter(0)?;
            }
            ringer.ring()?;
            sleeper.ring.enter(0)?;
            let done = sleeper.ring.next().context("the bell was not heard")?;
            ensure!(done.user_data == WAKE && done.result >= 0, "woken by something else");
        }
        watch.stop();
        Ok(watch.sample(wakes, 0))
    }))
}

/// Long enough for the consumer to have gone to sleep after it has said so.
const FALL_ASLEEP: Duration = Duration::from_micros(40);

struct Ringer {
    ring: Ring,
    shared: Arc<Shared>,
    bell: Bell,
    target: RawFd,
}

impl Ringer {
    #[inline]
    fn ring(&mut self) -> Result<()> {
        let now = nanoseconds(self.shared.base, Instant::now());
        self.shared.rung.store(now, Ordering::Release);
        match self.bell {
            Bell::EventFd => {
                rustix::io::write(self.shared.event.as_fd(), &1_u64.to_ne_bytes())
                    .context("writing to the eventfd")?;
            }
            Bell::Blind => sys::send_msg_ring(&message(self.target)).context("blind MSG_RING")?,
            Bell::SecondRing => {
                let entry = message(self.target).flags(Flags::SKIP_SUCCESS);
                // SAFETY: a data message points to no memory.
                unsafe { self.ring.push(&entry) }?;
                self.ring.enter(0)?;
                ensure!(self.ring.next().is_none(), "MSG_RING failed");
            }
            Bell::Futex => {
                self.shared.word.fetch_add(1, Ordering::Release);
                sys::futex_wake(&self.shared.word).context("waking the futex")?;
            }
        }
        Ok(())
    }
}

fn message(target: RawFd) -> io_uring::squeue::Entry {
    opcode::MsgRingData::new(types::Fd(target), 0, WAKE, None).build()
}

const WAKE: u64 = 9;

struct Sleeper {
    ring: Ring,
    shared: Arc<Shared>,
    bell: Bell,
    sleeps: u64,
}

impl Sleeper {
    fn new(bell: Bell, shared: Arc<Shared>) -> Result<Self> {
        let mut ring = Ring::new(Setup::PROJECT)?;
        if bell == Bell::EventFd {
            #[expect(clippy::cast_sign_loss, reason = "flag bits")]
            let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
            let fd = types::Fd(shared.event.as_raw_fd());
            let entry = opcode::PollAdd::new(fd, events).multi(true).build();
            // SAFETY: a poll points to no memory.
            unsafe { ring.push(&entry.user_data(WAKE)) }?;
            ring.enter(0)?;
        }
        shared.ring.store(ring.as_raw_fd(), Ordering::Release);
        Ok(Self { ring, shared, bell, sleeps: 0 })
    }

    /// Waits for the futex to change.
    fn arm(&mut self) -> Result<()> {
        let word = &self.shared.word;
        let expected = u64::from(word.load(Ordering::Acquire));
        let any = u64::from(u32::MAX);
        let flags = sys::FUTEX_PRIVATE_U32;
        let entry = opcode::FutexWait::new(word.as_ptr(), expected, any, flags).build();
        // SAFETY: the word lives in shared memory that this value keeps alive longer than the ring.
        unsafe { self.ring.push(&entry.user_data(WAKE)) }
    }

    fn sleep(&mut self, wakes: u64) -> Result<Sample> {
        let mut watch = Stopwatch::thread();
        let mut latencies = Vec::with_capacity(usize::try_from(wakes)?);
        let enters = self.ring.enters;
        watch.start();
        for _ in 0..wakes {
            self.sleeps += 1;
            if self.bell == Bell::Futex {
                self.arm()?;
            }
            self.shared.sleep.store(self.sleeps, Ordering::Release);
            let done = loop {
                self.ring.enter(1)?;
                if let Some(done) = self.ring.next() {
                    break done;
                }
            };
            let woken = nanoseconds(self.shared.base, Instant::now());
            let since = self.shared.rung.load(Ordering::Acquire);
            latencies.push(woken.saturating_sub(since) as f64);
            // EAGAIN: the futex had been rung before the ring looked at it.
            let rung = done.result >= 0 || done.result == -libc::EAGAIN;
            ensure!(done.user_data == WAKE && rung, "woken by something else");
            ensure!(done.more() || self.bell != Bell::EventFd, "a multishot poll has ended");
        }
        watch.stop();
        let sample = watch.sample(wakes, self.ring.enters - enters);
        Ok(Sample { latency: median(latencies), ..sample })
    }
}
