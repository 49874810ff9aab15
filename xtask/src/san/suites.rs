//! What the sanitizers are run on, and what they are not.

use super::Sanitizer;

/// What is tested in one go.
pub(super) struct Suite {
    pub(super) name: &'static str,
    pub(super) work: Work,
    pub(super) sanitizers: &'static [Sanitizer],
    pub(super) excluded: &'static [Exclusion],
    /// Parts of the names of the tests that run unless all are asked for; none means that all run.
    pub(super) usually: &'static [&'static str],
}

pub(super) enum Work {
    /// Given to `cargo test`.
    Tests(&'static [&'static str]),
    /// The simulation, for as many seeds as are asked for.
    Seeds,
}

/// Tests that are not run, and why.
pub(super) struct Exclusion {
    /// Part of their names.
    pub(super) tests: &'static str,
    pub(super) sanitizers: &'static [Sanitizer],
    pub(super) reason: &'static str,
}

pub(super) const BOTH: &[Sanitizer] = &[Sanitizer::Address, Sanitizer::Thread];
const ADDRESS: &[Sanitizer] = &[Sanitizer::Address];

/// Everything that is tested. The wire format has no threads.
pub(super) const SUITES: &[Suite] = &[
    Suite {
        name: "frame",
        work: Work::Tests(&["--package", "ringpost-frame", "--lib", "--tests"]),
        sanitizers: ADDRESS,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "sync",
        work: Work::Tests(&["--package", "ringpost-sync", "--lib", "--tests"]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "reactor",
        work: Work::Tests(&[
            "--package",
            "ringpost-reactor",
            "--features",
            "sim",
            "--lib",
            "--tests",
        ]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "uds",
        work: Work::Tests(&["--package", "ringpost-uds", "--lib", "--tests"]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "ringpost",
        work: Work::Tests(&["--package", "ringpost", "--lib"]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite {
        name: "end to end",
        work: Work::Tests(&["--package", "ringpost-tests", "--test", "it"]),
        sanitizers: BOTH,
        excluded: END_TO_END,
        usually: USUALLY,
    },
    Suite {
        name: "kept seeds",
        work: Work::Tests(&["--package", "ringpost-sim", "--tests"]),
        sanitizers: BOTH,
        excluded: &[],
        usually: &[],
    },
    Suite { name: "simulation", work: Work::Seeds, sanitizers: BOTH, excluded: &[], usually: &[] },
];

/// What is not run end to end.
const END_TO_END: &[Exclusion] = &[
    Exclusion {
        tests: "connections::ten_thousand_idle",
        sanitizers: BOTH,
        reason: "counts bytes of memory for a connection, and allocations have red zones",
    },
    Exclusion {
        tests: "datagrams::nothing_is_left_behind",
        sanitizers: BOTH,
        reason: "measures that memory does not grow, and what is freed is kept in quarantine",
    },
    Exclusion {
        tests: "seqpackets::nothing_is_left_behind",
        sanitizers: BOTH,
        reason: "measures that memory does not grow, and what is freed is kept in quarantine",
    },
    Exclusion {
        tests: "backpressure::a_slow_reader",
        sanitizers: BOTH,
        reason: "needs a sender that is faster than its reader, and the sender is instrumented",
    },
    Exclusion {
        tests: "runtime_end::a_thousand_in_flight",
        sanitizers: BOTH,
        reason: "measures that memory does not grow, as above; and a thousand operations do not always \
                 end within the second that a runtime waits for them, what is left is leaked on \
                 purpose, and the test counts descriptors",
    },
];

/// What runs end to end unless everything is asked for: where memory and threads change hands.
const USUALLY: &[&str] = &[
    "threads::",
    "runtime_end::",
    "payload_owners::",
    "restart::",
    "outside::",
    "spinning::",
    "dropped_futures::",
    "passing::",
    "seqpackets::",
];
