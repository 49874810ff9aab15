//! What ends by the clock, which may jump.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ringpost::{
    Closed, Connection, ConnectionOptions, JoinHandle, RecvError, SendError, sleep, sleep_until,
    spawn, timeout,
};
use ringpost_frame::HELLO_BYTES;
use ringpost_testkit::peer;

use crate::flow::{Flow, SMALL};
use crate::raw::Raw;
use crate::rig::Rig;
use crate::run::LINGER;

/// Greetings and waits take at most so long, milliseconds.
const LIMIT_MS_MAX: usize = 200;
/// What a deadline may be late: the simulated clock moves by itself, too.
const LATE_MAX: Duration = Duration::from_secs(5);
/// Longest jump of the clock, hours.
const HOURS_MAX: usize = 100;
/// Messages that a peer which does not read is sent.
const BODY: [u8; 1000] = [6; 1000];
/// A send that takes longer has no room.
const FULL_AFTER: Duration = Duration::from_millis(50);
const HOUR: Duration = Duration::from_secs(3600);

/// Peers that send a byte now and then, or read nothing; timers at one instant, in the past and far away;
/// and a clock that jumps: nothing ends before its time, and everything soon after.
pub(crate) async fn deadlines(rig: Rig) {
    let mut tasks = Vec::new();
    for _ in 0..=rig.below(5) {
        match rig.below(4) {
            0 => tasks.push(spawn(greeting(rig.clone()))),
            1 => {
                let (connection, peer) = greeted(&rig).await;
                tasks.push(spawn(header(rig.clone(), connection, peer)));
            }
            2 => {
                let (connection, peer) = greeted(&rig).await;
                tasks.push(spawn(linger(rig.clone(), connection, peer)));
            }
            _ => timers(&rig, &mut tasks),
        }
        rig.dawdle().await;
    }
    for _ in 0..rig.below(3) {
        let rest = rig.below(LIMIT_MS_MAX * 2000);
        rig.rest(rest as u64).await;
        rig.jump(HOUR * u32::try_from(rig.below(HOURS_MAX)).expect("few"));
    }
    for task in tasks {
        task.await.expect("in time");
    }
}

/// Checks when something ended that should take `time`.
#[derive(Debug)]
struct Watch {
    rig: Rig,
    start: Instant,
    jumped: Duration,
    time: Duration,
}

impl Watch {
    fn new(rig: &Rig, time: Duration) -> Self {
        rig.waits(time);
        Self { rig: rig.clone(), start: rig.now(), jumped: rig.jumped(), time }
    }

    #[track_caller]
    fn check(self) {
        let took = self.rig.now() - self.start;
        assert!(took >= self.time, "after {took:?}, too early for {:?}", self.time);
        let jumped = self.rig.jumped() - self.jumped;
        assert!(took < self.time + jumped + LATE_MAX, "{took:?} in place of {:?}", self.time);
    }
}

fn some_time(rig: &Rig) -> Duration {
    Duration::from_millis(1 + rig.below(LIMIT_MS_MAX) as u64)
}

/// A connection whose greetings are over, and its peer.
async fn greeted(rig: &Rig) -> (Connection, Raw) {
    let (ours, theirs) = rig.sockets();
    // Jumps may come meanwhile.
    let options = rig.options().handshake_ms_max(DAY_MS);
    let mut connection = Connection::from_socket(ours.into(), options);
    let mut peer = Raw::new(rig, theirs);
    // It may take a reader to have room.
    let greets = spawn(async move {
        assert!(peer.send(&peer::greeting()).await, "nobody is there");
        peer
    });
    connection.ready().await.expect("a greeting");
    (connection, greets.await.expect("it was sent"))
}

/// A greeting that comes byte by byte and is not whole in time.
async fn greeting(rig: Rig) {
    let (ours, theirs) = rig.sockets();
    let time = some_time(&rig);
    let milliseconds = u64::try_from(time.as_millis()).expect("few");
    let watch = Watch::new(&rig, time);
    let options = ConnectionOptions::new().handshake_ms_max(milliseconds);
    let mut connection = Connection::from_socket(ours.into(), options);
    let sent = rig.below(HELLO_BYTES);
    // Both may have filled the other's socket by then.
    rig.waits(LINGER);
    let peer = spawn({
        let rig = rig.clone();
        async move {
            let mut peer = Raw::new(&rig, theirs);
            let (mut given_up, jumped) = (false, rig.jumped());
            for byte in &peer::greeting()[..sent] {
                if !peer.send(&[*byte]).await {
                    given_up = true;
                    break;
                }
                rig.rest([1000, 10, 10_000][rig.below(3)]).await;
            }
            let told = peer.read_to_end().await;
            // Who is given up has read nothing for the whole linger time, which a jump may end at once.
            given_up |= rig.jumped() > jumped;
            let whole = told.len() == HELLO_BYTES;
            assert!(whole || given_up && told.len() < HELLO_BYTES, "a greeting of {}", told.len());
        }
    });
    let end = Closed::HandshakeTimeout { milliseconds };
    match rig.below(3) {
        0 => assert_eq!(connection.ready().await, Err(end.clone())),
        1 => assert_eq!(connection.send(&[1; 5000]).await, Err(SendError::Closed(end.clone()))),
        _ => {}
    }
    let received = connection.recv().await.map(|message| assert!(message.is_none()));
    watch.check();
    assert_eq!(received, Err(RecvError::Closed(end.clone())));
    assert_eq!(connection.try_send(&[1; 10]), Err(SendError::Closed(end)));
    drop(connection);
    peer.await.expect("a peer that is let go");
}

