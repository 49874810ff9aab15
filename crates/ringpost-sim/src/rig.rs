//! What scenarios are made with.

use std::cell::Cell;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ringpost::sim::{Fault, Rates, Simulation};
use ringpost::{Connection, ConnectionOptions, Handle, sleep, yield_now};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// What a scenario has at hand. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Rig {
    simulation: Simulation,
    rates: Rates,
    /// Futures are dropped before they are ready, now and then.
    drops: Rc<Cell<bool>>,
    /// The scenario's own waits, and what the clock has jumped.
    slept: Rc<Cell<Duration>>,
    jumped: Rc<Cell<Duration>>,
    handle: Handle,
    pub(crate) outbound_bytes_max: usize,
}

/// Greetings may take as long as this: longer than anything that is not stuck.
const HANDSHAKE_MS_MAX: u64 = 60_000;

impl Rig {
    pub(crate) fn new(
        simulation: Simulation,
        rates: Rates,
        handle: Handle,
        outbound_bytes_max: usize,
    ) -> Self {
        let (drops, slept, jumped) = Default::default();
        Self { simulation, rates, drops, slept, jumped, handle, outbound_bytes_max }
    }

    pub(crate) fn slept(&self) -> Duration {
        self.slept.get()
    }

    /// The scenario waits for so long, by other means than [`Rig::rest`].
    pub(crate) fn waits(&self, time: Duration) {
        self.slept.set(self.slept.get() + time);
    }

    pub(crate) fn now(&self) -> Instant {
        self.simulation.now()
    }

    /// Has the clock jump.
    pub(crate) fn jump(&self, time: Duration) {
        self.waits(time);
        self.jumped.set(self.jumped() + time);
        self.simulation.advance(time);
    }

    /// How far the clock has jumped altogether.
    pub(crate) fn jumped(&self) -> Duration {
        self.jumped.get()
    }

    /// Reaches the runtime from elsewhere.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(crate) fn drop_futures(&self) {
        self.drops.set(true);
    }

    /// From now on a peer may seem gone.
    pub(crate) fn expect_gone_peers(&self) {
        self.expect(Fault::PeerGone, [1, 4, 16][self.below(3)]);
    }

    /// From now on this happens so often, in 256 occasions.
    pub(crate) fn expect(&self, fault: Fault, rate: u8) {
        let mut rates = self.rates.clone();
        rates.set(fault, rate);
        self.simulation.set_rates(rates);
    }

    /// After so many more enters the kernel refuses every one.
    pub(crate) fn refuse_after(&self, enters: u64) {
        self.simulation.refuse_after(enters);
    }

    /// A number below `n`.
    pub(crate) fn below(&self, n: usize) -> usize {
        self.simulation.below(u32::try_from(n).expect("small")) as usize
    }

    /// True one time in `n`.
    pub(crate) fn once_in(&self, n: usize) -> bool {
        n > 0 && self.below(n) == n - 1
    }

    pub(crate) fn options(&self) -> ConnectionOptions {
        let gather = [2048, 1, 64 << 10][self.below(3)];
        ConnectionOptions::new().handshake_ms_max(HANDSHAKE_MS_MAX).gather_bytes_min(gather)
    }

    /// Two connected sockets, with little room in them now and then.
    pub(crate) fn sockets(&self) -> (UnixStream, UnixStream) {
        let pair = UnixStream::pair().expect("sockets");
        for socket in [&pair.0, &pair.1] {
            if let Some(bytes) = [None, None, Some(1), Some(20_000)][self.below(4)] {
                rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes).expect("a size");
            }
        }
        pair
    }

    pub(crate) fn pair(&self, options: ConnectionOptions) -> (Connection, Connection) {
        let (left, right) = self.sockets();
        let connection = |socket| Connection::from_socket(OwnedFd::from(socket), options);
        (connection(left), connection(right))
    }

    /// Two connections over packet sockets.
    pub(crate) fn pair_of_packets(&self) -> (Connection, Connection) {
        let flags = SocketFlags::CLOEXEC;
        let (left, right) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
        let options = self.options().seqpacket();
        (Connection::from_socket(left, options), Connection::from_socket(right, options))
    }

    /// Does nothing, for some time.
    pub(crate) async fn dawdle(&self) {
        match self.below(8) {
            5 | 6 => yield_now().await,
            7 => self.rest([1, 50, 2000][self.below(3)]).await,
            _ => {}
        }
    }

    pub(crate) async fn rest(&self, microseconds: u64) {
        let rest = Duration::from_micros(microseconds);
        self.slept.set(self.slept.get() + rest);
        sleep(rest).await;
    }

    /// Runs a future to its end; where futures are dropped, polls it a few times only.
    pub(crate) async fn attempt<F: Future>(&self, future: F) -> Option<F::Output> {
        if !self.drops.get() {
            return Some(future.await);
        }
        let polls = self.below(3) + 1;
        {
            let mut future = pin!(future);
            for _ in 0..polls {
                let outcome = poll_fn(|context| match future.as_mut().poll(context) {
                    Poll::Ready(value) => Poll::Ready(Some(value)),
                    Poll::Pending => Poll::Ready(None),
                })
                .await;
                if outcome.is_some() {
                    return outcome;
                }
                yield_now().await;
            }
        }
        self.rest(1 + self.below(20) as u64).await;
        None
    }
}

/// Repeats what may be dropped until it is ready.
macro_rules! insist {
    ($rig:expr, $future:expr) => {
        loop {
            if let Some(value) = $rig.attempt($future).await {
                break value;
            }
        }
    };
}
pub(crate) use insist;
