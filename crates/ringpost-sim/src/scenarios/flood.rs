//! More connections than anybody wants.

use std::os::unix::net::UnixStream;

use ringpost::sim::Fault;
use ringpost::{Closed, Connection, ConnectionOptions, HelloError, Listener, RecvError, spawn};
use ringpost_testkit::peer;

use crate::names;
use crate::raw::Raw;
use crate::rig::Rig;

/// Sockets at once, at most.
const SOCKETS_MAX: usize = 60;
/// How many of them come at once, at most.
const BURST_MAX: usize = 20;
/// What clients ask; their number follows.
const QUESTION: [u8; 64] = [9; 64];

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Asks, and is answered.
    Client,
    /// Goes at once.
    Passer,
    /// Says something else.
    Stranger,
    /// Greets and goes.
    Polite,
}

const CALLERS: [Caller; 4] = [Caller::Client, Caller::Passer, Caller::Stranger, Caller::Polite];

/// Bursts of clients, of sockets that go at once and of strangers, while the kernel refuses to accept now and
/// then, before a server that rests for long: each client is answered once, whoever else there is, and the
/// server is told what the others are.
pub(crate) async fn flood(rig: Rig) {
    if rig.below(2) == 0 {
        rig.expect(Fault::AcceptRefused, [16, 64, 100][rig.below(3)]);
    }
    let name = names::next();
    let address = names::address(&name);
    let options = rig.options();
    let mut listener =
        Listener::builder().connection(options).bind(format!("@{name}").as_str()).expect("a name");
    let callers: Vec<Caller> =
        (0..1 + rig.below(SOCKETS_MAX)).map(|_| CALLERS[rig.below(CALLERS.len())]).collect();
    let clients = callers.iter().filter(|&&caller| caller == Caller::Client).count();
    let server = spawn({
        let (rig, count) = (rig.clone(), callers.len());
        let rests = rig.below(6);
        async move {
            let mut served = Vec::new();
            for taken in 0..count {
                if rests > 0 && taken % (BURST_MAX / rests) == 0 {
                    rig.rest(20_000).await;
                }
                let connection = listener.accept().await.expect("it goes on");
                served.push(spawn(serve(rig.clone(), connection)));
            }
            let mut answered = 0;
            for task in served {
                answered += task.await.expect("served");
            }
            assert_eq!(answered, clients, "clients that were answered");
        }
    });
    let mut tasks = Vec::new();
    let mut burst = 1 + rig.below(BURST_MAX);
    for (index, caller) in callers.into_iter().enumerate() {
        if caller == Caller::Client {
            tasks.push(spawn(client(rig.clone(), format!("@{name}"), options, index)));
        } else {
            let socket = UnixStream::connect_addr(&address).expect("a connection");
            let mut other = Raw::new(&rig, socket);
            match caller {
                Caller::Stranger => tasks.push(spawn(async move {
                    other.send(b"GET / HTTP/1.1\r\n\r\n").await;
                    other.read_to_end().await;
                })),
                // It may be gone before any of it is read.
                Caller::Polite => assert!(other.send(&peer::greeting()).await, "room for it"),
                Caller::Client | Caller::Passer => {}
            }
        }
        burst -= 1;
        if burst == 0 {
            burst = 1 + rig.below(BURST_MAX);
            rig.rest([1, 500, 30_000][rig.below(3)]).await;
        }
    }
    for task in tasks {
        task.await.expect("answered");
    }
    server.await.expect("all were served");
}

/// One if it was a client.
async fn serve(rig: Rig, mut connection: Connection) -> usize {
    match connection.recv().await {
        Ok(Some(question)) => {
            assert_eq!(question[..QUESTION.len()], QUESTION, "a question of nobody");
            rig.dawdle().await;
            connection.send_message(question).await.expect("room");
            connection.shutdown().await.expect("a proper end");
            assert!(matches!(connection.recv().await, Ok(None)), "a client ends properly");
            1
        }
        Err(RecvError::Closed(Closed::Aborted)) => 0,
        Err(RecvError::Closed(Closed::Handshake(error))) => {
            assert!(matches!(*error, HelloError::BadMagic { .. }), "{error}");
            0
        }
        other => panic!("{other:?}"),
    }
}

async fn client(rig: Rig, name: String, options: ConnectionOptions, index: usize) {
    let mut connection =
        Connection::connect_with(name.as_str(), options).await.expect("a connection");
    rig.dawdle().await;
    let mut question = QUESTION.to_vec();
    question.extend(index.to_le_bytes());
    connection.send(&question).await.expect("room");
    let answer = connection.recv().await.expect("an answer").expect("no end");
    assert_eq!(answer[..], question, "the answer to another");
    connection.shutdown().await.expect("a proper end");
    assert!(matches!(connection.recv().await, Ok(None)), "the server ends properly");
}
