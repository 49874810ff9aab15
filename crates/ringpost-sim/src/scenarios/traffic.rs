//! Connections that do their work and end well: everything arrives, whatever the kernel does.

use ringpost::{ByteOrder, Connection, LengthPrefix, PrefixWidth, Receiver, Sender, spawn};

use crate::flow::{Flow, LARGE, SMALL};
use crate::rig::{Rig, insist};

/// Some connections, each with a peer that answers with the same.
pub(crate) async fn echo(rig: Rig) {
    let mut tasks = Vec::new();
    for _ in 0..=rig.below(4) {
        let (client, server) = rig.pair(rig.options());
        tasks.push(spawn(serve(rig.clone(), server)));
        tasks.push(spawn(ask(rig.clone(), client)));
    }
    for task in tasks {
        task.await.expect("all goes well");
    }
}

async fn serve(rig: Rig, mut connection: Connection) {
    while let Some(message) = insist!(rig, connection.recv()).expect("messages and an end") {
        if rig.below(2) == 0 {
            let body = message.to_vec();
            insist!(rig, connection.send(&body)).expect("room");
        } else {
            connection.send_message(message).await.expect("room");
        }
        rig.dawdle().await;
    }
    insist!(rig, connection.shutdown()).expect("a proper end");
}

async fn ask(rig: Rig, connection: Connection) {
    let flow = Flow::new(&rig, SMALL);
    let (mut sender, mut receiver) = connection.split();
    let mut taken = 0;
    for _ in 0..rig.below(12) {
        let before = flow.accepted();
        flow.send(&mut sender).await.expect("room");
        for sequence in before..flow.accepted() {
            let message = insist!(rig, receiver.recv()).expect("an answer").expect("no end");
            flow.check(sequence, &message);
            taken += 1;
        }
        rig.dawdle().await;
    }
    insist!(rig, sender.shutdown()).expect("a proper end");
    flow.receive_all_behind(&mut receiver, taken).await;
}

impl Flow {
    /// Expects a clean end behind what was taken.
    async fn receive_all_behind(&self, receiver: &mut Receiver, taken: u64) {
        assert_eq!(taken, self.accepted(), "answers are missing");
        assert!(receiver.recv().await.expect("a clean end").is_none(), "one answer too many");
    }
}

async fn one_way(
    rig: &Rig,
    (left, right): (Connection, Connection),
    lengths: &'static [usize],
    messages: usize,
) {
    let flow = Flow::new(rig, lengths);
    let count = 1 + rig.below(messages) as u64;
    let producer = spawn(produce(rig.clone(), flow.clone(), left, count));
    let mut right = right;
    let (sender, receiver) = right.halves();
    flow.receive_all(receiver).await;
    insist!(rig, sender.shutdown()).expect("a proper end");
    producer.await.expect("all goes well");
}

async fn produce(rig: Rig, flow: Flow, connection: Connection, count: u64) {
    let (mut sender, mut receiver) = connection.split();
    flow.send_all(&mut sender, count).await.expect("room");
    if rig.below(2) == 0 {
        insist!(rig, sender.flush()).expect("it leaves");
        assert_eq!(sender.queued_bytes(), 0, "flushed, and bytes are queued");
    }
    insist!(rig, sender.shutdown()).expect("a proper end");
    let end = insist!(rig, receiver.recv()).expect("a clean end");
    assert!(end.is_none(), "a message of nobody");
}

/// A slow reader, and queues that are soon full.
pub(crate) async fn backpressure(rig: Rig) {
    one_way(&rig, rig.pair(rig.options()), SMALL, 60).await;
}

/// Long messages, copied or from where they lie.
pub(crate) async fn bulk(rig: Rig) {
    one_way(&rig, rig.pair(rig.options()), LARGE, 10).await;
}

/// Futures are dropped at any point where they wait.
pub(crate) async fn drops(rig: Rig) {
    rig.drop_futures();
    let lengths = if rig.below(4) == 3 { LARGE } else { SMALL };
    one_way(&rig, rig.pair(rig.options()), lengths, 12).await;
    echo(rig).await;
}

/// Frames in packets, one each.
pub(crate) async fn packets(rig: Rig) {
    if rig.below(3) == 0 {
        rig.drop_futures();
    }
    one_way(&rig, rig.pair_of_packets(), SMALL, 60).await;
    let (client, server) = rig.pair_of_packets();
    let server = spawn(serve(rig.clone(), server));
    ask(rig, client).await;
    server.await.expect("all goes well");
}

/// Length-prefixed messages.
pub(crate) async fn prefixed(rig: Rig) {
    let width = [PrefixWidth::U32, PrefixWidth::U16, PrefixWidth::U64][rig.below(3)];
    let byte_order = [ByteOrder::Big, ByteOrder::Little][rig.below(2)];
    let options = rig.options().length_prefixed(LengthPrefix { width, byte_order });
    one_way(&rig, rig.pair(options), SMALL, 40).await;
}

/// Messages from one connection go to another as they are.
pub(crate) async fn forward(rig: Rig) {
    let options = rig.options();
    let (left, middle_in) = rig.pair(options);
    let (middle_out, right) = rig.pair(options);
    let lengths = if rig.below(4) == 3 { LARGE } else { SMALL };
    let flow = Flow::new(&rig, lengths);
    let count = 1 + rig.below(if lengths == LARGE { 6 } else { 30 }) as u64;
    let producer = spawn(produce(rig.clone(), flow.clone(), left, count));
    let (back_sender, receiver) = middle_in.split();
    let (sender, back_receiver) = middle_out.split();
    let there = spawn(pass_on(rig.clone(), receiver, sender));
    let back = spawn(pass_on(rig.clone(), back_receiver, back_sender));
    let mut right = right;
    let (sender, receiver) = right.halves();
    flow.receive_all(receiver).await;
    sender.shutdown().await.expect("a proper end");
    for task in [producer, there, back] {
        task.await.expect("all goes well");
    }
}

async fn pass_on(rig: Rig, mut receiver: Receiver, mut sender: Sender) {
    loop {
        if rig.below(2) == 0 {
            let Some(run) = receiver.recv_run().await.expect("messages and an end") else { break };
            sender.send_run(run).await.expect("room");
        } else {
            let message = receiver.recv().await.expect("messages and an end");
            let Some(message) = message else { break };
            sender.send_message(message).await.expect("room");
        }
        rig.dawdle().await;
    }
    sender.shutdown().await.expect("a proper end");
}

/// Bare bytes: what arrives is what was sent, however it is cut.
pub(crate) async fn bytes(rig: Rig) {
    let (left, right) = rig.pair(rig.options().bytes());
    let flow = Flow::new(&rig, SMALL);
    let count = 1 + rig.below(40) as u64;
    let task = {
        let (rig, flow) = (rig.clone(), flow.clone());
        spawn(async move {
            let (mut sender, receiver) = left.split();
            flow.send_all(&mut sender, count).await.expect("room");
            insist!(rig, sender.shutdown()).expect("a proper end");
            (sender, receiver)
        })
    };
    let (mut sender, mut receiver) = right.split();
    let mut arrived = Vec::new();
    while let Some(piece) = insist!(rig, receiver.recv()).expect("bytes and an end") {
        assert!(!piece.is_empty(), "an empty piece");
        arrived.extend_from_slice(&piece);
        rig.dawdle().await;
    }
    let expected: Vec<u8> =
        (0..flow.accepted()).flat_map(|sequence| flow.payload(sequence)).collect();
    assert!(arrived == expected, "{} bytes became {}", expected.len(), arrived.len());
    sender.shutdown().await.expect("a proper end");
    task.await.expect("all goes well");
}
