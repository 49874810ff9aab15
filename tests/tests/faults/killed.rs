//! SIGKILL before every system call of a client's and of a server's life.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use ringpost::{
    Closed, Connection, EngineChoice, Listener, RecvError, SendError, Spin, sleep, spawn,
};
use ringpost_testkit::process::{names, sockets_below};
use ringpost_testkit::trace::Step;
use ringpost_testkit::{pattern, process};
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::residue::Holdings;
use ringpost_tests::rig::{Bystander, blocking, builder, place, run, until};

use crate::roles::{self, LENS, options};
use crate::sweep::kill_at;

on_both_engines_alone!(a_client, a_server);

/// How conversations ended, counted.
type Ends = RefCell<BTreeMap<String, u32>>;

fn count(ends: &Ends, end: String) {
    *ends.borrow_mut().entry(end).or_default() += 1;
}

/// A server survives its clients: each connection ends with a proper end or a typed error, others are served,
/// and nothing is left of them.
fn a_client(engine: EngineChoice) {
    let (directory, path) = place();
    let directory = directory.path();
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    let before = process::descriptors();
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let mut listener = Listener::builder().connection(options()).bind(&path).expect("bind");
        let (open, ends) = (Rc::new(Cell::new(0_u32)), Rc::new(Ends::default()));
        let accepting = {
            let (open, ends) = (Rc::clone(&open), Rc::clone(&ends));
            spawn(async move {
                loop {
                    let connection = listener.accept().await.expect("accepting goes on");
                    open.set(open.get() + 1);
                    let (open, ends) = (Rc::clone(&open), Rc::clone(&ends));
                    spawn(async move {
                        count(&ends, serve(connection).await);
                        open.set(open.get() - 1);
                    });
                }
            })
        };
        bystander.check().await;
        let mut calls = 0;
        let mut holdings = None;
        loop {
            let path = path.clone();
            let step = blocking(move || {
                let child = roles::start("client", engine, &path, &[]);
                kill_at("faults::killed::a_client", child, calls)
            });
            let Some(step) = step.await else { return };
            bystander.check().await;
            until("all connections have ended", || open.get() == 0).await;
            match &holdings {
                // Taken after the first, which brings the allocator to its size.
                None => holdings = Some(Holdings::now()),
                Some(holdings) => holdings.descriptors_are_back().await,
            }
            if step == Step::Ended {
                break;
            }
            calls += 1;
        }
        println!("{calls} calls, ends: {:#?}", ends.borrow());
        assert!(calls > 30, "a life has {calls} system calls");
        holdings.expect("taken").check_memory();
        assert_eq!(names(directory), ["test.sock", "test.sock.lock"]);
        until("the listening socket is the only one", || sockets_below(directory) == 1).await;
        bystander.check().await;
        accepting.cancel().await;
    });
    assert!(names(directory).is_empty(), "{:?}", names(directory));
    drop(runtime);
    assert_eq!(sockets_below(directory), 0);
    assert!(process::descriptors() < before, "{} descriptors", process::descriptors());
}

/// Sends back what comes, which is whole and in order; tells how it ended.
async fn serve(mut connection: Connection) -> String {
    for sequence in 0.. {
        match connection.recv().await {
            Ok(Some(mut message)) => {
                let number = usize::try_from(sequence).expect("small");
                pattern::check(sequence, LENS[number], &message);
                drop(message.take_descriptors());
                // Why it can't be sent is told to who receives.
                let _ = connection.send_message(message).await;
            }
            Ok(None) => {
                let _ = connection.shutdown().await;
                return "proper".to_owned();
            }
            Err(error @ (RecvError::Truncated | RecvError::Closed(Closed::Aborted))) => {
                return error.to_string();
            }
            Err(other) => panic!("another error: {other:?}"),
        }
    }
    unreachable!("a life has few messages")
}

