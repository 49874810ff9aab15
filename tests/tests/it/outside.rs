//! Sockets that others have made: adopted, passed by a service manager, named by the kernel.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use ringpost::{
    AccessPolicy, Activation, Address, Connection, ConnectionOptions, Datagram, EngineChoice,
    Listener, spawn,
};
use ringpost_testkit::child;
use ringpost_tests::engines::URING;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{ask, block_on, blocking, echo, place};

on_both_engines!(
    adopted_listeners,
    adopted_connections,
    adopted_datagrams,
    names_of_the_kernel,
    activated,
    activated_datagrams,
);

fn adopted_listeners(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let theirs = OwnedFd::from(UnixListener::bind(&path).expect("bind"));
        let copy = theirs.try_clone().expect("a free descriptor");
        let mut listener =
            Listener::try_from_socket(theirs, ConnectionOptions::new()).expect("it listens");
        let server = spawn(async move {
            echo(listener.accept().await.expect("accept")).await;
        });
        let mut client = Connection::connect(&path).await.expect("connect");
        ask(&mut client, 1, 1000).await;
        client.shutdown().await.expect("the server reads");
        server.await.expect("no panic");
        assert!(path.exists(), "the path is theirs");

        // With a policy; and who holds the socket besides goes on with it.
        let stranger = rustix::process::geteuid().as_raw() + 1;
        let policy = AccessPolicy::anyone().allow_uid(stranger);
        let mut listener =
            Listener::builder().policy(policy).adopt_socket(copy).expect("it listens");
        spawn(async move { drop(listener.accept().await) });
        let mut client = Connection::connect(&path).await.expect("connect");
        let error = client.recv().await.expect_err("refused");
        assert!(error.to_string().contains("may not connect: allowed are only uid"), "{error}");

        let (one, _other) = UnixStream::pair().expect("pair");
        let error = Listener::try_from_socket(one.into(), ConnectionOptions::new());
        let error = error.expect_err("no listener");
        let expected = "the descriptor is a connected Unix-domain stream socket; this takes a \
                        listening Unix-domain stream socket";
        assert_eq!(error.to_string(), expected);
        drop(UnixStream::from(error.into_socket()));
    });
}

fn adopted_connections(engine: EngineChoice) {
    let (directory, path) = place();
    block_on(engine, async {
        let (one, other) = UnixStream::pair().expect("pair");
        let options = ConnectionOptions::new();
        let server = Connection::try_from_socket(one.into(), options).expect("connected");
        let mut client = Connection::try_from_socket(other.into(), options).expect("connected");
        spawn(echo(server));
        ask(&mut client, 1, 1000).await;

        let refused = |socket: OwnedFd| {
            let error = Connection::try_from_socket(socket, options).expect_err("no connection");
            error.to_string()
        };
        let text = refused(UnixListener::bind(&path).expect("bind").into());
        assert!(text.contains("is a listening Unix-domain stream socket"), "{text}");
        let text = refused(std::fs::File::open(directory.path()).expect("open").into());
        assert!(text.contains("is a directory"), "{text}");
    });
}

fn adopted_datagrams(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let bound = UnixDatagram::bind(&path).expect("free");
        let mut server = Datagram::builder().adopt_socket(bound.into()).expect("a datagram socket");
        let client = Datagram::connect(&path).expect("it receives");
        client.send(b"question").await.expect("room");
        assert_eq!(*server.recv().await.expect("a message"), *b"question");
        drop(server);
        assert!(path.exists(), "the path is theirs");

        let (one, _other) = UnixStream::pair().expect("a pair");
        let error = Datagram::builder().adopt_socket(one.into()).expect_err("a stream");
        let expected = "the descriptor is a connected Unix-domain stream socket; this takes a \
                        connected Unix-domain datagram socket";
        assert_eq!(error.to_string(), expected);
        drop(UnixStream::from(error.into_socket()));
    });
}

