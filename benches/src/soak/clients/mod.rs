//! The clients: a process of each kind, which drives connections until it is told to stop.
//!
//! Each loop is paced by sleeps, so that the machine has time left: a load that leaves none measures the
//! scheduler. What a client does is decided by its seed; when it happens, by the machine.

mod abrupt;
mod hostile;
mod other_sockets;
mod readers;
mod steady;

use std::{
    cell::RefCell,
    fmt,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use ringpost::{Connection, ConnectionOptions, JoinHandle, Runtime, sleep, spawn};
use serde::{Deserialize, Serialize};

use super::{
    census::{self, Open, Tally, fail},
    introduction::{Ending, Introduction, Service},
    order::{Order, Said},
    server::socket,
    stamp::{self, Stamp},
    verdict,
};

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Small messages, one at a time; its round trips are the soak's delay.
    Pingpong,
    /// Many small messages on their way on each connection.
    Pipeline,
    /// Long messages, echoed and into the sink.
    Bulk,
    /// Connects, exchanges a few messages and leaves, in all ways there are.
    Churn,
    /// Drops futures at any time.
    Impatient,
    /// Reads slowly, and what is published.
    Slow,
    /// Does not read until the server has cut it off.
    Mute,
    /// Sends what no frame is, and stops within frames.
    Garbage,
    /// Passes descriptors.
    Descriptors,
    /// Datagrams and sequenced packets.
    Packets,
    /// Byte streams.
    Bytes,
    /// Holds many connections that are silent nearly always.
    Idle,
    /// Is killed at a random moment, and started anew.
    Crash,
}

impl Kind {
    /// Those that live as long as the load, in the order in which they start.
    pub(crate) const LASTING: [Self; 12] = [
        // First, as its connections take longest.
        Self::Idle,
        Self::Pingpong,
        Self::Pipeline,
        Self::Bulk,
        Self::Churn,
        Self::Impatient,
        Self::Slow,
        Self::Mute,
        Self::Garbage,
        Self::Descriptors,
        Self::Packets,
        Self::Bytes,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pingpong => "pingpong",
            Self::Pipeline => "pipeline",
            Self::Bulk => "bulk",
            Self::Churn => "churn",
            Self::Impatient => "impatient",
            Self::Slow => "slow",
            Self::Mute => "mute",
            Self::Garbage => "garbage",
            Self::Descriptors => "descriptors",
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Idle => "idle",
            Self::Crash => "crash",
        }
    }
}

