//! Mode and owner: exact in the end, and never wider on the way.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringpost_uds::{Address, BindOptions, ConnectErrorKind};

use crate::child::Peer;
use crate::support::{
    NOBODY, as_user, bind, connect, directory, is_socket, mode, open_directory, root_or_skip,
};

#[test]
fn mode_is_exact_whatever_the_umask() {
    let directory = directory();
    for umask in ["000", "022", "077", "777"] {
        let mut child = Peer::start();
        assert_eq!(child.ask(&format!("umask {umask}")), "done");
        for bits in ["600", "660", "666", "000", "777", "640"] {
            let path = directory.path().join(format!("{umask}-{bits}"));
            assert_eq!(child.ask(&format!("bind {bits} {}", path.display())), "won");
            assert_eq!(format!("{:03o}", mode(&path)), bits, "umask {umask}");
        }
    }
}

/// The descriptors of a thread may be others than those of the initial one, which `/proc/self` shows.
#[test]
fn mode_is_exact_in_a_thread_with_descriptors_of_its_own() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let mut child = Peer::start();
    assert_eq!(child.ask("umask 022"), "done");
    assert_eq!(child.ask(&format!("apart 666 {}", path.display())), "won with 666");
    assert!(!path.exists());
}

/// A server whose mode keeps its own user out can't be told from a dead one, and the text says why.
#[test]
fn a_stale_socket_that_its_user_may_not_write_to() {
    if !root_or_skip("permissions::a_stale_socket_that_its_user_may_not_write_to") {
        return;
    }
    let directory = open_directory();
    std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("root may");
    let path = directory.path().join("app.sock");
    let bound = || {
        let mut child = Peer::start();
        assert_eq!(child.ask(&format!("user {NOBODY}")), "done");
        let answer = child.ask(&format!("bind 060 {}", path.display()));
        (child, answer)
    };
    let (child, answer) = bound();
    assert_eq!(answer, "won");
    child.kill();
    let (_child, answer) = bound();
    let path = path.display();
    let begin =
        format!("failed: cannot tell whether the socket {path} still has a server: permission");
    assert!(answer.starts_with(&begin), "{answer}");
    assert!(answer.contains("which its mode may deny even to its own server"), "{answer}");
}

#[test]
fn default_mode_is_0600() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&directory.path().join("app.sock.lock")) & 0o077, 0);
    drop(bound);
}

#[test]
fn never_visible_with_a_wider_mode() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let mut child = Peer::start();
    // The widest umask, under which a careless bind would be reachable for everyone.
    assert_eq!(child.ask("umask 000"), "done");
    let stop = AtomicBool::new(false);
    let (seen, wider) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut seen, mut wider) = (0_u32, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir(directory.path()).expect("read").flatten() {
                    let Ok(metadata) = std::fs::symlink_metadata(entry.path()) else {
                        continue;
                    };
                    seen += 1;
                    if metadata.mode() & 0o077 != 0 {
                        wider.push((entry.path(), metadata.mode()));
                    }
                }
            }
            (seen, wider)
        });
        for _ in 0..300 {
            assert_eq!(child.ask(&format!("bind 600 {}", path.display())), "won");
            assert_eq!(child.ask("drop"), "done");
        }
        stop.store(true, Ordering::Relaxed);
        watcher.join().expect("no panic")
    });
    assert!(seen > 100, "the watcher saw only {seen} entries");
    assert!(wider.is_empty(), "{wider:?}");
}

