//! What containers are refused: io_uring, locked memory, `/proc`, files to write to.

use ringpost::{EngineChoice, Runtime};
use ringpost_testkit::child::skip;

use crate::container::{
    Container, Host, Running, UserNamespace, containers_or_skip, executable, set,
    user_namespaces_or_skip,
};
use crate::roles::{TALK, TALK_BRIEFLY, TALKED};
use crate::volume::ready;

const PATH: &str = "/run/app/echo.sock";

/// What a runtime says under a profile that refuses io_uring.
const REFUSED: &str = "epoll: io_uring can't be used: the call is not permitted (EPERM): a seccomp profile \
                       or security policy refuses it)";
const WORKS: &str = "io_uring: io_uring passed its preflight)";

fn uring_or_skip(test: &str) -> bool {
    let refusal = Runtime::builder().engine(EngineChoice::Uring).build().err();
    if let Some(error) = &refusal {
        skip(test, &error.to_string());
    }
    refusal.is_none()
}

/// Starts an example, under Docker's default profile or not.
fn run(container: &Container<'_>, confined: bool, example: &str, arguments: &[&str]) -> Running {
    if !confined {
        return container.run(example, arguments);
    }
    let program = executable(example);
    container.start(&[&["under-dockers-profile", "exec", &program], arguments].concat())
}

/// Each side finds out for itself, and says so; the other side does not notice.
#[test]
fn under_dockers_default_profile() {
    if !containers_or_skip("confined::under_dockers_default_profile")
        || !uring_or_skip("confined::under_dockers_default_profile")
    {
        return;
    }
    let host = Host::new();
    for (server_confined, client_confined) in [(true, false), (false, true), (true, true)] {
        let case = format!("{server_confined} {client_confined}");
        let volume = host.volume(&case.replace(' ', "-"));
        let container = Container::new(&host).mount(&volume, "/run/app");
        let mut server = run(&container, server_confined, "echo", &["--path", PATH]);
        let expected = |confined| if confined { REFUSED } else { WORKS };
        assert_eq!(ready(&mut server, PATH), expected(server_confined), "{case}");
        let words: &[&str] = match client_confined {
            true => &["under-dockers-profile", "client", "auto"],
            false => &["client", "auto"],
        };
        let mut client = container.start(words);
        let engine = client.ask("engine").replacen(" (", ": ", 1);
        assert_eq!(engine, expected(client_confined), "{case}");
        assert!(client.ask(&format!("connect {PATH}")).starts_with("connected to "), "{case}");
        assert_eq!(client.ask(TALK), TALKED, "{case}");
        server.stop();
    }
}

