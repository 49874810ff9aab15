//! systemd makes the socket, and starts the `echo` example when somebody connects.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ringpost::{Connection, EngineChoice};
use ringpost_testkit::process::listens_at;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{ask, block_on, place};
use ringpost_tests::software::example::{self, engine_word};
use ringpost_tests::software::programs::{self, Needed};
use ringpost_tests::software::service::Service;

on_both_engines!(a_socket_of_systemd, another_name);

const NEEDED: &[Needed] = &[Needed { program: "systemd-socket-activate", package: "systemd" }];

/// The service manager, which listens at `path` and then becomes the example.
fn manager(path: &Path, engine: EngineChoice, name: &str) -> Service {
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen={}", path.display())).arg("--fdname=messages");
    command.arg(example::command("echo").get_program());
    command.args(["--activated", name, "--engine", engine_word(engine), "--threads", "2"]);
    Service::start(&mut command, path.with_extension("log"), || listens_at(path))
}

fn a_socket_of_systemd(engine: EngineChoice) {
    if !programs::here_or_skip("activation::a_socket_of_systemd", NEEDED) {
        return;
    }
    let (directory, path) = place();
    let manager = manager(&path, engine, "messages");
    block_on(engine, async {
        // The first connects before the server runs, and is served all the same.
        let mut connections = Vec::new();
        for sequence in 0..5 {
            let mut connection = Connection::connect(&path).await.expect("systemd listens");
            ask(&mut connection, sequence, 3000).await;
            connections.push(connection);
        }
        let mut first = connections.swap_remove(0);
        first.shutdown().await.expect("it reads");
        assert!(first.recv().await.expect("no error").is_none(), "a clean end");
    });
    assert!(manager.log().contains("\nready: messages ("), "{}", manager.log());
    assert!(manager.stop().success());
    // The socket is the manager's, which would go on listening; nothing else was left there.
    assert!(path.exists());
    let names = std::fs::read_dir(directory.path()).expect("readable");
    let mut names: Vec<_> = names.map(|entry| entry.expect("readable").file_name()).collect();
    names.sort();
    assert_eq!(names, ["test.log", "test.sock"]);
}

/// A unit file and a program that do not agree.
fn another_name(engine: EngineChoice) {
    if !programs::here_or_skip("activation::another_name", NEEDED) {
        return;
    }
    let (_directory, path) = place();
    let manager = manager(&path, engine, "another");
    let _waiting = std::os::unix::net::UnixStream::connect(&path).expect("systemd listens");
    // Its text may arrive in parts.
    let told = || {
        let log = manager.log();
        let text = log.split("echo: ").nth(1).unwrap_or_default();
        text.contains("another") && text.contains("messages")
    };
    ringpost_testkit::patience::eventually("it says why", Duration::from_secs(15), told);
    let log = manager.log();
    assert_eq!(manager.wait().code(), Some(1), "{log}");
}
