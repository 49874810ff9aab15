//! A directory that containers share, and what goes through the sockets in it.

use ringpost::EngineChoice;
use ringpost_tests::on_both_engines;

use crate::container::{Container, Host, Running, containers_or_skip};
use crate::roles::{TALK, TALKED, word};

on_both_engines!(messages_of_all_sizes, through_a_proxy, many_containers);

/// Who is seen in another container that has no user namespace of its own.
const ROOT_OUTSIDE: &str = "connected to a process outside this pid namespace (uid 0, gid 0)";

/// Waits until an example listens there; returns its engine and why.
#[track_caller]
pub(crate) fn ready(server: &mut Running, path: &str) -> String {
    let line = server.line("ready: ");
    let engine = line.strip_prefix(&format!("ready: {path} (")).unwrap_or_else(|| panic!("{line}"));
    engine.to_owned()
}

/// What the other tests rely on.
#[test]
fn containers_share_nothing_else() {
    if !containers_or_skip("volume::containers_share_nothing_else") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let mut both = [container.start(&["client", "epoll"]), container.start(&["client", "epoll"])];
    for name in ["mnt", "pid", "net", "ipc", "uts"] {
        let path = format!("/proc/self/ns/{name}");
        let outside = std::fs::read_link(&path).expect("a link").to_string_lossy().into_owned();
        let inside = both.each_mut().map(|container| container.ask(&format!("link {path}")));
        assert!(inside[0] != inside[1] && !inside.contains(&outside), "{outside}, {inside:?}");
    }
    for container in &mut both {
        assert_eq!(container.ask("link /proc/self"), "1", "process 1");
        assert_eq!(container.ask("names /outside"), "", "nothing of the host's root");
        for path in ["/dev", "/sys", "/home", volume.to_str().expect("text")] {
            assert_eq!(container.ask(&format!("exists {path}")), "false", "{path}");
        }
    }
    std::fs::write(volume.join("file"), "text").expect("write");
    for container in &mut both {
        assert_eq!(container.ask("names /run/app"), "file");
    }
}

fn messages_of_all_sizes(engine: EngineChoice) {
    if !containers_or_skip("volume::messages_of_all_sizes") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let engine = word(engine);
    let server = Container::new(&host).mount(&volume, "/run/app");
    let mut server = server.run("echo", &["--path", "/run/app/echo.sock", "--engine", engine]);
    ready(&mut server, "/run/app/echo.sock");
    let client = Container::new(&host).mount(&volume, "/var/lib/peer/sockets");
    let mut client = client.start(&["client", engine]);
    // Nothing else is shared.
    for path in ["/run/app", volume.to_str().expect("text")] {
        assert_eq!(client.ask(&format!("exists {path}")), "false", "{path}");
    }
    assert_eq!(client.ask("connect /var/lib/peer/sockets/echo.sock"), ROOT_OUTSIDE);
    assert_eq!(client.ask(TALK), TALKED);
    server.stop();
    assert_eq!(client.ask("names /var/lib/peer/sockets"), "", "nothing is left behind");
}

/// A sidecar: its clients see one volume, its server another.
fn through_a_proxy(engine: EngineChoice) {
    if !containers_or_skip("volume::through_a_proxy") {
        return;
    }
    let host = Host::new();
    let (front, back) = (host.volume("front"), host.volume("back"));
    let engine = word(engine);
    let server = Container::new(&host).mount(&back, "/run/app");
    let mut server = server.run("echo", &["--path", "/run/app/echo.sock", "--engine", engine]);
    ready(&mut server, "/run/app/echo.sock");
    let proxy = Container::new(&host).mount(&front, "/run/front").mount(&back, "/run/back");
    let (listen, to) = ("/run/front/proxy.sock", "/run/back/echo.sock");
    let mut proxy = proxy.run("forward", &["--listen", listen, "--to", to, "--engine", engine]);
    ready(&mut proxy, listen);
    let mut client = Container::new(&host).mount(&front, "/run/app").start(&["client", engine]);
    assert_eq!(client.ask("connect /run/app/proxy.sock"), ROOT_OUTSIDE);
    assert_eq!(client.ask(TALK), TALKED);
    // A server that is gone is no end of the proxy: its clients hear why.
    server.stop();
    assert_eq!(client.ask("connect /run/app/proxy.sock"), ROOT_OUTSIDE);
    assert_eq!(
        client.ask("hello"),
        "failed: the peer refused the connection: cannot connect to /run/back/echo.sock: there is no \
         such path; is the server running, and is this its path?"
    );
    proxy.stop();
}

/// Clients that come from several containers at once; to connect takes no write access to the volume.
fn many_containers(engine: EngineChoice) {
    if !containers_or_skip("volume::many_containers") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let engine = word(engine);
    let server = Container::new(&host).mount(&volume, "/run/app");
    let path = "/run/app/echo.sock";
    let mut server = server.run("echo", &["--path", path, "--engine", engine, "--threads", "2"]);
    ready(&mut server, path);
    let client = Container::new(&host).mount_read_only(&volume, "/run/app");
    let mut clients: Vec<Running> = (0..3).map(|_| client.start(&["client", engine])).collect();
    for client in &mut clients {
        let answer = client.ask("write /run/app/file");
        assert!(answer.starts_with("failed: Read-only file system"), "{answer}");
        assert_eq!(client.ask("connect /run/app/echo.sock"), ROOT_OUTSIDE);
    }
    clients.iter_mut().for_each(|client| client.tell(TALK));
    for client in &mut clients {
        assert_eq!(client.hear(), TALKED);
    }
}
