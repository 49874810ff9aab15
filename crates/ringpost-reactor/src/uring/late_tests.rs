//! Completions that come when nothing more was expected.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::{Completed, INTERNAL};
use crate::engine::{Engine, Received, Request, Token};
use crate::pool::Pool;
use crate::sim::{Machine, Odometer, Simulation};
use crate::wake::Inbox;

/// `IORING_CQE_F_BUFFER`, with block 0.
const WITH_BLOCK: u32 = 1;

#[test]
fn a_block_that_comes_with_a_late_end_of_a_wait_for_room_is_told() {
    let plain = Machine::choose(&mut Odometer::new());
    let machine = Machine { shares_blocks: false, block_bytes: 4096, blocks: 4, ..plain };
    let simulation = Simulation::new(Odometer::new(), machine);
    let mut pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
    let mut engine = simulation.ring_engine(&pool).unwrap();
    let block = pool.take_free().unwrap();
    assert_eq!(block, 0);
    engine.provide(block);
    let (socket, _peer) = UnixStream::pair().unwrap();
    let token = Token::new(0, 0);
    engine.rooms.start(token, Request::Writable { fd: socket.as_raw_fd() });
    // The peer has shut down and there is no room, so that it goes on; then the ring ends it once more.
    let ended = |result, flags| Completed { user_data: token.0, result, flags };
    engine.ring.complete_for_test(ended(libc::EPOLLRDHUP, 0));
    engine.ring.complete_for_test(ended(1, WITH_BLOCK));
    engine.collect();
    let mut batch = Vec::new();
    engine.reap(&mut batch);
    let told: Vec<_> = batch.iter().map(|done| (done.token, done.received)).collect();
    let received = Received { block, offset: 0, len: 1, last: true };
    assert_eq!(told, [(INTERNAL, Some(received))]);
}
