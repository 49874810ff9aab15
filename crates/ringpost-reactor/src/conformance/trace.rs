//! What passes the seam, and what the world does meanwhile, as lines of text.
//!
//! ```text
//! blocks 8 of 16384 shared      the pool
//! pair 0 | listener 1 | bell 2  things that operations work on, numbered
//! provide 3                     a block is given to the engine
//! push 0.1 0 receive            operation slot.generation, on a thing
//! write 0 5000                  the far end writes as many bytes
//! enter | enter wait            and what it told:
//! done 0.1 5000 more 5000 in 3 at 0 from 0   bytes in block 3 from its byte 0, in the stream from 0
//! done 0.1 0                    the terminal completion
//! staged 0                      what is left staged when the enter has returned
//! ```
//!
//! Descriptors and poll masks differ from run to run: of an accept 0 is noted, of polls and bells 1.

use std::fmt;
use std::str::FromStr;

use crate::engine::Token;

/// A thing that operations work on, by number.
pub(super) type Line = usize;

/// What is asked for. Lengths stand for the bytes, which follow from the position in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    Receive,
    Send { len: usize, silent: bool },
    SendParts { lens: Vec<usize>, silent: bool },
    Accept,
    Doorbell,
    Hangup,
    Readable,
    Writable,
    Cancel(Token),
}

impl Ask {
    /// The bytes that it offers; `None` if it is no send.
    pub(super) fn offers(&self) -> Option<usize> {
        match self {
            Self::Send { len, .. } => Some(*len),
            Self::SendParts { lens, .. } => Some(lens.iter().sum()),
            _ => None,
        }
    }

    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::Send { silent: true, .. } | Self::SendParts { silent: true, .. })
    }

    pub(super) fn goes_on(&self) -> bool {
        matches!(self, Self::Receive | Self::Accept | Self::Doorbell)
    }
}

/// Bytes in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) block: u16,
    pub(super) offset: u32,
    pub(super) len: u32,
    pub(super) last: bool,
    /// Where in the stream these bytes stand; [`ELSEWHERE`] if they are not those that were written.
    pub(super) from: u64,
}

/// Bytes that do not stand where the stream goes on.
pub(super) const ELSEWHERE: u64 = u64::MAX;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Pool {
        blocks: u16,
        block_bytes: u32,
        shared: bool,
    },
    Pair(Line),
    Listener(Line),
    Bell(Line),
    /// The far end has written, read (what was right), shut down its writing, or closed.
    Write(Line, usize),
    Read(Line, usize),
    FarShut(Line),
    FarClose(Line),
    /// The near end was shut down for writing.
    NearShut(Line),
    Connect(Line),
    Ring(Line),
    Provide(u16),
    Push {
        token: Token,
        line: Line,
        ask: Ask,
    },
    /// The push before this found no room.
    Full,
    Enter {
        wait: bool,
    },
    Done {
        token: Token,
        result: i32,
        more: bool,
        range: Option<Range>,
    },
    Staged(usize),
    Surrender(Vec<u16>),
}

fn token(text: &str) -> Option<Token> {
    let (slot, generation) = text.split_once('.')?;
    Some(Token::new(slot.parse().ok()?, generation.parse().ok()?))
}

struct Named(Token);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.slot(), self.0.generation())
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loud = |silent: &bool| if *silent { "silent" } else { "told" };
        match self {
            Self::Receive => f.write_str("receive"),
            Self::Send { len, silent } => write!(f, "send {} {len}", loud(silent)),
            Self::SendParts { lens, silent } => {
                write!(f, "parts {}", loud(silent))?;
                lens.iter().try_for_each(|len| write!(f, " {len}"))
            }
            Self::Accept => f.write_str("accept"),
            Self::Doorbell => f.write_str("doorbell"),
            Self::Hangup => f.write_str("hangup"),
            Self::Readable => f.write_str("readable"),
            Self::Writable => f.write_str("writable"),
            Self::Cancel(target) => write!(f, "cancel {}", Named(*target)),
        }
    }
}

