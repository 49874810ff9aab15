//! One generation of an echo server, as a process of its own.

use std::time::Duration;

use ringpost::restart::{
    Drain, Hold, Parcel, Predecessor, ReadySuccessor, RestartError, Successor,
};
use ringpost::{AccessPolicy, Connection, ConnectionOptions, EngineChoice, LengthPrefix, Listener};
use ringpost_testkit::child::{Child, say, told};
use ringpost_testkit::trace;
use ringpost_tests::privileges::{NOBODY, become_member, become_user};
use ringpost_tests::rig;

use crate::access::{ALLOWED as MEMBER, GROUP};
use crate::roles;

/// Longest drain: the clients of the tests leave by themselves.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// Starts a generation. Settings: `move` asks for connections; `le32` is the profile of the second listener;
/// `nobody` acts as that user; `anyone` trusts every predecessor; `hold` waits for a line after the sockets have been offered, and says `offered` before; `led` and
/// `led-serving` offer the process to be led from system call to system call, from the beginning or once it serves.
pub(crate) fn start(path: &str, engine: EngineChoice, settings: &[&str]) -> Child {
    let engine = if engine == EngineChoice::Uring { "uring" } else { "epoll" };
    let mut words = vec![path, engine];
    words.extend(settings);
    roles::start("generation", &words)
}

/// Where the second listener is, which has length-prefixed messages.
pub(crate) fn plain_path(path: &str) -> String {
    format!("{path}.plain")
}

pub(crate) fn control_path(path: &str) -> String {
    format!("{path}.control")
}

struct Server {
    drain: Drain,
    give_back: std::cell::RefCell<Drain>,
    tasks: std::cell::RefCell<Vec<ringpost::JoinHandle<Option<Connection>>>>,
}

/// The process: takes over from another one if there is one, serves, hands over, drains, ends.
pub(crate) fn play(path: &str, engine: &str, settings: &[&str]) {
    let engine = if engine == "uring" { EngineChoice::Uring } else { EngineChoice::Epoll };
    if settings.contains(&"nobody") {
        become_user(NOBODY);
    }
    if settings.contains(&"member") {
        become_member(MEMBER, &[GROUP]);
    }
    if settings.contains(&"no-member") {
        become_user(MEMBER);
    }
    let runtime = rig::runtime(engine);
    runtime.block_on(async {
        if settings.contains(&"led") {
            trace::offer();
        }
        let control = control_path(path);
        let connections = if settings.contains(&"move") { 1000 } else { 0 };
        let mut builder = Successor::builder().connections_max(connections);
        if settings.contains(&"anyone") {
            builder = builder.policy(AccessPolicy::anyone());
        }
        if settings.contains(&"of-group") {
            builder = builder.policy(AccessPolicy::anyone().allow_supplementary_gid(GROUP));
        }
        let successor = builder.connect(control.as_str());
        let server = Server {
            drain: Drain::new(),
            give_back: Drain::new().into(),
            tasks: Vec::new().into(),
        };
        let plain = ConnectionOptions::new().length_prefixed(LengthPrefix::default());
        let plain = Listener::builder().connection(plain);
        let (native, prefixed, predecessor);
        match successor {
            Ok(successor) => {
                let generation = generation_of(successor.state());
                if settings.contains(&"hold") {
                    say("offered");
                    told();
                }
                let mut inherited = match successor.take_over() {
                    Ok(inherited) => inherited,
                    Err(error) => return say(&format!("not taken over: {error}")),
                };
                native = inherited.listener("native").expect("sent").listen(Listener::builder());
                prefixed = inherited.listener("plain").expect("sent").listen(plain);
                for (_, connection) in inherited.connections() {
                    server.spawn(connection.attach());
                }
                let ended = inherited.predecessor_ended();
                let parcel = parcel(&native, &prefixed, generation + 1);
                predecessor = Predecessor::builder().inherit(inherited.into_control(), parcel);
                say(&format!("serving {}{}", generation + 1, if ended { " alone" } else { "" }));
            }
            Err(error) if error.is_no_predecessor() => {
                native = Listener::bind(path).expect("bind");
                prefixed = plain.bind(plain_path(path)).expect("bind");
                let parcel = parcel(&native, &prefixed, 1);
                predecessor = Predecessor::bind(control, parcel).expect("bind");
                say("serving 1");
            }
            Err(error) => return say(&format!("refused: {error}")),
        }
        if settings.contains(&"led-serving") {
            trace::offer();
        }
        let server = std::rc::Rc::new(server);
        let accepting = [native, prefixed].map(|mut listener| {
            let server = std::rc::Rc::clone(&server);
            ringpost::spawn(async move {
                while let Ok(connection) = listener.accept().await {
                    server.spawn(connection);
                }
            })
        });
        server.await_successor(predecessor).await;
        for accepting in accepting {
            accepting.await.expect("accepting ends");
        }
        server.drain.begin();
        server.drain.finished(DRAIN_MAX).await.expect("clients leave");
        say("ended");
    });
}

