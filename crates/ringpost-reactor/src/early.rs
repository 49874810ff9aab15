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
//!
//! Where cores wake up quickly the peer loses more time with waking this thread than that gains. So now and then waits
//! with and without watching are compared, and what is not clearly shorter is left alone ([`Trial`]).

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
/// Waits for bytes in a round of a trial: enough that their median is no accident.
const ROUND_WAITS: usize = 32;
/// Rounds of a trial, half of them watched. By twos, because a machine has faster and slower moments.
const TRIAL_ROUNDS: u32 = 8;
/// Parks between two trials: at first, and at most. A trial that ends like the one before is followed by a longer while.
const SETTLED_PARKS_MIN: u32 = 1 << 12;
const SETTLED_PARKS_MAX: u32 = 1 << 16;
/// Parks before the first trial.
const UNTRIED_PARKS: u32 = 64;
/// What watched waits may take to pay, of those that are not, percent: waking up twice costs CPU time.
const WATCHED_PERCENT_MAX: u64 = 90;
/// Pairs of rounds that must say so, of [`TRIAL_ROUNDS`] / 2: one may have met another moment of the machine.
const PAIRS_PAID_MIN: u32 = 3;

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
    trial: Trial,
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
            trial: Trial::default(),
            wakes: EarlyWakes::default(),
        }
    }
}

impl Early {
    /// A park is about to begin for which receives may be watched.
    #[inline]
    pub(crate) fn park(&mut self, now: impl Fn() -> Instant) {
        // While nobody is watched anyway there is nothing to compare.
        if self.rest_parks == 0 {
            self.trial.park(now);
        }
    }

    /// Whether receives are to be watched in a park that is about to begin.
    pub(crate) fn pays(&mut self) -> bool {
        if self.rest_parks == 0 {
            return self.trial.watches;
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
        let leaves = bytes && self.trial.since.is_some() && self.trial.heard(now());
        leaves | ((self.told || bytes && self.announced.is_some()) && self.weigh(bytes, now))
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
        self.trial.give_up();
        self.unpaid_in_a_row = 0;
        self.announced = None;
        self.rest_parks = self.next_rest_parks;
        self.next_rest_parks = (self.next_rest_parks * 2).min(REST_PARKS_MAX);
    }
}

/// Whether waits for bytes are shorter with watching.
///
/// ```text
///   Settled --(so many parks)--> Rounds, by twos: one is watched, one is not --> Settled, with what most pairs say
/// ```
///
/// Which of a pair comes first, and how long it is settled, has some chance in it: else two peers that both try would
/// measure each other's rounds, in the same order for ever.
#[derive(Debug)]
struct Trial {
    /// Receives are to be watched, as far as this goes.
    watches: bool,
    /// What the last trial said; as long as there was none, that it pays.
    verdict: bool,
    /// Parks until the next trial; zero while one goes on.
    settled_parks: u32,
    next_settled_parks: u32,
    /// When the wait began that is measured.
    since: Option<Instant>,
    /// Rounds that have ended.
    rounds: u32,
    /// The waits of this round, nanoseconds.
    waits: [u32; ROUND_WAITS],
    count: usize,
    /// Medians of the last round that was not watched and of the last that was, nanoseconds.
    medians: [u32; 2],
    /// Pairs of rounds of which the watched one was clearly shorter.
    pairs_paid: u32,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            watches: true,
            verdict: true,
            settled_parks: UNTRIED_PARKS,
            next_settled_parks: SETTLED_PARKS_MIN,
            since: None,
            rounds: 0,
            waits: [0; ROUND_WAITS],
            count: 0,
            medians: [0; 2],
            pairs_paid: 0,
        }
    }
}

impl Trial {
    #[inline]
    fn park(&mut self, now: impl Fn() -> Instant) {
        if self.settled_parks > 0 {
            self.settled_parks -= 1;
        } else {
            // What was parked for before was something else.
            self.since = Some(now());
        }
    }

    /// The bytes have come that a measured wait was for. True if nobody is to be watched from now on.
    #[cold]
    fn heard(&mut self, now: Instant) -> bool {
        let Some(since) = self.since.take() else { return false };
        self.waits[self.count] = u32::try_from((now - since).as_nanos()).unwrap_or(u32::MAX);
        self.count += 1;
        if self.count < ROUND_WAITS {
            return false;
        }
        self.count = 0;
        let (_, median, _) = self.waits.select_nth_unstable(ROUND_WAITS / 2);
        self.medians[usize::from(self.watches)] = *median;
        self.rounds += 1;
        if !self.rounds.is_multiple_of(2) {
            self.watches = !self.watches;
            return !self.watches;
        }
        let [without, with] = self.medians.map(u64::from);
        self.pairs_paid += u32::from(with * 100 <= without * WATCHED_PERCENT_MAX);
        let chance = self.waits.iter().fold(0_u32, |chance, wait| chance.rotate_left(5) ^ wait);
        if self.rounds < TRIAL_ROUNDS {
            self.watches = chance.count_ones().is_multiple_of(2);
        } else {
            self.settle(self.pairs_paid >= PAIRS_PAID_MIN, chance);
        }
        !self.watches
    }

    fn settle(&mut self, pays: bool, chance: u32) {
        let parks = if pays == self.verdict { self.next_settled_parks } else { SETTLED_PARKS_MIN };
        self.next_settled_parks = (parks * 2).min(SETTLED_PARKS_MAX);
        self.verdict = pays;
        self.give_up();
        self.settled_parks = parks - chance % (parks / 4);
    }

