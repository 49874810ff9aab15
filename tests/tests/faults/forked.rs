//! fork(2) with a live runtime: in the child every operation is a typed error and every end is harmless; the
//! parent goes on as if nothing had been.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use ringpost::{
    AcceptError, Closed, ConnectErrorKind, Connection, ConnectionOptions, Datagram, EngineChoice,
    LengthPrefix, Listener, Message, RecvError, Runtime, SendError, SubmitError, spawn, timeout,
};
use ringpost_testkit::pattern;
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::rig::{
    Bystander, adopt, ask, expect_message, packet_sockets, pair, place, run, runtime, sockets,
};

on_both_engines_alone!(
    every_operation_ends,
    what_was_accepted_is_the_parents,
    the_runtime_had_ended,
    everything_is_dropped,
    the_child_unwinds,
    the_child_exits,
    a_runtime_of_its_own,
    payloads_of_what_was_dropped,
    nothing_is_sent_at_once
);

/// What a runtime has under way when it forks.
struct Parent {
    listener: Listener,
    client: Connection,
    /// Received before the fork.
    message: Message,
    datagram: Datagram,
    bystander: Bystander,
}

impl Parent {
    async fn new(path: &std::path::Path) -> Self {
        let listener = Listener::bind(path).expect("bind");
        let (mut client, server) = pair(ConnectionOptions::new());
        spawn(serve(server));
        let fill = |bytes: &mut [u8]| pattern::fill(0, bytes);
        client.send_with(3000, fill).await.expect("open");
        let message = client.recv().await.expect("open").expect("no end");
        let datagram = Datagram::builder().autobind().expect("a socket");
        Self { listener, client, message, datagram, bystander: Bystander::new() }
    }

    /// Checks that the parent goes on.
    async fn check(mut self, path: &std::path::Path) {
        self.bystander.check().await;
        for sequence in 0..100 {
            ask(&mut self.client, sequence, 2000).await;
        }
        pattern::check(0, 3000, &self.message);
        let peer = Datagram::builder().autobind().expect("a socket");
        peer.connect_to(self.datagram.local_address().expect("bound")).expect("it is there");
        peer.send(b"still there").await.expect("it is");
        assert_eq!(*self.datagram.recv().await.expect("a packet"), *b"still there");
        let (accepted, connected) = both(self.listener.accept(), Connection::connect(path)).await;
        let (accepted, mut connected) = (accepted.expect("accept"), connected.expect("connect"));
        spawn(serve(accepted));
        ask(&mut connected, 0, 100).await;
        connected.shutdown().await.expect("open");
        self.client.shutdown().await.expect("open");
        assert!(self.client.recv().await.expect("a proper end").is_none());
    }
}

/// An echo that takes any end.
async fn serve(mut connection: Connection) {
    while let Ok(Some(message)) = connection.recv().await {
        let _ = connection.send_message(message).await;
    }
    let _ = connection.shutdown().await;
}

async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    futures_util::future::join(a, b).await
}

/// Runs `body` in a forked child, with what it owns; the child ends without running anything else. Fails if
/// the child panics, is killed, or takes too long.
fn forked(body: impl FnOnce()) {
    // SAFETY: the child runs on this thread alone. Its memory is a copy; of what other threads may have
    // locked it uses the allocator only, which the C library prepares for that (fork(2)).
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // SAFETY: no memory is involved. A child that hangs ends with SIGALRM.
        unsafe { libc::alarm(15) };
        let outcome = catch_unwind(AssertUnwindSafe(body));
        // SAFETY: ends the process at once; nothing of the test program runs on.
        unsafe { libc::_exit(if outcome.is_ok() { 0 } else { 3 }) };
    }
    let mut status = 0;
    // SAFETY: `status` lives until the call returns; the child is ours.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    assert_eq!(status, 0, "the child's wait status (signal in the low 7 bits): {status:#x}");
}

