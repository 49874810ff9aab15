//! Byte streams on the real kernel, the same tests on each engine.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use ringpost_reactor::{
    Config, EngineChoice, Inbound, Payload, Prefix, Reactor, Spin, Stream, StreamError, Wait,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Every wait ends after this.
const PATIENCE: Duration = Duration::from_secs(20);

fn reactor(engine: EngineChoice) -> Reactor {
    let mut config = Config::default();
    config.engine = engine;
    config.spin = Spin::Never;
    Reactor::new(config).unwrap()
}

fn each_engine(test: impl Fn(Reactor)) {
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        eprintln!("engine {engine:?}");
        test(reactor(engine));
    }
}

fn socket_pair() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap()
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Drives `future` with turns of `reactor`.
fn block_on<T>(reactor: &Reactor, future: impl Future<Output = T>) -> T {
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&flag));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let deadline = Instant::now() + PATIENCE;
    loop {
        if flag.0.swap(false, Ordering::Relaxed)
            && let Poll::Ready(value) = future.as_mut().poll(&mut context)
        {
            return value;
        }
        assert!(Instant::now() < deadline, "the future did not finish in time");
        reactor.inbox().mailbox().wake().take();
        let wait = if flag.0.load(Ordering::Relaxed) { Wait::No } else { Wait::Until(deadline) };
        reactor.turn(wait).unwrap();
    }
}

async fn receive(stream: &Stream) -> Result<Inbound, StreamError> {
    poll_fn(|context| stream.poll_receive(context)).await
}

async fn receive_exactly(stream: &Stream, bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < bytes {
        match receive(stream).await.unwrap() {
            Inbound::Chunk(chunk) => all.extend_from_slice(chunk.as_slice()),
            other => panic!("{other:?} after {} of {bytes} bytes", all.len()),
        }
    }
    assert_eq!(all.len(), bytes);
    all
}

async fn send_all(stream: &Stream, bytes: &[u8], piece: usize) {
    for part in bytes.chunks(piece) {
        poll_fn(|context| stream.poll_room(context)).await.unwrap();
        stream.append(Prefix::NONE, part);
    }
    poll_fn(|context| stream.poll_flushed(context)).await.unwrap();
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| u8::try_from((index * 7 + index / 256) % 251).unwrap()).collect()
}

