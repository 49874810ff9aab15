//! io_uring that is refused after the runtime was built, as by a filter that a service installs once it is
//! set up: every operation ends with a typed error, peers see the end, nothing hangs, nothing panics.
//! (Refused before: `it::refused_uring`.)

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ringpost::{
    AcceptError, Closed, ConnectError, Connection, ConnectionOptions, Datagram, EngineChoice,
    Listener, RecvError, Runtime, SendError, Spin, sleep, spawn, timeout,
};
use ringpost_testkit::child::{isolated, skip};
use ringpost_testkit::patience::eventually;
use ringpost_testkit::process::descriptors;
use ringpost_tests::privileges::refuse_calls;
use ringpost_tests::rig::{adopt, ask, block_on, echo, pair, place, sockets};

/// Longest wait for an error.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn every_operation_ends() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
        let case = errno.to_string();
        isolated(concat!(module_path!(), "::every_operation_ends"), &[(CASE, &case)], || {
            // In the child the loop starts anew; it runs the case it was given.
            if std::env::var(CASE).is_ok_and(|wanted| wanted == case) {
                let (directory, inherited) = place();
                let before = descriptors();
                // A ring that can't be unregistered is held by its thread.
                let path = inherited.clone();
                let thread = thread::spawn(move || refuse_later(errno, &path));
                thread.join().expect("no panic");
                // The doorbell stays with the receive blocks, which the kernel was not seen to give back.
                eventually("descriptors are back", LIMIT, || descriptors() <= before + 1);
                // Nobody listens where the path is not ours to remove.
                let closed = || UnixStream::connect(&inherited).is_err();
                eventually("an inherited socket is closed", LIMIT, closed);
                drop(directory);
            }
        });
    }
}

const CASE: &str = "RINGPOST_TEST_CASE";

/// Ends in time.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} never ends"))
}

fn refuse_later(errno: i32, inherited: &Path) {
    let built = Runtime::builder().spin(Spin::Never).engine(EngineChoice::Uring).build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => return skip("refused_later::every_operation_ends", &error.to_string()),
    };
    let (_directory, path) = place();
    let socket = std::os::unix::net::UnixListener::bind(inherited).expect("bind");
    let refused = Closed::Kernel { errno };
    let peers = runtime.block_on(async {
        let mut listener = Listener::bind(&path).expect("bind");
        let _kept = Listener::from_socket(socket.into(), ConnectionOptions::new());
        let (mut client, mut server) = pair(ConnectionOptions::new());
        spawn(async move {
            while let Ok(Some(message)) = server.recv().await {
                let _ = server.send_message(message).await;
            }
        });
        ask(&mut client, 0, 64).await;
        let (ours, theirs) = sockets();
        let mut silent = adopt(ours, ConnectionOptions::new().bytes());
        let mut datagram = Datagram::builder().autobind().expect("a socket");
        let (ours, _open) = sockets();
        let waiting = spawn({
            let mut connection = adopt(ours, ConnectionOptions::new().bytes());
            async move { connection.recv().await.map(|_| ()) }
        });
        ringpost::yield_now().await;

        refuse_calls(
            &[libc::SYS_io_uring_enter, libc::SYS_io_uring_register, libc::SYS_io_uring_setup],
            errno,
        );
        // What was under way.
        let end = soon("a receive", silent.recv()).await.map(|_| ());
        assert_eq!(end, Err(RecvError::Closed(refused.clone())));
        let end = soon("a waiting task", waiting).await.expect("no panic");
        assert!(end.is_err(), "{end:?}");
        assert_eq!(
            soon("an accept", listener.accept()).await.map(|_| ()),
            Err(AcceptError::Kernel { errno })
        );
        // What is asked for now.
        let end = soon("a send", async { client.send(b"x").await.and(client.flush().await) });
        assert_eq!(end.await, Err(SendError::Closed(refused.clone())));
        let end = soon("a shutdown", client.shutdown()).await;
        assert_eq!(end, Err(SendError::Closed(refused.clone())));
        let end = soon("a receive", client.recv()).await.map(|_| ());
        assert_eq!(end, Err(RecvError::Closed(refused.clone())));
        assert!(soon("a datagram", datagram.recv()).await.is_err());
        // What is new.
        let (ours, newer) = sockets();
        let mut fresh = adopt(ours, ConnectionOptions::new().bytes());
        let end = soon("a new receive", fresh.recv()).await.map(|_| ());
        assert_eq!(end, Err(RecvError::Closed(refused.clone())));
        let (ours, newest) = sockets();
        let mut fresher = adopt(ours, ConnectionOptions::new().bytes());
        let end = async { fresher.send(b"x").await.and(fresher.flush().await) };
        assert_eq!(soon("a new send", end).await, Err(SendError::Closed(refused.clone())));
        let server = std::os::unix::net::UnixListener::bind(path.with_extension("other"));
        let server = server.expect("bind");
        let end = soon("a new connect", Connection::connect(path.with_extension("other"))).await;
        let Err(ConnectError::Handshake { source, .. }) = end else { panic!("{end:?}") };
        assert_eq!(source, refused);
        drop(server);
        let mut late = Listener::bind(path.with_extension("late")).expect("bind");
        let end = soon("a new accept", late.accept()).await.map(|_| ());
        assert_eq!(end, Err(AcceptError::Kernel { errno }));
        let mut late = Datagram::bind(path.with_extension("datagram")).expect("bind");
        assert!(soon("a new datagram", late.recv()).await.is_err());
        // What needs no engine goes on.
        soon("a timer", sleep(Duration::from_millis(20))).await;
        soon("a task", spawn(async {})).await.expect("no panic");
        drop(silent);
        expect_end(&theirs);
        drop((fresh, fresher));
        expect_end(&newer);
        expect_end(&newest);
        let (ours, last) = sockets();
        let dropped = adopt(ours, ConnectionOptions::new().bytes());
        drop(dropped);
        expect_end(&last);
        // A connection that ends with the runtime, whose peer outlives it.
        let (ours, outliving) = sockets();
        let mut kept = adopt(ours, ConnectionOptions::new().bytes());
        spawn(async move {
            let _ = kept.recv().await;
            std::future::pending::<()>().await;
        });
        outliving
    });
    let start = Instant::now();
    drop(runtime);
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    expect_end(&peers);
    assert!(!path.exists(), "the path is removed");
    // The process has the other engine.
    block_on(EngineChoice::Epoll, async {
        let (mut client, server) = pair(ConnectionOptions::new());
        spawn(echo(server));
        ask(&mut client, 0, 64).await;
    });
}

/// The peer of a connection that was dropped sees that, and nothing before.
fn expect_end(mut peer: &UnixStream) {
    peer.set_read_timeout(Some(LIMIT)).expect("a socket");
    let mut bytes = Vec::new();
    assert_eq!(peer.read_to_end(&mut bytes).expect("an end"), 0, "{bytes:?}");
}
