//! What a packet socket has accepted and not yet handed to the kernel: a lane of packets for each
//! destination, so that one receiver that is full or gone holds up nobody else. (What it has not read counts against
//! the send buffer of the socket, which the kernel has only one of.)

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::memory::{BlockClass, OutboundBlock, OutboundBlocks, Prefix};
use crate::outbound::Payload;
use crate::packet_io::{Outgoing, SocketName};
use crate::packet_pace::REST_MAX;

/// Destinations with packets waiting at once; another one finds the queue full.
pub(crate) const LANES_MAX: usize = 4096;
/// Lanes kept for reuse.
const SPARE_LANES_MAX: usize = 64;
/// First rest of a lane whose receiver is full and can't be polled for room.
const REST_MIN: Duration = Duration::from_micros(100);

/// A packet that was written in a block of its own is copied out of it if it is a smaller part of it than this: what
/// waits takes no more than so many times its length.
const FILLED_PART: usize = 4;

/// A packet that has been accepted.
#[derive(Debug)]
enum Queued {
    /// The next bytes of the lane's front block.
    Copied(u32),
    /// Sent from where it lies.
    Shared { prefix: Prefix, payload: Payload },
}

impl Queued {
    fn len(&self) -> usize {
        match self {
            Self::Copied(len) => *len as usize,
            Self::Shared { prefix, payload } => prefix.len() + payload.as_slice().len(),
        }
    }
}

/// Whether the packets of a lane may be offered to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// The kernel tells when there is room.
    Polled,
    /// There is no telling: tried again at this instant.
    Resting(Instant),
}

/// Packets for one destination, in order.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Unnamed: the connected peer.
    to: SocketName,
    /// Each with its number among all that the queue has accepted.
    packets: VecDeque<(u64, Queued)>,
    /// What copied packets lie in: the last one is open.
    blocks: VecDeque<OutboundBlock>,
    class: BlockClass,
    /// The last block, if there is one, was filled elsewhere: it says nothing about the class.
    is_last_filled: bool,
    pub(crate) gate: Gate,
    rest: Duration,
    /// Refusals in a row although the kernel had told of room.
    pub(crate) refusals: u32,
    /// Refusals since the last packet left because the kernel had no memory.
    pub(crate) memory_refusals: u32,
    /// Bytes of the packets.
    bytes: usize,
}

impl Lane {
    fn new(to: SocketName) -> Self {
        Self {
            to,
            packets: VecDeque::new(),
            blocks: VecDeque::new(),
            class: BlockClass::default(),
            is_last_filled: false,
            gate: Gate::Open,
            rest: REST_MIN,
            refusals: 0,
            memory_refusals: 0,
            bytes: 0,
        }
    }

    /// Closes the gate for a while that doubles each time. Who has been refused for long rests as `long` says, longer
    /// in a crowd; who is full for a moment is tried again soon all the same.
    pub(crate) fn rest(&mut self, now: Instant, long: Duration) -> Instant {
        let rest = if self.rest < REST_MAX { self.rest } else { long };
        let until = now + rest;
        self.rest = (self.rest * 2).min(REST_MAX);
        self.gate = Gate::Resting(until);
        until
    }

    /// A block with room for `len` bytes behind a prefix is the last one.
    #[inline]
    fn open(&mut self, len: usize, blocks: &mut OutboundBlocks) -> &mut OutboundBlock {
        if !self.blocks.back().is_some_and(|block| block.fits(len)) {
            if !self.blocks.is_empty() && !self.is_last_filled {
                self.class = self.class.grown();
            }
            self.is_last_filled = false;
            self.blocks.push_back(blocks.take(len, self.class));
        }
        self.blocks.back_mut().expect("just made sure")
    }

    /// A block that was filled elsewhere is the last one.
    fn push_filled(&mut self, block: OutboundBlock) {
        if let Some(last) = self.blocks.back()
            && !self.is_last_filled
        {
            // It is closed with what it has; large blocks with little in them would add up over many packets.
            self.class = self.class.after(last.len());
        }
        self.is_last_filled = true;
        self.blocks.push_back(block);
    }

