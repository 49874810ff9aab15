//! What the kernel says about a process (proc(5)).

use std::fs;

/// Descriptors that this process has open.
pub fn descriptors() -> usize {
    // Reading the directory takes one itself.
    fs::read_dir("/proc/self/fd").expect("/proc is mounted").count() - 1
}

/// Anonymous memory of this process that is in RAM, bytes.
pub fn anonymous_bytes() -> u64 {
    status("RssAnon:") * 1024
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
