//! Mode and owner: exact in the end, and never wider on the way.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use ringpost_uds::{Address, BindOptions};

use crate::child::Peer;
use crate::support::{bind, directory, is_socket, mode, root_or_skip};

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
    let user = crate::support::NOBODY;
    std::os::unix::fs::chown(directory.path(), Some(user), Some(user)).expect("chown");
    let path = directory.path().join("app.sock");
    let error = crate::support::as_user(user, user, || {
        let options = BindOptions::new().uid(0);
        ringpost_uds::bind(&Address::from(path.as_path()), &options).map(|_| ())
    })
    .expect_err("not root");
    assert!(error.to_string().contains("change the owner"), "{error}");
    assert!(error.to_string().contains("only root gives files away"), "{error}");
    assert!(crate::support::names(directory.path()).is_empty());
}
