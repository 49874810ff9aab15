//! Datagrams: every size, every kind of receiver that does not take them, and what the kernel says of senders.

use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use ringpost::{
    AccessPolicy, Address, Datagram, DatagramRecvError, DatagramSendError, EngineChoice, Packet,
    ProtocolError, Spin, yield_now,
};
use ringpost_frame::{FrameFlags, FrameHeader, FrameKind};
use ringpost_testkit::peer::{flagged, frame, message};
use ringpost_testkit::{pattern, process};
use ringpost_tests::rig::{block_on, builder, place, poll_at_most, run, runtime, until};
use ringpost_tests::{on_both_engines, on_both_engines_alone};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

on_both_engines!(
    every_size,
    mixed_sizes_in_batches,
    empty_packets_of_others,
    a_sender_alone,
    a_full_receiver,
    a_full_receiver_without_a_connection,
    one_full_receiver_among_others,
    a_flush_waits_for_nothing_later,
    absent_receivers,
    a_receiver_that_comes_back,
    an_address_that_comes_back,
    too_long_to_receive,
    too_long_to_send,
    what_fills_a_message_may_do,
    senders_have_names,
    credentials,
    a_policy,
    packets_that_are_no_frames,
    descriptors_of_others,
    readers_that_keep_everything,
    futures_dropped_at_every_poll,
    many_receivers
);
on_both_engines_alone!(nothing_is_left_behind, the_end_of_a_runtime);

/// A socket of another program at a path.
pub(crate) fn other(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).expect("free");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    socket
}

/// Fills the queue of a receiver. With more senders than one: what lies unread counts against the buffer of who sent it,
/// which may be full before a long queue is (net.unix.max_dgram_qlen).
pub(crate) fn fill_up(path: &Path) {
    loop {
        let another = UnixDatagram::unbound().expect("a socket");
        another.set_nonblocking(true).expect("a socket");
        if another.send_to(b"full", path).is_err() {
            return;
        }
        while another.send_to(b"full", path).is_ok() {}
    }
}

pub(crate) fn plain() -> ringpost::DatagramBuilder {
    Datagram::builder().plain()
}

pub(crate) async fn expect(receiver: &mut Datagram, sequence: u64, len: usize) -> Packet {
    let packet = receiver.recv().await.expect("a packet");
    pattern::check(sequence, len, &packet);
    packet
}

/// Sizes around slots, blocks and the longest packet of a default socket.
fn sizes(limit: usize) -> Vec<usize> {
    let mut sizes = vec![0, 1, 2, 7, 8, 9];
    for edge in [128, 256, 512, 1024, 4096, 8192, 16 << 10, 64 << 10, 128 << 10] {
        sizes.extend([edge - 9, edge - 8, edge - 7, edge - 1, edge, edge + 1]);
    }
    sizes.extend([limit - 1, limit]);
    sizes.retain(|size| *size <= limit);
    sizes
}

fn every_size(engine: EngineChoice) {
    for settings in [Datagram::builder(), plain()] {
        block_on(engine, async {
            let (left, mut right) = settings.pair().expect("a pair");
            let limit = left.message_bytes_max();
            let mut sequence = 0;
            // Small after large and large after small: the slots follow the traffic.
            let sizes = sizes(limit);
            for len in sizes.iter().copied().chain(sizes.iter().rev().copied()) {
                left.send(&pattern::payload(sequence, len)).await.expect("room");
                expect(&mut right, sequence, len).await;
                sequence += 1;
            }
            let len = limit + 1;
            let error = DatagramSendError::TooLarge { len, limit };
            assert_eq!(left.send(&vec![0; len]).await, Err(error.clone()));
            assert_eq!(left.try_send(&vec![0; len]), Err(error));
            // What was refused leaves no trace.
            left.send(&pattern::payload(sequence, 3)).await.expect("room");
            expect(&mut right, sequence, 3).await;
        });
    }
}

