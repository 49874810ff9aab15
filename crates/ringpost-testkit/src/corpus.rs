//! Inputs that fuzzing has found worth keeping, replayed without a fuzzer.

use std::fs;
use std::path::PathBuf;

/// Fewest inputs that the corpus of a target has: an empty one must not pass.
const FILES_MIN: usize = 10;

/// Gives the oracle nothing, and then every stored input of the target.
///
/// # Panics
///
/// If the oracle does, or if there are hardly any inputs.
pub fn replay(target: &str, oracle: fn(&[u8])) {
    oracle(&[]);
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.expect("a directory can be listed").path())
        .collect();
    files.sort();
    assert!(files.len() >= FILES_MIN, "{} has only {} files", corpus.display(), files.len());
    for file in files {
        let data = fs::read(&file).expect("a file can be read");
        // Shown only if the oracle panics.
        println!("{}", file.display());
        oracle(&data);
    }
}
