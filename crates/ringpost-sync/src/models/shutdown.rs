//! L12: the last handle goes.

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;

use super::bell::Bell;
use super::harness::Explorer;
use crate::{Canceled, Mailbox, OneshotSender, Shutdown, oneshot};

/// L12. The reactor sleeps or is about to when its last handles go, with requests on their way.
pub(super) fn last_handle(explorer: &Explorer) {
    explorer.check(served_before_the_end);
    explorer.check(late_request_is_answered);
}

/// What a counted handle has submitted is served, and then the loop ends.
fn served_before_the_end() {
    let mailbox = Arc::new(Mailbox::new(2, Bell::new()));
    let handles = Arc::new(Shutdown::new());
    handles.add();
    let submitter = thread::spawn({
        let (mailbox, handles) = (Arc::clone(&mailbox), Arc::clone(&handles));
        move || {
            let (sender, receiver) = oneshot();
            mailbox.push(sender).expect("sealed only after the last handle");
            handles.release(&mailbox);
            receiver
        }
    });
    let idler = thread::spawn({
        let (mailbox, handles) = (Arc::clone(&mailbox), Arc::clone(&handles));
        move || {
            handles.release(&mailbox);
        }
    });

    run(&mailbox);

    let receiver = submitter.join().unwrap();
    idler.join().unwrap();
    assert_eq!(handles.handles(), 0);
    assert_eq!(block_on(receiver), Ok(ANSWER), "accepted before the seal, so served");
    let (sender, receiver) = oneshot();
    let refused = mailbox.push(sender).expect_err("nothing is accepted after the end");
    drop(refused.into_inner());
    assert_eq!(block_on(receiver), Err(Canceled));
}

/// A thread that submits without a counted handle races with the end: refused, served or dropped,
/// but never left without an answer.
fn late_request_is_answered() {
    let mailbox = Arc::new(Mailbox::new(2, Bell::new()));
    let handles = Shutdown::new();
    let late = thread::spawn({
        let mailbox = Arc::clone(&mailbox);
        move || {
            let (sender, receiver) = oneshot();
            match mailbox.push(sender) {
                Ok(()) => assert!(matches!(block_on(receiver), Ok(ANSWER) | Err(Canceled))),
                Err(refused) => assert_eq!(refused.into_inner().send(ANSWER), Ok(())),
            }
        }
    });
    let last = thread::spawn({
        let mailbox = Arc::clone(&mailbox);
        move || assert!(handles.release(&mailbox))
    });

    run(&mailbox);

    late.join().unwrap();
    last.join().unwrap();
}

/// The reactor's loop. Returns when the last handle is gone.
fn run(mailbox: &Mailbox<OneshotSender<u32>, Bell>) {
    loop {
        mailbox.wake().take();
        let last = mailbox.is_sealed();
        while let Some(request) = mailbox.pop() {
            let _ = request.send(ANSWER); // the requester may have gone
        }
        if last {
            break;
        }
        if mailbox.wake().park() {
            mailbox.doorbell().wait();
            mailbox.wake().unpark();
        }
    }
    mailbox.close();
}

const ANSWER: u32 = 42;
