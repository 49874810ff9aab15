//! Bugs planted on purpose: each must end its program with a report. Each runs in a process of its own,
//! which is this test program once more.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::capabilities::EngineChoice;
use crate::config::Config;
use crate::memory::{BlockClass, OutboundBlocks, Prefix};
use crate::pool::Pool;
use crate::reactor::{Reactor, Wait};
use crate::spin::Spin;
use crate::wake::Inbox;

const PLANTED: &str = "RINGPOST_PLANTED_BUG";
const POISONED: &str = "AddressSanitizer: use-after-poison";

/// Runs `bug` in another process, which must end with `report`. `name` is that of the calling test.
fn must_be_found(name: &str, report: &str, bug: impl FnOnce()) {
    if std::env::var_os(PLANTED).is_some_and(|planted| planted == name) {
        bug();
        return;
    }
    let program = std::env::current_exe().unwrap();
    let name_of_test = format!("memory::shadow_tests::{name}");
    let output = Command::new(program)
        .args(["--exact", &name_of_test, "--nocapture", "--test-threads=1"])
        .env(PLANTED, name)
        // Whoever runs these tests may have reports written to files, and counts those.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains(report), "{name} was not found:\n{text}");
}

/// Reads a byte, which no optimiser leaves out.
fn touch(byte: *const u8) {
    // SAFETY: none for the planted bug that this is; the memory is mapped, so that without
    // AddressSanitizer only the value would be wrong.
    std::hint::black_box(unsafe { byte.read_volatile() });
}

fn pool() -> Pool {
    Pool::new(2, 4096, Arc::new(Inbox::for_test())).unwrap()
}

#[test]
fn a_lease_read_after_its_release() {
    must_be_found("a_lease_read_after_its_release", POISONED, || {
        let mut pool = pool();
        let block = pool.take_free().unwrap();
        let lease = pool.lease(block, 0, 100);
        let bytes = lease.as_slice().as_ptr();
        touch(bytes);
        pool.retire(block);
        touch(bytes);
        drop(lease);
        touch(bytes);
    });
}

#[test]
fn bytes_that_were_not_delivered() {
    must_be_found("bytes_that_were_not_delivered", POISONED, || {
        let mut pool = pool();
        let block = pool.take_free().unwrap();
        let lease = pool.lease(block, 0, 101);
        touch(lease.as_slice().as_ptr().wrapping_add(100));
        touch(lease.as_slice().as_ptr().wrapping_add(101));
    });
}

#[test]
fn bytes_that_were_copied_out() {
    must_be_found("bytes_that_were_copied_out", POISONED, || {
        let mut pool = pool();
        let block = pool.take_free().unwrap();
        assert_eq!(*pool.copy(block, 0, 8), [0; 8]);
        touch(pool.shared().region().at(pool.shared().offset_of(block)).as_ptr());
    });
}

#[test]
fn bytes_that_are_delivered_twice() {
    must_be_found("bytes_that_are_delivered_twice", "are handed out, but somebody has", || {
        let mut pool = pool();
        let block = pool.take_free().unwrap();
        let _first = pool.lease(block, 0, 100);
        let _second = pool.lease(block, 99, 10);
    });
}

#[test]
fn an_engine_that_writes_to_what_is_lent() {
    must_be_found("an_engine_that_writes_to_what_is_lent", "are received into, but", || {
        let mut pool = pool();
        let block = pool.take_free().unwrap();
        let _lease = pool.lease(block, 0, 100);
        let shared = pool.shared();
        // SAFETY: none for the planted bug that this is; the check comes before the reference.
        unsafe { shared.region().writable(shared.offset_of(block) + 50, 100) }.end();
    });
}

#[test]
fn an_outbound_block_that_is_kept() {
    must_be_found("an_outbound_block_that_is_kept", POISONED, || {
        let mut blocks = OutboundBlocks::new();
        let mut block = blocks.take(10, BlockClass::default());
        block.append(Prefix::NONE, b"body");
        let bytes = block.as_slice().as_ptr();
        touch(bytes);
        blocks.give_back(block);
        touch(bytes);
    });
}

#[test]
fn an_outbound_block_that_is_given_back_twice() {
    must_be_found("an_outbound_block_that_is_given_back_twice", "were given back before", || {
        let mut blocks = OutboundBlocks::new();
        let block = blocks.take(10, BlockClass::default());
        // SAFETY: none for the planted bug that this is; the second is found before it is used.
        let twin = unsafe { std::ptr::read(&raw const block) };
        blocks.give_back(block);
        blocks.give_back(twin);
    });
}

/// Queues more than a socket takes, and writes to it while it is in flight, on a real kernel.
fn written_in_flight(engine: EngineChoice) {
    let config = Config { engine, spin: Spin::Never, ..Config::default() };
    let reactor = Reactor::new(config).unwrap();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (near, _far) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let stream = reactor.adopt_stream(near);
    // One message in one block; a socket takes a fifth of it.
    let len = 1 << 20;
    let mut bytes = std::ptr::null_mut();
    stream.append_with(Prefix::NONE, len, |target| bytes = target.as_mut_ptr());
    let deadline = Instant::now() + Duration::from_millis(200);
    while Instant::now() < deadline {
        reactor.turn(Wait::Until(deadline)).unwrap();
    }
    // SAFETY: none for the planted bug that this is; the block is alive, but its bytes are the kernel's.
    unsafe { bytes.wrapping_add(len - 1).write_volatile(1) };
}

#[test]
fn a_block_written_in_flight_uring() {
    must_be_found("a_block_written_in_flight_uring", POISONED, || {
        written_in_flight(EngineChoice::Uring);
    });
}

#[test]
fn a_block_written_in_flight_epoll() {
    must_be_found("a_block_written_in_flight_epoll", POISONED, || {
        written_in_flight(EngineChoice::Epoll);
    });
}
