//! What of ringpost a run has on the simulated kernel.

use ringpost::sim::{Choices, Machine, Rates};

use crate::scenarios::{self, Scenario};

/// Where the simulated kernel is put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seam {
    /// The reactor, on a simulated engine.
    Engine,
    /// The reactor and the io_uring engine, on a simulated ring.
    Ring,
}

impl Seam {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Engine, Self::Ring];

    /// What the name of a scenario has behind it.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Engine => "",
            Self::Ring => "/ring",
        }
    }

    /// The scenario of a name, and where it is played: `echo` on the engine, `echo/ring` on the ring.
    pub fn find(name: &str) -> Option<(&'static Scenario, Self)> {
        match name.strip_suffix(Self::Ring.suffix()) {
            Some(name) => Some((scenarios::find(name)?, Self::Ring)),
            None => Some((scenarios::find(name)?, Self::Engine)),
        }
    }

    /// A kernel, and its faults.
    pub(crate) fn choose(self, choices: &mut dyn Choices) -> (Machine, Rates) {
        match self {
            Self::Engine => (Machine::choose(choices), Rates::choose(choices)),
            Self::Ring => {
                let machine = Machine::choose(choices).with_ring(choices);
                (machine, Rates::choose_with_ring(choices))
            }
        }
    }
}
