//! What child processes do: each role is a function, chosen by the first word.

use std::path::Path;

use ringpost::{Connection, ConnectionOptions, EngineChoice, Listener, Spin};
use ringpost_testkit::child::{self, Child};
use ringpost_testkit::trace;
use ringpost_tests::rig::{self, ask, builder, expect_message};

/// Starts a child in a role, on this engine, at this path.
pub(crate) fn start(role: &str, engine: EngineChoice, path: &Path, words: &[&str]) -> Child {
    let engine = if engine == EngineChoice::Uring { "uring" } else { "epoll" };
    let mut all = vec![role, engine, path.to_str().expect("text")];
    all.extend(words);
    Child::start(concat!(module_path!(), "::play"), &all)
}

/// The child's side. As a test of its own it does nothing.
#[test]
fn play() {
    let Some(words) = child::role() else { return };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [role, engine, path, ref rest @ ..] = words[..] else { panic!("too few words: {words:?}") };
    let engine = if engine == "uring" { EngineChoice::Uring } else { EngineChoice::Epoll };
    match (role, rest) {
        ("client", []) => client(engine, path),
        ("server", []) => server(engine, path),
        ("talker", []) => crate::stopped::talk(engine, path),
        ("sleeper", []) => crate::stopped::nap(engine),
        ("hoarder", []) => crate::limits::hoard(engine, path),
        ("glutton", []) => crate::limits::gorge(engine, path),
        ("leaker", [how]) => crate::ends::leak(engine, path, how),
        ("starved-server", [spin, count]) => {
            crate::starved::serve(engine, path, spin, count.parse().expect("a number"));
        }
        ("starved-client", [spin, count]) => {
            crate::starved::converse(engine, path, spin, count.parse().expect("a number"));
        }
        ("builder", []) => crate::stopped::build(engine),
        _ => panic!("no such role: {words:?}"),
    }
}

/// Lengths of the messages of a life, in order.
pub(crate) const LENS: [usize; 4] = [64, 0, 200_000, 3000];

/// Options of both sides: descriptors come along.
pub(crate) fn options() -> ConnectionOptions {
    ConnectionOptions::new().descriptors_max(4)
}

/// The life of a client: everything that one does to a connection, once.
fn client(engine: EngineChoice, path: &str) {
    // A spin makes any number of system calls.
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    trace::offer();
    rig::run(&runtime, async {
        let mut plain = Connection::connect(path).await.expect("connect");
        for (sequence, len) in (0..).zip(LENS) {
            ask(&mut plain, sequence, len).await;
        }
        plain.shutdown().await.expect("the server reads");
        assert!(plain.recv().await.expect("a proper end").is_none());
        let mut connection = Connection::connect_with(path, options()).await.expect("connect");
        let file = tempfile::tempfile().expect("a file");
        let body = ringpost_testkit::pattern::payload(0, LENS[0]);
        let sent = connection.send_with_descriptors(&body, &[file]).await;
        sent.expect("the server reads");
        connection.flush().await.expect("the server reads");
        expect_message(&mut connection, 0, LENS[0]).await;
        // And an end without a word.
    });
    drop(runtime);
}

/// The life of a server: binds, serves one connection, ends.
fn server(engine: EngineChoice, path: &str) {
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    trace::offer();
    rig::run(&runtime, async {
        let listener = Listener::builder().connection(options());
        let mut listener = listener.bind(path).expect("bind");
        let mut connection = listener.accept().await.expect("accept");
        while let Some(message) = connection.recv().await.expect("messages or an end") {
            connection.send_message(message).await.expect("the client reads");
        }
        connection.shutdown().await.expect("the client reads");
    });
    drop(runtime);
}
