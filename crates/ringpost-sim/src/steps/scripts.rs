//! The scripts, and what each part may find when another one is gone.

use std::fs::File;
use std::future::poll_fn;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::task::Poll;

use ringpost::{
    AcceptError, Closed, Connection, ConnectionOptions, Datagram, Listener, Receiver, RecvError,
    SendError, Sender,
};

use super::{Part, Script, pause};
use crate::flow::Flow;
use crate::names;
use crate::rig::Rig;

/// All scripts.
pub const SCRIPTS: &[Script] = &[
    Script { name: "messages", parts: messages, outlives: true },
    Script { name: "halves", parts: halves, outlives: true },
    Script { name: "bytes", parts: bytes, outlives: true },
    Script { name: "packets", parts: packets, outlives: true },
    Script { name: "descriptors", parts: descriptors, outlives: true },
    Script { name: "listener", parts: listener, outlives: false },
    Script { name: "datagrams", parts: datagrams, outlives: true },
    Script { name: "handle", parts: handle, outlives: true },
];

/// Lengths of messages, bytes.
const LENGTHS: &[usize] = &[64, 3000, 0, 9000, 500];
/// Messages in one direction.
const MESSAGES: u64 = 6;

fn options() -> ConnectionOptions {
    ConnectionOptions::new().gather_bytes_min(2000)
}

/// An end that a side may find whose peer or runtime is gone.
#[track_caller]
fn expect_gone(closed: &Closed) {
    assert!(matches!(closed, Closed::Aborted | Closed::RuntimeEnded), "{closed:?}");
}

#[track_caller]
fn expect_unsent(error: &SendError) {
    match error {
        SendError::Closed(closed) => expect_gone(closed),
        error => panic!("{error:?}"),
    }
}

/// Sends, flushes and ends: everything, unless it is told why not.
async fn write(flow: Flow, sender: &mut Sender) -> Result<(), SendError> {
    for _ in 0..MESSAGES {
        let body = flow.payload(flow.accepted());
        sender.send(&body).await?;
        flow.accept_one();
    }
    sender.flush().await?;
    sender.shutdown().await
}