fn parcel(native: &Listener, plain: &Listener, generation: u32) -> Parcel {
    let parcel = Parcel::new().listener("native", native).expect("fits");
    let parcel = parcel.listener("plain", plain).expect("fits");
    parcel.state(generation.to_le_bytes()).expect("fits")
}

fn generation_of(state: &[u8]) -> u32 {
    u32::from_le_bytes(state.try_into().expect("four bytes"))
}

impl Server {
    fn spawn(&self, connection: Connection) {
        let (give_back, drain) = (self.give_back.borrow().hold(), self.drain.hold());
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(ringpost::spawn(async move { echo(connection, give_back, drain).await }));
    }

    /// Until a successor has taken over.
    async fn await_successor(&self, mut predecessor: Predecessor) {
        loop {
            match predecessor.successor().await {
                Ok(ready) => {
                    if self.hand_over(ready).await {
                        return;
                    }
                }
                Err(error) => {
                    assert!(!error.is_final(), "{error}");
                    say(&format!("goes on: {}", kind(&error)));
                }
            }
        }
    }

    async fn hand_over(&self, mut ready: ReadySuccessor) -> bool {
        if ready.connections_max() > 0 {
            self.give_back.replace(Drain::new()).begin();
            let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            for task in tasks {
                let Some(connection) = task.await.expect("no panic") else { continue };
                match connection.detach(Duration::from_secs(2)).await {
                    Ok(detached) => {
                        if let Err(not_sent) = ready.send_connection(b"", detached).await {
                            self.spawn(not_sent.connection.attach());
                        }
                    }
                    Err(error) => self.spawn(*error.connection),
                }
            }
        }
        match ready.commit(b"").await {
            Ok(()) => true,
            Err(not_committed) => {
                for (_, connection) in not_committed.connections {
                    self.spawn(connection);
                }
                say(&format!("goes on: {}", kind(&not_committed.error)));
                false
            }
        }
    }
}

/// The name of an error's variant.
pub(crate) fn kind(error: &RestartError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(']).next().unwrap_or_default().to_owned()
}

/// Answers until the peer ends, or the connection is to be given back.
async fn echo(mut connection: Connection, give_back: Hold, drain: Hold) -> Option<Connection> {
    let mut asked = false;
    loop {
        let received = if asked {
            give_back.until_begun(connection.recv()).await.map(Some)
        } else {
            give_back.until_begun(drain.until_begun(connection.recv())).await
        };
        match received {
            None => return Some(connection),
            Some(None) => {
                asked = true;
                // A plain profile has no GOAWAY.
                let _ = connection.go_away();
            }
            Some(Some(Ok(Some(message)))) => {
                if connection.send_message(message).await.is_err() {
                    return None;
                }
            }
            Some(Some(Ok(None))) => {
                let _ = connection.shutdown().await;
                return None;
            }
            Some(Some(Err(_))) => return None,
        }
    }
}
