//! Each way in which connecting fails, and its words.

use std::os::unix::fs::symlink;
use std::path::Path;

use ringpost_uds::{Address, BindOptions, ConnectErrorKind, FileKind};

use crate::support::{NOBODY, as_user, bind, connect, directory, leave_stale, root_or_skip};

#[track_caller]
fn check(path: &Path, kind: ConnectErrorKind, words: &str) {
    let error = connect(path).expect_err("fails");
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.starts_with(&format!("cannot connect to {}: ", path.display())), "{text}");
    assert!(text.contains(words), "{text}");
    assert_eq!(error.is_backlog_full(), kind == ConnectErrorKind::BacklogFull);
    assert_eq!(error.address(), &Address::from(path));
}

#[test]
fn nothing_there() {
    let directory = directory();
    check(&directory.path().join("none"), ConnectErrorKind::Missing, "is the server running");
    check(&directory.path().join("none/x"), ConnectErrorKind::Missing, "no such path");
    symlink("nowhere", directory.path().join("dangling")).expect("link");
    check(&directory.path().join("dangling"), ConnectErrorKind::Missing, "no such path");
}

#[test]
fn nobody_listens() {
    let directory = directory();
    let path = directory.path().join("stale");
    leave_stale(&path);
    check(&path, ConnectErrorKind::Refused, "no server listens there");
}

#[test]
fn something_else_there() {
    let directory = directory();
    let file = directory.path().join("file");
    std::fs::write(&file, "").expect("write");
    let kind = |found| ConnectErrorKind::NotASocket { found };
    check(&file, kind(FileKind::Regular), "a regular file, not a socket");
    check(directory.path(), kind(FileKind::Directory), "a directory, not a socket");
    // Opening it would wait for a writer.
    let pipe = directory.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).expect("make");
    check(&pipe, kind(FileKind::Fifo), "a named pipe, not a socket");
    check(Path::new("/dev/null"), kind(FileKind::Device), "a device, not a socket");
    symlink("loop", directory.path().join("loop")).expect("link");
    let too_many = ConnectErrorKind::Other(rustix::io::Errno::LOOP.raw_os_error());
    check(&directory.path().join("loop"), too_many, "symbolic link");
    check(&directory.path().join("loop/app.sock"), too_many, "symbolic link");
    symlink("file", directory.path().join("link")).expect("link");
    check(&directory.path().join("link"), kind(FileKind::Regular), "a regular file");
}

#[test]
fn through_a_link() {
    let directory = directory();
    let bound = bind(&directory.path().join("app.sock")).expect("free");
    symlink("app.sock", directory.path().join("link")).expect("link");
    connect(&directory.path().join("link")).expect("follows");
    drop(bound);
}

#[test]
fn another_kind() {
    let directory = directory();
    let path = directory.path().join("datagrams");
    let server = std::os::unix::net::UnixDatagram::bind(&path).expect("bind");
    check(&path, ConnectErrorKind::WrongKind, "of another kind");
    drop(server);
}

#[test]
fn full_backlog() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let options = BindOptions::new().backlog(2);
    let bound = ringpost_uds::bind(&Address::from(path.as_path()), &options).expect("free");
    let waiting: Vec<_> = std::iter::from_fn(|| connect(&path).ok()).take(100).collect();
    assert_eq!(waiting.len(), 3, "the kernel counts from zero");
    check(&path, ConnectErrorKind::BacklogFull, "try again in a moment");
    // A server that does not accept is alive all the same.
    assert!(bind(&path).expect_err("in use").is_address_in_use());
    rustix::net::accept(&bound).expect("one waits");
    connect(&path).expect("room for one");
}

#[test]
fn forbidden() {
    if !root_or_skip("connect::forbidden") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
        .expect("set");
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    let expected = "connecting takes write permission on the socket";
    as_user(NOBODY, NOBODY, || check(&path, ConnectErrorKind::Forbidden, expected));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("set");
    as_user(NOBODY, NOBODY, || connect(&path).map(|_| ())).expect("allowed now");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))
        .expect("set");
    as_user(NOBODY, NOBODY, || check(&path, ConnectErrorKind::Forbidden, expected));
    drop(bound);
}
