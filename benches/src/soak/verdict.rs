//! Flat, or not.
//!
//! After a warm-up the rest of a run is cut into two parts, the middle and the last one. What may be high for a
//! moment but has a floor (descriptors, operations, timers, lent blocks) is compared by its least value: a leak
//! lifts the floor for good, a busy machine does not. What wanders (memory, delays, rates, CPU time) is compared by
//! its median. What must hold always is looked at in every sample.
//!
//! Memory rises by a step when there is more to do at once than ever before, on a machine that others use; a leak
//! goes on. So its growth per minute is the least of the three between the quarters of both parts. Delays and rates are compared as
//! multiples of what a bare pair of sockets had at the same time ([`control`](super::control)).

use std::ops::Range;

use super::{
    census::Census,
    clients::Kind,
    trial::{Record, SERVER, Sample},
};

/// The part of a run that is left out at its start.
const WARM_UP_PART: f64 = 0.2;
/// Fewer samples than this in a part say nothing about a trend.
const PART_SAMPLES_MIN: usize = 20;
/// From this length on a run has to have enough samples, seconds.
const TREND_SECONDS_MIN: f64 = 120.0;
/// How much a floor may rise: a busy machine has this many things under way at any time.
const FLOOR_RISE_MAX: f64 = 4.0;
/// How much memory of a process may grow from the middle to the last part, KiB, apart from its receive pool:
/// that is memory from the start, but for the kernel each page only when it is first written to.
const MEMORY_GROWTH_KIB_MAX: f64 = 2048.0;
/// A block of the receive pool, KiB.
const BLOCK_KIB: f64 = 256.0;
/// And how fast, KiB a minute, where the parts are far enough apart to tell.
const MEMORY_GROWTH_KIB_PER_MINUTE_MAX: f64 = 320.0;
/// How far the middles of the parts have to be apart for a growth per minute, minutes.
const MINUTES_APART_MIN: f64 = 1.0;
/// How many times longer a delay may be in the last part, as a multiple of the bare one. Generous: others use the
/// machine.
const DELAY_RATIO_MAX: f64 = 6.0;
/// Longest round trip that a busy machine explains, seconds: whoever sleeps over something is woken by something else
/// some time.
const LONGEST_TRIP_SECONDS_MAX: f64 = 10.0;
/// How many times fewer messages there may be, as a multiple of the bare ones.
const RATE_RATIO_MAX: f64 = 4.0;
/// How many times more CPU time a message may take.
const CPU_RATIO_MAX: f64 = 3.0;

/// One row of the table.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct Verdict {
    pub(crate) process: String,
    pub(crate) what: &'static str,
    pub(crate) start: f64,
    pub(crate) middle: f64,
    pub(crate) end: f64,
    /// `None` is flat.
    pub(crate) complaint: Option<String>,
}

/// Judges a whole run.
pub(crate) fn judge(record: &Record) -> Vec<Verdict> {
    let mut verdicts = trends(&record.samples);
    verdicts.extend(always(&record.samples));
    verdicts.push(longest_trip(&record.samples));
    verdicts.push(at_end(SERVER, &record.before, &record.after));
    for (name, before, after) in &record.clients {
        verdicts.push(at_end(name, before, after));
    }
    let count = to_f64(record.residue.len() as u64);
    verdicts.push(Verdict {
        process: SERVER.to_owned(),
        what: "files left in its directory",
        start: 0.0,
        middle: 0.0,
        end: count,
        complaint: (count > 0.0).then(|| format!("left: {}", record.residue.join(", "))),
    });
    verdicts
}

/// What is left of a load, by name: before, now.
pub(crate) fn leftovers(before: &Census, now: &Census) -> Vec<(&'static str, u64, u64)> {
    let pairs = [
        ("descriptors", before.descriptors, now.descriptors),
        ("connections", before.connections_open, now.connections_open),
        ("lingering connections", before.connections_lingering, now.connections_lingering),
        ("operations", before.operations_in_flight, now.operations_in_flight),
        ("timers", before.timers_pending, now.timers_pending),
        ("lent blocks", before.pool_blocks_leased, now.pool_blocks_leased),
    ];
    pairs.into_iter().filter(|(_, before, now)| before != now).collect()
}

fn at_end(process: &str, before: &Census, after: &Census) -> Verdict {
    let left = leftovers(before, after);
    let text = |&(what, before, after): &(&str, u64, u64)| format!("{what} {before} -> {after}");
    Verdict {
        process: process.to_owned(),
        what: "left when the load has ended",
        start: 0.0,
        middle: 0.0,
        end: to_f64(left.len() as u64),
        complaint: (!left.is_empty()).then(|| left.iter().map(text).collect::<Vec<_>>().join(", ")),
    }
}

