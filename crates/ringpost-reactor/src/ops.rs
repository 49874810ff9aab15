//! The op table: every operation in flight, and everything that it keeps alive.
//!
//! # Invariants
//!
//! * **T1** A slot exists from before its request is pushed until its terminal completion (or, for a
//!   silent send, until the enter that performed it), whatever `enter` returned and whether or not
//!   anybody still wants the result. It owns the send memory and, through its owner, the descriptor. What has not
//!   ended when the reactor is shut down keeps its memory for ever; its descriptor may go, because nothing more
//!   is asked of the engine, and the kernel holds the files it works on.
//! * **T2** A token's generation is that of its slot's current use; a completion whose generation
//!   differs is stale and touches nothing.

use std::rc::Rc;

use slab::Slab;

use crate::engine::{Engine, Request, Token};
use crate::listener::ListenerCell;
use crate::memory::shadow;
use crate::outbound::{SendMemory, SendView};
use crate::packet_cell::PacketCell;
use crate::stream::StreamCell;

/// Whom an operation works for.
#[derive(Debug)]
pub(crate) enum Owner {
    Receive(Rc<StreamCell>),
    Send(Rc<StreamCell>),
    Hangup(Rc<StreamCell>),
    Readable(Rc<StreamCell>),
    Writable(Rc<StreamCell>),
    PacketsReadable(Rc<PacketCell>),
    PacketsWritable(Rc<PacketCell>),
    Accept(Rc<ListenerCell>),
    Doorbell,
    Cancel,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) owner: Owner,
    pub(crate) memory: Option<SendMemory>,
}

/// What could not be started, given back.
#[derive(Debug)]
pub(crate) struct NotStarted {
    pub(crate) memory: Option<SendMemory>,
}

/// Operations in flight at once: about two for each of half a million connections.
const OPS_MAX: usize = 1 << 20;

/// Places that what waits for peers leaves for sends, and sends for cancels: otherwise a table that is full of receives
/// could neither be drained nor have any of them ended.
const SPARE: usize = 1 << 14;

/// Which part of the table an operation may fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// Receives and whatever else may wait for ever, for what others do.
    Waits,
    /// Sends, and waits for their room.
    Sends,
    /// Cancels, which end soon and make room, and the doorbell, of which there is one.
    Ends,
}

impl Share {
    fn of(request: &Request) -> Self {
        match request {
            Request::Receive { .. }
            | Request::Accept { .. }
            | Request::Hangup { .. }
            | Request::Readable { .. } => Self::Waits,
            Request::Send { .. } | Request::SendMessage { .. } | Request::Writable { .. } => {
                Self::Sends
            }
            Request::Cancel { .. } | Request::Doorbell { .. } => Self::Ends,
        }
    }

    fn max(self) -> usize {
        match self {
            Self::Waits => OPS_MAX - 2 * SPARE,
            Self::Sends => OPS_MAX - SPARE,
            Self::Ends => OPS_MAX,
        }
    }
}

/// Operations that there is address space for from the start, 3 MiB of it: tables that grow leave holes
/// behind them in the heap, while pages that nobody touches cost nothing.
const OPS_RESERVED: usize = 1 << 16;

#[derive(Debug)]
pub(crate) struct Ops {
    slots: Slab<Slot>,
    generations: Vec<u32>,
    /// Silent sends pushed since the last time everything staged had been performed.
    silent: Vec<Token>,
    /// Completions that named no operation in flight.
    pub(crate) stale: u64,
    pub(crate) started: u64,
}

impl Default for Ops {
    fn default() -> Self {
        Self {
            slots: Slab::with_capacity(OPS_RESERVED),
            generations: Vec::with_capacity(OPS_RESERVED),
            silent: Vec::new(),
            stale: 0,
            started: 0,
        }
    }
}

impl Ops {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Starts an operation that works on no memory of ours.
    pub(crate) fn start(
        &mut self,
        engine: &mut impl Engine,
        owner: Owner,
        request: Request,
    ) -> Option<Token> {
        debug_assert!(!matches!(request, Request::Send { .. } | Request::SendMessage { .. }));
        let token = self.reserve(Slot { owner, memory: None }, Share::of(&request))?;
        // SAFETY: the request points to no memory; receives go to pool blocks, which stay mapped as
        // long as the engine holds them (pool invariant P3), and the owner in the slot keeps the
        // descriptor open (T1).
        let pushed = unsafe { engine.push(token, request) };
        if pushed.is_ok() {
            self.started += 1;
            return Some(token);
        }
        self.release(token);
        None
    }

