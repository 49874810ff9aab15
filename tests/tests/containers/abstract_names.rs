//! Abstract names belong to a network namespace; nothing is mounted, and nobody else sees them.

use ringpost::EngineChoice;
use ringpost_tests::on_both_engines;

use crate::container::{Container, Host, containers_or_skip};
use crate::roles::{TALK, TALKED, word};
use crate::volume::ready;

on_both_engines!(a_name_is_known_in_its_network_namespace);

fn a_name_is_known_in_its_network_namespace(engine: EngineChoice) {
    if !containers_or_skip("abstract_names::a_name_is_known_in_its_network_namespace") {
        return;
    }
    let host = Host::new();
    let engine = word(engine);
    let arguments = ["--path", "@ringpost-pod", "--engine", engine];
    let mut server = Container::new(&host).run("echo", &arguments);
    ready(&mut server, "@ringpost-pod");

    // As the containers of a pod do, and Docker's with `--network container:NAME`.
    let pod = Container::new(&host).network_of(&server).user(1000, 1000);
    let mut client = pod.start(&["client", engine]);
    // There are no permission bits that would ask who it is.
    let connected = "connected to a process outside this pid namespace (uid 0, gid 0)";
    assert_eq!(client.ask("connect @ringpost-pod"), connected);
    assert_eq!(client.ask(TALK), TALKED);
    let mut refused = pod.run("echo", &arguments);
    let taken =
        "echo: the address @ringpost-pod is in use; stop that server or choose another address";
    assert_eq!(refused.line("echo: "), taken);

    let mut stranger = Container::new(&host).start(&["client", engine]);
    assert_eq!(
        stranger.ask("connect @ringpost-pod"),
        "failed: cannot connect to @ringpost-pod: no server with sockets of this kind (stream, packets or \
         datagrams) has this abstract name in this network namespace"
    );
    let mut namesake = Container::new(&host).run("echo", &arguments);
    ready(&mut namesake, "@ringpost-pod");
    // The name ends with its socket; there is nothing to go stale.
    server.kill();
    let next = Container::new(&host).network_of(&client).user(1000, 1000);
    let mut next = next.run("echo", &arguments);
    ready(&mut next, "@ringpost-pod");
    assert_eq!(
        client.ask("connect @ringpost-pod"),
        connected.replace("uid 0, gid 0", "uid 1000, gid 1000")
    );
}
