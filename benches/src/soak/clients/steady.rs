//! Clients that keep their connections.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use super::{Client, join};
use crate::soak::{
    census::fail,
    introduction::{Ending, Service},
};

const PINGPONG_CONNECTIONS: usize = 4;
const PIPELINE_CONNECTIONS: usize = 8;
const PIPELINE_DEPTH: u64 = 32;
const BULK_CONNECTIONS: usize = 2;
const BULK_BYTES_MAX: usize = 300 << 10;
pub(super) const IDLE_CONNECTIONS: usize = 200;
const IDLE_BYTES_MAX: usize = 5000;
/// Messages into the sink before it is asked how many came.
const SINK_MESSAGES: u64 = 40;

pub(super) async fn pingpong(client: &Rc<Client>) {
    let tasks = (0..PINGPONG_CONNECTIONS).map(|_| {
        let own = Rc::clone(client);
        client.spawn("a ping-pong", async move {
            let mut session = own.connect(Service::Echo, Ending::Clean).await?;
            while !own.stopping() {
                let start = Instant::now();
                session.send(own.between(16, 200)).await?;
                session.expect_echo().await?;
                own.tally.round_trip(start.elapsed());
                own.pause(Duration::from_millis(1), Duration::from_millis(4)).await;
            }
            session.finish().await
        })
    });
    join(tasks.collect()).await;
}

pub(super) async fn pipeline(client: &Rc<Client>) {
    let tasks = (0..PIPELINE_CONNECTIONS).map(|_| {
        let own = Rc::clone(client);
        client.spawn("a pipeline", async move {
            let mut session = own.connect(Service::Echo, Ending::Clean).await?;
            while !own.stopping() {
                for _ in 0..own.between(50, 200) {
                    while session.in_flight() < PIPELINE_DEPTH {
                        session.send(own.between(16, 600)).await?;
                    }
                    session.expect_echo().await?;
                }
                own.pause(Duration::from_millis(5), Duration::from_millis(20)).await;
            }
            session.finish().await
        })
    });
    join(tasks.collect()).await;
}

pub(super) async fn bulk(client: &Rc<Client>) {
    let mut tasks = Vec::new();
    for _ in 0..BULK_CONNECTIONS {
        let own = Rc::clone(client);
        tasks.push(client.spawn("an echo of long messages", async move {
            let mut session = own.connect(Service::Echo, Ending::Clean).await?;
            while !own.stopping() {
                // Sending and receiving at once: both queues may be full.
                for _ in 0..own.between(1, 3) {
                    let body = Bytes::from(session.sent.make(own.between(1000, BULK_BYTES_MAX)));
                    session
                        .connection
                        .send_bytes(body)
                        .await
                        .with_context(|| session.trouble("sending"))?;
                }
                while session.in_flight() > 0 {
                    session.expect_echo().await?;
                }
                own.pause(Duration::from_millis(5), Duration::from_millis(30)).await;
            }
            session.finish().await
        }));
        let own = Rc::clone(client);
        tasks.push(client.spawn("the sink", async move {
            while !own.stopping() {
                sink(&own).await?;
            }
            Ok(())
        }));
    }
    join(tasks).await;
}

/// Sends one way, and is told how many messages came.
async fn sink(client: &Rc<Client>) -> Result<()> {
    let mut session = client.connect(Service::Sink, Ending::Clean).await?;
    for _ in 0..client.below(SINK_MESSAGES) {
        session.send(client.between(16, BULK_BYTES_MAX)).await?;
        if client.below(8) == 0 {
            client.pause(Duration::from_millis(5), Duration::from_millis(20)).await;
        }
    }
    let sent = session.sent.next();
    session.connection.shutdown().await.with_context(|| session.trouble("ending"))?;
    let total = session.connection.recv().await.with_context(|| session.trouble("the total"))?;
    let total = total.with_context(|| session.trouble("no total"))?;
    ensure!(
        total.into_owned() == sent.to_le_bytes(),
        session.trouble("another number of messages arrived than were sent")
    );
    client.tally.received();
    session.expect_end().await
}

pub(super) async fn idle(client: &Rc<Client>) {
    let mut sessions = Vec::new();
    let result: Result<()> = async {
        for _ in 0..IDLE_CONNECTIONS {
            sessions.push(client.connect(Service::Echo, Ending::Clean).await?);
        }
        // What a connection keeps from its first message on is there before the soak is warm.
        for session in &mut sessions {
            session.send(IDLE_BYTES_MAX).await?;
            session.expect_echo().await?;
        }
        while !client.stopping() {
            let chosen = client.between(0, IDLE_CONNECTIONS - 1);
            let session = &mut sessions[chosen];
            session.send(client.between(16, IDLE_BYTES_MAX)).await?;
            session.expect_echo().await?;
            client.pause(Duration::from_millis(10), Duration::from_millis(100)).await;
        }
        for session in sessions {
            session.finish().await?;
        }
        Ok(())
    }
    .await;
    result.unwrap_or_else(|error| fail(&error.context("client idle")));
}
