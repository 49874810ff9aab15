//! Connections that end in every way.

use ringpost::{Closed, Connection, RecvError, SendError, spawn};
use rustix::net::Shutdown;

use crate::flow::{Flow, LARGE, SMALL, TINY};
use crate::rig::{Rig, insist};
use crate::run::LINGER;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Proper,
    FlushedAndDropped,
    FlushedAndCut,
    Dropped,
    Refused,
    ReaderDropped,
}

/// Every end reaches the other side as what it is, and what was accepted before it arrives.
pub(crate) async fn ends(rig: Rig) {
    const ENDS: [End; 6] = [
        End::Proper,
        End::FlushedAndDropped,
        End::FlushedAndCut,
        End::Dropped,
        End::Refused,
        End::ReaderDropped,
    ];
    let mut tasks = Vec::new();
    for _ in 0..=rig.below(4) {
        let end = ENDS[rig.below(ENDS.len())];
        let (left, right) = rig.pair(rig.options());
        let flow = Flow::new(&rig, [TINY, SMALL, LARGE][rig.below(3)]);
        tasks.push(spawn(write(rig.clone(), flow.clone(), left, end)));
        tasks.push(spawn(read(rig.clone(), flow, right, end)));
        rig.dawdle().await;
    }
    for task in tasks {
        task.await.expect("all ends as expected");
    }
}

async fn write(rig: Rig, flow: Flow, connection: Connection, end: End) {
    let count = rig.below(12) as u64;
    let mut connection = connection;
    if end == End::ReaderDropped {
        // Who drops it may have bytes left for us, who do not read: its socket takes ours until it gives up.
        rig.waits(LINGER);
    }
    let sent = flow.send_all(connection.halves().0, count).await;
    match end {
        End::ReaderDropped => {
            let gone = |error: &SendError| matches!(error, SendError::Closed(Closed::Aborted));
            assert!(sent.is_ok() || sent.as_ref().is_err_and(gone), "{sent:?}");
            return;
        }
        _ => sent.expect("room"),
    }
    match end {
        End::Proper => {
            insist!(rig, connection.shutdown()).expect("a proper end");
            let answer = connection.recv().await;
            assert!(matches!(answer, Ok(None)), "{answer:?}");
        }
        End::FlushedAndDropped => insist!(rig, connection.flush()).expect("it leaves"),
        // Nothing leaves any more, and nothing has to.
        End::FlushedAndCut => {
            insist!(rig, connection.flush()).expect("it leaves");
            rustix::net::shutdown(&connection, Shutdown::Write).expect("a connected socket");
        }
        End::Refused => connection.refuse("not today"),
        End::Dropped | End::ReaderDropped => {}
    }
}

async fn read(rig: Rig, flow: Flow, mut connection: Connection, end: End) {
    let (sender, receiver) = connection.halves();
    if end == End::ReaderDropped {
        let most = rig.below(6) as u64;
        let taken = rig.attempt(flow.receive(receiver, most)).await;
        if let Some((taken, Err(error))) = taken {
            assert_eq!(error, RecvError::Closed(Closed::Aborted));
            assert_eq!(taken, flow.accepted(), "messages are missing before the abort");
        }
        return;
    }
    let (taken, ended) = flow.receive(receiver, u64::MAX).await;
    assert_eq!(taken, flow.accepted(), "messages are missing before {ended:?}");
    match (end, ended) {
        (End::Proper, Ok(())) => insist!(rig, sender.shutdown()).expect("a proper end"),
        (
            End::FlushedAndDropped | End::FlushedAndCut | End::Dropped,
            Err(RecvError::Closed(Closed::Aborted)),
        ) => {}
        (End::Refused, Err(RecvError::Closed(Closed::Rejected { reason }))) => {
            assert_eq!(reason, "not today");
        }
        (end, ended) => panic!("{end:?} became {ended:?}"),
    }
}

/// Peers are gone of a sudden: what arrived before is intact, and both sides are told.
pub(crate) async fn gone(rig: Rig) {
    rig.expect_gone_peers();
    let mut tasks = Vec::new();
    for _ in 0..=rig.below(3) {
        let (left, right) = rig.pair(rig.options());
        let ours = rustix::io::dup(if rig.below(2) == 0 { &left } else { &right }).expect("a dup");
        let flow = Flow::new(&rig, SMALL);
        let count = rig.below(40) as u64;
        let proper = std::rc::Rc::new(std::cell::Cell::new(false));
        tasks.push(spawn({
            let (rig, flow, proper) = (rig.clone(), flow.clone(), proper.clone());
            async move {
                let mut left = left;
                let sent = flow.send_all(left.halves().0, count).await;
                if sent.is_ok() {
                    proper.set(true);
                    let _ = insist!(rig, left.shutdown());
                    let _ = left.recv().await;
                }
            }
        }));
        tasks.push(spawn({
            let rig = rig.clone();
            async move {
                let mut right = right;
                let (taken, end) = flow.receive(right.halves().1, u64::MAX).await;
                assert!(taken <= flow.accepted(), "messages of nobody");
                if end.is_ok() {
                    assert!(proper.get(), "a proper end that nobody made");
                    assert_eq!(taken, flow.accepted(), "messages are missing");
                }
                rig.dawdle().await;
            }
        }));
        tasks.push(spawn({
            let rig = rig.clone();
            async move {
                let late = rig.below(3000) as u64;
                rig.rest(late).await;
                let how = [Shutdown::Both, Shutdown::Read, Shutdown::Write][rig.below(3)];
                // The connection may have ended before.
                let _ = rustix::net::shutdown(&ours, how);
                rig.rest(late).await;
                let _ = rustix::net::shutdown(&ours, Shutdown::Both);
            }
        }));
    }
    for task in tasks {
        task.await.expect("nobody waits for ever");
    }
}

/// The runtime goes while everything is under way.
pub(crate) async fn abandoned(rig: Rig) {
    for _ in 0..=rig.below(4) {
        let (left, right) = rig.pair(rig.options());
        let flow = Flow::new(&rig, [SMALL, LARGE][rig.below(2)]);
        let (write, read) = (flow.clone(), flow);
        drop(spawn(async move {
            let mut left = left;
            // Whatever comes of it.
            let _ = write.send_all(left.halves().0, u64::MAX).await;
        }));
        if rig.below(4) > 0 {
            drop(spawn(async move {
                let mut right = right;
                let _ = read.receive(right.halves().1, u64::MAX).await;
            }));
        } else if rig.below(2) == 0 {
            // Held by a task that does nothing.
            drop(spawn(async move {
                std::future::pending::<()>().await;
                drop(right);
            }));
        }
    }
    for _ in 0..rig.below(30) {
        ringpost::yield_now().await;
    }
}
