//! Timers, tasks, work from elsewhere, and drains.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ringpost::restart::Drain;
use ringpost::{Handle, JoinError, sleep, sleep_until, spawn, timeout, yield_now};

use super::cut::{Cut, persist};
use super::{Operation, operations};
use crate::rig::Rig;

const REST: Duration = Duration::from_millis(1);

pub(super) const OPERATIONS: &[Operation] = operations! {
    "sleep" |rig, cut| timing(rig, cut, Time::Sleep);
    "sleep_until" |rig, cut| timing(rig, cut, Time::Until);
    "timeout" |rig, cut| timing(rig, cut, Time::Out);
    "yield_now" yielding;
    "Future for JoinHandle::poll" joining;
    "JoinHandle::cancel" cancelling;
    "Handle::spawn" spawning;
    "Handle::submit" submitting;
    "Drain::finished" |rig, cut| draining(rig, cut, Wait::Finished);
    "Hold::begun" |rig, cut| draining(rig, cut, Wait::Begun);
    "Hold::until_begun" |rig, cut| draining(rig, cut, Wait::UntilBegun);
};

#[derive(Debug, Clone, Copy)]
enum Time {
    Sleep,
    Until,
    Out,
}

/// Waits for the clock among others that do.
async fn timing(rig: Rig, cut: Cut, how: Time) {
    let other = spawn(async { sleep(REST / 2).await });
    let start = rig.now();
    rig.waits(REST * 4);
    match how {
        Time::Sleep => persist!(cut, sleep(REST)),
        Time::Until => persist!(cut, sleep_until(start + REST)),
        Time::Out => {
            persist!(cut, timeout(REST, std::future::pending::<()>())).expect_err("no end");
            persist!(cut, timeout(REST, sleep(REST / 4))).expect("in time");
        }
    }
    assert!(rig.now() >= start + REST, "too early");
    // What was dropped leaves no timer that counts.
    other.await.expect("all goes well");
    sleep(REST).await;
}

async fn yielding(_: Rig, cut: Cut) {
    let other = spawn(async { yield_now().await });
    for _ in 0..3 {
        persist!(cut, yield_now());
    }
    other.await.expect("all goes well");
}

/// Sets a flag when it is dropped.
struct Flag(Rc<Cell<bool>>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// Waits for tasks. One whose handle is dropped goes on by itself.
async fn joining(rig: Rig, cut: Cut) {
    for round in 0..3 {
        let ended = Rc::new(Cell::new(false));
        let task = spawn({
            let (rig, flag) = (rig.clone(), Flag(Rc::clone(&ended)));
            async move {
                for _ in 0..round {
                    rig.rest(100).await;
                }
                drop(flag);
                round
            }
        });
        match cut.run(task).await {
            Some(result) => assert_eq!(result.expect("all goes well"), round),
            None => {
                // Time may jump, so that a rest of the task ends with one of these.
                for _ in 0..round + 2 {
                    rig.rest(1000).await;
                }
            }
        }
        assert!(ended.get(), "a task has not ended");
    }
}

/// Ends tasks. Their futures are dropped, whether or not anybody waits for it.
async fn cancelling(rig: Rig, cut: Cut) {
    for round in 0..3 {
        let ended = Rc::new(Cell::new(false));
        let task = spawn({
            let (rig, flag) = (rig.clone(), Flag(Rc::clone(&ended)));
            async move {
                if round > 0 {
                    rig.rest(500).await;
                }
                drop(flag);
            }
        });
        for _ in 0..round {
            yield_now().await;
        }
        let cancelled = cut.run(task.cancel()).await;
        if cancelled.is_none() {
            // Never polled, it was not cancelled: its handle was dropped.
            rig.rest(1000).await;
        }
        assert!(ended.get(), "a task has not ended");
    }
}

/// Work from elsewhere whose result nobody waits for any more is done all the same.
async fn spawning(rig: Rig, cut: Cut) {
    let handle = rig.handle();
    for round in 0..3_u32 {
        let receiver = handle.spawn(move || async move {
            for _ in 0..round {
                sleep(REST).await;
            }
            round
        });
        rig.waits(REST * round);
        match cut.run(receiver.expect("room")).await {
            Some(value) => assert_eq!(value.expect("a result"), round),
            None => rig.rest(4000).await,
        }
    }
}

/// Work is run once, also if whoever has brought it is gone.
async fn submitting(rig: Rig, cut: Cut) {
    let done = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let bring = |handle: Handle| {
        let done = std::sync::Arc::clone(&done);
        async move {
            yield_now().await;
            let work = move || {
                done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            };
            handle.submit(work).expect("room");
            yield_now().await;
        }
    };
    let mut brought = 0;
    for _ in 0..2 {
        if cut.run(bring(rig.handle())).await.is_some() {
            brought += 1;
        }
    }
    rig.rest(100).await;
    let done = done.load(std::sync::atomic::Ordering::Relaxed);
    assert!(done == brought || done == brought + 1, "{done} of {brought} were done");
}

#[derive(Debug, Clone, Copy)]
enum Wait {
    Finished,
    Begun,
    UntilBegun,
}

/// A drain with several who wait: dropping one takes nothing from the others.
async fn draining(rig: Rig, cut: Cut, how: Wait) {
    let drain = Drain::new();
    let worker = spawn({
        let (rig, hold) = (rig.clone(), drain.hold());
        async move {
            hold.begun().await;
            rig.rest(500).await;
        }
    });
    let beginner = spawn({
        let (rig, drain) = (rig.clone(), drain.clone());
        async move {
            rig.rest(500).await;
            drain.begin();
        }
    });
    let limit = Duration::from_secs(1);
    match how {
        Wait::Finished => persist!(cut, drain.finished(limit)).expect("in time"),
        Wait::Begun => {
            let hold = drain.hold();
            persist!(cut, hold.begun());
        }
        Wait::UntilBegun => {
            let hold = drain.hold();
            let rested = persist!(cut, hold.until_begun(sleep(REST / 4)));
            // Time may jump to where both are due.
            assert!(rested.is_some() || drain.is_begun(), "it has not begun");
            rig.waits(REST);
            assert_eq!(persist!(cut, hold.until_begun(sleep(limit))), None);
        }
    }
    drain.finished(limit).await.expect("in time");
    for task in [worker, beginner] {
        match task.await {
            Ok(()) => {}
            Err(JoinError::Panicked(panic)) => std::panic::resume_unwind(panic.into_payload()),
            Err(error) => panic!("{error}"),
        }
    }
}