impl Kind {
    /// Messages that a client has received when it has all its lasting connections.
    pub(crate) fn warm_messages(self) -> u64 {
        match self {
            Self::Idle => steady::IDLE_CONNECTIONS as u64,
            _ => 1,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs a client until it is told to stop.
pub(crate) fn run(order: &Order, kind: Kind, seed: u64) -> Result<()> {
    let runtime =
        Runtime::builder().engine(order.engine.choice()).pool_bytes(POOL_BYTES).build()?;
    let tally = Tally::new();
    let client = Rc::new(Client {
        kind,
        seed,
        directory: order.directory.clone(),
        random: RefCell::new(fastrand::Rng::with_seed(seed)),
        tally: Rc::clone(&tally),
    });
    census::listen(runtime.handle(), &tally)?;
    runtime.block_on(async {
        // The reactor's own operations are on their way before the state is taken.
        sleep(Duration::from_millis(10)).await;
        let before = tally.census()?;
        census::say(&Said::Ready(Box::new(before.clone())))?;
        match kind {
            Kind::Pingpong => steady::pingpong(&client).await,
            Kind::Pipeline => steady::pipeline(&client).await,
            Kind::Bulk => steady::bulk(&client).await,
            Kind::Idle => steady::idle(&client).await,
            Kind::Churn => abrupt::churn(&client).await,
            Kind::Impatient => abrupt::impatient(&client).await,
            Kind::Crash => abrupt::crash(&client).await,
            Kind::Slow => readers::slow(&client).await,
            Kind::Mute => readers::mute(&client).await,
            Kind::Garbage => hostile::garbage(&client).await,
            Kind::Descriptors => other_sockets::descriptors(&client).await,
            Kind::Packets => other_sockets::packets(&client).await,
            Kind::Bytes => other_sockets::bytes(&client).await,
        }
        // What connections still do after they are dropped: at most as long as they linger.
        let end = Instant::now() + SETTLE_MAX;
        let after = loop {
            sleep(SETTLE).await;
            let now = tally.census()?;
            if verdict::leftovers(&before, &now).is_empty() || Instant::now() > end {
                break now;
            }
        };
        census::say(&Said::Done(Box::new(after)))
    })
}

const POOL_BYTES: usize = 1 << 20;
const SETTLE: Duration = Duration::from_millis(200);
/// More than connections linger.
const SETTLE_MAX: Duration = Duration::from_secs(7);

/// What all connections of a client share.
struct Client {
    kind: Kind,
    seed: u64,
    directory: PathBuf,
    random: RefCell<fastrand::Rng>,
    tally: Rc<Tally>,
}

impl Client {
    fn stopping(&self) -> bool {
        self.tally.stopping.get()
    }

    fn path(&self, socket: &str) -> PathBuf {
        self.directory.join(socket)
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.borrow_mut().u64(0..limit)
    }

    fn between(&self, least: usize, most: usize) -> usize {
        self.random.borrow_mut().usize(least..=most)
    }

    async fn pause(&self, least: Duration, most: Duration) {
        let span = u64::try_from((most - least).as_micros()).unwrap_or(u64::MAX);
        sleep(least + Duration::from_micros(self.below(span + 1))).await;
    }

    /// The next connection's introduction.
    fn introduce(&self, service: Service, ending: Ending) -> Introduction {
        let connection = self.tally.connections_made.get();
        let key = stamp::mix(self.seed ^ stamp::mix(connection));
        Introduction {
            client: format!("{}#{:x}", self.kind, self.seed),
            connection,
            key,
            service,
            ending,
        }
    }

    async fn connect(self: &Rc<Self>, service: Service, ending: Ending) -> Result<Session> {
        self.connect_to(socket::STREAMS, ConnectionOptions::new(), service, ending).await
    }

    async fn connect_to(
        self: &Rc<Self>,
        socket: &str,
        options: ConnectionOptions,
        service: Service,
        ending: Ending,
    ) -> Result<Session> {
        let introduction = self.introduce(service, ending);
        let open = self.tally.open();
        let mut connection = Connection::connect_with(self.path(socket), options)
            .await
            .with_context(|| introduction.to_string())?;
        connection
            .send(&serde_json::to_vec(&introduction)?)
            .await
            .with_context(|| introduction.to_string())?;
        Ok(Session {
            sent: Stamp::new(introduction.up()),
            echoed: Stamp::new(introduction.up()),
            received: Stamp::new(introduction.down()),
            introduction,
            connection,
            client: Rc::clone(self),
            _open: open,
        })
    }

    /// A task that ends the process if it fails.
    fn spawn(
        self: &Rc<Self>,
        what: &'static str,
        task: impl Future<Output = Result<()>> + 'static,
    ) -> JoinHandle<()> {
        let kind = self.kind;
        spawn(async move {
            if let Err(error) = task.await {
                fail(&anyhow!("client {kind}, {what}: {error:#}"));
            }
        })
    }
}

/// Waits for the ends of tasks.
async fn join(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.await.unwrap_or_else(|panic| fail(&anyhow!("a task panicked: {panic}")));
    }
}

/// A connection that has been introduced.
struct Session {
    introduction: Introduction,
    connection: Connection,
    client: Rc<Client>,
    /// What this side sends.
    sent: Stamp,
    /// What comes back of that.
    echoed: Stamp,
    /// What the server sends of its own.
    received: Stamp,
    _open: Open,
}

impl Session {
    fn trouble(&self, what: &str) -> String {
        format!(
            "{}, {what} (sent {}, echoed {}, received {})",
            self.introduction,
            self.sent.next(),
            self.echoed.next(),
            self.received.next()
        )
    }

    async fn send(&mut self, len: usize) -> Result<()> {
        let stamp = &self.sent;
        let sent =
            self.connection.send_with(len.max(stamp::HEAD_BYTES), |body| stamp.fill(body)).await;
        sent.with_context(|| self.trouble("sending"))?;
        self.sent.advance();
        Ok(())
    }

    /// Messages that have not come back yet.
    fn in_flight(&self) -> u64 {
        self.sent.next() - self.echoed.next()
    }

    async fn expect_echo(&mut self) -> Result<()> {
        let received =
            self.connection.recv().await.with_context(|| self.trouble("waiting for an echo"))?;
        let message = received.with_context(|| self.trouble("an end instead of an echo"))?;
        let checked = self.echoed.check(message.len(), message.chunks());
        checked.with_context(|| self.trouble("a wrong echo"))?;
        self.client.tally.received();
        Ok(())
    }

    /// Ends both directions and takes what was still on its way.
    async fn finish(mut self) -> Result<()> {
        self.connection.shutdown().await.with_context(|| self.trouble("ending"))?;
        while self.in_flight() > 0 {
            self.expect_echo().await?;
        }
        self.expect_end().await
    }

    async fn expect_end(&mut self) -> Result<()> {
        let received =
            self.connection.recv().await.with_context(|| self.trouble("waiting for the end"))?;
        anyhow::ensure!(received.is_none(), self.trouble("a message instead of the end"));
        Ok(())
    }
}
