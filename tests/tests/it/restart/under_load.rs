//! Many restarts in a row, under load.

use std::time::Duration;

use ringpost::EngineChoice;
use ringpost_testkit::child::Child;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::place;

use super::generation::{plain_path, start};
use super::load::Load;

on_both_engines!(clients_come_and_go, connections_stay);

const RESTARTS: u32 = 20;
const LIMIT: Duration = Duration::from_secs(20);

/// Waits for a generation's last word and its end.
#[track_caller]
fn ends(mut child: Child) {
    assert_eq!(child.hear(), "ended");
    assert!(child.wait(LIMIT).success());
}

/// No connect is refused and no message lost or doubled; each generation ends by itself.
fn clients_come_and_go(engine: EngineChoice) {
    let (directory, path) = place();
    let path = path.to_str().expect("text");
    let mut current = start(path, engine, &[]);
    assert_eq!(current.hear(), "serving 1");
    let mut load = Load::new();
    for _ in 0..3 {
        load.comes_and_goes(path);
    }
    load.wait_for(10);
    for generation in 2..=RESTARTS + 1 {
        let mut next = start(path, engine, &[]);
        assert_eq!(next.hear(), format!("serving {generation}"));
        ends(std::mem::replace(&mut current, next));
        load.wait_for(20);
    }
    let answered = load.stop();
    assert!(answered >= u64::from(RESTARTS) * 20, "{answered}");
    drop(current);
    drop(directory);
}

/// Connections move twenty times with traffic in flight, a part of a message included.
fn connections_stay(engine: EngineChoice) {
    let (directory, path) = place();
    let path = path.to_str().expect("text");
    let mut current = start(path, engine, &["move"]);
    assert_eq!(current.hear(), "serving 1");
    let mut load = Load::new();
    load.stays(path, true);
    load.stays(path, true);
    load.stays(&plain_path(path), false);
    load.comes_and_goes(path);
    load.wait_for(100);
    for generation in 2..=RESTARTS + 1 {
        let mut next = start(path, engine, &["move"]);
        assert_eq!(next.hear(), format!("serving {generation}"));
        ends(std::mem::replace(&mut current, next));
        load.wait_for(50);
    }
    load.stop();
    drop(current);
    drop(directory);
}