    /// What has been measured is worth nothing.
    fn give_up(&mut self) {
        self.watches = self.verdict;
        self.since = None;
        self.rounds = 0;
        self.count = 0;
        self.pairs_paid = 0;
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

    /// Parks and hears of bytes until a trial begins, then through all of it, with waits this long, which may depend on
    /// the round. The parks before it; at the end it says whether receives go on to be watched.
    fn trial(
        early: &mut Early,
        now: &mut Instant,
        wait_us: impl Fn(bool, usize) -> u64,
    ) -> (u32, bool) {
        let mut parks = 0;
        let mut waits = Vec::new();
        let mut random = u64::from(early.trial.settled_parks);
        while waits.len() < ROUND_WAITS * TRIAL_ROUNDS as usize {
            early.park(|| *now);
            if early.trial.since.is_none() {
                parks += 1;
                assert!(!early.judge(true, || *now));
                continue;
            }
            if waits.len() % 3 == 1 {
                // That was a wait for a timer: what comes next is another.
                *now += Duration::from_millis(50);
                assert!(!early.judge(false, || *now));
                early.park(|| *now);
            }
            let watched = early.pays();
            let wait_us = wait_us(watched, waits.len() / ROUND_WAITS);
            waits.push(watched);
            // One in a hundred is a mishap.
            let mishap = waits.len() % 100 == 7;
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let noise = Duration::from_nanos(random >> 56);
            *now += Duration::from_micros(if mishap { 100_000 } else { wait_us }) + noise;
            let leaves = early.judge(true, || *now);
            let ends = waits.len() % ROUND_WAITS == 0;
            assert_eq!(leaves, ends && !early.pays(), "wait {}", waits.len());
        }
        for pair in waits.chunks(2 * ROUND_WAITS) {
            let (first, second) = pair.split_at(ROUND_WAITS);
            assert!(first.iter().all(|watched| *watched == first[0]));
            assert!(second.iter().all(|watched| *watched != first[0]));
        }
        (parks, early.pays())
    }

    /// Whether a trial took so many parks to come, or up to a quarter less.
    fn about(parks: u32, expected: u32) -> bool {
        (expected - expected / 4..=expected).contains(&parks)
    }

    #[test]
    fn receives_are_watched_where_waits_are_clearly_shorter_with_it() {
        let mut early = Early::default();
        let mut now = Instant::now();
        let (least, most) = (SETTLED_PARKS_MIN, SETTLED_PARKS_MAX);
        let mut expected = UNTRIED_PARKS;
        let cases = [
            (45, 67, true, least),
            (44, 50, true, 2 * least),
            (46, 50, false, least),
            (60, 50, false, 2 * least),
            (50, 50, false, 4 * least),
            (50, 50, false, 8 * least),
            (50, 50, false, most),
            (50, 50, false, most),
            (20, 50, true, least),
            (20, 50, true, 2 * least),
        ];
        for (with, without, pays, then) in cases {
            let wait = |watched, _| if watched { with } else { without };
            let (parks, found) = trial(&mut early, &mut now, wait);
            assert!(about(parks, expected), "{parks} parks instead of {expected}");
            assert_eq!(found, pays, "{with} µs with, {without} without");
            expected = then;
        }
    }

    #[test]
    fn one_slow_round_decides_nothing() {
        for slow in 0..TRIAL_ROUNDS as usize {
            for (with, without) in [(35, 50), (50, 50)] {
                let wait = |watched, round| {
                    let usual = if watched { with } else { without };
                    if round == slow { 4 * usual } else { usual }
                };
                let (_, found) = trial(&mut Early::default(), &mut Instant::now(), wait);
                assert_eq!(found, with < without, "round {slow} was slow");
            }
        }
    }

    #[test]
    fn the_order_of_the_rounds_is_left_to_chance() {
        let mut early = Early::default();
        let mut now = Instant::now();
        let firsts = std::cell::RefCell::new(Vec::new());
        for _ in 0..8 {
            trial(&mut early, &mut now, |watched, round| {
                if round % 2 == 0 {
                    firsts.borrow_mut().push(watched);
                }
                if watched { 20 } else { 50 }
            });
        }
        let firsts = firsts.into_inner();
        let watched = firsts.iter().filter(|watched| **watched).count();
        assert!((firsts.len() / 4..=firsts.len() / 4 * 3 + firsts.len() / 8).contains(&watched));
    }

    #[test]
    fn nothing_is_tried_while_nobody_is_watched_anyway() {
        let mut early = Early::default();
        let now = Instant::now();
        for _ in 0..=UNTRIED_PARKS {
            early.park(|| now);
        }
        assert!(early.trial.since.is_some());
        early.trial.watches = false;
        early.rest();
        for _ in 0..REST_PARKS_MIN {
            early.park(|| now);
            assert!(early.trial.since.is_none() && !early.pays());
        }
        early.park(|| now);
        assert!(early.trial.since.is_some() && early.pays());
    }

    #[test]
    fn whoever_is_never_answered_is_in_no_hurry_to_be_tried() {
        let mut early = Early::default();
        let now = Instant::now();
        for _ in 0..10_000 {
            early.park(|| now);
            assert!(!early.judge(false, || now));
        }
        assert!(early.pays());
    }
}
