//! Ctrl-C and SIGTERM: noticed between waits, so that children and sockets are cleaned up.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};

/// Whether the user wants the program to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt {
    raised: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over the two signals.
    pub(crate) fn install() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.raised))
                .context("signal handler")?;
        }
        Ok(interrupt)
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Fails if the program is to end.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_raised() { bail!("interrupted") } else { Ok(()) }
    }
}