impl Ask {
    fn parse(words: &[&str]) -> Option<Self> {
        Some(match *words {
            ["receive"] => Self::Receive,
            ["send", how, len] => Self::Send { len: len.parse().ok()?, silent: how == "silent" },
            ["parts", how, ref lens @ ..] => {
                let lens: Result<_, _> = lens.iter().map(|len| len.parse()).collect();
                Self::SendParts { lens: lens.ok()?, silent: how == "silent" }
            }
            ["accept"] => Self::Accept,
            ["doorbell"] => Self::Doorbell,
            ["hangup"] => Self::Hangup,
            ["readable"] => Self::Readable,
            ["writable"] => Self::Writable,
            ["cancel", target] => Self::Cancel(token(target)?),
            _ => return None,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool { blocks, block_bytes, shared } => {
                let kind = if *shared { "shared" } else { "plain" };
                write!(f, "blocks {blocks} of {block_bytes} {kind}")
            }
            Self::Pair(line) => write!(f, "pair {line}"),
            Self::Listener(line) => write!(f, "listener {line}"),
            Self::Bell(line) => write!(f, "bell {line}"),
            Self::Write(line, len) => write!(f, "write {line} {len}"),
            Self::Read(line, len) => write!(f, "read {line} {len}"),
            Self::FarShut(line) => write!(f, "far-shut {line}"),
            Self::FarClose(line) => write!(f, "far-close {line}"),
            Self::NearShut(line) => write!(f, "near-shut {line}"),
            Self::Connect(line) => write!(f, "connect {line}"),
            Self::Ring(line) => write!(f, "ring {line}"),
            Self::Provide(block) => write!(f, "provide {block}"),
            Self::Push { token, line, ask } => write!(f, "push {} {line} {ask}", Named(*token)),
            Self::Full => f.write_str("full"),
            Self::Enter { wait } => f.write_str(if *wait { "enter wait" } else { "enter" }),
            Self::Done { token, result, more, range } => {
                write!(f, "done {} {result}", Named(*token))?;
                f.write_str(if *more { " more" } else { "" })?;
                let Some(Range { block, offset, len, last, from }) = range else { return Ok(()) };
                let last = if *last { " last" } else { "" };
                write!(f, " {len} in {block} at {offset} from {from}{last}")
            }
            Self::Staged(count) => write!(f, "staged {count}"),
            Self::Surrender(blocks) => {
                f.write_str("surrender")?;
                blocks.iter().try_for_each(|block| write!(f, " {block}"))
            }
        }
    }
}

impl FromStr for Event {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        parse(&words).ok_or_else(|| format!("not a line of a trace: {text:?}"))
    }
}

fn parse(words: &[&str]) -> Option<Event> {
    let line = |word: &str| word.parse::<Line>().ok();
    Some(match *words {
        ["blocks", blocks, "of", bytes, kind] => Event::Pool {
            blocks: blocks.parse().ok()?,
            block_bytes: bytes.parse().ok()?,
            shared: kind == "shared",
        },
        ["pair", at] => Event::Pair(line(at)?),
        ["listener", at] => Event::Listener(line(at)?),
        ["bell", at] => Event::Bell(line(at)?),
        ["write", at, len] => Event::Write(line(at)?, len.parse().ok()?),
        ["read", at, len] => Event::Read(line(at)?, len.parse().ok()?),
        ["far-shut", at] => Event::FarShut(line(at)?),
        ["far-close", at] => Event::FarClose(line(at)?),
        ["near-shut", at] => Event::NearShut(line(at)?),
        ["connect", at] => Event::Connect(line(at)?),
        ["ring", at] => Event::Ring(line(at)?),
        ["provide", block] => Event::Provide(block.parse().ok()?),
        ["push", name, at, ref ask @ ..] => {
            Event::Push { token: token(name)?, line: line(at)?, ask: Ask::parse(ask)? }
        }
        ["full"] => Event::Full,
        ["enter"] => Event::Enter { wait: false },
        ["enter", "wait"] => Event::Enter { wait: true },
        ["done", name, result, ref rest @ ..] => {
            let more = rest.first() == Some(&"more");
            let range = match rest[usize::from(more)..] {
                [] => None,
                [len, "in", block, "at", offset, "from", from, ref last @ ..] => Some(Range {
                    block: block.parse().ok()?,
                    offset: offset.parse().ok()?,
                    len: len.parse().ok()?,
                    last: last == ["last"],
                    from: from.parse().ok()?,
                }),
                _ => return None,
            };
            Event::Done { token: token(name)?, result: result.parse().ok()?, more, range }
        }
        ["staged", count] => Event::Staged(count.parse().ok()?),
        ["surrender", ref blocks @ ..] => {
            let blocks: Result<_, _> = blocks.iter().map(|block| block.parse()).collect();
            Event::Surrender(blocks.ok()?)
        }
        _ => return None,
    })
}

/// Reads a trace; lines that begin with `#` say what it is.
pub(super) fn read(text: &str) -> Result<Vec<Event>, String> {
    text.lines().filter(|line| !line.starts_with('#')).map(str::parse).collect()
}

/// The text of a trace.
pub(super) fn write(events: &[Event]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}
