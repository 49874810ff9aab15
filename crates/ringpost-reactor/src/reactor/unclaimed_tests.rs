//! What comes when nobody can take it: blocks with completions of anything but a receive, sockets accepted in front of
//! a failure.

use std::io::{self, Read as _};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use super::{Reactor, Wait};
use crate::capabilities::EngineChoice;
use crate::config::Config;
use crate::engine::{Completion, Engine, EngineError, Received};

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

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn what_was_accepted_before_a_failure_is_closed_by_the_shutdown() {
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        let reactor = Reactor::new(Config { engine, ..Config::default() }).unwrap();
        let name = format!("ringpost-unclaimed-{}-{engine:?}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = reactor.adopt_listener(listener.into());
        reactor.turn(Wait::No).unwrap();
        let mut client = UnixStream::connect_addr(&address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        {
            let mut driver = reactor.core.driver.borrow_mut();
            driver.engine.enter(false, None).unwrap();
            let source = io::Error::from_raw_os_error(libc::EBADR);
            driver.fail(&EngineError::Fatal { call: "io_uring_enter", source });
        }
        reactor.shutdown();
        drop((listener, reactor));
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "{engine:?}");
    }
}
