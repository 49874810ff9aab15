//! An engine that can't go on.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ringpost::{
    AcceptError, Closed, Connection, ConnectionOptions, Datagram, Listener, RecvError, SendError,
    spawn, timeout, yield_now,
};

use crate::flow::{Flow, LARGE, SMALL};
use crate::names;
use crate::rig::Rig;

/// Enters that are not refused, at most.
const ENTERS_MAX: usize = 60;
/// Simulated time until everybody is told, at most.
const TOLD_MAX: Duration = Duration::from_secs(1);
/// What the simulated kernel refuses with.
const EIO: i32 = 5;

/// The kernel refuses every enter from some time on: everybody who waits or asks for something new is
/// told, everything can be dropped, and what the kernel may still use stays where it is.
pub(crate) async fn fatal(rig: Rig) {
    let mut tasks = Vec::new();
    let stop = Rc::new(Cell::new(false));
    rig.refuse_after(rig.below(ENTERS_MAX) as u64);
    for _ in 0..=rig.below(3) {
        let packets = rig.below(4) == 0;
        let (left, right) = if packets { rig.pair_of_packets() } else { rig.pair(rig.options()) };
        let long = !packets && rig.below(2) == 1;
        let flow = Flow::new(&rig, if long { LARGE } else { SMALL });
        tasks.push(("writer", spawn(write(rig.clone(), flow.clone(), left))));
        tasks.push(("reader", spawn(read(rig.clone(), flow, right))));
    }
    let name = format!("@{}", names::next());
    let mut listener = Listener::bind(name.as_str()).expect("a name");
    if rig.below(2) == 0 {
        let options = rig.options();
        let rig = rig.clone();
        tasks.push((
            "client",
            spawn(async move {
                // Its peer may never be greeted.
                if let Ok(mut connection) = Connection::connect_with(name.as_str(), options).await {
                    rig.dawdle().await;
                    let _ = connection.recv().await;
                }
            }),
        ));
    }
    tasks.push((
        "acceptor",
        spawn(async move {
            loop {
                match listener.accept().await {
                    Ok(connection) => drop(connection),
                    Err(AcceptError::Kernel { errno: EIO }) => return,
                    Err(error) => panic!("{error:?}"),
                }
            }
        }),
    ));
    if rig.below(2) == 0 {
        tasks.push(("packets", spawn(packets(rig.clone()))));
    }
    tasks.push((
        "timers",
        spawn({
            let (rig, stop) = (rig.clone(), Rc::clone(&stop));
            async move {
                while !stop.get() {
                    rig.rest(1000).await;
                }
            }
        }),
    ));
    // Timers go on.
    rig.rest(200_000).await;
    find_out(&rig).await;
    timeout(TOLD_MAX, late(&rig)).await.expect("who asks later is told");
    stop.set(true);
    for (name, task) in tasks {
        match timeout(TOLD_MAX, task).await {
            Ok(ended) => ended.expect("all are told"),
            Err(_) => panic!("{name}: never told"),
        }
    }
}

fn failed(closed: &Closed) -> bool {
    matches!(closed, Closed::Kernel { errno: EIO })
}

async fn write(rig: Rig, flow: Flow, connection: Connection) {
    let mut connection = connection;
    let error = flow.send_all(connection.halves().0, u64::MAX).await.expect_err("no end of it");
    let SendError::Closed(closed) = &error else { panic!("{error:?}") };
    // Its reader may have been told first, and have gone.
    assert!(failed(closed) || *closed == Closed::Aborted, "{error:?}");
    for _ in 0..2 {
        let ends = [connection.flush().await, connection.shutdown().await];
        assert!(ends.iter().all(Result::is_err), "{ends:?}");
    }
    if rig.below(2) == 0 {
        connection.recv().await.expect_err("nothing comes any more");
    }
}

async fn read(rig: Rig, flow: Flow, connection: Connection) {
    let mut connection = connection;
    let (taken, end) = flow.receive(connection.halves().1, u64::MAX).await;
    assert!(taken <= flow.accepted(), "messages of nobody");
    let error = end.expect_err("no end of it");
    let RecvError::Closed(closed) = &error else { panic!("{error:?}") };
    assert!(failed(closed) || *closed == Closed::Aborted, "{error:?}");
    rig.dawdle().await;
}

async fn packets(rig: Rig) {
    let Ok((left, mut right)) = Datagram::builder().pair() else { return };
    let reader = spawn(async move {
        loop {
            if let Err(error) = right.recv().await {
                assert!(error.is_final(), "{error:?}");
                return;
            }
        }
    });
    while left.send(&[7; 100]).await.is_ok() {
        rig.dawdle().await;
    }
    reader.await.expect("all are told");
}

/// Enters until the kernel refuses to: who spins does that only with something to submit, as new connections have.
async fn find_out(rig: &Rig) {
    let mut others = Vec::new();
    for _ in 0..=ENTERS_MAX {
        let (mut left, right) = rig.pair(ConnectionOptions::new().bytes());
        if left.send(&[1]).await.is_err() || left.flush().await.is_err() {
            return;
        }
        others.push((left, right));
    }
    panic!("nobody is told");
}

/// What is asked for after the failure.
async fn late(rig: &Rig) {
    let (mut left, mut right) = rig.pair(rig.options());
    let sent = left.send(&[1; 10]).await;
    let flushed = left.flush().await;
    assert!(sent.is_err() || flushed.is_err(), "{sent:?}, {flushed:?}");
    assert!(right.recv().await.is_err(), "a message through a failed engine");
    let mut listener = Listener::builder().autobind().expect("a name");
    assert!(listener.accept().await.is_err(), "accepted by a failed engine");
    yield_now().await;
}