fn names_of_the_kernel(engine: EngineChoice) {
    block_on(engine, async {
        let policy = AccessPolicy::anyone().same_user();
        let mut listener = Listener::builder().policy(policy).autobind().expect("a name");
        let address = listener.address().expect("chosen").clone();
        assert!(matches!(&address, Address::Abstract(name) if name.len() == 5), "{address}");
        let server = spawn(async move { listener.accept().await.map(echo).expect("us").await });
        let mut client = Connection::connect(address.to_string()).await.expect("connect");
        ask(&mut client, 1, 1000).await;
        client.shutdown().await.expect("the server reads");
        server.await.expect("no panic");
    });
}

fn activated(engine: EngineChoice) {
    let (_directory, path) = place();
    let mut service = start(engine, UnixListener::bind(&path).expect("bind").into());
    block_on(engine, async {
        let mut client = Connection::connect(&path).await.expect("it listened from the start");
        assert_eq!(client.peer_credentials().expect("a Unix socket").pid, Some(std::process::id()));
        ask(&mut client, 1, 1000).await;
        client.shutdown().await.expect("the service reads");
        let status = blocking(move || service.wait()).await.expect("ours");
        assert!(status.success(), "{status}");
    });
    assert!(path.exists(), "the path is the manager's");
}

fn activated_datagrams(engine: EngineChoice) {
    let (_directory, path) = place();
    let mut service = start(engine, UnixDatagram::bind(&path).expect("bind").into());
    block_on(engine, async {
        let mut client = Datagram::builder().autobind().expect("a name");
        client.connect_to(&path).expect("it received from the start");
        client.send(b"question").await.expect("room");
        assert_eq!(*client.recv().await.expect("an answer"), *b"question");
        let status = blocking(move || service.wait()).await.expect("ours");
        assert!(status.success(), "{status}");
    });
    assert!(path.exists(), "the path is the manager's");
}

/// Starts [`service`] in a process of its own, as a service manager would, with this socket.
fn start(engine: EngineChoice, socket: OwnedFd) -> Child {
    let engine_name = if engine == URING { "uring" } else { "epoll" };
    let (_, test) = concat!(module_path!(), "::service").split_once("::").expect("a path");
    let script = format!(
        "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec \"$0\" \
         --exact {test} --nocapture"
    );
    Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().expect("own path"))
        .env(ENGINE, engine_name)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .spawn()
        .expect("start a service")
}

/// The service's side of [`activated`] and [`activated_datagrams`]. As a test of its own it does nothing.
#[test]
fn service() {
    let Ok(engine) = std::env::var(ENGINE) else { return };
    let engine = if engine == "uring" { URING } else { EngineChoice::Epoll };
    let mut activation = Activation::take().expect("passed");
    block_on(engine, async {
        let error = Listener::from_activation(&mut activation, "app").expect_err("another name");
        assert_eq!(error.to_string(), "no descriptor has the name \"app\"; there are \"web\"");
        let error = Connection::from_activation(&mut activation, "web", ConnectionOptions::new());
        let text = error.expect_err("not connected").to_string();
        if text.contains("datagram socket") {
            let mut socket =
                Datagram::builder().activated(&mut activation, "web").expect("it is there");
            let question = socket.recv().await.expect("a question");
            socket.send_to(question.sender_name(), &question).await.expect("room");
            return socket.flush().await.expect("taken");
        }
        assert!(text.contains("is a listening"), "{text}");
        let error = Datagram::builder().activated(&mut activation, "web");
        assert!(error.expect_err("a stream").to_string().contains("is a listening"));
        let mut listener = Listener::from_activation(&mut activation, "web").expect("it is there");
        assert_eq!(listener.address(), None);
        echo(listener.accept().await.expect("accept")).await;
    });
    child::say("served");
}

const ENGINE: &str = "RINGPOST_TEST_SERVICE_ENGINE";
