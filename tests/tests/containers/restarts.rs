//! Servers in containers that end, well or not, and start again on the same volume.

use ringpost::EngineChoice;
use ringpost_testkit::child::LIMIT;
use ringpost_testkit::patience::eventually;
use ringpost_tests::on_both_engines;
use rustix::process::Signal;

use crate::container::{Container, Host, Running, containers_or_skip};
use crate::roles::{TALK, TALKED, word};
use crate::volume::ready;

on_both_engines!(a_stopped_server_starts_again, a_killed_server_leaves_a_stale_socket);

const PATH: &str = "/run/app/echo.sock";

fn start(container: &Container<'_>, engine: &str) -> Running {
    let mut server = container.run("echo", &["--path", PATH, "--engine", engine]);
    ready(&mut server, PATH);
    server
}

/// Waits until nobody serves the socket: the kernel takes a moment to end an io_uring that was killed.
fn nobody_listens(client: &mut Running, path: &str) {
    eventually("the killed server's socket is closed", LIMIT, || {
        let answer = client.ask(&format!("connect {path}"));
        answer.starts_with(&format!("failed: cannot connect to {path}: no server listens there"))
    });
}

#[track_caller]
fn connects(client: &mut Running, path: &str) {
    let answer = client.ask(&format!("connect {path}"));
    assert!(answer.starts_with("connected to "), "{answer}");
}

/// As process 1 of its container, with SIGTERM, as an engine stops it.
fn a_stopped_server_starts_again(engine: EngineChoice) {
    if !containers_or_skip("restarts::a_stopped_server_starts_again") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let server = start(&container, word(engine));
    let mut client = container.start(&["client", word(engine)]);
    connects(&mut client, PATH);
    assert_eq!(client.ask("hello"), "hello");
    server.stop();
    // The connection had a clean end.
    assert_eq!(client.ask("hello"), "ended");
    let answer = client.ask(&format!("connect {PATH}"));
    assert!(
        answer.starts_with(&format!("failed: cannot connect to {PATH}: there is no such path"))
    );
    let _server = start(&container, word(engine));
    connects(&mut client, PATH);
    assert_eq!(client.ask(TALK), TALKED);
}

/// What is left in the volume is the socket and its lock file; the next start takes both over.
fn a_killed_server_leaves_a_stale_socket(engine: EngineChoice) {
    if !containers_or_skip("restarts::a_killed_server_leaves_a_stale_socket") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let mut client = container.start(&["client", word(engine)]);
    for _ in 0..2 {
        let server = start(&container, word(engine));
        connects(&mut client, PATH);
        server.kill();
        let answer = client.ask("hello");
        assert!(answer.starts_with("failed: the peer is gone without a proper end"), "{answer}");
        nobody_listens(&mut client, PATH);
        assert_eq!(client.ask("names /run/app"), "echo.sock echo.sock.lock");
    }
    let server = start(&container, word(engine));
    connects(&mut client, PATH);
    assert_eq!(client.ask(TALK), TALKED);
    server.stop();
    assert_eq!(client.ask("names /run/app"), "");
}

/// A mounted socket file is the socket that was there when the container started, and stays it. Who
/// mounts the directory finds the new one.
#[test]
fn a_mounted_socket_file_goes_dead() {
    if !containers_or_skip("restarts::a_mounted_socket_file_goes_dead") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let server = start(&container, "epoll");
    let mut right = container.start(&["client", "epoll"]);
    let socket = volume.join("echo.sock");
    let mut wrong =
        Container::new(&host).mount(&socket, "/run/mounted.sock").start(&["client", "epoll"]);
    connects(&mut right, PATH);
    connects(&mut wrong, "/run/mounted.sock");
    assert_eq!(wrong.ask("hello"), "hello");

    server.kill();
    nobody_listens(&mut right, PATH);
    let _server = start(&container, "epoll");
    connects(&mut right, PATH);
    assert_eq!(right.ask("hello"), "hello");
    for _ in 0..2 {
        assert_eq!(
            wrong.ask("connect /run/mounted.sock"),
            "failed: cannot connect to /run/mounted.sock: the socket itself is mounted there, and its \
             server has ended; a server that starts again makes a new socket, so mount the directory \
             of the socket instead"
        );
    }
}

/// The other side of the same mistake: a server can't put its socket where a file is mounted.
#[test]
fn a_server_cant_replace_a_mounted_socket_file() {
    if !containers_or_skip("restarts::a_server_cant_replace_a_mounted_socket_file") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    start(&container, "epoll").kill();
    let socket = volume.join("echo.sock");
    // As with a directory for the rest, or else the lock file could not be made.
    let both = container.mount(&socket, "/run/app/mounted.sock");
    let mut server = both.start(&["server", "epoll", "/run/app/mounted.sock", "600"]);
    assert_eq!(
        server.hear(),
        "failed: cannot move the socket to /run/app/mounted.sock: something is mounted at that very \
         name; mount the directory of the socket instead (errno 16)"
    );
    let mut client = both.start(&["client", "epoll"]);
    assert_eq!(client.ask("names /run/app"), "echo.sock echo.sock.lock mounted.sock");
}

/// The lock file is on the volume, so the containers exclude each other. The number of the owner is from
/// its own pid namespace.
#[test]
fn one_server_at_a_time() {
    if !containers_or_skip("restarts::one_server_at_a_time") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let first = Container::new(&host).mount(&volume, "/run/app");
    let first = start(&first, "epoll");
    let second = Container::new(&host).mount(&volume, "/srv");
    let mut refused = second.run("echo", &["--path", "/srv/echo.sock"]);
    assert_eq!(
        refused.line("echo: "),
        "echo: the address /srv/echo.sock is in use by process 1; stop that server or choose another \
         address"
    );
    let mut client = second.start(&["client", "epoll"]);
    connects(&mut client, "/srv/echo.sock");
    assert_eq!(client.ask("hello"), "hello");
    first.stop();
    let mut second = second.run("echo", &["--path", "/srv/echo.sock"]);
    ready(&mut second, "/srv/echo.sock");
    connects(&mut client, "/srv/echo.sock");
}

/// A server that hangs still has its socket, and the kernel takes connections for it. So a check has to wait
/// for the greeting.
#[test]
fn a_check_waits_for_the_greeting() {
    if !containers_or_skip("restarts::a_check_waits_for_the_greeting") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let server = start(&container, "epoll");
    let mut client = container.start(&["client", "epoll"]);
    let check = format!("check {PATH} 20000");
    assert_eq!(client.ask(&check), "healthy");
    server.signal(Signal::STOP);
    assert_eq!(client.ask(&format!("plain-connect {PATH}")), "done");
    assert_eq!(
        client.ask(&format!("check {PATH} 300")),
        format!("failed: connected to {PATH}, but the peer sent no greeting within 300 ms")
    );
    server.signal(Signal::CONT);
    assert_eq!(client.ask(&check), "healthy");
    server.kill();
    nobody_listens(&mut client, PATH);
    assert_eq!(
        client.ask(&format!("exists {PATH}")),
        "true",
        "that the file is there says nothing"
    );
    assert!(client.ask(&check).starts_with("failed: "));
}
