//! What is compared with what.

use std::fmt;

use anyhow::Result;

use super::clock::Measure;
use super::echo::{self, Receive, Server, Wait};
use super::hop::{Calls, hop};
use super::receive::{self, How, Traffic};
use super::ring::{Setup, Shape};
use super::run::Runner;
use super::turns::{Turn, ping_pong};
use super::wake::{Bell, wake, wake_oneself};
use super::worker::Placement;

/// One way to do it.
pub(super) struct Variant {
    pub(super) name: String,
    pub(super) build: Build,
}

/// Makes the sockets, rings and threads of a variant.
type Build = Box<dyn Fn(&Placement) -> Result<Runner>>;

/// Several ways to do the same thing; the first is the baseline.
pub(super) struct Comparison {
    label: &'static str,
    what: &'static str,
    two_threads: bool,
    measures: &'static [(Measure, &'static str)],
    variants: Vec<Variant>,
}

impl Comparison {
    fn one_thread(label: &'static str, what: &'static str) -> Self {
        Self { label, what, two_threads: false, measures: CPU, variants: Vec::new() }
    }

    fn two_threads_of(label: &'static str, what: &'static str, measures: Measures) -> Self {
        Self { label, what, two_threads: true, measures, variants: Vec::new() }
    }

    fn with(
        mut self,
        name: impl Into<String>,
        build: impl Fn(&Placement) -> Result<Runner> + 'static,
    ) -> Self {
        self.variants.push(Variant { name: name.into(), build: Box::new(build) });
        self
    }

    fn echo_one(self, name: &str, server: Server) -> Self {
        self.with(name, move |_| echo::one_thread(server, 30))
    }

    fn echo_two(self, name: &str, server: Server) -> Self {
        self.with(name, move |placement| echo::two_threads(server, 30, placement))
    }

    fn receive(self, name: impl Into<String>, traffic: Traffic, how: How) -> Self {
        self.with(name, move |_| receive::one_thread(traffic, how))
    }

    fn hop(self, name: &str, calls: Calls, setup: Setup) -> Self {
        self.with(name, move |_| hop(calls, setup, 1500))
    }

    fn turns(self, name: &str, turn: Turn, setup: Setup, turns: u64) -> Self {
        self.with(name, move |placement| ping_pong(turn, setup, turns, placement))
    }

    pub(super) fn label(&self) -> &'static str {
        self.label
    }

    pub(super) fn group(&self) -> u8 {
        self.label.as_bytes()[0] - b'0'
    }

    pub(super) fn two_threads(&self) -> bool {
        self.two_threads
    }

    pub(super) fn measures(&self) -> Measures {
        self.measures
    }

    pub(super) fn variants(&self) -> &[Variant] {
        &self.variants
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = if self.two_threads { "two threads" } else { "one thread" };
        let names: Vec<_> = self.variants.iter().map(|variant| variant.name.as_str()).collect();
        write!(f, "{} {} ({threads}): {}", self.label, self.what, names.join(" | "))
    }
}

type Measures = &'static [(Measure, &'static str)];

const CPU: Measures = &[(Measure::Cpu, "CPU")];
const CPU_AND_WALL: Measures = &[(Measure::Cpu, "CPU"), (Measure::Wall, "wall")];
const SERVER_CPU: Measures = &[(Measure::Cpu, "server CPU")];
const ROUND_TRIP: Measures = &[(Measure::Latency, "round trip p50")];
const ROUND_TRIP_AND_CPU: Measures =
    &[(Measure::Latency, "round trip p50"), (Measure::Cpu, "CPU, both threads")];
const WAKE: Measures = &[
    (Measure::Cpu, "producer CPU"),
    (Measure::Other, "consumer CPU"),
    (Measure::Latency, "wake to run p50"),
];

