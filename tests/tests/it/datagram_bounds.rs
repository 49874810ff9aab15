//! Datagrams nobody reads, sends nobody waits for, failures nobody asks for: everything has a bound.

use std::cell::Cell;
use std::collections::HashSet;
use std::future::poll_fn;
use std::os::unix::net::UnixDatagram;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use ringpost::{
    Address, Datagram, DatagramSendError, EngineChoice, sleep, spawn, timeout, yield_now,
};
use ringpost_testkit::pattern;
use ringpost_tests::privileges::refuse_calls;
use ringpost_tests::rig::{block_on, place, poll_at_most, run, runtime, until};
use ringpost_tests::{on_both_engines, on_both_engines_alone};

use crate::datagrams::{expect, fill_up, other, plain};

on_both_engines!(
    failures_that_nobody_asks_for,
    an_idle_reader_makes_senders_wait,
    what_lies_unread_takes_the_room_of_its_sender,
    waiters_that_go_leave_nothing,
    a_peer_that_reads_while_another_does_not,
    answers_to_one_that_does_not_read,
    what_rests_leaves_at_the_end
);
on_both_engines_alone!(
    no_memory_to_receive,
    a_crowd_of_full_receivers,
    a_crowd_that_waits_for_full_receivers
);

/// Of many failures some are told.
fn failures_that_nobody_asks_for(engine: EngineChoice) {
    /// What is kept of them.
    const KEPT: usize = 64;
    block_on(engine, async {
        let (directory, _) = place();
        let sender = Datagram::unbound().expect("a socket");
        let absent: Vec<_> = (0..3 * KEPT)
            .map(|number| Address::from(directory.path().join(number.to_string())))
            .collect();
        for address in &absent {
            sender.send_to(address, b"x").await.expect("accepted");
        }
        until("all have failed", || ringpost::stats().packets_dropped == 3 * KEPT as u64).await;
        let mut told = HashSet::new();
        while let Err(error) = sender.flush().await {
            let DatagramSendError::Gone { to: Some(to) } = error else { panic!("{error:?}") };
            assert!(absent.contains(&to) && told.insert(to.clone()), "{to} is told twice");
        }
        assert_eq!(told.len(), KEPT);
    });
}

fn an_idle_reader_makes_senders_wait(engine: EngineChoice) {
    const LEN: usize = 1000;
    // The bound of packets, or that of their bytes.
    for (settings, bound) in
        [(plain().inbound_packets_max(50), 50), (plain().inbound_bytes_max(20 * LEN), 20)]
    {
        block_on(engine, async {
            let (left, mut right) = settings.outbound_packets_max(20).pair().expect("a pair");
            let mut sent = 0;
            let payload = |sequence| pattern::payload(sequence, LEN);
            while let Some(outcome) = poll_at_most(50, left.send(&payload(sent))).await {
                outcome.expect("accepted");
                sent += 1;
                assert!(sent < 10_000, "nothing holds the sender up");
            }
            let stats = ringpost::stats();
            assert!(stats.receives_paused > 0, "{stats:?}");
            assert!(stats.packets_received < bound + 32, "{stats:?}");
            for sequence in 0..sent {
                expect(&mut right, sequence, LEN).await;
            }
            left.send(&payload(sent)).await.expect("room again");
            expect(&mut right, sent, LEN).await;
        });
    }
}

/// The kernel counts what lies unread with a receiver against the send buffer of the socket that it came from: if
/// that fits the queue of the receiver, it holds up what others are sent. Another socket is not concerned.
fn what_lies_unread_takes_the_room_of_its_sender(engine: EngineChoice) {
    const LEN: usize = 50_000;
    block_on(engine, async {
        let (directory, idle_path) = place();
        let live_path = directory.path().join("live.sock");
        let (idle, live) = (other(&idle_path), other(&live_path));
        idle.set_nonblocking(true).expect("a socket");
        live.set_nonblocking(true).expect("a socket");
        let mut bytes = vec![0; LEN];
        let sender = plain().send_buffer_bytes(2 * LEN).unbound().expect("a socket");
        while sender.try_send_to(&idle_path, &pattern::payload(0, LEN)).is_ok() {
            yield_now().await;
        }
        let unread = ringpost::stats().packets_sent;
        assert!(unread < 10, "{unread} packets");
        sender.send_to(&live_path, &pattern::payload(1, LEN)).await.expect("accepted");
        sleep(Duration::from_millis(50)).await;
        assert!(live.recv(&mut bytes).is_err(), "there was room for it");
        // Of another socket it goes at once.
        let another = plain().unbound().expect("a socket");
        another.send_to(&live_path, &pattern::payload(2, LEN)).await.expect("room");
        until("it has come", || live.recv(&mut bytes).is_ok()).await;
        pattern::check(2, LEN, &bytes);
        // Once the other has read, there is room.
        until("it has come", || {
            while idle.recv(&mut bytes).is_ok() {}
            live.recv(&mut bytes).is_ok()
        })
        .await;
        pattern::check(1, LEN, &bytes);
    });
}

