//! Every input that fuzzing has found worth keeping, replayed without a fuzzer.

use std::fs;
use std::path::PathBuf;

use ringpost_testkit::frame_oracle;

#[test]
fn decoder() {
    replay("decoder", frame_oracle::decoder_all_splits);
}

#[test]
fn round_trip() {
    replay("round_trip", frame_oracle::round_trip);
}

#[test]
fn hello() {
    replay("hello", frame_oracle::hello);
}

#[test]
fn plain_profiles() {
    replay("plain_profiles", frame_oracle::plain_profiles);
}

#[test]
fn handshake() {
    replay("handshake", frame_oracle::handshake);
}

#[test]
fn packets() {
    replay("packets", frame_oracle::packets);
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
