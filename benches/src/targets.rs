//! What the project has set itself to reach, checked against the results.

use crate::{
    scenario::Scenario,
    summary::{Cell, Summary, reference},
};

/// One promise and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) promise: &'static str,
    /// Unknown if the cores were near each other for one side of it and far apart for the other.
    pub(crate) figure: Option<f64>,
    pub(crate) reached: bool,
}

impl Target {
    /// How it came out, and by what figure.
    pub(crate) fn outcome(&self) -> (&'static str, String) {
        match self.figure {
            Some(figure) if self.reached => ("reached", format!("{figure:.2}")),
            Some(figure) => ("MISSED", format!("{figure:.2}")),
            None => ("UNKNOWN", "one near, one far".to_owned()),
        }
    }
}

/// All promises that the results can speak about.
pub(crate) fn check(summary: &Summary) -> Vec<Target> {
    let cell = |scenario, contender| summary.cell(scenario, contender);
    let own = |scenario| cell(scenario, OWN);
    // In whatever state the cores were: a ratio looks at that.
    let epoll = |scenario| {
        let cells = summary.cells(scenario);
        reference(cells, own(scenario)?).or_else(|| {
            let any = ["epoll", "epoll-et"].into_iter().find_map(|name| cell(scenario, name));
            any.filter(|any| own(scenario).is_some_and(|own| own.far != any.far))
        })
    };
    let rate = |cell: &Cell| Some(cell.messages_per_s);
    let p50 = |cell: &Cell| cell.p50_ns;
    let ratio = |top: Option<&Cell>, bottom: Option<&Cell>, value: fn(&Cell) -> Option<f64>| {
        let (top, bottom) = (top?, bottom?);
        let ratio = value(top)? / value(bottom)?;
        Some((top.far == bottom.far).then_some(ratio))
    };
    let (pingpong, stream) = (Scenario::Pingpong, Scenario::Stream);
    let spinning = cell(pingpong, OWN_SPIN);
    // The better of the two is the one with the shorter round trip here.
    let parked_epoll = [cell(pingpong, "epoll"), cell(pingpong, "epoll-et")]
        .into_iter()
        .flatten()
        .filter(|cell| cell.p50_ns.is_some())
        .min_by(|left, right| left.p50_ns.partial_cmp(&right.p50_ns).expect("both are known"));
    let handwritten = |scenario| cell(scenario, "handwritten");
    [
        at_least(
            "fanin: messages/s at least 1.35 x hand-written epoll",
            1.35,
            ratio(own(Scenario::Fanin), epoll(Scenario::Fanin), rate),
        ),
        at_most(
            "fanin: system calls per message at most 0.1",
            0.1,
            own(Scenario::Fanin).and_then(|cell| cell.syscalls).map(Some),
        ),
        at_most(
            "fanin: server CPU per message at most 0.75 x hand-written epoll",
            0.75,
            ratio(own(Scenario::Fanin), epoll(Scenario::Fanin), |cell| Some(cell.server_cpu_ns)),
        ),
        at_least(
            "pipeline: messages/s at least 1.5 x hand-written epoll",
            1.5,
            ratio(own(Scenario::Pipeline), epoll(Scenario::Pipeline), rate),
        ),
        at_least(
            "stream: messages/s at least 3.5 x tokio",
            3.5,
            ratio(own(stream), cell(stream, "tokio"), rate),
        ),
        at_least(
            "stream: messages/s at least 0.9 x hand-written",
            0.9,
            ratio(own(stream), handwritten(stream), rate),
        ),
        at_least(
            "stream, framed alike: messages/s at least 0.9 x hand-written",
            0.9,
            ratio(cell(stream, OWN_LE32), handwritten(stream), rate),
        ),
        at_most(
            "pingpong: p50 at most 1 x hand-written epoll",
            1.0,
            ratio(own(pingpong), parked_epoll, p50),
        ),
        at_most(
            "pingpong: p50 at most 1.2 x blocking calls",
            1.2,
            ratio(own(pingpong), cell(pingpong, "blocking"), p50),
        ),
        at_most(
            "pingpong: p50 spinning at most 1.15 x hand-written spinning",
            1.15,
            ratio(spinning, cell(pingpong, "blocking+spin"), p50),
        ),
        at_least(
            "pingpong: p50 spinning at least 5 x shorter than parked epoll",
            5.0,
            ratio(parked_epoll, spinning, p50),
        ),
        at_least(
            "bulk: messages/s at least 0.95 x hand-written",
            0.95,
            ratio(own(Scenario::Bulk), handwritten(Scenario::Bulk), rate),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The outer option: whether it was measured.
type Figure = Option<Option<f64>>;

fn at_least(promise: &'static str, bound: f64, figure: Figure) -> Option<Target> {
    let reached = figure?.is_some_and(|figure| figure >= bound);
    Some(Target { promise, figure: figure?, reached })
}

fn at_most(promise: &'static str, bound: f64, figure: Figure) -> Option<Target> {
    let reached = figure?.is_some_and(|figure| figure <= bound);
    Some(Target { promise, figure: figure?, reached })
}

const OWN: &str = "ringpost-uring";
const OWN_LE32: &str = "ringpost-le32";
const OWN_SPIN: &str = "ringpost-uring+spin";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::line;

    #[test]
    fn without_the_contender_nothing_is_checked() {
        let summary = Summary::new(&[line(Scenario::Fanin, "epoll", 100)]);
        assert_eq!(check(&summary), []);
    }

    #[test]
    fn ratios_are_taken_to_the_better_reference() {
        let summary = Summary::new(&[
            line(Scenario::Fanin, "epoll", 100),
            line(Scenario::Fanin, "epoll-et", 200),
            line(Scenario::Fanin, OWN, 260),
        ]);
        let targets = check(&summary);
        assert_eq!(targets.len(), 3);
        assert_eq!((targets[0].figure, targets[0].reached), (Some(1.3), false));
        assert_eq!((targets[1].figure, targets[1].reached), (Some(2.0), false));
    }

    #[test]
    fn latency_is_compared_the_other_way_round() {
        let summary = Summary::new(&[
            line(Scenario::Pingpong, "epoll", 1_000),
            line(Scenario::Pingpong, "blocking+spin", 10_000),
            line(Scenario::Pingpong, OWN_SPIN, 10_000),
        ]);
        let figures: Vec<_> = check(&summary).iter().map(|t| (t.figure, t.reached)).collect();
        assert_eq!(figures, [(Some(1.0), true), (Some(10.0), true)]);
    }

    #[test]
    fn near_and_far_are_not_compared() {
        let mut lines =
            [line(Scenario::Pipeline, "epoll", 100), line(Scenario::Pipeline, OWN, 900)];
        lines[0].far = true;
        let targets = check(&Summary::new(&lines));
        assert_eq!(targets.len(), 1);
        assert_eq!((targets[0].figure, targets[0].reached), (None, false));
    }
}
