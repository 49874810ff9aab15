//! L1 to L3: the wake word.
//!
//! What producers publish is a relaxed counter: nothing but the wake word orders it, so a consumer
//! that takes a notification without acquiring it may miss the item.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::bell::Bell;
use super::harness::Explorer;
use crate::{Doorbell, WakeWord};

/// L1. The consumer sees both items or is woken; loom reports a deadlock otherwise.
pub(super) fn one_producer(explorer: &Explorer) {
    explorer.check(|| {
        let shared = Shared::new();
        let producer = shared.spawn(&[Step::Publish, Step::Publish]);
        let consumer = shared.consume(2);
        producer.join().unwrap();
        shared.check_after(&consumer);
    });
}

/// L2. Every pair of small producer programs.
pub(super) fn two_producers(explorer: &Explorer) {
    for (index, first) in PROGRAMS.iter().enumerate() {
        for second in &PROGRAMS[index..] {
            explorer.check(move || {
                let shared = Shared::new();
                let producers = [shared.spawn(first), shared.spawn(second)];
                let published = first.iter().chain(*second).filter(|step| step.publishes());
                let consumer = shared.consume(published.count());
                for producer in producers {
                    producer.join().unwrap();
                }
                shared.check_after(&consumer);
            });
        }
    }
}

/// L3. The consumer leaves a parked period for another reason while a producer that was told to
/// ring in that period has not rung yet. Its ring falls into a later period.
pub(super) fn overlapping_periods(explorer: &Explorer) {
    explorer.check(|| {
        let shared = Shared::new();
        let producer = shared.spawn(&[Step::Publish, Step::Publish]);
        let kernel = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.bell.interrupt();
            }
        });
        let consumer = shared.consume(2);
        producer.join().unwrap();
        kernel.join().unwrap();
        shared.check_after(&consumer);
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Publish an item and notify.
    Publish,
    /// Notify without an item.
    Wake,
}

impl Step {
    fn publishes(self) -> bool {
        self == Self::Publish
    }
}

const PROGRAMS: [&[Step]; 5] = [
    &[Step::Publish],
    &[Step::Wake],
    &[Step::Publish, Step::Publish],
    &[Step::Publish, Step::Wake],
    &[Step::Wake, Step::Publish],
];

#[derive(Debug, Clone)]
struct Shared {
    word: Arc<WakeWord>,
    published: Arc<AtomicUsize>,
    bell: Arc<Bell>,
}

/// What the consumer went through.
#[derive(Debug, Default)]
struct Consumer {
    parks: usize,
}

impl Shared {
    fn new() -> Self {
        Self {
            word: Arc::new(WakeWord::new()),
            published: Arc::new(AtomicUsize::new(0)),
            bell: Arc::new(Bell::new()),
        }
    }

    fn spawn(&self, steps: &'static [Step]) -> thread::JoinHandle<()> {
        let shared = self.clone();
        thread::spawn(move || {
            for step in steps {
                if step.publishes() {
                    shared.published.fetch_add(1, Ordering::Relaxed);
                }
                if shared.word.notify() {
                    shared.bell.ring();
                }
            }
        })
    }

    /// The reactor's loop, until it has seen every item and taken a notification.
    fn consume(&self, items: usize) -> Consumer {
        let mut consumer = Consumer::default();
        let mut notified = false;
        loop {
            notified |= self.word.take();
            if notified && self.published.load(Ordering::Relaxed) == items {
                return consumer;
            }
            if self.word.park() {
                consumer.parks += 1;
                self.bell.wait();
                self.word.unpark();
            }
        }
    }

    fn check_after(&self, consumer: &Consumer) {
        assert!(
            self.bell.rings() <= consumer.parks,
            "{} rings in {} parked periods",
            self.bell.rings(),
            consumer.parks
        );
        // A notification that came after the consumer's last look is kept.
        let pending = self.word.is_notified();
        assert_eq!(self.word.park(), !pending);
        assert_eq!(self.word.is_parked(), !pending);
        assert_eq!(self.word.take(), pending);
    }
}
