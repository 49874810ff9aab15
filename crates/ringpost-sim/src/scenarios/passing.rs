//! Descriptors that travel with messages.

use std::fs::File;

use ringpost::spawn;

use crate::flow::{Flow, LARGE, SMALL, TINY};
use crate::rig::{Rig, insist};

/// Most descriptors of one message here.
const DESCRIPTORS_MAX: u8 = 4;

/// A reader that goes with descriptors that it has not taken: they are closed.
pub(crate) async fn unclaimed(rig: Rig) {
    let options = rig.options().descriptors_max(DESCRIPTORS_MAX);
    let (mut left, mut right) = rig.pair(options);
    let opened = spawn(async move {
        right.ready().await.expect("a greeting");
        right
    });
    left.ready().await.expect("a greeting");
    let mut right = opened.await.expect("all goes well");
    let null = File::open("/dev/null").expect("always there");
    let files = [&null, &null];
    left.send_with_descriptors(&[0; 100], &files).await.expect("room");
    for _ in 0..rig.below(8) {
        // There may be no room.
        let _ = left.try_send_with_descriptors(&[0; 100], &files);
        rig.dawdle().await;
        rig.rest(1).await;
    }
    if rig.below(2) == 0 {
        let taken = right.recv().await.expect("a message").expect("no end");
        assert_eq!(taken.descriptors().len(), 2);
        rig.dawdle().await;
    }
    if rig.below(2) == 0 {
        drop(left);
        drop(right);
    } else {
        drop(right);
        assert!(!matches!(left.recv().await, Ok(Some(_))), "a message of nobody");
    }
}

/// Messages with and without descriptors: each arrives with its own.
pub(crate) async fn descriptors(rig: Rig) {
    let limits = [DESCRIPTORS_MAX, 0];
    let options = rig.options().descriptors_max(DESCRIPTORS_MAX).descriptors_held_max(3);
    let other = options.descriptors_max(limits[usize::from(rig.once_in(3))]);
    let (left, right) = rig.sockets();
    let mut left = ringpost::Connection::from_socket(left.into(), options);
    let mut right = ringpost::Connection::from_socket(right.into(), other);
    let flow = Flow::new(&rig, [TINY, SMALL, LARGE][rig.below(3)]);
    // Few, so that their end may come right behind the greeting.
    let count = rig.below([1, 4, 20][rig.below(3)]) as u64;
    let writer = spawn({
        let (rig, flow) = (rig.clone(), flow.clone());
        async move {
            left.ready().await.expect("a greeting");
            let null = File::open("/dev/null").expect("always there");
            let mut sent = Vec::new();
            let sender = left.halves().0;
            while flow.accepted() < count {
                let descriptors = rig.below(sender.descriptors_max() + 1);
                if descriptors == 0 {
                    let before = flow.accepted();
                    flow.send(sender).await.expect("room");
                    sent.resize(sent.len() + usize::try_from(flow.accepted() - before).unwrap(), 0);
                } else {
                    let body = flow.payload(flow.accepted());
                    let files: Vec<_> =
                        (0..descriptors).map(|_| null.try_clone().expect("a number")).collect();
                    insist!(rig, sender.send_with_descriptors(&body, &files)).expect("room");
                    flow.accept_one();
                    sent.push(descriptors);
                }
                rig.dawdle().await;
            }
            insist!(rig, sender.shutdown()).expect("a proper end");
            assert!(matches!(left.recv().await, Ok(None)), "the reader ends properly");
            sent
        }
    });
    let mut arrived = Vec::new();
    let mut kept = Vec::new();
    while let Some(message) = insist!(rig, right.recv()).expect("messages and an end") {
        flow.check(arrived.len() as u64, &message);
        arrived.push(message.descriptors().len());
        if rig.once_in(4) {
            kept.push(message);
        }
        rig.dawdle().await;
    }
    right.shutdown().await.expect("a proper end");
    assert_eq!(arrived, writer.await.expect("all goes well"), "descriptors of each message");
}
