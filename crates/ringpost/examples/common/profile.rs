//! The flag that says how messages are told apart.

use clap::{Args, ValueEnum};
use ringpost::{ByteOrder, ConnectionOptions, LengthPrefix, PrefixWidth};

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ProfileFlag {
    /// ringpost's own framing, a 32-bit little-endian length in front of each message, or bare bytes
    #[arg(long, value_enum, default_value_t = Framing::Native)]
    profile: Framing,
}

impl ProfileFlag {
    pub(crate) fn connection(&self) -> ConnectionOptions {
        let options = ConnectionOptions::new();
        match self.profile {
            Framing::Native => options,
            Framing::Le32 => options.length_prefixed(LengthPrefix {
                width: PrefixWidth::U32,
                byte_order: ByteOrder::Little,
            }),
            Framing::Bytes => options.bytes(),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Framing {
    Native,
    Le32,
    Bytes,
}
