//! File systems that say no: nothing half-made stays, and the error names the path.

use std::path::Path;

use crate::child::Peer;
use crate::support::{NOBODY, as_user, bind, directory, names, namespace_or_skip, root_or_skip};

/// Starts a child in a mount namespace of its own, with a file system mounted at `target`.
fn with_mount(target: &Path, options: &str) -> Peer {
    let script =
        format!("mount -t tmpfs -o {options} tmpfs '{}' && exec \"$0\" \"$@\"", target.display());
    Peer::start_with(&["unshare", "--mount", "sh", "-c", &script])
}

#[test]
fn unwritable_directory() {
    if !root_or_skip("environment::unwritable_directory") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
        .expect("set");
    let path = directory.path().join("app.sock");
    let error = as_user(NOBODY, NOBODY, || bind(&path).map(|_| ())).expect_err("not theirs");
    let expected = format!("cannot open the lock file {}.lock: permission denied", path.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(names(directory.path()).is_empty());
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))
        .expect("set");
    let error = as_user(NOBODY, NOBODY, || bind(&path).map(|_| ())).expect_err("not theirs");
    assert!(error.to_string().contains("permission denied"), "{error}");
}

#[test]
fn read_only_file_system() {
    if !namespace_or_skip("environment::read_only_file_system", &["--mount"]) {
        return;
    }
    let directory = directory();
    let mut child = with_mount(directory.path(), "ro");
    let path = directory.path().join("app.sock");
    let answer = child.ask(&format!("bind 600 {}", path.display()));
    assert!(answer.contains("mounted read-only"), "{answer}");
    assert!(answer.contains(&path.display().to_string()), "{answer}");
}

#[test]
fn full_file_system() {
    if !namespace_or_skip("environment::full_file_system", &["--mount"]) {
        return;
    }
    let directory = directory();
    let path = directory.path().join("app.sock");
    // The root takes one inode; the second is for the lock file, and the socket needs a third.
    for (inodes, works) in [(1, false), (2, false), (3, true)] {
        let mut child = with_mount(directory.path(), &format!("nr_inodes={inodes}"));
        let before = child.ask("descriptors");
        let answer = child.ask(&format!("bind 600 {}", path.display()));
        if works {
            assert_eq!(answer, "won");
        } else {
            assert!(answer.contains("the file system is full"), "{answer}");
            assert_eq!(child.ask("descriptors"), before);
        }
        let view = format!("/proc/{}/root{}", child.id(), directory.path().display());
        let expected: &[&str] = if works { &["app.sock", "app.sock.lock"] } else { &[] };
        assert_eq!(names(Path::new(&view)), expected);
    }
}

#[test]
fn no_space_for_the_record_is_no_obstacle() {
    if !namespace_or_skip("environment::no_space_for_the_record_is_no_obstacle", &["--mount"]) {
        return;
    }
    let directory = directory();
    let path = directory.path().join("app.sock");
    let mut child = with_mount(directory.path(), "nr_blocks=1");
    let view = format!("/proc/{}/root{}", child.id(), directory.path().display());
    assert_eq!(child.ask("umask 022"), "done");
    std::fs::write(Path::new(&view).join("ballast"), [0; 4096]).expect("the only block");
    assert_eq!(child.ask(&format!("bind 600 {}", path.display())), "won");
}
