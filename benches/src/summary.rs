//! Medians over repetitions, and comparisons between contenders.

use std::collections::BTreeMap;

use crate::{
    results::Line,
    scenario::{Scenario, Workload},
    stats::{median, spread},
};

/// What the repetitions of one contender in one workload say together.
///
/// Samples that were far are left out, unless there are no others. All contenders of a workload are summed up from
/// samples of one state if there are such of all.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) contender: String,
    pub(crate) messages_per_s: f64,
    /// Half the range of the repetitions, relative to the median.
    pub(crate) spread: f64,
    pub(crate) bytes_per_s: f64,
    pub(crate) p50_ns: Option<f64>,
    pub(crate) p99_ns: Option<f64>,
    pub(crate) p999_ns: Option<f64>,
    pub(crate) server_cpu_ns: f64,
    pub(crate) client_cpu_ns: f64,
    pub(crate) syscalls: Option<f64>,
    pub(crate) quantiles_ns: Vec<(f64, f64)>,
    /// The samples that the figures are of were far.
    pub(crate) far: bool,
    pub(crate) near_samples: usize,
    pub(crate) far_samples: usize,
}

/// All results by workload.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    rounds: BTreeMap<Workload, Vec<Cell>>,
}

impl Summary {
    pub(crate) fn new(lines: &[Line]) -> Self {
        let mut grouped: BTreeMap<Workload, Vec<(&str, Vec<&Line>)>> = BTreeMap::new();
        for line in lines {
            let workload = Workload {
                scenario: line.scenario,
                connections: line.connections,
                depth: line.depth,
                bytes: line.bytes,
            };
            let contenders = grouped.entry(workload).or_default();
            match contenders.iter_mut().find(|(name, _)| *name == line.contender) {
                Some((_, group)) => group.push(line),
                None => contenders.push((&line.contender, vec![line])),
            }
        }
        let rounds = grouped
            .into_iter()
            .map(|(workload, contenders)| {
                let all_have = |far| {
                    contenders.iter().all(|(_, group)| group.iter().any(|line| line.far == far))
                };
                let prefer_far = !all_have(false) && all_have(true);
                let cells = contenders.iter().filter_map(|(_, group)| Cell::new(group, prefer_far));
                (workload, cells.collect())
            })
            .collect();
        Self { rounds }
    }

    /// The workloads of a scenario that were measured, by number of connections.
    pub(crate) fn workloads(
        &self,
        scenario: Scenario,
    ) -> impl Iterator<Item = (&Workload, &[Cell])> {
        self.rounds
            .iter()
            .filter(move |(workload, _)| workload.scenario == scenario)
            .map(|(workload, cells)| (workload, cells.as_slice()))
    }

    /// The results of a scenario that has one workload.
    pub(crate) fn cells(&self, scenario: Scenario) -> &[Cell] {
        self.workloads(scenario).next().map_or(&[], |(_, cells)| cells)
    }

    pub(crate) fn cell(&self, scenario: Scenario, contender: &str) -> Option<&Cell> {
        self.cells(scenario).iter().find(|cell| cell.contender == contender)
    }
}

impl Cell {
    fn new(lines: &[&Line], prefer_far: bool) -> Option<Self> {
        let far_samples = lines.iter().filter(|line| line.far).count();
        let near_samples = lines.len() - far_samples;
        let far = if prefer_far { far_samples > 0 } else { near_samples == 0 };
        let used: Vec<&Line> = lines.iter().copied().filter(|line| line.far == far).collect();
        let of = |value: fn(&Line) -> f64| median(used.iter().map(|line| value(line)));
        let maybe_of =
            |value: fn(&Line) -> Option<f64>| median(used.iter().filter_map(|line| value(line)));
        let rates: Vec<f64> = used.iter().map(|line| line.messages_per_s).collect();
        let quantiles =
            used.first()?.quantiles_ns.iter().enumerate().filter_map(|(at, &(q, _))| {
                let values = used.iter().filter_map(|line| line.quantiles_ns.get(at));
                Some((q, median(values.map(|&(_, value)| value as f64))?))
            });
        Some(Self {
            contender: used.first()?.contender.clone(),
            messages_per_s: of(|line| line.messages_per_s)?,
            spread: spread(&rates)?,
            bytes_per_s: of(|line| line.bytes_per_s)?,
            p50_ns: maybe_of(|line| line.p50_ns.map(|value| value as f64)),
            p99_ns: maybe_of(|line| line.p99_ns.map(|value| value as f64)),
            p999_ns: maybe_of(|line| line.p999_ns.map(|value| value as f64)),
            server_cpu_ns: of(|line| line.server_cpu_ns_per_message)?,
            client_cpu_ns: of(|line| line.client_cpu_ns_per_message)?,
            syscalls: maybe_of(|line| line.syscalls_per_message),
            quantiles_ns: quantiles.collect(),
            far,
            near_samples,
            far_samples,
        })
    }

