//! Places where a socket can't be: a full, small or read-only file system, directories without permission,
//! missing, or removed under a listener, and names that are too long. Each is a typed error with the path, and
//! nothing is half made.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use ringpost::{
    Address, BindError, ConnectError, ConnectErrorKind, Connection, Datagram, EngineChoice,
    Listener, spawn,
};
use ringpost_testkit::child::{isolated_through, skip};
use ringpost_testkit::process::{self, names};
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::privileges::{NOBODY, become_user, root_or_skip};
use ringpost_tests::residue::Holdings;
use ringpost_tests::rig::{ask, block_on, echo, place, run, runtime};

on_both_engines_alone!(
    without_permission,
    missing_and_no_directory,
    names_that_are_too_long,
    removed_under_a_listener
);

/// Tries to bind, which fails with this error number and names the path; leaves nothing.
#[track_caller]
fn refused(path: &Path, words: &str) {
    let before = process::descriptors();
    let errors = [
        Listener::bind(path).map(drop).map_err(|error| error.to_string()),
        Datagram::bind(path).map(drop).map_err(|error| error.to_string()),
    ];
    for error in errors {
        let text = error.expect_err("refused");
        assert!(text.contains(words), "not {words:?}: {text}");
        let parent = path.parent().expect("it has one").to_str().expect("text");
        assert!(text.contains(parent), "without the path: {text}");
    }
    assert_eq!(process::descriptors(), before);
}