fn mixed_sizes_in_batches(engine: EngineChoice) {
    const PACKETS: u64 = 5000;
    let len = |sequence: u64| {
        let most =
            [20, 200, 3000, 20_000, 150_000][usize::try_from(sequence / 7 % 5).expect("small")];
        usize::try_from(sequence * 7919).expect("small") % most
    };
    block_on(engine, async {
        let (left, mut right) = Datagram::builder().pair().expect("a pair");
        let (left, _) = left.split();
        let sending = ringpost::spawn(async move {
            for sequence in 0..PACKETS {
                let len = len(sequence);
                left.send_with(len, |bytes| pattern::fill(sequence, bytes)).await.expect("room");
            }
            left.flush().await.expect("the peer reads");
        });
        let (mut received, mut kept) = (0, Vec::new());
        while received < PACKETS {
            let mut batch = right.recv_batch().await.expect("packets");
            while let Some(packet) = batch.next() {
                let packet = packet.expect("a message");
                pattern::check(received, len(received), &packet);
                if received % 100 == 0 {
                    kept.push((received, packet.retain()));
                }
                received += 1;
            }
        }
        for (sequence, packet) in kept {
            pattern::check(sequence, len(sequence), &packet);
        }
        sending.await.expect("no panic");
    });
}

fn empty_packets_of_others(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let mut receiver = plain().bind(&path).expect("bind");
        let client = UnixDatagram::unbound().expect("a socket");
        for body in [&b""[..], b"", b"x", b""] {
            client.send_to(body, &path).expect("room");
        }
        for body in [&b""[..], b"", b"x", b""] {
            assert_eq!(*receiver.recv().await.expect("a packet"), *body);
        }
        drop(receiver);

        let mut receiver = Datagram::bind(&path).expect("bind");
        for body in [b"".to_vec(), message(b"x"), b"".to_vec(), message(b"")] {
            client.send_to(&body, &path).expect("room");
        }
        let source = ProtocolError::PacketLength { packet_bytes: 0, frame_bytes: 8 };
        let error = DatagramRecvError::Protocol { source, sender: None };
        assert!(!error.is_final());
        assert_eq!(receiver.recv().await.map(|_| ()), Err(error.clone()));
        assert_eq!(*receiver.recv().await.expect("a packet"), *b"x");
        assert_eq!(receiver.recv().await.map(|_| ()), Err(error));
        assert_eq!(*receiver.recv().await.expect("a packet"), *b"");
        assert_eq!(receiver.stats().malformed, 2);
    });
}

/// Reads packets number `from` to `to` by hand, while the runtime goes on.
async fn read(socket: &UnixDatagram, from: u64, to: u64) {
    socket.set_nonblocking(true).expect("a socket");
    let mut bytes = [0; 1000];
    for sequence in from..to {
        let mut count = 0;
        until("a packet comes", || match socket.recv(&mut bytes) {
            Ok(received) => {
                count = received;
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        })
        .await;
        pattern::check(sequence, 100, &bytes[..count]);
    }
}

/// Sends until the receiver is full and this side knows it. The number accepted.
async fn fill(sender: &Datagram, to: Option<&Path>) -> u64 {
    let mut accepted = 0;
    loop {
        let payload = pattern::payload(accepted, 100);
        let sent = match to {
            None => sender.try_send(&payload),
            Some(path) => sender.try_send_to(path, &payload),
        };
        match sent {
            Ok(()) => accepted += 1,
            Err(DatagramSendError::Full { queued, limit }) => {
                assert!(queued > 0 && queued <= limit, "{queued} of {limit}");
                return accepted;
            }
            Err(error) => panic!("{error}"),
        }
        yield_now().await;
        assert!(accepted < 10_000, "the receiver never fills");
    }
}

/// Nothing completes for a socket that only sends and finds room: it gets on all the same, without a sleep.
fn a_sender_alone(engine: EngineChoice) {
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    // Of a pair, the buffer of the sender counts alone.
    let (ours, theirs) = UnixDatagram::pair().expect("a pair");
    runtime.block_on(async {
        let sender = plain().from_socket(ours.into());
        for sequence in 0..200 {
            sender.send(&pattern::payload(sequence, 10)).await.expect("room");
        }
        sender.flush().await.expect("taken");
        assert!(ringpost::stats().packets_sent == 200);
    });
    let mut bytes = [0; 100];
    for sequence in 0..200 {
        let count = theirs.recv(&mut bytes).expect("a packet");
        pattern::check(sequence, 10, &bytes[..count]);
    }
}

fn a_full_receiver(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let receiver = other(&path);
        let sender = plain().connect(&path).expect("bound");
        for _ in 0..3 {
            let accepted = fill(&sender, None).await;
            // Whoever waits gets on once there is room, and nothing is lost or swapped.
            let last = pattern::payload(accepted, 100);
            assert!(poll_at_most(5, sender.send(&last)).await.is_none(), "it is full");
            let (sent, ()) = futures(sender.send(&last), read(&receiver, 0, accepted)).await;
            sent.expect("room");
            read(&receiver, accepted, accepted + 1).await;
        }
        sender.flush().await.expect("taken");
    });
}