fn every_operation_ends(engine: EngineChoice) {
    let (_directory, path) = place();
    let runtime = runtime(engine);
    let mut parent = run(&runtime, Parent::new(&path));
    forked(|| {
        let ended = Closed::RuntimeEnded;
        runtime.block_on(async {
            let soon = Duration::from_secs(5);
            let end = timeout(soon, parent.client.recv()).await.expect("recv ends");
            assert_eq!(end.map(|_| ()), Err(RecvError::Closed(ended.clone())));
            let end = async { parent.client.send(b"x").await.and(parent.client.flush().await) };
            let end = timeout(soon, end).await.expect("send ends");
            assert_eq!(end, Err(SendError::Closed(ended.clone())));
            assert!(timeout(soon, parent.client.shutdown()).await.expect("ends").is_err());
            let end = timeout(soon, parent.listener.accept()).await.expect("accept ends");
            assert_eq!(end.map(|_| ()), Err(AcceptError::RuntimeEnded));
            let end = timeout(soon, parent.datagram.recv()).await.expect("recv ends");
            assert!(end.is_err());
            let packets = path.with_extension("packets");
            let _receiver = std::os::unix::net::UnixDatagram::bind(&packets).expect("bind");
            let refused = parent.datagram.connect_to(&packets).expect_err("it is the parent's");
            assert_eq!(refused.kind(), ConnectErrorKind::Other(libc::ECANCELED));
            // What was received before can be read.
            pattern::check(0, 3000, &parent.message);
            let (ours, _theirs) = sockets();
            let mut fresh = adopt(ours, ConnectionOptions::new().bytes());
            let end = timeout(soon, fresh.recv()).await.expect("recv ends");
            assert_eq!(end.map(|_| ()), Err(RecvError::Closed(ended.clone())));
            let other = path.with_extension("other");
            let _server = std::os::unix::net::UnixListener::bind(&other).expect("bind");
            assert!(timeout(soon, Connection::connect(&other)).await.expect("ends").is_err());
        });
        // Told once: here, if nobody had to wait above.
        let _ = runtime.turn(Some(Duration::ZERO));
        assert!(runtime.turn(Some(Duration::ZERO)).is_ok(), "told once");
        let handle = runtime.handle();
        assert_eq!(handle.submit(|| {}), Err(SubmitError::RuntimeEnded));
        assert!(handle.spawn(|| async {}).is_err());
        handle.wake();
        assert!(!runtime.engine().to_string().is_empty());
        let _ = runtime.stats();
    });
    run(&runtime, parent.check(&path));
    assert!(!path.exists(), "the parent removes its path");
}

/// A connection that lies with the listener has one owner.
fn what_was_accepted_is_the_parents(engine: EngineChoice) {
    let (_directory, path) = place();
    let runtime = runtime(engine);
    let mut listener = run(&runtime, async { Listener::bind(&path).expect("bind") });
    let mut client = std::os::unix::net::UnixStream::connect(&path).expect("it listens");
    for _ in 0..3 {
        runtime.turn(Some(Duration::from_millis(20))).expect("no failure");
    }
    forked(|| {
        let end = runtime.block_on(async { listener.accept_socket().await.map(|_| ()) });
        assert_eq!(end, Err(AcceptError::RuntimeEnded));
    });
    let accepted = run(&runtime, async { listener.accept_socket().await.expect("it lies there") });
    std::io::Write::write_all(&mut client, b"x").expect("it is open");
    assert_eq!(rustix::io::read(&accepted, &mut [0; 2]), Ok(1));
}

/// The rings of a runtime stay mapped as long as somebody has a connection of it. In a child there are none, and where
/// they were there may be something else.
fn the_runtime_had_ended(engine: EngineChoice) {
    let runtime = runtime(engine);
    let rings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
        let of_rings = maps.lines().filter(|line| line.contains("[io_uring]"));
        of_rings
            .map(|line| {
                let (range, _) = line.split_once(' ').expect("a range");
                let (start, end) = range.split_once('-').expect("a range");
                let number = |text| usize::from_str_radix(text, 16).expect("an address");
                (number(start), number(end) - number(start))
            })
            .collect::<Vec<_>>()
    };
    let kept = run(&runtime, async { pair(ConnectionOptions::new()) });
    drop(runtime);
    let mapped = rings();
    assert_eq!(mapped.is_empty(), engine == EngineChoice::Epoll, "{mapped:?}");
    let mut kept = Some(kept);
    forked(|| {
        for &(start, bytes) in &mapped {
            let (protection, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            );
            let address = std::ptr::with_exposed_provenance_mut(start);
            // SAFETY: nothing is mapped there, or the call fails.
            let found = unsafe { libc::mmap(address, bytes, protection, flags, -1, 0) };
            assert_eq!(found, address, "the child has no ring");
            // SAFETY: mapped above, for this alone.
            unsafe { found.cast::<u8>().write_volatile(7) };
        }
        drop(kept.take());
        for &(start, _) in &mapped {
            // SAFETY: mapped above; the end of a connection must not have unmapped it.
            let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(start).read_volatile() };
            assert_eq!(byte, 7);
        }
    });
}

/// Also what would not wait, before the child's first turn.
fn nothing_is_sent_at_once(engine: EngineChoice) {
    let runtime = runtime(engine);
    let options = ConnectionOptions::new().descriptors_max(4);
    let (mut client, mut server) = run(&runtime, async {
        let (mut client, mut server) = pair(options);
        client.send(b"before").await.expect("open");
        client.flush().await.expect("open");
        assert_eq!(*server.recv().await.expect("open").expect("no end"), *b"before");
        (client, server)
    });
    let (mut packets, _peer, datagram) = run(&runtime, async {
        let options = ConnectionOptions::new().seqpacket();
        let (ours, theirs) = packet_sockets();
        let (mut ours, mut theirs) = (adopt(ours, options), adopt(theirs, options));
        ours.ready().await.expect("a greeting");
        theirs.ready().await.expect("a greeting");
        (ours, theirs, Datagram::builder().autobind().expect("a socket"))
    });
    let file = std::fs::File::open("/dev/null").expect("open");
    forked(|| {
        let ended = SendError::Closed(Closed::RuntimeEnded);
        assert_eq!(client.try_send(b"x"), Err(ended.clone()));
        assert_eq!(packets.try_send(b"x"), Err(ended.clone()));
        let own = datagram.local_address().expect("bound");
        assert!(datagram.try_send_to(own, b"x").is_err());
        let sent = client.try_send_with_descriptors(b"x", &[&file]);
        assert_eq!(sent, Err(ended.clone()));
        let sent = runtime.block_on(client.send_with_descriptors(b"x", &[&file]));
        assert_eq!(sent, Err(ended));
    });
    run(&runtime, async {
        client.send_with_descriptors(b"after", &[&file]).await.expect("open");
        let mut message = server.recv().await.expect("open").expect("no end");
        assert_eq!(*message, *b"after");
        assert_eq!(message.take_descriptors().len(), 1);
    });
}

