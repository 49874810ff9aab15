//! What is played: each scenario is a program on connections, with what it expects of them.

mod datagrams;
mod deadlines;
mod ends;
mod failing;
mod flood;
mod hostile;
mod listening;
mod passing;
mod traffic;
mod truncated;

use crate::rig::Rig;
use crate::run::Body;

/// A scenario.
#[expect(missing_debug_implementations, reason = "a function")]
#[non_exhaustive]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    pub(crate) body: fn(Rig) -> Body,
    pub(crate) end: End,
}

/// What may be left at the end of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing: everything has been taken down, and all that is under way comes to its end.
    Settled,
    /// What the runtime takes down.
    Abandoned,
    /// What the kernel may use for ever: the engine has failed.
    Leaked,
}

macro_rules! scenarios {
    ($($name:literal $body:path, $end:path;)*) => {
        &[$(Scenario { name: $name, body: |rig| Box::pin($body(rig)), end: $end },)*]
    };
}

/// All scenarios.
pub const ALL: &[Scenario] = scenarios! {
    "echo" traffic::echo, End::Settled;
    "backpressure" traffic::backpressure, End::Settled;
    "bulk" traffic::bulk, End::Settled;
    "forward" traffic::forward, End::Settled;
    "drops" traffic::drops, End::Settled;
    "prefixed" traffic::prefixed, End::Settled;
    "bytes" traffic::bytes, End::Settled;
    "packets" traffic::packets, End::Settled;
    "ends" ends::ends, End::Settled;
    "gone" ends::gone, End::Settled;
    "abandoned" ends::abandoned, End::Abandoned;
    "accept" listening::accept, End::Settled;
    "deadlines" deadlines::deadlines, End::Settled;
    "hostile" hostile::hostile, End::Settled;
    "flood" flood::flood, End::Settled;
    "datagrams" datagrams::datagrams, End::Settled;
    "truncated" truncated::truncated, End::Settled;
    "fatal" failing::fatal, End::Leaked;
    "descriptors" passing::descriptors, End::Settled;
    "unclaimed" passing::unclaimed, End::Settled;
};

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
