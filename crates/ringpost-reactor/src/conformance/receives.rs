//! Receives: bytes in order, ends, resets, and what becomes of blocks.

use super::bench::{Bench, Shape};
use super::conformance;
use super::subjects::Subject;
use super::trace::Ask;

conformance! {
    every:
        bytes_arrive_in_order
        bytes_that_wait_are_received
        the_end_is_told_behind_the_bytes
        the_end_alone
        the_other_direction_stays_open
        a_shut_down_near_end_still_receives
        a_reset_is_told
        a_reset_behind_bytes
        without_a_block_it_starves [Shape { provided: 0, ..Shape::default() }]
        blocks_run_out_and_come_back [Shape { provided: 2, block_bytes: 8192, ..Shape::default() }]
        many_sockets_share_the_blocks [Shape { blocks: 40, provided: 40, ..Shape::default() }]
        small_blocks [SMALL];
    plain:
        a_block_is_filled_to_its_end
        shared_blocks_hold_many_receives
        nothing_is_told_of_nothing;
}

const SMALL: Shape = Shape { blocks: 64, block_bytes: 4096, queue_max: 64, provided: 64, spare: 0 };

fn bytes_arrive_in_order<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    for len in [1, 2, 100, 4095, 4096, 4097, 16 << 10, (16 << 10) + 1, 100_000, 1] {
        bench.write(line, len);
        bench.receive_all(receive);
    }
}

fn bytes_that_wait_are_received<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.write(line, 50_000);
    let receive = bench.receive(line);
    bench.receive_all(receive);
}

/// Both are there when the receive first looks, or come while it is armed.
fn the_end_is_told_behind_the_bytes<S: Subject>(bench: &mut Bench<S>) {
    for armed in [false, true] {
        for close in [false, true] {
            let line = bench.pair();
            let before = armed.then(|| bench.receive(line));
            bench.perform();
            bench.write(line, 30_000);
            if close {
                bench.far_close(line);
            } else {
                bench.far_shut(line);
            }
            let receive = before.unwrap_or_else(|| bench.receive(line));
            bench.receive_all(receive);
            assert_eq!(bench.end(receive), 0);
            bench.provide_all();
        }
    }
}

fn the_end_alone<S: Subject>(bench: &mut Bench<S>) {
    for armed in [false, true] {
        let line = bench.pair();
        let before = armed.then(|| bench.receive(line));
        bench.perform();
        bench.far_shut(line);
        let receive = before.unwrap_or_else(|| bench.receive(line));
        assert_eq!(bench.end(receive), 0);
        // It can be asked for again.
        let receive = bench.receive(line);
        assert_eq!(bench.end(receive), 0);
        bench.provide_all();
    }
}

fn the_other_direction_stays_open<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    bench.far_shut(line);
    assert_eq!(bench.end(receive), 0);
    let token = bench.send(line, 5000, false);
    assert!(bench.end(token) > 0);
    assert!(bench.read_all(line) > 0);
}

fn a_shut_down_near_end_still_receives<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    bench.perform();
    bench.near_shut(line);
    bench.write(line, 5000);
    bench.receive_all(receive);
    bench.far_close(line);
    assert_eq!(bench.end(receive), 0);
}

/// A peer that closes with bytes unread resets the connection (unix(7), since Linux 2.2).
fn a_reset_is_told<S: Subject>(bench: &mut Bench<S>) {
    for armed in [false, true] {
        let line = bench.pair();
        let before = armed.then(|| bench.receive(line));
        bench.send(line, 100, true);
        bench.perform();
        bench.far_close(line);
        let receive = before.unwrap_or_else(|| bench.receive(line));
        assert_eq!(bench.end(receive), -libc::ECONNRESET);
        bench.provide_all();
        // Once; then it is an end.
        let receive = bench.receive(line);
        assert_eq!(bench.end(receive), 0);
        bench.provide_all();
    }
}

fn a_reset_behind_bytes<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.send(line, 100, true);
    bench.perform();
    bench.write(line, 20_000);
    bench.far_close(line);
    let receive = bench.receive(line);
    bench.receive_all(receive);
    assert_eq!(bench.end(receive), -libc::ECONNRESET);
}

fn without_a_block_it_starves<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.write(line, 100);
    for _ in 0..3 {
        let receive = bench.receive(line);
        assert_eq!(bench.end(receive), -libc::ENOBUFS);
    }
    bench.provide();
    let receive = bench.receive(line);
    bench.receive_all(receive);
}

fn blocks_run_out_and_come_back<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    bench.write(line, 40_000);
    while bench.referee().delivered(line) < 40_000 {
        let receive = bench.receive(line);
        let before = bench.referee().delivered(line);
        assert_eq!(bench.end(receive), -libc::ENOBUFS);
        assert!(bench.referee().blocks().is_empty(), "starved with blocks");
        let delivered = bench.referee().delivered(line);
        assert!(delivered > before, "nothing was received although there were blocks");
        bench.provide();
        bench.provide();
        // What comes last may leave a block that is not full.
        if delivered + 2 * 8192 > 40_000 {
            break;
        }
    }
    let receive = bench.receive(line);
    bench.receive_all(receive);
}

fn many_sockets_share_the_blocks<S: Subject>(bench: &mut Bench<S>) {
    let lines: Vec<_> = (0..24).map(|_| bench.pair()).collect();
    let receives: Vec<_> = lines.iter().map(|&line| bench.receive(line)).collect();
    for round in 1..5 {
        for &line in &lines {
            bench.write(line, 300 * round + line);
        }
        for &receive in &receives {
            bench.receive_all(receive);
        }
    }
}

fn small_blocks<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    for len in [4095, 1, 4096, 4097, 12_288, 100_000] {
        bench.write(line, len);
        bench.receive_all(receive);
    }
}

fn a_block_is_filled_to_its_end<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.receive(line);
    bench.write(line, 16 << 10);
    let first = bench.next(receive).received.unwrap();
    assert_eq!((first.offset, first.len, first.last), (0, 16 << 10, true));
    bench.write(line, 10);
    let second = bench.next(receive).received.unwrap();
    assert!(second.block != first.block && second.offset == 0, "{first:?} {second:?}");
}

fn shared_blocks_hold_many_receives<S: Subject>(bench: &mut Bench<S>) {
    let (line, other) = (bench.pair(), bench.pair());
    let receives = [bench.receive(line), bench.receive(other)];
    let mut used = Vec::new();
    for _ in 0..4 {
        for (line, receive) in [line, other].into_iter().zip(receives) {
            bench.write(line, 100);
            let range = bench.next(receive).received.unwrap();
            assert_eq!((range.last, range.len), (!S::SHARED, 100));
            assert_eq!(range.offset == 0, !S::SHARED || used.is_empty());
            used.push(range.block);
        }
    }
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), if S::SHARED { 1 } else { 8 });
}

fn nothing_is_told_of_nothing<S: Subject>(bench: &mut Bench<S>) {
    let line = bench.pair();
    let receive = bench.start(line, Ask::Receive);
    bench.quiet();
    bench.write(line, 10);
    bench.receive_all(receive);
    bench.quiet();
}
