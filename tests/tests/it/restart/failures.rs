//! Successors that die, hang, or talk nonsense, at each step: the predecessor serves as before.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringpost::restart::{
    Parcel, Predecessor, PredecessorBuilder, ReadySuccessor, RestartError, Stage,
};
use ringpost::{AcceptError, Connection, EngineChoice, Listener, timeout};
use ringpost_testkit::process;
use ringpost_tests::rig::{ask, block_on, blocking, echo, place};
use ringpost_tests::{on_both_engines, on_both_engines_alone};
use rustix::event::{PollFd, PollFlags, Timespec};
use tempfile::TempDir;

use super::generation::{control_path, start};
use super::raw::{COMMIT, GIVE_UP, READY, RawSuccessor, TAKEN, hello};

on_both_engines!(
    killed_after_the_offer,
    killed_when_ready,
    gone_after_the_commit,
    hung_in_start_up,
    hung_after_the_commit,
    hung_with_a_full_queue,
    hung_with_connections,
    gives_up,
    speaks_nonsense,
    ends_a_drained_listener,
);
on_both_engines_alone!(descriptors_stay);

/// A predecessor in this process.
pub(super) struct Old {
    pub(super) listener: Listener,
    _plain: Listener,
    predecessor: Option<Predecessor>,
    pub(super) path: PathBuf,
    pub(super) control: PathBuf,
    _directory: TempDir,
}

impl Old {
    pub(super) fn new(settings: PredecessorBuilder) -> Self {
        let (directory, path) = place();
        let text = path.to_str().expect("text").to_owned();
        let listener = Listener::bind(&path).expect("bind");
        let plain = Listener::bind(format!("{text}.plain")).expect("bind");
        let parcel = Parcel::new().listener("native", &listener).expect("fits");
        let parcel = parcel.listener("plain", &plain).expect("fits");
        let parcel = parcel.state(1u32.to_le_bytes()).expect("fits");
        let control = PathBuf::from(control_path(&text));
        let predecessor = settings.bind(&control, parcel).expect("bind");
        Self {
            listener,
            _plain: plain,
            predecessor: Some(predecessor),
            path,
            control,
            _directory: directory,
        }
    }

    /// Waits for a successor while `body` plays it.
    pub(super) async fn with<T: Send + 'static>(
        &mut self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> (T, Result<ReadySuccessor, RestartError>) {
        let mut predecessor = self.predecessor.take().expect("put back");
        let waiting = ringpost::spawn(async move {
            let result = predecessor.successor().await;
            (predecessor, result)
        });
        let played = blocking(body).await;
        let (predecessor, result) = waiting.await.expect("no panic");
        self.predecessor = Some(predecessor);
        (played, result)
    }

    /// Waits for a successor alone.
    pub(super) async fn successor(&mut self) -> Result<ReadySuccessor, RestartError> {
        self.predecessor.as_mut().expect("put back").successor().await
    }

    pub(super) async fn ready(&mut self, body: RawBody) -> (RawSuccessor, ReadySuccessor) {
        let control = self.control.clone();
        let (raw, ready) = self.with(move || body(&control)).await;
        (raw, ready.expect("it is ready"))
    }

    /// Checks that a client finds everything as it was.
    pub(super) async fn serves(&mut self) {
        assert!(self.listener.is_in_place());
        let path = self.path.clone();
        let client = ringpost::spawn(async move {
            let mut client = Connection::connect(&path).await.expect("not refused");
            for sequence in 0..3 {
                ask(&mut client, sequence, 100).await;
            }
            client.shutdown().await.expect("taken");
            assert!(client.recv().await.expect("no error").is_none());
        });
        echo(self.listener.accept().await.expect("accepts")).await;
        client.await.expect("served");
    }

    /// Asks once on a connection, whose other end this process serves.
    pub(super) async fn pair(&mut self) -> (Connection, Connection) {
        let path = self.path.clone();
        let client = ringpost::spawn(Connection::connect(path));
        let mut server = self.listener.accept().await.expect("accepts");
        server.ready().await.expect("greeted");
        (client.await.expect("no panic").expect("connected"), server)
    }
}

