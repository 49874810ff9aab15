//! ringpost's datagrams, used the way its documentation teaches: packets received in batches and
//! borrowed from them, messages accepted one by one, which leave together at the end of the turn.

use anyhow::Result;
use ringpost::Datagram;

use super::{Client, Server};

/// The server: checks what arrives and answers the last message of each phase.
pub(super) async fn receive(server: &Server) -> Result<()> {
    let socket = Datagram::bind(&server.path)?;
    server.ready()?;
    let (sender, mut receiver) = socket.split();
    let mut inspector = server.inspector();
    loop {
        let mut arrived = receiver.recv_batch().await?;
        while let Some(packet) = arrived.next() {
            let packet = packet?;
            if packet.is_empty() {
                return Ok(());
            }
            if inspector.inspect(&packet)? {
                sender.send_to(packet.sender_name(), &packet).await?;
            }
        }
    }
}

/// The client.
pub(super) async fn send(client: &Client) -> Result<()> {
    let socket = Datagram::builder().autobind()?;
    socket.connect_to(client.path())?;
    let (sender, mut receiver) = socket.split();
    let mut traffic = client.sender();
    let mut payload = vec![0; client.workload.bytes];
    while traffic.is_open() {
        while traffic.has_time() {
            for _ in 0..MESSAGES_PER_LOOK_AT_THE_CLOCK {
                traffic.fill(&mut payload);
                sender.send(&payload).await?;
            }
        }
        traffic.fill_last(&mut payload);
        sender.send(&payload).await?;
        traffic.acknowledged(&receiver.recv().await?)?;
    }
    traffic.finish();
    sender.send(&[]).await?;
    Ok(sender.flush().await?)
}

const MESSAGES_PER_LOOK_AT_THE_CLOCK: usize = super::packets::BATCH_PACKETS;
