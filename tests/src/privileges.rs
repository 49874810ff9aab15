//! Limits and rights of this process and of the calling thread.

use std::os::fd::AsRawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{Gid, Uid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use ringpost_testkit::child::skip;

/// A user without rights.
pub const NOBODY: u32 = 65_534;

/// Whether the test can do what only root can; if not, says so.
pub fn root_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root");
    }
    root
}

/// Raises the limit on descriptors to at least `count`. False if it may not be.
pub fn allow_descriptors(count: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let wanted = |limit: Option<u64>| limit.map(|limit| limit.max(count));
    if limit.current.is_none_or(|current| current >= count) {
        return true;
    }
    let raised = Rlimit { current: Some(count), maximum: wanted(limit.maximum) };
    setrlimit(Resource::Nofile, raised).is_ok()
}

/// Lowers the limit on descriptors to `count`.
///
/// # Panics
///
/// If the kernel does not let us.
pub fn limit_descriptors(count: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum })
        .expect("lowering is allowed");
}

/// Lowers the limit on descriptors so that this process can open `count` more, and no others.
///
/// # Panics
///
/// If the kernel does not let us.
pub fn spare_descriptors(count: usize) {
    let open = || std::fs::File::open("/dev/null").expect("a descriptor");
    let opened: Vec<std::fs::File> = (0..=count).map(|_| open()).collect();
    // The limit is on numbers, and there may be holes below.
    let first_too_many = opened.last().expect("at least one").as_raw_fd();
    limit_descriptors(u64::try_from(first_too_many).expect("a descriptor"));
}

/// Lowers the limit on locked memory.
///
/// # Panics
///
/// If the kernel does not let us.
pub fn limit_locked_memory(bytes: u64) {
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Memlock, limit).expect("lowering is allowed");
}

/// Changes the user of the calling thread for good; it keeps no capability.
///
/// # Panics
///
/// If the process may not.
pub fn become_user(id: u32) {
    become_member(id, &[]);
}

/// Like [`become_user`], in these supplementary groups.
///
/// # Panics
///
/// If the process may not.
pub fn become_member(id: u32, groups: &[u32]) {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    let groups: Vec<Gid> = groups.iter().map(|&group| Gid::from_raw(group)).collect();
    rustix::thread::set_thread_groups(&groups).expect("root may");
    rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root may");
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
}

/// Makes these system calls fail with `errno` on the calling thread, for good.
///
/// # Panics
///
/// If the kernel does not take the filter.
pub fn refuse_calls(calls: &[i64], errno: i32) {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a short filter");
    apply_filter(&program).expect("the kernel takes the filter");
}
