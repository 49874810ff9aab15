//! Length-prefixed streams mean what a naive decoder says they mean.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_testkit::frame_oracle::plain_profiles(data));
