//! L4: the mailbox.
//!
//! What an item carries is a loom atomic, written before the push. The ledger of drops is std: it
//! is no part of the protocol, and each loom operation multiplies the executions.
#![expect(clippy::disallowed_types, reason = "the ledger is not a part of the model")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::{sync, thread};

use super::bell::Bell;
use super::harness::Explorer;
use crate::{Mailbox, PushError};

/// L4. Two producers push while the consumer pops and then goes.
pub(super) fn push_pop_close(explorer: &Explorer) {
    // One producer against a consumer that goes at any moment.
    explorer.check(|| race(&[&[1, 2]]));
    // Two of them. They and the consumer may all be emptying the queue at once.
    explorer.check_within(2, || race(&[&[1], &[2]]));
    // Three pushes into two slots: one may find the mailbox full.
    explorer.check_within(2, || race(&[&[1, 2], &[3]]));
}

fn race(producers: &[&'static [usize]]) {
    let items = producers.iter().map(|ids| ids.len()).sum();
    let ledger = Arc::new(Ledger::new(items));
    let mailbox = sync::Arc::new(Mailbox::new(2, Bell::new()));
    let spawn = |ids: &&'static [usize]| {
        let (ids, ledger, mailbox) = (*ids, Arc::clone(&ledger), sync::Arc::clone(&mailbox));
        thread::spawn(move || ids.iter().for_each(|&id| push(&mailbox, &ledger, id)))
    };
    let producers: Vec<_> = producers.iter().map(spawn).collect();

    mailbox.wake().take();
    while let Some(item) = mailbox.pop() {
        // Written before the push, read after the pop.
        assert_eq!(item.id, item.written.load(Ordering::Relaxed));
    }
    mailbox.close();
    assert!(mailbox.is_sealed());

    for producer in producers {
        producer.join().unwrap();
    }
    // The mailbox is still alive here, as it is while a handle is.
    ledger.check_each_dropped_once();
    let late = mailbox.push(Item::new(&ledger, 0)).expect_err("a closed mailbox accepts nothing");
    assert!(matches!(&late, PushError::Closed(item) if item.id == 0));
}

fn push(mailbox: &Mailbox<Item, Bell>, ledger: &Arc<Ledger>, id: usize) {
    if let Err(refused) = mailbox.push(Item::new(ledger, id)) {
        assert_eq!(refused.into_inner().id, id, "a refused push gives its own item back");
    }
}

struct Item {
    id: usize,
    written: sync::atomic::AtomicUsize,
    ledger: Arc<Ledger>,
}

impl Item {
    fn new(ledger: &Arc<Ledger>, id: usize) -> Self {
        let written = sync::atomic::AtomicUsize::new(usize::MAX);
        written.store(id, Ordering::Relaxed);
        Self { id, written, ledger: Arc::clone(ledger) }
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        self.ledger.drops[self.id].fetch_add(1, Ordering::Relaxed);
    }
}

/// How often each item was dropped, by its id from 1 on. Popped and returned items are dropped too.
struct Ledger {
    drops: Vec<AtomicUsize>,
}

impl Ledger {
    fn new(items: usize) -> Self {
        Self { drops: (0..=items).map(|_| AtomicUsize::new(0)).collect() }
    }

    fn check_each_dropped_once(&self) {
        for (id, drops) in self.drops.iter().enumerate().skip(1) {
            assert_eq!(drops.load(Ordering::Relaxed), 1, "item {id} is stuck or was dropped twice");
        }
    }
}
