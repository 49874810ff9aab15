//! What only a ring of this machine's kernel can show. Skipped where it has none.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Refusal, Setup, Uring, preflight};
use crate::conformance::skip;
use crate::engine::kept::{Kept, Plan};
use crate::engine::{Engine, Request, Token};
use crate::pool::Pool;
use crate::wake::Inbox;

/// Submission entries of these rings; there are four times as many for completions.
const ENTRIES: u32 = 16;

/// A small ring with its pool, or `None` and a word about it.
fn ring(test: &str) -> Option<(Uring, Pool)> {
    let incremental = match preflight() {
        Ok(capabilities) => capabilities.incremental.is_yes(),
        Err(refusal @ (Refusal::Errno(_) | Refusal::Behaviour(_))) => {
            skip(&format!("{test}: {refusal:?}"));
            return None;
        }
    };
    let pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
    let setup = Setup { entries: ENTRIES, incremental, register_ring: true };
    let ring = setup.build(Arc::clone(pool.shared())).unwrap();
    Some((ring, pool))
}

#[test]
fn completions_beyond_the_queue_are_fetched_at_once() {
    const CONNECTIONS: usize = 100;
    let test = concat!(module_path!(), "::completions_beyond_the_queue_are_fetched_at_once");
    let Some((mut ring, _pool)) = ring(test) else { return };
    let name = format!("ringpost-real-ring-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let clients: Vec<_> =
        (0..CONNECTIONS).map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
    // SAFETY: an accept points to no memory; the socket stays open until the end.
    unsafe { ring.push(Token::new(0, 0), Request::Accept { fd: listener.as_raw_fd() }) }.unwrap();
    ring.enter(false, None).unwrap();
    let mut batch = Vec::new();
    ring.reap(&mut batch);
    for done in batch.iter().filter(|done| done.result >= 0) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(done.result) });
    }
    // A queue that is full ends the accept, and it is the end that has no place in it.
    let all = batch.len() == CONNECTIONS || batch.iter().any(|done| !done.more);
    assert!(all, "{} completions, and none says that there are more", batch.len());
    drop(clients);
}

/// The flags (proc(5), `VmFlags` in smaps) of mappings with such a first line.
fn flags_of(wants: impl Fn(&str) -> bool) -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut wanted = false;
    let mut found = Vec::new();
    for line in maps.lines() {
        match line.strip_prefix("VmFlags: ") {
            Some(flags) if wanted => found.push(flags.to_owned()),
            Some(_) => {}
            // The first line of a mapping begins with its addresses.
            None if line.split(' ').next().is_some_and(|word| word.contains('-')) => {
                wanted = wants(line);
            }
            None => {}
        }
    }
    found
}

/// Whether the mapping with this first line holds an address.
fn holds(line: &str, address: usize) -> bool {
    let number = |digits| usize::from_str_radix(digits, 16).ok();
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    let range = range.and_then(|(start, end)| Some(number(start)?..number(end)?));
    range.is_some_and(|range| range.contains(&address))
}

#[test]
fn a_child_has_none_of_its_memory() {
    let test = concat!(module_path!(), "::a_child_has_none_of_its_memory");
    let Some((ring, _pool)) = ring(test) else { return };
    let start = ring.buffers.memory.at(0).addr().get();
    let inherited = || {
        let of_ring = flags_of(|line| line.contains("[io_uring]"));
        assert!(!of_ring.is_empty(), "a ring is mapped");
        // The kernel makes one mapping of neighbours that are alike.
        let of_buffers = flags_of(|line| holds(line, start));
        assert_eq!(of_buffers.len(), 1);
        let all = of_ring.into_iter().chain(of_buffers);
        all.filter(|flags| flags.split(' ').all(|flag| flag != "dc")).collect::<Vec<_>>()
    };
    // Other tests of this process may just be mapping rings of their own.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !inherited().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let inherited = inherited();
    assert!(inherited.is_empty(), "inherited by a child: {inherited:?}");
}

