//! A storm of signals whose handler does not restart calls: every call may fail with EINTR, and nothing is
//! lost, doubled or failed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ringpost::{Connection, ConnectionOptions, EngineChoice, Listener, Spin, spawn};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::rig::{adopt, ask, block_on, builder, echo, join, place, run, sockets};

on_both_engines_alone!(messages_flow, everything_else);

static CAUGHT: AtomicU64 = AtomicU64::new(0);

extern "C" fn caught(_signal: libc::c_int) {
    CAUGHT.fetch_add(1, Ordering::Relaxed);
}

/// Sends SIGUSR1 to the calling thread for as long as `body` runs; tells how many came.
fn in_a_storm<T>(body: impl FnOnce() -> T) -> (T, u64) {
    // SAFETY: `sigaction` is plain data, and all zero is one of its values: no flags, and with that no
    // SA_RESTART, and nothing blocked meanwhile.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = caught as *const () as usize;
    // SAFETY: the handler touches an atomic only; both pointers are good for the call.
    let installed =
        unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(installed, 0);
    // SAFETY: tells who we are.
    let thread = unsafe { libc::pthread_self() };
    let before = CAUGHT.load(Ordering::Relaxed);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                // SAFETY: the thread lives until this one has been joined.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        let value = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        over.store(true, Ordering::Release);
        storm.join().expect("no panic");
        let value = value.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (value, CAUGHT.load(Ordering::Relaxed) - before)
    })
}

fn messages_flow(engine: EngineChoice) {
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    let ((), caught) = in_a_storm(|| {
        run(&runtime, async {
            // On another thread, so that this one parks.
            let (ours, theirs) = sockets();
            let server = std::thread::spawn(move || {
                block_on(engine, async { echo(adopt(theirs, ConnectionOptions::new())).await });
            });
            let mut client = adopt(ours, ConnectionOptions::new());
            // One at a time; then many; then large ones, which wait for room.
            let mut sequence = 0;
            while sequence < 3000 || CAUGHT.load(Ordering::Relaxed) < 2000 {
                ask(&mut client, sequence, 64).await;
                sequence += 1;
            }
            let (mut sender, mut receiver) = client.split();
            let sending = spawn(async move {
                for sequence in 0..200 {
                    let fill = |bytes: &mut [u8]| pattern::fill(sequence, bytes);
                    sender.send_with(100_000, fill).await.expect("open");
                }
                sender.shutdown().await.expect("open");
            });
            for sequence in 0..200 {
                let message = receiver.recv().await.expect("a message").expect("no end");
                pattern::check(sequence, 100_000, &message);
            }
            assert!(receiver.recv().await.expect("a proper end").is_none());
            sending.await.expect("no panic");
            join(server).await;
        });
    });
    assert!(caught >= 2000, "{caught} signals");
}

/// Building runtimes, binding, connecting, accepting, timers, descriptors, and the end.
fn everything_else(engine: EngineChoice) {
    let (directory, path) = place();
    let ((), caught) = in_a_storm(|| {
        for round in 0..40 {
            let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
            run(&runtime, async {
                let options = ConnectionOptions::new().descriptors_max(4);
                let builder = Listener::builder().connection(options);
                let mut listener = builder.bind(&path).expect("bind");
                let serving =
                    spawn(async move { echo(listener.accept().await.expect("accept")).await });
                let mut client = Connection::connect_with(&path, options).await.expect("connect");
                let file = tempfile::tempfile().expect("a file");
                let sent = client.send_with_descriptors(b"file", &[file]).await;
                sent.expect("open");
                let mut back = client.recv().await.expect("open").expect("no end");
                assert_eq!(*back, *b"file");
                drop(back.take_descriptors());
                ringpost::sleep(Duration::from_micros(500)).await;
                ask(&mut client, round, 3000).await;
                client.shutdown().await.expect("open");
                assert!(client.recv().await.expect("a proper end").is_none());
                serving.await.expect("no panic");
            });
        }
    });
    assert!(caught > 100, "{caught} signals");
    assert!(ringpost_testkit::process::names(directory.path()).is_empty());
}
