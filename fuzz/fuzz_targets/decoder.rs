//! How a stream is cut does not change what is decoded.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_testkit::frame_oracle::decoder_all_splits(data));
