//! `cargo xtask doctor`: what this machine offers to ringpost, and what it lacks.

use anyhow::Result;
use io_uring::{cqueue, squeue};

/// Arguments of `cargo xtask doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {}

pub(crate) fn run(_: &DoctorArgs) -> Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = [
        (
            "kernel",
            sysctl("kernel.osrelease"),
            "io_uring takes 6.1 at least; 6.12 adds shared receive blocks".to_owned(),
        ),
        ("io_uring", ring().unwrap_or_else(|reason| reason), uring_meaning()),
        (
            "locked memory",
            limit(&limits, "Max locked memory"),
            "bounds the memory of all rings of this user, unless it has CAP_IPC_LOCK".to_owned(),
        ),
        (
            "open files",
            limit(&limits, "Max open files"),
            "each connection takes one; soft limit, raise with ulimit -n".to_owned(),
        ),
        (
            "cores",
            cores.to_string(),
            match cores {
                1 => "spinning cannot pay: the other side needs the core".to_owned(),
                _ => "spinning pays while fewer threads run than there are cores".to_owned(),
            },
        ),
        (
            "net.core.wmem_max",
            sysctl("net.core.wmem_max"),
            "the largest send buffer in bytes that a socket may ask for".to_owned(),
        ),
        (
            "net.core.somaxconn",
            sysctl("net.core.somaxconn"),
            "the largest backlog of a listener; beyond it, connecting fails with EAGAIN".to_owned(),
        ),
        (
            "net.unix.max_dgram_qlen",
            sysctl("net.unix.max_dgram_qlen"),
            "datagrams that wait at a receiver before senders do; streams are not affected"
                .to_owned(),
        ),
    ];
    for (name, value, meaning) in rows {
        println!("{name:<24} {value:<28} {meaning}");
    }
    Ok(())
}

/// Makes a ring as ringpost does, and lets it go again.
fn ring() -> Result<String, String> {
    let mut builder = io_uring::IoUring::<squeue::Entry, cqueue::Entry>::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_cqsize(2048);
    match builder.build(1024).map(drop) {
        Ok(()) => Ok("available".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            Err("too old: before Linux 6.1".to_owned())
        }
        Err(error) => Err(format!("refused: {error}")),
    }
}

fn uring_meaning() -> String {
    match sysctl("kernel.io_uring_disabled").as_str() {
        "0" => {
            "kernel.io_uring_disabled is 0: everyone may; if refused, it is by a seccomp profile"
        }
        "1" => "kernel.io_uring_disabled is 1: only with CAP_SYS_ADMIN or the right group",
        "2" => "kernel.io_uring_disabled is 2: nobody may; ringpost uses epoll",
        _ => "this kernel has no switch for it (before 6.6)",
    }
    .to_owned()
}

/// The value of a sysctl, or "unknown".
fn sysctl(name: &str) -> String {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path)
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The soft limit of a line in `/proc/self/limits`, whose columns are separated by two spaces.
fn limit(limits: &str, name: &str) -> String {
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_limits() {
        let limits = "\
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 524288               files
Max locked memory         unlimited            unlimited            bytes
";
        assert_eq!(limit(limits, "Max open files"), "1024");
        assert_eq!(limit(limits, "Max locked memory"), "unlimited");
        assert_eq!(limit(limits, "Max nice priority"), "unknown");
    }

    #[test]
    fn reads_sysctls() {
        assert_ne!(sysctl("kernel.osrelease"), "unknown");
        assert_eq!(sysctl("no.such.thing"), "unknown");
    }
}
