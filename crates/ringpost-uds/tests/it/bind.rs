//! What `bind` does about what is at the path already.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use ringpost_uds::{
    Address, BindError, BindOptions, ConnectErrorKind, FileKind, SocketKind, connect_kind,
};

use rustix::fs::{FlockOperation, flock};
use rustix::net::SocketAddrUnix;
use rustix::net::sockopt::{set_socket_passcred, socket_passcred};

use crate::support::{bind, connect, directory, is_socket, leave_stale, mode, names, root_or_skip};

#[test]
fn fresh_path() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    assert!(is_socket(&path));
    assert!(bound.guard().is_in_place());
    assert_eq!(bound.address(), &Address::from(path.as_path()));
    assert_eq!(names(directory.path()), ["app.sock", "app.sock.lock"]);
    connect(&path).expect("listens");
    drop(bound);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn stale_socket_is_replaced() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    leave_stale(&path);
    let bound = bind(&path).expect("nobody is there");
    connect(&path).expect("listens");
    assert_eq!(names(directory.path()), ["app.sock", "app.sock.lock"]);
    drop(bound);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn live_server_is_left_alone() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let first = bind(&path).expect("free");
    let error = bind(&path).expect_err("in use");
    let expected = format!(
        "the address {} is in use by process {}; stop that server or choose another address",
        path.display(),
        std::process::id()
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.is_address_in_use());
    assert!(first.guard().is_in_place());
    connect(&path).expect("still listens");
}

#[test]
fn live_server_without_lock_is_left_alone() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let server = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    server.set_nonblocking(true).expect("set");
    let error = bind(&path).expect_err("in use");
    assert!(error.is_address_in_use(), "{error}");
    assert_eq!(names(directory.path()), ["app.sock"]);
    let accepted = server.accept().map(|_| ()).map_err(|error| error.kind());
    assert_eq!(accepted, Err(std::io::ErrorKind::WouldBlock), "the probe is no connection");
}

#[test]
fn live_sockets_of_other_kinds_are_left_alone() {
    let directory = directory();
    let check = |name: &str, socket: rustix::net::SocketType| {
        let path = directory.path().join(name);
        let fd = rustix::net::socket(rustix::net::AddressFamily::UNIX, socket, None).expect("fd");
        let address = SocketAddrUnix::new(&path).expect("short");
        // Bound and not listening: a server in the middle of its start.
        rustix::net::bind(&fd, &address).expect("bind");
        assert!(bind(&path).expect_err("in use").is_address_in_use());
        assert!(is_socket(&path));
        drop(fd);
        drop(bind(&path).expect("stale now"));
    };
    check("stream", rustix::net::SocketType::STREAM);
    check("packets", rustix::net::SocketType::SEQPACKET);
    check("datagrams", rustix::net::SocketType::DGRAM);
}

#[test]
fn what_is_no_socket_is_refused_and_untouched() {
    let directory = directory();
    let check = |name: &str, found: FileKind, make: &dyn Fn(&Path)| {
        let path = directory.path().join(name);
        make(&path);
        let before = names(directory.path());
        let error = bind(&path).expect_err("refused");
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains(&found.to_string()), "{text}");
        match error {
            BindError::NotASocket { found: actual, .. } => assert_eq!(actual, found),
            other => panic!("{other}"),
        }
        assert_eq!(names(directory.path()), before, "nothing left behind, nothing removed");
    };
    check("file", FileKind::Regular, &|path| std::fs::write(path, "precious").expect("write"));
    check("directory", FileKind::Directory, &|path| std::fs::create_dir(path).expect("make"));
    check("dangling", FileKind::Symlink, &|path| symlink("nowhere", path).expect("link"));
    leave_stale(&directory.path().join("stale"));
    check("link", FileKind::Symlink, &|path| symlink("stale", path).expect("link"));
    let live = bind(&directory.path().join("live")).expect("free");
    check("to_live", FileKind::Symlink, &|path| symlink("live", path).expect("link"));
    assert!(live.guard().is_in_place());
    drop(live);
    check("loop", FileKind::Symlink, &|path| symlink("loop", path).expect("link"));
    let error = bind(&directory.path().join("loop/app.sock")).expect_err("leads nowhere");
    let expected = format!("cannot open the directory {}/loop", directory.path().display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(error.to_string().contains("symbolic link"), "{error}");
    check("pipe", FileKind::Fifo, &|path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
            .expect("make");
    });
    assert_eq!(std::fs::read(directory.path().join("file")).expect("read"), b"precious");
    assert!(is_socket(&directory.path().join("stale")));
}

