//! Every input that fuzzing has found worth keeping, replayed without a fuzzer.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ringpost_sim::fuzz;
use ringpost_testkit::{child, patience};

/// Longest replay of one target.
const LIMIT: Duration =
    Duration::from_secs(if cfg!(any(ringpost_asan, ringpost_tsan)) { 140 } else { 28 });

/// Replays in a process of its own, because descriptors are counted.
macro_rules! replay {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            let test = concat!(module_path!(), "::", stringify!($target));
            child::isolated(test, &[], || {
                patience::bounded(stringify!($target), LIMIT, || {
                    replay(stringify!($target), fuzz::$target);
                });
            });
        })*
    };
}

mod corpus {
    use super::*;

    replay!(addresses connection control_messages reactor restart_records);
}

fn replay(target: &str, oracle: fn(&[u8])) {
    oracle(&[]);
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.expect("a directory can be listed").path())
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{} has only {} files", corpus.display(), files.len());
    for file in files {
        let data = fs::read(&file).expect("a file can be read");
        // Shown only if the oracle panics.
        println!("{}", file.display());
        oracle(&data);
    }
}
