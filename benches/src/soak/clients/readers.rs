//! Clients that read slowly, or not at all.

use std::{rc::Rc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use ringpost::{Closed, RecvError, sleep, timeout};

use super::{Client, Session, join};
use crate::soak::{
    introduction::{Ending, Service},
    services::PUBLICATION_KEY,
    stamp::{self, Stamp},
};

const SLOW_READERS: usize = 2;
const SUBSCRIBERS: usize = 3;
const MUTES: usize = 2;
const SLOW_MESSAGES: u64 = 300;
/// More than the sockets and all queues between the server and its client hold.
const MUTE_MESSAGES: u64 = 1_000_000;
/// Longest time without a publication before a subscriber looks whether it is to stop.
const PUBLICATION_WAIT: Duration = Duration::from_millis(300);

pub(super) async fn slow(client: &Rc<Client>) {
    let mut tasks = Vec::new();
    for _ in 0..SLOW_READERS {
        let own = Rc::clone(client);
        tasks.push(client.spawn("a slow reader", async move {
            while !own.stopping() {
                read_slowly(&own).await?;
            }
            Ok(())
        }));
    }
    for rests in 0..SUBSCRIBERS {
        let own = Rc::clone(client);
        tasks.push(client.spawn("a subscriber", async move { subscribe(&own, rests == 0).await }));
    }
    join(tasks).await;
}

async fn read_slowly(client: &Rc<Client>) -> Result<()> {
    let service = Service::Source { messages: SLOW_MESSAGES, bytes: 12_000 };
    let mut session = client.connect(service, Ending::Clean).await?;
    for _ in 0..SLOW_MESSAGES {
        take_one(&mut session).await?;
        if !client.stopping() {
            client.pause(Duration::from_millis(1), Duration::from_millis(8)).await;
        }
    }
    session.expect_end().await?;
    session.finish_sending().await
}

async fn subscribe(client: &Rc<Client>, rests: bool) -> Result<()> {
    let mut session = client.connect(Service::Broadcast, Ending::Clean).await?;
    let mut publications: Option<Stamp> = None;
    let mut stopping = false;
    loop {
        if client.stopping() && !stopping {
            stopping = true;
            session.connection.shutdown().await.with_context(|| session.trouble("ending"))?;
        }
        let Ok(received) = timeout(PUBLICATION_WAIT, session.connection.recv()).await else {
            continue;
        };
        let received = received.with_context(|| session.trouble("a publication"))?;
        let Some(message) = received else {
            ensure!(stopping, session.trouble("an end of the publications"));
            return Ok(());
        };
        let head: Vec<u8> = message.chunks().flatten().take(stamp::HEAD_BYTES).copied().collect();
        let number = stamp::number_of(&head).with_context(|| session.trouble("no publication"))?;
        let stamp = publications.get_or_insert_with(|| Stamp::starting_at(PUBLICATION_KEY, number));
        stamp
            .check(message.len(), message.chunks())
            .with_context(|| session.trouble("a publication"))?;
        client.tally.received();
        if rests && !stopping {
            client.pause(Duration::from_millis(1), Duration::from_millis(30)).await;
        }
    }
}

/// The next message of a source.
pub(super) async fn take_one(session: &mut Session) -> Result<()> {
    let received = session.connection.recv().await;
    let received = received.with_context(|| session.trouble("waiting for the source"))?;
    let message = received.with_context(|| session.trouble("an end instead of a message"))?;
    let checked = session.received.check(message.len(), message.chunks());
    checked.with_context(|| session.trouble("a wrong message"))?;
    session.client.tally.received();
    Ok(())
}

impl Session {
    async fn finish_sending(mut self) -> Result<()> {
        self.connection.shutdown().await.with_context(|| self.trouble("ending"))
    }
}

pub(super) async fn mute(client: &Rc<Client>) {
    let tasks = (0..MUTES).map(|_| {
        let own = Rc::clone(client);
        client.spawn("a mute reader", async move {
            while !own.stopping() {
                be_cut_off(&own).await?;
            }
            Ok(())
        })
    });
    join(tasks.collect()).await;
}

/// Reads nothing for a while, and then what came before the server had enough of it.
async fn be_cut_off(client: &Rc<Client>) -> Result<()> {
    let service = Service::Source { messages: MUTE_MESSAGES, bytes: 8000 };
    let mut session = client.connect(service, Ending::CutOff).await?;
    sleep(Duration::from_millis(400 + client.below(1200))).await;
    loop {
        match session.connection.recv().await {
            Ok(Some(message)) => {
                let checked = session.received.check(message.len(), message.chunks());
                checked.with_context(|| session.trouble("a wrong message"))?;
                client.tally.received();
            }
            Err(RecvError::Truncated | RecvError::Closed(Closed::Aborted)) => return Ok(()),
            Ok(None) => bail!(session.trouble("a clean end where it had to be cut off")),
            Err(error) => bail!(session.trouble(&error.to_string())),
        }
    }
}
