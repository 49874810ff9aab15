//! Runtimes that end in unusual ways with operations in flight: with their thread, in an unwinding stack, or
//! not at all. Peers see the end, and nothing stays that can be given back. (Usual ends: `it::runtime_end`.)

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use ringpost::{Connection, ConnectionOptions, EngineChoice, Listener, Runtime, spawn};
use ringpost_testkit::child::{self, say};
use ringpost_testkit::patience::eventually;
use ringpost_testkit::process::{self, names, sockets_below};
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::rig::{adopt, builder, place, run, runtime, sockets};

use crate::roles;

on_both_engines_alone!(
    threads_end,
    in_an_unwinding_stack,
    from_a_thread_local,
    leaked_until_the_process_ends,
    messages_outlive_their_thread
);

/// Longest wait for the end of a socket.
const LIMIT: Duration = Duration::from_secs(10);

/// Receives, sends that wait for room, an accept, timers, all in flight. Gives back the peers.
fn busy(runtime: &Runtime, path: &Path) -> (Vec<UnixStream>, Listener) {
    let mut peers = Vec::new();
    let listener = run(runtime, async {
        let listener = Listener::bind(path).expect("bind");
        for _ in 0..20 {
            let (ours, theirs) = sockets();
            let (mut sender, mut receiver) = adopt(ours, ConnectionOptions::new().bytes()).split();
            spawn(async move {
                let _ = receiver.recv().await;
            });
            spawn(async move { while sender.send(&[7; 50_000]).await.is_ok() {} });
            peers.push(theirs);
        }
        spawn(ringpost::sleep(Duration::from_secs(3600)));
        for _ in 0..20 {
            ringpost::yield_now().await;
        }
        listener
    });
    assert!(runtime.stats().operations_in_flight >= 40, "{:?}", runtime.stats());
    (peers, listener)
}

/// Every peer sees the end, behind what was sent.
fn expect_ends(peers: &[UnixStream]) {
    for peer in peers {
        peer.set_read_timeout(Some(LIMIT)).expect("a socket");
        let mut bytes = Vec::new();
        // ECONNRESET is an end as well: it had sent nothing that we had read.
        match (&mut &*peer).read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}"),
        }
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}

/// Threads that end with a busy runtime in a local variable of theirs.
fn threads_end(engine: EngineChoice) {
    let (directory, path) = place();
    let mut before = 0;
    for round in 0..10 {
        if round == 2 {
            before = process::descriptors();
        }
        let path = path.clone();
        let thread = std::thread::spawn(move || {
            let runtime = runtime(engine);
            busy(&runtime, &path).0
        });
        expect_ends(&thread.join().expect("no panic"));
    }
    eventually("descriptors are back", LIMIT, || process::descriptors() <= before);
    assert!(names(directory.path()).is_empty());
}

fn in_an_unwinding_stack(engine: EngineChoice) {
    let (directory, path) = place();
    let peers = std::cell::RefCell::new(Vec::new());
    let mut before = 0;
    for round in 0..10 {
        if round == 2 {
            before = process::descriptors();
        }
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let runtime = runtime(engine);
            let (ends, _listener) = busy(&runtime, &path);
            *peers.borrow_mut() = ends;
            // From within, with the runtime entered and a turn under way.
            runtime.block_on(async {
                ringpost::yield_now().await;
                std::panic::resume_unwind(Box::new("unwinding"));
            });
        }));
        assert!(unwound.is_err());
        expect_ends(&peers.take());
    }
    eventually("descriptors are back", LIMIT, || process::descriptors() <= before);
    assert!(names(directory.path()).is_empty());
}

thread_local! {
    static KEPT: std::cell::RefCell<Option<(Listener, Runtime)>> =
        const { std::cell::RefCell::new(None) };
}

/// Dropped by the destructor of a thread-local value, when the library's own may be gone.
fn from_a_thread_local(engine: EngineChoice) {
    let (directory, path) = place();
    for _ in 0..5 {
        let path = path.clone();
        let thread = std::thread::spawn(move || {
            // First, so that it is destroyed after the library's, or before: both orders occur.
            KEPT.with(|kept| kept.borrow().is_none());
            let runtime = runtime(engine);
            let (peers, listener) = busy(&runtime, &path);
            KEPT.with(|kept| *kept.borrow_mut() = Some((listener, runtime)));
            peers
        });
        expect_ends(&thread.join().expect("no panic"));
    }
    assert!(names(directory.path()).is_empty());
}

/// A process that leaks its runtime, and ends: the kernel closes everything, and the next takes over the path.
fn leaked_until_the_process_ends(engine: EngineChoice) {
    let (directory, path) = place();
    let directory = directory.path();
    for how in ["forgets", "exits", "aborts"] {
        let mut child = roles::start("leaker", engine, &path, &[how]);
        assert_eq!(child.hear(), "leaked");
        let mut peer = UnixStream::connect(&path).expect("it listens");
        child.tell("end");
        let status = child.wait(child::LIMIT);
        assert_eq!(status.success(), how != "aborts", "{how}: {status}");
        peer.set_read_timeout(Some(LIMIT)).expect("a socket");
        // Goes on after EINTR, which the work of a ring of this thread brings a read with a limit in time.
        match peer.read_to_end(&mut Vec::new()) {
            Ok(count) => assert_eq!(count, 0, "{how}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET), "{error}"),
        }
        drop(peer);
        eventually("its sockets are gone", LIMIT, || sockets_below(directory) == 0);
        run(&runtime(engine), async {
            drop(Listener::bind(&path).unwrap_or_else(|error| panic!("{how}: {error}")));
        });
        assert!(names(directory).is_empty(), "{how}: {:?}", names(directory));
    }
}

/// The leaker's side.
#[expect(clippy::mem_forget, reason = "leaking is the subject")]
pub(crate) fn leak(engine: EngineChoice, path: &str, how: &str) {
    let runtime = runtime(engine);
    let (peers, listener) = busy(&runtime, path.as_ref());
    std::mem::forget((peers, listener));
    std::mem::forget(runtime);
    say("leaked");
    child::told();
    match how {
        "exits" => std::process::exit(0),
        "aborts" => std::process::abort(),
        _ => {}
    }
}

/// Messages that are lent from the pool of a runtime whose thread has ended.
fn messages_outlive_their_thread(engine: EngineChoice) {
    const LEN: usize = 3000;
    let thread = std::thread::spawn(move || {
        let runtime = builder(engine).build().expect("a runtime");
        run(&runtime, async {
            let (ours, theirs) = sockets();
            let mut right = adopt(theirs, ConnectionOptions::new());
            let mut left: Connection = adopt(ours, ConnectionOptions::new());
            let mut messages = Vec::new();
            for sequence in 0..50 {
                let fill = |bytes: &mut [u8]| ringpost_testkit::pattern::fill(sequence, bytes);
                let sent = async {
                    left.send_with(LEN, fill).await?;
                    left.flush().await
                };
                let (sent, received) = futures_util::future::join(sent, right.recv()).await;
                sent.expect("open");
                messages.push(received.expect("open").expect("no end"));
            }
            messages
        })
    });
    let messages = thread.join().expect("no panic");
    for (sequence, message) in (0..).zip(&messages) {
        ringpost_testkit::pattern::check(sequence, LEN, message);
    }
    drop(messages);
}
