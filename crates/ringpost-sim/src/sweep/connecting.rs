//! How connections come to be, and how they leave a runtime.

use std::cell::Cell;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use futures_io::AsyncRead;
use ringpost::restart::{Parcel, Predecessor};
use ringpost::{ByteStream, Closed, Connection, JoinHandle, Listener, RecvError, spawn};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use super::cut::{Cut, persist};
use super::peers::{LENGTHS, MESSAGES, options, pair, sockets};
use super::{Operation, operations};
use crate::flow::Flow;
use crate::names;
use crate::rig::Rig;

pub(super) const OPERATIONS: &[Operation] = operations! {
    "Listener::accept" |rig, cut| accepting(rig, cut, Accept::Connection);
    "Listener::accept_socket" |rig, cut| accepting(rig, cut, Accept::Socket);
    "Listener::accept_stream" accepting_streams;
    "Connection::connect" |rig, cut| connecting(rig, cut, Connect::Default);
    "Connection::connect_with" |rig, cut| connecting(rig, cut, Connect::With);
    "ByteStream::connect" connecting_streams;
    "Connection::ready" |rig, cut| greeting(rig, cut, Waits::Connection);
    "Sender::ready" |rig, cut| greeting(rig, cut, Waits::Sender);
    "Connection::detach" detaching;
    "Sender::peer_going_away" going_away;
    "Predecessor::successor" awaiting_successors;
};

#[derive(Debug, Clone, Copy)]
enum Accept {
    Connection,
    Socket,
}

/// Clients of a listener.
const CLIENTS: u8 = 5;

/// Clients that come one after another, more than the queue takes: each is served once.
async fn accepting(rig: Rig, cut: Cut, how: Accept) {
    let name = names::next();
    let address = format!("@{name}");
    let builder = Listener::builder().connection(options());
    let mut listener = builder.bind(address.as_str()).expect("a name");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|index| {
            let (rig, address) = (rig.clone(), address.clone());
            spawn(async move {
                rig.rest(u64::from(index / 2) * 300).await;
                let client = Connection::connect_with(address.as_str(), options()).await;
                let mut client = client.expect("a connection");
                client.send(&[index; 10]).await.expect("room");
                let answer = client.recv().await.expect("an answer").expect("no end");
                assert_eq!(answer[..], [index; 10], "the answer to another");
                client.shutdown().await.expect("a proper end");
                assert!(client.recv().await.expect("a clean end").is_none());
            })
        })
        .collect();
    let mut served = Vec::new();
    for _ in 0..CLIENTS {
        let connection = match how {
            Accept::Connection => persist!(cut, listener.accept()).expect("it goes on"),
            Accept::Socket => {
                let socket = persist!(cut, listener.accept_socket()).expect("it goes on");
                Connection::from_socket(socket, options())
            }
        };
        served.push(spawn(serve(connection)));
    }
    for task in clients {
        task.await.expect("answered");
    }
    let mut answered = 0;
    for task in served {
        answered += u32::from(task.await.expect("served"));
    }
    assert_eq!(answered, u32::from(CLIENTS), "clients that were answered");
}

/// Answers a client once. False if it went before.
async fn serve(mut connection: Connection) -> bool {
    let question = match connection.recv().await {
        Ok(Some(question)) => question,
        Err(RecvError::Closed(Closed::Aborted)) => return false,
        other => panic!("{other:?} in place of a question or an abort"),
    };
    connection.send_message(question).await.expect("room");
    connection.shutdown().await.expect("a proper end");
    assert!(connection.recv().await.expect("a clean end").is_none());
    true
}

/// Foreign clients that say something and listen.
async fn accepting_streams(rig: Rig, cut: Cut) {
    let name = names::next();
    let mut listener = Listener::bind(format!("@{name}").as_str()).expect("a name");
    let clients = spawn({
        let rig = rig.clone();
        async move {
            let mut clients = Vec::new();
            for index in 0..CLIENTS {
                let mut client = UnixStream::connect_addr(&names::address(&name)).expect("room");
                client.write_all(&[index]).expect("room");
                clients.push(client);
                rig.rest(300).await;
            }
            clients
        }
    });
    let mut streams = Vec::new();
    for index in 0..CLIENTS {
        let mut stream = persist!(cut, listener.accept_stream()).expect("it goes on");
        let mut byte = [0; 4];
        let read = poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut byte)).await;
        assert_eq!(read.expect("a byte"), 1);
        assert_eq!(byte[0], index, "a stream was lost");
        streams.push(stream);
    }
    let clients = clients.await.expect("all goes well");
    drop(streams);
    ringpost::yield_now().await;
    for mut client in clients {
        assert_eq!(client.read(&mut [0; 4]).expect("an end"), 0);
    }
}

