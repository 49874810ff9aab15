//! Tests that need the oracles and the files of the repository.

mod frame_corpus;
