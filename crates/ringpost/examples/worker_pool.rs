//! A server whose messages are worked on by other threads: it answers each with its checksum.
//!
//! Shows messages that leave the runtime's thread without being copied. A [`ringpost::Message`]
//! lends the memory it was received into; the worker reads it there and drops it there, and the memory
//! finds its way back. The answers come back in order.
//!
//! ```text
//! cargo run --example worker_pool -- --path pool.sock --workers 2
//! ```
//!
//! A message is answered with eight bytes: its 64-bit FNV-1a checksum, little-endian.
//!
//! **Back-pressure.** A connection has at most `IN_FLIGHT_MAX` messages in the pool and stops
//! receiving until one is answered: its peer feels a busy pool, and nobody else's share shrinks. As
//! the connections are bounded too, and one counts until the pool has done its messages, the queue of
//! the pool has a place for all that can be in flight. The runtime's thread never waits for it.
//!
//! **The end.** On SIGTERM or SIGINT the server stops accepting and receiving, answers what the pool
//! has, and ends each connection cleanly. The workers end once nobody can give them work.
//!
//! **A panic** in the work would end its worker and the connection that waits for it; with the last worker gone
//! nothing would be answered. The checksum has none: catch it where yours may.

use std::convert::Infallible;
use std::num::NonZero;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver as Queue, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use clap::Parser;
use futures_util::future::{Either, select};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use ringpost::{Address, Connection, Listener, Message, OneshotReceiver, OneshotSender};

use common::engine::EngineFlags;
use common::stop::{self, GRACE, Stop};

mod common {
    pub(crate) mod engine;
    pub(crate) mod program;
    pub(crate) mod stop;
}

/// Connections at a time; more are refused.
const CONNECTIONS_MAX: usize = 64;

/// Messages of one connection in the pool at a time.
const IN_FLIGHT_MAX: usize = 8;

/// Answers each message with its checksum.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen: a path, or @name in the abstract namespace
    #[arg(long)]
    path: Address,
    /// Threads that compute; as many as there are processors by default
    #[arg(long)]
    workers: Option<NonZero<usize>>,
    #[command(flatten)]
    engine: EngineFlags,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    common::program::run("worker_pool", || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let stop = stop::on_signals()?;
    let workers = match arguments.workers {
        Some(workers) => workers,
        None => thread::available_parallelism()?,
    };
    let (jobs, queue) = sync_channel(CONNECTIONS_MAX * IN_FLIGHT_MAX);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        // With everything in this scope the last sender goes at its end, whatever happens; then the
        // workers end, and the scope waits for them.
        let pool = Pool { jobs };
        for index in 0..workers.get() {
            let name = format!("worker-{index}");
            thread::Builder::new().name(name).spawn_scoped(scope, || work(&queue))?;
        }
        let runtime = arguments.engine.runtime().build()?;
        let engine = runtime.engine();
        runtime.block_on(async {
            let listener = Listener::bind(arguments.path.clone())?;
            println!("ready: {} ({}: {})", arguments.path, engine.kind, engine.reason);
            serve(listener, pool, stop).await
        })
    })
}

/// Accepts until the stop.
async fn serve(mut listener: Listener, pool: Pool, stop: Stop) -> Result<()> {
    // Each place holds a clone of `open`: once the last has gone, `closed` is ready.
    let (open, closed) = ringpost::oneshot();
    let open = Arc::new(open);
    let mut stopped = stop.clone();
    while let Either::Left((connection, _)) = select(pin!(listener.accept()), &mut stopped).await {
        let connection = connection?;
        if Arc::strong_count(&open) > CONNECTIONS_MAX {
            connection.refuse(&format!(
                "the server has {CONNECTIONS_MAX} connections, as many as it serves; try again later"
            ));
            continue;
        }
        let pool = pool.clone();
        let stop = stop.clone();
        let place = Arc::new(Arc::clone(&open));
        ringpost::spawn(async move {
            if let Err(error) = answer(connection, &pool, &place, stop).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    drop(open);
    if ringpost::timeout(GRACE, closed).await.is_err() {
        tracing::warn!("connections cut: they were not done in time");
    }
    Ok(())
}

/// Serves one connection to its end.
async fn answer(connection: Connection, pool: &Pool, place: &Place, stop: Stop) -> Result<()> {
    let (mut sender, mut receiver) = connection.split();
    let answers = stream::poll_fn(|context| receiver.poll_recv(context).map(Result::transpose))
        .take_until(stop)
        .map(|message| async move { anyhow::Ok(pool.submit(message?, place)?.await?) })
        // Many at a time, and their results in order. Waits for results while it is full, and
        // receives nothing meanwhile.
        .buffered(IN_FLIGHT_MAX);
    let mut answers = pin!(answers);
    while let Some(checksum) = answers.try_next().await? {
        sender.send(&checksum.to_le_bytes()).await?;
    }
    Ok(sender.shutdown().await?)
}

/// A connection's place among [`CONNECTIONS_MAX`]. Its jobs hold it as well: those of a client that has
/// gone are still in the queue.
type Place = Arc<Arc<OneshotSender<Infallible>>>;

/// The way to the workers.
#[derive(Debug, Clone)]
struct Pool {
    jobs: SyncSender<Job>,
}

impl Pool {
    /// Queues a message; never waits.
    fn submit(&self, message: Message, place: &Place) -> Result<OneshotReceiver<u64>> {
        let (answer, answered) = ringpost::oneshot();
        let place = Arc::clone(place);
        // Full can't happen: there is a place for all that may be in flight.
        self.jobs
            .try_send(Job { message, place, answer })
            .ok()
            .context("the worker pool takes no work")?;
        Ok(answered)
    }
}

/// A message, and where its answer goes.
#[derive(Debug)]
struct Job {
    message: Message,
    place: Place,
    answer: OneshotSender<u64>,
}

/// What a worker does until nobody can give it work any more.
fn work(queue: &Mutex<Queue<Job>>) {
    loop {
        // One worker waits for the queue, the others for the lock; it is free again before the work.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { message, place, answer }) = next else { return };
        if answer.is_closed() {
            // Its connection has ended: nobody waits for it.
            continue;
        }
        let checksum = checksum(message.chunks());
        // Before the answer: once the peer has it, the memory is on its way back.
        drop(message);
        drop(place);
        // Fails if the connection has ended meanwhile.
        let _ = answer.send(checksum);
    }
}

/// FNV-1a over the pieces of a message, without joining them.
fn checksum<'message>(pieces: impl Iterator<Item = &'message [u8]>) -> u64 {
    pieces
        .flatten()
        .fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