#[test]
fn unusable_lock_files_are_refused() {
    let directory = directory();
    let check = |name: &str, found: FileKind, make: &dyn Fn(&Path)| {
        let path = directory.path().join(name);
        make(&directory.path().join(format!("{name}.lock")));
        let before = names(directory.path());
        let error = bind(&path).expect_err("refused");
        assert!(error.to_string().contains(".lock"), "{error}");
        match error {
            BindError::LockUnusable { found: actual, .. } => assert_eq!(actual, found),
            other => panic!("{other}"),
        }
        assert_eq!(names(directory.path()), before);
    };
    check("a", FileKind::Symlink, &|path| symlink("nowhere", path).expect("link"));
    check("b", FileKind::Directory, &|path| std::fs::create_dir(path).expect("make"));
    check("c", FileKind::Fifo, &|path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
            .expect("make");
    });
    check("d", FileKind::Socket, &leave_stale);
}

/// Others keep files of that name too, such as PostgreSQL's `.s.PGSQL.5432.lock`, or a lock file of a build.
#[test]
fn lock_files_of_others_are_untouched() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let live = std::os::unix::net::UnixListener::bind(at("live")).expect("bind");
    leave_stale(&at("stale"));
    std::fs::write(at("file"), "precious").expect("write");
    let refused = |name: &str, expected: FileKind| {
        let error = bind(&at(name)).expect_err("refused");
        assert!(error.to_string().contains(&format!("{name}.lock is a ")), "{error}");
        match error {
            BindError::LockUnusable { found, .. } => assert_eq!(found, expected),
            other => panic!("{other}"),
        }
    };
    let long = format!("pid 1\n{}", "#".repeat(10_000));
    for content in [
        "4711\n/var/lib/postgresql\n",
        "pidfile of others\n",
        "\0",
        "pid 4711 host foo\n",
        "pid 4711\nhost foo\n",
        "temporary files of others\n",
        "pid 1\ntemporary ../x\n",
        &long,
    ] {
        for name in ["live", "stale", "file", "nothing"] {
            let lock = at(&format!("{name}.lock"));
            std::fs::write(&lock, content).expect("write");
            refused(name, FileKind::Foreign);
            assert_eq!(std::fs::read_to_string(&lock).expect("still there"), content, "{name}");
        }
    }
    // Whatever is in it: a link that somebody has put there leads to a file that is not a lock.
    for content in ["", "pid 1\n", "precious"] {
        let (lock, other) = (at("nothing.lock"), at("other"));
        std::fs::remove_file(&lock).expect("of the round before");
        std::fs::write(&other, content).expect("write");
        std::fs::hard_link(&other, &lock).expect("link");
        refused("nothing", FileKind::HardLink);
        assert_eq!(std::fs::read_to_string(&other).expect("still there"), content);
        assert!(lock.exists(), "the link is gone");
    }
    assert!(!at("nothing").exists());
    drop(live);
}

#[test]
fn leftover_lock_file_does_not_matter() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let whole = "pid 17\ntemporary app.sock.abcdefgh\n";
    // A crash or a full disk may have cut it anywhere.
    for leftover in (0..=whole.len()).map(|cut| &whole[..cut]) {
        std::fs::write(directory.path().join("app.sock.lock"), leftover).expect("write");
        drop(bind(&path).expect("free"));
        assert!(names(directory.path()).is_empty());
    }
}

/// The lock of a process that is being killed may go after its socket.
#[test]
fn the_lock_of_a_dying_owner_is_waited_for() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    leave_stale(&path);
    let lock = std::fs::File::create(directory.path().join("app.sock.lock")).expect("create");
    flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    let dying = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(lock);
    });
    drop(bind(&path).expect("free in a moment"));
    dying.join().expect("no panic");
    assert!(names(directory.path()).is_empty());
    // Who serves, or does not die, is not waited for longer than that.
    let lock = std::fs::File::create(directory.path().join("app.sock.lock")).expect("create");
    flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("nobody has it");
    assert!(bind(&path).expect_err("taken").is_address_in_use());
}

