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
