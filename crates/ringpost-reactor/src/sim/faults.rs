//! What a simulated kernel may do to a reactor, and how often.

use super::Choices;

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
    Shuffled "shuffled" "Completions come in another order.";
    ShortReceive "short receive" "A receive takes less than there is.";
    ShortSend "short send" "A send takes less than there is room for, and goes on later.";
    SendEnds "send ends short" "A send that waits for room completes before it is whole.";
    SendRefused "send refused" "A send completes with EINTR, EAGAIN, ENOBUFS or ENOMEM.";
    SilentShort "silent short" "A silent send is taken in part.";
    SilentRefused "silent refused" "A silent send completes with EAGAIN, EINTR, ENOBUFS or ENOMEM.";
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
}

/// How often each fault happens, in 256 occasions.
#[derive(Debug, Clone)]
pub struct Rates([u8; Fault::ALL.len()]);

impl Rates {
    /// No faults.
    pub const NONE: Self = Self([0; Fault::ALL.len()]);

    /// Some of the faults, with rates that differ much: one fault may hide another, so that no single
    /// mixture finds everything. [`Fault::PeerGone`] is never among them: what it does to a connection
    /// has to be expected. One time in eight there are none.
    pub fn choose(choices: &mut dyn Choices) -> Self {
        let mut rates = Self::NONE;
        let density = choices.below(8);
        for &fault in Fault::ALL {
            if fault != Fault::PeerGone && choices.below(8) < density {
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
}

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
            enters_max: 200_000,
        }
    }
}
