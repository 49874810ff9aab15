//! Who may connect, and who did.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringpost::{
    AccessPolicy, Connection, ConnectionOptions, EngineChoice, LengthPrefix, Listener,
    PeerProcessError, spawn, timeout, yield_now,
};
use ringpost_tests::privileges::root_or_skip;
use ringpost_tests::rig::{block_on, blocking, echo, place};
use ringpost_tests::{on_both_engines, on_both_engines_alone};
use rustix::event::{PollFd, PollFlags, Timespec};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::roles;

on_both_engines!(
    the_policy_decides,
    supplementary_groups_decide,
    a_refusal_is_logged_and_told,
    a_refusal_without_words_is_a_clean_end,
    credentials_are_the_peers,
    processes_are_the_peers,
);
// A child that another test has just forked would keep its copies of all sockets open until it runs its program.
on_both_engines_alone!(many_refusals_hold_up_nobody);

/// A user that policies can name, unlike nobody, another one, and a supplementary group.
pub(crate) const ALLOWED: u32 = 12_345;
const DENIED: u32 = 12_346;
pub(crate) const GROUP: u32 = 5_000;

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

fn supplementary_groups_decide(engine: EngineChoice) {
    if !root_or_skip("access::supplementary_groups_decide") {
        return;
    }
    let (directory, path) = place();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("ours");
    block_on(engine, async {
        let policy = AccessPolicy::anyone().allow_supplementary_gid(GROUP);
        let mut listener =
            Listener::builder().mode(0o666).policy(policy).bind(&path).expect("bind");
        let text = path.to_str().expect("text");
        let mut stranger = roles::start("member", &[text, "12346", "777"]);
        let mut member = roles::start("member", &[text, "12345", &GROUP.to_string()]);
        let connection = listener.accept().await.expect("accept");
        assert_eq!(connection.peer_groups().expect("a Unix socket"), [GROUP]);
        assert_eq!(connection.peer_credentials().expect("a Unix socket").pid, Some(member.id()));
        spawn(echo(connection));
        let answers = blocking(move || (member.hear(), member.hear())).await;
        assert_eq!(answers.1, "answered: hello");

        let refusal = spawn(blocking(move || (stranger.hear(), stranger.hear())));
        // Accepting goes on, whichever came first, until the stranger has its answer.
        spawn(async move { drop(listener.accept().await) });
        let (_, answer) = refusal.await.expect("no panic");
        let who = format!(
            "(uid 12346, gid 12346) may not connect: allowed are only supplementary gid {GROUP}"
        );
        assert!(answer.ends_with(&who), "{answer}");
    });
}

/// A policy that refuses whoever is in this process.
fn nobody_here() -> AccessPolicy {
    AccessPolicy::anyone().allow_uid(rustix::process::geteuid().as_raw() + 1)
}

fn a_refusal_is_logged_and_told(engine: EngineChoice) {
    let (_directory, path) = place();
    let log = Log::default();
    let own = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let reason = format!(
        "process {} (uid {own}, gid {group}) may not connect: allowed are only uid {}",
        std::process::id(),
        own + 1
    );
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    let guard = subscriber.set_default();
    block_on(engine, async {
        let builder = Listener::builder().policy(nobody_here());
        let mut listener = builder.bind(&path).expect("bind");
        let accepting = spawn(async move { listener.accept().await.map(drop) });
        let mut client = Connection::connect(&path).await.expect("a greeting comes first");
        let error = client.recv().await.expect_err("refused");
        assert_eq!(error.to_string(), format!("the peer refused the connection: {reason}"));
        assert!(!accepting.is_finished(), "it is not handed out");
    });
    drop(guard);
    let log = log.text();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("access policy")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("WARN") && lines[0].contains(&reason), "{log}");
}

