//! Descriptors in control messages are found where they are, and nowhere else.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_sim::fuzz::control_messages(data));
