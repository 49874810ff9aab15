//! Drop everywhere: each public operation at each of its waits. More, with faults: `cargo xtask sim --sweep`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringpost_sim::steps::{self, Script};
use ringpost_sim::sweep::{self, Operation};
use ringpost_testkit::{child, patience};

/// Longest sweep of one of these tests.
const LIMIT: Duration =
    Duration::from_secs(if cfg!(any(ringpost_asan, ringpost_tsan)) { 140 } else { 28 });

/// Sweeps in a process of its own, because descriptors are counted: every `PARTS`th operation.
fn sweep_part(test: &'static str, part: usize) {
    child::isolated(&format!("{}::{test}", module_path!()), &[], || {
        patience::bounded(test, LIMIT, move || {
            let operations: Vec<&Operation> = sweep::all().skip(part).step_by(PARTS).collect();
            let mut failures = Vec::new();
            for operation in operations {
                for (label, failure) in sweep::sweep(operation).failures {
                    let trace = failure.trace.join("\n  ");
                    failures.push(format!("{label}: {}\n  {trace}", failure.message));
                }
            }
            failures.iter().for_each(|failure| println!("{failure}"));
            assert!(failures.is_empty(), "{} sweeps failed", failures.len());
        });
    });
}

/// Parts that may run at once.
const PARTS: usize = 24;

macro_rules! parts {
    ($($name:ident $part:literal)*) => {
        $(#[test]
        fn $name() {
            sweep_part(stringify!($name), $part);
        })*
    };
}

parts! {
    dropped_everywhere_0 0
    dropped_everywhere_1 1
    dropped_everywhere_2 2
    dropped_everywhere_3 3
    dropped_everywhere_4 4
    dropped_everywhere_5 5
    dropped_everywhere_6 6
    dropped_everywhere_7 7
    dropped_everywhere_8 8
    dropped_everywhere_9 9
    dropped_everywhere_10 10
    dropped_everywhere_11 11
    dropped_everywhere_12 12
    dropped_everywhere_13 13
    dropped_everywhere_14 14
    dropped_everywhere_15 15
    dropped_everywhere_16 16
    dropped_everywhere_17 17
    dropped_everywhere_18 18
    dropped_everywhere_19 19
    dropped_everywhere_20 20
    dropped_everywhere_21 21
    dropped_everywhere_22 22
    dropped_everywhere_23 23
}

/// Steps through scripts in a process of its own, each with the choices of a seed or on a plain kernel.
fn step_through(test: &'static str, scripts: impl Iterator<Item = (&'static Script, Option<u64>)>) {
    let scripts: Vec<_> = scripts.collect();
    child::isolated(&format!("{}::{test}", module_path!()), &[], || {
        patience::bounded(test, LIMIT, move || {
            let mut failures = Vec::new();
            for (script, seed) in scripts {
                for (label, failure) in steps::step_through(script, seed).failures {
                    let trace = failure.trace.join("\n  ");
                    failures.push(format!("{label}: {}\n  {trace}", failure.message));
                }
            }
            failures.iter().for_each(|failure| println!("{failure}"));
            assert!(failures.is_empty(), "{} scripts failed", failures.len());
        });
    });
}

/// Of each script, each part and the runtime go at each step.
#[test]
fn everything_goes_at_every_step() {
    let plain = steps::SCRIPTS.iter().map(|script| (script, None));
    step_through("everything_goes_at_every_step", plain);
}

/// At the end of a runtime a completion of nobody had a block, which nobody gave back.
#[test]
fn steps_of_a_seed_that_found_something() {
    let bytes = steps::SCRIPTS.iter().filter(|script| script.name == "bytes");
    step_through("steps_of_a_seed_that_found_something", bytes.map(|script| (script, Some(3))));
}

/// What is swept although nothing in its signature waits.
const BESIDES: [&str; 2] = ["Handle::spawn", "Handle::submit"];

/// The list of operations and the sources agree: none is missing, and none has gone.
#[test]
fn no_operation_is_missing() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ringpost/src");
    let mut found = BTreeSet::new();
    for file in files(&sources) {
        let text = std::fs::read_to_string(&file).expect("a source file");
        found.extend(operations_of(&file, &text));
    }
    let swept = sweep::all().map(|operation| operation.name.to_owned());
    let listed: BTreeSet<String> =
        swept.chain(sweep::ELSEWHERE.iter().map(|(name, _)| (*name).to_owned())).collect();
    let missing: Vec<_> = found.difference(&listed).collect();
    assert!(missing.is_empty(), "operations that are never dropped: {missing:#?}");
    let besides = |name: &&String| !BESIDES.contains(&name.as_str());
    let gone: Vec<_> = listed.difference(&found).filter(besides).collect();
    assert!(gone.is_empty(), "operations that are not in the sources: {gone:#?}");
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Public functions that wait: `async` ones, polls, those that return a future, and polls of traits. Relies
/// on how rustfmt indents.
fn operations_of(file: &Path, text: &str) -> Vec<String> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    // Both crates give their traits the same names.
    let library = match stem {
        "futures" => "futures ",
        "tokio" => "tokio ",
        _ => "",
    };
    let mut scope = String::new();
    let mut is_trait = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix("impl") {
            // Generics in front: `<F: Future>`.
            let header = match header.strip_prefix('<') {
                Some(rest) => rest.split_once("> ").map_or("", |(_, rest)| rest),
                None => header,
            };
            let header = header.trim().trim_end_matches('{').trim();
            let bare = |name: &str| name.split('<').next().unwrap_or_default().trim().to_owned();
            is_trait = header.contains(" for ");
            scope = match header.split_once(" for ") {
                Some((name, of)) => format!("{library}{} for {}", bare(name), bare(of)),
                None => bare(header),
            };
        } else if line.starts_with('}') {
            scope.clear();
            is_trait = false;
        }
        let code = line.trim_start();
        let indented = line.len() > code.len();
        let name = |rest: &str| rest.split(['(', '<']).next().unwrap_or_default().to_owned();
        let public = if is_trait { Some(code) } else { code.strip_prefix("pub ") };
        let waits = public.and_then(|code| {
            let asynchronous = code.strip_prefix("async fn ").map(name);
            let poll = code.strip_prefix("fn ").map(name).filter(|name| name.starts_with("poll"));
            let future =
                code.contains("-> impl Future").then(|| code.strip_prefix("fn ").map(name));
            asynchronous.or(poll).or_else(|| future.flatten())
        });
        if let Some(name) = waits {
            found.push(if indented { format!("{scope}::{name}") } else { name });
        }
    }
    found
}