#[test]
fn temporary_socket_of_a_killed_starter_is_removed() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let kept = ["app.sock.backup00", "app.sock.live1234", "other.12345678"];
    leave_stale(&directory.path().join("app.sock.abcd1234"));
    std::fs::write(directory.path().join(kept[0]), "a file of the same form").expect("write");
    let live = std::os::unix::net::UnixListener::bind(directory.path().join(kept[1]));
    leave_stale(&directory.path().join(kept[2]));
    for name in ["app.sock.abcd1234", kept[0], kept[1], kept[2]] {
        let record = format!("pid 1\ntemporary {name}\n");
        std::fs::write(directory.path().join("app.sock.lock"), record).expect("write");
        drop(bind(&path).expect("free"));
    }
    assert_eq!(names(directory.path()), kept);
    drop(live);
}

#[test]
fn abstract_names() {
    let name = format!("ringpost-test-{}-{}", std::process::id(), fastrand::u64(..));
    let address: Address = format!("@{name}").parse().expect("valid");
    let missing = ringpost_uds::connect(&address).expect_err("nobody there");
    assert!(missing.is_no_server(), "{missing}");
    assert_eq!(missing.kind(), ConnectErrorKind::Missing);
    let expected = format!(
        "cannot connect to @{name}: no server with sockets of this kind (stream, packets or datagrams) has \
         this abstract name in this network namespace"
    );
    assert_eq!(missing.to_string(), expected);

    let bound = ringpost_uds::bind(&address, &BindOptions::new()).expect("free");
    ringpost_uds::connect(&address).expect("listens");
    assert!(!bound.guard().is_in_place(), "there is no path");
    let error = ringpost_uds::bind(&address, &BindOptions::new()).expect_err("in use");
    assert!(error.is_address_in_use());
    assert!(error.to_string().contains(&format!("@{name}")), "{error}");
    drop(bound);
    drop(ringpost_uds::bind(&address, &BindOptions::new()).expect("free again"));

    let longest = Address::Abstract(vec![b'x'; Address::ABSTRACT_BYTES_MAX]);
    let bound = ringpost_uds::bind(&longest, &BindOptions::new()).expect("free");
    ringpost_uds::connect(&longest).expect("listens");
    drop(bound);
}

#[test]
fn packets() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let address = Address::from(path.as_path());
    let options = BindOptions::new().kind(SocketKind::SeqPacket);
    let bound = ringpost_uds::bind(&address, &options).expect("free");
    connect_kind(&address, SocketKind::SeqPacket).expect("same kind");
    assert_eq!(connect(&path).expect_err("another kind").kind(), ConnectErrorKind::WrongKind);
    drop(bound);
}

/// A receiver of datagrams replies to the name that the sender's socket was bound to.
#[test]
fn datagrams() {
    use rustix::net::{RecvFlags, SendFlags};
    let directory = directory();
    let options = BindOptions::new().kind(SocketKind::Datagram).mode(0o666);
    let address = |name: &str| Address::from(directory.path().join(name));
    for name in ["left.sock", "right.sock"] {
        leave_stale(&directory.path().join(name));
    }
    let left = ringpost_uds::bind(&address("left.sock"), &options).expect("stale");
    let right = ringpost_uds::bind(&address("right.sock"), &options).expect("stale");
    assert_eq!(mode(&directory.path().join("left.sock")), 0o666);
    let error = ringpost_uds::bind(&address("left.sock"), &options).expect_err("alive");
    assert!(matches!(error, BindError::AddressInUse { .. }), "{error}");

    ringpost_uds::connect_socket(&left, &address("right.sock")).expect("bound");
    rustix::net::send(&left, b"question", SendFlags::NOSIGNAL).expect("room");
    let mut bytes = [0; 100];
    let (_, count, sender) =
        rustix::net::recvfrom(&right, &mut bytes, RecvFlags::empty()).expect("there");
    assert_eq!(&bytes[..count], b"question");
    let sender = sender.expect("bound");
    rustix::net::sendto(&right, b"answer", SendFlags::NOSIGNAL, &sender).expect("room");
    let (_, count) = rustix::net::recv(&left, &mut bytes, RecvFlags::empty()).expect("there");
    assert_eq!(&bytes[..count], b"answer");

    drop(right);
    let error = ringpost_uds::connect_socket(&left, &address("right.sock")).expect_err("gone");
    assert_eq!(error.kind(), ConnectErrorKind::Missing);
    let error = connect(&directory.path().join("left.sock")).expect_err("another kind");
    assert_eq!(error.kind(), ConnectErrorKind::WrongKind);
    drop(left);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn senseless_options_are_refused() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let check = |options: BindOptions, expected: &str| {
        let error = ringpost_uds::bind(&Address::from(path.as_path()), &options).expect_err("no");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(names(directory.path()).is_empty());
    };
    check(BindOptions::new().mode(0o1777), "0o1777 is not a socket mode");
    check(BindOptions::new().uid(u32::MAX), "4294967295 is not a user");
    check(BindOptions::new().gid(u32::MAX), "4294967295 is not a user");
}

