//! A sample of seeds, and those that once found something. Many more: `cargo xtask sim`.

use std::time::Duration;

use ringpost_sim::scenarios::{self, Scenario};
use ringpost_sim::{Seam, run_seed};
use ringpost_testkit::{child, patience};

/// Longest run of one of these tests.
const LIMIT: Duration =
    Duration::from_secs(if cfg!(any(ringpost_asan, ringpost_tsan)) { 300 } else { 85 });
/// Seeds of the sample, for each scenario.
const SEEDS: u64 = 10;

type Run = (&'static Scenario, Seam, u64);

/// Runs these in a process of its own, because descriptors are counted.
fn play(test: &'static str, runs: impl Iterator<Item = Run> + Send + 'static) {
    patience::bounded(test, LIMIT, move || {
        let mut failures = Vec::new();
        for (scenario, seam, seed) in runs {
            if let Some(failure) = run_seed(scenario, seam, seed).failure {
                let trace = failure.trace.join("\n  ");
                let (name, seam) = (scenario.name, seam.suffix());
                failures.push(format!("{name}{seam}, seed {seed}: {}\n  {trace}", failure.message));
            }
        }
        // Panics print nothing here: they are the runs' own.
        failures.iter().for_each(|failure| println!("{failure}"));
        assert!(failures.is_empty(), "{} runs failed", failures.len());
    });
}

fn sample(seam: Seam) -> impl Iterator<Item = Run> {
    (0..SEEDS).flat_map(move |seed| scenarios::ALL.iter().map(move |each| (each, seam, seed)))
}

#[test]
fn sample_of_seeds() {
    child::isolated(concat!(module_path!(), "::sample_of_seeds"), &[], || {
        play("sample_of_seeds", sample(Seam::Engine));
    });
}

#[test]
fn sample_of_seeds_on_a_ring() {
    child::isolated(concat!(module_path!(), "::sample_of_seeds_on_a_ring"), &[], || {
        play("sample_of_seeds_on_a_ring", sample(Seam::Ring));
    });
}

#[test]
fn seeds_that_found_something() {
    child::isolated(concat!(module_path!(), "::seeds_that_found_something"), &[], || {
        let lines = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#'));
        let runs = lines.map(|line| {
            let mut words = line.split(' ');
            let (scenario, seam) = words.next().and_then(Seam::find).expect("a scenario");
            let seed = words.next().and_then(|word| word.parse().ok()).expect("a seed");
            (scenario, seam, seed)
        });
        play("seeds_that_found_something", runs);
    });
}

#[test]
fn a_seed_decides_everything() {
    child::isolated(concat!(module_path!(), "::a_seed_decides_everything"), &[], || {
        for (scenario, &seam) in
            scenarios::ALL.iter().flat_map(|each| Seam::ALL.iter().map(move |seam| (each, seam)))
        {
            for seed in [3, 4] {
                let [first, again] = [(); 2].map(|()| run_seed(scenario, seam, seed));
                let name = format!("{}{}, seed {seed}", scenario.name, seam.suffix());
                assert_eq!(first.enters, again.enters, "{name}");
                assert_eq!(first.faults, again.faults, "{name}");
            }
        }
    });
}