#[derive(Debug, Clone, Copy)]
enum Connect {
    Default,
    With,
}

/// A listening socket whose backlog is full, and who fills it.
fn busy(name: &str) -> (OwnedFd, UnixStream) {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let socket = socket.expect("a socket");
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("short");
    bind(&socket, &address).expect("a name");
    listen(&socket, 0).expect("a backlog");
    (socket, UnixStream::connect_addr(&names::address(name)).expect("one place"))
}

/// Connects while the backlog is full: those that were given up leave nothing behind.
async fn connecting(rig: Rig, cut: Cut, how: Connect) {
    let name = names::next();
    let (socket, blocker) = busy(&name);
    let served: Rc<RefCell<Vec<JoinHandle<bool>>>> = Rc::default();
    let server = spawn({
        let (rig, served) = (rig.clone(), Rc::clone(&served));
        async move {
            rig.rest(1000).await;
            let mut listener = Listener::from_socket(socket, options());
            drop(blocker);
            loop {
                let connection = listener.accept().await.expect("it goes on");
                served.borrow_mut().push(spawn(serve(connection)));
            }
        }
    });
    let address = format!("@{name}");
    let connection = match how {
        Connect::Default => persist!(cut, Connection::connect(address.as_str())),
        Connect::With => persist!(cut, Connection::connect_with(address.as_str(), options())),
    };
    let mut connection = connection.expect("a connection");
    connection.send(b"question").await.expect("room");
    let answer = connection.recv().await.expect("an answer").expect("no end");
    assert_eq!(answer[..], *b"question");
    connection.shutdown().await.expect("a proper end");
    assert!(connection.recv().await.expect("a clean end").is_none());
    assert!(server.cancel().await.is_none(), "the server has ended");
    let served = served.take();
    let mut answered = 0;
    for task in served {
        answered += u32::from(task.await.expect("served"));
    }
    assert_eq!(answered, 1, "clients that were answered");
}

async fn connecting_streams(rig: Rig, cut: Cut) {
    let name = names::next();
    let (socket, blocker) = busy(&name);
    let server = spawn(async move {
        rig.rest(1000).await;
        let listener = UnixListener::from(socket);
        drop(listener.accept().expect("the first one"));
        drop(blocker);
        rig.rest(100_000).await;
        let (mut stream, _) = listener.accept().expect("the one that stays");
        listener.set_nonblocking(true).expect("a socket");
        assert!(listener.accept().is_err(), "a connection of nobody");
        stream.write_all(b"hello").expect("room");
    });
    let stream = persist!(cut, ByteStream::connect(format!("@{name}").as_str()));
    let mut stream = stream.expect("a connection");
    let (mut bytes, mut len) = ([0; 5], 0);
    while len < bytes.len() {
        let read = poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut bytes[len..]));
        let count = read.await.expect("bytes");
        assert!(count > 0, "the stream ended after {len} bytes");
        len += count;
    }
    assert_eq!(bytes, *b"hello");
    server.await.expect("all goes well");
}

/// Who waits for a greeting.
#[derive(Debug, Clone, Copy)]
enum Waits {
    Connection,
    Sender,
}

/// Waits for the greeting of a peer that takes its time.
async fn greeting(rig: Rig, cut: Cut, who: Waits) {
    let (left, right) = sockets();
    let peer = spawn(async move {
        rig.rest(500).await;
        let mut right = Connection::from_socket(right, options());
        right.ready().await.expect("a greeting");
        right.shutdown().await.expect("a proper end");
        assert!(right.recv().await.expect("a clean end").is_none());
    });
    let mut left = Connection::from_socket(left, options());
    match who {
        Waits::Connection => persist!(cut, left.ready()).expect("a greeting"),
        Waits::Sender => {
            let sender = left.halves().0;
            persist!(cut, sender.ready()).expect("a greeting");
        }
    }
    assert!(left.agreement().is_some());
    left.shutdown().await.expect("a proper end");
    assert!(left.recv().await.expect("a clean end").is_none());
    peer.await.expect("all goes well");
}

