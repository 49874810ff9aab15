//! Who the peer is, across user and pid namespaces, and what an access policy makes of it.

use ringpost::{EngineChoice, Listener, PeerProcessError, spawn};
use ringpost_testkit::child::skip;
use ringpost_tests::rig::{block_on, blocking, echo};

use crate::container::{
    Container, Host, Running, UserNamespace, containers_or_skip, set, user_namespaces_or_skip,
};

const PATH: &str = "/run/app/app.sock";
const READY: &str = "ready: epoll (forced by the builder)";

/// Where the numbers of two user namespaces begin on the host.
const FIRST: u32 = 100_000;
const SECOND: u32 = 200_000;

/// Starts a server with an access policy; none is `anyone`.
fn serve(container: &Container<'_>, rules: &[&str]) -> Running {
    let words = [&["server", "epoll", PATH, "666"], rules].concat();
    let mut server = container.start(&words);
    assert_eq!(server.hear(), READY);
    server
}

/// Connects from this container and asks for an answer; says who the server is and what came of it.
fn visit(container: &Container<'_>) -> (String, String) {
    let mut client = container.start(&["client", "epoll"]);
    let connected = client.ask(&format!("connect {PATH}"));
    // The refusal may be quicker than the end of connecting.
    if let Some((_, refusal)) = connected.split_once("the peer refused the connection: ") {
        return (String::new(), format!("failed: the peer refused the connection: {refusal}"));
    }
    (connected, client.ask("hello"))
}

fn outside(uid: u32) -> String {
    format!("a process outside this pid namespace (uid {uid}, gid {uid})")
}

/// A server without rules takes the peer for who the kernel says it is.
#[track_caller]
fn seen_as(server: &Container<'_>, client: &Container<'_>, uid: u32, server_uid: u32) {
    let mut running = serve(server, &[]);
    let (connected, answer) = visit(client);
    assert_eq!(connected, format!("connected to {}", outside(server_uid)));
    assert_eq!(answer, "hello");
    let overflow = uid == OVERFLOW;
    assert_eq!(running.hear(), format!("accepted {} overflow={overflow}", outside(uid)));
    running.kill();
}

#[track_caller]
fn let_in(server: &Container<'_>, rule: &str, client: &Container<'_>) {
    let running = serve(server, &[rule]);
    assert_eq!(visit(client).1, "hello");
    running.kill();
}

#[track_caller]
fn turned_away(server: &Container<'_>, rule: &str, client: &Container<'_>, uid: u32, why: &str) {
    let running = serve(server, &[rule]);
    let expected =
        format!("failed: the peer refused the connection: {} may not connect: {why}", outside(uid));
    assert_eq!(visit(client).1, expected);
    running.kill();
}

/// Two containers whose users have no numbers in common, as rootless engines of two users.
#[test]
fn an_unmapped_user_is_nobody() {
    if !user_namespaces_or_skip("identity::an_unmapped_user_is_nobody") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    set(&volume, FIRST + 1000, 0o755);
    let (first, second) = (UserNamespace::new(FIRST), UserNamespace::new(SECOND));
    let container = || Container::new(&host).mount(&volume, "/run/app").user(1000, 1000);
    let server = container().user_namespace(&first);
    let client = container().user_namespace(&second);
    seen_as(&server, &client, OVERFLOW, OVERFLOW);
    let why = "its user has no number in this user namespace, so nobody knows who it is";
    // Not even by that number, and not as the number that it has in its own namespace.
    turned_away(&server, "uid=65534", &client, OVERFLOW, why);
    turned_away(&server, "gid=65534", &client, OVERFLOW, why);
    turned_away(&server, "uid=1000", &client, OVERFLOW, why);
}

/// Two containers with the same numbers, as with Docker's `userns-remap`.
#[test]
fn a_user_with_the_same_map_keeps_its_number() {
    if !user_namespaces_or_skip("identity::a_user_with_the_same_map_keeps_its_number") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    set(&volume, FIRST, 0o755);
    let (first, second) = (UserNamespace::new(FIRST), UserNamespace::new(FIRST));
    let container = || Container::new(&host).mount(&volume, "/run/app");
    let server = container().user_namespace(&first);
    let client = container().user_namespace(&second).user(1000, 1000);
    seen_as(&server, &client, 1000, 0);
    let_in(&server, "uid=1000", &client);
    let_in(&server, "gid=1000", &client);
    turned_away(&server, "uid=1001", &client, 1000, "allowed are only uid 1001");
}

