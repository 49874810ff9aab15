//! Scenarios end well whatever the simulated kernel does.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_sim::fuzz::reactor(data));
