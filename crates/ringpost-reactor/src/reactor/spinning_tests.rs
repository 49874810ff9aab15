//! Spinning that does not pay ends.

use std::time::{Duration, Instant};

use super::{Reactor, Wait};
use crate::capabilities::EngineChoice;
use crate::config::Config;
use crate::spin::Spin;

/// Also if each spin is ended by something that is due.
#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn spins_that_the_clock_ends_are_in_vain() {
    /// Ten of them are one of the longest, and a few halvings lead to none.
    const TURNS_MAX: u32 = 100;
    let max = Duration::from_millis(5);
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        let config = Config { engine, spin: Spin::Adaptive { max }, ..Config::default() };
        let reactor = Reactor::new(config).unwrap();
        reactor.core.driver.borrow_mut().spinner.ignore_load();
        for _ in 0..100 {
            // As if it had found something after half of its budget.
            reactor.core.driver.borrow_mut().spinner.found(|| max / 2);
        }
        let mut turns = 0;
        while reactor.stats().parks == 0 {
            turns += 1;
            assert!(turns < TURNS_MAX, "{engine:?} spins for ever");
            reactor.turn(Wait::Until(Instant::now() + Duration::from_micros(500))).unwrap();
        }
    }
}