fn a_full_receiver_without_a_connection(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let receiver = other(&path);
        let sender = plain().unbound().expect("a socket");
        for _ in 0..3 {
            let accepted = fill(&sender, Some(&path)).await;
            let last = pattern::payload(accepted, 100);
            assert!(poll_at_most(5, sender.send_to(&path, &last)).await.is_none(), "it is full");
            let sending = sender.send_to(&path, &last);
            let (sent, ()) = futures(sending, read(&receiver, 0, accepted)).await;
            sent.expect("room");
            read(&receiver, accepted, accepted + 1).await;
        }
        sender.flush().await.expect("taken");
    });
}

/// Both futures at once.
async fn futures<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> (A, B) {
    use std::pin::pin;
    use std::task::Poll;
    let (mut left, mut right) = (pin!(left), pin!(right));
    let (mut a, mut b) = (None, None);
    std::future::poll_fn(|context| {
        if a.is_none()
            && let Poll::Ready(value) = left.as_mut().poll(context)
        {
            a = Some(value);
        }
        if b.is_none()
            && let Poll::Ready(value) = right.as_mut().poll(context)
        {
            b = Some(value);
        }
        if a.is_some() && b.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (a.expect("ready"), b.expect("ready"))
}

fn one_full_receiver_among_others(engine: EngineChoice) {
    block_on(engine, async {
        let (directory, stuck) = place();
        let stuck_socket = other(&stuck);
        let sender = plain().unbound().expect("a socket");
        let accepted = fill(&sender, Some(&stuck)).await;
        let live = directory.path().join("live.sock");
        let live_socket = other(&live);
        for sequence in 0..50 {
            sender.send_to(&live, &pattern::payload(sequence, 100)).await.expect("room");
            read(&live_socket, sequence, sequence + 1).await;
        }
        assert!(matches!(
            sender.try_send_to(&stuck, b"x"),
            Err(DatagramSendError::Full { queued: 1.., .. })
        ));
        read(&stuck_socket, 0, accepted).await;
        sender.flush().await.expect("taken");
    });
}

/// A flush is about what was accepted before it, however much follows.
fn a_flush_waits_for_nothing_later(engine: EngineChoice) {
    block_on(engine, async {
        let (directory, path) = place();
        let receiver = other(&path);
        let stuck = directory.path().join("stuck.sock");
        let _stuck_socket = other(&stuck);
        fill_up(&stuck);
        let sender = plain().unbound().expect("a socket");
        let accepted = fill(&sender, Some(&path)).await;
        let mut flush = std::pin::pin!(sender.flush());
        assert!(poll_at_most(3, flush.as_mut()).await.is_none(), "the receiver is full");
        sender.try_send_to(&stuck, b"later").expect("not known to be full");
        sender.try_send_to(&path, &pattern::payload(accepted, 100)).expect_err("known to be full");
        let (flushed, ()) = futures(flush, read(&receiver, 0, accepted)).await;
        flushed.expect("taken");
        assert!(
            poll_at_most(20, sender.flush()).await.is_none(),
            "a later one waits for the other"
        );
    });
}

fn absent_receivers(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let error = Datagram::connect(&path).expect_err("nobody is there");
        assert!(error.to_string().contains("no such path"), "{error}");
        let sender = Datagram::unbound().expect("a socket");
        let gone = |to: &Address| DatagramSendError::Gone { to: Some(to.clone()) };
        for address in [Address::from(&path), Address::Abstract(b"ringpost-nobody".to_vec())] {
            sender.send_to(&address, b"x").await.expect("accepted");
            assert_eq!(sender.flush().await, Err(gone(&address)));
            assert_eq!(sender.flush().await, Ok(()), "told once");
            // The next send to the same address is told as well.
            sender.send_to(&address, b"x").await.expect("accepted");
            yield_now().await;
            yield_now().await;
            assert_eq!(sender.try_send_to(&address, b"x"), Err(gone(&address)));
            assert_eq!(sender.flush().await, Ok(()), "told once");
        }
        assert_eq!(ringpost::stats().packets_dropped, 4);
        // Without a peer there is nothing to accept it for.
        let not_connected = || Err(DatagramSendError::NotConnected);
        assert_eq!(sender.send(b"x").await, not_connected());
        assert_eq!(sender.try_send(b"x"), not_connected());
        assert_eq!(sender.flush().await, Ok(()));
        let (sender, _receiver) = sender.split();
        assert_eq!(sender.send_with(1, |_| ()).await, not_connected());
        assert_eq!(sender.send_bytes(None, b"x"[..].into()).await, not_connected());
        let long = "x".repeat(108);
        let error = DatagramSendError::AddressLength { length: 108, limit: 107 };
        assert_eq!(sender.send_to(long.as_str(), b"x").await, Err(error));
    });
}

