//! Runs comparisons in interleaved rounds and makes the table.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

use super::catalogue::{Comparison, comparisons};
use super::clock::{Measure, Sample, median, quantile};
use super::worker::Placement;

/// What to measure, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Groups; all if empty.
    pub(crate) only: Vec<u8>,
    pub(crate) rounds: u32,
    /// Keep the two threads on a CPU each.
    pub(crate) pin: bool,
}

impl Plan {
    /// A line for each comparison.
    pub(crate) fn list(&self) -> Vec<String> {
        self.chosen().map(|comparison| comparison.to_string()).collect()
    }

    fn chosen(&self) -> impl Iterator<Item = Comparison> {
        let wanted = |group: &u8| self.only.is_empty() || self.only.contains(group);
        comparisons().into_iter().filter(move |comparison| wanted(&comparison.group()))
    }
}

/// Performs one round of a variant.
pub(super) type Runner = Box<dyn FnMut() -> Result<Sample>>;

/// Runs everything in the plan.
///
/// # Errors
///
/// If a variant that the kernel offers misbehaves. One that the kernel refuses is a line of the
/// table.
pub(crate) fn run(plan: &Plan) -> Result<Table> {
    let _watchdog = watchdog();
    let placement = Placement::new(plan.pin);
    let start = Instant::now();
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "",
        "A: baseline",
        "B",
        "measured",
        "A ns",
        "B ns",
        "B/A",
        "middle half",
        "wall B/A",
        "enters A",
        "enters B",
        "verdict for B",
    ]);
    for column in 4..=10 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for comparison in plan.chosen() {
        eprintln!("{:5.1} s  {comparison}", start.elapsed().as_secs_f64());
        if comparison.two_threads() {
            placement.near();
        }
        let outcome = measure(&comparison, plan.rounds, &placement);
        placement.anywhere();
        for line in outcome.with_context(|| comparison.to_string())? {
            table.add_row(line);
        }
    }
    Ok(table)
}

/// Ends the process if a lost wake-up or a dead peer keeps it from ending. Stops when dropped.
fn watchdog() -> Sender<()> {
    let (alive, dropped) = channel::<()>();
    std::thread::spawn(move || {
        if dropped.recv_timeout(RUN_TIME_MAX) == Err(RecvTimeoutError::Timeout) {
            eprintln!("gave up after {} s", RUN_TIME_MAX.as_secs());
            std::process::exit(2);
        }
    });
    alive
}

const RUN_TIME_MAX: Duration = Duration::from_secs(300);

/// The rounds of one variant, or why there are none.
type Outcome = Result<Vec<Sample>, String>;

fn measure(
    comparison: &Comparison,
    rounds: u32,
    placement: &Placement,
) -> Result<Vec<Vec<String>>> {
    let mut outcomes: Vec<Outcome> = comparison.variants().iter().map(|_| Ok(Vec::new())).collect();
    let sittings = rounds.div_ceil(SITTING_ROUNDS);
    for sitting in 0..sittings {
        let rounds = rounds / sittings + u32::from(sitting < rounds % sittings);
        sit(comparison, sitting, rounds, placement, &mut outcomes)?;
    }
    Ok(lines(comparison, &outcomes))
}

/// Rounds with the same sockets, rings and memory. Where those happen to lie makes a difference that
/// looks like one of the features; new ones every few rounds average it out.
const SITTING_ROUNDS: u32 = 8;

fn sit(
    comparison: &Comparison,
    sitting: u32,
    rounds: u32,
    placement: &Placement,
    outcomes: &mut [Outcome],
) -> Result<()> {
    let mut order: Vec<usize> = (0..outcomes.len()).collect();
    order.rotate_left(sitting as usize % outcomes.len());
    let mut runners: Vec<(usize, Runner)> = Vec::new();
    for &index in &order {
        let built = (comparison.variants()[index].build)(placement);
        // A round that does not count takes the page faults and first allocations.
        match built.and_then(|mut runner| runner().map(|_| runner)) {
            Ok(runner) => runners.push((index, runner)),
            Err(error) => outcomes[index] = Err(format!("{error:#}")),
        }
    }
    for _ in 0..rounds {
        // Forth and back, so that a drift of the machine is nobody's advantage.
        runners.reverse();
        for (index, runner) in &mut runners {
            if let Ok(samples) = &mut outcomes[*index] {
                samples.push(runner()?);
            }
        }
    }
    Ok(())
}

