//! More than one process that wants the same: successors, users, and predecessors that die.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ringpost::restart::{Predecessor, RestartError};
use ringpost::{AcceptError, AccessPolicy, EngineChoice};
use ringpost_testkit::child::Child;
use ringpost_testkit::peer::{RawPeer, greeting, message};
use ringpost_tests::on_both_engines;
use ringpost_tests::privileges::root_or_skip;
use ringpost_tests::rig::{block_on, blocking, place};

use crate::access::{ALLOWED as MEMBER, GROUP};

use super::failures::{Old, offered_and_ready};
use super::generation::start;
use super::raw::{COMMIT, REFUSED, RawSuccessor, TAKEN, hello};

on_both_engines!(
    second_successor,
    behind_the_first,
    other_user,
    a_mode_of_its_own,
    supplementary_groups_decide,
    predecessor_killed,
    predecessor_ended_in_order,
    both_killed,
);

const LIMIT: Duration = Duration::from_secs(20);

/// Asks a server once.
fn is_served(path: &str) {
    let mut peer = RawPeer::connect(path.as_ref());
    peer.send(&greeting());
    peer.send(&message(b"hello"));
    peer.read_hello();
    assert_eq!(peer.read_message(), b"hello");
}

fn second_successor(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(Predecessor::builder());
        let path = old.path.to_str().expect("text").to_owned();
        let (mut child, ready) = old
            .with(move || {
                let mut first = start(&path, engine, &["hold"]);
                assert_eq!(first.hear(), "offered");
                for _ in 0..3 {
                    let mut second = start(&path, engine, &[]);
                    assert_eq!(
                        second.hear(),
                        "refused: another successor is taking over; only one at a time"
                    );
                    assert!(second.wait(LIMIT).success());
                }
                first.tell("go on");
                first
            })
            .await;
        ready.expect("the first one").commit(b"").await.expect("taken");
        assert_eq!(old.listener.accept().await.map(drop), Err(AcceptError::HandedOver));
        let path = old.path.to_str().expect("text").to_owned();
        blocking(move || {
            assert_eq!(child.hear(), "serving 2");
            is_served(&path);
            // Clients see who serves them now.
            let stream = UnixStream::connect(&path).expect("served");
            let peer = ringpost_uds::peer_credentials(&stream).expect("connected");
            assert_eq!(peer.pid, Some(child.id()));
        })
        .await;
    });
}

/// Successors that connect while nobody waits for one: they are in the queue when somebody does again.
fn behind_the_first(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(Predecessor::builder());
        fn greeted(control: &Path) -> RawSuccessor {
            let mut successor = RawSuccessor::connect(control);
            // It may have been refused by now.
            let _ = successor.try_send(1, &hello(1));
            successor
        }
        let wait = || ringpost::sleep(Duration::from_millis(100));
        let (first, ready) = old.ready(offered_and_ready).await;
        // The first one is ready, and not told yet.
        let mut second = greeted(&old.control);
        wait().await;
        let control = old.control.clone();
        let refused = blocking(move || {
            second.read_to(REFUSED);
            let mut third = greeted(&control);
            third.read_to(REFUSED);
        });
        let successor = ringpost::timeout(Duration::from_secs(1), old.successor());
        let ((), waited) = futures_util::future::join(refused, successor).await;
        assert!(waited.is_err(), "there is one already: {waited:?}");
        // The first one has given up: it is the turn of others.
        drop((ready, first));
        let (first, ready) = old.ready(offered_and_ready).await;
        let mut second = greeted(&old.control);
        wait().await;
        let taken = blocking(move || {
            let mut first = first;
            first.read_to(COMMIT);
            first.send(TAKEN, &[]);
            first
        });
        let (first, committed) = futures_util::future::join(taken, ready.commit(b"")).await;
        committed.expect("taken");
        // There is a successor, for good.
        let error = ringpost::timeout(LIMIT, old.successor()).await.expect("at once");
        let error = error.expect_err("it has handed over");
        assert!(matches!(error, RestartError::HandedOver), "{error}");
        blocking(move || second.read_to(REFUSED)).await;
        drop(first);
    });
}

/// Lets others than the user reach the control socket.
fn open_to_all(old: &Old) {
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    open(old.path.parent().expect("in a directory"), 0o755);
    open(&old.control, 0o666);
}

/// The mode that lets others take over, if a policy does.
fn a_mode_of_its_own(engine: EngineChoice) {
    block_on(engine, async {
        let old = Old::new(Predecessor::builder().mode(0o660));
        let found = std::fs::metadata(&old.control).expect("it is there").permissions().mode();
        assert_eq!(found & 0o777, 0o660);
    });
}

