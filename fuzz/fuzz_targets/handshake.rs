//! Of two sides that greet each other, both agree or both don't.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_testkit::frame_oracle::handshake(data));
