//! Connections that can't be made: the text names the address and the reason.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use ringpost::{
    BindOptions, Closed, ConnectError, Connection, ConnectionOptions, EngineChoice, Listener,
    sleep, spawn,
};
use ringpost_tests::on_both_engines;
use ringpost_tests::privileges::{NOBODY, root_or_skip};
use ringpost_tests::rig::{ask, block_on, blocking, echo, place};
use ringpost_uds::ConnectErrorKind;

use crate::roles;

on_both_engines!(
    nothing_to_connect_to,
    forbidden,
    a_full_backlog,
    no_greeting,
    abstract_names,
    long_paths
);

async fn refused(address: &str) -> (ConnectErrorKind, String) {
    match Connection::connect(address).await {
        Err(error @ ConnectError::Socket(_)) => {
            let ConnectError::Socket(source) = &error else { unreachable!() };
            (source.kind(), error.to_string())
        }
        other => panic!("{address}: {other:?}"),
    }
}

fn nothing_to_connect_to(engine: EngineChoice) {
    let (directory, path) = place();
    let path = path.to_str().expect("text");
    block_on(engine, async {
        let (kind, text) = refused(path).await;
        assert_eq!(kind, ConnectErrorKind::Missing);
        assert!(text.contains(path) && text.contains("no such path"), "{text}");

        drop(UnixListener::bind(path).expect("bind"));
        let (kind, text) = refused(path).await;
        assert_eq!(kind, ConnectErrorKind::Refused);
        assert!(text.contains(path) && text.contains("no server listens"), "{text}");

        let file = directory.path().join("file");
        std::fs::write(&file, b"x").expect("write");
        for (place, what) in [(file.as_path(), "file"), (directory.path(), "directory")] {
            let place = place.to_str().expect("text");
            let (kind, text) = refused(place).await;
            assert!(matches!(kind, ConnectErrorKind::NotASocket { .. }), "{kind:?}");
            assert!(text.contains(place) && text.contains(what), "{text}");
        }

        let long = format!("{}/{}", directory.path().display(), "n".repeat(300));
        let (kind, text) = refused(&long).await;
        assert_eq!(kind, ConnectErrorKind::PathTooLong);
        assert!(text.contains(&long), "{text}");

        let (kind, text) = refused("@ringpost-tests-nobody-has-this-name").await;
        assert!(matches!(kind, ConnectErrorKind::Missing | ConnectErrorKind::Refused), "{kind:?}");
        assert!(text.contains("@ringpost-tests-nobody-has-this-name"), "{text}");
    });
}

fn forbidden(engine: EngineChoice) {
    if !root_or_skip("connecting::forbidden") {
        return;
    }
    let (directory, path) = place();
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    block_on(engine, async {
        // The default mode is 0600.
        let _listener = Listener::bind(&path).expect("bind");
        for directory_mode in [0o755, 0o700] {
            set(directory.path(), directory_mode);
            let path = path.to_str().expect("text").to_owned();
            let words = [path.clone(), NOBODY.to_string()];
            let answer =
                blocking(move || roles::start("user", &[&words[0], &words[1]]).hear()).await;
            assert!(answer.starts_with("not connected: "), "{answer}");
            assert!(answer.contains(&path) && answer.contains("permission denied"), "{answer}");
        }
    });
}

/// The server is there but slow: connecting waits a little and gets through.
fn a_full_backlog(engine: EngineChoice) {
    let (_directory, path) = place();
    block_on(engine, async {
        let socket = ringpost_uds::bind(&(&path).into(), &BindOptions::new().backlog(1));
        let (socket, _guard) = socket.expect("bind").into_parts();
        let mut waiting = Vec::new();
        while let Ok(socket) = ringpost_uds::connect(&(&path).into()) {
            waiting.push(socket);
            assert!(waiting.len() < 10, "a backlog of one");
        }
        let start = Instant::now();
        let connecting = spawn(Connection::connect(path.clone()));
        sleep(Duration::from_millis(60)).await;
        assert!(!connecting.is_finished(), "it waits");
        // Now somebody accepts.
        let mut listener = Listener::from_socket(socket, ConnectionOptions::new());
        for _ in 0..=waiting.len() {
            spawn(async_echo(listener.accept().await.expect("accept")));
        }
        let mut connection = connecting.await.expect("no panic").expect("it got through");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        ask(&mut connection, 1, 100).await;
    });
}

/// Echoes until the peer goes, however it goes.
async fn async_echo(mut connection: Connection) {
    while let Ok(Some(message)) = connection.recv().await {
        let _ = connection.send_message(message).await;
    }
}

fn no_greeting(engine: EngineChoice) {
    let (_directory, path) = place();
    let silent = UnixListener::bind(&path).expect("bind");
    block_on(engine, async {
        let options = ConnectionOptions::new().handshake_ms_max(50);
        let error = Connection::connect_with(&path, options).await.expect_err("silence");
        let ConnectError::Handshake { source, .. } = &error else { panic!("{error}") };
        assert_eq!(*source, Closed::HandshakeTimeout { milliseconds: 50 });
        let text = error.to_string();
        assert!(text.contains(path.to_str().expect("text")) && text.contains("50 ms"), "{text}");
        // A server that hangs up.
        let closing = std::thread::spawn(move || drop((silent.accept(), silent.accept(), silent)));
        let error = Connection::connect(&path).await.expect_err("closed");
        let ConnectError::Handshake { source, .. } = &error else { panic!("{error}") };
        assert_eq!(*source, Closed::Aborted);
        closing.join().expect("no panic");
    });
}

fn abstract_names(engine: EngineChoice) {
    let name = format!("@ringpost-tests-{}-{engine:?}", std::process::id());
    block_on(engine, async {
        let mut listener = Listener::bind(name.as_str()).expect("bind");
        let connecting = spawn(Connection::connect(name));
        spawn(echo(listener.accept().await.expect("accept")));
        let mut client = connecting.await.expect("no panic").expect("connect");
        ask(&mut client, 1, 1000).await;
    });
}

/// Longer than a socket address holds.
fn long_paths(engine: EngineChoice) {
    let (directory, _) = place();
    let deep = directory.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).expect("make directories");
    let path = deep.join("long.sock");
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("bind");
        let connecting = spawn(Connection::connect(path.clone()));
        spawn(echo(listener.accept().await.expect("accept")));
        let mut client = connecting.await.expect("no panic").expect("connect");
        ask(&mut client, 1, 1000).await;
        drop(listener);
        assert!(!path.exists());
    });
}