/// A client survives its server: its calls end with what it asked for or a typed error. Whatever the server
/// has left, the next one starts at the same path at once, and leaves nothing.
fn a_server(engine: EngineChoice) {
    let (directory, path) = place();
    let directory = directory.path();
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    run(&runtime, async {
        let mut bystander = Bystander::new();
        bystander.check().await;
        let (ends, left) = (Ends::default(), Ends::default());
        let mut calls = 0;
        let mut holdings = None;
        loop {
            let alive = Rc::new(Cell::new(true));
            let talk = spawn({
                let (path, alive) = (path.clone(), Rc::clone(&alive));
                async move { converse(&path, &alive).await }
            });
            let own = path.clone();
            let step = blocking(move || {
                let child = roles::start("server", engine, &own, &[]);
                kill_at("faults::killed::a_server", child, calls)
            });
            let Some(step) = step.await else { return };
            alive.set(false);
            count(&ends, talk.await.expect("no panic"));
            bystander.check().await;

            let residue = names(directory);
            let kinds: Vec<&str> = residue.iter().map(|name| kind(name)).collect();
            count(&left, kinds.join(" and "));
            let next = Listener::bind(&path);
            let next = next.unwrap_or_else(|error| panic!("{residue:?} is in the way: {error}"));
            assert_eq!(names(directory), ["test.sock", "test.sock.lock"]);
            drop(next);
            assert!(names(directory).is_empty(), "{:?}", names(directory));
            until("the server's sockets are gone", || sockets_below(directory) == 0).await;
            match &holdings {
                None => holdings = Some(Holdings::now()),
                Some(holdings) => holdings.descriptors_are_back().await,
            }
            if step == Step::Ended {
                assert!(residue.is_empty(), "a server that ends by itself leaves nothing");
                break;
            }
            calls += 1;
        }
        println!("{calls} calls, ends: {:#?}, left: {left:#?}", ends.borrow());
        assert!(calls > 30, "a life has {calls} system calls");
        holdings.expect("taken").check_memory();
    });
}

/// What a name in the socket's directory is.
fn kind(name: &str) -> &str {
    match name {
        "test.sock" => "socket",
        "test.sock.lock" => "lock",
        _ => "temporary",
    }
}

/// Connects as long as there may be a server, and talks with it; tells how it ended.
async fn converse(path: &Path, alive: &Cell<bool>) -> String {
    let mut connection = loop {
        match Connection::connect_with(path, options()).await {
            Ok(connection) => break connection,
            Err(_) if alive.get() => sleep(std::time::Duration::from_micros(300)).await,
            Err(error) => return why(&error),
        }
    };
    for (sequence, len) in (0..).zip(LENS) {
        let sent = connection.send_with(len, |bytes| pattern::fill(sequence, bytes)).await;
        match sent {
            Ok(()) | Err(SendError::Closed(Closed::Aborted)) => {}
            Err(other) => panic!("another error: {other:?}"),
        }
        match connection.recv().await {
            Ok(Some(message)) => pattern::check(sequence, len, &message),
            Ok(None) => return "ended early".to_owned(),
            Err(error @ (RecvError::Truncated | RecvError::Closed(Closed::Aborted))) => {
                return format!("{error}, at message {sequence}");
            }
            Err(other) => panic!("another error: {other:?}"),
        }
    }
    match connection.shutdown().await {
        Ok(()) | Err(SendError::Closed(Closed::Aborted)) => {}
        Err(other) => panic!("another error: {other:?}"),
    }
    match connection.recv().await {
        Ok(None) => "proper".to_owned(),
        Err(error @ RecvError::Closed(Closed::Aborted)) => format!("{error}, at the end"),
        other => panic!("another end: {other:?}"),
    }
}

/// The error without the path, which differs from run to run.
fn why(error: &ringpost::ConnectError) -> String {
    match error {
        ringpost::ConnectError::Socket(error) => format!("{:?}", error.kind()),
        ringpost::ConnectError::Handshake { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}