type RawBody = fn(&Path) -> RawSuccessor;

pub(super) fn offered_and_ready(control: &Path) -> RawSuccessor {
    let mut successor = RawSuccessor::offered(control);
    successor.send(READY, &[]);
    successor
}

fn defaults() -> PredecessorBuilder {
    Predecessor::builder()
}

fn killed_after_the_offer(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults());
        for _ in 0..3 {
            let path = old.path.to_str().expect("text").to_owned();
            let ((), result) = old
                .with(move || {
                    let mut child = start(&path, engine, &["hold"]);
                    assert_eq!(child.hear(), "offered");
                    child.kill();
                })
                .await;
            let error = result.expect_err("it is dead");
            assert!(matches!(error, RestartError::Ended { stage: Stage::StartUp }), "{error}");
            old.serves().await;
        }
    });
}

/// With a connection that has been handed over already: it is given back, and nothing of it is lost.
fn killed_when_ready(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults());
        let (mut client, server) = old.pair().await;
        let path = old.path.to_str().expect("text").to_owned();
        let (mut child, ready) = old.with(move || start(&path, engine, &["move"])).await;
        let mut ready = ready.expect("it is ready");
        assert_eq!(ready.credentials().pid, Some(child.id()));
        client.send(b"before").await.expect("open");
        client.flush().await.expect("open");
        let detached = server.detach(Duration::from_secs(5)).await.expect("quiet");
        ready.send_connection(b"label", detached).await.expect("sent");
        client.send(b"behind").await.expect("open");
        child.kill();
        let not_committed = ready.commit(b"state").await.expect_err("it is dead");
        let error = not_committed.error;
        assert!(matches!(error, RestartError::Ended { .. }), "{error}");
        let [(label, mut server)] = not_committed.connections.try_into().expect("one");
        assert_eq!(label, b"label");
        for expected in [b"before", b"behind"] {
            assert_eq!(&server.recv().await.expect("goes on").expect("a message")[..], expected);
        }
        server.send(b"answer").await.expect("open");
        assert_eq!(&client.recv().await.expect("goes on").expect("a message")[..], b"answer");
        old.serves().await;
    });
}

fn gone_after_the_commit(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults());
        let (mut raw, ready) = old.ready(offered_and_ready).await;
        let gone = ringpost::spawn(blocking(move || {
            raw.read_to(COMMIT);
            drop(raw);
        }));
        let error = ready.commit(b"").await.expect_err("not taken").error;
        assert!(matches!(error, RestartError::Ended { stage: Stage::Commit }), "{error}");
        gone.await.expect("no panic");
        old.serves().await;
    });
}

fn hung_in_start_up(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults().startup_ms_max(50));
        let path = old.path.to_str().expect("text").to_owned();
        let (mut child, result) = old
            .with(move || {
                let mut child = start(&path, engine, &["hold"]);
                assert_eq!(child.hear(), "offered");
                child
            })
            .await;
        let error = result.expect_err("it hangs");
        let RestartError::TimedOut { stage: Stage::StartUp, milliseconds: 50 } = error else {
            panic!("{error}");
        };
        old.serves().await;
        // When it wakes up, it is told.
        let said = blocking(move || {
            child.tell("go on");
            child.hear()
        })
        .await;
        assert!(said.starts_with("not taken over: the other process gave up"), "{said}");
        old.serves().await;
    });
}

/// Nobody knows whether such a successor will ever answer. Whoever is first decides: after the predecessor
/// has gone on, the successor can't say any more that it has taken over.
fn hung_after_the_commit(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults().commit_ms_max(100));
        let (mut raw, ready) = old.ready(offered_and_ready).await;
        let error = ready.commit(b"").await.expect_err("not taken").error;
        assert!(matches!(error, RestartError::TimedOut { stage: Stage::Commit, .. }), "{error}");
        let (late, reason) = blocking(move || {
            let late = raw.try_send(TAKEN, &[]);
            (late, String::from_utf8(raw.read_to(GIVE_UP)).expect("text"))
        })
        .await;
        assert_eq!(late.expect_err("too late").kind(), std::io::ErrorKind::BrokenPipe);
        assert!(reason.contains("100 ms"), "{reason}");
        old.serves().await;
    });
}

