//! A connection does what a model of it does, whatever its peer sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_sim::fuzz::connection(data));
