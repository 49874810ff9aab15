//! What a connection has accepted and not yet handed to the kernel.
//!
//! Messages are appended to a block; payloads large enough are gathered where they lie. Everything
//! queued leaves as one send: a plain one for a single block, a gathered one otherwise. Who fills payloads in place is
//! lent a block, because code of the user's may run meanwhile and come back to the queue.
//!
//! # Invariants
//!
//! * **S1** While a send is in flight its memory is a [`SendMemory`] inside the op slot: nothing can
//!   append to it or free it.
//! * **S2** The pointers in a [`Gather`]'s vector are derived from its own segments, which are heap
//!   memory that does not move with the `Gather`.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU32;

use bytes::Bytes;

use crate::memory::{BlockClass, OUTBOUND_LARGE_BYTES, OutboundBlock, OutboundBlocks, Prefix};
use crate::pool::Lease;

/// Segments that one gathered send carries; well below IOV_MAX (1024, sendmsg(2)) halves.
const GATHER_SEGMENTS_MAX: u32 = 128;
/// Segments that an empty queue keeps the place of, so that steady traffic allocates nothing. A long message in
/// pieces may have needed more.
const SEGMENTS_KEPT_MAX: usize = 4 * GATHER_SEGMENTS_MAX as usize;

/// A payload that is sent from where it lies.
#[derive(Debug)]
#[non_exhaustive]
pub enum Payload {
    /// Reference-counted bytes.
    Bytes(Bytes),
    /// Received bytes, forwarded without a copy.
    Lease(Lease),
}

impl Payload {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Lease(lease) => lease,
        }
    }
}

#[derive(Debug)]
enum Segment {
    Block(OutboundBlock),
    Shared { prefix: Prefix, sent: usize, payload: Payload },
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Self::Block(block) => block.len(),
            Self::Shared { prefix, sent, payload } => {
                prefix.len() + payload.as_slice().len() - sent
            }
        }
    }
}

impl Segment {
    fn let_go(self, blocks: &mut OutboundBlocks) {
        match self {
            Self::Block(block) => blocks.give_back(block),
            Self::Shared { payload, .. } => blocks.release(payload),
        }
    }
}

/// A gathered send: segments, and the vector and header that describe them.
pub(crate) struct Gather {
    segments: Vec<Segment>,
    vector: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Gather {
    fn new() -> Self {
        // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
        let header = unsafe { std::mem::zeroed() };
        Self { segments: Vec::new(), vector: Vec::new(), header }
    }

    /// Builds vector and header anew for what is left of the segments.
    fn describe(&mut self) -> *const libc::msghdr {
        self.vector.clear();
        for segment in &self.segments {
            match segment {
                Segment::Block(block) => {
                    let (data, len) = block.pending();
                    self.vector.push(part(data, len as usize));
                }
                Segment::Shared { prefix, sent, payload } => {
                    let payload = payload.as_slice();
                    if *sent < prefix.len() {
                        let rest = &prefix.as_slice()[*sent..];
                        self.vector.push(part(rest.as_ptr(), rest.len()));
                    }
                    let rest = &payload[sent.saturating_sub(prefix.len())..];
                    if !rest.is_empty() {
                        self.vector.push(part(rest.as_ptr(), rest.len()));
                    }
                }
            }
        }
        self.header.msg_iov = self.vector.as_mut_ptr();
        self.header.msg_iovlen = self.vector.len();
        &raw const self.header
    }

    fn advance(&mut self, mut bytes: usize, blocks: &mut OutboundBlocks) {
        let mut finished = 0;
        for segment in &mut self.segments {
            let len = segment.len();
            if bytes < len {
                match segment {
                    Segment::Block(block) => block.advance(bytes),
                    Segment::Shared { sent, .. } => *sent += bytes,
                }
                bytes = 0;
                break;
            }
            bytes -= len;
            finished += 1;
        }
        assert_eq!(bytes, 0, "kernel took more than was offered");
        for segment in self.segments.drain(..finished) {
            segment.let_go(blocks);
        }
    }
}

fn part(data: *const u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: data.cast_mut().cast(), iov_len: len }
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

/// The memory of a send in flight (S1).
#[derive(Debug)]
pub(crate) enum SendMemory {
    Block(OutboundBlock),
    Gather(Box<Gather>),
}

/// What a send names, for the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SendView {
    Plain { data: *const u8, len: u32 },
    Gathered { header: *const libc::msghdr },
}