/// Everything that can be measured, in order.
pub(super) fn comparisons() -> Vec<Comparison> {
    let mut all = controls();
    all.extend(blocks());
    all.push(bundles());
    all.extend(descriptors());
    all.extend(wakes());
    all.extend(sends_and_waits());
    all.extend(flags());
    all.extend(spinning());
    all
}

/// The same thing twice: what these show is what the machine makes of no difference.
fn controls() -> Vec<Comparison> {
    vec![
        Comparison::one_thread("0a", "control: echo 64 x 64 B")
            .echo_one("the reactor's way", Server::PROJECT)
            .echo_one("the same", Server::PROJECT),
        Comparison::one_thread("0b", "control: one message and one `enter` a hop")
            .hop("the reactor's way", Calls::OneEnter, Setup::PROJECT)
            .hop("the same", Calls::OneEnter, Setup::PROJECT),
        Comparison::two_threads_of("0c", "control: echo 64 x 64 B, server parks", SERVER_CPU)
            .echo_two("the reactor's way", Server::PROJECT)
            .echo_two("the same", Server::PROJECT),
        Comparison::two_threads_of("0d", "control: ping-pong, both park", ROUND_TRIP_AND_CPU)
            .turns("the reactor's way", Turn::Park, Setup::PROJECT, 60)
            .turns("the same", Turn::Park, Setup::PROJECT, 60),
        Comparison::two_threads_of("0e", "control: ping-pong, both spin", ROUND_TRIP)
            .turns("the reactor's way", Turn::Flag, Setup::PROJECT, 300)
            .turns("the same", Turn::Flag, Setup::PROJECT, 300),
    ]
}

const SMALL: Traffic = Traffic { connections: 64, message_bytes: 64, batches: 40 };
const LARGE: Traffic = Traffic { connections: 1, message_bytes: 64 * 1024, batches: 150 };
const STREAM: Traffic = Traffic { connections: 1, message_bytes: 64 * 1024, batches: 300 };

const PLAIN_8: How = How { shape: Shape::plain(8, 128), bundle: false };
const INCREMENTAL_128: How = How { shape: Shape::PROJECT, bundle: false };

fn blocks() -> Vec<Comparison> {
    let pair =
        |label, what, traffic| {
            Comparison::one_thread(label, what)
                .receive("plain 8 KiB x128", traffic, PLAIN_8)
                .receive("INC 128 KiB x4", traffic, INCREMENTAL_128)
        };
    let matrix = |label, what, traffic| {
        let mut comparison =
            Comparison::one_thread(label, what).receive("INC 128 KiB x4", traffic, INCREMENTAL_128);
        for kib in [64, 128, 256, 1024] {
            for kept in [2, 4, 16] {
                if (kib, kept) != (128, 4) {
                    let how = How { shape: Shape::incremental(kib, kept), bundle: false };
                    comparison = comparison.receive(format!("INC {kib} KiB x{kept}"), traffic, how);
                }
            }
        }
        comparison
    };
    let parallel = Comparison::two_threads_of("1e", "64 KiB batches streamed", CPU_AND_WALL);
    let parallel = [
        ("plain 8 KiB x128", PLAIN_8),
        ("INC 128 KiB x4", INCREMENTAL_128),
        ("INC 64 KiB x2", How { shape: Shape::incremental(64, 2), bundle: false }),
        ("INC 64 KiB x4", How { shape: Shape::incremental(64, 4), bundle: false }),
        ("INC 128 KiB x2", How { shape: Shape::incremental(128, 2), bundle: false }),
        ("INC 128 KiB x16", How { shape: Shape::incremental(128, 16), bundle: false }),
        ("INC 256 KiB x4", How { shape: Shape::incremental(256, 4), bundle: false }),
        ("INC 1024 KiB x4", How { shape: Shape::incremental(1024, 4), bundle: false }),
        ("bundle 8 KiB x128", How { bundle: true, ..PLAIN_8 }),
    ]
    .into_iter()
    .fold(parallel, |comparison, (name, how)| {
        comparison.with(name, move |placement| receive::two_threads(STREAM, how, placement))
    });
    vec![
        pair("1a", "receive 64 x 64 B: plain or incremental blocks", SMALL),
        pair("1b", "receive 64 KiB batches: plain or incremental blocks", LARGE),
        matrix("1c", "receive 64 x 64 B: size and number of blocks", SMALL),
        matrix("1d", "receive 64 KiB batches: size and number of blocks", LARGE),
        parallel,
    ]
}

