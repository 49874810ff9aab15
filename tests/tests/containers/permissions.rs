//! Users, groups and modes: who may connect to a socket in a shared directory, who may make one there, and
//! what the error says.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::container::{Container, Host, Running, containers_or_skip, set};

const PATH: &str = "/run/app/app.sock";

/// The user, and primary group, of the server.
const OWNER: u32 = 1000;
const OTHER: u32 = 2000;
/// A group that the containers share.
const SHARED: u32 = 3000;

fn serve(host: &Host, volume: &Path, mode: &str) -> Running {
    let server = Container::new(host).mount(volume, "/run/app").user(OWNER, OWNER);
    let mut server = server.groups(&[SHARED]).start(&["server", "epoll", PATH, mode]);
    assert_eq!(server.hear(), "ready: epoll (forced by the builder)");
    server
}

/// Tries to connect from this container. `server` tells whom it has accepted.
#[track_caller]
fn check(client: Container<'_>, volume: &Path, server: &mut Running, accepted: Option<&str>) {
    let mut client = client.mount_read_only(volume, "/run/app").start(&["client", "epoll"]);
    let answer = client.ask(&format!("connect {PATH}"));
    let Some(accepted) = accepted else {
        assert_eq!(
            answer,
            "failed: cannot connect to /run/app/app.sock: permission denied; connecting takes write \
             permission on the socket and execute permission on every directory on the way"
        );
        return;
    };
    let outside = "a process outside this pid namespace";
    assert_eq!(answer, format!("connected to {outside} (uid {OWNER}, gid {OWNER})"));
    assert_eq!(server.hear(), format!("accepted {outside} ({accepted}) overflow=false"));
    assert_eq!(client.ask("hello"), "hello");
}

#[test]
fn modes_of_the_socket() {
    if !containers_or_skip("permissions::modes_of_the_socket") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    set(&volume, OWNER, 0o755);
    let client = || Container::new(&host);
    {
        let mut server = serve(&host, &volume, "600");
        check(client().user(OWNER, OTHER), &volume, &mut server, Some("uid 1000, gid 2000"));
        check(client().user(OTHER, OWNER).groups(&[SHARED]), &volume, &mut server, None);
        // Root passes by its capabilities, not by its number.
        check(client(), &volume, &mut server, Some("uid 0, gid 0"));
        check(client().without_capabilities(), &volume, &mut server, None);
        server.kill();
    }
    {
        let mut server = serve(&host, &volume, "660");
        check(client().user(OTHER, OWNER), &volume, &mut server, Some("uid 2000, gid 1000"));
        let member = client().user(OTHER, OTHER).groups(&[OWNER]);
        check(member, &volume, &mut server, Some("uid 2000, gid 2000"));
        check(client().user(OTHER, OTHER), &volume, &mut server, None);
        server.kill();
    }
    let mut server = serve(&host, &volume, "666");
    check(client().user(OTHER, OTHER), &volume, &mut server, Some("uid 2000, gid 2000"));
    check(client().without_capabilities(), &volume, &mut server, Some("uid 0, gid 0"));
}

/// To reach the socket takes execute permission on the directory, and nothing else.
#[test]
fn modes_of_the_directory() {
    if !containers_or_skip("permissions::modes_of_the_directory") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    set(&volume, OWNER, 0o711);
    let mut server = serve(&host, &volume, "666");
    let client = || Container::new(&host).user(OTHER, OTHER);
    check(client(), &volume, &mut server, Some("uid 2000, gid 2000"));
    set(&volume, OWNER, 0o750);
    check(client(), &volume, &mut server, None);
    check(client().groups(&[OWNER]), &volume, &mut server, Some("uid 2000, gid 2000"));
    set(&volume, OWNER, 0o700);
    check(client().groups(&[OWNER]), &volume, &mut server, None);
}

/// A volume with a set-group-id bit gives its group to the socket, whatever the server's primary group is:
/// what Kubernetes makes of a pod's `fsGroup`.
#[test]
fn a_shared_group() {
    if !containers_or_skip("permissions::a_shared_group") {
        return;
    }
    let host = Host::new();
    let volume = empty_dir(&host, 0o2770);
    let mut server = serve(&host, &volume, "660");
    let client = || Container::new(&host).user(OTHER, OTHER);
    check(client().groups(&[SHARED]), &volume, &mut server, Some("uid 2000, gid 2000"));
    check(client(), &volume, &mut server, None);
}

/// A server has to be able to write to the directory.
#[test]
fn where_a_server_may_bind() {
    if !containers_or_skip("permissions::where_a_server_may_bind") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    let server = Container::new(&host).user(OWNER, OWNER);
    let bind = |container: Container<'_>| {
        container.start(&["server", "epoll", PATH, "660"]).hear().replace(PATH, "PATH")
    };
    let in_volume = || server.clone().mount(&volume, "/run/app");

    let denied = bind(in_volume());
    let expected = "failed: cannot open the lock file PATH.lock: permission denied; ";
    assert!(denied.starts_with(expected), "{denied}");
    let denied = bind(server.clone().mount_read_only(&volume, "/run/app"));
    let expected = "failed: cannot open the lock file PATH.lock: the file system is mounted read-only (errno 30)";
    assert_eq!(denied, expected);
    let missing = bind(server.clone());
    let expected = "failed: the directory /run/app for the socket does not exist; create it first";
    assert_eq!(missing, expected);

    // As Kubernetes makes an `emptyDir`, with and without `fsGroup`.
    for mode in [0o777, 0o2777] {
        set(&volume, 0, mode);
        let refused = bind(in_volume());
        let expected = format!("failed: the directory /run/app (mode {mode:04o}) lets every user ");
        assert!(refused.starts_with(&expected), "{refused}");
    }
    // As Docker makes a `--tmpfs`.
    set(&volume, 0, 0o1777);
    assert_eq!(bind(in_volume()), "ready: epoll (forced by the builder)");
    // A directory of the server's own within it.
    set(&volume, 0, 0o777);
    let own = volume.join("own");
    std::fs::create_dir(&own).expect("root may");
    set(&own, OWNER, 0o750);
    let mut server = in_volume().start(&["server", "epoll", "/run/app/own/app.sock", "660"]);
    assert_eq!(server.hear(), "ready: epoll (forced by the builder)");
}