/// One side in a user namespace, the other not: the number is the one it has where the looker lives.
#[test]
fn a_number_is_translated_for_the_looker() {
    if !user_namespaces_or_skip("identity::a_number_is_translated_for_the_looker") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let namespace = UserNamespace::new(FIRST);
    let container = || Container::new(&host).mount(&volume, "/run/app");
    let mapped = container().user_namespace(&namespace);

    // Root in the container is not root on the host.
    seen_as(&container(), &mapped, FIRST, OVERFLOW);
    turned_away(&container(), "uid=0", &mapped, FIRST, "allowed are only uid 0");
    let_in(&container(), "uid=100000", &mapped);

    // From within, a user of the host is somebody if the map has them, and else nobody.
    let volume = host.volume("mapped");
    set(&volume, FIRST, 0o755);
    let container = || Container::new(&host).mount(&volume, "/run/app");
    let mapped = container().user_namespace(&namespace);
    let member = container().user(FIRST + 1000, FIRST + 1000);
    seen_as(&mapped, &member, 1000, FIRST);
    let_in(&mapped, "uid=1000", &member);
    let why = "its user has no number in this user namespace, so nobody knows who it is";
    turned_away(&mapped, "uid=0", &container(), OVERFLOW, why);
}

/// The groups that a pod's containers share are supplementary ones; they are translated like users.
#[test]
fn supplementary_groups_across_containers() {
    if !user_namespaces_or_skip("identity::supplementary_groups_across_containers") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = || Container::new(&host).mount(&volume, "/run/app");
    let client = container().user(2000, 2000).groups(&[3000]);
    let_in(&container(), "supplementary=3000", &client);
    let other = container().user(2000, 3000).groups(&[2000]);
    let why = "allowed are only supplementary gid 3000";
    let running = serve(&container(), &["supplementary=3000"]);
    let outside = "a process outside this pid namespace (uid 2000, gid 3000)";
    let expected =
        format!("failed: the peer refused the connection: {outside} may not connect: {why}");
    assert_eq!(visit(&other).1, expected);
    running.kill();

    // A member of the group 103000 of the host is one of the group 3000 in the namespace.
    let volume = host.volume("mapped");
    set(&volume, FIRST, 0o755);
    let namespace = UserNamespace::new(FIRST);
    let server = Container::new(&host).mount(&volume, "/run/app").user_namespace(&namespace);
    let member = Container::new(&host).mount(&volume, "/run/app").user(FIRST + 7, FIRST + 7);
    let member = member.groups(&[FIRST + 3000]);
    let_in(&server, "supplementary=3000", &member);
    turned_away(
        &server,
        "supplementary=103000",
        &member,
        7,
        "allowed are only supplementary gid 103000",
    );
    // Groups do not make up for a user without a number, nor does the number of one without.
    let stranger = Container::new(&host).mount(&volume, "/run/app").user(2000, 2000);
    let stranger = stranger.groups(&[FIRST + 3000, 3000]);
    let why = "its user has no number in this user namespace, so nobody knows who it is";
    turned_away(&server, "supplementary=3000", &stranger, OVERFLOW, why);
}

/// A process in a container beside can be held, and be seen to end, though it has no number.
#[test]
fn a_process_beside_is_held() {
    if !containers_or_skip("identity::a_process_beside_is_held") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let container = Container::new(&host).mount(&volume, "/run/app");
    let server = serve(&container, &[]);
    let mut client = container.start(&["client", "epoll"]);
    assert_eq!(client.ask(&format!("connect {PATH}")), format!("connected to {}", outside(0)));
    let known = client.ask("process");
    if known.starts_with("the kernel does not tell the peer's process") {
        return skip("identity::a_process_beside_is_held", &known);
    }
    assert_eq!(
        known,
        "the peer's process is outside the pid namespace of the /proc that is mounted here"
    );
    server.kill();
    assert_eq!(client.ask("process"), "the peer's process has ended");
}

/// A process has a number where its pid namespace can be seen: from outside, but not from beside.
#[test]
fn the_process_is_known_from_outside() {
    if !containers_or_skip("identity::the_process_is_known_from_outside") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let mut client = Container::new(&host).mount(&volume, "/run/app").start(&["client", "epoll"]);
    block_on(EngineChoice::Epoll, async {
        let mut listener = Listener::bind(volume.join("app.sock")).expect("bind");
        client.tell(&format!("connect {PATH}"));
        let connection = listener.accept().await.expect("a connection");
        let peer = connection.peer_credentials().expect("a Unix socket");
        let held = connection.peer_process();
        spawn(echo(connection));
        let (client, answer) = blocking(move || {
            let answer = client.hear();
            (client, answer)
        })
        .await;
        assert_eq!(peer.pid, Some(client.id()));
        match held {
            Ok(held) => {
                let namespace =
                    held.inspect(|directory| std::fs::read_link(directory.join("ns/pid")));
                let own = std::fs::read_link("/proc/self/ns/pid").expect("a link");
                assert_ne!(namespace.expect("it lives"), own);
            }
            Err(PeerProcessError::Unsupported) => {}
            Err(error) => panic!("{error}"),
        }
        assert_eq!(answer, format!("connected to {}", outside(0)));
    });
}

/// The kernel's number for users without one (`kernel.overflowuid`).
const OVERFLOW: u32 = 65_534;