fn a_receiver_that_comes_back(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let mut receiver = Datagram::bind(&path).expect("bind");
        let sender = Datagram::connect(&path).expect("bound");
        let gone = DatagramSendError::Gone { to: Some(Address::from(&path)) };
        for round in 0..3 {
            sender.send(&pattern::payload(round, 50)).await.expect("accepted");
            sender.flush().await.expect("taken");
            expect(&mut receiver, round, 50).await;
            drop(receiver);
            // Closing takes a turn or two.
            let mut failure = None;
            until("the end is seen", || match &failure {
                None => {
                    failure = sender.try_send(b"lost").err();
                    false
                }
                Some(_) => true,
            })
            .await;
            assert_eq!(failure, Some(gone.clone()));
            assert_eq!(sender.send(b"lost").await, Err(gone.clone()), "still gone");
            receiver = Datagram::bind(&path).expect("bind again");
        }
        sender.send(b"back").await.expect("accepted");
        assert_eq!(*receiver.recv().await.expect("a packet"), *b"back");
    });
}

fn an_address_that_comes_back(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let sender = plain().unbound().expect("a socket");
        let gone = DatagramSendError::Gone { to: Some(Address::from(&path)) };
        for _ in 0..3 {
            let mut receiver = plain().bind(&path).expect("bind");
            sender.send_to(&path, b"x").await.expect("accepted");
            sender.flush().await.expect("taken");
            assert_eq!(*receiver.recv().await.expect("a packet"), *b"x");
            drop(receiver);
            sender.send_to(&path, b"lost").await.expect("accepted");
            assert_eq!(sender.flush().await, Err(gone.clone()));
        }
    });
}

fn too_long_to_receive(engine: EngineChoice) {
    block_on(engine, async {
        let (directory, path) = place();
        let limit = 1000;
        let mut receiver = plain().packet_bytes_max(limit).bind(&path).expect("bind");
        let client_path = directory.path().join("client.sock");
        let client = other(&client_path);
        for len in [1001, 1000, 100_000, 999, 200_000, 0, 1001] {
            client.send_to(&pattern::payload(7, len), &path).expect("room");
            let received = receiver.recv().await;
            if len <= limit {
                pattern::check(7, len, &received.expect("a packet"));
                continue;
            }
            let sender = Some(Address::from(&client_path));
            let error = DatagramRecvError::Truncated { received: len, limit, sender };
            assert!(error.to_string().contains(&format!("{len} bytes")), "{error}");
            assert_eq!(received.map(|_| ()), Err(error));
        }
        assert_eq!(ringpost::stats().packets_truncated, 4);
    });
}

fn too_long_to_send(engine: EngineChoice) {
    block_on(engine, async {
        // A small buffer of the kernel is a smaller limit than ours, and told as such.
        let (left, mut right) = plain().send_buffer_bytes(8192).pair().expect("a pair");
        let limit = left.message_bytes_max();
        assert!((8192..=16_384).contains(&limit), "{limit}");
        for len in limit - 40..=limit {
            left.send(&pattern::payload(1, len)).await.expect("room");
            expect(&mut right, 1, len).await;
        }
        let error = DatagramSendError::TooLarge { len: limit + 1, limit };
        assert_eq!(left.send(&vec![0; limit + 1]).await, Err(error));
        // Lowered behind our back: the packet is lost, which is told with both sizes.
        rustix::net::sockopt::set_socket_send_buffer_size(&left, 1).expect("a socket");
        left.send(&pattern::payload(1, limit)).await.expect("accepted");
        let error = left.flush().await.expect_err("too long");
        let smaller = left.message_bytes_max();
        assert!(smaller < limit);
        assert_eq!(error, DatagramSendError::TooLarge { len: limit, limit: smaller });
        // Larger than by default.
        let settings = plain().packet_bytes_max(1 << 20).send_buffer_bytes(1 << 20);
        let (left, mut right) = settings.pair().expect("a pair");
        for len in [300_000, 1 << 20, 5, 700_000] {
            if len <= left.message_bytes_max() {
                left.send(&pattern::payload(1, len)).await.expect("room");
                expect(&mut right, 1, len).await;
            }
        }
    });
}