fn lines(comparison: &Comparison, outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let names: Vec<_> = comparison.variants().iter().map(|variant| variant.name.clone()).collect();
    let mut lines = Vec::new();
    let baseline = &outcomes[0];
    for (alternative, name) in outcomes.iter().zip(&names).skip(1) {
        for &(measure, what) in comparison.measures() {
            let mut line = vec![
                comparison.label().to_owned(),
                names[0].clone(),
                name.clone(),
                what.to_owned(),
            ];
            match (baseline, alternative) {
                (Ok(a), Ok(b)) => line.extend(Ratio::of(measure, a, b).cells(a, b)),
                (Err(why), _) | (_, Err(why)) => {
                    line.extend(std::iter::repeat_n(String::new(), 7));
                    line.push(format!("not measured: {why}"));
                }
            }
            lines.push(line);
        }
    }
    lines
}

/// Two variants in one figure.
#[derive(Clone, Copy, Debug)]
struct Ratio {
    a: f64,
    b: f64,
    /// Of the medians.
    ratio: f64,
    /// Quartiles of the ratios within rounds.
    low: f64,
    high: f64,
}

impl Ratio {
    fn of(measure: Measure, a: &[Sample], b: &[Sample]) -> Self {
        let values = |samples: &[Sample]| median(samples.iter().map(|sample| measure.of(sample)));
        let pairs: Vec<_> = a.iter().zip(b).map(|(a, b)| measure.of(b) / measure.of(a)).collect();
        let quartile = |at| quantile(pairs.iter().copied(), at);
        let (a, b) = (values(a), values(b));
        Self { a, b, ratio: b / a, low: quartile(0.25), high: quartile(0.75) }
    }

    fn verdict(&self) -> String {
        let word = match self.ratio {
            ratio if ratio < 1.0 - TIE => "pays",
            ratio if ratio > 1.0 + TIE => "costs",
            ratio if ratio.is_nan() => "?",
            _ => return "tie".into(),
        };
        // Where a quarter of the rounds says the opposite, the figure is not to be relied on.
        let doubtful = self.low < 1.0 && self.high > 1.0;
        format!("{word}{}", if doubtful { ", doubtful" } else { "" })
    }

    fn cells(&self, a: &[Sample], b: &[Sample]) -> Vec<String> {
        let wall = Self::of(Measure::Wall, a, b).ratio;
        let enters = |samples: &[Sample]| {
            let enters = median(samples.iter().map(|sample| sample.enters));
            if enters > 0.0 { format!("{enters:.3}") } else { String::new() }
        };
        vec![
            format!("{:.0}", self.a),
            format!("{:.0}", self.b),
            format!("{:.2}", self.ratio),
            format!("{:.2}-{:.2}", self.low, self.high),
            format!("{wall:.2}"),
            enters(a),
            enters(b),
            self.verdict(),
        ]
    }
}

/// Relative difference up to which two figures count as equal.
const TIE: f64 = 0.05;

/// The circumstances that the figures depend on.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let load = read("/proc/loadavg");
    let load: Vec<_> = load.split(' ').take(3).collect();
    let steal = read("/proc/stat").lines().next().map(steal).unwrap_or_default();
    format!(
        "kernel {}, {} CPUs, load {}, stolen by the host so far {steal}",
        read("/proc/sys/kernel/osrelease"),
        std::thread::available_parallelism().map_or(0, usize::from),
        load.join(" "),
    )
}

/// The share of stolen time in a `cpu` line of `/proc/stat`.
fn steal(line: &str) -> String {
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).filter_map(|tick| tick.parse().ok()).collect();
    let total: f64 = ticks.iter().take(8).sum();
    ticks.get(7).map_or_else(String::new, |stolen| format!("{:.1} %", 100.0 * stolen / total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(cpu: &[f64]) -> Vec<Sample> {
        cpu.iter().map(|&cpu| Sample { cpu, ..Sample::NOTHING }).collect()
    }

    fn verdict(a: &[f64], b: &[f64]) -> String {
        Ratio::of(Measure::Cpu, &samples(a), &samples(b)).verdict()
    }

    #[test]
    fn verdicts() {
        assert_eq!(verdict(&[100.0; 4], &[90.0; 4]), "pays");
        assert_eq!(verdict(&[100.0; 4], &[96.0; 4]), "tie");
        assert_eq!(verdict(&[100.0; 4], &[110.0; 4]), "costs");
        let noisy = [80.0, 80.0, 120.0, 130.0, 140.0];
        assert_eq!(verdict(&[100.0; 5], &noisy), "costs, doubtful");
        assert_eq!(verdict(&[], &[]), "?");
    }

    #[test]
    fn share_of_stolen_time() {
        assert_eq!(steal("cpu  10 10 10 10 10 0 0 50 0 0"), "50.0 %");
        assert_eq!(steal("cpu"), "");
    }
}