/// A waker holds the memory of its task: whoever tries again and again to reach a receiver that does not read,
/// each time from another task, must not pile them up.
fn waiters_that_go_leave_nothing(engine: EngineChoice) {
    block_on(engine, async {
        let (left, mut right) = plain().outbound_packets_max(1).pair().expect("a pair");
        let mut accepted = 0;
        while let Ok(sent) = timeout(Duration::from_millis(50), left.send(b"full")).await {
            sent.expect("room");
            accepted += 1;
        }
        let tasks: [Arc<Woken>; 3] = Default::default();
        let wakers = tasks.each_ref().map(|task| Waker::from(Arc::clone(task)));
        let holders = || tasks.each_ref().map(Arc::strong_count);
        let polled = |waiter: Pin<&mut dyn Future<Output = Result<(), DatagramSendError>>>,
                      task: usize| {
            waiter.poll(&mut Context::from_waker(&wakers[task])).is_pending()
        };
        {
            let (mut send, mut flush) = (pin!(left.send(b"more")), pin!(left.flush()));
            let mut another = pin!(left.send(b"more"));
            assert!(
                polled(send.as_mut(), 0)
                    && polled(flush.as_mut(), 1)
                    && polled(another.as_mut(), 2)
            );
            assert!(holders().iter().all(|holders| *holders == 3), "{:?}", holders());
            // The same waiter waits in one place, and under its newest waker.
            assert!(polled(send.as_mut(), 0) && polled(flush.as_mut(), 2));
            assert_eq!(holders(), [3, 2, 4]);
        }
        assert_eq!(holders(), [2; 3], "they are gone, and nothing holds on to their tasks");

        // Who was woken and goes then does not take out another.
        let mut gone = Box::pin(left.send(b"gone"));
        assert!(polled(gone.as_mut(), 0));
        for _ in 0..accepted {
            right.recv().await.expect("a packet");
        }
        until("there is room", || tasks[0].0.load(Ordering::Relaxed)).await;
        while left.try_send(b"full").is_ok() {
            yield_now().await;
        }
        let mut stays = Box::pin(left.send(b"stays"));
        assert!(polled(stays.as_mut(), 1));
        drop(gone);
        assert_eq!(holders(), [2, 3, 2]);
        assert!(!tasks[1].0.load(Ordering::Relaxed));
        for _ in 0..accepted {
            right.recv().await.expect("a packet");
        }
        until("there is room again", || tasks[1].0.load(Ordering::Relaxed)).await;
    });
}

/// Whoever finds no memory to receive rests, also while it sends to receivers that are full.
fn no_memory_to_receive(engine: EngineChoice) {
    /// Rest of a receive that found no memory.
    const REST: Duration = Duration::from_millis(10);
    let (directory, path) = place();
    block_on(engine, async {
        let socket =
            Datagram::builder().plain().outbound_packets_max(64).bind(&path).expect("free");
        let peer = UnixDatagram::unbound().expect("a socket");
        peer.send_to(b"waits", &path).expect("room");
        let full: Vec<_> = (0..16).map(|n| directory.path().join(format!("full-{n}"))).collect();
        let _receivers: Vec<_> = full
            .iter()
            .map(|path| {
                let receiver = other(path);
                let sender = UnixDatagram::unbound().expect("a socket");
                sender.set_nonblocking(true).expect("a socket");
                while sender.send_to(b"full", path).is_ok() {}
                receiver
            })
            .collect();
        refuse_calls(&[libc::SYS_recvmmsg], libc::ENOMEM);
        for path in &full {
            socket.send_to(path, b"more").await.expect("accepted");
        }
        let (start, before) = (Instant::now(), ringpost::stats().operations);
        sleep(Duration::from_millis(300)).await;
        let looks = u128::from(ringpost::stats().operations - before);
        let rests = start.elapsed().as_millis() / REST.as_millis();
        assert!((2..rests + 5).contains(&looks), "{looks} looks in the time of {rests} rests");
    });
}

