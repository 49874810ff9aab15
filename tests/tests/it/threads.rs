//! Other threads: work for the runtime, results back, wake-ups, messages that travel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ringpost::{
    ConnectionOptions, EngineChoice, Handle, JoinError, Spin, SubmitError, oneshot, sleep, spawn,
};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{ask, block_on, builder, echo, join, pair, run, runtime, until};

on_both_engines!(
    work_from_four_threads,
    a_full_mailbox,
    results_come_back,
    after_the_end,
    work_that_is_never_run,
    woken_from_elsewhere,
    cancelled_tasks,
    a_panic_stays_in_its_task,
    a_panic_stays_in_its_work,
    messages_dropped_elsewhere
);

/// Whether the runtime parks or spins, each piece of work is run once, in the order of its thread.
fn work_from_four_threads(engine: EngineChoice) {
    const EACH: u64 = 2000;
    for spin in [Spin::Never, Spin::default(), Spin::Always] {
        let runtime = builder(engine).spin(spin).build().expect("a runtime");
        let counts: Arc<[AtomicU64; 4]> = Arc::default();
        let threads: Vec<_> = (0..4)
            .map(|thread: usize| {
                let (handle, counts) = (runtime.handle(), Arc::clone(&counts));
                thread::spawn(move || submit_all(&handle, &counts, thread, EACH))
            })
            .collect();
        run(&runtime, async {
            let done = || counts.iter().all(|count| count.load(Ordering::Relaxed) == EACH);
            until("all work is done", done).await;
            for thread in threads {
                join(thread).await;
            }
        });
    }
}

