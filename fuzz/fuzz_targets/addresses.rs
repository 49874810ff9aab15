//! Addresses, names of sockets and variables of a service manager mean what their documentation says.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_sim::fuzz::addresses(data));
