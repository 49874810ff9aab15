//! Connections that are made, many at once.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};

use ringpost::{Connection, ConnectionOptions, Listener, spawn};

use crate::rig::Rig;

/// Makes names that no other process has.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Clients that connect and ask, and some that connect and go; a server that takes its time, and goes while
/// others connect.
pub(crate) async fn accept(rig: Rig) {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = format!("ringpost-sim-{}-{number}", std::process::id());
    let options = rig.options();
    let mut listener =
        Listener::builder().connection(options).bind(format!("@{name}").as_str()).expect("a name");
    let clients = 1 + rig.below(12);
    let passers = rig.below(6);
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let server = spawn({
        let (rig, address) = (rig.clone(), address.clone());
        async move {
            let mut served = Vec::new();
            for _ in 0..clients + passers {
                let connection = listener.accept().await.expect("it goes on");
                served.push(spawn(serve(connection)));
                rig.dawdle().await;
            }
            let mut answered = 0;
            for task in served {
                answered += task.await.expect("served");
            }
            assert_eq!(answered, clients, "clients that were answered");
            // Accepted or not, nobody takes them.
            for _ in 0..rig.below(4) {
                drop(UnixStream::connect_addr(&address).expect("a connection"));
                rig.dawdle().await;
            }
        }
    });
    let mut tasks = Vec::new();
    for index in 0..clients + passers {
        if index < clients {
            let name = format!("@{name}");
            tasks.push(spawn(client(rig.clone(), name, options, index)));
            rig.dawdle().await;
        } else {
            drop(UnixStream::connect_addr(&address).expect("a connection"));
        }
    }
    for task in tasks {
        task.await.expect("answered");
    }
    server.await.expect("all were served");
}

async fn serve(mut connection: Connection) -> usize {
    let Ok(Some(question)) = connection.recv().await else { return 0 };
    connection.send_message(question).await.expect("room");
    connection.shutdown().await.expect("a proper end");
    assert!(matches!(connection.recv().await, Ok(None)), "a client ends properly");
    1
}

async fn client(rig: Rig, name: String, options: ConnectionOptions, index: usize) {
    let mut connection =
        Connection::connect_with(name.as_str(), options).await.expect("a connection");
    rig.dawdle().await;
    let question = [u8::try_from(index).expect("few"); 100];
    connection.send(&question).await.expect("room");
    let answer = connection.recv().await.expect("an answer").expect("no end");
    assert_eq!(answer[..], question, "the answer to another");
    connection.shutdown().await.expect("a proper end");
    assert!(matches!(connection.recv().await, Ok(None)), "the server ends properly");
}
