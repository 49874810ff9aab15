//! Descriptors for which there is no number.

use std::fs::File;

use ringpost::{Connection, RecvError, spawn};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::flow::{Flow, SMALL, TINY};
use crate::rig::{Rig, insist};

const DESCRIPTORS_MAX: u8 = 4;
const MESSAGES_MAX: usize = 20;

/// No descriptor can be opened while it lives. The limit counts for the whole process.
struct Exhausted {
    before: Rlimit,
}

impl Exhausted {
    fn new() -> Self {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before })
            .expect("less is allowed");
        Self { before }
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.before).expect("it was like this before");
    }
}

/// Messages with descriptors while the process can't have any now and then (MSG_CTRUNC, recvmsg(2)): each comes
/// with all of its own, or its reader is told that it was dropped; the connection goes on.
pub(crate) async fn truncated(rig: Rig) {
    let options = rig.options().descriptors_max(DESCRIPTORS_MAX);
    let (left, right) = rig.sockets();
    let mut left = Connection::from_socket(left.into(), options);
    let mut right = Connection::from_socket(right.into(), options);
    let null = File::open("/dev/null").expect("always there");
    let flow = Flow::new(&rig, [TINY, SMALL][rig.below(2)]);
    let count = 1 + rig.below(MESSAGES_MAX);
    let declared: Vec<u8> = (0..count).map(|_| u8::try_from(rig.below(4)).expect("few")).collect();
    let writer = spawn({
        let (rig, flow, declared) = (rig.clone(), flow.clone(), declared.clone());
        async move {
            left.ready().await.expect("a greeting");
            for count in declared {
                let body = flow.payload(flow.accepted());
                let files = vec![&null; count.into()];
                insist!(rig, left.send_with_descriptors(&body, &files)).expect("room");
                flow.accept_one();
                rig.dawdle().await;
            }
            insist!(rig, left.shutdown()).expect("a proper end");
            assert!(matches!(left.recv().await, Ok(None)), "the reader ends properly");
        }
    });
    right.ready().await.expect("a greeting");
    let squeezer = spawn({
        let rig = rig.clone();
        async move {
            for _ in 0..rig.below(6) {
                let exhausted = Exhausted::new();
                rig.rest([1, 100, 3000][rig.below(3)]).await;
                drop(exhausted);
                rig.rest(rig.below(500) as u64).await;
            }
        }
    });
    for (sequence, &declared) in declared.iter().enumerate() {
        let sequence = sequence as u64;
        match insist!(rig, right.recv()) {
            Ok(Some(message)) => {
                flow.check(sequence, &message);
                assert_eq!(message.descriptors().len(), declared.into(), "of message {sequence}");
            }
            Err(RecvError::DescriptorsLost { declared: lost }) => {
                assert!(lost > 0 && lost == declared, "{lost} lost of {declared}");
            }
            other => panic!("message {sequence}: {other:?}"),
        }
        rig.dawdle().await;
    }
    squeezer.await.expect("all goes well");
    let end = insist!(rig, right.recv());
    assert!(matches!(end, Ok(None)), "{end:?}");
    right.shutdown().await.expect("a proper end");
    writer.await.expect("all goes well");
}