/// What writes a message in place is code of the user's, and may use everything, the same socket as well.
fn what_fills_a_message_may_do(engine: EngineChoice) {
    block_on(engine, async {
        let (left, mut right) = plain().pair().expect("a pair");
        let (sender, _receiver) = left.split();
        for len in [0, 100, 1000, 3000, 60_000] {
            let (clone, dropped) = (sender.clone(), plain().pair().expect("a pair"));
            let fill = |bytes: &mut [u8]| {
                let _counters = ringpost::stats();
                drop(dropped);
                clone.try_send(&pattern::payload(1, 30)).expect("room");
                assert!(bytes.iter().all(|byte| *byte == 0), "bytes of an earlier one");
                pattern::fill(2, bytes);
            };
            sender.send(&pattern::payload(0, 30)).await.expect("room");
            sender.send_with(len, fill).await.expect("room");
            sender.send(&pattern::payload(3, 30)).await.expect("room");
            for (sequence, len) in [(0, 30), (1, 30), (2, len), (3, 30)] {
                expect(&mut right, sequence, len).await;
            }
        }
        // One that panics has sent nothing, and nothing of it is left.
        let clone = sender.clone();
        let panicking = ringpost::spawn(async move {
            clone.send_with(100, |bytes| bytes.fill(9)).await.expect("room");
            clone.send_with(100, |_| panic!("on purpose")).await.expect("room");
        });
        assert!(panicking.await.is_err());
        sender.send_with(100, |bytes| pattern::fill(4, bytes)).await.expect("room");
        assert_eq!(*right.recv().await.expect("a packet"), [9; 100]);
        expect(&mut right, 4, 100).await;
        assert_eq!(sender.queued_packets(), 0);
    });
}

fn senders_have_names(engine: EngineChoice) {
    block_on(engine, async {
        let (directory, path) = place();
        let mut server = Datagram::bind(&path).expect("bind");
        let client_path = directory.path().join("client.sock");
        let abstract_name = format!("@ringpost-datagrams-{}-{engine:?}", std::process::id());
        let mut by_path = Datagram::bind(&client_path).expect("bind");
        let mut by_name = Datagram::bind(abstract_name.as_str()).expect("bind");
        let mut automatic = Datagram::builder().autobind().expect("a name");
        let unnamed = Datagram::connect(&path).expect("bound");
        for client in [&mut by_path, &mut by_name, &mut automatic] {
            client.send_to(&path, b"question").await.expect("room");
            let question = server.recv().await.expect("a packet");
            assert_eq!(*question, *b"question");
            match (client.address(), question.sender()) {
                (Some(address), Some(sender)) => assert_eq!(*address, sender),
                (None, Some(Address::Abstract(name))) => assert_eq!(name.len(), 5, "{name:?}"),
                other => panic!("{other:?}"),
            }
            server.send_to(question.sender_name(), b"answer").await.expect("room");
            let answer = client.recv().await.expect("a packet");
            assert_eq!(*answer, *b"answer");
            assert_eq!(answer.sender(), Some(Address::from(&path)));
        }
        unnamed.send(b"question").await.expect("room");
        let question = server.recv().await.expect("a packet");
        assert_eq!(question.sender(), None);
        assert!(question.sender_name().is_unnamed());
        let error = DatagramSendError::AddressLength { length: 0, limit: 107 };
        assert_eq!(server.send_to(question.sender_name(), b"answer").await, Err(error));
        // Another program's abstract name, with a zero byte in it.
        let address = SocketAddr::from_abstract_name(format!("{abstract_name}\0x")).expect("short");
        let client = UnixDatagram::bind_addr(&address).expect("free");
        client.send_to(&message(b"question"), &path).expect("room");
        let question = server.recv().await.expect("a packet");
        server.send_to(&question.sender().expect("a name"), b"answer").await.expect("room");
        server.flush().await.expect("taken");
        let mut bytes = [0; 100];
        let count = client.recv(&mut bytes).expect("an answer");
        assert_eq!(bytes[..count], message(b"answer"));
    });
}

