//! Greetings survive encoding, and both sides agree on the same thing.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_testkit::frame_oracle::hello(data));