/// Takes what comes: all that was accepted before a clean end, in order, and nothing else.
async fn read(flow: Flow, receiver: &mut Receiver) {
    let mut taken = 0;
    let mut kept = None;
    loop {
        match receiver.recv().await {
            Ok(Some(message)) => {
                flow.check(taken, &message);
                taken += 1;
                kept = Some(message);
                pause().await;
            }
            Ok(None) => {
                assert_eq!(taken, flow.accepted(), "messages are missing before a clean end");
                break;
            }
            Err(RecvError::Closed(closed)) => {
                expect_gone(&closed);
                break;
            }
            // The runtime may go while a message is half sent.
            Err(RecvError::Truncated) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    drop(kept);
}

async fn writer(flow: Flow, mut connection: Connection) {
    match write(flow, connection.halves().0).await {
        Ok(()) => match connection.recv().await {
            Ok(None) => {}
            Ok(Some(_)) => panic!("a message of nobody"),
            Err(RecvError::Closed(closed)) => expect_gone(&closed),
            Err(error) => panic!("{error:?}"),
        },
        Err(error) => expect_unsent(&error),
    }
}

async fn reader(flow: Flow, mut connection: Connection) {
    read(flow, connection.halves().1).await;
    if let Err(error) = connection.shutdown().await {
        expect_unsent(&error);
    }
}

fn messages(rig: &Rig) -> Vec<Part> {
    both(rig, rig.pair(options()))
}

fn packets(rig: &Rig) -> Vec<Part> {
    both(rig, rig.pair_of_packets())
}

fn both(rig: &Rig, (left, right): (Connection, Connection)) -> Vec<Part> {
    let flow = Flow::new(rig, LENGTHS);
    vec![
        Part::new(rig, "writer", writer(flow.clone(), left)),
        Part::new(rig, "reader", reader(flow, right)),
    ]
}

/// Each half is a part, and messages go both ways.
fn halves(rig: &Rig) -> Vec<Part> {
    let (left, right) = rig.pair(options());
    let (there, back) = (Flow::new(rig, LENGTHS), Flow::new(rig, LENGTHS));
    let (left_sender, left_receiver) = left.split();
    let (right_sender, right_receiver) = right.split();
    let sends = |flow: Flow, mut sender: Sender| async move {
        if let Err(error) = write(flow, &mut sender).await {
            expect_unsent(&error);
        }
    };
    let reads = |flow: Flow, mut receiver: Receiver| async move { read(flow, &mut receiver).await };
    vec![
        Part::new(rig, "left sender", sends(there.clone(), left_sender)),
        Part::new(rig, "right receiver", reads(there, right_receiver)),
        Part::new(rig, "right sender", sends(back.clone(), right_sender)),
        Part::new(rig, "left receiver", reads(back, left_receiver)),
    ]
}

/// Bare bytes: what arrives is the beginning of what was sent.
fn bytes(rig: &Rig) -> Vec<Part> {
    let (left, right) = rig.pair(options().bytes());
    let flow = Flow::new(rig, LENGTHS);
    let reads = {
        let flow = flow.clone();
        async move {
            let mut right = right;
            let mut arrived = Vec::new();
            let clean = loop {
                match right.recv().await {
                    Ok(Some(piece)) => arrived.extend_from_slice(&piece),
                    Ok(None) => break true,
                    Err(RecvError::Closed(closed)) => {
                        expect_gone(&closed);
                        break false;
                    }
                    Err(error) => panic!("{error:?}"),
                }
                pause().await;
            };
            let sent: Vec<u8> = (0..MESSAGES).flat_map(|sequence| flow.payload(sequence)).collect();
            assert!(sent.starts_with(&arrived), "other bytes than were sent");
            // Without a framing an abort looks like an end, so how many there are says nothing.
            let _ = (clean, right.shutdown().await);
        }
    };
    vec![Part::new(rig, "writer", writer(flow, left)), Part::new(rig, "reader", reads)]
}

/// Messages with descriptors, some of which are never taken.
fn descriptors(rig: &Rig) -> Vec<Part> {
    let options = options().descriptors_max(2).descriptors_held_max(2);
    let (left, right) = rig.pair(options);
    let flow = Flow::new(rig, LENGTHS);
    let writes = {
        let flow = flow.clone();
        async move {
            let mut left = left;
            let null = File::open("/dev/null").expect("always there");
            for _ in 0..MESSAGES {
                let body = flow.payload(flow.accepted());
                match left.send_with_descriptors(&body, &[&null, &null]).await {
                    Ok(()) => flow.accept_one(),
                    Err(error) => return expect_unsent(&error),
                }
            }
            if let Err(error) = left.shutdown().await {
                expect_unsent(&error);
            }
        }
    };
    let reads = async move {
        let mut right = right;
        read(flow, right.halves().1).await;
    };
    vec![Part::new(rig, "writer", writes), Part::new(rig, "reader", reads)]
}

/// Clients of a listener.
fn listener(rig: &Rig) -> Vec<Part> {
    const CLIENTS: usize = 3;
    let address = names::next();
    let builder = Listener::builder().connection(options());
    let mut listener = builder.bind(format!("@{address}").as_str()).expect("a name");
    let serves = async move {
        for _ in 0..CLIENTS {
            let mut connection = match listener.accept().await {
                Ok(connection) => connection,
                Err(AcceptError::RuntimeEnded) => return,
                Err(error) => panic!("{error:?}"),
            };
            match connection.recv().await {
                Ok(Some(question)) => {
                    let _ = connection.send_message(question).await;
                    let _ = connection.shutdown().await;
                }
                Ok(None) => panic!("an end that nobody made"),
                Err(RecvError::Closed(closed)) => expect_gone(&closed),
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let client = |name| {
        // By hand: a connect may wait for the runtime's clock, which may have gone.
        let socket = UnixStream::connect_addr(&names::address(&address)).expect("room");
        let mut connection = Connection::from_socket(socket.into(), options());
        Part::new(rig, name, async move {
            if let Err(error) = connection.send(b"question").await {
                return expect_unsent(&error);
            }
            match connection.recv().await {
                Ok(Some(answer)) => assert_eq!(answer[..], *b"question"),
                Ok(None) => panic!("an end that nobody made"),
                Err(RecvError::Closed(closed)) => expect_gone(&closed),
                Err(error) => panic!("{error:?}"),
            }
        })
    };
    let clients = ["client 0", "client 1", "client 2"].map(client);
    let mut parts = vec![Part::new(rig, "listener", serves)];
    // A server that is gone leaves clients of the backlog with an end, and nobody to ask for more.
    parts.extend(clients);
    parts
}

/// A pair of datagram sockets, which both go: nobody tells a receiver that its sender is gone.
fn datagrams(rig: &Rig) -> Vec<Part> {
    const PACKETS: usize = 14;
    let (left, mut right) = Datagram::builder().pair().expect("sockets");
    let sends = async move {
        for _ in 0..PACKETS {
            if left.send(&[5; 100]).await.is_err() {
                return;
            }
        }
        // The runtime may be gone.
        let _ = left.flush().await;
    };
    let receives = async move {
        for _ in 0..PACKETS {
            match right.recv().await {
                Ok(packet) => assert_eq!(packet[..], [5; 100]),
                Err(error) => return assert!(error.is_final(), "{error:?}"),
            }
            pause().await;
        }
    };
    vec![Part::new(rig, "pair", both_to_their_ends(sends, receives))]
}

async fn both_to_their_ends(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let mut first = pin!(first);
    let mut second = pin!(second);
    let mut ended = [false; 2];
    poll_fn(|context| {
        ended[0] = ended[0] || first.as_mut().poll(context).is_ready();
        ended[1] = ended[1] || second.as_mut().poll(context).is_ready();
        if ended == [true; 2] { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Work from elsewhere: its result, or that there is none.
fn handle(rig: &Rig) -> Vec<Part> {
    let handle = rig.handle();
    let asks = async move {
        for round in 0..4_u32 {
            let made = handle.spawn(move || async move {
                pause().await;
                round
            });
            let Ok(receiver) = made else { return };
            match receiver.await {
                Ok(value) => assert_eq!(value, round),
                // The runtime has gone.
                Err(_) => assert!(handle.submit(|| {}).is_err(), "it has gone"),
            }
        }
    };
    vec![Part::new(rig, "asker", asks)]
}
