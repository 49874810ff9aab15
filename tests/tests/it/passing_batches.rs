//! File descriptors of messages that a batch lends: they are those of the message lent last, or of none.

use std::io::Read;
use std::time::Duration;

use ringpost::EngineChoice;
use ringpost_testkit::patience::eventually;
use ringpost_testkit::peer::{RawPeer, message};
use ringpost_tests::on_both_engines;
use ringpost_tests::rig::{adopt, block_on, pair, sockets};

use crate::passing::{memory_file, number_in, options};
use crate::passing_hostile::{announcing, greeting, send};

on_both_engines!(a_batch_keeps_those_of_the_last_message);

/// `take_descriptors` gives what came with the message lent last, whatever lay where; what was not taken is
/// closed with the next receive, of any kind.
fn a_batch_keeps_those_of_the_last_message(engine: EngineChoice) {
    block_on(engine, async {
        for way in 0..12 {
            let (ours, theirs) = sockets();
            let mut right = adopt(ours, options());
            let mut peer = RawPeer::new(theirs);
            peer.send(&greeting().encode());
            right.ready().await.expect("they agree");
            let (mut reader, writer) = std::io::pipe().expect("a pipe");
            // The plain messages lie in the chunk of the other one, or in the next.
            let mut bytes = announcing(1, b"with one");
            let plain = [message(b"plain"), message(b"plain")].concat();
            if way % 2 == 0 {
                bytes.extend_from_slice(&plain);
            }
            assert!(send(&peer, &bytes, &[writer]));
            if way % 2 == 1 {
                peer.send(&plain);
            }
            let mut batch = right.recv_batch().await.expect("messages").expect("no end");
            let first = batch.next().expect("it has arrived");
            assert_eq!(
                (first.to_vec().as_slice(), first.descriptors().len()),
                (&b"with one"[..], 1)
            );
            match way / 2 {
                // Nothing behind it is lent.
                0 => {
                    assert_eq!(batch.take_descriptors().len(), 1);
                    assert_eq!(batch.take_descriptors().len(), 0);
                }
                1 | 2 => {
                    let mut plain = 0;
                    while plain < 2 {
                        if way / 2 == 1 {
                            while batch.next().is_some() {
                                plain += 1;
                                assert_eq!(batch.take_descriptors().len(), 0, "of an earlier one");
                            }
                        } else {
                            while let Some(count) = batch.next_run().map(Iterator::count) {
                                plain += count;
                                assert_eq!(batch.take_descriptors().len(), 0, "of an earlier one");
                            }
                        }
                        if plain < 2 {
                            batch = right.recv_batch().await.expect("messages").expect("no end");
                        }
                    }
                }
                3 => drop(right.recv().await.expect("a message")),
                4 => drop(right.recv_run().await.expect("messages")),
                _ => drop(right.recv_batch().await.expect("messages")),
            }
            // It reads the end once the other end is closed.
            rustix::io::ioctl_fionbio(&reader, true).expect("a pipe");
            // A child of another test holds a copy until it has become another program.
            let closed = || reader.read(&mut [0]).ok() == Some(0);
            eventually(
                &format!("the other end is closed, way {way}"),
                Duration::from_secs(10),
                closed,
            );
        }
        // What is no message changes nothing: the last one is still the last.
        let (mut left, mut right) = pair(options());
        left.send_with_descriptors(b"the last", &[memory_file(3)]).await.expect("accepted");
        let mut batch = right.recv_batch().await.expect("messages").expect("no end");
        while batch.next().is_some() {}
        assert_eq!(number_in(&batch.take_descriptors()[0]), 3);
    });
}
