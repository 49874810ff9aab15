//! What was encoded is what is decoded.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_testkit::frame_oracle::round_trip(data));
