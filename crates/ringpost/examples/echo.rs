//! A server that sends every message back.
//!
//! Shows a listener, receiving in batches, one runtime per thread, an orderly end on a signal, and a socket
//! that a service manager made.
//!
//! ```text
//! cargo run --example echo -- --path echo.sock
//! cargo run --example echo -- --path echo.sock --threads 2 --profile le32
//! systemd-socket-activate --listen=$PWD/echo.sock --fdname=echo target/debug/examples/echo --activated echo
//! ```
//!
//! **Threads.** A runtime and its connections belong to one thread. The first runtime accepts, and
//! hands each socket to the next runtime in turn. If all of them accepted on the same socket instead,
//! the kernel would wake the same one first each time (tried with io_uring and three idle runtimes, one
//! got all of 300 connections), and connections stay where they are. One acceptor also means that one
//! place decides when accepting ends.
//!
//! **The end.** On SIGTERM or SIGINT the server stops accepting, and shuts the receiving direction of
//! each connection: the kernel refuses what comes later, and all that came before is still answered. Then
//! the peer gets a clean end. A peer that does not read its answers is given a second.

use std::convert::Infallible;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, Scope};

use anyhow::{Result, bail};
use clap::{Args, Parser};
use futures_util::future::{Either, select};
use ringpost::{
    Activation, Address, Batch, Connection, ConnectionOptions, Handle, Listener, OneshotSender,
    RuntimeBuilder, SendError, Sender,
};
use rustix::net::Shutdown;

use common::engine::EngineFlags;
use common::profile::ProfileFlag;
use common::stop::{self, GRACE, Stop};

mod common {
    pub(crate) mod engine;
    pub(crate) mod profile;
    pub(crate) mod program;
    pub(crate) mod stop;
}

/// Sends every message back.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    profile: ProfileFlag,
    #[command(flatten)]
    engine: EngineFlags,
    /// Threads to share the connections, each with a runtime of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    threads: u8,
}

/// Where to listen: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Where to listen: a path, or @name in the abstract namespace
    #[arg(long)]
    path: Option<Address>,
    /// Takes the listening socket that the service manager passed under this name (LISTEN_FDS)
    #[arg(long, value_name = "NAME")]
    activated: Option<String>,
}