/// What holds at every moment.
fn always(samples: &[Sample]) -> Vec<Verdict> {
    let lost = |sample: &Sample| to_f64(sample.census.blocks_lost());
    let stale = |sample: &Sample| to_f64(sample.census.completions_stale);
    [("blocks lost or doubled", &lost as &dyn Fn(&Sample) -> f64), ("stale completions", &stale)]
        .into_iter()
        .map(|(what, value)| {
            let worst = samples.iter().max_by(|a, b| value(a).total_cmp(&value(b)));
            let most = worst.map_or(0.0, value);
            Verdict {
                process: "all".to_owned(),
                what,
                start: 0.0,
                middle: 0.0,
                end: most,
                complaint: worst.filter(|_| most > 0.0).map(|worst| {
                    format!("{most} in {} after {:.0} s", worst.process, worst.seconds)
                }),
            }
        })
        .collect()
}

/// No message of those whose round trips are timed waits until something else happens.
fn longest_trip(samples: &[Sample]) -> Verdict {
    let longest = samples.iter().max_by_key(|sample| sample.census.longest_ns);
    let seconds = longest.map_or(0.0, |sample| to_f64(sample.census.longest_ns) / 1e9);
    Verdict {
        process: Kind::Pingpong.name().to_owned(),
        what: "longest round trip, s",
        start: 0.0,
        middle: 0.0,
        end: seconds,
        complaint: longest.filter(|_| seconds > LONGEST_TRIP_SECONDS_MAX).map(|sample| {
            format!(
                "{seconds:.1} s, seen after {:.0} s; {LONGEST_TRIP_SECONDS_MAX} would do",
                sample.seconds
            )
        }),
    }
}

fn trends(samples: &[Sample]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let names = std::iter::once(SERVER).chain(Kind::LASTING.map(Kind::name));
    for name in names {
        let own: Vec<&Sample> = samples.iter().filter(|sample| sample.process == name).collect();
        let Some(parts) = Parts::of(&own) else {
            verdicts.extend(too_few(name, &own));
            continue;
        };
        let unexplained = |sample: &Sample| {
            let census = &sample.census;
            to_f64(census.descriptors)
                - to_f64(census.connections_open + census.connections_lingering)
        };
        verdicts.push(parts.floor(
            name,
            "descriptors without a connection",
            FLOOR_RISE_MAX,
            unexplained,
        ));
        verdicts.push(
            parts.memory(name, "anonymous KiB", |sample| to_f64(sample.footprint.anonymous_kib)),
        );
        verdicts.push(parts.floor(name, "locked and pinned KiB", 0.0, |sample| {
            to_f64(sample.footprint.locked_kib + sample.footprint.pinned_kib)
        }));
        verdicts.push(parts.floor(name, "threads", 0.0, |sample| to_f64(sample.footprint.threads)));
        verdicts.push(parts.floor(
            name,
            "operations beyond the lasting ones",
            FLOOR_RISE_MAX,
            |sample| {
                let census = &sample.census;
                let connections = census.connections_open + census.connections_lingering;
                // A connection that waits for a receive block has none.
                let lasting = sample.engine.lasting_operations() * connections;
                to_f64(census.operations_in_flight.saturating_sub(lasting))
            },
        ));
        verdicts.push(
            parts.floor(name, "timers", FLOOR_RISE_MAX, |sample| {
                to_f64(sample.census.timers_pending)
            }),
        );
        verdicts.push(parts.floor(name, "lent blocks", FLOOR_RISE_MAX, |sample| {
            to_f64(sample.census.pool_blocks_leased)
        }));
        let rates = rates(&own);
        if name == SERVER {
            let bare = parts.values(|sample| sample.reference.control_per_s);
            let worse = Worse { rising: false, limit: RATE_RATIO_MAX };
            verdicts.push(parts.ratio(name, "messages/s", &rates.messages, Some(&bare), worse));
            let worse = Worse { rising: true, limit: CPU_RATIO_MAX };
            verdicts.push(parts.ratio(name, "CPU ns/message", &rates.cpu_ns, None, worse));
        }
        if name == Kind::Pingpong.name() {
            let delays = parts.values(|sample| {
                let Census { round_trips, p50_ns, .. } = sample.census;
                if round_trips == 0 { f64::NAN } else { to_f64(p50_ns) / 1e3 }
            });
            let bare = parts.values(|sample| to_f64(sample.reference.control_p50_ns) / 1e3);
            let worse = Worse { rising: true, limit: DELAY_RATIO_MAX };
            verdicts.push(parts.ratio(name, "round trip p50, µs", &delays, Some(&bare), worse));
        }
    }
    verdicts
}

