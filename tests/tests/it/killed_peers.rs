//! A peer that is killed at any byte: what was whole arrives, the rest is a typed end, nobody hangs.

use ringpost::{Closed, EngineChoice, Listener, RecvError};
use ringpost_frame::{FrameKind, HELLO_BYTES};
use ringpost_testkit::peer::{frame, greeting, message};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{Bystander, block_on, blocking, place};

use crate::roles;

on_both_engines!(killed_at_every_byte, killed_with_the_greeting_unread, killed_after_fin);

const FIRST: &[u8] = b"first";
const SECOND: &[u8] = b"the second one";

fn script() -> Vec<u8> {
    [greeting().to_vec(), message(FIRST), message(SECOND)].concat()
}

/// What came before the end, and the end.
type Outcome = (Vec<Vec<u8>>, Option<RecvError>);

/// A child opens a connection for every prefix of the script and is killed; tells what the server got.
fn outcomes(engine: EngineChoice, script: &[u8], greets: bool) -> Vec<Outcome> {
    let (_directory, path) = place();
    block_on(engine, async {
        let mut bystander = Bystander::new();
        let mut listener = Listener::bind(&path).expect("bind");
        let greets = if greets { "greets" } else { "silent" };
        let words = [path.to_str().expect("text"), &roles::to_hex(script), greets];
        let mut child = roles::start("writer", &words);
        let mut connections = Vec::new();
        for _ in 0..=script.len() {
            connections.push(listener.accept().await.expect("accept"));
        }
        let mut child = blocking(move || {
            assert_eq!(child.hear(), "written");
            child
        })
        .await;
        bystander.check().await;
        child.kill();
        let mut outcomes = Vec::new();
        for mut connection in connections {
            let mut messages = Vec::new();
            let end = loop {
                match connection.recv().await {
                    Ok(Some(message)) => messages.push(message.into_owned()),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            // The end is repeated, and sending says the same.
            assert_eq!(connection.recv().await.map(|_| ()).err(), end);
            outcomes.push((messages, end));
        }
        bystander.check().await;
        outcomes
    })
}

fn check(outcomes: &[Outcome], truncated: &[RecvError]) {
    let first = HELLO_BYTES + 8 + FIRST.len();
    let second = first + 8 + SECOND.len();
    assert_eq!(outcomes.len(), second + 1);
    for (len, (messages, end)) in outcomes.iter().enumerate() {
        let expected: &[&[u8]] = match len {
            _ if len < first => &[],
            _ if len < second => &[FIRST],
            _ => &[FIRST, SECOND],
        };
        assert_eq!(messages, expected, "killed after {len} bytes");
        let aborted = [RecvError::Closed(Closed::Aborted)];
        let between = len <= HELLO_BYTES || len == first || len == second;
        let allowed = if between { &aborted[..] } else { truncated };
        let end = end.as_ref().expect("no clean end");
        assert!(allowed.contains(end), "killed after {len} bytes: {end}");
    }
}

fn killed_at_every_byte(engine: EngineChoice) {
    check(&outcomes(engine, &script(), true), &[RecvError::Truncated]);
}

/// The kernel resets a connection whose dead end had unread bytes; what it had written still counts.
fn killed_with_the_greeting_unread(engine: EngineChoice) {
    let either = [RecvError::Truncated, RecvError::Closed(Closed::Aborted)];
    check(&outcomes(engine, &script(), false), &either);
}

/// After FIN the way the socket ends is of no concern.
fn killed_after_fin(engine: EngineChoice) {
    for greets in [true, false] {
        let script = [greeting().to_vec(), message(FIRST), frame(FrameKind::Fin, &[])].concat();
        let all = outcomes(engine, &script, greets);
        let (messages, end) = all.last().expect("the whole script");
        assert_eq!(messages, &[FIRST]);
        assert_eq!(*end, None, "a clean end");
    }
}
