//! The same fault at every system call of a child.

use ringpost_testkit::child::{Child, skip};
use ringpost_testkit::trace::{Step, Traced};

/// Leads a child that offers itself to its system call number `calls`, and kills it there. `Ended` if it
/// made fewer; `None` if this host does not let us.
pub(crate) fn kill_at(test: &str, child: Child, calls: u32) -> Option<Step> {
    let Ok(mut traced) = Traced::seize(child) else {
        skip(test, "ptrace is not allowed");
        return None;
    };
    let step = traced.steps(calls);
    traced.kill();
    Some(step)
}
