//! What the kernel says about a process (proc(5)).

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Descriptors that this process has open.
pub fn descriptors() -> usize {
    // Reading the directory takes one itself.
    fs::read_dir("/proc/self/fd").expect("/proc is mounted").count() - 1
}

/// Anonymous memory of this process that is in RAM, bytes.
pub fn anonymous_bytes() -> u64 {
    status("RssAnon:") * 1024
}

/// Memory of this process that can't be swapped: locked, or pinned by the kernel, bytes.
pub fn locked_bytes() -> u64 {
    (status("VmLck:") + status("VmPin:")) * 1024
}

/// Sockets in this network namespace that are bound below a directory: listening ones, and those that were
/// accepted on them, of any process.
pub fn sockets_below(directory: &Path) -> usize {
    let text = fs::read("/proc/net/unix").expect("/proc is mounted");
    let wanted = directory.as_os_str().as_bytes();
    let below = |line: &[u8]| line.windows(wanted.len()).any(|window| window == wanted);
    text.split(|byte| *byte == b'\n').filter(|line| below(line)).count()
}

/// Whether somebody in this network namespace listens at exactly this path. A path may be there before: binding
/// makes it, and until listen(2) a connection is refused.
pub fn listens_at(path: &Path) -> bool {
    /// Of the socket's flags in the table: it accepts connections (`__SO_ACCEPTCON` of the kernel).
    const ACCEPTS: &[u8] = b"00010000";
    let text = fs::read("/proc/net/unix").expect("/proc is mounted");
    text.split(|byte| *byte == b'\n').any(|line| {
        line.strip_suffix(path.as_os_str().as_bytes())
            .and_then(|rest| rest.strip_suffix(b" "))
            .is_some_and(|rest| rest.split(|byte| *byte == b' ').nth(3) == Some(ACCEPTS))
    })
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("readable").file_name();
    let mut names: Vec<String> =
        entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Threads of this process.
pub fn threads() -> u64 {
    status("Threads:")
}

fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells");
    let number = line.split_whitespace().next().expect("a value");
    number.parse().expect("a number")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn only_who_accepts_listens() {
        let directory = std::env::temp_dir().join(format!("listens-{}", std::process::id()));
        fs::create_dir(&directory).expect("new");
        let (bound, listening) = (directory.join("bound"), directory.join("listening"));
        let _bound = UnixDatagram::bind(&bound).expect("free");
        assert!(!listens_at(&bound) && !listens_at(&listening));
        let listener = UnixListener::bind(&listening).expect("free");
        assert!(listens_at(&listening));
        assert!(!listens_at(&directory.join("listen")), "the whole name counts");
        drop(listener);
        // A child that another test has just forked may hold it for a moment.
        let closed = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            !listens_at(&listening)
        });
        assert!(closed);
        fs::remove_dir_all(&directory).expect("ours");
    }
}