fn other_user(engine: EngineChoice) {
    if !root_or_skip("restart::rivals::other_user") {
        return;
    }
    block_on(engine, async {
        let mut old = Old::new(Predecessor::builder());
        let path = old.path.to_str().expect("text").to_owned();
        // The mode of the control socket keeps others out.
        let said = hear_nobody(&path, engine, &["nobody"]).await;
        assert!(said.contains("ermission denied"), "{said}");
        // If somebody opens it, the other side's user does.
        open_to_all(&old);
        // (Both notice: this side does when it looks.)
        let by_itself = path.clone();
        let (said, result) = old
            .with(move || {
                let mut child = start(&by_itself, engine, &["nobody"]);
                child.hear()
            })
            .await;
        assert!(said.contains("may not take part in a restart"), "{said}");
        assert!(matches!(result, Err(RestartError::Denied { .. })), "{result:?}");
        // And this side's policy, whatever the other side thinks.
        let ((), result) = old
            .with(move || {
                let mut child = start(&path, engine, &["nobody", "anyone"]);
                let said = child.hear();
                assert!(said.contains("may not take part in a restart"), "{said}");
                assert!(child.wait(LIMIT).success());
            })
            .await;
        let peer = match result.expect_err("refused") {
            RestartError::Denied { peer, .. } => peer,
            other => panic!("{other}"),
        };
        assert_eq!(peer.uid, ringpost_tests::privileges::NOBODY);
        old.serves().await;
    });
}

/// Each side asks for the groups of the other.
fn supplementary_groups_decide(engine: EngineChoice) {
    if !root_or_skip("restart::rivals::supplementary_groups_decide") {
        return;
    }
    block_on(engine, async {
        let policy = AccessPolicy::anyone().allow_supplementary_gid(GROUP);
        let mut old = Old::new(Predecessor::builder().policy(policy));
        let path = old.path.to_str().expect("text").to_owned();
        open_to_all(&old);
        let stranger = path.clone();
        let (said, result) =
            old.with(move || start(&stranger, engine, &["no-member", "anyone"]).hear()).await;
        assert!(said.contains("may not take part in a restart"), "{said}");
        assert!(matches!(result, Err(RestartError::Denied { .. })), "{result:?}");
        let member = path.clone();
        let (said, result) =
            old.with(move || start(&member, engine, &["member", "anyone", "hold"]).hear()).await;
        assert_eq!(said, "offered", "{result:?}");
        old.serves().await;
    });
    // The other way round: the predecessor is the member.
    let (directory, path) = place();
    chown(directory.path(), Some(MEMBER), Some(MEMBER)).expect("root may");
    let path = path.to_str().expect("text");
    let mut first = start(path, engine, &["member"]);
    assert_eq!(first.hear(), "serving 1");
    let mut second = start(path, engine, &["no-member", "of-group", "hold"]);
    assert_eq!(second.hear(), "offered");
}

async fn hear_nobody(
    path: &str,
    engine: EngineChoice,
    settings: &'static [&'static str],
) -> String {
    let path = path.to_owned();
    blocking(move || {
        let mut child = start(&path, engine, settings);
        let said = child.hear();
        assert!(child.wait(LIMIT).success());
        said
    })
    .await
}

/// A first generation that serves, and a second one that has its offer and waits.
fn offered(path: &str, engine: EngineChoice) -> (Child, Child) {
    let mut first = start(path, engine, &[]);
    assert_eq!(first.hear(), "serving 1");
    let mut second = start(path, engine, &["hold"]);
    assert_eq!(second.hear(), "offered");
    (first, second)
}

/// A predecessor that dies while its successor starts up is taken over from as well, and without a gap.
fn predecessor_killed(engine: EngineChoice) {
    let (_directory, path) = place();
    let path = path.to_str().expect("text");
    let (mut first, mut second) = offered(path, engine);
    first.kill();
    // Nobody accepts, and nobody is refused.
    let waiting = UnixStream::connect(path).expect("not refused");
    second.tell("go on");
    assert_eq!(second.hear(), "serving 2 alone");
    let mut peer = RawPeer::new(waiting);
    peer.send(&greeting());
    peer.send(&message(b"waited"));
    peer.read_hello();
    assert_eq!(peer.read_message(), b"waited");
    is_served(path);
    // It is a predecessor like any other.
    let mut third = start(path, engine, &[]);
    assert_eq!(third.hear(), "serving 3");
    drop(peer);
    assert_eq!(second.hear(), "ended");
    is_served(path);
}

/// What a predecessor gave up before it ended without a word is not its successor's: another server may be there.
fn predecessor_ended_in_order(engine: EngineChoice) {
    let (_directory, path) = place();
    let path = path.to_str().expect("text");
    let (mut first, mut second) = offered(path, engine);
    // As dropping a listener does.
    for file in [path.to_owned(), format!("{path}.lock")] {
        std::fs::remove_file(file).expect("it is there");
    }
    first.kill();
    let address = ringpost_uds::Address::from(Path::new(path));
    let other = ringpost_uds::bind(&address, &ringpost_uds::BindOptions::new()).expect("free");
    second.tell("go on");
    let given_up = format!("the predecessor gave {path} up and ended; start as the first one");
    assert_eq!(second.hear(), format!("not taken over: {given_up}"));
    assert!(second.wait(LIMIT).success());
    assert!(other.guard().is_in_place());
}

/// Nothing has to be cleaned by hand.
fn both_killed(engine: EngineChoice) {
    let (directory, path) = place();
    let path = path.to_str().expect("text");
    for _ in 0..3 {
        let (mut first, mut second) = offered(path, engine);
        first.kill();
        second.kill();
    }
    let mut last = start(path, engine, &[]);
    assert_eq!(last.hear(), "serving 1");
    is_served(path);
    let names = std::fs::read_dir(directory.path()).expect("readable").count();
    assert_eq!(names, 6, "three sockets and their locks");
}