/// The child drops all it has inherited: sockets stay open, the path stays, the parent's memory is its own.
fn everything_is_dropped(engine: EngineChoice) {
    let (_directory, path) = place();
    let runtime = runtime(engine);
    let parent = run(&runtime, Parent::new(&path));
    let mut both = Some((runtime, parent));
    forked(|| {
        let (runtime, parent) = both.take().expect("taken once");
        drop(parent);
        drop(runtime);
        // The child may map something where the rings were; that is still there.
        let memory = vec![7_u8; 8 << 20];
        assert!(memory.iter().all(|byte| *byte == 7));
    });
    let (runtime, parent) = both.expect("the child took its own copy");
    assert!(path.exists(), "the child has removed nothing");
    run(&runtime, parent.check(&path));
}

/// As above, the runtime first, and from within it.
fn the_child_unwinds(engine: EngineChoice) {
    let (_directory, path) = place();
    let runtime = runtime(engine);
    let mut parent = run(&runtime, async { Some(Parent::new(&path).await) });
    run(&runtime, async {
        forked(|| {
            let parent = parent.take();
            let unwound = catch_unwind(AssertUnwindSafe(|| {
                let _dropped = parent;
                std::panic::resume_unwind(Box::new("unwinding"));
            }));
            assert!(unwound.is_err());
        });
    });
    run(&runtime, parent.expect("the child took its own copy").check(&path));
}

/// A child that ends at once, as one that executes another program would.
fn the_child_exits(engine: EngineChoice) {
    let (_directory, path) = place();
    let runtime = runtime(engine);
    let parent = run(&runtime, Parent::new(&path));
    for _ in 0..20 {
        forked(|| {});
    }
    assert!(path.exists(), "the child has removed nothing");
    run(&runtime, parent.check(&path));
}

/// A child may build a runtime of its own, and talk with its parent.
fn a_runtime_of_its_own(engine: EngineChoice) {
    let (_directory, path) = place();
    let parents = runtime(engine);
    let (ours, theirs) = sockets();
    let parent = run(&parents, Parent::new(&path));
    let mut theirs = Some(theirs);
    forked(|| {
        let theirs = theirs.take().expect("taken once");
        let own = Runtime::builder().engine(engine).build().expect("a runtime");
        own.block_on(async {
            let mut connection =
                adopt(theirs, ConnectionOptions::new().length_prefixed(LengthPrefix::default()));
            let sent = connection.send_with(5000, |bytes| pattern::fill(1, bytes)).await;
            sent.and(connection.flush().await).expect("open");
        });
    });
    drop(theirs);
    run(&parents, async {
        let mut connection =
            adopt(ours, ConnectionOptions::new().length_prefixed(LengthPrefix::default()));
        expect_message(&mut connection, 1, 5000).await;
        assert!(connection.recv().await.expect("the end").is_none());
    });
    run(&parents, parent.check(&path));
}

thread_local!(static GONE: Cell<bool> = const { Cell::new(false) });

/// A payload whose destructor uses the runtime.
struct Owner(Vec<u8>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = ringpost::stats();
        GONE.set(true);
    }
}

/// The child lets go of what a dropped connection has still to send, while nothing is borrowed; the parent sends it.
fn payloads_of_what_was_dropped(engine: EngineChoice) {
    const BYTES: usize = 4000;
    let runtime = runtime(engine);
    let mut reader = run(&runtime, async {
        let (mut client, mut reader) = pair(ConnectionOptions::new());
        // Nothing is in flight that would keep the connection.
        reader.shutdown().await.expect("open");
        assert!(client.recv().await.expect("a proper end").is_none());
        client.send_bytes(bytes::Bytes::from_owner(Owner(vec![7; BYTES]))).await.expect("open");
        reader
    });
    assert!(!GONE.get());
    forked(|| {
        for _ in 0..3 {
            let _ = runtime.turn(Some(Duration::ZERO));
        }
        assert!(GONE.get());
    });
    run(&runtime, async {
        let message = reader.recv().await.expect("no error").expect("all of it");
        assert_eq!(message.len(), BYTES);
    });
}
