//! Clients of everything that is no plain connection: descriptors, packets, datagrams, byte streams.

use std::{os::fd::OwnedFd, rc::Rc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::{AsyncReadExt, AsyncWriteExt};
use ringpost::{ByteStream, ConnectionOptions, Datagram, timeout};
use rustix::fs::{MemfdFlags, memfd_create};

use super::{Client, join};
use crate::soak::{
    introduction::{Ending, Service},
    server::{DESCRIPTORS_MAX, socket, with_descriptors},
    services::{DATAGRAM_HEAD_BYTES, check_descriptor, descriptor_content},
    stamp::{self, Stamp},
};

const PASSING_CONNECTIONS: usize = 2;
const PACKET_CONNECTIONS: usize = 3;
const PACKET_BYTES_MAX: usize = 60_000;
const PACKET_DEPTH: u64 = 8;
const DATAGRAM_SOCKETS: usize = 2;
/// Below net.unix.max_dgram_qlen, so that replies find room.
const DATAGRAM_DEPTH: u64 = 6;
/// So many of them are more than a send buffer has room for: replies wait, too.
const DATAGRAM_BYTES_MAX: usize = 60_000;
const BYTE_STREAMS: usize = 2;
const REPLY_WAIT_MAX: Duration = Duration::from_secs(20);

pub(super) async fn descriptors(client: &Rc<Client>) {
    let tasks = (0..PASSING_CONNECTIONS).map(|index| {
        let own = Rc::clone(client);
        client.spawn("descriptors", async move {
            while !own.stopping() {
                // One keeps its connection, one comes and goes.
                let rounds = if index == 0 { u64::MAX } else { own.below(20) };
                pass(&own, rounds).await?;
            }
            Ok(())
        })
    });
    join(tasks.collect()).await;
}

async fn pass(client: &Rc<Client>, rounds: u64) -> Result<()> {
    let leaves = rounds != u64::MAX && client.below(3) == 0;
    let ending = if leaves { Ending::Vanishing } else { Ending::Clean };
    let mut session =
        client.connect_to(socket::DESCRIPTORS, with_descriptors(), Service::Echo, ending).await?;
    let key = session.introduction.key;
    let mut counts = std::collections::VecDeque::new();
    let mut round = 0;
    while round < rounds && !client.stopping() {
        round += 1;
        for _ in 0..client.between(1, 3) {
            let count = client.between(0, DESCRIPTORS_MAX.into());
            let number = session.sent.next();
            let descriptors = (0..count)
                .map(|index| memory_file(&descriptor_content(key, number, index)))
                .collect::<Result<Vec<_>>>()?;
            let body = session.sent.make(client.between(16, 2000));
            session
                .connection
                .send_with_descriptors(&body, &descriptors)
                .await
                .with_context(|| session.trouble("sending descriptors"))?;
            counts.push_back(count);
        }
        if leaves && client.below(8) == 0 {
            // With descriptors on their way in both directions.
            return Ok(());
        }
        while let Some(count) = counts.pop_front() {
            let received = session.connection.recv().await;
            let received = received.with_context(|| session.trouble("waiting for an echo"))?;
            let message = received.with_context(|| session.trouble("an end instead of an echo"))?;
            let number = session.echoed.next();
            let checked = session.echoed.check(message.len(), message.chunks());
            checked.with_context(|| session.trouble("a wrong echo"))?;
            let found = message.descriptors();
            ensure!(
                found.len() == count,
                session.trouble(&format!("{} of {count} descriptors came back", found.len()))
            );
            for (index, descriptor) in found.iter().enumerate() {
                check_descriptor(key, number, index, descriptor)
                    .with_context(|| session.trouble("a wrong descriptor"))?;
            }
            client.tally.received();
        }
        client.pause(Duration::from_millis(2), Duration::from_millis(15)).await;
    }
    if leaves { Ok(()) } else { session.finish().await }
}

fn memory_file(content: &[u8]) -> Result<OwnedFd> {
    let file = memfd_create("soak", MemfdFlags::CLOEXEC).context("a file in memory")?;
    let written = rustix::io::pwrite(&file, content, 0).context("writing a file in memory")?;
    ensure!(written == content.len(), "{written} bytes were written");
    Ok(file)
}

pub(super) async fn packets(client: &Rc<Client>) {
    let mut tasks = Vec::new();
    for _ in 0..PACKET_CONNECTIONS {
        let own = Rc::clone(client);
        tasks.push(client.spawn("sequenced packets", async move {
            while !own.stopping() {
                exchange_packets(&own).await?;
            }
            Ok(())
        }));
    }
    for _ in 0..DATAGRAM_SOCKETS {
        let own = Rc::clone(client);
        tasks.push(client.spawn("datagrams", async move {
            let mut socket = datagram(&own)?;
            let _open = own.tally.open();
            let key = stamp::mix(own.seed ^ own.below(u64::MAX));
            let (mut sent, mut echoed) = (Stamp::new(key), Stamp::new(key));
            while !own.stopping() {
                exchange_datagrams(&own, &mut socket, key, &mut sent, &mut echoed).await?;
                own.pause(Duration::from_millis(1), Duration::from_millis(6)).await;
            }
            Ok(())
        }));
    }
    let own = Rc::clone(client);
    tasks.push(client.spawn("datagram sockets that vanish", async move {
        while !own.stopping() {
            let socket = datagram(&own)?;
            let _open = own.tally.open();
            let key = stamp::mix(own.seed ^ own.below(u64::MAX));
            let mut sent = Stamp::new(key);
            for _ in 0..own.below(4) {
                let body = datagram_body(key, true, &mut sent, own.between(16, 2000));
                socket.send(&body).await.context("a socket that leaves")?;
            }
            socket.flush().await.context("a socket that leaves")?;
            own.pause(Duration::from_millis(0), Duration::from_millis(40)).await;
        }
        Ok(())
    }));
    join(tasks).await;
}

async fn exchange_packets(client: &Rc<Client>) -> Result<()> {
    let options = ConnectionOptions::new().seqpacket();
    let leaves = client.below(4) == 0;
    let ending = if leaves { Ending::Vanishing } else { Ending::Clean };
    let mut session = client.connect_to(socket::PACKETS, options, Service::Echo, ending).await?;
    for _ in 0..client.below(200) {
        if client.stopping() {
            break;
        }
        for _ in 0..client.below(PACKET_DEPTH) {
            session
                .send(client.between(16, if client.below(8) == 0 { PACKET_BYTES_MAX } else { 500 }))
                .await?;
        }
        while session.in_flight() > client.below(PACKET_DEPTH) {
            session.expect_echo().await?;
        }
        client.pause(Duration::from_millis(1), Duration::from_millis(10)).await;
    }
    if leaves { Ok(()) } else { session.finish().await }
}

/// A datagram socket with a name that the kernel chose, connected to the server's.
fn datagram(client: &Client) -> Result<Datagram> {
    let socket = Datagram::builder().autobind()?;
    socket.connect_to(client.path(socket::DATAGRAMS))?;
    Ok(socket)
}

fn datagram_body(key: u64, leaves: bool, stamp: &mut Stamp, len: usize) -> Vec<u8> {
    let mut body = vec![0; DATAGRAM_HEAD_BYTES];
    body[..8].copy_from_slice(&key.to_le_bytes());
    body[8..].copy_from_slice(&u64::from(leaves).to_le_bytes());
    body.extend(stamp.make(len));
    body
}

/// Sends some and takes all of them back, in their order.
async fn exchange_datagrams(
    client: &Client,
    socket: &mut Datagram,
    key: u64,
    sent: &mut Stamp,
    echoed: &mut Stamp,
) -> Result<()> {
    for _ in 0..=client.below(DATAGRAM_DEPTH) {
        let body = datagram_body(key, false, sent, client.between(16, DATAGRAM_BYTES_MAX));
        let number = sent.next() - 1;
        socket.send(&body).await.with_context(|| format!("sending datagram {number}"))?;
    }
    while echoed.next() < sent.next() {
        let number = echoed.next();
        let packet = timeout(REPLY_WAIT_MAX, socket.recv())
            .await
            .with_context(|| format!("the reply to datagram {number} of key {key:x}"))??;
        let bytes = packet.into_message().into_owned();
        let body = bytes.get(DATAGRAM_HEAD_BYTES..).unwrap_or_default();
        echoed
            .check(body.len(), std::iter::once(body))
            .with_context(|| format!("the reply to datagram {number} of key {key:x}"))?;
        client.tally.received();
    }
    Ok(())
}

pub(super) async fn bytes(client: &Rc<Client>) {
    let tasks = (0..BYTE_STREAMS).map(|_| {
        let own = Rc::clone(client);
        client.spawn("byte streams", async move {
            while !own.stopping() {
                exchange_bytes(&own).await?;
            }
            Ok(())
        })
    });
    join(tasks.collect()).await;
}

/// A stream that is echoed, and ended half by half or dropped.
async fn exchange_bytes(client: &Rc<Client>) -> Result<()> {
    let leaves = client.below(4) == 0;
    let ending = if leaves { Ending::Vanishing } else { Ending::Clean };
    let introduction = client.introduce(Service::Echo, ending);
    let open = client.tally.open();
    let mut stream = ByteStream::connect(client.path(socket::BYTES)).await?;
    let mut line = serde_json::to_vec(&introduction)?;
    line.push(b'\n');
    let (mut sent, mut echoed) = (0, 0);
    let exchanged: Result<()> = async {
        stream.write_all(&line).await?;
        for _ in 0..client.below(100) {
            if client.stopping() {
                break;
            }
            let mut piece = vec![0; client.between(1, 30_000)];
            stamp::pattern(introduction.up(), sent, &mut piece);
            stream.write_all(&piece).await?;
            sent += piece.len() as u64;
            let wanted = if client.below(3) == 0 { sent } else { sent.saturating_sub(20_000) };
            while echoed < wanted {
                let bytes = take(&mut stream, introduction.up(), echoed).await?;
                ensure!(bytes > 0, "an end instead of an echo");
                echoed += bytes;
                client.tally.received();
            }
            client.pause(Duration::from_millis(1), Duration::from_millis(15)).await;
        }
        if leaves {
            return Ok(());
        }
        stream.close().await?;
        loop {
            match take(&mut stream, introduction.up(), echoed).await? {
                0 => break,
                bytes => {
                    echoed += bytes;
                    client.tally.received();
                }
            }
        }
        ensure!(echoed == sent, "the stream ended early");
        Ok(())
    }
    .await;
    exchanged.with_context(|| format!("{introduction}, byte {sent} sent, byte {echoed} echoed"))?;
    client.tally.received();
    drop(open);
    Ok(())
}

/// Checks what has arrived; tells how many bytes, 0 at the end.
async fn take(stream: &mut ByteStream, key: u64, position: u64) -> Result<u64> {
    let mut arrived = [0; 4096];
    let len = stream.read(&mut arrived).await?;
    let mut expected = [0; 4096];
    stamp::pattern(key, position, &mut expected[..len]);
    ensure!(arrived[..len] == expected[..len], "other bytes than were sent");
    Ok(len as u64)
}