fn submit_all(handle: &Handle, counts: &Arc<[AtomicU64; 4]>, thread: usize, each: u64) {
    for sequence in 0..each {
        loop {
            let counts = Arc::clone(counts);
            let work = move || {
                // Out of order, it never counts to the end.
                let (next, order) = (sequence + 1, Ordering::Relaxed);
                let _ = counts[thread].compare_exchange(sequence, next, order, order);
            };
            match handle.submit(work) {
                Ok(()) => break,
                Err(SubmitError::Full { .. }) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        if sequence % 300 == 0 {
            // Long enough for the runtime to park.
            thread::sleep(Duration::from_micros(300));
        }
    }
}

fn a_full_mailbox(engine: EngineChoice) {
    let runtime = builder(engine).inbox_capacity(16).build().expect("a runtime");
    let handle = runtime.handle();
    let done = Arc::new(AtomicU64::new(0));
    let mut accepted = 0;
    let error = loop {
        let done = Arc::clone(&done);
        let work = move || {
            done.fetch_add(1, Ordering::Relaxed);
        };
        match handle.submit(work) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    let SubmitError::Full { capacity } = error else { panic!("{error}") };
    assert_eq!(accepted, capacity);
    assert!(capacity >= 16);
    let text = format!("the runtime's mailbox is full: {capacity} items wait");
    assert_eq!(error.to_string(), text);
    run(&runtime, async {
        let all = || done.load(Ordering::Relaxed) == accepted as u64;
        until("all of it is done", all).await;
        handle.submit(|| ()).expect("there is room again");
    });
}

fn results_come_back(engine: EngineChoice) {
    let (stop, stopped) = oneshot::<()>();
    let (sender, handles) = mpsc::channel();
    let server = thread::spawn(move || {
        let runtime = runtime(engine);
        sender.send(runtime.handle()).expect("wanted");
        run(&runtime, stopped).expect("told to stop");
    });
    let handle = handles.recv().expect("a handle");
    // By blocking.
    let work = || async {
        let (mut client, server) = pair(ConnectionOptions::new());
        spawn(echo(server));
        ask(&mut client, 5, 1000).await;
        thread::current().id()
    };
    let receiver = handle.spawn(work).expect("room");
    let id = receiver.blocking_recv(Some(Duration::from_secs(5))).expect("a result");
    assert_eq!(id, server.thread().id());
    // As a future of another runtime.
    block_on(engine, async {
        for number in 0..100_u32 {
            let receiver = handle.spawn(move || async move { number * 2 }).expect("room");
            assert_eq!(receiver.await.expect("a result"), number * 2);
        }
    });
    // A receiver that has gone is no trouble.
    drop(handle.spawn(|| async { vec![1] }).expect("room"));
    handle.wake();
    stop.send(()).expect("it waits");
    server.join().expect("no panic");
}

fn after_the_end(engine: EngineChoice) {
    let runtime = runtime(engine);
    let handle = runtime.handle();
    drop(runtime);
    assert_eq!(handle.submit(|| panic!("must not run")), Err(SubmitError::RuntimeEnded));
    let spawned = handle.spawn(|| async { 1 }).map(|_| ());
    assert_eq!(spawned, Err(SubmitError::RuntimeEnded));
    assert_eq!(SubmitError::RuntimeEnded.to_string(), "the runtime has ended");
    handle.wake();
}

/// Work that was queued when the runtime ended is dropped; who waits for its result learns it.
fn work_that_is_never_run(engine: EngineChoice) {
    let runtime = runtime(engine);
    let handle = runtime.handle();
    let queued = handle.spawn(|| async { 1 }).expect("room");
    let never = handle.spawn(std::future::pending::<()>).expect("room");
    // Run as far as it goes.
    assert_eq!(run(&runtime, queued), Ok(1));
    let last = handle.spawn(|| async { 2 }).expect("room");
    drop(runtime);
    let canceled = never.blocking_recv(Some(Duration::from_secs(1))).expect_err("it never ended");
    assert_eq!(canceled.to_string(), "the request was canceled before it was answered");
    last.blocking_recv(Some(Duration::from_secs(1))).expect_err("never run");
}

fn woken_from_elsewhere(engine: EngineChoice) {
    block_on(engine, async {
        let tasks: Vec<_> = (0..20_u64)
            .map(|number| {
                spawn(async move {
                    for round in 0..20 {
                        let (sender, receiver) = oneshot();
                        let thread = thread::spawn(move || {
                            if round % 3 == 0 {
                                thread::sleep(Duration::from_micros(200));
                            }
                            sender.send(number * round).expect("it waits");
                        });
                        assert_eq!(receiver.await.expect("sent"), number * round);
                        thread.join().expect("no panic");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    });
}

fn cancelled_tasks(engine: EngineChoice) {
    struct Witness(Arc<AtomicU64>);
    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    block_on(engine, async {
        let dropped = Arc::new(AtomicU64::new(0));
        let witness = Witness(Arc::clone(&dropped));
        let waiting = spawn(async move {
            let _witness = witness;
            std::future::pending::<()>().await;
        });
        sleep(Duration::from_millis(1)).await;
        assert!(!waiting.is_finished());
        assert!(waiting.cancel().await.is_none());
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        // Finished before: the value is handed out.
        let finished = spawn(async { 5 });
        sleep(Duration::from_millis(1)).await;
        assert!(finished.is_finished());
        assert_eq!(finished.cancel().await.expect("a value").expect("no panic"), 5);
        // Never run.
        let witness = Witness(Arc::clone(&dropped));
        assert!(spawn(async move { drop(witness) }).cancel().await.is_none());
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        // A connection in a cancelled task is closed.
        let (mut left, mut right) = pair(ConnectionOptions::new());
        let holding = spawn(async move { right.recv().await.map(|_| ()) });
        left.ready().await.expect("greeted");
        assert!(holding.cancel().await.is_none());
        left.recv().await.map(|_| ()).expect_err("the peer is gone");
    });
}

fn a_panic_stays_in_its_task(engine: EngineChoice) {
    block_on(engine, async {
        let (mut client, server) = pair(ConnectionOptions::new());
        spawn(echo(server));
        let (mut left, mut right) = pair(ConnectionOptions::new());
        let number = 7;
        let failing = spawn(async move {
            right.recv().await.expect("open");
            panic!("deliberate, number {number}");
        });
        left.send(b"go").await.expect("open");
        let error = failing.await.expect_err("it panics");
        assert_eq!(error.to_string(), "the task panicked: deliberate, number 7");
        let JoinError::Panicked(panic) = error else { panic!("{error}") };
        assert_eq!(panic.message(), "deliberate, number 7");
        assert!(panic.into_payload().downcast_ref::<String>().is_some());
        left.recv().await.map(|_| ()).expect_err("its connection went with it");
        // Detached.
        drop(spawn(async { panic!("deliberate, and nobody looks") }));
        ask(&mut client, 1, 1000).await;
    });
}

/// Neither the runtime nor the work behind it ends with it.
fn a_panic_stays_in_its_work(engine: EngineChoice) {
    let runtime = runtime(engine);
    let handle = runtime.handle();
    let (sender, answer) = oneshot();
    handle.submit(|| panic!("on purpose")).expect("room");
    let made = handle.spawn(|| -> std::future::Ready<u32> { panic!("on purpose") }).expect("room");
    handle.submit(move || sender.send(7).expect("it is waited for")).expect("room");
    run(&runtime, async {
        assert_eq!(answer.await, Ok(7));
        assert!(made.await.is_err(), "there is no future");
    });
}

fn messages_dropped_elsewhere(engine: EngineChoice) {
    const COUNT: u64 = 3000;
    const LEN: usize = 3000;
    let runtime = builder(engine).pool_bytes(1 << 20).build().expect("a runtime");
    run(&runtime, async {
        let (to_worker, work) = mpsc::channel::<(u64, ringpost::Message)>();
        let worker = thread::spawn(move || {
            for (sequence, message) in work {
                pattern::check(sequence, LEN, &message);
            }
        });
        let (mut left, mut right) = pair(ConnectionOptions::new());
        let sending = spawn(async move {
            for sequence in 0..COUNT {
                let sent = left.send_with(LEN, |bytes| pattern::fill(sequence, bytes)).await;
                sent.expect("the reader reads");
            }
            left.shutdown().await.expect("the reader reads");
        });
        let mut sequence = 0;
        while let Some(message) = right.recv().await.expect("a message") {
            to_worker.send((sequence, message)).expect("it works");
            sequence += 1;
        }
        assert_eq!(sequence, COUNT);
        sending.await.expect("no panic");
        drop(to_worker);
        join(worker).await;
        until("the pool is back", || ringpost::stats().pool_blocks_leased == 0).await;
    });
}
