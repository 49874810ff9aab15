//! A server that is replaced while it serves: no client is refused, and no message is lost.
//!
//! It sends every message back. On SIGHUP it starts its own program again, for example a new version of it,
//! and hands over once that is ready; starting a second instance with `--takeover` does the same.
//!
//! ```text
//! cargo run --example restart -- --path app.sock
//! kill -HUP PROCESS
//! cargo run --example restart -- --path app.sock --takeover
//! ```
//!
//! **Connections.** Clients of the old generation are asked to reconnect (GOAWAY) and served until they do,
//! at most for `--drain-ms`. With `--keep-connections`, given to the new generation, their connections move
//! to it instead, and they notice nothing.
//!
//! **Failure.** If the new generation can't start, the old one says why and goes on. `--fail` shows it.

use std::pin::pin;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use futures_util::future::{Either, select};
use ringpost::restart::{
    Drain, Hold, Parcel, Predecessor, ReadySuccessor, RestartError, Successor,
};
use ringpost::{
    AcceptError, Address, Connection, JoinHandle, Listener, OneshotReceiver, OneshotSender,
};
use signal_hook::consts::SIGHUP;
use signal_hook::iterator::Signals;

use common::engine::EngineFlags;
use common::stop::{self, GRACE, Stop};

mod common {
    pub(crate) mod engine;
    pub(crate) mod program;
    pub(crate) mod stop;
}

/// Sends every message back, and can be replaced while it runs.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long)]
    path: String,
    /// Take over from the instance that serves there now
    #[arg(long)]
    takeover: bool,
    /// When taking over, take the open connections as well
    #[arg(long)]
    keep_connections: bool,
    /// How long the clients of a replaced instance may take to leave, milliseconds
    #[arg(long, default_value_t = 30_000)]
    drain_ms: u64,
    /// Fail instead of becoming ready, to see that the old instance goes on
    #[arg(long)]
    fail: bool,
    #[command(flatten)]
    engine: EngineFlags,
}

/// What there is in a parcel.
const LISTENER: &str = "service";
/// Connections that move to a new generation; the others are drained.
const CONNECTIONS_MAX: usize = 4096;
/// How long moving connections may take; what is not quiet by then stays.
const MOVE_MAX: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    common::program::run("restart", || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    // First of all, so that no signal finds the program unprepared.
    let stop = stop::on_signals()?;
    replace_on_hangup()?;
    let control = format!("{}.control", arguments.path);
    let successor = if arguments.takeover {
        let connections = if arguments.keep_connections { CONNECTIONS_MAX } else { 0 };
        Some(Successor::builder().connections_max(connections).connect(control.as_str())?)
    } else {
        None
    };
    // What takes long, and what can fail, comes here: the old instance serves meanwhile.
    let runtime = arguments.engine.runtime().build()?;
    if arguments.fail {
        bail!("failing, as asked");
    }
    runtime.block_on(async {
        let mut service = match successor {
            Some(successor) => Service::take_over(successor)?,
            None => Service::first(&arguments.path, &control)?,
        };
        let engine = runtime.engine();
        println!(
            "ready: {} ({}: {}), generation {}, process {}",
            arguments.path,
            engine.kind,
            engine.reason,
            service.generation,
            std::process::id()
        );
        match service.run(stop.clone()).await? {
            End::Replaced => service.leave(Duration::from_millis(arguments.drain_ms), stop).await,
            End::Stopped => service.end(GRACE, stop).await,
        }
        Ok(())
    })
}

/// Starts this program again on each SIGHUP, with the same arguments.
fn replace_on_hangup() -> Result<()> {
    let mut signals = Signals::new([SIGHUP])?;
    // Looked up now: once a new version has taken the file's place, this process's own is one without a name.
    let program = std::env::current_exe()?;
    thread::Builder::new().name("hangups".into()).spawn(move || {
        for _ in signals.forever() {
            let arguments = std::env::args_os().skip(1).filter(|word| word != "--takeover");
            let started = Command::new(&program).args(arguments).arg("--takeover").spawn();
            // Waited for here, because one that fails must not stay as a zombie. One that takes over
            // outlives this process.
            match started.and_then(|mut child| child.wait()) {
                Ok(status) => tracing::warn!(%status, "the new instance has ended"),
                Err(error) => tracing::warn!(%error, "no new instance"),
            }
        }
    })?;
    Ok(())
}

struct Service {
    listener: Listener,
    predecessor: Predecessor,
    tasks: Tasks,
    generation: u32,
}

/// Why a service accepts no more.
enum End {
    Replaced,
    Stopped,
}

enum Event {
    Accepted(Result<Connection, AcceptError>),
    Successor(Result<ReadySuccessor, RestartError>),
    Stopped,
}

impl Service {
    fn first(path: &str, control: &str) -> Result<Self> {
        let listener = Listener::bind(Address::from(path))?;
        let parcel = parcel(&listener, 1)?;
        let predecessor = Predecessor::bind(control, parcel)?;
        Ok(Self { listener, predecessor, tasks: Tasks::default(), generation: 1 })
    }

    fn take_over(successor: Successor) -> Result<Self> {
        let state = successor.state().try_into().map(u32::from_le_bytes);
        let generation = state.context("the old instance has another kind of state")? + 1;
        let mut inherited = successor.take_over()?;
        let socket = inherited.listener(LISTENER).context("the old instance has no socket")?;
        let listener = socket.listen(Listener::builder());
        let parcel = parcel(&listener, generation)?;
        let mut tasks = Tasks::default();
        for (_, connection) in inherited.connections() {
            tasks.spawn(connection.attach());
        }
        let predecessor = Predecessor::builder().inherit(inherited.into_control(), parcel);
        Ok(Self { listener, predecessor, tasks, generation })
    }

