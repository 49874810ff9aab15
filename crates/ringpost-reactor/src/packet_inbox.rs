//! Packets that have been received and wait for their reader, and how the memory for the next ones is
//! divided.
//!
//! The packets of one receive share one lease: walking through them costs no reference count each.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::chunk::Chunk;
use crate::packet_io::{Credentials, OVERFLOW_BYTES, RECEIVE_PACKETS_MAX, Slots, SocketName};
use crate::pool::Lease;

/// Where the bytes of a packet are.
#[derive(Debug)]
pub(crate) enum Place {
    /// In the front group, from `start` on.
    Lent { start: u32, len: u32 },
    /// Apart.
    Apart(Chunk),
    /// Nowhere: it was longer than allowed.
    Truncated { len: usize },
}

#[derive(Debug)]
struct Entry {
    place: Place,
    sender: SocketName,
    credentials: Option<Credentials>,
}

/// Packets that have been received, in order.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Leased ranges, and how many packets of each are left.
    groups: VecDeque<(Chunk, usize)>,
    packets: VecDeque<Entry>,
    /// Receive memory that the packets hold, bytes.
    bytes: usize,
}

/// A received packet that may be kept.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReceivedPacket {
    /// Its bytes.
    pub content: Result<Chunk, Truncated>,
    /// The name that its sender's socket is bound to.
    pub sender: SocketName,
    /// Who sent it, if that was asked for.
    pub credentials: Option<Credentials>,
}

/// A received packet, borrowed from [`Arrived`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PacketView<'arrived> {
    /// Its bytes, and what they lie in.
    pub content: Result<(&'arrived Chunk, &'arrived [u8]), Truncated>,
    /// The name that its sender's socket is bound to.
    pub sender: &'arrived SocketName,
    /// Who sent it, if that was asked for.
    pub credentials: Option<Credentials>,
}

/// A packet was longer than allowed; its bytes are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Truncated {
    /// Its length, bytes.
    pub len: usize,
}

impl Arrived {
    /// True if there is no packet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Number of packets.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Receive memory that the packets hold, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The next packet, without taking it.
    #[inline]
    pub fn front(&self) -> Option<PacketView<'_>> {
        let Entry { place, sender, credentials } = self.packets.front()?;
        let content = match place {
            Place::Lent { start, len } => {
                let (chunk, _) = self.groups.front()?;
                let start = *start as usize;
                Ok((chunk, chunk.as_slice().get(start..start + *len as usize)?))
            }
            Place::Apart(chunk) => Ok((chunk, chunk.as_slice())),
            Place::Truncated { len } => Err(Truncated { len: *len }),
        };
        Some(PacketView { content, sender, credentials: *credentials })
    }

    /// Drops the next packet.
    #[inline]
    pub fn advance(&mut self) {
        if let Some(Entry { place: Place::Lent { .. }, .. }) = self.packets.pop_front() {
            self.leave_group();
        }
        if self.packets.is_empty() {
            self.bytes = 0;
        }
    }

    /// Takes the next packet.
    pub fn pop(&mut self) -> Option<ReceivedPacket> {
        let Entry { place, sender, credentials } = self.packets.pop_front()?;
        let content = match place {
            Place::Lent { start, len } => {
                let (chunk, _) = self.groups.front()?;
                let chunk = chunk.slice(start as usize..(start + len) as usize);
                self.leave_group();
                Ok(chunk)
            }
            Place::Apart(chunk) => Ok(chunk),
            Place::Truncated { len } => Err(Truncated { len }),
        };
        if self.packets.is_empty() {
            self.bytes = 0;
        }
        Some(ReceivedPacket { content, sender, credentials })
    }

    /// One packet less of the front group; without any the lease ends.
    #[inline]
    fn leave_group(&mut self) {
        if let Some((_, left)) = self.groups.front_mut() {
            *left -= 1;
            if *left == 0 {
                self.groups.pop_front();
            }
        }
    }

    pub(crate) fn push(
        &mut self,
        place: Place,
        sender: SocketName,
        credentials: Option<Credentials>,
    ) {
        if let Place::Apart(chunk) = &place {
            self.bytes += chunk.len();
        }
        self.packets.push_back(Entry { place, sender, credentials });
    }

    /// The lease that the last `packets` lent packets lie in.
    pub(crate) fn push_group(&mut self, lease: Lease, packets: usize) {
        self.bytes += lease.len();
        self.groups.push_back((Chunk::Leased(lease), packets));
    }

    /// Takes the newest packets back, which hold no memory.
    pub(crate) fn forget_last(&mut self, packets: usize) {
        let keep = self.packets.len().saturating_sub(packets);
        self.packets.truncate(keep);
    }
}

/// How the memory for the next packets is divided; follows the traffic.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Bytes of a slot.
    slot_bytes: u32,
    /// Packets to ask for with one call.
    batch: usize,
    /// The longest packet since the slots were last looked at, and how many there were.
    longest: u32,
    seen: u32,
}

/// The smallest slot, bytes.
const SLOT_BYTES_MIN: u32 = 128;
/// Packets after which slots that are far too large shrink.
const SHRINK_PACKETS: u32 = 64;
/// Fewest packets to ask for.
const BATCH_MIN: usize = 4;
/// Slots beyond this part of a block are used one at a time, and what a packet leaves of its slot is the
/// next one's: then no packet takes more memory than it has bytes, at the price of a call each.
const SLOTS_PER_BLOCK_MIN: u32 = 8;
/// Slots that are used one at a time are multiples of this, bytes.
const PAGE_BYTES: u32 = 4096;