#[test]
fn descriptors_are_nonblocking_and_closed_on_exec() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let (listener, _guard) = bind(&path).expect("free").into_parts();
    for socket in [&listener, &connect(&path).expect("listens")] {
        let status = rustix::fs::fcntl_getfl(socket).expect("flags");
        assert!(status.contains(rustix::fs::OFlags::NONBLOCK));
        let flags = rustix::io::fcntl_getfd(socket).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    assert!(rustix::net::sockopt::socket_acceptconn(&listener).expect("option"));
}

#[test]
fn unsafe_directory_is_refused_unless_allowed() {
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    let shared = directory.path().join("shared");
    std::fs::create_dir(&shared).expect("make");
    let path = shared.join("app.sock");
    let set = |mode| {
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };

    set(0o777);
    let error = bind(&path).expect_err("unsafe");
    assert!(matches!(error, BindError::UnsafeDirectory { mode: 0o777, .. }), "{error}");
    assert!(error.to_string().contains(&shared.display().to_string()), "{error}");
    assert!(names(&shared).is_empty());
    let options = BindOptions::new().allow_unsafe_directory(true);
    drop(ringpost_uds::bind(&Address::from(path.as_path()), &options).expect("allowed"));
    set(0o1777);
    drop(bind(&path).expect("sticky"));
    set(0o770);
    drop(bind(&path).expect("only the group"));
}

#[test]
fn foreign_stale_socket_cannot_be_probed_by_others() {
    let test = "bind::foreign_stale_socket_cannot_be_probed_by_others";
    if !root_or_skip(test) {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o1777))
        .expect("chmod");
    let path = directory.path().join("app.sock");
    leave_stale(&path);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let result = crate::support::as_user(crate::support::NOBODY, crate::support::NOBODY, || {
        bind(&path).map(|_| ())
    });
    let error = result.expect_err("may not know");
    assert!(matches!(error, BindError::Unprobed { .. }), "{error}");
    assert_eq!(names(directory.path()), ["app.sock"]);
}

#[test]
fn a_socket_is_prepared_before_it_has_its_address() {
    let directory = tempfile::tempdir().expect("directory");
    let name = format!("@ringpost-test-{}-{}", std::process::id(), fastrand::u64(..));
    let path = Address::from(directory.path().join("app.sock"));
    for address in [path, name.parse().expect("valid")] {
        for kind in [SocketKind::Stream, SocketKind::SeqPacket, SocketKind::Datagram] {
            let calls = Cell::new(0);
            let prepare = |socket: BorrowedFd<'_>| {
                calls.set(calls.get() + 1);
                let found = rustix::net::getsockname(socket).expect("a socket");
                let found = SocketAddrUnix::try_from(found).expect("of the family");
                let named = found.abstract_name().is_some_and(|name| !name.is_empty());
                assert!(found.path().is_none() && !named, "{found:?}");
                set_socket_passcred(socket, true).expect("a socket");
            };
            let options = BindOptions::new().kind(kind);
            let bound = ringpost_uds::bind_prepared(&address, &options, &prepare).expect("free");
            assert_eq!(calls.get(), 1);
            assert!(socket_passcred(bound.socket()).expect("a socket"));
        }
    }
}
