//! L5: the oneshot.
#![expect(
    clippy::disallowed_types,
    reason = "a std waker needs a std Arc; flags are read after join"
)]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use loom::future::block_on;
use loom::thread;

use super::harness::Explorer;
use crate::{Canceled, OneshotReceiver, oneshot};

/// L5. Each way in which the two sides can meet.
pub(super) fn send_poll_drop(explorer: &Explorer) {
    explorer.check(send_against_poll);
    explorer.check(drop_against_poll);
    explorer.check(send_against_drop);
    explorer.check(|| end_against_new_waker(true));
    explorer.check(|| end_against_new_waker(false));
}

fn send_against_poll() {
    let (value, drops) = counted();
    let (sender, receiver) = oneshot();
    let thread = thread::spawn(move || assert!(sender.send(value).is_ok()));
    let received = block_on(receiver).expect("the sender does send");
    assert_eq!(drops.count(), 0);
    drop(received);
    thread.join().unwrap();
    assert_eq!(drops.count(), 1);
}

fn drop_against_poll() {
    let (sender, receiver) = oneshot::<Counted>();
    let thread = thread::spawn(move || drop(sender));
    assert!(matches!(block_on(receiver), Err(Canceled)));
    thread.join().unwrap();
}

fn send_against_drop() {
    let (value, drops) = counted();
    let (sender, receiver) = oneshot();
    let thread = thread::spawn({
        let drops = drops.clone();
        move || {
            let closed_before = sender.is_closed();
            let sent = sender.send(value);
            assert!(!closed_before || sent.is_err(), "a closed receiver does not come back");
            if sent.is_err() {
                assert_eq!(drops.count(), 0, "a refused value is given back, not dropped");
            }
        }
    });
    drop(receiver);
    thread.join().unwrap();
    assert_eq!(drops.count(), 1);
}

/// The receiver is polled twice with different wakers while the sender sends or goes.
fn end_against_new_waker(send: bool) {
    let (sender, mut receiver) = oneshot();
    let thread = thread::spawn(move || {
        if send {
            assert_eq!(sender.send(7), Ok(()));
        }
    });
    let (first, second) = (Woken::default(), Woken::default());
    let ready = poll(&mut receiver, &first).is_ready() || poll(&mut receiver, &second).is_ready();
    thread.join().unwrap();
    if ready {
        return;
    }
    assert_eq!(second.count(), 1, "the waker of the latest poll is woken, once");
    assert_eq!(first.count(), 0, "a waker that was replaced is not woken");
    let expected = if send { Ok(7) } else { Err(Canceled) };
    assert_eq!(poll(&mut receiver, &second), Poll::Ready(expected));
}

fn poll<T>(receiver: &mut OneshotReceiver<T>, woken: &Woken) -> Poll<Result<T, Canceled>> {
    let waker = Waker::from(Arc::clone(&woken.0));
    Future::poll(Pin::new(receiver), &mut Context::from_waker(&waker))
}

#[derive(Default)]
struct Woken(Arc<WokenCount>);

#[derive(Default)]
struct WokenCount(AtomicUsize);

impl Woken {
    fn count(&self) -> usize {
        self.0.0.load(Ordering::Relaxed)
    }
}

impl Wake for WokenCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn counted() -> (Counted, Drops) {
    let drops = Drops::default();
    (Counted(drops.clone()), drops)
}

struct Counted(Drops);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Default)]
struct Drops(Arc<AtomicUsize>);

impl Drops {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
