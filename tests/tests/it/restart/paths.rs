//! Who owns the path of a socket that has been handed over.

use std::path::Path;

use ringpost::restart::{Inherited, Parcel, Predecessor, RestartError, STATE_BYTES_MAX, Successor};
use ringpost::{AcceptError, Connection, EngineChoice, Listener};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{ask, block_on, blocking, echo, place};

on_both_engines!(the_owner_removes_the_path, abstract_names, everything_in_a_parcel);

/// Hands over within this process.
async fn restart(mut predecessor: Predecessor, control: &Path, state: &[u8]) -> Inherited {
    let control = control.to_path_buf();
    let taking = ringpost::spawn(blocking(move || Successor::connect(&control)?.take_over()));
    let ready = predecessor.successor().await.expect("it is ready");
    ready.commit(state).await.expect("taken");
    taking.await.expect("no panic").expect("taken over")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("readable");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

async fn is_served(path: &str, listener: &mut Listener) {
    let path = path.to_owned();
    let client = ringpost::spawn(async move {
        let mut client = Connection::connect(path).await.expect("not refused");
        ask(&mut client, 1, 10).await;
        client.shutdown().await.expect("open");
        assert!(client.recv().await.expect("open").is_none());
    });
    echo(listener.accept().await.expect("accepts")).await;
    client.await.expect("served");
}

fn the_owner_removes_the_path(engine: EngineChoice) {
    let (directory, path) = place();
    let control = directory.path().join("control");
    let all = ["control", "control.lock", "test.sock", "test.sock.lock"];
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("bind");
        let parcel = Parcel::new().listener("a", &listener).expect("fits");
        let mut predecessor = Predecessor::bind(&control, parcel).expect("bind");
        for _ in 0..5 {
            let mut inherited = restart(predecessor, &control, b"").await;
            assert_eq!(listener.accept().await.map(drop), Err(AcceptError::HandedOver));
            let socket = inherited.listener("a").expect("sent");
            assert_eq!(socket.address().and_then(|address| address.as_path()), Some(&*path));
            // The former owner's end removes nothing.
            listener = socket.listen(Listener::builder());
            assert_eq!(names(directory.path()), all);
            assert!(listener.is_in_place());
            is_served(path.to_str().expect("text"), &mut listener).await;
            // The lock is held: nobody else can start.
            assert!(Listener::bind(&path).expect_err("in use").is_address_in_use());
            let parcel = Parcel::new().listener("a", &listener).expect("fits");
            predecessor = Predecessor::builder().inherit(inherited.into_control(), parcel);
        }
        drop(predecessor);
        assert_eq!(names(directory.path()), ["test.sock", "test.sock.lock"]);
        drop(listener);
        assert!(names(directory.path()).is_empty());
    });
}

fn abstract_names(engine: EngineChoice) {
    let engine_name = format!("{engine:?}");
    block_on(engine, async {
        let name = format!("@ringpost-restart-{}-{engine_name}", std::process::id());
        let (_directory, control) = place();
        let listener = Listener::bind(name.as_str()).expect("bind");
        let parcel = Parcel::new().listener("a", &listener).expect("fits");
        let predecessor = Predecessor::bind(&control, parcel).expect("bind");
        let mut inherited = restart(predecessor, &control, b"").await;
        drop(listener);
        let mut listener = inherited.listener("a").expect("sent").listen(Listener::builder());
        is_served(&name, &mut listener).await;
    });
}

fn everything_in_a_parcel(engine: EngineChoice) {
    block_on(engine, async {
        let (directory, control) = place();
        let path = directory.path().join("log");
        let file = || std::fs::File::create(&path).expect("created").into();
        let state = vec![7; STATE_BYTES_MAX];
        let parcel = Parcel::new().descriptor("log", file()).expect("fits");
        assert!(matches!(
            parcel.descriptor("log", file()),
            Err(RestartError::Duplicate { name }) if name == "log"
        ));
        assert!(matches!(
            Parcel::new().descriptor(&"n".repeat(256), file()),
            Err(RestartError::TooMuch { value: 256, limit: 255, .. })
        ));
        assert!(matches!(
            Parcel::new().state(vec![0; STATE_BYTES_MAX + 1]),
            Err(RestartError::TooMuch { .. })
        ));
        let mut parcel = Parcel::new().state(state.clone()).expect("fits");
        for number in 0..200 {
            parcel = parcel.descriptor(&number.to_string(), file()).expect("fits");
        }
        let mut predecessor = Predecessor::bind(&control, parcel).expect("bind");
        let to = control.clone();
        let taking = ringpost::spawn(blocking(move || {
            let mut successor = Successor::connect(&to)?;
            let log = successor.descriptor("17").expect("sent");
            assert!(successor.descriptor("17").is_none(), "taken");
            assert_eq!(successor.listeners().count(), 0);
            use std::io::Write;
            std::fs::File::from(log).write_all(b"by the successor").expect("writable");
            let state = successor.state().to_vec();
            successor.take_over().map(|inherited| (state, inherited))
        }));
        let ready = predecessor.successor().await.expect("ready");
        assert_eq!(ready.connections_max(), 0, "none asked for");
        ready.commit(&state).await.expect("taken");
        let (first, inherited) = taking.await.expect("no panic").expect("taken over");
        assert!(first == state && inherited.state() == state);
        assert!(!inherited.predecessor_ended());
        assert_eq!(std::fs::read(&path).expect("there"), b"by the successor");

        // A listener that is gone.
        let (_other, control) = place();
        let listener = Listener::bind(directory.path().join("gone")).expect("bind");
        let parcel = Parcel::new().listener("gone", &listener).expect("fits");
        drop(listener);
        let mut predecessor = Predecessor::bind(&control, parcel).expect("bind");
        let taking = ringpost::spawn(blocking(move || Successor::connect(&control).map(drop)));
        let error = predecessor.successor().await.expect_err("it is gone");
        assert!(matches!(error, RestartError::ListenerGone { .. }), "{error}");
        let error = taking.await.expect("no panic").expect_err("sent away");
        assert!(matches!(error, RestartError::GaveUp { .. }), "{error}");
        let nobody = Successor::connect(directory.path().join("none")).expect_err("nobody");
        assert!(nobody.is_no_predecessor(), "{nobody}");
    });
}
