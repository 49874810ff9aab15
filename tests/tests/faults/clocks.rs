//! Clocks that jump: the library goes by the monotonic clock alone, whatever that says, and its deadlines
//! stand what users put in. (Suspended processes: [`crate::stopped`].)

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ringpost::{ConnectionOptions, EngineChoice, sleep, sleep_until, spawn, timeout};
use ringpost_testkit::child::{isolated_through, skip};
use ringpost_tests::engines::{self, EPOLL, URING};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{ask, block_on, echo, pair};

on_both_engines!(deadlines_of_all_kinds);

/// In time namespaces (time_namespaces(7)) in which the monotonic clock has just begun, and in which it is years
/// later, messages flow and timers fire after the time they were set to.
#[test]
fn another_monotonic_clock() {
    let uptime = std::fs::read_to_string("/proc/uptime").expect("/proc is mounted");
    let uptime: u64 =
        uptime.split('.').next().expect("seconds").parse().expect("a number of seconds");
    let test = concat!(module_path!(), "::another_monotonic_clock");
    let probe = Command::new("unshare").args(["--time", "--fork", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return skip(test, "`unshare --time` is not allowed");
    }
    for offset in [format!("-{}", uptime.saturating_sub(2)), "300000000".to_owned()] {
        let through = ["unshare", "--time", "--fork", "--kill-child", "--monotonic", &offset];
        isolated_through(&through, test, &[(OFFSET, &offset)], || {
            // In the child the loop starts anew; it runs the case it was given.
            if std::env::var(OFFSET).is_ok_and(|wanted| wanted == offset) {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
                println!("the monotonic clock says {now} s");
                assert!(!(60..200_000_000).contains(&now), "the clock says {now} s");
                engines::run("clocks::another_monotonic_clock", URING, works);
                engines::run("clocks::another_monotonic_clock", EPOLL, works);
            }
        });
    }
}

const OFFSET: &str = "RINGPOST_TEST_OFFSET";

fn works(engine: EngineChoice) {
    deadlines_of_all_kinds(engine);
    block_on(engine, async {
        let (mut client, server) = pair(ConnectionOptions::new());
        spawn(echo(server));
        for sequence in 0..20 {
            ask(&mut client, sequence, 3000).await;
            sleep(Duration::from_millis(2)).await;
        }
    });
}

/// In the past, now, twice the same, and further away than the clock reaches.
fn deadlines_of_all_kinds(engine: EngineChoice) {
    block_on(engine, async {
        let now = Instant::now();
        sleep_until(now).await;
        sleep_until(now.checked_sub(Duration::from_secs(1)).unwrap_or(now)).await;
        sleep(Duration::ZERO).await;
        for endless in
            [Duration::MAX, Duration::from_secs(u64::MAX / 2), Duration::from_secs(1 << 40)]
        {
            let start = Instant::now();
            let outer = timeout(Duration::from_millis(20), sleep(endless)).await;
            assert!(outer.is_err(), "{endless:?} is over");
            assert!(start.elapsed() >= Duration::from_millis(20), "too early");
            assert_eq!(timeout(endless, async { 7 }).await, Ok(7));
        }
        let at = Instant::now() + Duration::from_millis(30);
        let order = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..20)
            .map(|index| {
                let order = std::rc::Rc::clone(&order);
                spawn(async move {
                    sleep_until(at).await;
                    assert!(Instant::now() >= at, "too early");
                    order.borrow_mut().push(index);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!(*order.borrow(), (0..20).collect::<Vec<_>>(), "as they were set");
    });
}

/// The time of day, which anybody may set, is not looked at anywhere in the library.
#[test]
fn the_time_of_day_does_not_matter() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut files = 0;
    for name in ["ringpost", "ringpost-frame", "ringpost-reactor", "ringpost-sync", "ringpost-uds"]
    {
        let mut directories = vec![crates.join(name).join("src")];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).expect("sources") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                files += 1;
                let text = std::fs::read_to_string(&path).expect("text");
                for word in ["SystemTime", "Realtime", "CLOCK_REALTIME", "gettimeofday"] {
                    assert!(!text.contains(word), "{} has {word}", path.display());
                }
            }
        }
    }
    assert!(files > 50, "{files} files");
}