    /// The packets, as the kernel is to see them.
    fn outgoing(&self) -> impl Iterator<Item = Outgoing<'_>> {
        let to = (!self.to.is_unnamed()).then_some(&self.to);
        let mut blocks = self.blocks.iter().map(OutboundBlock::as_slice);
        let mut bytes: &[u8] = blocks.next().unwrap_or_default();
        self.packets.iter().map(move |(_, packet)| match packet {
            Queued::Copied(len) => {
                let len = *len as usize;
                // A packet lies whole in one block.
                while bytes.len() < len
                    && let Some(next) = blocks.next()
                {
                    bytes = next;
                }
                let (packet, rest) = bytes.split_at(len);
                bytes = rest;
                Outgoing { to, parts: [packet, &[]] }
            }
            Queued::Shared { prefix, payload } => {
                Outgoing { to, parts: [prefix.as_slice(), payload.as_slice()] }
            }
        })
    }

    /// Drops the first packet. Its length.
    fn pop(&mut self, blocks: &mut OutboundBlocks) -> Option<usize> {
        let (_, packet) = self.packets.pop_front()?;
        let len = packet.len();
        self.bytes -= len;
        if let Queued::Shared { payload, .. } = packet {
            blocks.release(payload);
        } else {
            while self.blocks.len() > 1
                && self.blocks.front().is_some_and(|front| front.len() < len)
            {
                self.give_back_front(blocks);
            }
            if let Some(front) = self.blocks.front_mut() {
                front.advance(len);
            }
        }
        if self.packets.is_empty() {
            while !self.blocks.is_empty() {
                self.give_back_front(blocks);
            }
        }
        Some(len)
    }

    fn give_back_front(&mut self, blocks: &mut OutboundBlocks) {
        if let Some(block) = self.blocks.pop_front() {
            blocks.give_back(block);
        }
    }
}

/// Everything accepted and not yet sent. See the module documentation.
#[derive(Debug)]
pub(crate) struct PacketQueue {
    lanes: Slab<Lane>,
    by_name: HashMap<SocketName, usize>,
    /// The lane that was appended to last.
    recent: Option<usize>,
    spare: Vec<Lane>,
    bytes: usize,
    packets: usize,
    /// Packets accepted so far, and the number of the next one.
    numbers: u64,
    /// The smallest number of those that wait, if it was looked for since something left: many may wait for a flush,
    /// with many lanes. A packet that is accepted has a larger one.
    oldest: Option<u64>,
    /// Lanes whose gate is open and that have packets, in the order in which they are offered.
    ready: VecDeque<usize>,
    /// What is in them.
    ready_packets: usize,
    ready_bytes: usize,
}

impl PacketQueue {
    pub(crate) fn new() -> Self {
        Self {
            lanes: Slab::new(),
            by_name: HashMap::new(),
            recent: None,
            spare: Vec::new(),
            bytes: 0,
            packets: 0,
            numbers: 0,
            oldest: None,
            ready: VecDeque::new(),
            ready_packets: 0,
            ready_bytes: 0,
        }
    }

    /// Bytes accepted and not yet sent.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Packets accepted and not yet sent.
    #[inline]
    pub(crate) fn packets(&self) -> usize {
        self.packets
    }

    /// Packets accepted so far.
    pub(crate) fn accepted_packets(&self) -> u64 {
        self.numbers
    }

    /// True if nothing waits of the first so many packets that were accepted.
    pub(crate) fn has_left(&mut self, first: u64) -> bool {
        if self.packets == 0 {
            return true;
        }
        if self.oldest.is_none() {
            let fronts = self.lanes.iter().filter_map(|(_, lane)| lane.packets.front());
            self.oldest = fronts.map(|(number, _)| *number).min();
        }
        self.oldest.is_none_or(|oldest| oldest >= first)
    }

    /// True if something may be offered to the kernel.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Packets that may be offered to the kernel.
    #[inline]
    pub(crate) fn ready_packets(&self) -> usize {
        self.ready_packets
    }

    /// Their bytes.
    #[inline]
    pub(crate) fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// Packets that wait for this destination because it had no room; `None` if it has.
    pub(crate) fn blocked(&self, to: &SocketName) -> Option<usize> {
        self.lanes.get(self.closed_lane(to)?).map(|lane| lane.packets.len())
    }