/// Somebody who may not connect tries all names that appear, all the time, final and temporary ones. A
/// refusal for want of a listener ("refused") would already mean that the permission was there.
#[test]
fn no_window_for_those_who_may_not_connect() {
    if !root_or_skip("permissions::no_window_for_those_who_may_not_connect") {
        return;
    }
    let directory = open_directory();
    let path = directory.path().join("app.sock");
    let mut child = Peer::start();
    assert_eq!(child.ask("umask 000"), "done");
    let tried = AtomicU32::new(0);
    let stop = AtomicBool::new(false);
    let attack = || {
        while !stop.load(Ordering::Relaxed) {
            let names = std::fs::read_dir(directory.path()).expect("readable").flatten();
            let paths: Vec<_> = names.map(|entry| entry.path()).collect();
            for path in paths.iter().filter(|path| path.extension() != Some("lock".as_ref())) {
                match connect(path).map_err(|error| error.kind()) {
                    Err(ConnectErrorKind::Forbidden) => tried.fetch_add(1, Ordering::Relaxed),
                    Err(ConnectErrorKind::Missing) => 0,
                    other => panic!("{}: {other:?}", path.display()),
                };
            }
        }
    };
    std::thread::scope(|scope| {
        let attackers = [(); 2].map(|()| scope.spawn(|| as_user(NOBODY, NOBODY, attack)));
        let end = Instant::now() + LIMIT;
        let mut rounds = 0;
        while rounds < 300 || tried.load(Ordering::Relaxed) < 300 {
            assert!(Instant::now() < end, "hardly anybody attacked");
            if attackers.iter().any(|attacker| attacker.is_finished()) {
                break;
            }
            // In every second round it goes to somebody else, between its mode and its listening.
            let owner = if rounds % 2 == 0 { "0" } else { "1" };
            let command = format!("own {owner} {}", path.display());
            assert_eq!(child.ask(&command), "won");
            assert_eq!(child.ask("drop"), "done");
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
        for attacker in attackers {
            attacker.join().expect("nobody got in");
        }
    });
}

/// The same attack on a socket that is open to all does get in: it would have seen a window.
#[test]
fn those_who_may_connect_get_in() {
    if !root_or_skip("permissions::those_who_may_connect_get_in") {
        return;
    }
    let directory = open_directory();
    let path = directory.path().join("app.sock");
    let mut child = Peer::start();
    assert_eq!(child.ask(&format!("bind 666 {}", path.display())), "won");
    as_user(NOBODY, NOBODY, || connect(&path).map(drop)).expect("mode 666");
    assert_eq!(child.ask("drop"), "done");
    // Given to the attacker, and to nobody else.
    let options = BindOptions::new().mode(0o600).uid(NOBODY);
    let bound = ringpost_uds::bind(&Address::from(path.as_path()), &options).expect("root may");
    as_user(NOBODY, NOBODY, || connect(&path).map(drop)).expect("its owner");
    let error = as_user(NOBODY + 1, NOBODY, || connect(&path).map(drop)).expect_err("others");
    assert_eq!(error.kind(), ConnectErrorKind::Forbidden);
    drop(bound);
}

/// Umask and working directory belong to all threads: nobody ever sees them changed.
#[test]
fn umask_and_working_directory_stay() {
    let directory = directory();
    let path = crate::support::path_of_length(directory.path(), 300, 8);
    let mut child = Peer::start();
    assert_eq!(child.ask("umask 027"), "done");
    let process = format!("/proc/{}", child.id());
    let state = || {
        let status = std::fs::read_to_string(format!("{process}/status")).expect("alive");
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).map(str::trim);
        (umask.map(str::to_owned), std::fs::read_link(format!("{process}/cwd")).expect("alive"))
    };
    let before = state();
    assert_eq!(before.0.as_deref(), Some("0027"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(state(), before);
            }
        });
        for _ in 0..200 {
            assert_eq!(child.ask(&format!("bind 666 {}", path.display())), "won");
            assert!(child.ask(&format!("connect {}", path.display())).contains("process"));
            assert_eq!(child.ask("drop"), "done");
        }
        stop.store(true, Ordering::Relaxed);
        watcher.join().expect("they stay");
    });
}

#[test]
fn owner_and_group() {
    if !root_or_skip("permissions::owner_and_group") {
        return;
    }
    let directory = directory();
    let check = |uid: Option<u32>, gid: Option<u32>, expected: (u32, u32)| {
        let path = directory.path().join("app.sock");
        let mut options = BindOptions::new().mode(0o660);
        if let Some(uid) = uid {
            options = options.uid(uid);
        }
        if let Some(gid) = gid {
            options = options.gid(gid);
        }
        let bound = ringpost_uds::bind(&Address::from(path.as_path()), &options).expect("root may");
        let metadata = std::fs::symlink_metadata(&path).expect("metadata");
        assert_eq!((metadata.uid(), metadata.gid()), expected);
        assert_eq!(mode(&path), 0o660);
        drop(bound);
        assert!(!is_socket(&path), "removed though it belongs to somebody else");
    };
    check(None, None, (0, 0));
    check(Some(1234), None, (1234, 0));
    check(None, Some(4321), (0, 4321));
    check(Some(1234), Some(4321), (1234, 4321));
}

#[test]
fn giving_away_takes_root() {
    if !root_or_skip("permissions::giving_away_takes_root") {
        return;
    }
    let directory = directory();
    let user = NOBODY;
    std::os::unix::fs::chown(directory.path(), Some(user), Some(user)).expect("chown");
    let path = directory.path().join("app.sock");
    let error = as_user(user, user, || {
        let options = BindOptions::new().uid(0);
        ringpost_uds::bind(&Address::from(path.as_path()), &options).map(|_| ())
    })
    .expect_err("not root");
    assert!(error.to_string().contains("change the owner"), "{error}");
    assert!(error.to_string().contains("only root gives files away"), "{error}");
    assert!(crate::support::names(directory.path()).is_empty());
}

const LIMIT: Duration = Duration::from_secs(20);