fn credentials(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let mut silent = Datagram::bind(&path).expect("bind");
        let client = UnixDatagram::unbound().expect("a socket");
        client.send_to(&message(b"x"), &path).expect("room");
        assert_eq!(silent.recv().await.expect("a packet").credentials(), None, "not asked for");
        drop(silent);

        let mut asking = Datagram::builder().credentials(true).bind(&path).expect("bind");
        for _ in 0..40 {
            client.send_to(&message(b"x"), &path).expect("room");
            let packet = asking.recv().await.expect("a packet");
            let peer = packet.credentials().expect("asked for");
            assert_eq!(peer.pid, Some(std::process::id()));
            assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
            assert_eq!(peer.gid, rustix::process::getegid().as_raw());
            assert!(packet.retain_check());
        }

        // One from elsewhere, whose packets come with a time.
        let other = path.with_extension("stamped");
        let socket = UnixDatagram::bind(&other).expect("free");
        let on: libc::c_int = 1;
        // SAFETY: the option value is an int that lives through the call, of the length stated.
        let set = unsafe {
            let (level, option) = (libc::SOL_SOCKET, libc::SO_TIMESTAMP);
            libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), 4)
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        let builder = Datagram::builder().credentials(true);
        let mut stamped = builder.adopt_socket(socket.into()).expect("a datagram socket");
        client.send_to(&message(b"x"), &other).expect("room");
        let packet = stamped.recv().await.expect("a packet");
        assert_eq!(packet.credentials().expect("asked for").pid, Some(std::process::id()));
    });
}

trait RetainCheck {
    fn retain_check(&self) -> bool;
}

impl RetainCheck for Packet {
    fn retain_check(&self) -> bool {
        self.clone().into_message().len() == self.len()
    }
}

fn a_policy(engine: EngineChoice) {
    block_on(engine, async {
        let (_directory, path) = place();
        let uid = rustix::process::geteuid().as_raw();
        let client = UnixDatagram::unbound().expect("a socket");
        for (policy, allowed) in [
            (AccessPolicy::anyone().allow_uid(uid), true),
            (AccessPolicy::anyone().allow_uid(uid.wrapping_add(1)), false),
        ] {
            let mut receiver = plain().policy(policy).bind(&path).expect("bind");
            client.send_to(b"x", &path).expect("room");
            let received = poll_at_most(20, receiver.recv()).await;
            assert_eq!(received.is_some(), allowed);
            assert_eq!(receiver.stats().denied, u64::from(!allowed));
        }
        // Sent before anybody had asked who sent it: the kernel did not note it, so nobody is
        // authenticated, not even for a policy that names the kernel's stand-in.
        let socket = other(&path);
        client.send_to(b"x", &path).expect("room");
        let policy = AccessPolicy::anyone().same_user().allow_uid(65_534);
        let mut receiver = plain().policy(policy).from_socket(socket.into());
        assert!(poll_at_most(20, receiver.recv()).await.is_none());
        assert_eq!(receiver.stats().denied, 1);
        client.send_to(b"y", &path).expect("room");
        assert_eq!(*receiver.recv().await.expect("a packet"), *b"y");
    });
}

/// Packets pass no descriptors: the kernel refuses them from Linux 6.16 on, so that none lie in our queue;
/// before, they are closed on arrival. Other packets go on, with credentials and without.
fn descriptors_of_others(engine: EngineChoice) {
    block_on(engine, async {
        for credentials in [false, true] {
            let (_directory, path) = place();
            let server = plain().credentials(credentials).bind(&path);
            let mut server = server.expect("bind");
            let client = UnixDatagram::unbound().expect("a socket");
            client.connect(&path).expect("it receives");
            let known =
                rustix::fs::open("/dev/null", OFlags::CLOEXEC, Mode::empty()).expect("there");
            let many = [known.as_fd(); 253];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
            let sent =
                sendmsg(&client, &[IoSlice::new(b"files")], &mut control, SendFlags::empty());
            match sent {
                Err(errno) => assert_eq!(errno, Errno::PERM),
                Ok(_) => {
                    assert!(!kernel_refuses_descriptors(), "they were queued");
                    assert_eq!(*server.recv().await.expect("a message"), *b"files");
                }
            }
            client.send(b"after").expect("room");
            assert_eq!(*server.recv().await.expect("a message"), *b"after");
        }
    });
}