    /// Packets that wait for this destination, and their bytes.
    pub(crate) fn waiting(&self, to: &SocketName) -> (usize, usize) {
        let lane = self.find(to).and_then(|key| self.lanes.get(key));
        lane.map_or((0, 0), |lane| (lane.packets.len(), lane.bytes))
    }

    /// The lane of this destination, if it had no room.
    pub(crate) fn closed_lane(&self, to: &SocketName) -> Option<usize> {
        let key = self.find(to)?;
        self.lanes.get(key).is_some_and(|lane| lane.gate != Gate::Open).then_some(key)
    }

    /// True if there is a lane for this destination, or may be one.
    #[inline]
    pub(crate) fn takes(&self, to: &SocketName) -> bool {
        self.lanes.len() < LANES_MAX || self.find(to).is_some()
    }

    #[inline]
    fn find(&self, to: &SocketName) -> Option<usize> {
        if let Some(recent) = self.recent
            && self.lanes.get(recent).is_some_and(|lane| lane.to == *to)
        {
            return Some(recent);
        }
        self.by_name.get(to).copied()
    }

    /// The lane for this destination; `None` if there are too many.
    #[inline]
    fn lane(&mut self, to: &SocketName) -> Option<(usize, &mut Lane)> {
        let key = match self.find(to) {
            Some(key) => key,
            None => self.add_lane(to)?,
        };
        self.recent = Some(key);
        Some((key, self.lanes.get_mut(key)?))
    }

    fn add_lane(&mut self, to: &SocketName) -> Option<usize> {
        if self.lanes.len() >= LANES_MAX {
            return None;
        }
        let mut lane = self.spare.pop().unwrap_or_else(|| Lane::new(*to));
        lane.to = *to;
        let key = self.lanes.insert(lane);
        self.by_name.insert(*to, key);
        Some(key)
    }

    /// A lane whose gate is as said has one more packet.
    #[inline]
    fn accepted(&mut self, key: usize, len: usize, first: bool, gate: Gate) {
        self.numbers += 1;
        self.bytes += len;
        self.packets += 1;
        if gate == Gate::Open {
            self.ready_bytes += len;
            self.ready_packets += 1;
            if first {
                self.ready.push_back(key);
            }
        }
    }