/// A run that is long enough for trends, and whose samples are not.
fn too_few(process: &str, samples: &[&Sample]) -> Option<Verdict> {
    let seconds = samples.last()?.seconds;
    (seconds >= TREND_SECONDS_MIN).then(|| Verdict {
        process: process.to_owned(),
        what: "samples",
        start: 0.0,
        middle: 0.0,
        end: to_f64(samples.len() as u64),
        complaint: Some(format!(
            "{} within {seconds:.0} s say nothing about a trend; each part needs {PART_SAMPLES_MIN}",
            samples.len()
        )),
    })
}

/// Figures per interval, one for each sample; the first has none.
pub(crate) struct Rates {
    pub(crate) messages: Vec<f64>,
    pub(crate) cpu_ns: Vec<f64>,
}

pub(crate) fn rates(samples: &[&Sample]) -> Rates {
    let (mut messages, mut cpu_ns) = (vec![f64::NAN], vec![f64::NAN]);
    for pair in samples.windows(2) {
        let (old, new) = (pair[0], pair[1]);
        let count = to_f64(new.census.messages - old.census.messages);
        messages.push(count / (new.seconds - old.seconds).max(1e-3));
        cpu_ns.push(to_f64(new.footprint.cpu_ns - old.footprint.cpu_ns) / count.max(1.0));
    }
    Rates { messages, cpu_ns }
}

/// The samples of a process, cut.
struct Parts<'a> {
    samples: &'a [&'a Sample],
    middle: Range<usize>,
    last: Range<usize>,
}

impl<'a> Parts<'a> {
    /// None if there are too few.
    fn of(samples: &'a [&'a Sample]) -> Option<Self> {
        let end = samples.last()?.seconds;
        let at = |part: f64| samples.partition_point(|sample| sample.seconds < end * part);
        let (first, second) = (at(WARM_UP_PART), at((1.0 + WARM_UP_PART) / 2.0));
        let parts = Self { samples, middle: first..second, last: second..samples.len() };
        let least = parts.middle.len().min(parts.last.len());
        (least >= PART_SAMPLES_MIN).then_some(parts)
    }

    fn values(&self, value: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.samples.iter().map(|sample| value(sample)).collect()
    }

    fn verdict(
        &self,
        process: &str,
        what: &'static str,
        values: &[f64],
        of: fn(&[f64]) -> f64,
    ) -> Verdict {
        Verdict {
            process: process.to_owned(),
            what,
            start: of(&values[..self.middle.start.max(1)]),
            middle: of(&values[self.middle.clone()]),
            end: of(&values[self.last.clone()]),
            complaint: None,
        }
    }

    /// Compares the least values. `rise_max` is for what a busy machine has under way; 0: none at all.
    fn floor(
        &self,
        process: &str,
        what: &'static str,
        rise_max: f64,
        value: impl Fn(&Sample) -> f64,
    ) -> Verdict {
        let mut verdict = self.verdict(process, what, &self.values(value), least);
        let limit = verdict.middle + rise_max;
        if verdict.end > limit {
            verdict.complaint = Some(format!(
                "the least of a part rose from {} to {}; {limit:.0} would do",
                verdict.middle, verdict.end
            ));
        }
        verdict
    }

    fn memory(&self, process: &str, what: &'static str, value: impl Fn(&Sample) -> f64) -> Verdict {
        let values = self.values(value);
        let mut verdict = self.verdict(process, what, &values, median);
        let growth = verdict.end - verdict.middle;
        let quarter = |number: usize| {
            let (start, count) = (self.middle.start, self.last.end - self.middle.start);
            start + count * number / 4..start + count * (number + 1) / 4
        };
        let steps = (0..3).map(|at| self.per_minute(&values, &quarter(at), &quarter(at + 1)));
        let steady =
            steps.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().reduce(f64::min));
        let blocks = self.samples.first().map_or(0, |sample| sample.census.pool_blocks);
        let growth_max = MEMORY_GROWTH_KIB_MAX + BLOCK_KIB * to_f64(blocks);
        if growth > growth_max {
            verdict.complaint = Some(format!(
                "grew by {growth:.0} KiB between two parts; {growth_max} KiB would do"
            ));
        } else if let Some(growth) = steady
            && growth > MEMORY_GROWTH_KIB_PER_MINUTE_MAX
        {
            verdict.complaint = Some(format!(
                "grew by {growth:.0} KiB a minute; {MEMORY_GROWTH_KIB_PER_MINUTE_MAX} would do"
            ));
        }
        verdict
    }

    /// The growth from one part to another. None if the run is too short to tell.
    fn per_minute(&self, values: &[f64], old: &Range<usize>, new: &Range<usize>) -> Option<f64> {
        let time = |part: &Range<usize>| {
            let seconds: Vec<f64> =
                self.samples[part.clone()].iter().map(|at| at.seconds).collect();
            median(&seconds)
        };
        let apart = (time(&self.last) - time(&self.middle)) / 60.0;
        let growth = median(&values[new.clone()]) - median(&values[old.clone()]);
        (apart >= MINUTES_APART_MIN).then(|| growth / ((time(new) - time(old)) / 60.0))
    }

    /// Compares medians, of multiples of `bare` if there is one.
    fn ratio(
        &self,
        process: &str,
        what: &'static str,
        values: &[f64],
        bare: Option<&[f64]>,
        worse: Worse,
    ) -> Verdict {
        let mut verdict = self.verdict(process, what, values, median);
        let multiples: Vec<f64> = match bare {
            None => values.to_vec(),
            Some(bare) => {
                values.iter().zip(bare).map(|(value, bare)| value / bare.max(1.0)).collect()
            }
        };
        let (middle, last) =
            (median(&multiples[self.middle.clone()]), median(&multiples[self.last.clone()]));
        for part in [&self.middle, &self.last] {
            if multiples[part.clone()].iter().all(|value| value.is_nan()) {
                let seconds = [part.start, part.end - 1].map(|index| self.samples[index].seconds);
                verdict.complaint =
                    Some(format!("nothing from {:.0} s to {:.0} s", seconds[0], seconds[1]));
                return verdict;
            }
        }
        let (bad, good) = if worse.rising { (last, middle) } else { (middle, last) };
        let ratio = bad / good.max(f64::MIN_POSITIVE);
        if ratio > worse.limit {
            let seconds = |index: usize| self.samples[index].seconds;
            verdict.complaint = Some(format!(
                "{ratio:.1} times worse in the samples from {:.0} s to {:.0} s{}; {} would do",
                seconds(self.last.start),
                seconds(self.last.end - 1),
                if bare.is_some() { ", measured against a bare pair of sockets" } else { "" },
                worse.limit
            ));
        }
        verdict
    }
}