impl SendMemory {
    /// Pointers for a request. Valid until the memory is next touched through this type (S1).
    #[inline(always)]
    pub(crate) fn view(&mut self) -> SendView {
        match self {
            Self::Block(block) => {
                let (data, len) = block.pending();
                SendView::Plain { data, len }
            }
            Self::Gather(gather) => SendView::Gathered { header: gather.describe() },
        }
    }

    /// A send that names this memory is in flight: nobody touches its blocks (S1).
    #[inline(always)]
    pub(crate) fn seal(&self) {
        if cfg!(ringpost_asan) {
            self.blocks().for_each(OutboundBlock::seal);
        }
    }

    /// That send has ended.
    #[inline(always)]
    pub(crate) fn unseal(&self) {
        if cfg!(ringpost_asan) {
            self.blocks().for_each(OutboundBlock::unseal);
        }
    }

    fn blocks(&self) -> impl Iterator<Item = &OutboundBlock> {
        let (one, segments) = match self {
            Self::Block(block) => (Some(block), &[][..]),
            Self::Gather(gather) => (None, &gather.segments[..]),
        };
        let gathered = segments.iter().filter_map(|segment| match segment {
            Segment::Block(block) => Some(block),
            Segment::Shared { .. } => None,
        });
        one.into_iter().chain(gathered)
    }

    /// True if bytes of others are among it: when they are dropped, code of the user's may run.
    pub(crate) fn has_bytes_of_others(&self) -> bool {
        let Self::Gather(gather) = self else { return false };
        gather
            .segments
            .iter()
            .any(|segment| matches!(segment, Segment::Shared { payload: Payload::Bytes(_), .. }))
    }

    /// Bytes not yet taken by the kernel.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Block(block) => block.len(),
            Self::Gather(gather) => gather.segments.iter().map(Segment::len).sum(),
        }
    }

    /// Marks `bytes` at the front as taken.
    pub(crate) fn advance(&mut self, bytes: usize, blocks: &mut OutboundBlocks) {
        match self {
            Self::Block(block) => block.advance(bytes),
            Self::Gather(gather) => gather.advance(bytes, blocks),
        }
    }

    /// Gives all blocks back.
    pub(crate) fn recycle(self, blocks: &mut OutboundBlocks) -> Option<Box<Gather>> {
        match self {
            Self::Block(block) => {
                blocks.give_back(block);
                None
            }
            Self::Gather(mut gather) => {
                for segment in gather.segments.drain(..) {
                    segment.let_go(blocks);
                }
                Some(gather)
            }
        }
    }
}

/// A block that somebody appends to outside the queue.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) block: OutboundBlock,
    /// Bytes that were in it when it was lent. If there are any, the queue keeps its place.
    queued: u32,
}

impl Lent {
    /// None, without room.
    pub(crate) fn none() -> Self {
        Self { block: OutboundBlock::none(), queued: 0 }
    }

    /// One of no queue's, with room for `len` bytes.
    pub(crate) fn apart(len: usize, blocks: &mut OutboundBlocks) -> Self {
        Self { block: blocks.take(len, BlockClass::default()), queued: 0 }
    }

    /// What there is; none is left.
    pub(crate) fn take(&mut self) -> Option<Self> {
        (self.block.capacity() > 0).then(|| std::mem::replace(self, Self::none()))
    }

    /// Nothing was in it when it was lent.
    pub(crate) fn is_new(&self) -> bool {
        self.queued == 0
    }

    /// Bytes that have been appended since.
    pub(crate) fn new_bytes(&self) -> usize {
        self.block.len() - self.queued as usize
    }
}

/// The place of a lent block that has accepted bytes, the end of a long message perhaps: what is appended meanwhile
/// goes behind it, and waits for it.
#[derive(Debug)]
struct Gap {
    /// Segments in `before` that come before it.
    ahead: u32,
    /// Bytes that were in it when it was lent.
    bytes: NonZeroU32,
}

