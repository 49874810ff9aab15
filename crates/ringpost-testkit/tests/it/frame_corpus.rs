//! Every input that fuzzing has found worth keeping, replayed without a fuzzer.

use ringpost_testkit::corpus::replay;
use ringpost_testkit::frame_oracle;

#[test]
fn decoder() {
    replay("decoder", frame_oracle::decoder_all_splits);
}

#[test]
fn round_trip() {
    replay("round_trip", frame_oracle::round_trip);
}

#[test]
fn hello() {
    replay("hello", frame_oracle::hello);
}

#[test]
fn plain_profiles() {
    replay("plain_profiles", frame_oracle::plain_profiles);
}

#[test]
fn handshake() {
    replay("handshake", frame_oracle::handshake);
}

#[test]
fn packets() {
    replay("packets", frame_oracle::packets);
}
