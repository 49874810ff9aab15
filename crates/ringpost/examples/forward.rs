//! A proxy: connects each of its clients to another server, and passes messages on both ways.
//!
//! Shows runs of messages, which are passed on as they were received: not copied, not taken apart.
//! Each direction ends by itself. A clean end arrives as a clean end and an abort as an abort, and if one
//! side is refused, the other learns the reason. A wish to end the connection (GOAWAY) is passed on as well.
//!
//! ```text
//! cargo run --example echo -- --path echo.sock
//! cargo run --example forward -- --listen proxy.sock --to echo.sock --stats
//! ```
//!
//! With `--profile bytes` it passes on any protocol. Bare bytes know no abort: the other side sees an
//! end of the stream.
//!
//! **Back-pressure.** A direction receives nothing while it waits for room on the other side, so the
//! runtime's bounds per connection hold, and the sender feels how fast the receiver reads.
//!
//! **The end.** On SIGTERM or SIGINT the proxy stops accepting, passes on what it has received, and
//! ends the connections without a clean end, because their messages were not all there.

use std::convert::Infallible;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use futures_util::FutureExt;
use futures_util::future::{Either, select, try_join};
use ringpost::{
    Address, Closed, Connection, ConnectionOptions, Listener, Receiver, RecvError, SendError,
    Sender,
};

use common::engine::EngineFlags;
use common::profile::ProfileFlag;
use common::stop::{self, GRACE, Stop};

mod common {
    pub(crate) mod engine;
    pub(crate) mod profile;
    pub(crate) mod program;
    pub(crate) mod stop;
}

/// Connects each client to another server, and passes messages on both ways.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen: a path, or @name in the abstract namespace
    #[arg(long)]
    listen: Address,
    /// The server to connect to
    #[arg(long)]
    to: Address,
    #[command(flatten)]
    profile: ProfileFlag,
    #[command(flatten)]
    engine: EngineFlags,
    /// Prints at the end what was received and how much of it was copied
    #[arg(long)]
    stats: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    common::program::run("forward", || run(&arguments))
}

fn run(arguments: &Arguments) -> Result<()> {
    let stop = stop::on_signals()?;
    let runtime = arguments.engine.runtime().build()?;
    let options = arguments.profile.connection();
    let engine = runtime.engine();
    runtime.block_on(async {
        let listener = Listener::builder().connection(options).bind(arguments.listen.clone())?;
        println!("ready: {} ({}: {})", arguments.listen, engine.kind, engine.reason);
        serve(listener, &arguments.to, options, stop).await
    })?;
    if arguments.stats {
        let stats = runtime.stats();
        println!("received {} bytes, copied {}", stats.bytes_received, stats.bytes_copied);
    }
    Ok(())
}

/// Accepts until the stop.
async fn serve(
    mut listener: Listener,
    to: &Address,
    options: ConnectionOptions,
    stop: Stop,
) -> Result<()> {
    // Each connection holds a clone of `open`: once the last has gone, `closed` is ready.
    let (open, closed) = ringpost::oneshot::<Infallible>();
    let open = Arc::new(open);
    let mut stopped = stop.clone();
    while let Either::Left((client, _)) = select(pin!(listener.accept()), &mut stopped).await {
        let client = client?;
        let to = to.clone();
        let stop = stop.clone();
        let open = Arc::clone(&open);
        ringpost::spawn(async move {
            forward(client, to, options, stop).await;
            drop(open);
        });
    }
    drop(listener);
    drop(open);
    if ringpost::timeout(GRACE, closed).await.is_err() {
        tracing::warn!("connections cut: their peers did not take their messages in time");
    }
    Ok(())
}

/// Serves one client to its end.
async fn forward(mut client: Connection, to: Address, options: ConnectionOptions, stop: Stop) {
    let mut upstream = match Connection::connect_with(to, options).await {
        Ok(upstream) => upstream,
        Err(error) => {
            tracing::warn!(%error, "client refused");
            client.refuse(&error.to_string());
            return;
        }
    };
    let (client_sender, client_receiver) = client.halves();
    let (upstream_sender, upstream_receiver) = upstream.halves();
    let (client_leaves, server_leaves) =
        (client_sender.peer_going_away(), upstream_sender.peer_going_away());
    let passed = try_join(
        pass_on(client_receiver, client_leaves, upstream_sender, stop.clone()),
        pass_on(upstream_receiver, server_leaves, client_sender, stop),
    )
    .await;
    match passed {
        // Where a clean end was not passed on, dropping the connection is the abort. What was
        // accepted still leaves.
        Ok(_) | Err(End::Abort) => {}
        Err(End::Refused { reason }) => {
            client.refuse(&reason);
            upstream.refuse(&reason);
        }
    }
}

/// Passes messages on until the clean end, which it passes on too. An error ends both directions.
async fn pass_on(
    from: &mut Receiver,
    leaves: impl Future<Output = ()>,
    to: &mut Sender,
    mut stop: Stop,
) -> Result<(), End> {
    let mut leaves = pin!(leaves.fuse());
    loop {
        // The stop and the wish first: a peer that never pauses would keep them waiting.
        let receiving = pin!(from.recv_run());
        let received = select(&mut leaves, receiving);
        let received = match select(&mut stop, received).await {
            Either::Left(_) => return take_gone(to.flush().await),
            Either::Right((Either::Right((received, _)), _)) => received,
            Either::Right((Either::Left(_), _)) => {
                // Plain profiles can't say it, and who has finished need not be asked.
                let _ = to.go_away();
                continue;
            }
        };
        let Some(run) = received? else {
            return take_gone(to.shutdown().await);
        };
        match to.send_run(run).await {
            Ok(()) => {}
            error => return take_gone(error),
        }
    }
}

/// If who should receive is gone, this direction is over; but what it had sent before is still
/// passed on by the other direction, whose end tells how it went.
fn take_gone(result: Result<(), SendError>) -> Result<(), End> {
    match result {
        Ok(()) | Err(SendError::Closed(Closed::Aborted)) => Ok(()),
        Err(error) => Err(End::Refused { reason: error.to_string() }),
    }
}

/// How a connection ends, if not cleanly.
#[derive(Debug)]
enum End {
    /// There is no more to say.
    Abort,
    /// Both sides are to know why.
    Refused { reason: String },
}

impl From<RecvError> for End {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Truncated | RecvError::Closed(Closed::Aborted) => Self::Abort,
            RecvError::Closed(Closed::Rejected { reason }) => Self::Refused { reason },
            error => Self::Refused { reason: error.to_string() },
        }
    }
}
