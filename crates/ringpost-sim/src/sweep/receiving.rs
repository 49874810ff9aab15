//! Everything that takes messages, and that passes on what was taken.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;

use ringpost::{Connection, Message, spawn};

use super::cut::{Cut, persist};
use super::peers::{LENGTHS, options, pair, write};
use super::{Operation, operations};
use crate::flow::Flow;
use crate::rig::Rig;

#[derive(Debug, Clone, Copy)]
enum How {
    Recv,
    RecvHere,
    PollRecv,
    RecvBatch,
    RecvBatchHere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passing {
    RecvRun,
    RecvRunHere,
    SendRun,
    SendMessage,
    SendMessageHere,
}

pub(super) const OPERATIONS: &[Operation] = operations! {
    "Receiver::recv" |rig, cut| receiving(rig, cut, How::Recv);
    "Connection::recv" |rig, cut| receiving(rig, cut, How::RecvHere);
    "Receiver::poll_recv" |rig, cut| receiving(rig, cut, How::PollRecv);
    "Receiver::recv_batch" |rig, cut| receiving(rig, cut, How::RecvBatch);
    "Connection::recv_batch" |rig, cut| receiving(rig, cut, How::RecvBatchHere);
    "Receiver::recv_run" |rig, cut| forwarding(rig, cut, Passing::RecvRun);
    "Connection::recv_run" |rig, cut| forwarding(rig, cut, Passing::RecvRunHere);
    "Sender::send_run" |rig, cut| forwarding(rig, cut, Passing::SendRun);
    "Sender::send_message" |rig, cut| forwarding(rig, cut, Passing::SendMessage);
    "Connection::send_message" |rig, cut| forwarding(rig, cut, Passing::SendMessageHere);
};

/// Takes all that somebody sends: nothing is lost, and nothing comes twice.
async fn receiving(rig: Rig, cut: Cut, how: How) {
    let (left, mut right) = pair(options());
    let flow = Flow::new(&rig, LENGTHS);
    let writer = spawn(write(rig.clone(), flow.clone(), left));
    let mut taken = 0;
    let mut kept: Vec<(u64, Message)> = Vec::new();
    loop {
        let receiver = right.halves().1;
        let message = match how {
            How::Recv => persist!(cut, receiver.recv()),
            How::PollRecv => persist!(cut, poll_fn(|context| receiver.poll_recv(context))),
            How::RecvHere => persist!(cut, right.recv()),
            How::RecvBatch | How::RecvBatchHere => {
                let batch = match how {
                    How::RecvBatch => persist!(cut, receiver.recv_batch()),
                    _ => persist!(cut, right.recv_batch()),
                };
                let Some(mut batch) = batch.expect("messages and an end") else { break };
                while let Some(frame) = batch.next() {
                    flow.check(taken, &frame.to_vec());
                    taken += 1;
                }
                continue;
            }
        };
        let Some(message) = message.expect("messages and an end") else { break };
        flow.check(taken, &message);
        if taken % 4 == 0 {
            kept.push((taken, message));
        }
        taken += 1;
    }
    assert_eq!(taken, flow.accepted(), "messages are missing");
    kept.iter().for_each(|(sequence, message)| flow.check(*sequence, message));
    right.shutdown().await.expect("a proper end");
    writer.await.expect("all goes well");
}

/// Passes on what it takes. A message whose passing was dropped is gone; all others arrive.
async fn forwarding(rig: Rig, cut: Cut, how: Passing) {
    let (left, middle_in) = pair(options());
    let (middle_out, mut right) = pair(options());
    let flow = Flow::new(&rig, LENGTHS);
    let writer = spawn(write(rig.clone(), flow.clone(), left));
    let expected = Rc::new(RefCell::new(VecDeque::new()));
    let forwarder = spawn(forward(cut, how, middle_in, middle_out, Rc::clone(&expected)));
    rig.rest(300).await;
    while let Some(message) = right.recv().await.expect("messages and an end") {
        let sequence = expected.borrow_mut().pop_front().expect("a message of nobody");
        flow.check(sequence, &message);
        rig.rest(300).await;
    }
    right.shutdown().await.expect("a proper end");
    forwarder.await.expect("all goes well");
    writer.await.expect("all goes well");
    assert!(expected.borrow().is_empty(), "messages are missing");
}

async fn forward(
    cut: Cut,
    how: Passing,
    mut from: Connection,
    mut to: Connection,
    expected: Rc<RefCell<VecDeque<u64>>>,
) {
    let mut taken = 0;
    loop {
        let (count, passed) = match how {
            Passing::RecvRun | Passing::RecvRunHere | Passing::SendRun => {
                let run = match how {
                    Passing::RecvRun => persist!(cut, from.halves().1.recv_run()),
                    Passing::RecvRunHere => persist!(cut, from.recv_run()),
                    _ => from.recv_run().await,
                };
                let Some(run) = run.expect("messages and an end") else { break };
                let count = run.messages();
                // What was accepted may arrive before the future is done with.
                expected.borrow_mut().extend(taken..taken + count);
                let sender = to.halves().0;
                let passed = match how {
                    Passing::SendRun => cut.run(sender.send_run(run)).await,
                    _ => Some(sender.send_run(run).await),
                };
                (count, passed)
            }
            Passing::SendMessage | Passing::SendMessageHere => {
                let message = from.recv().await.expect("messages and an end");
                let Some(message) = message else { break };
                expected.borrow_mut().push_back(taken);
                let passed = match how {
                    Passing::SendMessage => cut.run(to.halves().0.send_message(message)).await,
                    _ => cut.run(to.send_message(message)).await,
                };
                (1, passed)
            }
        };
        match passed {
            Some(passed) => passed.expect("room"),
            None => {
                let mut expected = expected.borrow_mut();
                let left = expected.len() - usize::try_from(count).expect("few");
                expected.truncate(left);
            }
        }
        taken += count;
    }
    from.shutdown().await.expect("a proper end");
    to.shutdown().await.expect("a proper end");
    assert!(to.recv().await.expect("a clean end").is_none(), "a message of nobody");
}