/// Takes a connection off the runtime in the midst of its messages. A detach that is dropped closes it:
/// what was accepted still arrives.
async fn detaching(rig: Rig, cut: Cut) {
    let (left, mut right) = pair(options());
    let flow = Flow::new(&rig, LENGTHS);
    let writer = spawn({
        let flow = flow.clone();
        async move {
            let mut left = left;
            for _ in 0..MESSAGES {
                let body = flow.payload(flow.accepted());
                left.send(&body).await.expect("room");
                flow.accept_one();
            }
            let detached = cut.run(left.detach(Duration::from_secs(1))).await?;
            let mut left = detached.expect("all was read").attach();
            left.shutdown().await.expect("a proper end");
            assert!(left.recv().await.expect("a clean end").is_none());
            Some(())
        }
    });
    let mut taken = 0;
    let end = loop {
        rig.rest(100).await;
        match right.recv().await {
            Ok(Some(message)) => flow.check(taken, &message),
            end => break end,
        }
        taken += 1;
    };
    assert_eq!(taken, flow.accepted(), "messages are missing before {end:?}");
    if end.is_ok() {
        right.shutdown().await.expect("a proper end");
    }
    let whole = writer.await.expect("all goes well").is_some();
    match end {
        Ok(None) => assert!(whole, "a clean end that nobody made"),
        Err(RecvError::Closed(Closed::Aborted)) => assert!(!whole, "aborted"),
        other => panic!("{other:?}"),
    }
}

/// Waits for the peer to ask for an end, while another task receives.
async fn going_away(rig: Rig, cut: Cut) {
    let (left, right) = pair(options());
    let peer = spawn(async move {
        let mut right = right;
        right.send(&[1; 100]).await.expect("room");
        rig.rest(500).await;
        right.go_away().expect("an open connection");
        assert!(right.recv().await.expect("a clean end").is_none());
        right.shutdown().await.expect("a proper end");
    });
    let (mut sender, mut receiver) = left.split();
    let reader = spawn(async move {
        let mut taken = 0;
        while receiver.recv().await.expect("messages and an end").is_some() {
            taken += 1;
        }
        taken
    });
    persist!(cut, sender.peer_going_away());
    sender.shutdown().await.expect("a proper end");
    assert_eq!(reader.await.expect("all goes well"), 1);
    peer.await.expect("all goes well");
}

/// Successors that fail: each is told as an error, and the next one is waited for.
async fn awaiting_successors(rig: Rig, cut: Cut) {
    let name = names::next();
    let parcel = Parcel::new();
    let mut predecessor = Predecessor::bind(format!("@{name}").as_str(), parcel).expect("a name");
    // One that comes while another is at it does not show up, so that they come until there were enough.
    let enough = Rc::new(Cell::new(false));
    let successors = spawn({
        let enough = Rc::clone(&enough);
        async move {
            let mut sockets = Vec::new();
            for garbage in [&[][..], &[0; 3], &[0xAA; 64]].into_iter().cycle() {
                // Later ones come slowly: the backlog must not fill while accepting rests.
                rig.rest(if sockets.len() < 3 { 500 } else { 200_000 }).await;
                if enough.get() {
                    break;
                }
                let mut socket = UnixStream::connect_addr(&names::address(&name)).expect("room");
                socket.write_all(garbage).expect("room");
                if garbage.len() < 10 {
                    socket.shutdown(std::net::Shutdown::Write).expect("connected");
                }
                sockets.push(socket);
            }
            sockets
        }
    });
    for _ in 0..3 {
        let error = persist!(cut, predecessor.successor()).expect_err("no successor");
        assert!(!error.is_final(), "{error}");
    }
    enough.set(true);
    drop(predecessor);
    drop(successors.await.expect("all goes well"));
}