impl Place {
    /// Listens there. `activation` is there if it is needed.
    fn listen(
        &self,
        options: ConnectionOptions,
        activation: Option<&mut Activation>,
    ) -> Result<Listener> {
        let builder = Listener::builder().connection(options);
        match (self, activation) {
            (Self { activated: Some(name), .. }, Some(activation)) => {
                // The path is the service manager's, and stays when this program ends.
                Ok(builder.activated(activation, name)?)
            }
            (Self { path: Some(path), .. }, _) => Ok(builder.bind(path.clone())?),
            _ => bail!("nowhere to listen"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { path: Some(path), .. } => path.fmt(f),
            Self { activated, .. } => activated.as_deref().unwrap_or_default().fmt(f),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    common::program::run("echo", || run(arguments))
}

fn run(arguments: Arguments) -> Result<()> {
    // Before there is another thread, which might use the numbers of inherited descriptors.
    let mut activation =
        arguments.place.activated.as_ref().map(|_| Activation::take()).transpose()?;
    // Before anything else, so that no signal finds the program unprepared.
    let stop = stop::on_signals()?;
    let builder = arguments.engine.runtime();
    let runtime = builder.clone().build()?;
    thread::scope(|scope| {
        let mut handles = vec![runtime.handle()];
        // Dropped at the end of this scope, which ends the threads; they are waited for then.
        let mut ends = Vec::new();
        for index in 1..arguments.threads {
            let (handle, end) = start_thread(scope, format!("echo-{index}"), builder.clone())?;
            handles.push(handle);
            ends.push(end);
        }
        let options = arguments.profile.connection();
        let engine = runtime.engine();
        runtime.block_on(async {
            let listener = arguments.place.listen(options, activation.as_mut())?;
            println!("ready: {} ({}: {})", arguments.place, engine.kind, engine.reason);
            serve(listener, options, &handles, stop).await
        })
    })
}

/// Starts a thread with a runtime that runs until the returned sender is dropped.
fn start_thread<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    builder: RuntimeBuilder,
) -> Result<(Handle, OneshotSender<Infallible>)> {
    let (started, start) = ringpost::oneshot();
    let (end, ended) = ringpost::oneshot();
    thread::Builder::new().name(name).spawn_scoped(scope, move || {
        // Built here, because a runtime belongs to the thread that builds it.
        let runtime = match builder.build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        if started.send(Ok(runtime.handle())).is_ok() {
            // Tasks that arrive through the handle run meanwhile.
            let _ = runtime.block_on(ended);
        }
    })?;
    let handle = start.blocking_recv(None)??;
    Ok((handle, end))
}

/// Accepts until the stop, and deals the connections out to the runtimes.
async fn serve(
    mut listener: Listener,
    options: ConnectionOptions,
    handles: &[Handle],
    stop: Stop,
) -> Result<()> {
    // Each connection holds a clone of `open`: once the last has gone, `closed` is ready.
    let (open, closed) = ringpost::oneshot::<Infallible>();
    let open = Arc::new(open);
    let mut turns = handles.iter().cycle();
    let mut stopped = stop.clone();
    while let Either::Left((socket, _)) = select(pin!(listener.accept_socket()), &mut stopped).await
    {
        let Some(handle) = turns.next() else { break };
        let socket = socket?;
        let stop = stop.clone();
        let open = Arc::clone(&open);
        let submitted = handle.submit(move || {
            ringpost::spawn(async move {
                if let Err(error) = echo(socket, options, stop).await {
                    tracing::debug!(%error, "connection ended");
                }
                drop(open);
            });
        });
        if let Err(error) = submitted {
            tracing::warn!(%error, "connection dropped");
        }
    }
    drop(listener);
    drop(open);
    if ringpost::timeout(GRACE, closed).await.is_err() {
        tracing::warn!("connections cut: their peers did not take their answers in time");
    }
    Ok(())
}

/// Serves one connection to its end.
async fn echo(socket: OwnedFd, options: ConnectionOptions, mut stop: Stop) -> Result<()> {
    tracing::debug!("serving a connection");
    let mut connection = Connection::from_socket(socket, options);
    loop {
        let (sender, receiver) = connection.halves();
        // The stop first: a peer that never pauses would keep it waiting.
        let Either::Right((received, _)) = select(&mut stop, pin!(receiver.recv_batch())).await
        else {
            break;
        };
        match received? {
            Some(batch) => answer(sender, batch, || stop.peek().is_some()).await?,
            None => return Ok(sender.shutdown().await?),
        }
    }
    rustix::net::shutdown(connection.as_fd(), Shutdown::Read)?;
    let (sender, receiver) = connection.halves();
    // The peer was cut short: that its end is no clean one is no news.
    while let Ok(Some(batch)) = receiver.recv_batch().await {
        answer(sender, batch, || false).await?;
    }
    Ok(sender.shutdown().await?)
}

/// Sends back what has arrived, until `is_over`; the rest stays for the next batch. The answers leave together, at the
/// end of the runtime's turn.
async fn answer(
    sender: &mut Sender,
    mut batch: Batch<'_>,
    is_over: impl Fn() -> bool,
) -> Result<(), SendError> {
    while !is_over()
        && let Some(frame) = batch.next()
    {
        match frame.as_slice() {
            // One copy, into what is about to leave.
            Some(bytes) if bytes.len() < LEND_BYTES_MIN => sender.send(bytes).await?,
            // No copy: sent from where it was received.
            _ => sender.send_message(frame.retain()).await?,
        }
    }
    Ok(())
}

/// From this length on, keeping a message where it lies costs less than copying it.
const LEND_BYTES_MIN: usize = 2048;