/// Which way a figure gets worse, and how many times it may.
#[derive(Debug, Clone, Copy)]
struct Worse {
    rising: bool,
    limit: f64,
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().filter(|value| !value.is_nan()).fold(f64::INFINITY, f64::min)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn to_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::{control::Reference, order::Engine, process::Footprint};

    /// Samples of the server of three minutes, with noise, changed by `shape` of the second.
    fn samples(shape: impl Fn(u64, &mut Sample)) -> Vec<Sample> {
        (0..180)
            .map(|second| {
                let noise = second * 7 % 5;
                let mut sample = Sample {
                    engine: Engine::Epoll,
                    process: SERVER.to_owned(),
                    seconds: second as f64,
                    census: Census {
                        messages: 1000 * second,
                        connections_open: 100 + noise,
                        descriptors: 120 + 2 * noise,
                        operations_in_flight: 300 + noise,
                        pool_blocks: 8,
                        pool_blocks_free: 5,
                        pool_blocks_kernel: 2,
                        pool_blocks_leased: 1,
                        timers_pending: 10 + noise,
                        ..Census::default()
                    },
                    footprint: Footprint {
                        anonymous_kib: 5000 + 30 * noise,
                        threads: 3,
                        cpu_ns: 1_000_000 * second,
                        ..Footprint::default()
                    },
                    reference: Reference { control_per_s: 400.0, control_p50_ns: 30_000 },
                };
                shape(second, &mut sample);
                sample
            })
            .collect()
    }