/// Runs two futures at once.
async fn both<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> (A, B) {
    let (mut left, mut right) = (pin!(left), pin!(right));
    let (mut a, mut b) = (None, None);
    poll_fn(|context| {
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
    (a.unwrap(), b.unwrap())
}

#[test]
fn bytes_arrive_whole_and_in_order() {
    each_engine(|reactor| {
        let (left, right) = socket_pair();
        let left = reactor.adopt_stream(left);
        let right = reactor.adopt_stream(right);
        for len in [1, 72, 4096, 65_535, 65_536, 65_537, 300_000, 5_000_000] {
            let data = pattern(len);
            for piece in [len, 1000] {
                let (_, received) = block_on(
                    &reactor,
                    both(send_all(&left, &data, piece), receive_exactly(&right, len)),
                );
                assert!(received == data, "{len} bytes in pieces of {piece}");
            }
        }
        let stats = reactor.stats();
        assert_eq!(stats.bytes_sent, stats.bytes_received);
        assert_eq!(stats.completions_stale, 0);
        eprintln!("{stats:?}");
    });
}

#[test]
fn forwarded_chunks_are_not_copied() {
    each_engine(|reactor| {
        let (a, b) = socket_pair();
        let (c, d) = socket_pair();
        let (a, b, c, d) = (
            reactor.adopt_stream(a),
            reactor.adopt_stream(b),
            reactor.adopt_stream(c),
            reactor.adopt_stream(d),
        );
        let data = pattern(1_000_000);
        let forward = async {
            let mut forwarded = 0;
            while forwarded < data.len() {
                let Inbound::Chunk(chunk) = receive(&b).await.unwrap() else { panic!() };
                forwarded += chunk.len();
                poll_fn(|context| c.poll_room(context)).await.unwrap();
                match chunk {
                    ringpost_reactor::Chunk::Leased(lease) => {
                        c.append_shared(Prefix::NONE, Payload::Lease(lease));
                    }
                    chunk => c.append_shared(Prefix::NONE, Payload::Bytes(chunk.into_bytes())),
                }
            }
        };
        let work =
            both(send_all(&a, &data, 10_000), both(forward, receive_exactly(&d, data.len())));
        let (_, (_, received)) = block_on(&reactor, work);
        assert!(received == data);
        assert_eq!(reactor.stats().bytes_copied, 0);
    });
}

#[test]
fn end_of_file_follows_the_data() {
    each_engine(|reactor| {
        let (left, right) = socket_pair();
        let left = reactor.adopt_stream(left);
        let right = reactor.adopt_stream(right);
        left.append(Prefix::NONE, b"last words");
        drop(left);
        block_on(&reactor, async {
            assert_eq!(receive_exactly(&right, 10).await, b"last words");
            assert!(matches!(receive(&right).await, Ok(Inbound::EndOfFile)));
            assert!(matches!(receive(&right).await, Ok(Inbound::EndOfFile)));
        });
        // Sending to the closed peer fails and is reported as such.
        right.append(Prefix::NONE, b"anybody?");
        let failure = block_on(&reactor, poll_fn(|context| right.poll_flushed(context)));
        assert_eq!(failure, Err(StreamError::PeerGone));
    });
}

#[test]
fn a_dropped_stream_still_sends_what_it_accepted() {
    each_engine(|reactor| {
        let (left, right) = socket_pair();
        let left = reactor.adopt_stream(left);
        let right = reactor.adopt_stream(right);
        let data = pattern(3_000_000);
        left.append(Prefix::NONE, &data);
        drop(left);
        let received = block_on(&reactor, receive_exactly(&right, data.len()));
        assert!(received == data);
        assert!(matches!(block_on(&reactor, receive(&right)), Ok(Inbound::EndOfFile)));
    });
}

#[test]
fn a_lagging_reader_pauses_its_sender() {
    each_engine(|reactor| {
        let (left, right) = socket_pair();
        let left = reactor.adopt_stream(left);
        let right = reactor.adopt_stream(right);
        let data = pattern(100_000);
        let mut accepted = 0;
        // Nobody reads: room must run out within the bounds of both sides and the socket.
        for _ in 0..1000 {
            if !left.has_room().unwrap() {
                reactor.turn(Wait::Until(Instant::now() + Duration::from_millis(5))).unwrap();
                if !left.has_room().unwrap() {
                    break;
                }
            }
            left.append(Prefix::NONE, &data);
            accepted += data.len();
        }
        assert!(!left.has_room().unwrap());
        assert!(accepted < 3_000_000, "{accepted} bytes without a reader");
        assert!(reactor.stats().receives_paused > 0);
        let received = block_on(&reactor, receive_exactly(&right, accepted));
        assert!(received.chunks(data.len()).all(|part| part == data));
    });
}

#[test]
fn retained_leases_never_stop_the_others() {
    each_engine(|reactor| {
        let (left, right) = socket_pair();
        let (left, right) = (reactor.adopt_stream(left), reactor.adopt_stream(right));
        let data = pattern(64 << 10);
        // Twice the pool, all of it held on to.
        let mut held = Vec::new();
        let rounds = 2 * (4 << 20) / data.len();
        for _ in 0..rounds {
            let reader = async {
                let mut got = 0;
                let mut chunks = Vec::new();
                while got < data.len() {
                    let Inbound::Chunk(chunk) = receive(&right).await.unwrap() else { panic!() };
                    got += chunk.len();
                    chunks.push(chunk);
                }
                chunks
            };
            let (_, chunks) = block_on(&reactor, both(send_all(&left, &data, 8192), reader));
            held.push(chunks);
        }
        for chunks in &held {
            let whole: Vec<u8> =
                chunks.iter().flat_map(|chunk| chunk.as_slice()).copied().collect();
            assert!(whole == data, "a held chunk changed");
        }
        let stats = reactor.stats();
        assert!(stats.bytes_copied > 0);
        assert!(stats.pool_low_water_blocks > 0, "{stats:?}");
        drop(held);
        reactor.turn(Wait::No).unwrap();
    });
}

#[test]
fn leases_outlive_the_reactor() {
    each_engine(|reactor| {
        let (left, right) = socket_pair();
        let (left, right) = (reactor.adopt_stream(left), reactor.adopt_stream(right));
        left.append(Prefix::NONE, b"kept");
        let Inbound::Chunk(chunk) = block_on(&reactor, receive(&right)).unwrap() else { panic!() };
        drop((left, right));
        reactor.shutdown();
        drop(reactor);
        assert_eq!(chunk.as_slice(), b"kept");
        std::thread::spawn(move || drop(chunk)).join().unwrap();
    });
}

#[test]
fn shutdown_with_a_thousand_armed_receives_leaves_nothing() {
    each_engine(|reactor| {
        let streams: Vec<_> = (0..1000)
            .map(|_| {
                let (left, right) = socket_pair();
                (reactor.adopt_stream(left), right)
            })
            .collect();
        reactor.turn(Wait::No).unwrap();
        assert!(reactor.stats().operations_in_flight >= 1000);
        reactor.shutdown();
        assert_eq!(reactor.stats().operations_in_flight, 0);
        let (stream, _) = &streams[0];
        assert!(matches!(block_on_failed(stream), Err(StreamError::RuntimeEnded)));
        // The peers saw the end at once.
        let mut byte = [0; 1];
        assert_eq!(rustix::io::read(&streams[999].1, &mut byte), Ok(0));
    });
}

fn block_on_failed(stream: &Stream) -> Result<Inbound, StreamError> {
    match stream.poll_receive(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("pending after shutdown"),
    }
}

#[test]
fn another_thread_wakes_a_parked_reactor() {
    each_engine(|reactor| {
        let inbox = Arc::clone(reactor.inbox());
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            inbox.mailbox().push(Box::new(|| {})).unwrap_or_else(|_| panic!("refused"));
        });
        let deadline = Instant::now() + PATIENCE;
        while reactor.inbox().mailbox().pop().is_none() {
            assert!(Instant::now() < deadline);
            reactor.inbox().mailbox().wake().take();
            reactor.turn(Wait::Until(deadline)).unwrap();
        }
        thread.join().unwrap();
    });
}