    pub(crate) fn spins(&self) -> bool {
        self.contender.ends_with(SPIN)
    }
}

/// The hand-written epoll program that `cell` is compared with: the better of level- and
/// edge-triggered, waiting in the same way as `cell` does. The cores near each other and far apart are two machines:
/// none that was measured on the other.
pub(crate) fn reference<'a>(cells: &'a [Cell], cell: &Cell) -> Option<&'a Cell> {
    let names = if cell.spins() { ["epoll+spin", "epoll-et+spin"] } else { ["epoll", "epoll-et"] };
    cells
        .iter()
        .filter(|candidate| names.contains(&candidate.contender.as_str()))
        .filter(|candidate| candidate.far == cell.far)
        .max_by(|left, right| left.messages_per_s.total_cmp(&right.messages_per_s))
}

const SPIN: &str = "+spin";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::meter::ClientReport;

    /// A line with this rate and the figures that follow from it.
    pub(crate) fn line(scenario: Scenario, contender: &str, messages: u64) -> Line {
        let workload = scenario.workloads(true)[0];
        let report = ClientReport {
            messages,
            elapsed_ns: 1_000_000_000,
            server_cpu_ns: 900_000_000,
            client_cpu_ns: 800_000_000,
            syscalls_per_message: Some(2.0),
            p50_ns: workload.depth.map(|_| 1_000_000_000 / messages),
            p99_ns: None,
            p999_ns: None,
            quantiles: vec![],
        };
        Line::new(&workload, contender, 0, 1, [None, None], report)
    }

    #[test]
    fn medians_leave_far_samples_out() {
        let mut lines: Vec<Line> =
            [100, 200, 400].map(|rate| line(Scenario::Fanin, "epoll", rate)).to_vec();
        lines[0].far = true;
        let summary = Summary::new(&lines);
        let cell = &summary.cells(Scenario::Fanin)[0];
        assert_eq!(cell.messages_per_s, 300.0);
        assert_eq!((cell.near_samples, cell.far_samples, cell.far), (2, 1, false));
    }

    #[test]
    fn only_far_samples_are_better_than_none() {
        let mut far = line(Scenario::Fanin, "epoll", 100);
        far.far = true;
        let summary = Summary::new(&[far]);
        let cell = &summary.cells(Scenario::Fanin)[0];
        assert_eq!((cell.messages_per_s, cell.near_samples, cell.far_samples), (100.0, 0, 1));
    }

    #[test]
    fn what_was_far_is_compared_with_what_was_far() {
        let mut lines =
            [line(Scenario::Fanin, "epoll", 100), line(Scenario::Fanin, "tokio", 80)].to_vec();
        lines[0].far = true;
        let summary = Summary::new(&lines);
        let tokio = summary.cell(Scenario::Fanin, "tokio").expect("measured");
        assert!(reference(summary.cells(Scenario::Fanin), tokio).is_none());
        // With one of each, by those that both have.
        let mut far = line(Scenario::Fanin, "tokio", 40);
        far.far = true;
        lines.push(far);
        let summary = Summary::new(&lines);
        let cells = summary.cells(Scenario::Fanin);
        assert!(cells.iter().all(|cell| cell.far && cell.far_samples == 1));
        let tokio = summary.cell(Scenario::Fanin, "tokio").expect("measured");
        assert_eq!((tokio.messages_per_s, tokio.near_samples), (40.0, 1));
        assert!(reference(cells, tokio).is_some());
    }

    #[test]
    fn the_reference_is_the_better_epoll_that_waits_alike() {
        let lines = [
            line(Scenario::Fanin, "epoll", 100),
            line(Scenario::Fanin, "epoll-et", 120),
            line(Scenario::Fanin, "epoll+spin", 300),
            line(Scenario::Fanin, "tokio", 80),
            line(Scenario::Fanin, "other+spin", 80),
        ];
        let summary = Summary::new(&lines);
        let cells = summary.cells(Scenario::Fanin);
        let of = |name| {
            let cell = summary.cell(Scenario::Fanin, name)?;
            reference(cells, cell).map(|cell| cell.contender.as_str())
        };
        assert_eq!(of("tokio"), Some("epoll-et"));
        assert_eq!(of("other+spin"), Some("epoll+spin"));
    }

    #[test]
    fn workloads_of_a_sweep_stay_apart() {
        let mut lines = vec![line(Scenario::Sweep, "epoll", 1), line(Scenario::Sweep, "epoll", 2)];
        lines[1].connections = 16;
        let summary = Summary::new(&lines);
        let counts: Vec<_> = summary
            .workloads(Scenario::Sweep)
            .map(|(workload, cells)| (workload.connections, cells.len()))
            .collect();
        assert_eq!(counts, [(1, 1), (16, 1)]);
    }
}
