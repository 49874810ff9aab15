//! What is played: each scenario is a program on connections, with what it expects of them.

mod ends;
mod listening;
mod passing;
mod traffic;

use crate::rig::Rig;
use crate::run::Body;

/// A scenario.
#[expect(missing_debug_implementations, reason = "a function")]
#[non_exhaustive]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    pub(crate) body: fn(Rig) -> Body,
    /// Everything is taken down at its end, so that nothing may be left.
    pub(crate) settles: bool,
}

macro_rules! scenarios {
    ($($name:literal $body:path, $settles:literal;)*) => {
        &[$(Scenario { name: $name, body: |rig| Box::pin($body(rig)), settles: $settles },)*]
    };
}

/// All scenarios.
pub const ALL: &[Scenario] = scenarios! {
    "echo" traffic::echo, true;
    "backpressure" traffic::backpressure, true;
    "bulk" traffic::bulk, true;
    "forward" traffic::forward, true;
    "drops" traffic::drops, true;
    "prefixed" traffic::prefixed, true;
    "bytes" traffic::bytes, true;
    "packets" traffic::packets, true;
    "ends" ends::ends, true;
    "gone" ends::gone, true;
    "abandoned" ends::abandoned, false;
    "accept" listening::accept, true;
    "descriptors" passing::descriptors, true;
    "unclaimed" passing::unclaimed, true;
};

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}
