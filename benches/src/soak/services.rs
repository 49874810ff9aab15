//! What the server does with a connection. Every message is checked; what a client has not announced is a failure.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::poll_fn,
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::{
    AsyncBufReadExt, AsyncReadExt, AsyncWriteExt,
    future::{Either, select},
};
use ringpost::{
    ByteStream, Closed, Connection, Datagram, DatagramSendError, DatagramSender, Message,
    RecvError, SendError, SocketName, sleep, spawn, timeout,
};

use super::{
    census::{Tally, add},
    introduction::{Ending, Introduction, Service},
    stamp::{self, Stamp},
};

/// How long a client that announced that it does not read is served.
const CUT_OFF_AFTER: Duration = Duration::from_millis(700);
/// Publications that a subscriber may be behind.
const LOG_MESSAGES_MAX: usize = 1024;
const PUBLISH_EVERY: Duration = Duration::from_millis(20);
/// Longest publication.
const PUBLICATION_BYTES_MAX: usize = 3000;
/// What the publications are stamped with.
pub(crate) const PUBLICATION_KEY: u64 = 0x5075_626C;
/// Longest wait for a datagram to find room at its receiver.
const REPLY_WAIT_MAX: Duration = Duration::from_secs(20);
/// Before a datagram's stamp: the key, and whether the sender waits for the reply.
pub(crate) const DATAGRAM_HEAD_BYTES: usize = 16;

/// Serves a connection to its end.
pub(crate) async fn serve(
    mut connection: Connection,
    tally: &Rc<Tally>,
    publisher: &Rc<Publisher>,
) -> Result<()> {
    let Ok(Some(first)) = connection.recv().await else {
        // Whoever meant to be served has an introduction, and complains itself if it did not get here.
        add(&tally.strangers, 1);
        return Ok(());
    };
    let introduction: Introduction =
        serde_json::from_slice(&first.into_owned()).context("a connection's introduction")?;
    let session = Session { introduction, connection, tally };
    let (name, ending) = (session.introduction.to_string(), session.introduction.ending);
    let served = match session.introduction.service {
        Service::Echo => session.echo().await,
        Service::Sink => session.sink().await,
        Service::Source { messages, bytes } => session.source(messages, bytes).await,
        Service::Broadcast => session.broadcast(publisher).await,
    };
    match (served, ending) {
        (Ok(()), _) => Ok(()),
        (Err(Trouble::Recv(error)), Ending::Vanishing) if is_end(&error) => Ok(()),
        (Err(Trouble::Send(SendError::Closed(Closed::Aborted))), Ending::Vanishing) => Ok(()),
        (Err(Trouble::Recv(RecvError::Protocol { .. })), Ending::Garbage) => Ok(()),
        (Err(Trouble::CutOff), Ending::CutOff) => {
            add(&tally.cut_off, 1);
            Ok(())
        }
        (Err(trouble), _) => Err(anyhow!("{name}: {trouble}")),
    }
}

/// What a client that vanishes leaves.
fn is_end(error: &RecvError) -> bool {
    matches!(error, RecvError::Truncated | RecvError::Closed(Closed::Aborted))
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("receiving: {0}")]
    Recv(#[from] RecvError),
    #[error("sending: {0}")]
    Send(#[from] SendError),
    #[error("the deadline for a client that does not read struck")]
    CutOff,
    #[error("{0:#}")]
    Wrong(anyhow::Error),
}

struct Session<'a> {
    introduction: Introduction,
    connection: Connection,
    tally: &'a Tally,
}

