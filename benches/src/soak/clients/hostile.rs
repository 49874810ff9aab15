//! A client that speaks by hand, and wrongly.

use std::{rc::Rc, time::Duration};

use anyhow::{Result, ensure};
use futures_util::{AsyncReadExt, AsyncWriteExt};
use ringpost::{ByteStream, timeout};
use ringpost_testkit::peer::{greeting, message};

use super::{Client, join};
use crate::soak::{
    introduction::{Ending, Service},
    server::socket,
    stamp::Stamp,
};

const HOSTILE_CONNECTIONS: usize = 2;
/// Longest wait for the server to end a connection that broke the protocol.
const END_WAIT_MAX: Duration = Duration::from_secs(20);

pub(super) async fn garbage(client: &Rc<Client>) {
    let tasks = (0..HOSTILE_CONNECTIONS).map(|_| {
        let own = Rc::clone(client);
        client.spawn("garbage", async move {
            while !own.stopping() {
                attack(&own).await?;
                own.pause(Duration::from_millis(5), Duration::from_millis(50)).await;
            }
            Ok(())
        })
    });
    join(tasks.collect()).await;
}

/// What is sent, and whether the server has to end the connection for it.
async fn attack(client: &Rc<Client>) -> Result<()> {
    let way = client.below(9);
    let introduction =
        client.introduce(Service::Echo, if way == 8 { Ending::Vanishing } else { Ending::Garbage });
    let (bytes, is_ended) = match way {
        // No greeting at all.
        0 => (random(client, 4096), true),
        // A greeting, and a header whose check is wrong.
        1 => ([greeting().to_vec(), broken(b"whatever")].concat(), true),
        // A length over every limit.
        2 => ([greeting().to_vec(), endless()].concat(), true),
        // Part of a greeting; nothing.
        3 => (greeting()[..client.between(0, 63)].to_vec(), false),
        4 => (greeting().to_vec(), false),
        // The beginning of a message.
        5 => {
            let whole = message(&vec![7; client.between(16, 3000)]);
            let cut = client.between(1, whole.len() - 1);
            ([&greeting()[..], &whole[..cut]].concat(), false)
        }
        // Proper messages, and then none; or the beginning of one.
        _ => {
            let mut stamp = Stamp::new(introduction.up());
            let mut bytes = greeting().to_vec();
            bytes.extend(message(&serde_json::to_vec(&introduction)?));
            for _ in 0..client.below(4) {
                bytes.extend(message(&stamp.make(client.between(16, 2000))));
            }
            let next = message(&stamp.make(client.between(16, 2000)));
            if way == 8 {
                bytes.extend(&next[..client.between(1, next.len() - 1)]);
            } else {
                bytes.extend(broken(&next[8..]));
            }
            (bytes, way != 8)
        }
    };
    let open = client.tally.open();
    let mut stream = ByteStream::connect(client.path(socket::STREAMS)).await?;
    // The server may end the connection before it has all.
    let sent = stream.write_all(&bytes).await.is_ok();
    if is_ended {
        let mut reply = Vec::new();
        // A reset counts as an end.
        let read = timeout(END_WAIT_MAX, stream.read_to_end(&mut reply)).await;
        ensure!(
            read.is_ok(),
            "{introduction}: not ended within {END_WAIT_MAX:?} for garbage {way}"
        );
    } else if sent && client.below(2) == 0 {
        // Half-closed; else dropped in the middle.
        let _ = stream.close().await;
        client.pause(Duration::ZERO, Duration::from_millis(20)).await;
    } else {
        let _ = timeout(Duration::from_millis(client.below(20)), stream.flush()).await;
    }
    client.tally.received();
    drop(open);
    Ok(())
}

fn random(client: &Client, most: usize) -> Vec<u8> {
    // At least a greeting's length: less is no greeting yet, for which the server waits.
    let mut bytes = vec![0; client.between(64, most)];
    client.random.borrow_mut().fill(&mut bytes);
    // Never the beginning of a proper one.
    bytes[0] = 0;
    bytes
}

/// A message whose header fails its check.
fn broken(body: &[u8]) -> Vec<u8> {
    let mut frame = message(body);
    frame[7] ^= 0x55;
    frame
}

/// The header of a message of 4 GiB.
fn endless() -> Vec<u8> {
    ringpost_frame::FrameHeader::message(u32::MAX).encode().to_vec()
}
