//! Children that are stopped at a system call (ptrace(2)), to be killed or stalled there.
//!
//! A process changes what others see only by system calls. Killing it before each of them in turn, from the
//! first to the last, therefore shows every state that a killed process can leave behind.

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};

use crate::child::{Child, say, told};

/// The child's side: lets the parent lead this thread from here on, if it does. What the thread does
/// before is not counted.
pub fn offer() {
    say(&format!("{OFFER}{}", gettid()));
    told();
}

/// A child whose thread is led from system call to system call.
///
/// Every method has to be called on the thread that called [`Traced::seize`]: the kernel knows that one as
/// the tracer. The child is killed with it.
#[derive(Debug)]
pub struct Traced {
    child: Child,
    thread: Pid,
}

/// What a led child does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is stopped before a system call.
    Stopped,
    /// It has ended.
    Ended,
}

impl Traced {
    /// Takes hold of a child that [offers](offer) itself.
    ///
    /// # Errors
    ///
    /// The child, if this host does not let us.
    ///
    /// # Panics
    ///
    /// If it does not offer itself.
    pub fn seize(mut child: Child) -> Result<Self, Child> {
        let line = child.hear();
        let thread = line.strip_prefix(OFFER).and_then(|number| number.parse().ok());
        let thread = Pid::from_raw(thread.expect("an offer"));
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
        if ptrace::seize(thread, options).is_err() {
            return Err(child);
        }
        ptrace::interrupt(thread).expect("it is traced");
        assert!(matches!(wait(thread), Some(WaitStatus::PtraceEvent(..))), "it stops when told to");
        child.tell("go");
        Ok(Self { child, thread })
    }

    /// Lets the child run until it is about to make another system call.
    ///
    /// # Panics
    ///
    /// If the kernel says what it should not.
    pub fn step(&mut self) -> Step {
        let mut signal: Option<Signal> = None;
        loop {
            if ptrace::syscall(self.thread, signal.take()).is_err() {
                // Killed by somebody else while it was stopped.
                return Step::Ended;
            }
            match wait(self.thread) {
                Some(WaitStatus::PtraceSyscall(_)) => {
                    // What a stop is can't be counted: one in the middle of a call has been interrupted.
                    let info = ptrace::syscall_info(self.thread).expect("it is stopped");
                    if info.op == ENTRY {
                        return Step::Stopped;
                    }
                }
                Some(WaitStatus::Stopped(_, found)) => signal = Some(found),
                Some(_) => {}
                None => return Step::Ended,
            }
        }
    }

    /// Lets the child make `calls` system calls and stops it before the next.
    ///
    /// # Panics
    ///
    /// As [`Traced::step`].
    pub fn steps(&mut self, calls: u32) -> Step {
        for _ in 0..=calls {
            if self.step() == Step::Ended {
                return Step::Ended;
            }
        }
        Step::Stopped
    }

    /// Kills the child where it is.
    pub fn kill(mut self) {
        self.child.signal(Signal::SIGKILL);
        // The process ends only once its tracer has seen the thread's end.
        while wait(self.thread).is_some() {}
        self.child.kill();
    }

    /// Lets the child run on by itself.
    ///
    /// # Panics
    ///
    /// If it is not stopped.
    pub fn release(self) -> Child {
        ptrace::detach(self.thread, None).expect("it is stopped");
        self.child
    }
}

/// Waits for a stop of the thread; `None` once it has ended.
fn wait(thread: Pid) -> Option<WaitStatus> {
    loop {
        match waitpid(thread, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                return None;
            }
            Ok(status) => return Some(status),
            Err(Errno::EINTR) => {}
            Err(errno) => panic!("cannot wait for a thread that is traced: {errno}"),
        }
    }
}

/// `PTRACE_SYSCALL_INFO_ENTRY`.
const ENTRY: u8 = 1;
const OFFER: &str = "thread ";