/// Segments in order. Queues that never had any, of which there are many, have no list of them.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "an idle connection has only the pointer")]
struct Segments(Option<Box<VecDeque<Segment>>>);

impl Segments {
    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |segments| segments.len())
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|segments| segments.is_empty())
    }

    fn push(&mut self, segment: Segment) {
        self.0.get_or_insert_default().push_back(segment);
    }

    fn insert(&mut self, index: usize, segment: Segment) {
        self.0.get_or_insert_default().insert(index, segment);
    }

    /// Moves the first `count` to `target`, and gives back what long lists have needed.
    fn take(&mut self, count: usize, target: &mut Vec<Segment>) {
        if let Some(segments) = &mut self.0 {
            target.extend(segments.drain(..count));
        }
        self.0.take_if(|segments| segments.is_empty() && segments.capacity() > SEGMENTS_KEPT_MAX);
    }
}

/// Accepted and not yet in flight.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    /// Full or gathered segments before `tail`.
    before: Segments,
    /// The block that small messages go to.
    tail: Option<OutboundBlock>,
    /// Bytes in `before`.
    before_bytes: usize,
    /// Where a lent block belongs.
    gap: Option<Gap>,
    /// What to take next.
    class: BlockClass,
    /// A gather kept for reuse.
    spare: Option<Box<Gather>>,
}