#[test]
fn a_far_deadline_is_waited_for() {
    /// Of the wait itself, and of waits that end for nothing.
    const SYSTEM_CALLS_MAX: u64 = 10;
    let test = concat!(module_path!(), "::a_far_deadline_is_waited_for");
    let Some((ring, _pool)) = ring(test) else { return };
    let mut kept = Kept::new(ring);
    let (near, far) = UnixStream::pair().unwrap();
    kept.push(Token::new(0, 0), &Rc::new(near.into()), &Plan::Readable).unwrap();
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(far);
    });
    let deadline = Instant::now() + Duration::from_millis(u64::MAX);
    while kept.enter(true, Some(deadline)).unwrap().is_empty() {}
    closer.join().unwrap();
    let calls = kept.engine.system_calls();
    assert!(calls <= SYSTEM_CALLS_MAX, "{calls} system calls for one wait");
}

/// More waits for room go on at once than the submission queue has room for: none of them is left out while the ring
/// waits.
#[test]
fn no_wait_for_room_is_left_out() {
    const SOCKETS: usize = ENTRIES as usize + 4;
    let test = concat!(module_path!(), "::no_wait_for_room_is_left_out");
    let Some((ring, _pool)) = ring(test) else { return };
    let mut kept = Kept::new(ring);
    let pairs: Vec<_> = (0..SOCKETS).map(|_| UnixStream::pair().unwrap()).collect();
    let mut peers = Vec::new();
    for (slot, (full, peer)) in pairs.into_iter().enumerate() {
        full.set_nonblocking(true).unwrap();
        while rustix::io::write(&full, &[0; 4096]).is_ok() {}
        let token = Token::new(slot, 0);
        let full = Rc::new(full.into());
        if kept.push(token, &full, &Plan::Writable).is_err() {
            assert!(kept.enter(false, None).unwrap().is_empty());
            kept.push(token, &full, &Plan::Writable).unwrap();
        }
        peers.push(peer);
    }
    assert!(kept.enter(false, None).unwrap().is_empty());
    // They are told at once, and have no room.
    for peer in &peers {
        peer.shutdown(std::net::Shutdown::Write).unwrap();
    }
    assert!(kept.enter(false, None).unwrap().is_empty());
    let mut told = Vec::new();
    for (slot, peer) in peers.iter().enumerate() {
        peer.set_nonblocking(true).unwrap();
        while rustix::io::read(peer, &mut [0; 1 << 16]).is_ok_and(|count| count > 0) {}
        let deadline = Instant::now() + Duration::from_secs(10);
        while told.len() <= slot && Instant::now() < deadline {
            told.extend(kept.enter(true, Some(deadline)).unwrap().iter().map(|done| done.token));
        }
        assert_eq!(told.get(slot), Some(&Token::new(slot, 0)));
    }
}

#[test]
fn a_thread_that_spins_is_not_woken_early() {
    let test = concat!(module_path!(), "::a_thread_that_spins_is_not_woken_early");
    let Some((ring, mut pool)) = ring(test) else { return };
    if !ring.is_incremental() {
        return skip(&format!("{test}: nothing is received by hand"));
    }
    let mut kept = Kept::new(ring);
    for _ in 0..2 {
        kept.engine.provide(pool.take_free().unwrap());
    }
    let (near, _far) = UnixStream::pair().unwrap();
    kept.push(Token::new(0, 0), &Rc::new(near.into()), &Plan::Receive).unwrap();
    let park = |kept: &mut Kept<Uring>| {
        let deadline = Instant::now() + Duration::from_millis(1);
        assert!(kept.enter(true, Some(deadline)).unwrap().is_empty());
        kept.engine.watches.len()
    };
    assert_eq!(park(&mut kept), 1);
    kept.engine.spin(true);
    assert_eq!(kept.engine.watches.len(), 0);
    assert_eq!(park(&mut kept), 0, "a spin has come before");
    assert_eq!(park(&mut kept), 1);
}