/// Whether SO_PASSRIGHTS is known (Linux 6.16).
fn kernel_refuses_descriptors() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
    let mut numbers = release.split(['.', '-', '\n']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(16))
}

fn packets_that_are_no_frames(engine: EngineChoice) {
    let unknown = |flags| flagged(FrameKind::Unknown(200), flags, b"later");
    let whole = message(b"abc");
    block_on(engine, async {
        let (_directory, path) = place();
        let mut receiver = Datagram::bind(&path).expect("bind");
        let client = UnixDatagram::unbound().expect("a socket");
        // Skipped: kinds of later versions, and those that only mean something on a connection.
        for packet in [
            unknown(FrameFlags::NONE),
            frame(FrameKind::Fin, b""),
            frame(FrameKind::Ping, b"ping"),
            frame(FrameKind::Reject, b"no"),
        ] {
            client.send_to(&packet, &path).expect("room");
            client.send_to(&whole, &path).expect("room");
            assert_eq!(*receiver.recv().await.expect("a packet"), *b"abc");
        }
        assert_eq!(receiver.stats().skipped, 4);
        let kind = FrameKind::Message;
        let fds = FrameHeader { len: 0, kind, flags: FrameFlags::NONE, fds: 1 }.encode().to_vec();
        let length =
            |packet_bytes, frame_bytes| ProtocolError::PacketLength { packet_bytes, frame_bytes };
        let mut cases = vec![
            (unknown(FrameFlags::CRITICAL), ProtocolError::UnknownCritical { kind: 200 }),
            ([&whole[..], b"x"].concat(), length(12, 11)),
            ([&whole[..], &whole].concat(), length(22, 11)),
            (whole[..10].to_vec(), length(10, 11)),
            (fds, ProtocolError::DescriptorsNotAllowed { count: 1, limit: 0 }),
            (
                flagged(kind, FrameFlags::MORE, b""),
                ProtocolError::FlagsNotAllowed { kind, bits: 1 },
            ),
        ];
        cases.extend((1..8).map(|cut| (whole[..cut].to_vec(), length(cut, 8))));
        let count = cases.len() as u64;
        for (packet, source) in cases {
            client.send_to(&packet, &path).expect("room");
            client.send_to(&whole, &path).expect("room");
            let error = DatagramRecvError::Protocol { source, sender: None };
            // In a batch as well as alone.
            let mut batch = receiver.recv_batch().await.expect("packets");
            assert_eq!(batch.next().expect("one").map(|_| ()), Err(error));
            assert_eq!(*receiver.recv().await.expect("a packet"), *b"abc");
        }
        assert_eq!(receiver.stats().malformed, count);
    });
}

/// Whatever readers hold on to, receiving goes on, by copies.
fn readers_that_keep_everything(engine: EngineChoice) {
    let runtime = builder(engine).pool_bytes(512 << 10).build().expect("a runtime");
    run(&runtime, async {
        let (left, mut right) = plain().pair().expect("a pair");
        let mut kept = Vec::new();
        for sequence in 0..600 {
            let len = [10, 3000, 15_000, 40_000][usize::try_from(sequence % 4).expect("small")];
            left.send(&pattern::payload(sequence, len)).await.expect("room");
            kept.push((sequence, len, right.recv().await.expect("a packet")));
        }
        let stats = ringpost::stats();
        assert!(stats.bytes_copied > 0, "{stats:?}");
        for (sequence, len, packet) in kept {
            pattern::check(sequence, len, &packet);
        }
        // Without readers that keep, nothing is copied again.
        let before = ringpost::stats().bytes_copied;
        for sequence in 0..200 {
            left.send(&pattern::payload(sequence, 100)).await.expect("room");
            expect(&mut right, sequence, 100).await;
        }
        assert_eq!(ringpost::stats().bytes_copied, before);
    });
}

