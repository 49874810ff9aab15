//! Wakers that are replaced drop what belongs to the reactor: nothing is borrowed then.

use std::cell::RefCell;
use std::io::{self, Read as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use super::{Reactor, Wait};
use crate::capabilities::EngineChoice;
use crate::config::Config;
use crate::listener::Listener;
use crate::memory::Prefix;
use crate::stream::Stream;

thread_local! {
    /// Here, as wakers can be sent elsewhere.
    static HELD: RefCell<Option<(Stream, Listener)>> = const { RefCell::new(None) };
}

struct Holder;

impl Wake for Holder {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(HELD.take());
    }
}

/// Polls something that keeps its waker, with the holder's and then with another one; nothing else has it then.
type Poll = fn(&Stream, &mut Context<'_>);

const POLLS: [(&str, Poll); 4] = [
    ("receive", |stream, context| assert!(stream.poll_receive(context).is_pending())),
    ("arrival", |stream, context| assert!(stream.poll_arrival(context).is_pending())),
    ("flushed", |stream, context| assert!(stream.poll_flushed(context).is_pending())),
    ("stopped", |stream, context| {
        // It may have stopped by the second time; the first waker is kept until then.
        let _ = stream.poll_stopped(context);
    }),
];

/// A stream that has more to send than its peer takes.
fn full(reactor: &Reactor) -> (Stream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let stream = reactor.adopt_stream(near.into());
    for _ in 0..4 {
        stream.append(Prefix::NONE, &vec![1; 200_000]);
    }
    reactor.turn(Wait::No).unwrap();
    (stream, far)
}

/// Holds a stream with something left to send, and a listener; what tells of their ends.
fn hold(reactor: &Reactor, name: &str) -> (Waker, UnixStream, SocketAddr) {
    let (stream, far) = full(reactor);
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = reactor.adopt_listener(listener.into());
    reactor.turn(Wait::No).unwrap();
    HELD.set(Some((stream, listener)));
    (Waker::from(Arc::new(Holder)), far, address)
}

/// Both end as if they had been dropped anywhere else.
fn end(reactor: &Reactor, mut far: UnixStream, address: &SocketAddr) {
    assert!(HELD.take().is_none(), "the waker is still there");
    assert_eq!(reactor.stats().connections_lingering, 1);
    let start = Instant::now();
    let mut waits = true;
    while waits {
        assert!(start.elapsed() < Duration::from_secs(10), "the stream lingers for ever");
        reactor.turn(Wait::Until(Instant::now() + Duration::from_millis(10))).unwrap();
        waits =
            reactor.stats().connections_lingering > 0 || UnixStream::connect_addr(address).is_ok();
    }
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    io::copy(&mut far, &mut io::sink()).expect("an end");
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
}

#[test]
#[cfg_attr(miri, ignore = "needs the engines of a kernel")]
fn what_a_replaced_waker_drops_ends() {
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        let config = Config { engine, linger_ms_max: 50, ..Config::default() };
        let reactor = Reactor::new(config).unwrap();
        let name = |what: &str| format!("ringpost-wakers-{}-{engine:?}-{what}", std::process::id());
        for (what, poll) in POLLS {
            let (stream, _far) = full(&reactor);
            let (waker, far, address) = hold(&reactor, &name(what));
            poll(&stream, &mut Context::from_waker(&waker));
            drop(waker);
            poll(&stream, &mut Context::from_waker(Waker::noop()));
            end(&reactor, far, &address);
            // This one lingers as well.
            drop(stream);
            while reactor.stats().connections_lingering > 0 {
                reactor.turn(Wait::Until(Instant::now() + Duration::from_millis(1))).unwrap();
            }
        }
        let (waker, far, address) = hold(&reactor, &name("sleep"));
        let mut sleep = reactor.sleep_until(Instant::now() + Duration::from_secs(3600));
        assert!(Pin::new(&mut sleep).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        assert!(Pin::new(&mut sleep).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        end(&reactor, far, &address);
    }
}
