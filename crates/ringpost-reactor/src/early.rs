//! Waking up early: the peer's reading announces its answer.
//!
//! Most of a round trip between two sleeping threads is the time that the second one's core takes to wake up. When
//! the peer takes bytes out of its socket, the kernel tells the socket that they came from that there is room again
//! (`unix_write_space` in the kernel's `net/unix/af_unix.c`), before the peer's call has returned. A thread that blocks
//! in read(2) is woken by that too, and while it wakes up, finds nothing and goes on to sleep, the answer comes. One
//! that waits for bytes in epoll_wait(2) or in a ring sleeps on, and begins to wake up with the answer. So engines with
//! few receives have their sockets watched for room as well while their owner parks, edge-triggered, and nobody above
//! hears of it (ARCHITECTURE.md, measured decisions).
//!
//! A wake-up that no bytes come with, or soon after, is one for nothing: after some of them in a row nobody is
//! watched for a while, longer each time.

use std::time::{Duration, Instant};

/// Receives watched at most. A server of more has something to do when it wakes up, and one event more for each
/// message is then only a burden.
pub(crate) const WATCHED_MAX: usize = 16;
/// Places of a table that are searched for receives to watch. One that has grown larger belongs to a server of many;
/// what receives behind these goes without.
pub(crate) const SEARCHED_MAX: usize = 1024;
/// Wake-ups for nothing in a row, until there are none for a while.
const UNPAID_MAX: u32 = 16;
/// How long after a wake-up bytes may come for it to have paid. Later the thread sleeps as deeply as before.
const PAID_WITHIN: Duration = Duration::from_micros(30);
/// Parks of the first such while, and of the longest.
const REST_PARKS_MIN: u32 = 256;
const REST_PARKS_MAX: u32 = 1 << 16;

/// Wake-ups because a peer had read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EarlyWakes {
    /// Bytes came with them or soon after.
    pub(crate) paid: u64,
    /// None did.
    pub(crate) unpaid: u64,
}

/// Whether it pays to wake up early.
#[derive(Debug)]
pub(crate) struct Early {
    /// A peer has read since this was last judged.
    told: bool,
    /// When one had, and no bytes have come since.
    announced: Option<Instant>,
    unpaid_in_a_row: u32,
    /// Parks until somebody is watched again.
    rest_parks: u32,
    next_rest_parks: u32,
    pub(crate) wakes: EarlyWakes,
}

impl Default for Early {
    fn default() -> Self {
        Self {
            told: false,
            announced: None,
            unpaid_in_a_row: 0,
            rest_parks: 0,
            next_rest_parks: REST_PARKS_MIN,
            wakes: EarlyWakes::default(),
        }
    }
}

impl Early {
    /// Whether receives are to be watched in a park that is about to begin.
    pub(crate) fn pays(&mut self) -> bool {
        if self.rest_parks == 0 {
            return true;
        }
        self.rest_parks -= 1;
        false
    }

    /// A peer has read.
    pub(crate) fn tell(&mut self) {
        self.told = true;
    }

    /// After an enter: `bytes` says whether some have come with it. True if peers have read for nothing so often that
    /// nobody is to be watched for a while.
    #[inline]
    pub(crate) fn judge(&mut self, bytes: bool, now: impl Fn() -> Instant) -> bool {
        (self.told || bytes && self.announced.is_some()) && self.weigh(bytes, now)
    }

    fn weigh(&mut self, bytes: bool, now: impl Fn() -> Instant) -> bool {
        let told = std::mem::take(&mut self.told);
        let earlier = self.announced.take();
        let soon = |at: Instant| now() - at <= PAID_WITHIN;
        if bytes && (told || earlier.is_some_and(soon)) {
            self.wakes.paid += 1;
            self.unpaid_in_a_row = 0;
            self.next_rest_parks = REST_PARKS_MIN;
            return false;
        }
        if !bytes {
            self.announced = Some(now());
        }
        if bytes || earlier.is_some() {
            self.wakes.unpaid += 1;
            self.unpaid_in_a_row += 1;
        }
        if self.unpaid_in_a_row < UNPAID_MAX {
            return false;
        }
        self.rest();
        true
    }

    /// Nobody is to be watched for a while.
    pub(crate) fn rest(&mut self) {
        self.unpaid_in_a_row = 0;
        self.announced = None;
        self.rest_parks = self.next_rest_parks;
        self.next_rest_parks = (self.next_rest_parks * 2).min(REST_PARKS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wake-up for nothing, after which the bytes come late. True if it was one too many.
    fn unpaid(early: &mut Early, now: &mut Instant) -> bool {
        early.tell();
        assert!(!early.judge(false, || *now));
        *now += PAID_WITHIN + Duration::from_micros(1);
        early.judge(true, || *now)
    }

    #[test]
    fn bytes_that_come_along_or_soon_pay() {
        let mut early = Early::default();
        let mut now = Instant::now();
        early.tell();
        assert!(!early.judge(true, || now));
        early.tell();
        assert!(!early.judge(false, || now));
        now += PAID_WITHIN;
        assert!(!early.judge(true, || now));
        assert!(!early.judge(true, || now));
        assert_eq!(early.wakes, EarlyWakes { paid: 2, unpaid: 0 });
    }

    #[test]
    fn too_many_for_nothing_end_it_for_longer_each_time() {
        const { assert!(REST_PARKS_MIN < REST_PARKS_MAX) };
        let mut early = Early::default();
        let mut now = Instant::now();
        let mut parks = REST_PARKS_MIN;
        for round in 1..=12 {
            for _ in 1..UNPAID_MAX {
                assert!(!unpaid(&mut early, &mut now));
            }
            assert!(unpaid(&mut early, &mut now));
            assert_eq!(early.wakes.unpaid, round * u64::from(UNPAID_MAX));
            for _ in 0..parks {
                assert!(!early.pays());
            }
            assert!(early.pays());
            parks = (parks * 2).min(REST_PARKS_MAX);
        }
        early.tell();
        early.judge(true, || now);
        for _ in 0..UNPAID_MAX {
            unpaid(&mut early, &mut now);
        }
        let rest = (0..).take_while(|_| !early.pays()).count();
        assert_eq!(rest, REST_PARKS_MIN as usize, "what paid in between counts");
    }

    #[test]
    fn what_is_told_again_and_again_without_bytes_is_for_nothing() {
        let mut early = Early::default();
        let now = Instant::now();
        for _ in 0..UNPAID_MAX {
            early.tell();
            assert!(!early.judge(false, || now));
        }
        early.tell();
        assert!(early.judge(false, || now));
    }
}