    /// Starts a send, which takes the memory over.
    pub(crate) fn start_send(
        &mut self,
        engine: &mut impl Engine,
        stream: &Rc<StreamCell>,
        memory: SendMemory,
        silent: bool,
    ) -> Result<Token, NotStarted> {
        if self.slots.len() >= Share::Sends.max() {
            return Err(NotStarted { memory: Some(memory) });
        }
        let token =
            self.insert(Slot { owner: Owner::Send(Rc::clone(stream)), memory: Some(memory) });
        let Some(Slot { memory: Some(memory), .. }) = self.slots.get_mut(token.slot()) else {
            return Err(NotStarted { memory: None });
        };
        let fd = stream.raw_fd();
        let request = match memory.view() {
            SendView::Plain { data, len } => Request::Send { fd, data, len, silent },
            SendView::Gathered { header } => Request::SendMessage { fd, header, silent },
        };
        // SAFETY: the slot owns the memory and keeps it unchanged until the terminal completion, or
        // for a silent send until `resolve_silent` (T1); its heap parts do not move with the slot.
        // The owner keeps the descriptor open.
        let pushed = unsafe { engine.push(token, request) };
        if pushed.is_err() {
            return Err(NotStarted { memory: self.release(token).and_then(|slot| slot.memory) });
        }
        self.started += 1;
        if cfg!(ringpost_asan)
            && let Some(Slot { memory: Some(memory), .. }) = self.slots.get(token.slot())
        {
            memory.seal();
        }
        if silent {
            self.silent.push(token);
        }
        Ok(token)
    }

    fn reserve(&mut self, slot: Slot, share: Share) -> Option<Token> {
        if self.slots.len() >= share.max() {
            return None;
        }
        Some(self.insert(slot))
    }

    #[inline(always)]
    fn insert(&mut self, slot: Slot) -> Token {
        let key = self.slots.insert(slot);
        if key == self.generations.len() {
            self.generations.push(0);
        }
        Token::new(key, self.generations[key])
    }

    pub(crate) fn has_silent(&self) -> bool {
        !self.silent.is_empty()
    }

    pub(crate) fn is_current(&self, token: Token) -> bool {
        self.generations.get(token.slot()) == Some(&token.generation())
            && self.slots.contains(token.slot())
    }

    /// The slot of an operation in flight; counts a stale token.
    #[inline]
    pub(crate) fn get(&mut self, token: Token) -> Option<&mut Slot> {
        if self.is_current(token) {
            self.slots.get_mut(token.slot())
        } else {
            self.stale += 1;
            None
        }
    }

    /// Ends an operation: its slot is free for another generation.
    pub(crate) fn release(&mut self, token: Token) -> Option<Slot> {
        if !self.is_current(token) {
            return None;
        }
        let generation = &mut self.generations[token.slot()];
        *generation = generation.wrapping_add(1);
        let slot = self.slots.remove(token.slot());
        if let Some(memory) = &slot.memory {
            memory.unseal();
        }
        Some(slot)
    }

    /// Once everything staged has been performed and every completion so far is in the dispatcher's
    /// hands: the silent sends without completion are whole. Calls `done` for each.
    pub(crate) fn resolve_silent(&mut self, mut done: impl FnMut(Rc<StreamCell>, SendMemory)) {
        let mut silent = std::mem::take(&mut self.silent);
        for token in silent.drain(..) {
            if let Some(Slot { owner: Owner::Send(stream), memory: Some(memory) }) =
                self.release(token)
            {
                done(stream, memory);
            }
        }
        self.silent = silent;
    }

    /// Everything in flight, for shutdown.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = (Token, &Slot)> {
        self.slots.iter().map(|(key, slot)| (Token::new(key, self.generations[key]), slot))
    }

    /// Silent sends that have not been told whole.
    #[cfg(feature = "sim")]
    pub(crate) fn silent_sends(&self) -> impl Iterator<Item = (&Rc<StreamCell>, &SendMemory)> {
        self.silent.iter().filter_map(|token| match self.slots.get(token.slot()) {
            Some(Slot { owner: Owner::Send(stream), memory: Some(memory) }) => {
                Some((stream, memory))
            }
            _ => None,
        })
    }

    /// Everything in flight, and whether it is a silent send.
    #[cfg(feature = "sim")]
    pub(crate) fn expected(&self) -> impl Iterator<Item = (Token, bool)> {
        self.in_flight().map(|(token, _)| (token, self.silent.contains(&token)))
    }

    /// True for a silent send that may still be told short.
    #[cfg(feature = "sim")]
    pub(crate) fn is_silent(&self, token: Token) -> bool {
        self.is_current(token) && self.silent.contains(&token)
    }

    /// In a forked child, where the kernel works for the parent alone: all of it, to be dropped where nothing is
    /// borrowed.
    pub(crate) fn let_go(&mut self) -> impl Sized + use<> {
        std::mem::take(&mut self.slots)
    }

    /// Gives up on operations whose end was not seen: their memory is leaked, because the kernel may still use it.
    /// Who owned them is given back, to be dropped where nothing is borrowed. The kernel holds the files it works on
    /// itself, until the engine is gone, so that their descriptors need not stay open.
    pub(crate) fn leak(&mut self) -> Vec<Owner> {
        let (owners, memory): (Vec<_>, Vec<_>) = std::mem::take(&mut self.slots)
            .into_iter()
            .map(|(_, slot)| (slot.owner, slot.memory))
            .unzip();
        let memory: Vec<SendMemory> = memory.into_iter().flatten().collect();
        if !memory.is_empty() {
            shadow::leak(std::ptr::from_ref(Box::leak(Box::new(memory))));
        }
        owners
    }
}

