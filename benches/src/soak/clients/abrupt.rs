//! Clients that come and go, drop futures, and are killed.

use std::{rc::Rc, thread, time::Duration};

use anyhow::{Context, Result};
use ringpost::{Connection, timeout};
use rustix::process::{Signal, getpid, kill_process};

use super::{Client, Session, join};
use crate::soak::{
    census::fail,
    introduction::{Ending, Service},
    server::socket,
};

const CHURNING: usize = 4;
const IMPATIENT_CONNECTIONS: usize = 3;
const IMPATIENT_DEPTH: u64 = 24;
const CRASH_CONNECTIONS: usize = 4;
/// Longest life of a client that is to be killed, milliseconds.
const LIFE_MS_MAX: u64 = 250;

pub(super) async fn churn(client: &Rc<Client>) {
    let tasks = (0..CHURNING).map(|_| {
        let own = Rc::clone(client);
        client.spawn("churn", async move {
            while !own.stopping() {
                visit(&own).await?;
                own.pause(Duration::from_millis(5), Duration::from_millis(40)).await;
            }
            Ok(())
        })
    });
    join(tasks.collect()).await;
}

/// A short connection that ends in one of the ways that there are.
async fn visit(client: &Rc<Client>) -> Result<()> {
    let way = client.below(6);
    let ending = if way < 2 { Ending::Vanishing } else { Ending::Clean };
    let mut session = client.connect(Service::Echo, ending).await?;
    for _ in 0..client.below(6) {
        session.send(client.between(16, 9000)).await?;
        // Else it stays on its way, to be taken after the end of this direction.
        if client.below(2) == 0 {
            session.expect_echo().await?;
        }
    }
    match way {
        // Dropped with whatever is queued, here and there.
        0 => Ok(()),
        // Dropped with unread echoes.
        1 => session.connection.flush().await.with_context(|| session.trouble("flushing")),
        _ => session.finish().await,
    }
}

pub(super) async fn impatient(client: &Rc<Client>) {
    let mut tasks = Vec::new();
    for _ in 0..IMPATIENT_CONNECTIONS {
        let own = Rc::clone(client);
        tasks.push(client.spawn("dropped futures", async move {
            let mut session = own.connect(Service::Echo, Ending::Clean).await?;
            while !own.stopping() {
                impatiently(&own, &mut session).await?;
                own.pause(Duration::ZERO, Duration::from_millis(3)).await;
            }
            session.finish().await
        }));
    }
    let own = Rc::clone(client);
    tasks.push(client.spawn("dropped connects", async move {
        while !own.stopping() {
            let limit = Duration::from_micros(own.below(300));
            let connecting = Connection::connect(own.path(socket::STREAMS));
            if let Ok(connected) = timeout(limit, connecting).await {
                connected?;
            }
            own.pause(Duration::from_millis(10), Duration::from_millis(60)).await;
        }
        Ok(())
    }));
    join(tasks).await;
}

/// Sends and receives with futures that are dropped after a moment. Nothing may be lost or doubled.
async fn impatiently(client: &Client, session: &mut Session) -> Result<()> {
    let moment = || Duration::from_micros(client.below(120));
    if session.in_flight() < IMPATIENT_DEPTH {
        let len = client.between(16, 40_000);
        // Dropped before it was ready: nothing has been accepted.
        if let Ok(sent) = timeout(moment(), session.send(len)).await {
            sent?;
        }
    }
    if client.below(4) == 0
        && let Ok(flushed) = timeout(moment(), session.connection.flush()).await
    {
        flushed.with_context(|| session.trouble("flushing"))?;
    }
    for _ in 0..client.below(4) {
        if session.in_flight() > 0
            && let Ok(echo) = timeout(moment(), session.expect_echo()).await
        {
            echo?;
        }
    }
    if session.in_flight() >= IMPATIENT_DEPTH {
        session.expect_echo().await?;
    }
    Ok(())
}

/// Drives all kinds of traffic until it is killed, wherever that finds it.
pub(super) async fn crash(client: &Rc<Client>) {
    let life = Duration::from_micros(client.below(LIFE_MS_MAX * 1000));
    let killer = thread::Builder::new().name("killer".into()).spawn(move || {
        thread::sleep(life);
        let killed = kill_process(getpid(), Signal::KILL);
        fail(&anyhow::anyhow!("still alive after {killed:?}"));
    });
    if let Err(error) = killer {
        fail(&error.into());
    }
    let tasks = (0..CRASH_CONNECTIONS).map(|index| {
        let own = Rc::clone(client);
        client.spawn("until it is killed", async move {
            let service = match index {
                0 => Service::Sink,
                1 => Service::Source { messages: u64::MAX, bytes: 20_000 },
                _ => Service::Echo,
            };
            let mut session = own.connect(service, Ending::Vanishing).await?;
            loop {
                match service {
                    Service::Sink => session.send(own.between(16, 400_000)).await?,
                    Service::Source { .. } => super::readers::take_one(&mut session).await?,
                    _ => {
                        while session.in_flight() < 16 {
                            session.send(own.between(16, 30_000)).await?;
                        }
                        session.expect_echo().await?;
                    }
                }
                if own.below(4) == 0 {
                    own.pause(Duration::from_micros(200), Duration::from_millis(2)).await;
                }
            }
        })
    });
    join(tasks.collect()).await;
}