/// A confined proxy between two sides that are not.
#[test]
fn a_proxy_under_dockers_default_profile() {
    if !containers_or_skip("confined::a_proxy_under_dockers_default_profile")
        || !uring_or_skip("confined::a_proxy_under_dockers_default_profile")
    {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let mut server = run(&container, false, "echo", &["--path", PATH]);
    assert_eq!(ready(&mut server, PATH), WORKS);
    let listen = "/run/app/proxy.sock";
    let mut proxy = run(&container, true, "forward", &["--listen", listen, "--to", PATH]);
    assert_eq!(ready(&mut proxy, listen), REFUSED);
    let mut client = container.start(&["client", "uring"]);
    assert!(client.ask(&format!("connect {listen}")).starts_with("connected to "));
    assert_eq!(client.ask(TALK_BRIEFLY), TALKED);
    proxy.stop();
    server.stop();
}

/// To have io_uring, a profile has to allow its three calls, and no other that is refused by default.
#[test]
fn a_profile_that_allows_io_uring() {
    let test = "confined::a_profile_that_allows_io_uring";
    if !containers_or_skip(test) || !uring_or_skip(test) {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let start = |allowed: &str, rest: &[&str]| {
        container.start(&[&["under-dockers-profile-but", allowed], rest].concat())
    };
    let all = "io_uring_setup,io_uring_enter,io_uring_register";
    let mut server = start(all, &["exec", &executable("echo"), "--path", PATH]);
    assert_eq!(ready(&mut server, PATH), WORKS);
    let mut client = start(all, &["client", "uring"]);
    assert!(client.ask(&format!("connect {PATH}")).starts_with("connected to "));
    assert_eq!(client.ask(TALK_BRIEFLY), TALKED);
    for two in [
        "io_uring_setup,io_uring_enter",
        "io_uring_setup,io_uring_register",
        "io_uring_enter,io_uring_register",
    ] {
        let mut client = start(two, &["client", "auto"]);
        let engine = client.ask("engine");
        println!("{two}: {engine}");
        assert!(engine.starts_with("epoll (io_uring can't be used: "), "{two}: {engine}");
        assert!(client.ask(&format!("connect {PATH}")).starts_with("connected to "), "{two}");
        assert_eq!(client.ask(TALK_BRIEFLY), TALKED, "{two}");
    }
}

/// To demand io_uring where it is refused is an error with the reason, not a fallback.
#[test]
fn demanded_under_dockers_default_profile() {
    if !containers_or_skip("confined::demanded_under_dockers_default_profile") {
        return;
    }
    let host = Host::new();
    let container = Container::new(&host);
    let mut server = run(&container, true, "echo", &["--path", "@none", "--engine", "uring"]);
    assert_eq!(
        server.line("echo: "),
        "echo: io_uring was demanded but can't be used: the call is not permitted (EPERM): a seccomp \
         profile or security policy refuses it"
    );
}

/// Rings that 64 KiB surely don't hold.
const RINGS_IN_LITTLE_MAX: usize = 12;

/// Rings count against the locked memory of the user that the host knows, in all containers together. Root
/// in a user namespace is no exception, nor is root with the capabilities that Docker leaves it.
#[test]
fn little_locked_memory() {
    let test = "confined::little_locked_memory";
    if !user_namespaces_or_skip(test) || !uring_or_skip(test) {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    set(&volume, LOCKING, 0o755);
    let namespace = UserNamespace::new(LOCKING);
    let container = Container::new(&host).mount(&volume, "/run/app");
    let remapped = container.clone().user_namespace(&namespace);
    let no_memory = |bytes: u64| {
        format!(
            "epoll: io_uring can't be used: no memory for the ring (ENOMEM): RLIMIT_MEMLOCK is {bytes} \
             bytes for all of this user's rings)"
        )
    };
    let mut servers: Vec<Running> = Vec::new();
    let mut engines = Vec::new();
    let little = std::iter::repeat_n((&remapped, 64 << 10), RINGS_IN_LITTLE_MAX);
    for (container, bytes) in [(&container, 0), (&remapped, 0)].into_iter().chain(little) {
        // Until one is refused.
        if engines.len() > 2 && engines.last().is_some_and(|engine| engine != WORKS) {
            break;
        }
        let path = format!("/run/app/{}.sock", servers.len());
        let limited = container.clone().locked_memory(bytes);
        let mut server = limited.run("echo", &["--path", &path]);
        let engine = ready(&mut server, &path);
        println!("{bytes} bytes: {engine}");
        assert!([WORKS, &no_memory(bytes)].contains(&engine.as_str()), "{engine}");
        engines.push(engine);
        // Whatever became of it, it serves.
        let mut client = limited.start(&["client", "epoll"]);
        assert!(client.ask(&format!("connect {path}")).starts_with("connected to "));
        assert_eq!(client.ask(TALK_BRIEFLY), TALKED);
        servers.push(server);
    }
    // Not every kernel counts rings as locked memory. One that does has no room in nothing, and in little
    // only for some, however small they make themselves.
    if engines[0] != WORKS {
        assert_eq!(engines[1], engines[0]);
        assert_eq!(engines.last(), Some(&no_memory(64 << 10)), "{engines:?}");
    }
    // With the limit that the kernel gives by default there is room.
    let mut server = remapped.locked_memory(8 << 20).run("echo", &["--path", PATH]);
    assert_eq!(ready(&mut server, PATH), WORKS);
}

/// Where the numbers of a user namespace begin that has no other rings.
const LOCKING: u32 = 300_000;

#[test]
fn only_the_volume_is_writable() {
    if !containers_or_skip("confined::only_the_volume_is_writable") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let mut client = container.start(&["client", "epoll"]);
    for path in ["/file", "/run/file", "/usr/file"] {
        let answer = client.ask(&format!("write {path}"));
        assert!(answer.starts_with("failed: Read-only file system"), "{path}: {answer}");
    }
    let mut server = container.start(&["server", "epoll", "/run/app.sock", "600"]);
    assert_eq!(
        server.hear(),
        "failed: cannot open the lock file /run/app.sock.lock: the file system is mounted read-only \
         (errno 30)"
    );
    let mut server = container.run("echo", &["--path", PATH]);
    ready(&mut server, PATH);
    assert!(client.ask(&format!("connect {PATH}")).starts_with("connected to "));
    assert_eq!(client.ask(TALK_BRIEFLY), TALKED);
}

/// Without `/proc` only what needs it fails, and says so.
#[test]
fn without_proc() {
    if !containers_or_skip("confined::without_proc") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    set(&volume, 1000, 0o755);
    let long = "d".repeat(120);
    std::fs::create_dir(volume.join(&long)).expect("root may");
    set(&volume.join(&long), 1000, 0o755);
    let with_proc = || Container::new(&host).mount(&volume, "/run/app").user(1000, 1000);
    let container = || with_proc().without_proc();
    let mut client = container().start(&["client", "auto"]);
    assert_eq!(client.ask("exists /proc/self/fd"), "false");

    // Ordinary paths and modes, with a policy, and with a stale socket to take over the second time.
    for mode in ["600", "644"] {
        let mut server = container().start(&["server", "epoll", PATH, mode, "uid=1000"]);
        let answer = server.hear();
        assert!(answer.starts_with("ready: "), "mode {mode}: {answer}");
        let answer = client.ask(&format!("connect {PATH}"));
        assert!(answer.starts_with("connected to "), "mode {mode}: {answer}");
        assert_eq!(client.ask(TALK_BRIEFLY), TALKED);
        server.kill();
    }

    // A path that is too long for a socket address, and a mode that the umask narrows.
    let path = format!("/run/app/{long}/app.sock");
    let takes_proc = "this takes a /proc that shows this process; mount it, or";
    let shorter = |bytes| format!("{takes_proc} use a path of at most {bytes} bytes");
    let mut server = container().start(&["server", "epoll", &path, "600"]);
    assert_eq!(server.hear(), format!("failed: cannot bind a socket at {path}: {}", shorter(98)));
    let mut server = container().start(&["server", "epoll", "/run/app/new.sock", "660"]);
    assert_eq!(
        server.hear(),
        format!(
            "failed: cannot change the mode of /run/app/new.sock: {takes_proc} start the process with \
             a umask that leaves the mode its bits"
        )
    );
    let member = container().groups(&[3000]);
    let mut server = member.start(&["server", "epoll", "/run/app/new.sock", "660", "owner=3000"]);
    assert_eq!(
        server.hear(),
        format!(
            "failed: cannot change the mode of /run/app/new.sock: {takes_proc} do not change the owner \
             of the socket"
        )
    );
    // Nothing half-made is left, and the remedies help.
    assert_eq!(client.ask("names /run/app"), format!("{long} echo.sock echo.sock.lock"));
    assert_eq!(client.ask(&format!("names /run/app/{long}")), "");
    let mut server = container().umask("007").start(&["server", "epoll", PATH, "660"]);
    let answer = server.hear();
    assert!(answer.starts_with("ready: "), "{answer}");
    // One that just fits, also with the temporary name.
    let just = format!("/run/app/{}", "s".repeat(98));
    let mut server = container().start(&["server", "epoll", &just, "600"]);
    let answer = server.hear();
    assert!(answer.starts_with("ready: "), "{answer}");
    assert!(client.ask(&format!("connect {just}")).starts_with("connected to "));
    assert_eq!(client.ask(TALK_BRIEFLY), TALKED);
    server.kill();
    // A server that has `/proc` has such a path, and a client without can't connect to it.
    let mut server = with_proc().start(&["server", "epoll", &path, "600"]);
    let answer = server.hear();
    assert!(answer.starts_with("ready: "), "{answer}");
    let answer = client.ask(&format!("connect {path}"));
    assert_eq!(answer, format!("failed: cannot connect to {path}: {}", shorter(107)));
    let mut client = with_proc().start(&["client", "epoll"]);
    let answer = client.ask(&format!("connect {path}"));
    assert!(answer.starts_with("connected to "), "{answer}");
}