/// Runs `body` with a tiny file system at the directory that it is given, in a mount namespace of its own.
fn in_a_tiny_file_system(test: &'static str, body: impl FnOnce(&Path)) {
    let probe = Command::new("unshare").args(["--mount", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return skip(test, "`unshare --mount` is not allowed");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().to_str().expect("text");
    // Eight inodes, of which the root takes one, and four pages.
    let script = format!(
        "mount -t tmpfs -o size=16k,nr_inodes=8,mode=755 tmpfs '{at}' && exec \"$0\" \"$@\""
    );
    let inside = std::env::var(PLACE);
    let place = inside.as_deref().unwrap_or(at);
    isolated_through(&["unshare", "--mount", "sh", "-c", &script], test, &[(PLACE, place)], || {
        body(Path::new(&std::env::var(PLACE).expect("set by the parent")));
    });
}

const PLACE: &str = "RINGPOST_TEST_PLACE";

/// A file system without room: for data, of which a lock file has a line, which is no loss; and for names, at
/// each of the steps in turn.
#[test]
fn a_full_file_system() {
    in_a_tiny_file_system(concat!(module_path!(), "::a_full_file_system"), |directory| {
        let path = directory.join("test.sock");
        let ballast = directory.join("ballast");
        // No room for data.
        let _ = std::fs::write(&ballast, vec![1; 1 << 20]);
        for engine in [EngineChoice::Auto, EngineChoice::Epoll] {
            serves(engine, &path);
            assert_eq!(names(directory), ["ballast"]);
        }
        // No room for names: with none to spare, and with one, which the lock file takes.
        let runtime = runtime(EngineChoice::Auto);
        let (mut fillers, mut refusals) = (0, 0);
        while std::fs::write(directory.join(format!("filler{fillers}")), "").is_ok() {
            fillers += 1;
        }
        for spare in 0..fillers {
            let before = names(directory);
            runtime.enter(|| match Listener::bind(&path) {
                Ok(listener) => drop(listener),
                Err(error) => {
                    refusals += 1;
                    let text = error.to_string();
                    assert!(text.contains("errno 28"), "{text}");
                    assert!(text.contains(directory.to_str().expect("text")), "{text}");
                }
            });
            assert_eq!(names(directory), before, "nothing is left, nothing is gone");
            std::fs::remove_file(directory.join(format!("filler{spare}"))).expect("ours");
        }
        assert_eq!(refusals, 2, "the lock file and the socket");
        drop(runtime);
        serves(EngineChoice::Auto, &path);
    });
}

/// A server works here.
fn serves(engine: EngineChoice, path: &Path) {
    block_on(engine, async {
        let mut listener = Listener::bind(path).expect("bind");
        let serving = spawn(async move { echo(listener.accept().await.expect("accept")).await });
        let mut client = Connection::connect(path).await.expect("connect");
        ask(&mut client, 0, 3000).await;
        client.shutdown().await.expect("open");
        serving.await.expect("no panic");
    });
}

/// A read-only file system: nobody can start there, and the error says why. (Under a running server it can't
/// become read-only, because that has the lock file open for writing.)
#[test]
fn a_read_only_file_system() {
    in_a_tiny_file_system(concat!(module_path!(), "::a_read_only_file_system"), |directory| {
        let path = directory.join("test.sock");
        let remount = |mode: &str| {
            let options = format!("remount,{mode}");
            let output = Command::new("mount").args(["-o", &options]).arg(directory).output();
            output.expect("mount").status.success()
        };
        block_on(EngineChoice::Auto, async {
            let _listener = Listener::bind(&path).expect("bind");
            assert!(!remount("ro"), "a file is open for writing");
        });
        assert!(remount("ro"));
        let runtime = runtime(EngineChoice::Auto);
        runtime.enter(|| refused(&path, "mounted read-only"));
        drop(runtime);
        assert!(remount("rw"));
        serves(EngineChoice::Auto, &path);
        assert!(names(directory).is_empty(), "{:?}", names(directory));
    });
}

fn without_permission(engine: EngineChoice) {
    if !root_or_skip("places::without_permission") {
        return;
    }
    let (directory, path) = place();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("ours");
    let locked = directory.path().join("locked");
    std::fs::create_dir(&locked).expect("a directory");
    std::fs::set_permissions(&locked, Permissions::from_mode(0o700)).expect("ours");
    let theirs = path;
    // Users are a thread's own.
    let thread = std::thread::spawn(move || {
        become_user(NOBODY);
        let runtime = runtime(engine);
        runtime.enter(|| {
            refused(&theirs, "permission denied");
            refused(&locked.join("test.sock"), "permission denied");
        });
        let error = run(&runtime, Connection::connect(locked.join("test.sock")));
        let Err(ConnectError::Socket(error)) = error else { panic!("{error:?}") };
        assert_eq!(error.kind(), ConnectErrorKind::Forbidden);
    });
    thread.join().expect("no panic");
    assert_eq!(names(directory.path()), ["locked"]);
}

fn missing_and_no_directory(engine: EngineChoice) {
    let (directory, path) = place();
    let runtime = runtime(engine);
    std::fs::write(directory.path().join("file"), "text").expect("a file");
    std::os::unix::fs::symlink("nowhere", directory.path().join("dangling")).expect("a link");
    runtime.enter(|| {
        refused(&directory.path().join("missing/test.sock"), "does not exist");
        refused(&directory.path().join("file/test.sock"), "file");
        refused(&directory.path().join("dangling/test.sock"), "does not exist");
    });
    for missing in [path, directory.path().join("missing/test.sock")] {
        let error = run(&runtime, Connection::connect(&missing));
        let Err(ConnectError::Socket(error)) = error else { panic!("{error:?}") };
        assert_eq!(error.kind(), ConnectErrorKind::Missing);
        assert!(error.to_string().contains(missing.to_str().expect("text")), "{error}");
    }
    assert_eq!(names(directory.path()), ["dangling", "file"]);
}

/// Longer than the 107 bytes of a socket address is no limit, a name of more than 255 is one, and so is a path
/// of more than 4095; the errors say which, and how long it is.
fn names_that_are_too_long(engine: EngineChoice) {
    let (directory, _) = place();
    for len in [107, 108, 109, 200, 1000] {
        let mut path = directory.path().to_path_buf();
        while path.as_os_str().len() + 51 < len {
            path.push("d".repeat(49));
        }
        std::fs::create_dir_all(&path).expect("directories");
        let rest = len - path.as_os_str().len() - 1;
        path.push("s".repeat(rest));
        assert_eq!(path.as_os_str().len(), len);
        serves(engine, &path);
        assert!(!path.exists());
    }
    let runtime = runtime(engine);
    runtime.enter(|| {
        let long = directory.path().join("n".repeat(256));
        let error = Listener::bind(&long).expect_err("too long");
        assert!(matches!(error, BindError::Address(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("256") && text.contains("bytes"), "{text}");
        let longest = directory.path().join("p/".repeat(2100)).join("s");
        let text = Listener::bind(&longest).expect_err("too long").to_string();
        assert!(text.len() > 20, "{text}");
        let name = Address::Abstract(vec![b'a'; 108]);
        assert!(matches!(Listener::bind(name), Err(BindError::Address(_))));
    });
}

/// The directory goes while the listener is there: who is connected stays so, nobody finds the listener any
/// more, its end removes nothing of others, and a new one can be made in the new directory.
fn removed_under_a_listener(engine: EngineChoice) {
    let (directory, _) = place();
    let inner = directory.path().join("run");
    let path = inner.join("test.sock");
    let runtime = runtime(engine);
    run(&runtime, async {
        std::fs::create_dir(&inner).expect("a directory");
        let holdings = Holdings::now();
        let mut listener = Listener::bind(&path).expect("bind");
        let (accepted, connected) =
            futures_util::future::join(listener.accept(), Connection::connect(&path)).await;
        let serving = spawn(echo(accepted.expect("accept")));
        let mut client = connected.expect("connect");
        ask(&mut client, 0, 3000).await;
        std::fs::remove_dir_all(&inner).expect("ours");
        ask(&mut client, 1, 3000).await;
        let error = Connection::connect(&path).await.expect_err("gone");
        assert!(matches!(error, ConnectError::Socket(_)), "{error}");
        // Somebody else's, by now.
        std::fs::create_dir(&inner).expect("a directory");
        let mut next = Listener::bind(&path).expect("a new place");
        drop(listener);
        assert_eq!(names(&inner), ["test.sock", "test.sock.lock"]);
        let (accepted, connected) =
            futures_util::future::join(next.accept(), Connection::connect(&path)).await;
        accepted.expect("accept");
        connected.expect("connect");
        client.shutdown().await.expect("open");
        serving.await.expect("no panic");
        drop((client, next));
        assert!(names(&inner).is_empty());
        holdings.descriptors_are_back().await;
    });
}