/// A message that comes byte by byte: who waits for it gives up in time, and gets it later.
async fn header(rig: Rig, mut connection: Connection, mut peer: Raw) {
    let flow = Flow::new(&rig, SMALL);
    flow.accept_one();
    let message = peer::message(&flow.payload(0));
    let cut = 1 + rig.below(message.len() - 1);
    let ends = rig.below(2) == 0;
    let late = Rc::new(Cell::new(false));
    // It may take a reader to have room.
    let writer = spawn({
        let (rig, late) = (rig.clone(), Rc::clone(&late));
        async move {
            assert!(peer.send(&message[..cut]).await, "nobody is there");
            while !late.get() {
                rig.rest(1000).await;
            }
            if ends {
                peer.shut_down_write();
            } else {
                assert!(peer.send(&message[cut..]).await, "nobody is there");
            }
            peer
        }
    });
    let time = some_time(&rig);
    for _ in 0..=rig.below(3) {
        let watch = Watch::new(&rig, time);
        assert!(timeout(time, connection.recv()).await.is_err(), "a message of nobody");
        watch.check();
    }
    late.set(true);
    let found = connection.recv().await;
    if ends {
        let end = found.map(|message| assert!(message.is_none()));
        assert_eq!(end, Err(RecvError::Truncated));
    } else {
        flow.check(0, &found.expect("a message").expect("no end"));
    }
    drop(writer.await.expect("it was sent"));
}

/// What was accepted for a peer that does not read waits for it, but not for ever.
async fn linger(rig: Rig, mut connection: Connection, mut peer: Raw) {
    let mut accepted = 0;
    loop {
        rig.waits(FULL_AFTER);
        match timeout(FULL_AFTER, connection.send(&BODY)).await {
            Ok(sent) => sent.expect("room"),
            Err(_) => break,
        }
        accepted += 1;
    }
    let jumped = rig.jumped();
    drop(connection);
    let whole = HELLO_BYTES + accepted * (8 + BODY.len());
    if rig.below(2) == 0 {
        let found = peer.read_to_end().await;
        check_stream(&found);
        let late = rig.jumped() > jumped;
        assert!(late || found.len() == whole, "{} of {whole} bytes arrived", found.len());
        return;
    }
    let microseconds = u64::try_from((LINGER + LATE_MAX).as_micros()).expect("a minute");
    rig.rest(microseconds).await;
    // It must not be kept for longer: what arrives now has left before, and is at its end.
    let start = rig.now();
    let found = peer.read_to_end().await;
    check_stream(&found);
    assert!(found.len() <= whole, "bytes of nobody");
    let took = rig.now() - start - (rig.jumped() - jumped).min(rig.now() - start);
    assert!(took < LATE_MAX, "it lingered for {took:?} more");
}

/// A greeting and messages, the last one perhaps in part.
#[track_caller]
fn check_stream(found: &[u8]) {
    let frames = found.get(HELLO_BYTES..).unwrap_or_default();
    for frame in frames.chunks(8 + BODY.len()) {
        assert!(peer::message(&BODY).starts_with(frame), "bytes of nobody");
    }
}

/// Timers at the same instant, in the past and far away.
fn timers(rig: &Rig, tasks: &mut Vec<JoinHandle<()>>) {
    let time = some_time(rig);
    for _ in 0..=rig.below(4) {
        let watch = Watch::new(rig, time);
        let at = watch.start + time;
        tasks.push(spawn(async move {
            sleep_until(at).await;
            watch.check();
            // It has passed.
            sleep_until(at).await;
        }));
    }
    let watch = Watch::new(rig, time);
    let far = [Duration::MAX, HOUR * 24 * 365_000][rig.below(2)];
    tasks.push(spawn(async move {
        timeout(time, sleep(far)).await.expect_err("it is far away");
        watch.check();
    }));
}

/// The longest that a greeting may take, milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
