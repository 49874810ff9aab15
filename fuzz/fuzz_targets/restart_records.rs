//! A restart has the outcome that its protocol says, whatever the other process sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_sim::fuzz::restart_records(data));
