//! A reader that keeps everything can't stop the others: the smallest pool, all of it retained.

use ringpost::{ConnectionOptions, EngineChoice, spawn};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{Bystander, builder, pair, run, until};

on_both_engines!(everything_is_retained);

fn everything_is_retained(engine: EngineChoice) {
    const LEN: usize = 3000;
    const COUNT: u64 = 1000;
    let runtime = builder(engine).pool_bytes(512 << 10).build().expect("a runtime");
    let stats = || ringpost::stats();
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let start = stats();
        bystander.check().await;
        let fresh = stats();
        let (mut left, mut right) = pair(ConnectionOptions::new());
        let sending = spawn(async move {
            for sequence in 0..COUNT {
                let sent = left.send_with(LEN, |bytes| pattern::fill(sequence, bytes)).await;
                sent.expect("the reader reads");
            }
            left.flush().await.expect("the reader reads");
            left
        });
        // Six times the pool; whoever keeps so much keeps copies.
        let mut kept = Vec::new();
        while kept.len() < usize::try_from(COUNT).expect("small") {
            let mut batch = right.recv_batch().await.expect("messages").expect("no end");
            while let Some(frame) = batch.next() {
                kept.push(frame.retain());
            }
            if kept.len() % 100 == 0 {
                bystander.check().await;
            }
        }
        let _left = sending.await.expect("no panic");
        bystander.check().await;
        let full = stats();
        assert!(full.pool_blocks_leased > 0, "{full:?}");
        assert!(full.pool_blocks_leased < full.pool_blocks, "some are left: {full:?}");
        assert!(full.bytes_copied - fresh.bytes_copied > 1 << 20, "copied instead: {full:?}");
        for (sequence, message) in (0..).zip(&kept) {
            pattern::check(sequence, LEN, message);
        }
        drop(kept);
        until("the pool is back", || stats().pool_blocks_leased == 0).await;
        // And it lends again.
        let copied = stats().bytes_copied;
        bystander.check().await;
        let usual = fresh.bytes_copied - start.bytes_copied;
        assert_eq!(stats().bytes_copied - copied, usual, "as before it ran low");
    });
}
