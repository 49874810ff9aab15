//! Starters at the same moment.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::child::{Peer, now};
use crate::support::{bind, connect, directory, leave_stale, names};

/// A thousand times two processes start at the same moment: on nothing, on a leftover, on a leftover with
/// its lock file, and on somebody who is alive. Exactly one wins, but in the last case none; and the socket of whoever
/// won, or lives, is still there afterwards.
#[test]
fn two_processes_1000_times() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let lock = directory.path().join("app.sock.lock");
    let identity = |path: &Path| {
        std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok()
    };
    let mut starters = [Peer::start(), Peer::start()];
    let mut wins = [0, 0];
    for round in 0..1000 {
        let alive = match round % 4 {
            0 => None,
            1 => {
                leave_stale(&path);
                None
            }
            2 => {
                leave_stale(&path);
                std::fs::write(&lock, "pid 1\n").expect("write");
                None
            }
            _ => Some(std::os::unix::net::UnixListener::bind(&path).expect("free")),
        };
        let before = identity(&path);
        let start = now() + 300_000;
        for starter in &mut starters {
            starter.send(&format!("race {start} {}", path.display()));
        }
        let answers = starters.each_mut().map(Peer::answer);
        let won = answers.each_ref().map(|answer| u32::from(answer == "won"));
        let lost = answers.iter().filter(|answer| answer.starts_with("in use")).count();
        let winners = if alive.is_some() { 0 } else { 1 };
        assert_eq!(
            (won[0] + won[1], lost),
            (winners, 2 - winners as usize),
            "{round}: {answers:?}"
        );
        wins = [wins[0] + won[0], wins[1] + won[1]];
        connect(&path).expect("somebody listens");
        if alive.is_some() {
            assert_eq!(identity(&path), before, "round {round}: the living socket is the same");
            assert_eq!(names(directory.path()), ["app.sock"], "round {round}");
            std::fs::remove_file(&path).expect("ours");
        } else {
            assert_ne!(identity(&path), before, "round {round}: the leftover is replaced");
            assert_eq!(names(directory.path()), ["app.sock", "app.sock.lock"], "round {round}");
        }
        for starter in &mut starters {
            starter.send("drop");
        }
        for starter in &mut starters {
            assert_eq!(starter.answer(), "done");
        }
        assert!(names(directory.path()).is_empty(), "round {round}");
    }
    println!("wins: {wins:?}");
}

#[test]
fn four_threads_200_times() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    for round in 0..200 {
        if round % 2 == 0 {
            leave_stale(&path);
        }
        let barrier = Barrier::new(4);
        let results = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                bind(&path)
            };
            let threads = [(); 4].map(|()| scope.spawn(start));
            threads.map(|thread| thread.join().expect("no panic"))
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            assert!(error.is_address_in_use(), "{error}");
        }
        drop(results);
        assert!(names(directory.path()).is_empty(), "round {round}");
    }
}

/// Starting and stopping without a pause, where the removal of the lock file meets its opening.
#[test]
fn churn_never_has_two_owners() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let owners = AtomicU32::new(0);
    let won = AtomicU32::new(0);
    let end = Instant::now() + Duration::from_millis(500);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while Instant::now() < end {
                    match bind(&path) {
                        Ok(bound) => {
                            assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0, "two owners");
                            assert!(bound.guard().is_in_place());
                            won.fetch_add(1, Ordering::Relaxed);
                            owners.fetch_sub(1, Ordering::SeqCst);
                        }
                        Err(error) => assert!(error.is_address_in_use(), "{error}"),
                    }
                }
            });
        }
    });
    assert!(won.load(Ordering::Relaxed) > 10, "hardly anybody won");
    assert!(names(directory.path()).is_empty());
}

/// A replaced server never shows a gap: every connection attempt finds the old or the new socket.
#[test]
fn replacing_a_stale_socket_leaves_no_gap() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    for _ in 0..100 {
        leave_stale(&path);
        let done = AtomicU32::new(0);
        let bound = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while done.load(Ordering::Acquire) == 0 {
                    if let Err(error) = connect(&path) {
                        assert_eq!(
                            error.kind(),
                            ringpost_uds::ConnectErrorKind::Refused,
                            "only the stale one may answer so"
                        );
                    }
                }
            });
            let bound = bind(&path);
            done.store(1, Ordering::Release);
            watcher.join().expect("no gap");
            bound.expect("stale")
        });
        drop(bound);
    }
}

/// Whoever finds the path finds a server behind it.
#[test]
fn a_new_socket_listens_from_the_start() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    for _ in 0..100 {
        let looked = AtomicU32::new(0);
        let bound = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                loop {
                    match connect(&path) {
                        Ok(_) => break,
                        Err(error) => assert_eq!(
                            error.kind(),
                            ringpost_uds::ConnectErrorKind::Missing,
                            "{error}"
                        ),
                    }
                    looked.store(1, Ordering::Release);
                }
            });
            // The watcher is looking before the first step.
            while looked.load(Ordering::Acquire) == 0 && !watcher.is_finished() {
                std::hint::spin_loop();
            }
            let bound = bind(&path).expect("free");
            watcher.join().expect("found it listening");
            bound
        });
        drop(bound);
    }
}

/// A program that knows nothing of locks puts its files at the path while it is being bound.
#[test]
fn files_of_others_survive_a_race() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let spare = directory.path().join("spare");
    let interfere = |path: &Path| {
        leave_stale(&spare);
        let _ = std::fs::rename(&spare, path);
        std::fs::write(&spare, "precious").expect("write");
        let _ = std::fs::rename(&spare, path);
    };
    for round in 0..200 {
        leave_stale(&path);
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let binder = scope.spawn(|| {
                barrier.wait();
                bind(&path)
            });
            barrier.wait();
            interfere(&path);
            drop(binder.join().expect("no panic"));
        });
        // The file may have replaced the socket; the socket must not have replaced the file.
        assert_eq!(std::fs::read(&path).expect("still there"), b"precious", "round {round}");
        std::fs::remove_file(&path).expect("remove");
        assert!(names(directory.path()).is_empty(), "round {round}");
    }
}