impl Shape {
    pub(crate) fn new() -> Self {
        Self { slot_bytes: 512, batch: BATCH_MIN, longest: 0, seen: 0 }
    }

    /// What to receive into a block with this room; `None` if it takes another block.
    pub(crate) fn slots(
        &self,
        room: u32,
        block_bytes: u32,
        packet_bytes_max: u32,
    ) -> Option<Slots> {
        let (mut count, slot_bytes) = if self.slot_bytes <= block_bytes / SLOTS_PER_BLOCK_MIN {
            let slots = (room / self.slot_bytes) as usize;
            (slots.min(self.batch), self.slot_bytes)
        } else if room >= self.slot_bytes.min(block_bytes) {
            (1, room)
        } else {
            return None;
        };
        let overflow_bytes = packet_bytes_max.saturating_sub(slot_bytes) as usize;
        if let Some(fit) = OVERFLOW_BYTES.checked_div(overflow_bytes) {
            count = count.min(fit);
        }
        (count > 0).then_some(Slots { count, slot_bytes, overflow_bytes })
    }

    /// What to receive when there is no block: everything is copied.
    pub(crate) fn without_block(&self, packet_bytes_max: u32) -> Slots {
        let overflow_bytes = packet_bytes_max as usize;
        let fit = OVERFLOW_BYTES.checked_div(overflow_bytes).unwrap_or(usize::MAX);
        Slots { count: self.batch.min(fit), slot_bytes: 0, overflow_bytes }
    }

    /// A packet had this length.
    #[inline]
    pub(crate) fn observe(&mut self, len: usize, block_bytes: u32) {
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(block_bytes);
        self.longest = self.longest.max(len);
        self.seen += 1;
        if len > self.slot_bytes || self.seen >= SHRINK_PACKETS {
            self.adapt();
        }
    }

    fn adapt(&mut self) {
        let paged = self.longest > PAGE_BYTES;
        let fitting = if paged {
            self.longest.next_multiple_of(PAGE_BYTES)
        } else {
            self.longest.next_power_of_two().max(SLOT_BYTES_MIN)
        };
        if fitting > self.slot_bytes || fitting <= self.slot_bytes / 4 {
            self.slot_bytes = fitting;
        }
        (self.longest, self.seen) = (0, 0);
    }

    /// A call that asked for `asked` packets got `got`.
    pub(crate) fn filled(&mut self, asked: usize, got: usize) {
        if got >= asked {
            self.batch = (self.batch * 2).min(RECEIVE_PACKETS_MAX);
        } else if got * 4 <= self.batch {
            self.batch = (self.batch / 2).max(BATCH_MIN);
        }
    }
}

/// A copy of what lies in two parts.
pub(crate) fn joined(front: &[u8], back: &[u8]) -> Chunk {
    Chunk::Copied(Bytes::from([front, back].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = 128 << 10;

    #[test]
    fn slots_grow_at_once_and_shrink_later() {
        let mut shape = Shape::new();
        assert_eq!(shape.slots(BLOCK, BLOCK, 4096).unwrap().slot_bytes, 512);
        shape.observe(513, BLOCK);
        assert_eq!(shape.slot_bytes, 1024);
        for _ in 0..SHRINK_PACKETS {
            assert_eq!(shape.slot_bytes, 1024);
            shape.observe(20, BLOCK);
        }
        assert_eq!(shape.slot_bytes, SLOT_BYTES_MIN);
        shape.observe(1 << 30, BLOCK);
        assert_eq!(shape.slot_bytes, BLOCK);
    }

    #[test]
    fn large_packets_come_one_at_a_time() {
        let mut shape = Shape::new();
        shape.observe(100_000, BLOCK);
        let slots = shape.slots(BLOCK, BLOCK, 1 << 20).unwrap();
        assert_eq!((slots.count, slots.slot_bytes), (1, BLOCK));
        assert_eq!(slots.overflow_bytes, (1 << 20) - BLOCK as usize);
        assert!(shape.slots(BLOCK - 100_000, BLOCK, 1 << 20).is_none());
    }

    #[test]
    fn every_division_fits() {
        for len in [1, 128, 129, 4096, 16_384, 16_385, 131_072, 200_000] {
            for block_bytes in [8 << 10, BLOCK] {
                for max in [1, 4096, 65_536, 1 << 20] {
                    let mut shape = Shape::new();
                    shape.observe(len, block_bytes);
                    (0..9).for_each(|_| shape.filled(1, 1));
                    let slots = shape.slots(block_bytes, block_bytes, max).expect("a whole block");
                    assert!(slots.count * slots.slot_bytes as usize <= block_bytes as usize);
                    assert!(slots.count * slots.overflow_bytes <= OVERFLOW_BYTES);
                    assert!(slots.slot_bytes as usize + slots.overflow_bytes >= max as usize);
                    for room in 0..slots.slot_bytes.min(600) {
                        let slots = shape.slots(room, block_bytes, max);
                        assert!(slots.is_none_or(|slots| slots.slot_bytes <= room), "{room}");
                    }
                }
            }
        }
    }
}
