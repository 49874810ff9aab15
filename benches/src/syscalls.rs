//! How many system calls a process makes, counted by the kernel.
//!
//! The same method for all contenders: a perf counter of the tracepoint `raw_syscalls:sys_enter` on
//! every thread of the server. It needs no help from the program that is counted, sees what its
//! runtime does behind its back, and counts an `io_uring_enter` as one call however many operations
//! it carries.
//!
//! An open counter makes every system call of the machine take the slow way in and out: 220
//! instead of 120 ns for the cheapest one on the reference machine, and 120 again once the counter
//! is closed (test `cost_of_counting`). That would be a handicap in proportion to the number of calls, so
//! counters are open only during a phase of its own after the measured one, see [`crate::meter`].

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};
use rustix::{
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};

use crate::sys;

/// The kernel's number of the tracepoint that every system call passes.
///
/// Looked up in tracefs where it is mounted, otherwise in an instance of it that is attached
/// nowhere and gone when this function returns.
pub(crate) fn tracepoint() -> Result<u64> {
    let text = match fs::read_to_string(format!("/sys/kernel/tracing/{ID_PATH}")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => read_detached()?,
        Err(error) => return Err(error).context("reading tracefs"),
    };
    text.trim().parse().context("number of a tracepoint")
}

/// Counters on all threads of one process.
#[derive(Debug)]
pub(crate) struct SyscallCounter {
    counters: Vec<OwnedFd>,
}

impl SyscallCounter {
    /// Starts to count in the process `pid`.
    pub(crate) fn attach(tracepoint: u64, pid: i32) -> Result<Self> {
        let mut counters = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).context("threads of the server")? {
            let name = entry?.file_name();
            let tid = name.to_string_lossy().parse().context("thread id")?;
            match sys::open_tracepoint_counter(tracepoint, tid) {
                Ok(counter) => counters.push(counter),
                // The thread ended in the meantime.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error).context("opening a perf counter"),
            }
        }
        Ok(Self { counters })
    }

    /// Calls counted so far.
    pub(crate) fn total(&self) -> Result<u64> {
        let mut total = 0;
        for counter in &self.counters {
            let mut value = [0; 8];
            let count = rustix::io::read(counter, &mut value).context("reading a perf counter")?;
            anyhow::ensure!(count == value.len(), "short read of a perf counter");
            total += u64::from_ne_bytes(value);
        }
        Ok(total)
    }
}

fn read_detached() -> Result<String> {
    let context = "no tracefs is mounted and none may be opened";
    let config = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC).context(context)?;
    rustix::mount::fsconfig_create(config.as_fd()).context(context)?;
    let root = rustix::mount::fsmount(
        config.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
    .context(context)?;
    let file = rustix::fs::openat(root, ID_PATH, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context(context)?;
    io::read_to_string(fs::File::from(file)).context(context)
}

const ID_PATH: &str = "events/raw_syscalls/sys_enter/id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_calls_are_counted() -> Result<()> {
        let counter = match tracepoint().and_then(|id| SyscallCounter::attach(id, own_pid())) {
            Ok(counter) => counter,
            Err(error) => {
                println!("skipped: {error:#}");
                return Ok(());
            }
        };
        let before = counter.total()?;
        for _ in 0..1000 {
            let _ = rustix::process::getppid();
        }
        let calls = counter.total()? - before;
        // Other tests run in the same process; they only make the count larger.
        assert!(calls >= 1000, "{calls}");
        Ok(())
    }

    #[test]
    #[ignore = "a measurement: run with --release -- --ignored --nocapture"]
    fn cost_of_counting() -> Result<()> {
        let clock = sys::ProcessClock::of(0)?;
        let calls = 1_000_000;
        let measure = || -> Result<u64> {
            let start = clock.now_ns()?;
            for _ in 0..calls {
                let _ = rustix::process::getppid();
            }
            Ok((clock.now_ns()? - start) / calls)
        };
        let without = measure()?;
        let counter = SyscallCounter::attach(tracepoint()?, own_pid())?;
        let with = measure()?;
        drop(counter);
        println!("{without} ns per call, {with} ns counted, {} ns after that", measure()?);
        Ok(())
    }

    fn own_pid() -> i32 {
        rustix::process::getpid().as_raw_nonzero().get()
    }
}