impl Session<'_> {
    fn check(&self, stamp: &mut Stamp, message: &Message) -> Result<(), Trouble> {
        stamp.check(message.len(), message.chunks()).map_err(Trouble::Wrong)?;
        self.tally.received();
        Ok(())
    }

    async fn echo(mut self) -> Result<(), Trouble> {
        let mut stamp = Stamp::new(self.introduction.up());
        while let Some(message) = self.connection.recv().await? {
            self.check(&mut stamp, &message)?;
            for (index, descriptor) in message.descriptors().iter().enumerate() {
                check_descriptor(self.introduction.key, stamp.next() - 1, index, descriptor)
                    .map_err(Trouble::Wrong)?;
            }
            self.connection.send_message(message).await?;
        }
        Ok(self.connection.shutdown().await?)
    }

    async fn sink(mut self) -> Result<(), Trouble> {
        let mut stamp = Stamp::new(self.introduction.up());
        while let Some(message) = self.connection.recv().await? {
            self.check(&mut stamp, &message)?;
        }
        let total = stamp.next().to_le_bytes();
        self.connection.send(&total).await?;
        Ok(self.connection.shutdown().await?)
    }

    async fn source(mut self, messages: u64, bytes: usize) -> Result<(), Trouble> {
        let down = self.introduction.down();
        let cut_off = self.introduction.ending == Ending::CutOff;
        let sending = async {
            let mut random = fastrand::Rng::with_seed(down);
            let mut stamp = Stamp::new(down);
            while stamp.next() < messages {
                let len = random.usize(stamp::HEAD_BYTES..=bytes.max(stamp::HEAD_BYTES));
                self.connection.send_with(len, |body| stamp.fill(body)).await?;
                stamp.advance();
            }
            self.connection.shutdown().await
        };
        if cut_off {
            match timeout(CUT_OFF_AFTER, sending).await {
                Ok(sent) => sent?,
                Err(_) => return Err(Trouble::CutOff),
            }
        } else {
            sending.await?;
        }
        self.expect_end().await
    }

    async fn broadcast(mut self, publisher: &Publisher) -> Result<(), Trouble> {
        let mut next = publisher.next();
        let (sender, receiver) = self.connection.halves();
        loop {
            let ended = {
                let (leaving, published) = (pin!(receiver.recv()), pin!(publisher.wait(next)));
                match select(leaving, published).await {
                    Either::Left((end, _)) => Some(end?),
                    Either::Right(((), _)) => None,
                }
            };
            match ended {
                Some(None) => break,
                Some(Some(_)) => {
                    return Err(Trouble::Wrong(anyhow!("a subscriber sent a message")));
                }
                None => {}
            }
            let Some(publication) = publisher.get(next) else {
                let error = anyhow!("a subscriber is more than {LOG_MESSAGES_MAX} messages behind");
                return Err(Trouble::Wrong(error));
            };
            sender.send_bytes(publication).await?;
            next += 1;
        }
        Ok(self.connection.shutdown().await?)
    }

    async fn expect_end(&mut self) -> Result<(), Trouble> {
        match self.connection.recv().await? {
            None => Ok(()),
            Some(_) => Err(Trouble::Wrong(anyhow!("a message where the end was expected"))),
        }
    }
}

/// What descriptor number `index` of message `number` holds.
pub(crate) fn descriptor_content(key: u64, number: u64, index: usize) -> [u8; 64] {
    let mut content = [0; 64];
    stamp::pattern(stamp::mix(key ^ number), 64 * index as u64, &mut content);
    content
}

/// Checks that a descriptor is the one that belongs there.
pub(crate) fn check_descriptor(
    key: u64,
    number: u64,
    index: usize,
    descriptor: &OwnedFd,
) -> Result<()> {
    let mut found = [0; 65];
    let len = rustix::io::pread(descriptor, &mut found, 0)
        .with_context(|| format!("reading descriptor {index} of message {number}"))?;
    ensure!(
        found[..len] == descriptor_content(key, number, index),
        "descriptor {index} of message {number} is not the one that was sent"
    );
    Ok(())
}

