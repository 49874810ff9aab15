//! Who may connect, and who did.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ringpost::{AccessPolicy, Connection, EngineChoice, Listener, spawn, timeout};
use ringpost_tests::on_both_engines;
use ringpost_tests::privileges::root_or_skip;
use ringpost_tests::rig::{block_on, blocking, echo, place};

use crate::roles;

on_both_engines!(the_policy_decides, credentials_are_the_peers);

const ALLOWED: u32 = 12_345;
const DENIED: u32 = 12_346;

fn the_policy_decides(engine: EngineChoice) {
    if !root_or_skip("access::the_policy_decides") {
        return;
    }
    let (directory, path) = place();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("ours");
    block_on(engine, async {
        let policy = AccessPolicy::default().allow_uid(ALLOWED);
        let builder = Listener::builder().mode(0o666).policy(policy);
        let mut listener = builder.bind(&path).expect("bind");
        let start = |uid: u32| {
            let words = [path.to_str().expect("text").to_owned(), uid.to_string()];
            roles::start("user", &[&words[0], &words[1]])
        };

        let mut denied = start(DENIED);
        let accepted = timeout(Duration::from_millis(1500), listener.accept());
        let answers = spawn(blocking(move || (denied.hear(), denied.hear())));
        assert!(accepted.await.is_err(), "a denied peer is not handed out");
        let (_, answer) = answers.await.expect("no panic");
        let who =
            format!("(uid {DENIED}, gid {DENIED}) may not connect: allowed are only uid {ALLOWED}");
        assert!(
            answer.starts_with("failed: the peer refused the connection: process "),
            "{answer}"
        );
        assert!(answer.ends_with(&who), "{answer}");

        let mut allowed = start(ALLOWED);
        let connection = listener.accept().await.expect("accept");
        let peer = connection.peer_credentials().expect("a Unix socket");
        assert_eq!((peer.uid, peer.gid), (ALLOWED, ALLOWED));
        assert_eq!(peer.pid, Some(allowed.id()));
        spawn(echo(connection));
        let answers = blocking(move || (allowed.hear(), allowed.hear())).await;
        assert_eq!(answers.1, "answered: hello");
    });
}

fn credentials_are_the_peers(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("bind");
        let mut tasks = Vec::new();
        for _ in 0..10 {
            let path = path.clone();
            tasks.push(spawn(async move { Connection::connect(&path).await.expect("connect") }));
        }
        let mut ends = Vec::new();
        for _ in 0..10 {
            ends.push(listener.accept().await.expect("accept"));
        }
        for task in tasks {
            ends.push(task.await.expect("no panic"));
        }
        for connection in ends {
            let peer = connection.peer_credentials().expect("a Unix socket");
            assert_eq!(peer.pid, Some(std::process::id()));
            assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
            assert_eq!(peer.gid, rustix::process::getegid().as_raw());
        }
    });
}