/// There is no room to tell it why. It can see all the same that it was given up, and that nothing that it finds in its
/// queue later is its own.
fn hung_with_a_full_queue(engine: EngineChoice) {
    let is_told = |revocation: &OwnedFd| {
        let mut wanted = [PollFd::new(revocation, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut wanted, Some(&now)).expect("an eventfd") == 1
    };
    block_on(engine, async {
        let mut old = Old::new(defaults().commit_ms_max(200));
        for ends in [0, 1] {
            let control = old.control.clone();
            let ((raw, revocation), ready) = old
                .with(move || {
                    let (mut raw, mut descriptors) =
                        RawSuccessor::offered_with_descriptors(&control);
                    raw.send(READY, &[]);
                    (raw, descriptors.pop_back().expect("at least one"))
                })
                .await;
            let ready = ready.expect("it is ready");
            assert!(!is_told(&revocation));
            if ends == 0 {
                let error = ready.commit(&vec![1; 1 << 20]).await.expect_err("not read").error;
                assert!(matches!(error, RestartError::TimedOut { .. }), "{error}");
            } else {
                drop(ready);
            }
            assert!(is_told(&revocation));
            old.serves().await;
            drop(raw);
        }
    });
}

/// A successor that stands still has connections that it will never serve: their peers see an end all the same.
fn hung_with_connections(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults());
        let (raw, mut ready) = old.ready(offered_and_ready).await;
        let (mut client, server) = old.pair().await;
        let detached = server.detach(Duration::from_secs(5)).await.expect("quiet");
        ready.send_connection(b"", detached).await.expect("room");
        drop(ready);
        let end = timeout(Duration::from_secs(5), client.recv()).await.expect("soon");
        assert!(end.is_err(), "an abort");
        old.serves().await;
        // One that is aborted gives them back.
        let (another, mut ready) = old.ready(offered_and_ready).await;
        let (mut client, server) = old.pair().await;
        let detached = server.detach(Duration::from_secs(5)).await.expect("quiet");
        ready.send_connection(b"", detached).await.expect("room");
        let [(_, server)] = ready.abort("no").try_into().expect("one");
        let serving = ringpost::spawn(echo(server));
        ask(&mut client, 1, 100).await;
        client.shutdown().await.expect("taken");
        serving.await.expect("no panic");
        drop((raw, another));
    });
}

fn gives_up(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults());
        let control = old.control.clone();
        let ((), result) = old
            .with(move || {
                let mut raw = RawSuccessor::offered(&control);
                raw.send(GIVE_UP, b"the configuration\nis wrong");
            })
            .await;
        match result.expect_err("it has given up") {
            RestartError::GaveUp { stage: Stage::StartUp, reason } => {
                assert_eq!(reason, "the configuration\u{FFFD}is wrong");
            }
            other => panic!("{other}"),
        }
        old.serves().await;
        // And when it is ready, before and in the commit.
        let (mut raw, ready) = old.ready(offered_and_ready).await;
        raw.send(GIVE_UP, b"after all");
        let error = ready.commit(b"").await.expect_err("given up").error;
        assert!(matches!(error, RestartError::GaveUp { stage: Stage::Commit, .. }), "{error}");
        old.serves().await;
        // The predecessor may give up as well.
        let (mut raw, ready) = old.ready(offered_and_ready).await;
        assert!(ready.abort("not now").is_empty());
        assert_eq!(blocking(move || raw.read_to(GIVE_UP)).await, b"not now");
        let (mut raw, ready) = old.ready(offered_and_ready).await;
        drop(ready);
        blocking(move || raw.read_to(GIVE_UP)).await;
        old.serves().await;
    });
}

