//! The server: a listener for each kind of connection, a datagram socket, and an end on SIGTERM.

use std::{pin::pin, rc::Rc, thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::future::{Either, select, try_join3, try_join4};
use ringpost::{ConnectionOptions, Datagram, Listener, Runtime, spawn};
use signal_hook::{consts::SIGTERM, iterator::Signals};

use super::{
    census::{self, Tally, fail},
    order::{Order, Said},
    services::{self, Publisher},
};

/// Names of the sockets.
pub(crate) mod socket {
    pub(crate) const STREAMS: &str = "streams.sock";
    pub(crate) const DESCRIPTORS: &str = "descriptors.sock";
    pub(crate) const PACKETS: &str = "packets.sock";
    pub(crate) const BYTES: &str = "bytes.sock";
    pub(crate) const DATAGRAMS: &str = "datagrams.sock";
}

/// Most descriptors of a message.
pub(crate) const DESCRIPTORS_MAX: u8 = 4;
/// Receive memory: little, so that it runs low now and then, and is all touched soon.
const POOL_BYTES: usize = 2 << 20;
/// Before the state without any load is taken.
const SETTLE: Duration = Duration::from_millis(100);
/// How long what was accepted for a dropped connection may still wait to be sent.
const LINGER: Duration = Duration::from_millis(500);

/// What connections to the socket for descriptors are made with, on both sides.
pub(crate) fn with_descriptors() -> ConnectionOptions {
    ConnectionOptions::new().descriptors_max(DESCRIPTORS_MAX)
}

pub(crate) fn run(order: &Order) -> Result<()> {
    let mut signals = Signals::new([SIGTERM]).context("signal handler")?;
    let (end, ended) = ringpost::oneshot();
    thread::Builder::new().name("signals".into()).spawn(move || {
        signals.forever().next();
        // Fails if the server has ended already.
        let _ = end.send(());
    })?;
    let runtime = Runtime::builder()
        .engine(order.engine.choice())
        .pool_bytes(POOL_BYTES)
        .linger(LINGER)
        .build()?;
    let tally = Tally::new();
    census::listen(runtime.handle(), &tally)?;
    runtime.block_on(async {
        let serving = pin!(Server::bind(order)?.serve(&tally));
        let lasting = pin!(async {
            // What the server does without any load is under way before the state is taken.
            ringpost::sleep(SETTLE).await;
            census::say(&Said::Ready(Box::new(tally.census()?)))?;
            // Fails if the signals' thread is gone, which is an end as well.
            let _ = ended.await;
            anyhow::Ok(())
        });
        match select(lasting, serving).await {
            Either::Left((result, _)) => result?,
            Either::Right((result, _)) => result?,
        }
        let left = tally.connections_open.get();
        ensure!(left == 0, "told to end with {left} connections open");
        Ok(())
    })
}

struct Server {
    streams: Listener,
    descriptors: Listener,
    packets: Listener,
    bytes: Listener,
    datagrams: Datagram,
}

impl Server {
    fn bind(order: &Order) -> Result<Self> {
        let path = |name: &str| order.directory.join(name);
        let listen = |name, options| Listener::builder().connection(options).bind(path(name));
        Ok(Self {
            streams: listen(socket::STREAMS, ConnectionOptions::new())?,
            descriptors: listen(socket::DESCRIPTORS, with_descriptors())?,
            packets: listen(socket::PACKETS, ConnectionOptions::new().seqpacket())?,
            bytes: listen(socket::BYTES, ConnectionOptions::new())?,
            datagrams: Datagram::bind(path(socket::DATAGRAMS))?,
        })
    }

    /// Serves until it is dropped.
    async fn serve(self, tally: &Rc<Tally>) -> Result<()> {
        let Self { streams, descriptors, packets, bytes, datagrams } = self;
        let publisher = Publisher::new();
        let publishing = publisher.publish();
        let streams = accept(streams, tally, &publisher);
        let descriptors = accept(descriptors, tally, &publisher);
        let packets = accept(packets, tally, &publisher);
        let bytes = accept_bytes(bytes, tally);
        let datagrams = services::datagrams(datagrams, tally);
        // None of them ends by itself but with an error.
        let accepting = try_join3(streams, descriptors, packets);
        try_join4(accepting, bytes, datagrams, publishing).await?;
        Ok(())
    }
}

async fn accept(
    mut listener: Listener,
    tally: &Rc<Tally>,
    publisher: &Rc<Publisher>,
) -> Result<()> {
    loop {
        let connection = listener.accept().await?;
        let (tally, publisher) = (Rc::clone(tally), Rc::clone(publisher));
        spawn(async move {
            let open = tally.open();
            if let Err(error) = services::serve(connection, &tally, &publisher).await {
                fail(&error);
            }
            drop(open);
        });
    }
}

async fn accept_bytes(mut listener: Listener, tally: &Rc<Tally>) -> Result<()> {
    loop {
        let stream = listener.accept_stream().await?;
        let tally = Rc::clone(tally);
        spawn(async move {
            let open = tally.open();
            if let Err(error) = services::bytes(stream, &tally).await {
                fail(&anyhow!("a byte stream: {error:#}"));
            }
            drop(open);
        });
    }
}