/// Publishes a message every now and then.
#[derive(Debug)]
pub(crate) struct Publisher {
    log: RefCell<VecDeque<Bytes>>,
    next: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Publisher {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { log: RefCell::default(), next: Cell::new(0), waiting: RefCell::default() })
    }

    pub(crate) async fn publish(self: &Rc<Self>) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(PUBLICATION_KEY);
        let mut stamp = Stamp::new(PUBLICATION_KEY);
        loop {
            // The log is full from the start, so that its memory does not grow later.
            if stamp.next() >= LOG_MESSAGES_MAX as u64 {
                sleep(PUBLISH_EVERY).await;
            }
            let len = random.usize(stamp::HEAD_BYTES..=PUBLICATION_BYTES_MAX);
            let mut log = self.log.borrow_mut();
            if log.len() == LOG_MESSAGES_MAX {
                log.pop_front();
            }
            log.push_back(stamp.make(len).into());
            drop(log);
            self.next.set(stamp.next());
            let waiting = self.waiting.take();
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    fn next(&self) -> u64 {
        self.next.get()
    }

    /// Waits until publication `number` is there.
    async fn wait(&self, number: u64) {
        poll_fn(|context| {
            if number < self.next.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    fn get(&self, number: u64) -> Option<Bytes> {
        let log = self.log.borrow();
        let behind = usize::try_from(self.next.get() - number).ok()?;
        log.get(log.len().checked_sub(behind)?).cloned()
    }
}

/// Sends every byte back until the peer has ended. The first line is the introduction.
pub(crate) async fn bytes(mut stream: ByteStream, tally: &Tally) -> Result<()> {
    let mut line = Vec::new();
    let read = (&mut stream).take(INTRODUCTION_BYTES_MAX).read_until(b'\n', &mut line).await;
    if read.is_err() || line.last() != Some(&b'\n') {
        add(&tally.strangers, 1);
        return Ok(());
    }
    let introduction: Introduction = serde_json::from_slice(&line).context("its introduction")?;
    let mut position = 0;
    let echoed: Result<()> = async {
        let mut expected = Vec::new();
        loop {
            let arrived = stream.fill_buf().await?;
            let len = arrived.len();
            if len == 0 {
                break;
            }
            expected.resize(len, 0);
            stamp::pattern(introduction.up(), position, &mut expected);
            ensure!(arrived == expected, "other bytes than were sent");
            stream.consume_unpin(len);
            position += len as u64;
            tally.received();
            stream.write_all(&expected).await?;
        }
        Ok(stream.close().await?)
    }
    .await;
    let vanished = |error: &anyhow::Error| {
        error.downcast_ref::<std::io::Error>().is_some_and(|error| {
            use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
            matches!(error.kind(), ConnectionReset | BrokenPipe)
        })
    };
    match echoed {
        Err(error) if !(introduction.ending == Ending::Vanishing && vanished(&error)) => {
            bail!("{introduction}, byte {position}: {error:#}")
        }
        _ => Ok(()),
    }
}

/// Longest introduction of a byte stream.
const INTRODUCTION_BYTES_MAX: u64 = 1024;

/// Sends every datagram back to where it came from.
pub(crate) async fn datagrams(socket: Datagram, tally: &Rc<Tally>) -> Result<()> {
    let (sender, mut receiver) = socket.split();
    let waiting = WaitingReplies::default();
    loop {
        let packet = receiver.recv().await.context("datagrams")?;
        let to = *packet.sender_name();
        let message = packet.into_message();
        let bytes = message.into_owned();
        let field = |at: usize| stamp::number_of(bytes.get(at..).unwrap_or_default());
        let (Some(key), Some(leaves), Some(number)) =
            (field(0), field(8), field(DATAGRAM_HEAD_BYTES))
        else {
            bail!("a datagram of {} bytes from {to:?}", bytes.len());
        };
        let mut stamp = Stamp::starting_at(key, number);
        stamp
            .check(
                bytes.len() - DATAGRAM_HEAD_BYTES,
                std::iter::once(&bytes[DATAGRAM_HEAD_BYTES..]),
            )
            .with_context(|| format!("a datagram from {to:?}"))?;
        tally.received();
        waiting.answer(&sender, Reply { to, bytes, leaves })?;
    }
}

/// A datagram on its way back.
struct Reply {
    to: SocketName,
    bytes: Vec<u8>,
    leaves: u64,
}

impl Reply {
    /// A receiver that said that it leaves may be gone.
    fn check(&self, sent: Result<(), DatagramSendError>) -> Result<()> {
        match sent {
            Err(DatagramSendError::Gone { .. }) if self.leaves != 0 => Ok(()),
            sent => sent.context("the reply to a datagram"),
        }
    }
}

/// Replies for which there was no room at once, by receiver: one that is full holds up its own alone, and a reply that
/// comes while an earlier one waits must not overtake it.
#[derive(Clone, Default)]
struct WaitingReplies {
    by_receiver: Rc<RefCell<HashMap<SocketName, VecDeque<Reply>>>>,
}

impl WaitingReplies {
    fn answer(&self, sender: &DatagramSender, reply: Reply) -> Result<()> {
        if let Some(earlier) = self.by_receiver.borrow_mut().get_mut(&reply.to) {
            // As many as the client has in flight at most.
            earlier.push_back(reply);
            return Ok(());
        }
        match sender.try_send_to(reply.to, &reply.bytes) {
            Err(DatagramSendError::Full { .. }) => {
                let (to, own, sender) = (reply.to, self.clone(), sender.clone());
                self.by_receiver.borrow_mut().insert(to, VecDeque::from([reply]));
                spawn(async move {
                    own.send(&sender, to).await.unwrap_or_else(|error| super::census::fail(&error));
                });
                Ok(())
            }
            sent => reply.check(sent),
        }
    }

    /// Sends what waits for this receiver, in order, until nothing does.
    async fn send(&self, sender: &DatagramSender, to: SocketName) -> Result<()> {
        while let Some(reply) = self.next(to) {
            let sent = timeout(REPLY_WAIT_MAX, sender.send_to(to, &reply.bytes)).await?;
            reply.check(sent)?;
        }
        Ok(())
    }

    /// What is to be sent next; with nothing left the next reply is sent at once again.
    fn next(&self, to: SocketName) -> Option<Reply> {
        let mut by_receiver = self.by_receiver.borrow_mut();
        let reply = by_receiver.get_mut(&to)?.pop_front();
        if reply.is_none() {
            by_receiver.remove(&to);
        }
        reply
    }
}
