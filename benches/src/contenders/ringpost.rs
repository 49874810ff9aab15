//! ringpost itself: on io_uring, on epoll, and on io_uring over TCP loopback, used the way its
//! documentation teaches: a task per connection, batches received in place, replies queued and sent
//! together at the end of the turn.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    rc::Rc,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use ringpost::{
    Batch, ByteOrder, Closed, Connection, ConnectionOptions, EngineChoice, LengthPrefix, Listener,
    PrefixWidth, Receiver, RecvError, Runtime, SendBatch, SendError, Sender, Spin,
};

use super::{Client, Contender, Server, ringpost_datagrams};
use crate::{
    meter::Recorder,
    payload::Inspector,
    scenario::{Scenario, SocketKind, Workload},
    traffic::{Exchange, OneWaySender},
};

#[derive(Debug)]
pub(super) struct Ringpost {
    name: &'static str,
    about: &'static str,
    engine: EngineChoice,
    transport: Transport,
    framing: Framing,
    /// As it comes if none is given.
    spin: Option<Spin>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Unix,
    Tcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Native,
    /// That of the hand-written programs and of tokio.
    Le32,
}

pub(super) static ALL: [Ringpost; 8] = [
    Ringpost {
        name: "ringpost",
        about: "ringpost with its default settings: io_uring where there is one, spinning while that pays",
        engine: EngineChoice::Auto,
        transport: Transport::Unix,
        framing: Framing::Native,
        spin: None,
    },
    Ringpost {
        name: "ringpost-uring",
        about: "ringpost on io_uring, parking",
        engine: EngineChoice::Uring,
        transport: Transport::Unix,
        framing: Framing::Native,
        spin: Some(Spin::Never),
    },
    Ringpost {
        name: "ringpost-uring+spin",
        about: "ringpost on io_uring, always spinning",
        engine: EngineChoice::Uring,
        transport: Transport::Unix,
        framing: Framing::Native,
        spin: Some(Spin::Always),
    },
    Ringpost {
        name: "ringpost-epoll",
        about: "ringpost on epoll, parking",
        engine: EngineChoice::Epoll,
        transport: Transport::Unix,
        framing: Framing::Native,
        spin: Some(Spin::Never),
    },
    Ringpost {
        name: "ringpost-epoll+spin",
        about: "ringpost on epoll, always spinning",
        engine: EngineChoice::Epoll,
        transport: Transport::Unix,
        framing: Framing::Native,
        spin: Some(Spin::Always),
    },
    Ringpost {
        name: "ringpost-le32",
        about: "ringpost on io_uring, parking, framed as by the hand-written ones: 4 bytes instead of 8",
        engine: EngineChoice::Uring,
        transport: Transport::Unix,
        framing: Framing::Le32,
        spin: Some(Spin::Never),
    },
    Ringpost {
        name: "tcp",
        about: "ringpost on io_uring over TCP loopback, parking",
        engine: EngineChoice::Uring,
        transport: Transport::Tcp,
        framing: Framing::Native,
        spin: Some(Spin::Never),
    },
    Ringpost {
        name: "tcp+spin",
        about: "ringpost on io_uring over TCP loopback, always spinning",
        engine: EngineChoice::Uring,
        transport: Transport::Tcp,
        framing: Framing::Native,
        spin: Some(Spin::Always),
    },
];