fn speaks_nonsense(engine: EngineChoice) {
    let scripts: [(&str, Vec<u8>); 7] = [
        ("bytes", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a long record", vec![0xFF, 0xFF, 0, 0, 1, 0, 0, 0]),
        ("a record of a predecessor", vec![0, 0, 16, 0, 8, 0, 0, 0]),
        ("too much", [&[0, 0, 16, 0, 8, 0, 0, 0][..], &[7; 70_000]].concat()),
        ("a wrong magic", [&[14, 0, 0, 0, 1, 0, 0, 0][..], &[0; 14]].concat()),
        ("descriptors that are not there", vec![0, 0, 0, 0, 2, 1, 0, 0]),
        ("another version", [&[14, 0, 0, 0, 1, 0, 0, 0][..], &hello(2)].concat()),
    ];
    block_on(engine, async {
        let mut old = Old::new(defaults());
        for (name, script) in scripts {
            let control = old.control.clone();
            let (_raw, result) = old
                .with(move || {
                    let mut raw = RawSuccessor::connect(&control);
                    use std::io::Write;
                    // It may be closed before it has read everything.
                    let _ = raw.stream.write_all(&script);
                    let _ = raw.stream.shutdown(std::net::Shutdown::Write);
                    raw
                })
                .await;
            let error = result.expect_err(name);
            let expected = matches!(
                error,
                RestartError::Protocol { .. }
                    | RestartError::Ended { .. }
                    | RestartError::Version { theirs: 2, ours: 1 }
            );
            assert!(expected, "{name}: {error}");
        }
        old.serves().await;
    });
}

/// What had been accepted before the commit is taken, then accepting ends.
fn ends_a_drained_listener(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults());
        let (mut raw, ready) = old.ready(offered_and_ready).await;
        let mut clients = Vec::new();
        for _ in 0..5 {
            let path = old.path.clone();
            let stream = blocking(move || std::os::unix::net::UnixStream::connect(path)).await;
            clients.push(stream.expect("not refused"));
        }
        // The kernel gives them to this process.
        ringpost::sleep(Duration::from_millis(20)).await;
        let committing = ringpost::spawn(async move { ready.commit(b"").await });
        blocking(move || {
            raw.read_to(COMMIT);
            raw.send(TAKEN, &[]);
        })
        .await;
        committing.await.expect("no panic").expect("taken");
        // Later ones wait for the successor, which has the socket.
        let path = old.path.clone();
        let accepted = async {
            let mut accepted = 0;
            loop {
                match old.listener.accept().await {
                    Ok(_) => accepted += 1,
                    Err(AcceptError::HandedOver) => return accepted,
                    Err(other) => panic!("{other}"),
                }
            }
        };
        assert_eq!(accepted.await, 5);
        let again = old.listener.accept().await.map(drop);
        assert_eq!(again, Err(AcceptError::HandedOver));
        let error = old.with(|| ()).await.1.expect_err("handed over");
        assert!(matches!(error, RestartError::HandedOver) && error.is_final(), "{error}");
        // The path is another process's: nobody removes it here.
        drop(old.listener);
        assert!(path.exists());
    });
}

fn descriptors_stay(engine: EngineChoice) {
    block_on(engine, async {
        let mut old = Old::new(defaults());
        let (_client, mut server) = old.pair().await;
        let mut before = 0;
        for round in 0..20 {
            let control = old.control.clone();
            let (_, result) = old.with(move || drop(RawSuccessor::offered(&control))).await;
            result.expect_err("gone");
            let (raw, mut ready) = old.ready(offered_and_ready).await;
            let detached = server.detach(Duration::from_secs(5)).await.expect("quiet");
            ready.send_connection(b"", detached).await.expect("sent");
            drop(raw);
            let [(_, back)] =
                ready.commit(b"").await.expect_err("gone").connections.try_into().expect("one");
            server = back;
            old.serves().await;
            // Operations on what was closed end in their own time.
            let count = process::descriptors();
            if round == 2 {
                before = count;
            }
        }
        ringpost_tests::rig::until("the descriptors are back", || process::descriptors() <= before)
            .await;
    });
}
