//! A sample of seeds, and those that once found something. Many more: `cargo xtask sim`.

use std::time::Duration;

use ringpost_sim::run_seed;
use ringpost_sim::scenarios::{self, Scenario};
use ringpost_testkit::{child, patience};

/// Longest run of one of these tests.
const LIMIT: Duration = Duration::from_secs(28);
/// Seeds of the sample, for each scenario.
const SEEDS: u64 = 10;

/// Runs these in a process of its own, because descriptors are counted.
fn play(test: &'static str, runs: impl Iterator<Item = (&'static Scenario, u64)> + Send + 'static) {
    patience::bounded(test, LIMIT, move || {
        let mut failures = Vec::new();
        for (scenario, seed) in runs {
            if let Some(failure) = run_seed(scenario, seed).failure {
                let trace = failure.trace.join("\n  ");
                let name = scenario.name;
                failures.push(format!("{name}, seed {seed}: {}\n  {trace}", failure.message));
            }
        }
        // Panics print nothing here: they are the runs' own.
        failures.iter().for_each(|failure| println!("{failure}"));
        assert!(failures.is_empty(), "{} runs failed", failures.len());
    });
}

#[test]
fn sample_of_seeds() {
    child::isolated(concat!(module_path!(), "::sample_of_seeds"), &[], || {
        let runs = (0..SEEDS).flat_map(|seed| scenarios::ALL.iter().map(move |each| (each, seed)));
        play("sample_of_seeds", runs);
    });
}

#[test]
fn seeds_that_found_something() {
    child::isolated(concat!(module_path!(), "::seeds_that_found_something"), &[], || {
        let lines = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#'));
        let runs = lines.map(|line| {
            let mut words = line.split(' ');
            let scenario = words.next().and_then(scenarios::find).expect("a scenario");
            let seed = words.next().and_then(|word| word.parse().ok()).expect("a seed");
            (scenario, seed)
        });
        play("seeds_that_found_something", runs);
    });
}

#[test]
fn a_seed_decides_everything() {
    child::isolated(concat!(module_path!(), "::a_seed_decides_everything"), &[], || {
        for scenario in scenarios::ALL {
            for seed in [3, 4] {
                let [first, again] = [(); 2].map(|()| run_seed(scenario, seed));
                assert_eq!(first.enters, again.enters, "{}, seed {seed}", scenario.name);
                assert_eq!(first.faults, again.faults, "{}, seed {seed}", scenario.name);
            }
        }
    });
}