impl Contender for Ringpost {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn scenarios(&self) -> &'static [Scenario] {
        if self.framing == Framing::Le32 {
            return &[Scenario::Stream];
        }
        match (self.transport, self.engine, self.spin) {
            (Transport::Unix, EngineChoice::Uring, Some(Spin::Never)) => &Scenario::ALL,
            (Transport::Unix, _, None) => &Scenario::STREAMS,
            (Transport::Unix, ..) => &[
                Scenario::Pingpong,
                Scenario::Fanin,
                Scenario::Pipeline,
                Scenario::Stream,
                Scenario::Bulk,
                Scenario::Dgram,
                Scenario::Seqpacket,
            ],
            (Transport::Tcp, ..) => &[
                Scenario::Pingpong,
                Scenario::Fanin,
                Scenario::Pipeline,
                Scenario::Stream,
                Scenario::Bulk,
            ],
        }
    }

    fn serve(&self, server: &Server) -> Result<()> {
        self.runtime()?.block_on(async {
            if server.workload.socket_kind() == SocketKind::Datagram {
                return ringpost_datagrams::receive(server).await;
            }
            let mut listener = self.listen(server)?;
            let mut tasks = Vec::new();
            for _ in 0..server.workload.connections {
                let connection = listener.accept().await.context("accept")?;
                self.tune(&connection)?;
                let (sender, receiver) = connection.split();
                tasks.push(ringpost::spawn(answer(sender, receiver, server.inspector())));
            }
            for task in tasks {
                task.await.context("a connection's task")??;
            }
            Ok(())
        })
    }

    fn drive(&self, client: &Client) -> Result<()> {
        self.runtime()?.block_on(async {
            if client.workload.socket_kind() == SocketKind::Datagram {
                return ringpost_datagrams::send(client).await;
            }
            let mut connections = Vec::new();
            for _ in 0..client.workload.connections {
                connections.push(self.connect(client).await?.split());
            }
            if client.workload.is_one_way() {
                for (sender, receiver) in connections {
                    send(sender, receiver, client.sender(), client.workload.bytes).await?;
                }
                return Ok(());
            }
            let recorder = Rc::new(RefCell::new(client.recorder()));
            let over = Rc::new(Cell::new(false));
            let mut tasks = Vec::new();
            for (sender, receiver) in connections {
                let asker = Asker {
                    sender,
                    receiver,
                    exchange: client.exchange(),
                    recorder: Rc::clone(&recorder),
                    over: Rc::clone(&over),
                    length: client.workload.bytes,
                };
                tasks.push(ringpost::spawn(asker.run(client.depth())));
            }
            for task in tasks {
                task.await.context("a connection's task")??;
            }
            let recorder = Rc::into_inner(recorder).context("all tasks have ended")?;
            recorder.into_inner().finish();
            Ok(())
        })
    }
}

impl Ringpost {
    fn runtime(&self) -> Result<Runtime> {
        let builder = Runtime::builder().engine(self.engine);
        let builder = match self.spin {
            Some(spin) => builder.spin(spin),
            None => builder,
        };
        Ok(builder.build()?)
    }

    fn listen(&self, server: &Server) -> Result<Listener> {
        match self.transport {
            Transport::Unix => {
                let options = self.options(&server.workload);
                let listener = Listener::builder().connection(options).bind(&server.path)?;
                server.ready()?;
                Ok(listener)
            }
            Transport::Tcp => {
                let socket = TcpListener::bind("127.0.0.1:0").context("bind")?;
                server.ready_at(&socket.local_addr()?.to_string())?;
                Ok(Listener::from_socket(OwnedFd::from(socket), ConnectionOptions::new()))
            }
        }
    }

    async fn connect(&self, client: &Client) -> Result<Connection> {
        match self.transport {
            Transport::Unix => {
                let options = self.options(&client.workload);
                Ok(Connection::connect_with(client.path(), options).await?)
            }
            Transport::Tcp => {
                let socket = TcpStream::connect(&client.address).context("connect")?;
                let options = ConnectionOptions::new();
                let mut connection = Connection::from_socket(OwnedFd::from(socket), options);
                self.tune(&connection)?;
                connection.ready().await?;
                Ok(connection)
            }
        }
    }

    fn options(&self, workload: &Workload) -> ConnectionOptions {
        let options = match self.framing {
            Framing::Native => ConnectionOptions::new(),
            Framing::Le32 => ConnectionOptions::new().length_prefixed(LengthPrefix {
                width: PrefixWidth::U32,
                byte_order: ByteOrder::Little,
            }),
        };
        match workload.socket_kind() {
            SocketKind::Seqpacket => options.seqpacket(),
            _ => options,
        }
    }

    fn tune(&self, connection: &Connection) -> Result<()> {
        if self.transport == Transport::Tcp {
            rustix::net::sockopt::set_tcp_nodelay(connection, true).context("TCP_NODELAY")?;
        }
        Ok(())
    }
}