fn bundles() -> Comparison {
    let bundle = |kib, kept| How { shape: Shape::plain(kib, kept), bundle: true };
    Comparison::one_thread("2a", "receive 64 KiB batches: bundles")
        .receive("plain 8 KiB x128", LARGE, PLAIN_8)
        .receive("bundle 8 KiB x128", LARGE, bundle(8, 128))
        .receive("bundle 4 KiB x256", LARGE, bundle(4, 256))
        .receive("bundle 8 KiB x16", LARGE, bundle(8, 16))
        .receive("plain 64 KiB x4", LARGE, How { shape: Shape::plain(64, 4), bundle: false })
        .receive("INC 64 KiB x4", LARGE, How { shape: Shape::incremental(64, 4), bundle: false })
        .receive("INC 128 KiB x4", LARGE, INCREMENTAL_128)
}

const SINGLE: Server =
    Server { receive: Receive::Single { poll_first: false }, silent: false, ..Server::PROJECT };

fn descriptors() -> Vec<Comparison> {
    let plain = Setup { registered: false, ..Setup::PROJECT };
    vec![
        Comparison::one_thread("3a", "echo 64 x 64 B, multishot receive, silent send")
            .echo_one("descriptors", Server::PROJECT)
            .echo_one("fixed files", Server { fixed: true, ..Server::PROJECT }),
        Comparison::one_thread("3b", "echo 64 x 64 B, single receives, normal send")
            .echo_one("descriptors", SINGLE)
            .echo_one("fixed files", Server { fixed: true, ..SINGLE }),
        Comparison::one_thread("4a", "`enter` with nothing to do")
            .hop("ring descriptor", Calls::Empty, plain)
            .hop("registered ring", Calls::Empty, Setup::PROJECT),
        Comparison::one_thread("4b", "one message and one `enter` a hop")
            .hop("ring descriptor", Calls::OneEnter, plain)
            .hop("registered ring", Calls::OneEnter, Setup::PROJECT),
    ]
}

fn wakes() -> [Comparison; 2] {
    let bells = [
        ("eventfd, polled", Bell::EventFd),
        ("blind MSG_RING", Bell::Blind),
        ("MSG_RING from a ring", Bell::SecondRing),
        ("futex wait", Bell::Futex),
    ];
    let parked = Comparison::two_threads_of("5a", "wake a parked ring", WAKE);
    let alone = Comparison::one_thread("5b", "ring and reap, with nobody to wake");
    [
        bells.into_iter().fold(parked, |parked, (name, bell)| {
            parked.with(name, move |placement| wake(bell, 30, placement))
        }),
        bells
            .into_iter()
            .fold(alone, |alone, (name, bell)| alone.with(name, move |_| wake_oneself(bell, 1500))),
    ]
}

fn sends_and_waits() -> Vec<Comparison> {
    let silent = Server::PROJECT;
    let normal = Server { silent: false, ..silent };
    // More than one without a bound would wait for messages that the client sends only after replies.
    let least = |want, min_wait_us| Server { wait: Wait::Least(want, min_wait_us), ..silent };
    let waits = "echo 64 x 64 B, client cycles of 64: what to wait for";
    vec![
        Comparison::one_thread("6a", "echo 64 x 64 B: completion of a send")
            .echo_one("normal send", normal)
            .echo_one("silent send", silent),
        Comparison::two_threads_of("6b", "echo 64 x 64 B, server parks", SERVER_CPU)
            .echo_two("normal send", normal)
            .echo_two("silent send", silent),
        Comparison::two_threads_of("6c", "ping-pong, both park", ROUND_TRIP_AND_CPU)
            .turns("normal send", Turn::ParkLoudly, Setup::PROJECT, 60)
            .turns("silent send", Turn::Park, Setup::PROJECT, 60),
        Comparison::two_threads_of("7a", waits, CPU_AND_WALL)
            .echo_two("want 1", silent)
            .echo_two("want 8, 20 us", least(8, 20))
            .echo_two("want 32, 50 us", least(32, 50))
            .echo_two("want 64, 200 us", least(64, 200)),
    ]
}