    fn complaints(samples: &[Sample]) -> Vec<&'static str> {
        let all = trends(samples).into_iter().chain(always(samples));
        all.filter(|verdict| verdict.complaint.is_some()).map(|verdict| verdict.what).collect()
    }

    #[test]
    fn noise_and_a_warm_up_are_flat() {
        assert!(complaints(&samples(|_, _| {})).is_empty());
        let warm = samples(|second, sample| sample.footprint.anonymous_kib += 300 * second.min(30));
        assert!(complaints(&warm).is_empty());
        let spikes = samples(|second, sample| {
            if second % 3 == 0 {
                sample.census.descriptors += second;
            }
        });
        assert!(complaints(&spikes).is_empty(), "spikes have the old floor");
    }

    #[test]
    fn more_connections_are_no_leak() {
        for engine in [Engine::Uring, Engine::Epoll] {
            let more = samples(|second, sample| {
                sample.engine = engine;
                sample.census.connections_open += second;
                sample.census.descriptors += second;
                sample.census.operations_in_flight += engine.lasting_operations() * second;
            });
            assert_eq!(complaints(&more), [""; 0]);
        }
    }

    #[test]
    fn a_step_of_memory_is_no_leak() {
        for second_of_step in [60, 90, 120, 150] {
            let step = samples(|second, sample| {
                sample.footprint.anonymous_kib += if second > second_of_step { 1300 } else { 0 };
            });
            assert_eq!(complaints(&step), [""; 0], "a step at {second_of_step} s");
        }
    }

    #[test]
    fn every_leak_is_found() {
        type Shape = fn(u64, &mut Sample);
        let leaks: [(&str, Shape); 8] = [
            ("descriptors without a connection", |s, x| x.census.descriptors += s / 10),
            ("anonymous KiB", |s, x| x.footprint.anonymous_kib += 10 * s),
            ("locked and pinned KiB", |s, x| x.footprint.locked_kib += s / 10),
            ("threads", |s, x| x.footprint.threads += s / 10),
            ("operations beyond the lasting ones", |s, x| x.census.operations_in_flight += s / 5),
            ("timers", |s, x| x.census.timers_pending += s / 5),
            ("CPU ns/message", |s, x| x.footprint.cpu_ns += 400 * s * s * s),
            ("blocks lost or doubled", |s, x| x.census.pool_blocks_free -= u64::from(s == 77)),
        ];
        for (what, leak) in leaks {
            assert_eq!(complaints(&samples(leak)), [what]);
        }
    }

    #[test]
    fn a_long_run_with_few_samples_is_no_flat_one() {
        let few: Vec<_> = samples(|_, _| {}).into_iter().step_by(10).collect();
        assert_eq!(complaints(&few), ["samples"]);
        let short: Vec<_> = samples(|_, _| {}).into_iter().take(30).collect();
        assert_eq!(complaints(&short), [""; 0]);
    }

    #[test]
    fn a_slower_end_is_found_and_named() {
        let slow = samples(|second, sample| {
            sample.process = Kind::Pingpong.name().to_owned();
            sample.census.p50_ns = if second > 100 { 500_000 } else { 50_000 };
            sample.census.round_trips = 100;
        });
        let found: Vec<_> = trends(&slow).into_iter().filter_map(|v| v.complaint).collect();
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("from 108 s to 179 s"), "{found:?}");
    }

    #[test]
    fn a_busy_machine_is_no_complaint() {
        let busy = samples(|second, sample| {
            sample.process = Kind::Pingpong.name().to_owned();
            sample.census.p50_ns = 50_000;
            sample.census.round_trips = 100;
            if second > 100 {
                sample.census.p50_ns *= 10;
                sample.reference.control_p50_ns *= 10;
            }
        });
        assert_eq!(complaints(&busy), [""; 0]);
    }

    #[test]
    fn a_standstill_is_no_short_delay() {
        let shaped = |trips: fn(u64) -> u64| {
            samples(|second, sample| {
                sample.process = Kind::Pingpong.name().to_owned();
                sample.census.round_trips = trips(second);
                sample.census.p50_ns = 50_000 * trips(second).min(1);
            })
        };
        assert_eq!(complaints(&shaped(|_| 100)), [""; 0]);
        assert_eq!(complaints(&shaped(|second| (second % 3).min(1))), [""; 0]);
        let stands = shaped(|second| u64::from(second < 100));
        assert_eq!(complaints(&stands), ["round trip p50, µs"]);
        let mut late = samples(|_, _| {});
        assert_eq!(longest_trip(&late).complaint, None);
        late[90].census.longest_ns = 11_000_000_000;
        let complaint = longest_trip(&late).complaint.expect("it is too long");
        assert!(complaint.contains("11.0 s, seen after 90 s"), "{complaint}");
    }

    #[test]
    fn what_is_left_is_named() {
        let before = Census { descriptors: 9, ..Census::default() };
        let after = Census { descriptors: 10, ..Census::default() };
        let verdict = at_end(SERVER, &before, &after);
        assert_eq!(verdict.complaint.as_deref(), Some("descriptors 9 -> 10"));
        assert_eq!(at_end(SERVER, &before, &before).complaint, None);
    }
}