/// Serves one connection. Clients close with replies on their way.
async fn answer(
    mut sender: Sender,
    mut receiver: Receiver,
    mut inspector: Inspector,
) -> Result<()> {
    loop {
        let mut arrived = match receiver.recv_batch().await {
            Ok(Some(batch)) => batch,
            Ok(None) | Err(RecvError::Closed(Closed::Aborted)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut more = true;
        while more {
            let mut replies = match sender.batch().await {
                Ok(batch) => batch,
                Err(SendError::Closed(Closed::Aborted)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            more = reply(&mut arrived, &mut replies, &mut inspector)?;
        }
    }
}

/// Checks what has arrived and queues the replies; true if the queue became full first.
fn reply(
    arrived: &mut Batch<'_>,
    replies: &mut SendBatch<'_>,
    inspector: &mut Inspector,
) -> Result<bool> {
    while let Some(frames) = arrived.next_run() {
        for frame in frames {
            match frame.as_slice() {
                Some(payload) => {
                    if !inspector.inspect(payload)? {
                        continue;
                    }
                    replies.push(payload)?;
                }
                None => {
                    if !inspector.inspect_pieces(frame.chunks())? {
                        continue;
                    }
                    replies.push(&frame.to_vec())?;
                }
            }
            if !replies.has_room() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// One connection with requests in flight.
struct Asker {
    sender: Sender,
    receiver: Receiver,
    exchange: Exchange,
    recorder: Rc<RefCell<Recorder>>,
    over: Rc<Cell<bool>>,
    length: usize,
}

impl Asker {
    async fn run(mut self, depth: usize) -> Result<()> {
        let mut now = Instant::now();
        for _ in 0..depth {
            self.exchange_request(now).await?;
        }
        loop {
            if self.over.get() || !self.recorder.borrow_mut().turn(now) {
                self.over.set(true);
                return Ok(());
            }
            let Some(mut arrived) = self.receiver.recv_batch().await? else {
                bail!("the server has closed");
            };
            now = Instant::now();
            let mut recorder = self.recorder.borrow_mut();
            // What is in flight at once fits the queue.
            let mut requests = self.sender.try_batch()?;
            while let Some(frames) = arrived.next_run() {
                for frame in frames {
                    match frame.as_slice() {
                        Some(payload) => self.exchange.reply(now, payload, &mut recorder)?,
                        None => self.exchange.reply(now, &frame.to_vec(), &mut recorder)?,
                    }
                    let exchange = &mut self.exchange;
                    requests.push_with(self.length, |payload| exchange.request(now, payload))?;
                }
            }
        }
    }

    async fn exchange_request(&mut self, now: Instant) -> Result<()> {
        let exchange = &mut self.exchange;
        self.sender.send_with(self.length, |payload| exchange.request(now, payload)).await?;
        Ok(())
    }
}

/// Sends one way.
async fn send(
    mut sender: Sender,
    mut receiver: Receiver,
    mut traffic: OneWaySender,
    length: usize,
) -> Result<()> {
    let per_look_at_the_clock = (BATCH_BYTES / length).max(1);
    let mut large = (length >= LARGE_BYTES).then(Buffers::default);
    while traffic.is_open() {
        while traffic.has_time() {
            if let Some(buffers) = &mut large {
                sender.send_bytes(buffers.next(length, &mut traffic)).await?;
                continue;
            }
            fill(&mut sender.batch().await?, &mut traffic, length, per_look_at_the_clock)?;
        }
        sender.send_with(length, |payload| traffic.fill_last(payload)).await?;
        let Some(reply) = receiver.recv().await? else { bail!("the receiver has closed") };
        traffic.acknowledged(&reply)?;
    }
    traffic.finish();
    Ok(())
}

/// Queues messages until there is no room, `count` at most. A function of its own, as a producer's loop may well be: it
/// has all registers for itself.
#[inline(never)]
fn fill(
    batch: &mut SendBatch<'_>,
    traffic: &mut OneWaySender,
    length: usize,
    count: usize,
) -> Result<()> {
    for _ in 0..count {
        if !batch.has_room() {
            break;
        }
        batch.push_with(length, |payload| traffic.fill(payload))?;
    }
    Ok(())
}

/// Buffers of large messages: sent from where they lie, and used again once the kernel has read
/// them.
#[derive(Debug, Default)]
struct Buffers {
    lent: VecDeque<Bytes>,
}

impl Buffers {
    fn next(&mut self, length: usize, traffic: &mut OneWaySender) -> Bytes {
        let free = self.lent.pop_front().map(Bytes::try_into_mut);
        let bytes = match free {
            Some(Ok(mut bytes)) => {
                traffic.stamp(&mut bytes);
                bytes
            }
            busy => {
                if let Some(Err(busy)) = busy {
                    self.lent.push_front(busy);
                }
                let mut bytes = BytesMut::zeroed(length);
                traffic.fill(&mut bytes);
                bytes
            }
        };
        let bytes = bytes.freeze();
        self.lent.push_back(bytes.clone());
        bytes
    }
}

const BATCH_BYTES: usize = 64 * 1024;
const LARGE_BYTES: usize = 4 * 1024;