impl Outbound {
    /// Bytes queued.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        let lent = self.gap.as_ref().map_or(0, |gap| gap.bytes.get() as usize);
        self.before_bytes + self.tail.as_ref().map_or(0, OutboundBlock::len) + lent
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.before.is_empty() && self.tail_is_empty() && self.gap.is_none()
    }

    #[inline]
    fn tail_is_empty(&self) -> bool {
        self.tail.as_ref().is_none_or(OutboundBlock::is_empty)
    }

    /// The fast path: appends to the open block if it has room.
    #[inline]
    pub(crate) fn try_append(&mut self, prefix: Prefix, body: &[u8]) -> bool {
        match &mut self.tail {
            Some(tail) if tail.fits(body.len()) => {
                tail.append(prefix, body);
                true
            }
            _ => false,
        }
    }

    /// Appends a copy, taking new blocks as needed.
    pub(crate) fn append(&mut self, prefix: Prefix, body: &[u8], blocks: &mut OutboundBlocks) {
        const BODY_MAX: usize = OUTBOUND_LARGE_BYTES - Prefix::BYTES_MAX;
        let (mut prefix, mut body) = (prefix, body);
        while !self.try_append(prefix, body) {
            // A message that no block holds fills the open one and goes on in the next.
            if body.len() > BODY_MAX
                && let Some(tail) = &mut self.tail
                && tail.fits(1)
            {
                let (front, rest) = body.split_at(tail.room() - Prefix::BYTES_MAX);
                tail.append(prefix, front);
                (prefix, body) = (Prefix::NONE, rest);
            }
            self.open(body.len().min(BODY_MAX), blocks);
        }
    }

    /// Appends a payload that is sent from where it lies.
    pub(crate) fn append_shared(&mut self, prefix: Prefix, payload: Payload) {
        if let Some(tail) = self.tail.as_ref().filter(|tail| !tail.is_empty()) {
            // It is queued with what it has; large blocks with little in them would add up over many payloads.
            self.class = self.class.after(tail.len());
        }
        self.close();
        self.before_bytes += prefix.len() + payload.as_slice().len();
        self.before.push(Segment::Shared { prefix, sent: 0, payload });
    }

    /// Makes a fresh block with room for `bytes` the tail.
    #[cold]
    fn open(&mut self, bytes: usize, blocks: &mut OutboundBlocks) {
        let outgrown = self.tail.is_some();
        self.close();
        if outgrown {
            self.class = self.class.grown();
        }
        self.tail = Some(blocks.take(bytes, self.class));
    }

    /// A block with room for `len` bytes for somebody who appends outside the queue: the open one if it
    /// has room. The `full` one that was lent before is queued first.
    pub(crate) fn lend(
        &mut self,
        full: Option<Lent>,
        len: usize,
        blocks: &mut OutboundBlocks,
    ) -> Lent {
        if let Some(full) = full {
            self.take_back(full, blocks);
        }
        let fits = self.tail.as_ref().map(|tail| tail.fits(len));
        // One lent block at a time has a place.
        if fits == Some(true)
            && self.gap.is_none()
            && let Ok(ahead) = u32::try_from(self.before.len())
            && let Some(block) = self.tail.take()
        {
            let (_, queued) = block.pending();
            self.gap = NonZeroU32::new(queued).map(|bytes| Gap { ahead, bytes });
            return Lent { block, queued };
        }
        if fits == Some(false) {
            self.class = self.class.grown();
        }
        Lent { block: blocks.take(len, self.class), queued: 0 }
    }

    /// Queues a lent block: where it was if it was in the queue, else behind everything.
    pub(crate) fn take_back(&mut self, lent: Lent, blocks: &mut OutboundBlocks) {
        let Lent { block, queued } = lent;
        if queued > 0
            && let Some(gap) = self.gap.take()
            && ((gap.ahead as usize) < self.before.len() || !self.tail_is_empty())
        {
            self.before_bytes += block.len();
            self.before.insert(gap.ahead as usize, Segment::Block(block));
            return;
        }
        if block.is_empty() {
            blocks.give_back(block);
            return;
        }
        self.close();
        if let Some(empty) = self.tail.replace(block) {
            blocks.give_back(empty);
        }
    }

    /// Moves the tail behind the other segments.
    fn close(&mut self) {
        if let Some(tail) = self.tail.take_if(|tail| !tail.is_empty()) {
            self.before_bytes += tail.len();
            self.before.push(Segment::Block(tail));
        }
    }

    /// Takes everything queued, up to a lent block and the segment limit, as the memory of one send.
    #[inline(always)]
    pub(crate) fn take(&mut self, blocks: &mut OutboundBlocks) -> Option<SendMemory> {
        if self.before.is_empty() && self.gap.is_none() {
            let tail = self.tail.take()?;
            if tail.is_empty() {
                blocks.give_back(tail);
                return None;
            }
            self.class = self.class.after(tail.len());
            return Some(SendMemory::Block(tail));
        }
        let ready = match &self.gap {
            Some(gap) => gap.ahead as usize,
            None => {
                self.close();
                self.before.len()
            }
        };
        if ready == 0 {
            return None;
        }
        let mut gather = self.spare.take().unwrap_or_else(|| Box::new(Gather::new()));
        let count = ready.min(GATHER_SEGMENTS_MAX as usize);
        if let Some(gap) = &mut self.gap {
            gap.ahead = gap.ahead.saturating_sub(GATHER_SEGMENTS_MAX);
        }
        self.before.take(count, &mut gather.segments);
        self.before_bytes -= gather.segments.iter().map(Segment::len).sum::<usize>();
        Some(SendMemory::Gather(gather))
    }

    /// In a simulation: whether [`Outbound::take`] would find something.
    #[cfg(feature = "sim")]
    pub(crate) fn has_sendable(&self) -> bool {
        match &self.gap {
            Some(gap) => gap.ahead > 0,
            None => !self.before.is_empty() || !self.tail_is_empty(),
        }
    }

    /// Gives the memory of a finished send back for reuse.
    #[inline(always)]
    pub(crate) fn finish(&mut self, memory: SendMemory, blocks: &mut OutboundBlocks) {
        if let Some(gather) = memory.recycle(blocks) {
            self.spare = Some(gather);
        }
    }

    /// Drops everything queued.
    pub(crate) fn clear(&mut self, blocks: &mut OutboundBlocks) {
        self.before_bytes = 0;
        self.gap = None;
        self.spare = None;
        if let Some(tail) = self.tail.take() {
            blocks.give_back(tail);
        }
        for segment in self.before.0.take().into_iter().flat_map(|segments| *segments) {
            segment.let_go(blocks);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Everything a send memory names, read the way a kernel would.
    fn contents(memory: &SendMemory) -> Vec<u8> {
        let mut bytes = Vec::new();
        match memory {
            SendMemory::Block(block) => bytes.extend_from_slice(block.as_slice()),
            SendMemory::Gather(gather) => {
                for segment in &gather.segments {
                    match segment {
                        Segment::Block(block) => bytes.extend_from_slice(block.as_slice()),
                        Segment::Shared { prefix, sent, payload } => {
                            let mut whole = prefix.as_slice().to_vec();
                            whole.extend_from_slice(payload.as_slice());
                            bytes.extend_from_slice(&whole[*sent..]);
                        }
                    }
                }
            }
        }
        bytes
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect()
    }

    #[test]
    fn every_mix_leaves_in_order() {
        let mut blocks = OutboundBlocks::new();
        let mut outbound = Outbound::default();
        let mut expected = Vec::new();
        for round in 0..if cfg!(miri) { 7 } else { 40 } {
            let len = [0, 1, 64, 3000, 5000, 70_000, 200_000][round % 7];
            let body = pattern(len);
            let header = [u8::try_from(round).unwrap(); 8];
            let prefix = Prefix::new(header, 8 - round % 9);
            match round % 3 {
                0 => outbound.append(prefix, &body, &mut blocks),
                1 => outbound.append_shared(prefix, Payload::Bytes(body.clone().into())),
                _ => {
                    let mut lent = outbound.lend(None, len, &mut blocks);
                    lent.block.append_with(prefix, len, |target| target.copy_from_slice(&body));
                    outbound.take_back(lent, &mut blocks);
                }
            }
            expected.extend_from_slice(prefix.as_slice());
            expected.extend_from_slice(&body);
            assert_eq!(outbound.len(), expected.len());
        }
        let mut sent = Vec::new();
        let mut step = 1;
        while let Some(mut memory) = outbound.take(&mut blocks) {
            // The kernel takes ever larger bites.
            while memory.len() > 0 {
                let bite = step.min(memory.len());
                sent.extend_from_slice(&contents(&memory)[..bite]);
                memory.advance(bite, &mut blocks);
                step = (step * 3) % 100_003 + 1;
            }
            outbound.finish(memory, &mut blocks);
        }
        assert!(sent == expected);
        assert!(outbound.is_empty());
    }

    #[test]
    fn steady_small_traffic_allocates_one_block() {
        let mut blocks = OutboundBlocks::new();
        let mut outbound = Outbound::default();
        for _ in 0..100 {
            outbound.append(Prefix::word(7), &[0; 64], &mut blocks);
            let memory = outbound.take(&mut blocks).unwrap();
            assert!(matches!(memory, SendMemory::Block(_)));
            outbound.finish(memory, &mut blocks);
        }
        assert_eq!(blocks.allocated, 1);
    }

    /// Sends everything that may leave.
    fn send_all(outbound: &mut Outbound, blocks: &mut OutboundBlocks) -> Vec<u8> {
        let mut sent = Vec::new();
        while let Some(memory) = outbound.take(blocks) {
            sent.extend(contents(&memory));
            outbound.finish(memory, blocks);
        }
        sent
    }

    /// The end of a long message is in the block that is lent: nothing may come between it and its beginning.
    #[test]
    fn what_is_appended_while_a_block_is_lent_goes_behind_what_was_in_it() {
        let long = pattern(OUTBOUND_LARGE_BYTES + 100);
        for sent_meanwhile in [false, true] {
            for others in 0..8 {
                let mut blocks = OutboundBlocks::new();
                let mut outbound = Outbound::default();
                outbound.append(Prefix::NONE, &long, &mut blocks);
                let mut lent = outbound.lend(None, 10, &mut blocks);
                lent.block.append(Prefix::NONE, b"lent");
                let mut sent = Vec::new();
                let mut expected = [&long[..], b"lent"].concat();
                if others & 1 > 0 {
                    outbound.append(Prefix::NONE, b"appended", &mut blocks);
                    expected.extend(b"appended");
                }
                if sent_meanwhile {
                    sent = send_all(&mut outbound, &mut blocks);
                    assert!(!outbound.is_empty());
                    assert_eq!(sent, long[..sent.len()]);
                }
                if others & 2 > 0 {
                    let shared = Payload::Bytes(Bytes::from_static(b"shared"));
                    outbound.append_shared(Prefix::NONE, shared);
                    expected.extend(b"shared");
                }
                if others & 4 > 0 {
                    let mut second = outbound.lend(None, 10, &mut blocks);
                    second.block.append(Prefix::NONE, b"second");
                    outbound.take_back(second, &mut blocks);
                    expected.extend(b"second");
                }
                // What was lent and is not back is not counted.
                assert_eq!(outbound.len() + sent.len() + 4, expected.len());
                outbound.take_back(lent, &mut blocks);
                assert_eq!(outbound.len() + sent.len(), expected.len());
                outbound.append(Prefix::NONE, b"last", &mut blocks);
                expected.extend(b"last");
                sent.extend(send_all(&mut outbound, &mut blocks));
                assert!(sent == expected, "{sent_meanwhile} {others}");
                assert!(outbound.is_empty());
            }
        }
    }

    #[test]
    fn blocks_grow_with_what_is_filled_in_place() {
        let mut blocks = OutboundBlocks::new();
        let mut outbound = Outbound::default();
        for _ in 0..1000 {
            let mut lent = outbound.lend(None, 100, &mut blocks);
            lent.block.append_with(Prefix::word(7), 100, |_| {});
            outbound.take_back(lent, &mut blocks);
        }
        assert_eq!(outbound.class, BlockClass::LARGE);
        assert!(blocks.allocated < 6, "{} blocks", blocks.allocated);
    }

    #[test]
    fn a_message_in_very_many_pieces_leaves_in_linear_time() {
        const PIECES: usize = if cfg!(miri) { 2000 } else { 300_000 };
        /// Enough for a busy machine; moving the rest for each send takes many times as long.
        const LIMIT: Duration = Duration::from_secs(5);
        let mut blocks = OutboundBlocks::new();
        let mut outbound = Outbound::default();
        for piece in 0..PIECES {
            let byte = [u8::try_from(piece % 251).unwrap()];
            outbound.append_shared(Prefix::NONE, Payload::Bytes(Bytes::copy_from_slice(&byte)));
        }
        let start = Instant::now();
        let mut sent = 0;
        while let Some(memory) = outbound.take(&mut blocks) {
            assert_eq!(outbound.len(), PIECES - sent - memory.len());
            for byte in contents(&memory) {
                assert_eq!(usize::from(byte), sent % 251);
                sent += 1;
            }
            outbound.finish(memory, &mut blocks);
            drop(blocks.take_released());
            assert!(cfg!(miri) || start.elapsed() < LIMIT, "{sent} of {PIECES} pieces");
        }
        assert_eq!(sent, PIECES);
        assert!(outbound.before.0.is_none(), "the list is given back");
    }

    #[test]
    fn what_steady_gathered_traffic_needs_is_kept() {
        let mut blocks = OutboundBlocks::new();
        let mut outbound = Outbound::default();
        let mut capacity = 0;
        for round in 0..10 {
            for _ in 0..GATHER_SEGMENTS_MAX {
                outbound.append(Prefix::word(7), &[0; 64], &mut blocks);
                outbound.append_shared(Prefix::word(7), Payload::Bytes(Bytes::from_static(b"x")));
            }
            while let Some(memory) = outbound.take(&mut blocks) {
                outbound.finish(memory, &mut blocks);
            }
            let kept = outbound.before.0.as_ref().map_or(0, |segments| segments.capacity());
            assert!(round == 0 || kept == capacity);
            capacity = kept;
        }
        assert!(capacity >= 2 * GATHER_SEGMENTS_MAX as usize);
    }

    #[test]
    fn little_between_gathered_payloads_waits_in_small_blocks() {
        const PAYLOADS: usize = 100;
        let mut blocks = OutboundBlocks::new();
        let mut outbound = Outbound { class: BlockClass::LARGE, ..Outbound::default() };
        for _ in 0..PAYLOADS {
            outbound.append(Prefix::NONE, b"x", &mut blocks);
            outbound.append_shared(Prefix::NONE, Payload::Bytes(Bytes::from_static(b"y")));
        }
        let segments = outbound.before.0.as_deref().into_iter().flatten();
        let held = segments.map(|segment| match segment {
            Segment::Block(block) => block.capacity(),
            Segment::Shared { .. } => 0,
        });
        let held: usize = held.sum();
        assert!(held < 2 * OUTBOUND_LARGE_BYTES, "{held} bytes for {PAYLOADS}");
    }
}
