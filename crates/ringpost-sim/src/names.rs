//! Names in the abstract namespace that nobody else has.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A name that no other process and no other run has.
pub(crate) fn next() -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("ringpost-sim-{}-{number}", std::process::id())
}

pub(crate) fn address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(name).expect("a short name")
}