fn flags() -> Vec<Comparison> {
    let single = |poll_first| Server { receive: Receive::Single { poll_first }, ..Server::PROJECT };
    let late = |poll_first| Server { receive: Receive::Late { poll_first }, ..Server::PROJECT };
    let whole = Server { whole: true, ..Server::PROJECT };
    let cooperative = Setup { defer: false, ..Setup::PROJECT };
    let iowait = Setup { no_iowait: false, ..Setup::PROJECT };
    let park = |label, what| Comparison::two_threads_of(label, what, ROUND_TRIP_AND_CPU);
    vec![
        Comparison::one_thread("8a", "single receives armed before the message comes")
            .echo_one("receive", single(false))
            .echo_one("POLL_FIRST", single(true)),
        Comparison::one_thread("8b", "single receives armed when the message is there")
            .echo_one("receive", late(false))
            .echo_one("POLL_FIRST", late(true)),
        Comparison::one_thread("8c", "echo 64 x 64 B, client counted too")
            .echo_one("DEFER_TASKRUN", whole)
            .echo_one("COOP_TASKRUN", Server { setup: cooperative, ..whole }),
        Comparison::two_threads_of("8d", "echo 64 x 64 B, server parks", SERVER_CPU)
            .echo_two("DEFER_TASKRUN", Server::PROJECT)
            .echo_two("COOP_TASKRUN", Server { setup: cooperative, ..Server::PROJECT }),
        park("8e", "ping-pong, both park")
            .turns("DEFER_TASKRUN", Turn::Park, Setup::PROJECT, 60)
            .turns("COOP_TASKRUN", Turn::Park, cooperative, 60),
        park("8f", "ping-pong, both park").turns("iowait", Turn::Park, iowait, 60).turns(
            "NO_IOWAIT",
            Turn::Park,
            Setup::PROJECT,
            60,
        ),
        park("8g", "ping-pong, both park")
            .turns("send, read", Turn::ParkInCall, Setup::PROJECT, 60)
            .turns("one enter", Turn::Park, Setup::PROJECT, 60),
    ]
}

fn spinning() -> Vec<Comparison> {
    let calls = Comparison::one_thread("9a", "one message, one hop: the calls alone")
        .hop("send + recv", Calls::SendReceive, Setup::PROJECT)
        .hop("one enter", Calls::OneEnter, Setup::PROJECT)
        .hop("two enters", Calls::TwoEnters, Setup::PROJECT)
        .hop("send + enter", Calls::SendEnter, Setup::PROJECT)
        .hop("enter + recv", Calls::EnterReceive, Setup::PROJECT);
    let trips = Comparison::two_threads_of("9b", "ping-pong, both spin", ROUND_TRIP);
    let trips = [
        ("send, recv", Turn::Calls),
        ("enter, flag, enter", Turn::Flag),
        ("enter again and again", Turn::Enter),
        ("send, flag, enter", Turn::CallAndFlag),
        ("enter, recv", Turn::EnterAndCall),
    ]
    .into_iter()
    .fold(trips, |trips, (name, turn)| trips.turns(name, turn, Setup::PROJECT, 300));
    let echo = Comparison::one_thread("9c", "echo 64 x 64 B: what the ring costs")
        .with("recv + send", |_| echo::bare_calls(30))
        .echo_one("ring", Server::PROJECT);
    vec![calls, trips, echo]
}