#[test]
fn sleep_waits_and_fires_once() {
    each_engine(|reactor| {
        let start = Instant::now();
        block_on(&reactor, reactor.sleep_until(start + Duration::from_millis(15)));
        assert!(start.elapsed() >= Duration::from_millis(15));
    });
}

/// Each engine, with its receives in the ring and, where there is such a thing, tried by hand.
fn each_engine_and_spin(test: impl Fn(Reactor)) {
    each_engine(&test);
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        let mut config = Config::default();
        config.engine = engine;
        config.spin = Spin::Always;
        test(Reactor::new(config).unwrap());
    }
}

fn read_by_hand(socket: &OwnedFd) -> Result<Vec<u8>, rustix::io::Errno> {
    let mut bytes = [0; 64];
    let (_, count) = rustix::net::recv(socket, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT)?;
    Ok(bytes[..count].to_vec())
}

#[test]
fn a_stopped_stream_leaves_later_bytes_in_the_socket() {
    each_engine_and_spin(|reactor| {
        let (ours, theirs) = socket_pair();
        let stream = reactor.adopt_stream(ours);
        block_on(&reactor, async {
            rustix::io::write(&theirs, b"taken").unwrap();
            assert_eq!(receive_exactly(&stream, 5).await, b"taken");
            rustix::io::write(&theirs, b"early").unwrap();
            poll_fn(|context| stream.poll_arrival(context)).await;
            let error = stream.detach().expect_err("still receiving");
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            // It goes on, and can be stopped again.
            send_all(&stream, b"answer", 6).await;
            poll_fn(|context| stream.poll_stopped(context)).await.unwrap();
            poll_fn(|context| stream.poll_stopped(context)).await.unwrap();
        });
        rustix::io::write(&theirs, b"late").unwrap();
        let (socket, chunks) = stream.detach().unwrap();
        let received: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.as_slice().to_vec()).collect();
        assert_eq!(received, b"early");
        // The handle is closed and says so; the socket is as it was.
        assert!(stream.detach().is_err());
        assert_eq!(stream.has_room(), Err(StreamError::PeerGone));
        drop(stream);
        drop(chunks);
        reactor.turn(Wait::No).unwrap();
        assert_eq!(read_by_hand(&socket).unwrap(), b"late");
        assert_eq!(read_by_hand(&theirs).unwrap(), b"answer");
        assert_eq!(read_by_hand(&theirs), Err(rustix::io::Errno::AGAIN), "no end of file");
        // Another stream of the same reactor goes on with it.
        let stream = reactor.adopt_stream(socket);
        rustix::io::write(&theirs, b"again").unwrap();
        let again = block_on(&reactor, receive_exactly(&stream, 5));
        assert_eq!(again, b"again");
        drop(reactor);
    });
}

