//! The contract of the seam as a state machine that accepts or refuses a trace, one event after the other.
//!
//! Every test of this suite runs under it, on every engine, with and without faults; recorded traces are
//! played to it too. What it can't see in a trace (that something comes *at last*) is checked at the end
//! of each test: nothing is live, no byte and no block is missing.

use std::collections::{BTreeMap, BTreeSet};

use super::trace::{Ask, ELSEWHERE, Event, Line, Range};
use crate::engine::Token;

#[derive(Debug)]
struct Operation {
    line: Line,
    ask: Ask,
    /// An enter has begun since it was pushed.
    entered: bool,
    /// A cancel names it.
    cancelled: bool,
}

/// One thing that operations work on.
#[derive(Debug, Default)]
struct Place {
    /// Bytes that the far end has written, and those of them that were delivered.
    written: u64,
    delivered: u64,
    /// Bytes that sends were told, or known, to have taken, and those that the far end has read.
    taken: u64,
    read: u64,
    far_ended: bool,
    far_closed: bool,
    near_ended: bool,
    connections: u64,
    accepted: u64,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Referee {
    shared: bool,
    block_bytes: u32,
    /// Blocks that the engine has, and the bytes delivered into them.
    blocks: BTreeMap<u16, u32>,
    operations: BTreeMap<u64, Operation>,
    ended: BTreeSet<u64>,
    places: Vec<Place>,
    staged: usize,
    /// The caller has spun, so that the engine may stage for itself.
    spun: bool,
    pushed: Option<Token>,
    /// Between an enter and the count of what it has left.
    entered: bool,
}

/// Why a trace breaks the contract.
pub(super) type Verdict = Result<(), &'static str>;

fn demand(holds: bool, otherwise: &'static str) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl Referee {
    /// Plays a whole trace; the error names the line.
    pub(super) fn judge(events: &[Event]) -> Result<Self, String> {
        let mut referee = Self::default();
        for (index, event) in events.iter().enumerate() {
            let at = |what| format!("line {}: {event}: {what}", index + 1);
            referee.see(event).map_err(at)?;
        }
        Ok(referee)
    }

    /// From now on the engine may stage for itself.
    pub(super) fn spins(&mut self) {
        self.spun = true;
    }

    /// Operations without an end so far.
    pub(super) fn live(&self) -> usize {
        self.operations.len()
    }

    pub(super) fn is_live(&self, token: Token) -> bool {
        self.operations.contains_key(&token.0)
    }

    /// Bytes that the far end has not read yet.
    pub(super) fn unread(&self, line: Line) -> u64 {
        self.places[line].taken - self.places[line].read
    }

    pub(super) fn taken(&self, line: Line) -> u64 {
        self.places[line].taken
    }

    pub(super) fn delivered(&self, line: Line) -> u64 {
        self.places[line].delivered
    }

    pub(super) fn written(&self, line: Line) -> u64 {
        self.places[line].written
    }

    /// Blocks that the engine has.
    pub(super) fn blocks(&self) -> Vec<u16> {
        self.blocks.keys().copied().collect()
    }

    /// Takes one event in, or says which rule it breaks.
    pub(super) fn see(&mut self, event: &Event) -> Verdict {
        let place = |line: &Line| self.places.get(*line).ok_or("a thing that there is not");
        match event {
            Event::Pool { block_bytes, shared, .. } => {
                self.block_bytes = *block_bytes;
                self.shared = *shared;
            }
            Event::Pair(line) | Event::Listener(line) | Event::Bell(line) => {
                demand(*line == self.places.len(), "things are numbered in order")?;
                self.places.push(Place::default());
            }
            Event::Write(line, len) => {
                demand(!place(line)?.far_ended, "a far end that has ended wrote")?;
                self.places[*line].written += *len as u64;
            }
            Event::Read(line, len) => {
                let place = place(line)?;
                let offered: usize = self
                    .operations
                    .values()
                    .filter(|operation| operation.line == *line)
                    .filter_map(|operation| operation.ask.offers())
                    .sum();
                let read = place.read + *len as u64;
                demand(read <= place.taken + offered as u64, "more was read than was sent")?;
                self.places[*line].read = read;
            }
            Event::FarShut(line) => {
                place(line)?;
                self.places[*line].far_ended = true;
            }
            Event::FarClose(line) => {
                place(line)?;
                self.places[*line].far_ended = true;
                self.places[*line].far_closed = true;
            }
            Event::NearShut(line) => {
                place(line)?;
                self.places[*line].near_ended = true;
            }
            Event::Connect(line) => {
                place(line)?;
                self.places[*line].connections += 1;
            }
            Event::Ring(line) => {
                place(line)?;
            }
            Event::Provide(block) => {
                demand(!self.blocks.contains_key(block), "a block was provided twice")?;
                self.blocks.insert(*block, 0);
            }
            Event::Push { token, line, ask } => {
                place(line)?;
                demand(!self.operations.contains_key(&token.0), "an operation began twice")?;
                self.pushed = Some(*token);
                self.staged += 1;
                if let Ask::Cancel(target) = ask
                    && let Some(target) = self.operations.get_mut(&target.0)
                {
                    target.cancelled = true;
                }
                let operation = Operation {
                    line: *line,
                    ask: ask.clone(),
                    entered: false,
                    cancelled: matches!(ask, Ask::Cancel(_)),
                };
                self.operations.insert(token.0, operation);
            }
            Event::Full => {
                let token = self.pushed.take().ok_or("nothing was pushed")?;
                self.operations.remove(&token.0);
                self.staged -= 1;
            }
            Event::Enter { .. } => {
                demand(!self.entered, "an enter within an enter")?;
                self.entered = true;
                self.operations.values_mut().for_each(|operation| operation.entered = true);
            }
            Event::Done { token, result, more, range } => {
                self.done(*token, *result, *more, range.as_ref())?;
            }
            Event::Staged(count) => {
                demand(std::mem::take(&mut self.entered), "no enter went before")?;
                demand(self.spun || *count <= self.staged, "an enter can't stage")?;
                self.staged = *count;
                if *count == 0 {
                    self.resolve_silent();
                }
            }
            Event::Surrender(blocks) => {
                let given: BTreeSet<u16> = blocks.iter().copied().collect();
                demand(given.len() == blocks.len(), "a block was given back twice")?;
                demand(blocks.len() == self.blocks.len(), "blocks are missing, or too many")?;
                demand(given.iter().eq(self.blocks.keys()), "other blocks than it had")?;
                self.blocks.clear();
            }
        }
        Ok(())
    }

    /// Everything staged has been performed: silent sends of which nothing was told are whole.
    fn resolve_silent(&mut self) {
        let Self { operations, places, ended, .. } = self;
        operations.retain(|token, operation| {
            let silent = operation.ask.is_silent();
            if silent {
                places[operation.line].taken += operation.ask.offers().unwrap_or(0) as u64;
                ended.insert(*token);
            }
            !silent
        });
    }

    fn done(&mut self, token: Token, result: i32, more: bool, range: Option<&Range>) -> Verdict {
        let Some(operation) = self.operations.get(&token.0) else {
            let ended = self.ended.contains(&token.0);
            return Err(if ended {
                "told after its end"
            } else {
                "an operation that there is not"
            });
        };
        let Operation { line, ask, entered, cancelled } = operation;
        let (line, ask, cancelled) = (*line, ask.clone(), *cancelled);
        demand(*entered || cancelled, "performed before the enter")?;
        demand(!more || ask.goes_on(), "only receives, accepts and doorbells go on")?;
        demand(!more || result >= 0, "an error ends an operation")?;
        demand(range.is_none() || ask == Ask::Receive, "only receives bring blocks")?;
        match &ask {
            Ask::Receive => self.received(line, result, more, range, cancelled)?,
            Ask::Accept => {
                let place = &mut self.places[line];
                place.accepted += u64::from(result >= 0);
                demand(place.accepted <= place.connections, "more accepted than connected")?;
            }
            Ask::Cancel(_) => {
                let results = [0, -libc::ENOENT, -libc::EALREADY];
                demand(results.contains(&result), "no result of a cancel")?;
            }
            Ask::Doorbell | Ask::Hangup | Ask::Readable | Ask::Writable => {
                demand(result != 0, "readiness without a mask")?;
            }
            Ask::Send { .. } | Ask::SendParts { .. } => {
                let offered = ask.offers().unwrap_or(0);
                if let Ok(taken) = usize::try_from(result) {
                    demand(taken <= offered, "more was taken than was offered")?;
                    demand(!ask.is_silent() || taken < offered, "a silent send that is whole")?;
                    demand(
                        taken > 0 || offered == 0,
                        "a send that ends with nothing and no error",
                    )?;
                    self.places[line].taken += taken as u64;
                } else {
                    let place = &self.places[line];
                    let ended = place.near_ended || place.far_closed;
                    let broken = [-libc::EPIPE, -libc::ECONNRESET].contains(&result);
                    demand(!broken || ended, "broken although the far end is there")?;
                    let stopped = result == -libc::ECANCELED;
                    demand(!stopped || cancelled, "cancelled although nobody did")?;
                }
            }
        }
        if !more {
            self.operations.remove(&token.0);
            self.ended.insert(token.0);
        }
        Ok(())
    }

    fn received(
        &mut self,
        line: Line,
        result: i32,
        more: bool,
        range: Option<&Range>,
        cancelled: bool,
    ) -> Verdict {
        let place = &mut self.places[line];
        match result {
            1.. => demand(range.is_some_and(|range| range.len.cast_signed() == result), "lengths")?,
            0 => {
                demand(!more, "nothing received, and it goes on")?;
                demand(place.far_ended, "an end that nobody has made")?;
                demand(place.delivered == place.written, "an end before all bytes")?;
            }
            _ if result == -libc::ECONNRESET => {
                demand(place.far_closed, "a reset that nobody has made")?;
            }
            _ if result == -libc::ECANCELED => {
                demand(cancelled, "cancelled although nobody did")?;
            }
            _ => {}
        }
        let Some(&Range { block, offset, len, last, from }) = range else { return Ok(()) };
        let written = self.blocks.get_mut(&block).ok_or("a block that the engine has not")?;
        let end = offset.checked_add(len).ok_or("beyond the block")?;
        demand(end <= self.block_bytes, "beyond the block")?;
        demand(offset == *written, "not behind what was delivered into the block")?;
        demand(len > 0 || last, "a block with nothing in it is given back")?;
        demand(last || self.shared, "a plain block is used once")?;
        demand(last || end < self.block_bytes, "a full block is the last of it")?;
        *written = end;
        if last {
            self.blocks.remove(&block);
        }
        if len > 0 {
            demand(from != ELSEWHERE, "other bytes than were written there")?;
            demand(from == place.delivered, "bytes in another order")?;
            place.delivered += u64::from(len);
            demand(place.delivered <= place.written, "more was received than was written")?;
        }
        Ok(())
    }
}
