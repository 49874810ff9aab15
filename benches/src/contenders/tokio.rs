//! tokio's current-thread runtime and the length codec of tokio-util, as their documentation
//! teaches: a task per connection, `next` to receive, `feed` for each message and one `flush` when
//! nothing more has arrived, so that replies leave in batches.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::{Builder, Runtime},
    task::JoinSet,
};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::{BUFFER_BYTES, Client, Contender, Server, buffer_bytes, unless_closed};
use crate::{
    meter::Recorder,
    payload::Inspector,
    scenario::{Scenario, Workload},
    traffic::{Exchange, OneWaySender},
};

#[derive(Debug)]
pub(super) struct Tokio;

impl Contender for Tokio {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn about(&self) -> &'static str {
        "tokio current_thread and LengthDelimitedCodec, feed and flush"
    }

    fn scenarios(&self) -> &'static [Scenario] {
        &Scenario::STREAMS
    }

    fn serve(&self, server: &Server) -> Result<()> {
        let workload = server.workload;
        runtime()?.block_on(async {
            let listener = UnixListener::bind(&server.path).context("bind")?;
            server.ready()?;
            let mut tasks = JoinSet::new();
            for _ in 0..workload.connections {
                let (stream, _) = listener.accept().await.context("accept")?;
                let connection = answer(framed(stream, &workload), server.inspector());
                tasks.spawn(async { unless_closed(connection.await) });
            }
            join(tasks).await
        })
    }

    fn drive(&self, client: &Client) -> Result<()> {
        let workload = client.workload;
        let length = workload.bytes;
        runtime()?.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..workload.connections {
                let stream = UnixStream::connect(client.path()).await.context("connect")?;
                let framed = framed(stream, &workload);
                if workload.is_one_way() {
                    tasks.spawn(send(framed, client.sender(), length));
                } else {
                    let (exchange, recorder) = (client.exchange(), client.recorder());
                    tasks.spawn(ask(framed, exchange, recorder, length, client.depth()));
                }
            }
            join(tasks).await
        })
    }
}

type Connection = Framed<UnixStream, LengthDelimitedCodec>;

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("tokio's runtime")
}

fn framed(stream: UnixStream, workload: &Workload) -> Connection {
    let codec =
        LengthDelimitedCodec::builder().little_endian().length_field_type::<u32>().new_codec();
    let mut framed = Framed::with_capacity(stream, codec, buffer_bytes(workload));
    framed.set_backpressure_boundary(BUFFER_BYTES);
    framed
}

/// The codec encodes more than one type, so `Framed` alone does not say which sink is meant.
async fn flush(framed: &mut Connection) -> std::io::Result<()> {
    SinkExt::<Bytes>::flush(framed).await
}

/// The first failure of the tasks, if there is one.
async fn join(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(joined) = tasks.join_next().await {
        joined.context("a task panicked")??;
    }
    Ok(())
}

/// Serves one connection.
async fn answer(mut framed: Connection, mut inspector: Inspector) -> Result<()> {
    while let Some(mut frame) = framed.next().await {
        loop {
            let payload = frame.context("receive")?;
            if inspector.inspect(&payload)? {
                framed.feed(payload.freeze()).await.context("send")?;
            }
            match framed.next().now_or_never() {
                Some(Some(next)) => frame = next,
                Some(None) | None => break,
            }
        }
        flush(&mut framed).await.context("flush")?;
    }
    Ok(())
}

/// Keeps the requests of one connection in flight.
async fn ask(
    mut framed: Connection,
    mut exchange: Exchange,
    mut recorder: Recorder,
    length: usize,
    depth: usize,
) -> Result<()> {
    let mut now = Instant::now();
    let mut memory = BytesMut::new();
    let mut request = |exchange: &mut Exchange, now| {
        let mut payload = cut(&mut memory, length, REQUESTS_BYTES);
        exchange.request(now, &mut payload);
        payload.freeze()
    };
    for _ in 0..depth {
        framed.feed(request(&mut exchange, now)).await.context("send")?;
    }
    while recorder.turn(now) {
        flush(&mut framed).await.context("flush")?;
        let mut frame = framed.next().await;
        now = Instant::now();
        loop {
            let Some(payload) = frame else { bail!("the server has closed") };
            exchange.reply(now, &payload.context("receive")?, &mut recorder)?;
            framed.feed(request(&mut exchange, now)).await.context("send")?;
            match framed.next().now_or_never() {
                Some(next) => frame = next,
                None => break,
            }
        }
    }
    recorder.finish();
    Ok(())
}

/// Memory for one message, without an allocation for each.
fn cut(memory: &mut BytesMut, length: usize, at_once: usize) -> BytesMut {
    if memory.len() < length {
        *memory = BytesMut::zeroed(at_once.max(length));
    }
    memory.split_to(length)
}

/// What the requests of one connection are cut from: small, so that those of many stay in the cache.
const REQUESTS_BYTES: usize = 4096;

/// Sends one way.
async fn send(mut framed: Connection, mut sender: OneWaySender, length: usize) -> Result<()> {
    let mut source = Source { length, memory: BytesMut::new(), large: None };
    while sender.is_open() {
        while sender.has_time() {
            for _ in 0..(BUFFER_BYTES / length).max(1) {
                framed.feed(source.message(&mut sender)).await.context("send")?;
            }
        }
        let mut payload = BytesMut::zeroed(length);
        sender.fill_last(&mut payload);
        framed.send(payload.freeze()).await.context("send")?;
        match framed.next().await {
            Some(payload) => sender.acknowledged(&payload.context("receive")?)?,
            None => bail!("the receiver has closed"),
        }
    }
    sender.finish();
    Ok(())
}

/// Makes messages without an allocation for each.
#[derive(Debug)]
struct Source {
    length: usize,
    /// What small messages are cut from.
    memory: BytesMut,
    /// The large message before.
    large: Option<Bytes>,
}

impl Source {
    fn message(&mut self, sender: &mut OneWaySender) -> Bytes {
        if self.length >= BUFFER_BYTES {
            return self.large_message(sender);
        }
        let mut payload = cut(&mut self.memory, self.length, BUFFER_BYTES);
        sender.fill(&mut payload);
        payload.freeze()
    }

    /// Sends from where it lies: the codec has copied the message before and let go of it, so that
    /// its memory may be written again.
    fn large_message(&mut self, sender: &mut OneWaySender) -> Bytes {
        let reused = self.large.take().and_then(|message| message.try_into_mut().ok());
        let payload = if let Some(mut payload) = reused {
            sender.stamp(&mut payload);
            payload
        } else {
            let mut payload = BytesMut::zeroed(self.length);
            sender.fill(&mut payload);
            payload
        };
        self.large.insert(payload.freeze()).clone()
    }
}
