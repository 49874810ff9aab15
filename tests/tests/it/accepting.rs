//! A listener takes no more connections from the kernel than somebody asks for.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ringpost::{Address, BindOptions, EngineChoice, Listener, sleep};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{builder, place, run};

on_both_engines!(one_after_the_other, all_at_once);

/// What the runtime is told to keep, and the kernel.
const QUEUE: usize = 4;
const BACKLOG: u32 = 8;
/// What the kernel really keeps: one more than it is told (`unix_recvq_full`).
const KEPT: usize = BACKLOG as usize + 1;
/// More than both can hold together.
const CLIENTS: usize = 100;

/// Connects until nobody is let in any more; `pace` is the time between two.
async fn crowd(path: &Path, pace: Option<Duration>) -> Vec<OwnedFd> {
    let address = Address::from(path);
    let mut clients = Vec::new();
    let mut refusals = 0;
    while refusals < 20 {
        match ringpost_uds::connect(&address) {
            Ok(client) => clients.push(client),
            Err(error) => {
                assert!(error.is_backlog_full(), "{error}");
                refusals += 1;
                // Whatever is still accepted makes room.
                sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(clients.len() < CLIENTS, "nobody takes them, and all are accepted");
        if let Some(pace) = pace {
            sleep(pace).await;
        }
    }
    clients
}

/// Nobody takes what is accepted: `overrun` beyond the bound at most. Then all are served.
fn nobody_takes_them(engine: EngineChoice, pace: Option<Duration>, overrun: usize) {
    let (_directory, path) = place();
    let runtime = builder(engine).accept_queue_max(QUEUE).build().expect("a runtime");
    run(&runtime, async {
        let options = BindOptions::new().backlog(BACKLOG);
        let mut listener = Listener::builder().bind_options(options).bind(&path).expect("bind");
        let clients = crowd(&path, pace).await;
        let (least, most) = (QUEUE + KEPT, QUEUE + KEPT + overrun);
        assert!((least..=most).contains(&clients.len()), "{} of {least}-{most}", clients.len());
        // Each is somebody else, in the order in which they came, and what it wrote is there.
        for (number, client) in (0_u8..).zip(clients) {
            let mut client = UnixStream::from(client);
            client.write_all(&[number]).expect("room");
            let mut accepted = UnixStream::from(listener.accept_socket().await.expect("accepted"));
            let mut byte = [u8::MAX];
            accepted.read_exact(&mut byte).expect("written before");
            assert_eq!(byte, [number]);
        }
        // And it goes on accepting.
        let _late = ringpost_uds::connect(&Address::from(&path)).expect("room");
        listener.accept_socket().await.expect("accepted");
    });
}

fn one_after_the_other(engine: EngineChoice) {
    nobody_takes_them(engine, Some(Duration::from_millis(1)), 0);
}

/// What waits in the backlog when the bound is reached may come in before the kernel stops.
fn all_at_once(engine: EngineChoice) {
    nobody_takes_them(engine, None, KEPT);
}