fn futures_dropped_at_every_poll(engine: EngineChoice) {
    block_on(engine, async {
        let (left, mut right) = plain().pair().expect("a pair");
        let (mut sent, mut received) = (0, 0);
        for polls in (0..4).cycle().take(4000) {
            if poll_at_most(polls, left.send(&pattern::payload(sent, 500))).await.is_some() {
                sent += 1;
            }
            if let Some(packet) = poll_at_most(polls, right.recv()).await {
                pattern::check(received, 500, &packet.expect("a packet"));
                received += 1;
            }
            if polls == 2
                && let Some(batch) = poll_at_most(1, right.recv_batch()).await
            {
                let mut batch = batch.expect("packets");
                if let Some(packet) = batch.next() {
                    pattern::check(received, 500, &packet.expect("a packet"));
                    received += 1;
                }
            }
            poll_at_most(polls, left.flush()).await;
        }
        while received < sent {
            expect(&mut right, received, 500).await;
            received += 1;
        }
        assert!(poll_at_most(20, right.recv()).await.is_none(), "accepted more than once");
    });
}

fn many_receivers(engine: EngineChoice) {
    block_on(engine, async {
        let (directory, path) = place();
        let sender = Datagram::bind(&path).expect("bind");
        let mut receivers: Vec<_> = (0..200)
            .map(|index| {
                let path = directory.path().join(index.to_string());
                let receiver = Datagram::bind(&path).expect("bind");
                (path, receiver)
            })
            .collect();
        for round in 0..5 {
            for (index, (path, _)) in receivers.iter().enumerate() {
                let sequence = round * 1000 + index as u64;
                sender.send_to(path, &pattern::payload(sequence, 64)).await.expect("room");
            }
            for (index, (_, receiver)) in receivers.iter_mut().enumerate() {
                expect(receiver, round * 1000 + index as u64, 64).await;
            }
        }
    });
}

fn nothing_is_left_behind(engine: EngineChoice) {
    let runtime = runtime(engine);
    run(&runtime, async {
        let (directory, path) = place();
        let round = async |index: usize| {
            let mut server = Datagram::bind(&path).expect("bind");
            let client = Datagram::connect(&path).expect("bound");
            for len in [10, 100_000] {
                client.send(&vec![7; len]).await.expect("room");
            }
            if index.is_multiple_of(2) {
                assert_eq!(server.recv().await.expect("a packet").len(), 10);
            }
            // Full, so that a request for room is in flight when the socket goes.
            if index.is_multiple_of(3) {
                while poll_at_most(3, client.send(&[0; 10])).await.is_some() {}
            }
            drop(server);
            drop(client);
        };
        for index in 0..6 {
            round(index).await;
        }
        until("all is closed", || ringpost::stats().operations_in_flight <= 1).await;
        let (descriptors, memory) = (process::descriptors(), process::anonymous_bytes());
        for index in 0..300 {
            round(index).await;
        }
        until("all is closed", || ringpost::stats().operations_in_flight <= 1).await;
        assert_eq!(process::descriptors(), descriptors);
        let grown = process::anonymous_bytes().saturating_sub(memory);
        assert!(grown < 4 << 20, "{grown} bytes more");
        let stats = ringpost::stats();
        assert!(stats.pool_blocks_leased <= 1, "{stats:?}");
        drop(directory);
    });
}

fn the_end_of_a_runtime(engine: EngineChoice) {
    let (_directory, path) = place();
    for index in 0..5 {
        let before = process::descriptors();
        let runtime = runtime(engine);
        let (receiver, sender, packet) = run(&runtime, async {
            let mut receiver = Datagram::bind(&path).expect("bind");
            let sender = Datagram::connect(&path).expect("bound");
            sender.send(b"kept").await.expect("room");
            let packet = receiver.recv().await.expect("a packet");
            ringpost::spawn(async { std::future::pending::<()>().await });
            // Accepted and not yet sent: it still leaves.
            sender.send(b"last").await.expect("room");
            (receiver, sender, packet)
        });
        if index % 2 == 0 {
            drop(runtime);
            drop((receiver, sender));
        } else {
            drop((receiver, sender));
            drop(runtime);
        }
        assert_eq!(*packet, *b"kept", "memory lives as long as the packet");
        drop(packet);
        assert_eq!(process::descriptors(), before);
    }
}
