//! What is measured: the scenarios, and the numbers that define one run of them.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A shape of traffic.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scenario {
    /// One connection, one request in flight, 64 bytes each way.
    Pingpong,
    /// 64 connections, one request in flight on each, 64 bytes each way.
    Fanin,
    /// 64 connections, 16 requests in flight on each, 64 bytes each way.
    Pipeline,
    /// One connection, one way, 64-byte messages.
    Stream,
    /// One connection, one way, 64 KiB messages.
    Bulk,
    /// One datagram socket connected to another, one way, 64-byte messages, one in each packet.
    Dgram,
    /// One connection of packets, one way, 64-byte messages, one in each packet.
    Seqpacket,
    /// `fanin` at several numbers of connections, for the plot over connections.
    Sweep,
}

/// What a scenario's messages travel over (unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketKind {
    /// SOCK_STREAM: frames lie one behind the other.
    Stream,
    /// SOCK_DGRAM: a frame is a packet. Nothing tells the receiver that the sender has ended, so a
    /// message without a payload does.
    Datagram,
    /// SOCK_SEQPACKET: a frame is a packet.
    Seqpacket,
}

impl Scenario {
    pub(crate) const ALL: [Self; 8] = [
        Self::Pingpong,
        Self::Fanin,
        Self::Pipeline,
        Self::Stream,
        Self::Bulk,
        Self::Dgram,
        Self::Seqpacket,
        Self::Sweep,
    ];

    /// Those that need no packets.
    pub(crate) const STREAMS: [Self; 6] =
        [Self::Pingpong, Self::Fanin, Self::Pipeline, Self::Stream, Self::Bulk, Self::Sweep];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pingpong => "pingpong",
            Self::Fanin => "fanin",
            Self::Pipeline => "pipeline",
            Self::Stream => "stream",
            Self::Bulk => "bulk",
            Self::Dgram => "dgram",
            Self::Seqpacket => "seqpacket",
            Self::Sweep => "sweep",
        }
    }

    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Pingpong => "1 connection, 1 request in flight, 64 B each way",
            Self::Fanin => "64 connections, 1 request in flight on each, 64 B each way",
            Self::Pipeline => "64 connections, 16 requests in flight on each, 64 B each way",
            Self::Stream => "1 connection, one way, 64 B messages",
            Self::Bulk => "1 connection, one way, 64 KiB messages",
            Self::Dgram => "1 pair of datagram sockets, one way, 64 B messages, 1 in a packet",
            Self::Seqpacket => "1 SOCK_SEQPACKET connection, one way, 64 B messages, 1 in a packet",
            Self::Sweep => "1 request in flight, 64 B each way, by number of connections",
        }
    }

    pub(crate) fn socket_kind(self) -> SocketKind {
        match self {
            Self::Dgram => SocketKind::Datagram,
            Self::Seqpacket => SocketKind::Seqpacket,
            _ => SocketKind::Stream,
        }
    }

    /// The runs that this scenario consists of; `quick` asks for fewer.
    pub(crate) fn workloads(self, quick: bool) -> Vec<Workload> {
        let exchange = |connections, depth| Workload {
            scenario: self,
            connections,
            depth: Some(depth),
            bytes: SMALL_BYTES,
        };
        let one_way = |bytes| Workload { scenario: self, connections: 1, depth: None, bytes };
        match self {
            Self::Pingpong => vec![exchange(1, 1)],
            Self::Fanin => vec![exchange(64, 1)],
            Self::Pipeline => vec![exchange(64, 16)],
            Self::Stream | Self::Dgram | Self::Seqpacket => vec![one_way(SMALL_BYTES)],
            Self::Bulk => vec![one_way(BULK_BYTES)],
            Self::Sweep if quick => [1, 16, 256].map(|count| exchange(count, 1)).to_vec(),
            Self::Sweep => [1, 4, 16, 64, 256].map(|count| exchange(count, 1)).to_vec(),
        }
    }
}

/// One run: a scenario with its numbers filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Workload {
    pub(crate) scenario: Scenario,
    pub(crate) connections: usize,
    /// Requests in flight on each connection; none if the traffic goes one way.
    pub(crate) depth: Option<usize>,
    /// Payload of one message, without its framing.
    pub(crate) bytes: usize,
}

impl Workload {
    pub(crate) fn socket_kind(&self) -> SocketKind {
        self.scenario.socket_kind()
    }

    pub(crate) fn is_one_way(&self) -> bool {
        self.depth.is_none()
    }

    /// Every how many replies a round trip is recorded: where replies come in batches, recording
    /// each of them would cost the client more than receiving it does.
    pub(crate) fn recorded_every(&self) -> u32 {
        if self.depth.is_some_and(|depth| depth > 1) { 8 } else { 1 }
    }
}

const SMALL_BYTES: usize = 64;
const BULK_BYTES: usize = 64 * 1024;