    /// A lane with packets may be offered from now on: behind all others.
    fn open_gate(&mut self, key: usize) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        lane.gate = Gate::Open;
        if !lane.packets.is_empty() {
            self.ready_bytes += lane.bytes;
            self.ready_packets += lane.packets.len();
            self.ready.push_back(key);
        }
    }

    /// A lane is offered no more, with so many packets and bytes in it.
    fn unready(&mut self, key: usize, packets: usize, bytes: usize) {
        self.ready_packets -= packets;
        self.ready_bytes -= bytes;
        // It is the first one where it matters.
        if let Some(place) = self.ready.iter().position(|ready| *ready == key) {
            self.ready.remove(place);
        }
    }

    /// Accepts a packet of `prefix` and a copy of `body`. False if there are too many destinations.
    #[inline]
    pub(crate) fn append(
        &mut self,
        to: &SocketName,
        prefix: Prefix,
        body: &[u8],
        blocks: &mut OutboundBlocks,
    ) -> bool {
        let Some((key, lane)) = self.lane(to) else { return false };
        lane.open(body.len(), blocks).append(prefix, body);
        self.copied(key, prefix.len() + body.len());
        true
    }

    /// Accepts a packet that lies in a block of its own. False if there are too many destinations.
    pub(crate) fn append_filled(
        &mut self,
        to: &SocketName,
        block: OutboundBlock,
        blocks: &mut OutboundBlocks,
    ) -> bool {
        let Some((key, lane)) = self.lane(to) else {
            blocks.give_back(block);
            return false;
        };
        let len = block.len();
        if len >= block.capacity() / FILLED_PART {
            lane.push_filled(block);
        } else {
            lane.open(len, blocks).append(Prefix::NONE, block.as_slice());
            blocks.give_back(block);
        }
        self.copied(key, len);
        true
    }

    /// The last block of a lane has one more packet at its end.
    #[inline]
    fn copied(&mut self, key: usize, len: usize) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        let first = lane.packets.is_empty();
        let packet = Queued::Copied(u32::try_from(len).unwrap_or(u32::MAX));
        lane.packets.push_back((self.numbers, packet));
        lane.bytes += len;
        let gate = lane.gate;
        self.accepted(key, len, first, gate);
    }

    /// Accepts a packet that is sent from where it lies. False if there are too many destinations.
    pub(crate) fn append_shared(
        &mut self,
        to: &SocketName,
        prefix: Prefix,
        payload: Payload,
    ) -> bool {
        let number = self.numbers;
        let Some((key, lane)) = self.lane(to) else { return false };
        let first = lane.packets.is_empty();
        let packet = Queued::Shared { prefix, payload };
        let len = packet.len();
        lane.packets.push_back((number, packet));
        lane.bytes += len;
        let gate = lane.gate;
        self.accepted(key, len, first, gate);
        true
    }

    /// The packets of all lanes that are open, lane by lane.
    pub(crate) fn outgoing(&self) -> impl Iterator<Item = Outgoing<'_>> {
        self.ready.iter().filter_map(|key| self.lanes.get(*key)).flat_map(Lane::outgoing)
    }

    /// The lane whose packet would be offered first.
    pub(crate) fn first_open(&self) -> Option<usize> {
        self.ready.front().copied()
    }

    /// The kernel took this many of the packets that [`PacketQueue::outgoing`] offers, from the lanes that `moved` is
    /// called with. Their bytes.
    pub(crate) fn sent(
        &mut self,
        mut count: usize,
        blocks: &mut OutboundBlocks,
        mut moved: impl FnMut(usize),
    ) -> usize {
        let mut bytes = 0;
        self.oldest = None;
        while count > 0 {
            let Some(key) = self.first_open() else { break };
            let Some(lane) = self.lanes.get_mut(key) else { break };
            lane.rest = REST_MIN;
            (lane.refusals, lane.memory_refusals) = (0, 0);
            moved(key);
            while count > 0
                && let Some(len) = lane.pop(blocks)
            {
                count -= 1;
                bytes += len;
                self.packets -= 1;
                self.ready_packets -= 1;
            }
            if lane.packets.is_empty() {
                self.ready.pop_front();
                self.recycle(key, blocks);
            }
        }
        self.bytes -= bytes;
        self.ready_bytes -= bytes;
        bytes
    }

    /// Keeps the lane of a connected peer, which is used all the time; others make room for others.
    fn recycle(&mut self, key: usize, blocks: &mut OutboundBlocks) {
        let Some(lane) = self.lanes.get(key) else { return };
        if lane.to.is_unnamed() {
            return;
        }
        let mut lane = self.lanes.remove(key);
        self.by_name.remove(&lane.to);
        self.recent = None;
        while !lane.blocks.is_empty() {
            lane.give_back_front(blocks);
        }
        lane.class = BlockClass::default();
        (lane.gate, lane.rest) = (Gate::Open, REST_MIN);
        (lane.refusals, lane.memory_refusals) = (0, 0);
        if self.spare.len() < SPARE_LANES_MAX {
            self.spare.push(lane);
        }
    }

    /// Closes the gate of an open lane as `close` says.
    pub(crate) fn close_gate<T>(
        &mut self,
        key: usize,
        close: impl FnOnce(&mut Lane) -> T,
    ) -> Option<T> {
        let lane = self.lanes.get_mut(key)?;
        let outcome = close(lane);
        if lane.gate != Gate::Open {
            let (packets, bytes) = (lane.packets.len(), lane.bytes);
            self.unready(key, packets, bytes);
        }
        Some(outcome)
    }

    /// Opens the gate of a lane that has rested until then, if it is still the one that did. True if a packet may be
    /// offered now that could not before.
    pub(crate) fn open_rested(&mut self, key: usize, until: Instant) -> bool {
        let rested = self.lanes.get(key).is_some_and(|lane| lane.gate == Gate::Resting(until));
        if rested {
            self.open_gate(key);
        }
        rested
    }

    /// Opens the gate of the connected peer's lane, if the kernel was asked to tell of room. True if a packet may be
    /// offered now that could not before.
    pub(crate) fn open_polled(&mut self) -> bool {
        let Some(key) = self.by_name.get(&SocketName::UNNAMED).copied() else { return false };
        let polled = self.lanes.get(key).is_some_and(|lane| lane.gate == Gate::Polled);
        if polled {
            self.open_gate(key);
        }
        polled
    }

    /// The same before the kernel has told of room: a refusal is then no wonder.
    pub(crate) fn open_unpolled(&mut self) -> bool {
        let opened = self.open_polled();
        if opened
            && let Some(key) = self.by_name.get(&SocketName::UNNAMED).copied()
            && let Some(lane) = self.lanes.get_mut(key)
        {
            lane.refusals = 0;
        }
        opened
    }

    /// Where an open lane leads to.
    pub(crate) fn destination(&self, key: usize) -> SocketName {
        self.lanes.get(key).map_or(SocketName::UNNAMED, |lane| lane.to)
    }

    /// Length of the first packet of a lane.
    pub(crate) fn first_len(&self, key: usize) -> usize {
        let first = self.lanes.get(key).and_then(|lane| lane.packets.front());
        first.map_or(0, |(_, packet)| packet.len())
    }

    /// Drops the first packet of an open lane, or with `all` every one. Their number.
    pub(crate) fn drop_packets(
        &mut self,
        key: usize,
        all: bool,
        blocks: &mut OutboundBlocks,
    ) -> usize {
        let Some(lane) = self.lanes.get_mut(key) else { return 0 };
        let (mut count, mut bytes) = (0, 0);
        self.oldest = None;
        while let Some(len) = lane.pop(blocks) {
            bytes += len;
            count += 1;
            if !all {
                break;
            }
        }
        // The next packet is not to blame for what this one met.
        lane.memory_refusals = 0;
        let (is_open, is_empty) = (lane.gate == Gate::Open, lane.packets.is_empty());
        self.bytes -= bytes;
        self.packets -= count;
        if is_open && is_empty {
            self.unready(key, count, bytes);
        } else if is_open {
            self.ready_packets -= count;
            self.ready_bytes -= bytes;
        }
        if count > 0 && is_empty {
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.gate = Gate::Open;
            }
            self.recycle(key, blocks);
        }
        count
    }

    /// Drops everything. The number of packets.
    pub(crate) fn clear(&mut self, blocks: &mut OutboundBlocks) -> usize {
        let count = self.packets;
        for mut lane in self.lanes.drain() {
            while lane.pop(blocks).is_some() {}
        }
        self.by_name.clear();
        self.spare.clear();
        self.ready.clear();
        (self.recent, self.bytes, self.packets, self.oldest) = (None, 0, 0, None);
        (self.ready_packets, self.ready_bytes) = (0, 0);
        count
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn name(index: usize) -> SocketName {
        SocketName::from_abstract(format!("{index}").as_bytes()).unwrap()
    }

    fn body(sequence: usize) -> Vec<u8> {
        let len = [0, 1, 70, 600, 5000, 70_000][sequence % 6];
        vec![u8::try_from(sequence % 251).unwrap(); len]
    }

    /// What is offered, in the form in which it was appended.
    fn offered(queue: &PacketQueue) -> Vec<(Option<SocketName>, Vec<u8>)> {
        queue.outgoing().map(|packet| (packet.to.copied(), packet.parts.concat())).collect()
    }

    #[test]
    fn the_next_packet_is_tried_as_often_as_the_one_that_was_given_up() {
        let mut blocks = OutboundBlocks::new();
        let mut queue = PacketQueue::new();
        for _ in 0..2 {
            assert!(queue.append(&SocketName::UNNAMED, Prefix::NONE, b"x", &mut blocks));
        }
        let key = queue.first_open().unwrap();
        let refused = |lane: &mut Lane| {
            lane.memory_refusals += 1;
            lane.memory_refusals
        };
        assert_eq!(queue.close_gate(key, refused), Some(1));
        assert_eq!(queue.close_gate(key, refused), Some(2));
        assert_eq!(queue.drop_packets(key, false, &mut blocks), 1);
        assert_eq!(queue.close_gate(key, refused), Some(1));
    }

    #[test]
    fn packets_leave_whole_and_in_order() {
        let mut blocks = OutboundBlocks::new();
        let mut queue = PacketQueue::new();
        let mut expected = VecDeque::new();
        let mut step = 1;
        for sequence in 0..300 {
            let (prefix, body) = (Prefix::new([9; 8], sequence % 9), body(sequence));
            let to = SocketName::UNNAMED;
            match sequence % 3 {
                0 => assert!(queue.append(&to, prefix, &body, &mut blocks)),
                1 => assert!(queue.append_shared(
                    &to,
                    prefix,
                    Payload::Bytes(Bytes::from(body.clone()))
                )),
                _ => {
                    let mut block = blocks.take(body.len(), BlockClass::default());
                    block.append_with(prefix, body.len(), |bytes| bytes.copy_from_slice(&body));
                    assert!(queue.append_filled(&to, block, &mut blocks));
                }
            }
            expected.push_back([prefix.as_slice(), &body].concat());
            if sequence % 10 == 9 {
                let found = offered(&queue);
                assert_eq!(found.len(), expected.len());
                for (packet, expected) in found.iter().zip(&expected) {
                    assert!(packet.0.is_none() && packet.1 == *expected);
                }
                // The kernel takes ever more of them.
                let count = step.min(expected.len());
                let bytes: usize = expected.drain(..count).map(|packet| packet.len()).sum();
                assert_eq!(queue.sent(count, &mut blocks, |_| {}), bytes);
                assert_eq!(queue.packets(), expected.len());
                assert_eq!(queue.bytes(), expected.iter().map(Vec::len).sum::<usize>());
                step = step * 3 % 17 + 1;
            }
        }
        assert_eq!(queue.clear(&mut blocks), expected.len());
        assert!(!queue.is_ready() && queue.bytes() == 0 && offered(&queue).is_empty());
    }

    #[test]
    fn little_between_filled_packets_waits_in_small_blocks() {
        const PACKETS: usize = 100;
        let (to, filled) = (SocketName::UNNAMED, [1; 500]);
        let mut blocks = OutboundBlocks::new();
        let mut queue = PacketQueue::new();
        queue.lane(&to).unwrap().1.class = BlockClass::LARGE;
        for _ in 0..PACKETS {
            let mut block = blocks.take(filled.len(), BlockClass::default());
            block.append(Prefix::NONE, &filled);
            assert!(queue.append_filled(&to, block, &mut blocks));
            assert!(queue.append(&to, Prefix::NONE, &[2; 20], &mut blocks));
        }
        let lane = queue.lane(&to).unwrap().1;
        let held: usize = lane.blocks.iter().map(OutboundBlock::capacity).sum();
        assert!(held < 4 * lane.bytes, "{held} bytes for {}", lane.bytes);
    }

    #[test]
    fn a_closed_lane_holds_up_no_other() {
        let mut blocks = OutboundBlocks::new();
        let mut queue = PacketQueue::new();
        for index in [0, 1, 2, 0] {
            queue.append(&name(index), Prefix::NONE, &body(index + 1), &mut blocks);
        }
        let key = queue.first_open().unwrap();
        let to = queue.destination(key);
        let until = queue.close_gate(key, |lane| lane.rest(Instant::now(), REST_MAX)).unwrap();
        assert_eq!(queue.blocked(&to), Some(if to == name(0) { 2 } else { 1 }));
        let rest = offered(&queue).len();
        assert!(offered(&queue).iter().all(|(other, _)| *other != Some(to)));
        queue.sent(rest, &mut blocks, |_| {});
        assert!(!queue.is_ready());
        assert_eq!((queue.ready_packets(), queue.ready_bytes()), (0, 0));
        assert!(!queue.open_rested(key, until - REST_MIN / 2) && !queue.open_polled());
        assert!(queue.open_rested(key, until) && !queue.open_rested(key, until));
        assert_eq!((queue.ready_packets(), queue.ready_bytes()), (queue.packets(), queue.bytes()));
        assert!(queue.is_ready() && queue.blocked(&to).is_none());
        queue.sent(queue.packets(), &mut blocks, |_| {});
        assert_eq!((queue.packets(), queue.bytes(), queue.lanes.len()), (0, 0, 0));
    }

    #[test]
    fn dropped_packets_are_accounted_for() {
        let mut blocks = OutboundBlocks::new();
        let mut queue = PacketQueue::new();
        for sequence in 0..5 {
            queue.append(&name(7), Prefix::NONE, &body(sequence), &mut blocks);
        }
        let key = queue.first_open().unwrap();
        assert_eq!(
            (queue.accepted_packets(), queue.has_left(0), queue.has_left(1)),
            (5, true, false)
        );
        assert_eq!(queue.drop_packets(key, false, &mut blocks), 1);
        assert!(queue.has_left(1) && !queue.has_left(2));
        assert_eq!(offered(&queue)[0].1, body(1));
        queue.close_gate(key, |lane| lane.gate = Gate::Polled);
        assert_eq!(queue.drop_packets(key, true, &mut blocks), 4);
        assert!(!queue.is_ready() && queue.packets() == 0 && queue.lanes.is_empty());
        assert!(queue.has_left(5));
    }

    #[test]
    fn what_has_left_is_known_of_many_lanes() {
        let mut blocks = OutboundBlocks::new();
        let mut queue = PacketQueue::new();
        let mut random = 1_u64;
        let mut below = |bound: usize| {
            // Knuth's MMIX generator; its upper bits are the good ones.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(random >> 33).unwrap() % bound
        };
        let mut lanes_max = 0;
        for step in 0..3000 {
            let lanes: Vec<usize> = queue.lanes.iter().map(|(key, _)| key).collect();
            lanes_max = lanes_max.max(lanes.len());
            let action = if lanes.is_empty() { 0 } else { below(1000) };
            let key = lanes.get(below(lanes.len().max(1))).copied().unwrap_or_default();
            match action {
                0..650 => {
                    let to = [SocketName::UNNAMED, name(below(100))][usize::from(below(50) > 0)];
                    assert!(queue.append(&to, Prefix::NONE, b"x", &mut blocks));
                }
                650..850 => {
                    queue.sent(below(4), &mut blocks, |_| {});
                }
                850..970 => {
                    queue.drop_packets(key, below(2) == 0, &mut blocks);
                }
                970..998 if queue.lanes[key].gate == Gate::Open => {
                    queue.close_gate(key, |lane| lane.gate = Gate::Polled);
                }
                970..998 => queue.open_gate(key),
                _ => {
                    queue.clear(&mut blocks);
                }
            }
            let fronts = queue.lanes.iter().filter_map(|(_, lane)| lane.packets.front());
            let oldest = fronts.map(|(number, _)| *number).min();
            let accepted = queue.accepted_packets();
            for first in [oldest.unwrap_or(accepted), accepted] {
                for first in [first.saturating_sub(1), first, first + 1] {
                    let expected = oldest.is_none_or(|oldest| oldest >= first);
                    assert_eq!(queue.has_left(first), expected, "{first} in step {step}");
                }
            }
        }
        assert!(lanes_max > 50, "{lanes_max} lanes are not many");
    }

    #[test]
    fn destinations_are_bounded() {
        let mut blocks = OutboundBlocks::new();
        let mut queue = PacketQueue::new();
        for index in 0..LANES_MAX {
            assert!(queue.append(&name(index), Prefix::NONE, b"x", &mut blocks));
        }
        assert!(!queue.takes(&name(LANES_MAX)) && queue.takes(&name(5)));
        assert!(!queue.append(&name(LANES_MAX), Prefix::NONE, b"x", &mut blocks));
        queue.sent(1, &mut blocks, |_| {});
        assert!(queue.append(&name(LANES_MAX), Prefix::NONE, b"x", &mut blocks));
        while queue.packets() > 0 {
            queue.sent(1, &mut blocks, |_| {});
        }
        assert!(queue.lanes.is_empty(), "what has left has no lane");
        assert_eq!(queue.spare.len(), SPARE_LANES_MAX, "few lanes are kept to be used again");
    }
}