    /// Accepts until a successor has taken over, or the program is to end.
    async fn run(&mut self, mut stop: Stop) -> Result<End> {
        loop {
            let event = {
                let accepted = pin!(self.listener.accept());
                let successor = pin!(self.predecessor.successor());
                // Clients that keep the listener busy come last.
                match select(select(&mut stop, successor), accepted).await {
                    Either::Left((Either::Left(_), _)) => Event::Stopped,
                    Either::Left((Either::Right((successor, _)), _)) => Event::Successor(successor),
                    Either::Right((accepted, _)) => Event::Accepted(accepted),
                }
            };
            match event {
                Event::Accepted(connection) => self.tasks.spawn(connection?),
                Event::Successor(Ok(ready)) => {
                    if self.hand_over(ready).await {
                        return Ok(End::Replaced);
                    }
                }
                Event::Successor(Err(error)) if error.is_final() => return Err(error.into()),
                Event::Successor(Err(error)) => eprintln!("not replaced: {error}"),
                Event::Stopped => return Ok(End::Stopped),
            }
        }
    }

    /// True if the successor serves now.
    async fn hand_over(&mut self, mut ready: ReadySuccessor) -> bool {
        if ready.connections_max() > 0 {
            let until = Instant::now() + MOVE_MAX;
            for connection in self.tasks.take_back(until).await {
                if connection.agreement().is_none() {
                    // Its peer has not said a word yet: to detach it would wait for that.
                    self.tasks.spawn(connection);
                    continue;
                }
                let left = until.saturating_duration_since(Instant::now());
                let sent = match connection.detach(left).await {
                    Ok(detached) => ready.send_connection(b"", detached).await,
                    Err(error) => {
                        self.tasks.spawn(*error.connection);
                        continue;
                    }
                };
                if let Err(not_sent) = sent {
                    self.tasks.spawn(not_sent.connection.attach());
                }
            }
        }
        match ready.commit(b"").await {
            Ok(()) => true,
            Err(not_committed) => {
                eprintln!("not replaced: {not_committed}");
                for (_, connection) in not_committed.connections {
                    self.tasks.spawn(connection);
                }
                false
            }
        }
    }

    /// Leaves the rest to the successor.
    async fn leave(mut self, limit: Duration, stop: Stop) {
        // What had been accepted before is still ours.
        while let Ok(connection) = self.listener.accept().await {
            self.tasks.spawn(connection);
        }
        self.end(limit, stop).await;
    }

    /// Serves what is open to its end, at most so long; for the grace period once the program is to end.
    async fn end(self, limit: Duration, stop: Stop) {
        let Self { listener, predecessor, tasks, .. } = self;
        drop((listener, predecessor));
        tasks.drain.begin();
        let finished = match select(pin!(tasks.drain.finished(limit)), stop).await {
            Either::Left((finished, _)) => finished,
            Either::Right(_) => tasks.drain.finished(GRACE).await,
        };
        if let Err(unfinished) = finished {
            tracing::warn!(%unfinished, "connections cut");
        }
    }
}

fn parcel(listener: &Listener, generation: u32) -> Result<Parcel> {
    Ok(Parcel::new().listener(LISTENER, listener)?.state(generation.to_le_bytes())?)
}

/// The connections of a service, a task each.
#[derive(Default)]
struct Tasks {
    running: Vec<(JoinHandle<()>, OneshotReceiver<Connection>)>,
    /// Asks for their connections.
    give_back: Drain,
    /// Asks their clients to leave.
    drain: Drain,
}

impl Tasks {
    fn spawn(&mut self, connection: Connection) {
        let (back, receiver) = ringpost::oneshot();
        let (give_back, drain) = (self.give_back.hold(), self.drain.hold());
        let task = ringpost::spawn(async move {
            if let Err(error) = serve(connection, back, give_back, drain).await {
                tracing::debug!(%error, "connection ended");
            }
        });
        self.running.retain(|(task, _)| !task.is_finished());
        self.running.push((task, receiver));
    }

    /// Asks for the connections. A task that does not get to it in time, because its client does not read,
    /// goes on to serve.
    async fn take_back(&mut self, until: Instant) -> Vec<Connection> {
        std::mem::take(&mut self.give_back).begin();
        let mut connections = Vec::new();
        for (_, receiver) in std::mem::take(&mut self.running) {
            let left = until.saturating_duration_since(Instant::now());
            if let Ok(Ok(connection)) = ringpost::timeout(left, receiver).await {
                connections.push(connection);
            }
        }
        connections
    }
}

/// Serves a connection to its end, or gives it back between two messages.
async fn serve(
    mut connection: Connection,
    back: OneshotSender<Connection>,
    give_back: Hold,
    drain: Hold,
) -> Result<()> {
    let mut back = Some(back);
    let mut leaving = false;
    loop {
        let next = async {
            match &back {
                Some(_) => give_back.until_begun(connection.recv()).await,
                None => Some(connection.recv().await),
            }
        };
        let next = if leaving { Some(next.await) } else { drain.until_begun(next).await };
        match next {
            Some(Some(received)) => match received? {
                Some(message) => connection.send_message(message).await?,
                None => return Ok(connection.shutdown().await?),
            },
            Some(None) => match back.take() {
                Some(back) => match back.send(connection) {
                    Ok(()) => return Ok(()),
                    // Too late: it stays here.
                    Err(ours) => connection = ours,
                },
                None => bail!("given back twice"),
            },
            None => {
                leaving = true;
                connection.go_away()?;
            }
        }
    }
}
