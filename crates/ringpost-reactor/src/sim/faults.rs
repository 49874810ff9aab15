//! What a simulated kernel may do to a reactor, and how often.

use std::time::Duration;

use super::Choices;
use crate::spin::Spin;

macro_rules! faults {
    ($($name:ident $text:literal $doc:literal;)*) => {
        /// Something that a kernel may do and that the plain course of events lacks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Fault {
            $(#[doc = $doc] $name,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// True if only a ring has it, and no engine as such.
            pub fn is_of_ring(self) -> bool {
                self as usize > Self::PeerGone as usize
            }

            /// What it is called in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

faults! {
    QueueRefused "queue refused" "A request finds no room in the staging queue.";
    PartialEnter "partial enter" "An enter performs only some of the staged requests.";
    EnterInterrupted "enter interrupted" "An enter that waits returns with nothing.";
    Held "held" "A completion is held back for some enters.";
    AtOnce "at once" "An operation goes on when it is performed, before what is staged behind it.";
    Shuffled "shuffled" "Completions come in another order.";
    ShortReceive "short receive" "A receive takes less than there is.";
    ShortSend "short send" "A send takes less than there is room for, and goes on later.";
    SendEnds "send ends short" "A send that waits for room completes before it is whole.";
    SendRefused "send refused" "A send completes with EINTR, EAGAIN, ENOBUFS or ENOMEM.";
    SilentShort "silent short" "A silent send is taken in part.";
    SilentRefused "silent refused" "A silent send completes with EAGAIN, EINTR, ENOBUFS or ENOMEM.";
    InARow "in a row" "A multishot receive or accept goes on several times before others have their turn.";
    ReceiveEnds "receive ends" "A multishot receive ends with the bytes that it delivers.";
    ReceiveRefused "receive refused" "A receive ends with EINTR or EAGAIN.";
    ReceiveStarves "receive starves" "A receive ends with ENOBUFS although there are blocks.";
    BlockOdd "odd block" "Blocks are filled in another order than they were provided in.";
    BlockFinished "block finished" "A block is finished although it has room.";
    BlockEmpty "empty block" "A block comes back with an end or an error, without a byte.";
    CancelRace "cancel race" "A cancel finds its target ended, or running, or is told before it.";
    Stale "stale completion" "A completion names an operation that has ended, and may bring a block.";
    BellSpurious "spurious bell" "The doorbell rings for nothing, or its poll ends.";
    AcceptEnds "accept ends" "A multishot accept ends with the connection that it delivers.";
    AcceptRefused "accept refused" "An accept ends with EMFILE, ENFILE, ENOMEM or ECONNABORTED.";
    PollSpurious "spurious poll" "A poll completes although nothing is ready, or with EINTR.";
    TimePasses "time passes" "The clock moves by up to a millisecond during an enter.";
    PeerGone "peer gone" "A send or receive fails with EPIPE or ECONNRESET, of itself.";
    EnterBusy "enter busy" "An enter does nothing and says EBUSY, with and without completions that wait.";
    EnterAgain "enter again" "An enter takes no entry and says EAGAIN.";
    EnterFails "enter fails" "An enter says that the ring can't be used, and so does every other.";
    Overflow "overflow" "Completions do not fit the queue.";
    UnknownData "unknown data" "A completion names nothing that was ever started.";
    BufferFlagLost "buffer flag lost" "A buffer is said to be finished although nothing was taken.";
    FlagSpurious "spurious flag" "The flags tell of task work that is not there.";
    Announced "announced" "The engine is told that a peer has read, which wakes it early, or that it is not told any more.";
}

/// How often each fault happens, in 256 occasions.
#[derive(Debug, Clone)]
pub struct Rates([u8; Fault::ALL.len()]);

impl Rates {
    /// No faults.
    pub const NONE: Self = Self([0; Fault::ALL.len()]);

    /// Some of the faults, with rates that differ much: one fault may hide another, so that no single
    /// mixture finds everything. [`Fault::PeerGone`] and [`Fault::EnterFails`] are never among them: what
    /// they do to a connection has to be expected; nor are those that only a ring has. One time in eight
    /// there are none.
    pub fn choose(choices: &mut dyn Choices) -> Self {
        Self::choose_among(choices, false)
    }

    /// As [`Rates::choose`], and those that only a ring has.
    pub fn choose_with_ring(choices: &mut dyn Choices) -> Self {
        Self::choose_among(choices, true)
    }

    fn choose_among(choices: &mut dyn Choices, ring: bool) -> Self {
        let mut rates = Self::NONE;
        let density = choices.below(8);
        let may = |fault: Fault| match fault {
            Fault::PeerGone | Fault::EnterFails => false,
            fault => ring || !fault.is_of_ring(),
        };
        for &fault in Fault::ALL {
            if may(fault) && choices.below(8) < density {
                const RATES: [u8; 6] = [2, 8, 24, 64, 128, 200];
                rates.set(fault, RATES[choices.below(6) as usize]);
            }
        }
        rates
    }

    /// Sets the rate of one fault.
    pub fn set(&mut self, fault: Fault, rate: u8) {
        self.0[fault as usize] = rate;
    }

    /// The rate of one fault.
    pub fn of(&self, fault: Fault) -> u8 {
        self.0[fault as usize]
    }
}

/// What the simulated kernel is able to do, and how much of everything there is.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Requests that can be staged.
    pub queue_max: usize,
    /// Bytes of a receive block.
    pub block_bytes: u32,
    /// Receive blocks.
    pub blocks: u16,
    /// Many receives share a block.
    pub shares_blocks: bool,
    /// Silent sends can be relied on.
    pub silent_sends: bool,
    /// The end of a stream right behind data is seen by a receive; otherwise the kernel loses it.
    pub end_of_file: bool,
    /// Faults until everything goes well again.
    pub faults_max: u32,
    /// Enters until the run counts as one without end.
    pub enters_max: u64,
    /// The io_uring engine runs, on a ring like this; otherwise the simulated engine does.
    pub ring: Option<RingMachine>,
}

/// What a simulated ring is able to do.
#[derive(Debug, Clone)]
pub struct RingMachine {
    /// Submission entries that the engine asks for.
    pub entries_asked: u32,
    /// Submission entries that there is memory for.
    pub entries_max: u32,
    /// Entries of the completion queue.
    pub completions_max: usize,
    /// It can do without an index array (Linux 6.6).
    pub no_sqarray: bool,
    /// Its descriptor can be registered (Linux 5.18).
    pub registers: bool,
    /// An enter may say that it waits for no disk (Linux 6.15).
    pub no_iowait: bool,
    /// How the reactor waits: where it spins for long enough, few connections are served by hand.
    pub spin: Spin,
}

/// As by default, but for its length: it ends after a few looks.
const ADAPTIVE: Spin = Spin::Adaptive { max: Duration::from_micros(200) };

impl Machine {
    /// One that has plenty, or one that lacks something.
    pub fn choose(choices: &mut dyn Choices) -> Self {
        let shares_blocks = choices.below(3) < 2;
        Self {
            queue_max: [64, 1, 2, 3, 8, 4096][choices.below(6) as usize],
            block_bytes: [16 << 10, 64 << 10, 4096, 512, 100][choices.below(5) as usize],
            blocks: [32, 4, 8, 64][choices.below(4) as usize],
            shares_blocks,
            silent_sends: choices.below(8) != 1,
            end_of_file: choices.below(4) != 1,
            faults_max: [400, 20, 100, 1500][choices.below(4) as usize],
            enters_max: 1_000_000,
            ring: None,
        }
    }

    /// The same machine with a ring that has plenty, or lacks something.
    pub fn with_ring(self, choices: &mut dyn Choices) -> Self {
        let entries_max = [64, 1, 2, 4, 8, 256][choices.below(6) as usize];
        // Set-up asks for less until it is granted, but not for less than it can do with.
        let entries_asked = if entries_max < 64 { entries_max } else { entries_max * 4 };
        let ring = RingMachine {
            entries_asked,
            entries_max,
            completions_max: [256, 1, 2, 3, 8, 32][choices.below(6) as usize],
            no_sqarray: choices.below(4) != 1,
            registers: choices.below(4) != 1,
            no_iowait: choices.below(2) == 0,
            spin: [Spin::Never, Spin::Always, ADAPTIVE, Spin::Never][choices.below(4) as usize],
        };
        Self { ring: Some(ring), ..self }
    }
}

impl Default for RingMachine {
    /// One that has plenty.
    fn default() -> Self {
        Self {
            entries_asked: 64,
            entries_max: 64,
            completions_max: 256,
            no_sqarray: true,
            registers: true,
            no_iowait: true,
            spin: Spin::Never,
        }
    }
}