impl Drop for Ops {
    /// Something is in flight only if the shutdown was left by a panic (T1).
    fn drop(&mut self) {
        drop(self.leak());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_reaches_nothing() {
        let mut ops = Ops::default();
        let first =
            ops.reserve(Slot { owner: Owner::Doorbell, memory: None }, Share::Ends).unwrap();
        assert!(ops.get(first).is_some());
        ops.release(first).unwrap();
        let second = ops.reserve(Slot { owner: Owner::Cancel, memory: None }, Share::Ends).unwrap();
        assert_eq!(first.slot(), second.slot());
        assert!(ops.get(first).is_none());
        assert!(ops.release(first).is_none());
        assert_eq!(ops.stale, 1);
        assert!(ops.get(Token(u64::MAX)).is_none());
        assert!(ops.get(second).is_some());
    }

    #[test]
    fn what_is_in_flight_is_never_freed() {
        use std::sync::atomic::{AtomicBool, Ordering};
        static FREED: AtomicBool = AtomicBool::new(false);
        struct Payload([u8; 4096]);
        impl AsRef<[u8]> for Payload {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        impl Drop for Payload {
            fn drop(&mut self) {
                FREED.store(true, Ordering::Relaxed);
            }
        }
        let bytes = bytes::Bytes::from_owner(Payload([0; 4096]));
        let mut outbound = crate::outbound::Outbound::default();
        let mut blocks = crate::memory::OutboundBlocks::new();
        let payload = crate::outbound::Payload::Bytes(bytes);
        outbound.append_shared(crate::memory::Prefix::NONE, payload);
        let memory = outbound.take(&mut blocks).unwrap();
        let mut ops = Ops::default();
        let slot = Slot { owner: Owner::Doorbell, memory: Some(memory) };
        ops.reserve(slot, Share::Sends).unwrap();
        drop((ops, outbound, blocks));
        assert!(!FREED.load(Ordering::Relaxed));
    }

    #[test]
    #[cfg_attr(miri, ignore = "a million slots take hours")]
    fn one_more_than_the_bound_is_not_started() {
        let cancel = || Slot { owner: Owner::Cancel, memory: None };
        let mut ops = Ops::default();
        let fill = |ops: &mut Ops, share| -> Vec<Token> {
            std::iter::from_fn(|| ops.reserve(cancel(), share)).collect()
        };
        let target = Token::new(0, 0);
        assert_eq!(Share::of(&Request::Receive { fd: 0 }), Share::Waits);
        assert_eq!(Share::of(&Request::Writable { fd: 0 }), Share::Sends);
        assert_eq!(Share::of(&Request::Cancel { target, fd: 0 }), Share::Ends);
        // What waits for peers leaves room for sends, and sends leave room for cancels.
        let mut tokens = fill(&mut ops, Share::Waits);
        assert_eq!((tokens.len(), ops.len()), (OPS_MAX - 2 * SPARE, OPS_MAX - 2 * SPARE));
        tokens.extend(fill(&mut ops, Share::Sends));
        assert_eq!(ops.len(), OPS_MAX - SPARE);
        tokens.extend(fill(&mut ops, Share::Ends));
        assert_eq!((tokens.len(), ops.len()), (OPS_MAX, OPS_MAX));
        ops.release(tokens[7]).unwrap();
        for share in [Share::Waits, Share::Sends] {
            assert!(fill(&mut ops, share).is_empty());
        }
        let token = ops.reserve(cancel(), Share::Ends);
        assert_eq!(token.map(Token::slot), Some(7));
        assert!(fill(&mut ops, Share::Ends).is_empty());
    }
}