/// The kernel tells of no room (poll(2), `unix_dgram_poll`) as long as more than a quarter of the send buffer lies
/// unread somewhere, though it would take packets for the connected peer.
fn a_peer_that_reads_while_another_does_not(engine: EngineChoice) {
    const PACKETS: u64 = 900;
    block_on(engine, async {
        let (directory, idle) = place();
        let _idle_socket = other(&idle);
        let path = directory.path().join("peer.sock");
        let peer = other(&path);
        let sender = plain().unbound().expect("a socket");
        let buffer = rustix::net::sockopt::socket_send_buffer_size(&sender).expect("a socket");
        // What the kernel counts for a packet is more than its bytes.
        for _ in 0..6 {
            sender.send_to(&idle, &vec![7; buffer / 20]).await.expect("room");
        }
        sender.flush().await.expect("taken");
        sender.connect_to(Address::from(path)).expect("bound");
        // More than its queue holds (net.unix.max_dgram_qlen, 10 to 512).
        let sending = spawn(async move {
            for sequence in 0..PACKETS {
                sender.send(&pattern::payload(sequence, 10)).await.expect("room");
            }
            sender.flush().await.expect("taken");
        });
        sleep(Duration::from_millis(20)).await;
        peer.set_nonblocking(true).expect("a socket");
        let (mut bytes, mut received) = ([0; 16], 0);
        until("all have come", || {
            while let Ok(len) = peer.recv(&mut bytes) {
                pattern::check(received, 10, &bytes[..len]);
                received += 1;
            }
            received == PACKETS
        })
        .await;
        sending.await.expect("no panic");
    });
}

