//! Blocks that come with completions of anything but a receive.

use super::Reactor;
use crate::config::Config;
use crate::engine::{Completion, Received};

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn a_block_is_not_lost_whatever_it_comes_with() {
    let reactor = Reactor::new(Config::default()).unwrap();
    let mut driver = reactor.core.driver.borrow_mut();
    let driver = &mut *driver;
    let token = driver.doorbell.expect("it is armed from the start");
    let held = driver.pool.kernel_blocks();
    let block = driver.pool.take_free().expect("there are more than the engine has");
    let received = Some(Received { block, offset: 0, len: 1, last: true });
    let done = Completion { token, result: 1, more: true, received };
    reactor.core.dispatch_one(driver, done);
    assert_eq!(driver.pool.kernel_blocks(), held);
}
