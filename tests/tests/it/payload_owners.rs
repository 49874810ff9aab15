//! Owners of payloads that are sent from where they lie: their destructors are code of the user's, and
//! may use the very connection.

use std::cell::RefCell;

use bytes::Bytes;
use ringpost::{ConnectionOptions, EngineChoice, Sender};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{block_on, pair};

on_both_engines!(a_destructor_sends, a_destructor_of_what_is_never_sent);

thread_local! {
    static SENDER: RefCell<Option<Sender>> = const { RefCell::new(None) };
}

/// Bytes whose end sends another message on the connection they were sent on.
struct Owner(Vec<u8>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        SENDER.with_borrow_mut(|sender| {
            if let Some(sender) = sender {
                // Refused once the connection is over, which is an answer as well.
                let _ = sender.try_send(b"that was the last of it");
            }
        });
    }
}

fn payload(len: usize) -> Bytes {
    Bytes::from_owner(Owner(vec![7; len]))
}

fn a_destructor_sends(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = pair(ConnectionOptions::new());
        let (mut sender, _keep) = left.split();
        let (_sender, mut receiver) = right.split();
        // Whole at once, and in several bites.
        for len in [10_000, 3_000_000] {
            let mut sending = Box::pin(async {
                sender.send_bytes(payload(len)).await.expect("accepted");
                sender
            });
            sender = sending.as_mut().await;
            drop(sending);
            SENDER.set(Some(sender));
            let message = receiver.recv().await.expect("a message").expect("no end");
            assert_eq!(message.len(), len);
            let message = receiver.recv().await.expect("a message").expect("no end");
            assert_eq!(message, *b"that was the last of it");
            sender = SENDER.take().expect("put there");
        }
    });
}

fn a_destructor_of_what_is_never_sent(engine: EngineChoice) {
    block_on(engine, async {
        let (left, right) = pair(ConnectionOptions::new());
        let (mut sender, keep) = left.split();
        // More than the socket takes.
        sender.send_bytes(payload(8 << 20)).await.expect("accepted");
        SENDER.set(Some(sender));
        for _ in 0..10 {
            ringpost::yield_now().await;
        }
        // The send in flight fails, and takes the payload with it.
        drop(right);
        for _ in 0..10 {
            ringpost::yield_now().await;
        }
        drop(keep);
        drop(SENDER.take());
        ringpost::sleep(std::time::Duration::from_millis(1)).await;
    });
}