/// Other tasks run between refusals, and the log does not grow with them.
fn many_refusals_hold_up_nobody(engine: EngineChoice) {
    const CLIENTS: usize = 100;
    const IN_A_ROW_MAX: usize = 32;
    let (_directory, path) = place();
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    let guard = subscriber.set_default();
    block_on(engine, async {
        let builder = Listener::builder().policy(nobody_here());
        let mut listener = builder.bind(&path).expect("bind");
        let clients = blocking(move || {
            let connect = |_| UnixStream::connect(&path).expect("it listens");
            (0..CLIENTS).map(connect).collect::<Vec<_>>()
        });
        let clients = clients.await;
        for _ in 0..CLIENTS {
            // All are accepted, and wait in the listener's queue.
            yield_now().await;
        }
        spawn(async move { drop(listener.accept_stream().await) });
        let has_ended = |client: &&UnixStream| {
            let mut set = [PollFd::new(client, PollFlags::RDHUP)];
            rustix::event::poll(&mut set, Some(&Timespec::default())) == Ok(1)
        };
        let mut before = 0;
        while before < CLIENTS {
            yield_now().await;
            let ended = clients.iter().filter(has_ended).count();
            assert!(ended - before <= IN_A_ROW_MAX, "{} in a row", ended - before);
            before = ended;
        }
    });
    drop(guard);
    let log = log.text();
    let lines = log.lines().filter(|line| line.contains("access policy")).count();
    assert_eq!(lines, 7, "1, 2, 4 and so on to 64: {log}");
}

/// Plain profiles have no words for a refusal: the peer sees an end of file and no reset, also if it has
/// sent something that nobody read, before it was accepted or while it is being refused.
fn a_refusal_without_words_is_a_clean_end(engine: EngineChoice) {
    let (_directory, path) = place();
    let options = [
        ConnectionOptions::new().length_prefixed(LengthPrefix::default()),
        ConnectionOptions::new().bytes(),
    ];
    for (options, as_stream) in options.into_iter().flat_map(|all| [(all, false), (all, true)]) {
        for sent in [0, 1, 1000, 100_000] {
            block_on(engine, async {
                let builder = Listener::builder().policy(nobody_here()).connection(options);
                let mut listener = builder.bind(&path).expect("bind");
                let early = spawn(blocking(client_that_sends(&path, sent))).await;
                let early = early.expect("no panic");
                spawn(async move {
                    if as_stream {
                        drop(listener.accept_stream().await);
                    } else {
                        drop(listener.accept().await);
                    }
                });
                let late = client_that_sends(&path, sent);
                blocking(move || check_clean_end(early, sent)).await;
                blocking(move || check_clean_end(late(), sent)).await;
            });
        }
    }
}

/// Connects and sends.
fn client_that_sends(path: &Path, sent: usize) -> impl FnOnce() -> UnixStream + Send + 'static {
    let path = path.to_owned();
    move || {
        let mut client = UnixStream::connect(path).expect("it listens");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        // The server may be quicker and have closed.
        let _ = client.write_all(&vec![0; sent]);
        client
    }
}

fn check_clean_end(mut client: UnixStream, sent: usize) {
    let mut answer = Vec::new();
    match client.read_to_end(&mut answer) {
        Ok(_) => assert!(answer.is_empty(), "nothing but the end"),
        Err(error) => panic!("after {sent} bytes: {error}"),
    }
}

fn processes_are_the_peers(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("bind");
        let mut child = roles::start("sender", &[path.to_str().expect("text"), "epoll", "1"]);
        let mut connection = listener.accept().await.expect("accept");
        let process = connection.peer_process().expect("Linux 6.5");
        assert_eq!(process.pid_for_logs(), Some(child.id()));
        assert!(connection.recv().await.expect("a message").is_some());
        // It dies by itself; the end of its connection comes before or after.
        while connection.recv().await.is_ok_and(|message| message.is_some()) {}
        blocking(move || child.wait(Duration::from_secs(20))).await;
        assert!(!process.is_alive().expect("poll"));
        let ended = process.inspect(|_| Ok(()));
        assert!(matches!(ended, Err(PeerProcessError::Ended)), "{ended:?}");
    });
}

/// Log lines, kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
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