#[test]
fn a_search_in_vain_is_not_repeated_in_every_park() {
    let test = concat!(module_path!(), "::a_search_in_vain_is_not_repeated_in_every_park");
    let Some((ring, mut pool)) = ring(test) else { return };
    let mut kept = Kept::new(ring);
    kept.engine.provide(pool.take_free().unwrap());
    let (near, _far) = UnixStream::pair().unwrap();
    let far_behind = Token::new(crate::early::SEARCHED_MAX, 0);
    kept.push(far_behind, &Rc::new(near.into()), &Plan::Receive).unwrap();
    let deadline = Instant::now() + Duration::from_millis(1);
    assert!(kept.enter(true, Some(deadline)).unwrap().is_empty());
    assert_eq!(kept.engine.watches.len(), 0);
    assert!(!kept.engine.early.pays());
}

/// The poll would keep the socket open, and its peer waiting for the end.
#[test]
fn a_socket_is_watched_once_and_no_longer_than_it_receives() {
    let test = concat!(module_path!(), "::a_socket_is_watched_once_and_no_longer_than_it_receives");
    let Some((ring, mut pool)) = ring(test) else { return };
    let mut kept = Kept::new(ring);
    kept.engine.provide(pool.take_free().unwrap());
    let mut pairs = Vec::new();
    let park = |kept: &mut Kept<Uring>| {
        kept.enter(true, Some(Instant::now() + Duration::from_millis(1))).unwrap()
    };
    for count in 1..=3 {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let near = Rc::new(near.into());
        kept.push(Token::new(count, 0), &near, &Plan::Receive).unwrap();
        pairs.push((near, far));
        assert!(park(&mut kept).is_empty());
        assert_eq!(kept.engine.watches.len(), count);
    }
    let (near, mut far) = pairs.remove(1);
    assert!(!kept.engine.ready());
    kept.push(Token::new(9, 0), &near, &Plan::Cancel(Token::new(2, 0))).unwrap();
    assert_eq!(kept.engine.staged(), 1, "the cancel of the poll is the engine's own");
    assert!(kept.engine.ready());
    let mut ended = 0;
    while ended < 2 {
        ended += park(&mut kept).len();
    }
    assert_eq!(kept.engine.watches.len(), 2);
    assert!(!kept.engine.watches.has(Token::new(2, 0)) && !kept.engine.watches.has_leaving());
    drop(near);
    assert_eq!(far.read(&mut [0]).unwrap(), 0, "the end");
}

/// The queue has room for one of two receives that were held. It must not begin before the ring has the block that they
/// were held with: it would end for want of one.
#[test]
fn held_receives_follow_their_block() {
    let test = concat!(module_path!(), "::held_receives_follow_their_block");
    let Some((mut ring, mut pool)) = ring(test) else { return };
    if !ring.incremental {
        skip(&format!("{test}: without shared blocks nothing is held"));
        return;
    }
    ring.spin(true);
    ring.provide(pool.take_free().unwrap());
    let pairs = [(); 2].map(|()| UnixStream::pair().unwrap());
    for (number, (near, _)) in pairs.iter().enumerate() {
        near.set_nonblocking(true).unwrap();
        let request = Request::Receive { fd: near.as_raw_fd() };
        // SAFETY: a receive writes to blocks of the pool, which outlives the ring; the socket stays open.
        unsafe { ring.push(Token::new(number, 0), request) }.unwrap();
    }
    assert_eq!(ring.direct.held.len(), 2);
    let (idle, _far) = UnixStream::pair().unwrap();
    for number in 1..ENTRIES as usize {
        let request = Request::Hangup { fd: idle.as_raw_fd() };
        // SAFETY: a poll points to no memory; the socket stays open.
        unsafe { ring.push(Token::new(1 + number, 0), request) }.unwrap();
    }
    for (_, far) in &pairs {
        (&*far).write_all(b"here").unwrap();
    }
    ring.spin(false);
    assert_eq!(ring.direct.held.len(), 1, "one of them has found room");
    ring.enter(false, None).unwrap();
    let mut batch = Vec::new();
    ring.reap(&mut batch);
    let results: Vec<_> = batch.iter().map(|done| done.result).collect();
    assert!(results.contains(&4) && results.iter().all(|result| *result >= 0), "{results:?}");
}