#[test]
fn a_paused_listener_leaves_connections_in_the_backlog() {
    each_engine(|reactor| {
        let name = format!("ringpost-paused-{}-{:?}", std::process::id(), reactor.report().kind);
        let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = || {
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
        };
        let listening = socket();
        rustix::net::bind(&listening, &address).unwrap();
        rustix::net::listen(&listening, 8).unwrap();
        let listener = reactor.adopt_listener(listening);
        let connect = || {
            let client = socket();
            rustix::net::connect(&client, &address).unwrap();
            client
        };
        let accepted = |clients: usize| {
            for _ in 0..clients {
                block_on(&reactor, poll_fn(|context| listener.poll_accept(context))).unwrap();
            }
            let mut context = Context::from_waker(Waker::noop());
            reactor.turn(Wait::No).unwrap();
            assert!(listener.poll_accept(&mut context).is_pending(), "no more than {clients}");
        };
        let _first = connect();
        accepted(1);
        for _ in 0..3 {
            block_on(&reactor, poll_fn(|context| listener.poll_paused(context)));
            let _waiting = [connect(), connect()];
            accepted(0);
            listener.resume();
            accepted(2);
        }
        // Dropped before it was ready, the pause goes on, and is undone all the same.
        let mut context = Context::from_waker(Waker::noop());
        assert!(listener.poll_paused(&mut context).is_pending());
        listener.resume();
        let _waiting = connect();
        accepted(1);
        // What was accepted before the end is taken first.
        let _last = connect();
        reactor.turn(Wait::No).unwrap();
        block_on(&reactor, poll_fn(|context| listener.poll_paused(context)));
        listener.end();
        assert!(matches!(listener.poll_accept(&mut context), Poll::Ready(Ok(_))));
        let end = listener.poll_accept(&mut context).map(|end| end.map(drop));
        assert_eq!(end, Poll::Ready(Err(StreamError::RuntimeEnded)));
    });
}

#[test]
fn the_latest_waker_is_woken() {
    each_engine(|reactor| {
        let (left, right) = socket_pair();
        let stream = reactor.adopt_stream(left);
        let flags = [(); 4].map(|()| Arc::new(Flag(AtomicBool::new(false))));
        let wakers = flags.clone().map(Waker::from);
        let [first, last, first_arrival, last_arrival] = &wakers;
        for waker in [first, last] {
            assert!(stream.poll_receive(&mut Context::from_waker(waker)).is_pending());
        }
        for waker in [first_arrival, last_arrival] {
            assert!(stream.poll_arrival(&mut Context::from_waker(waker)).is_pending());
        }
        rustix::io::write(&right, b"x").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !flags[1].0.load(Ordering::Relaxed) && Instant::now() < deadline {
            reactor.turn(Wait::Until(deadline)).unwrap();
        }
        let woken = flags.map(|flag| flag.0.load(Ordering::Relaxed));
        assert_eq!(woken, [false, true, false, true]);
    });
}

/// What takes several sends, because each takes a number of pieces at most.
#[test]
fn all_that_fits_the_socket_is_still_sent_when_the_reactor_ends() {
    const PIECES: usize = 600;
    const PIECE: &[u8] = &[7; 16];
    each_engine(|reactor| {
        let (left, right) = socket_pair();
        let stream = reactor.adopt_stream(left);
        for _ in 0..PIECES {
            stream.append_shared(Prefix::NONE, Payload::Bytes(bytes::Bytes::from_static(PIECE)));
        }
        reactor.shutdown();
        let mut arrived = 0;
        let mut part = [0; 4096];
        while let Ok(count) = rustix::io::read(&right, &mut part)
            && count > 0
        {
            arrived += count;
        }
        assert_eq!(arrived, PIECES * PIECE.len());
    });
}