/// Peers that ask much and read nothing do not take the room that answers to others need, however many there are.
fn answers_to_one_that_does_not_read(engine: EngineChoice) {
    const IDLE: usize = 40;
    block_on(engine, async {
        let (directory, _) = place();
        let sender = plain().unbound().expect("a socket");
        let idle: Vec<_> =
            (0..IDLE).map(|number| directory.path().join(format!("idle{number}"))).collect();
        let idle_sockets: Vec<_> = idle.iter().map(|path| other(path)).collect();
        for path in &idle {
            fill_up(path);
        }
        // All in one turn, before anybody is known to be full.
        for path in &idle {
            for sequence in 0..2000 {
                match sender.try_send_to(path, b"an answer") {
                    Ok(()) => {}
                    Err(DatagramSendError::Full { queued, .. }) => {
                        assert_eq!(queued, sequence);
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        let live = directory.path().join("live.sock");
        let live_socket = other(&live);
        for sequence in 0..100 {
            let payload = pattern::payload(sequence, 20);
            let sending = sender.send_to(&live, &payload);
            timeout(Duration::from_secs(5), sending).await.expect("soon").expect("room");
            let mut bytes = [0; 32];
            live_socket.set_nonblocking(true).expect("a socket");
            until("it has come", || match live_socket.recv(&mut bytes) {
                Ok(len) => {
                    pattern::check(sequence, 20, &bytes[..len]);
                    true
                }
                Err(_) => false,
            })
            .await;
        }
        drop(idle_sockets);
    });
}

/// A runtime ends before the next time that a receiver, which has read meanwhile, would be tried.
fn what_rests_leaves_at_the_end(engine: EngineChoice) {
    let (_directory, path) = place();
    let receiver = other(&path);
    receiver.set_nonblocking(true).expect("a socket");
    let runtime = runtime(engine);
    let sender = run(&runtime, async {
        fill_up(&path);
        let sender = plain().unbound().expect("a socket");
        sender.send_to(&path, b"first").await.expect("accepted");
        // Until it rests for ten milliseconds each time.
        sleep(Duration::from_millis(60)).await;
        let mut bytes = [0; 8];
        while receiver.recv(&mut bytes).is_ok() {
            assert!(bytes.starts_with(b"full"));
        }
        sender
    });
    drop(runtime);
    let mut bytes = [0; 8];
    let len = receiver.recv(&mut bytes).expect("it was sent at the end");
    assert_eq!(bytes[..len], *b"first");
    drop(sender);
}

/// How often full receivers are tried again has a bound, however many there are.
fn a_crowd_of_full_receivers(engine: EngineChoice) {
    const RECEIVERS: usize = 400;
    /// Tries of all of them in a second.
    const TRIES_MAX: u128 = 10_000;
    let (directory, _) = place();
    block_on(engine, async {
        let full: Vec<_> =
            (0..RECEIVERS).map(|number| directory.path().join(number.to_string())).collect();
        let receivers: Vec<_> = full.iter().map(|path| other(path)).collect();
        for path in &full {
            fill_up(path);
        }
        let sender = plain().outbound_packets_max(2 * RECEIVERS).unbound().expect("a socket");
        for path in &full {
            sender.send_to(path, b"more").await.expect("accepted");
        }
        sleep(Duration::from_millis(100)).await;
        let (start, before) = (Instant::now(), ringpost::stats().sends_tracked);
        sleep(Duration::from_millis(300)).await;
        let tries = u128::from(ringpost::stats().sends_tracked - before);
        let most = start.elapsed().as_millis() * TRIES_MAX / 1000 + 2 * RECEIVERS as u128;
        assert!((1..most).contains(&tries), "{tries} tries, at most {most}");
        // Whoever reads gets it soon.
        let reader = &receivers[0];
        reader.set_nonblocking(true).expect("a socket");
        let mut bytes = [0; 8];
        let mut last = Vec::new();
        until("it has come", || {
            while let Ok(len) = reader.recv(&mut bytes) {
                last = bytes[..len].to_vec();
            }
            last == b"more"
        })
        .await;
    });
}

/// Whoever waits for a full receiver is not woken each time another one is tried again, or takes something.
fn a_crowd_that_waits_for_full_receivers(engine: EngineChoice) {
    const RECEIVERS: usize = 100;
    let (directory, live) = place();
    block_on(engine, async {
        let full: Vec<_> =
            (0..RECEIVERS).map(|number| directory.path().join(number.to_string())).collect();
        let receivers: Vec<_> = full.iter().map(|path| other(path)).collect();
        let (sender, _) = plain().unbound().expect("a socket").split();
        for (path, receiver) in full.iter().zip(&receivers) {
            receiver.set_nonblocking(true).expect("a socket");
            fill_up(path);
            sender.send_to(path, b"first").await.expect("accepted");
        }
        until("all are known to be full", || {
            full.iter().all(|path| {
                matches!(sender.try_send_to(path, b"no"), Err(DatagramSendError::Full { .. }))
            })
        })
        .await;
        let polls = Rc::new(Cell::new(0));
        let waiting: Vec<_> = full
            .iter()
            .map(|path| {
                let (sender, path, polls) = (sender.clone(), path.clone(), Rc::clone(&polls));
                spawn(async move {
                    let mut sending = pin!(sender.send_to(&path, b"second"));
                    poll_fn(|context| {
                        polls.set(polls.get() + 1);
                        sending.as_mut().poll(context)
                    })
                    .await
                })
            })
            .collect();
        let live_socket = other(&live);
        live_socket.set_nonblocking(true).expect("a socket");
        let mut bytes = [0; 8];
        let (start, before) = (Instant::now(), ringpost::stats().sends_tracked);
        // Each is tried again meanwhile, which takes longer where a try does.
        let tries = || ringpost::stats().sends_tracked - before;
        while start.elapsed() < Duration::from_millis(300) || tries() <= RECEIVERS as u64 {
            sender.send_to(&live, b"live").await.expect("room");
            until("it has come", || live_socket.recv(&mut bytes).is_ok()).await;
        }
        assert!(polls.get() <= 3 * RECEIVERS, "{} polls of {RECEIVERS} waiters", polls.get());
        // Each gets on as soon as its own receiver takes something.
        for (receiver, waiting) in receivers.iter().zip(waiting) {
            let mut last = [0; 8];
            until("it has come", || {
                while receiver.recv(&mut last).is_ok() {}
                last.starts_with(b"second")
            })
            .await;
            waiting.await.expect("no panic").expect("room");
        }
    });
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