/// The compose file of `docs/containers.md`: a volume that belongs to the server, and a client in its group,
/// both without capabilities.
#[test]
fn as_in_the_compose_file() {
    if !containers_or_skip("permissions::as_in_the_compose_file") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    set(&volume, OWNER, 0o750);
    let container = || Container::new(&host).without_capabilities();
    let server = container().mount(&volume, "/run/app").user(OWNER, OWNER);
    let mut server = server.start(&["server", "auto", PATH, "660"]);
    assert!(server.hear().starts_with("ready: "));
    check(container().user(OTHER, OWNER), &volume, &mut server, Some("uid 2000, gid 1000"));
    check(container().user(OTHER, OTHER), &volume, &mut server, None);
    // Its health check runs beside it, in its own container.
    let health = container().user(OWNER, OWNER).mount(&volume, "/run/app");
    assert_eq!(health.start(&["client", "auto"]).ask(&format!("check {PATH} 20000")), "healthy");
}

/// A volume as the kubelet makes an `emptyDir` of a pod with `fsGroup`.
fn empty_dir(host: &Host, mode: u32) -> PathBuf {
    let volume = host.volume(&format!("{mode:o}"));
    std::os::unix::fs::chown(&volume, Some(0), Some(SHARED)).expect("root may");
    std::fs::set_permissions(&volume, Permissions::from_mode(mode)).expect("root may");
    volume
}

/// The pods of `docs/containers.md`: an `emptyDir` in memory, which is sticky, and one on disk, which is not,
/// and in which an init container makes a directory for the server's user.
#[test]
fn as_in_the_pod() {
    if !containers_or_skip("permissions::as_in_the_pod") {
        return;
    }
    let host = Host::new();
    let container = |user| {
        let container = Container::new(&host).without_capabilities().user(user, user);
        container.groups(&[SHARED])
    };
    for (mode, directory) in [(0o3777, "/run/app"), (0o2777, "/run/app/server")] {
        let volume = empty_dir(&host, mode);
        if directory != "/run/app" {
            let mut init = container(OWNER).mount(&volume, "/run/app").start(&["client", "epoll"]);
            // Twice, as when the pod's sandbox is made anew.
            for _ in 0..2 {
                assert_eq!(init.ask(&format!("run mkdir -p -m 2750 {directory}")), "done");
            }
        }
        let path = format!("{directory}/app.sock");
        let server = container(OWNER).mount(&volume, "/run/app");
        let mut server = server.start(&["server", "auto", &path, "660"]);
        let answer = server.hear();
        assert!(answer.starts_with("ready: "), "{mode:o}: {answer}");
        let client = container(OTHER).mount_read_only(&volume, "/run/app");
        let mut client = client.start(&["client", "auto"]);
        let answer = client.ask(&format!("connect {path}"));
        assert!(answer.starts_with("connected to "), "{mode:o}: {answer}");
        assert_eq!(client.ask("hello"), "hello");
        // One that has not the pod's group, but may write to the volume.
        let stranger = Container::new(&host).without_capabilities().user(OTHER, OTHER);
        let mut stranger = stranger.mount(&volume, "/run/app").start(&["client", "epoll"]);
        let answer = stranger.ask(&format!("connect {path}"));
        let denied = format!("failed: cannot connect to {path}: permission denied; ");
        assert!(answer.starts_with(&denied), "{mode:o}: {answer}");
        for change in [format!("run rm -f {path}"), format!("run mv {path} /run/app/taken")] {
            let answer = stranger.ask(&change);
            assert!(answer.starts_with("failed: "), "{mode:o}: {change}: {answer}");
        }
        assert_eq!(client.ask("hello"), "hello");
    }
}

/// A volume outlives its containers, and what a killed server left in it belongs to the server's user.
#[test]
fn left_by_another_user() {
    if !containers_or_skip("permissions::left_by_another_user") {
        return;
    }
    let host = Host::new();
    let volume = host.volume("volume");
    set(&volume, 0, 0o1777);
    serve(&host, &volume, "600").kill();
    let next = Container::new(&host).mount(&volume, "/run/app").user(OTHER, OTHER);
    let mut next = next.start(&["server", "epoll", PATH, "600"]);
    assert_eq!(
        next.hear(),
        "failed: the lock file /run/app/app.sock.lock belongs to user 1000, and this process may not open \
         it; start as that user, or make sure that their server has ended and remove the lock file and the \
         socket"
    );
    serve(&host, &volume, "600").kill();
}
