//! The data file of the canaries.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

/// Where the canaries are, from the root.
pub(crate) const FILE: &str = "tests/canaries.toml";

/// What the data file holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    canary: Vec<Canary>,
}

/// A bug that can be put in.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Canary {
    /// What it is called; letters, digits and hyphens.
    pub(super) name: String,
    /// What is wrong with it in.
    pub(super) bug: String,
    /// Where it was seen: another project's public thread, or a change of our own.
    pub(super) seen: Option<String>,
    /// Why our code can't have it. There is nothing else then.
    pub(super) not_applicable: Option<String>,
    pub(super) finder: Option<Finder>,
    /// How long the finder may take.
    pub(super) seconds: Option<u64>,
    /// Its symptom is that the finder does not end.
    #[serde(default)]
    pub(super) hangs: bool,
    #[serde(default)]
    pub(super) edit: Vec<Edit>,
}

/// A change of one file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    pub(super) file: String,
    /// What is in the file exactly once.
    pub(super) text: String,
    /// What takes its place.
    pub(super) with: String,
}

/// What finds a canary, as words behind a command that [`Kind`] gives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Finder {
    pub(super) kind: Kind,
    run: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// Arguments of `cargo test`.
    Test,
    /// Arguments of the simulation: of `cargo xtask sim`, which checks as much. Not optimised here, as what is
    /// built for one canary is run once.
    Sim,
    /// Names of models.
    Loom,
    /// Arguments of `cargo test`, for the tests that replay the stored inputs of fuzz targets.
    FuzzReplay,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Sim => "sim",
            Self::Loom => "loom",
            Self::FuzzReplay => "fuzz-replay",
        }
    }
}

impl List {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(FILE)).with_context(|| FILE)?;
        Self::parse(&text).with_context(|| FILE)
    }

    fn parse(text: &str) -> Result<Self> {
        let list: Self = toml::from_str(text)?;
        for (index, canary) in list.canary.iter().enumerate() {
            canary.check().with_context(|| canary.name.clone())?;
            let again = list.canary[..index].iter().any(|other| other.name == canary.name);
            ensure!(!again, "{}: another one has this name", canary.name);
        }
        Ok(list)
    }

    /// Those with these names; all, if there are none.
    pub(super) fn choose(&self, names: &[String]) -> Result<Vec<&Canary>> {
        for name in names {
            let known = self.canary.iter().any(|canary| canary.name == *name);
            ensure!(known, "there is no canary {name}; --list shows those that there are");
        }
        let is_chosen = |canary: &&Canary| names.is_empty() || names.contains(&canary.name);
        Ok(self.canary.iter().filter(is_chosen).collect())
    }
}

impl Canary {
    fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        ensure!(!self.name.is_empty() && self.name.chars().all(plain), "not a name");
        ensure!(!self.bug.is_empty(), "what the bug is must be said");
        match (&self.not_applicable, &self.finder) {
            (None, Some(_)) => ensure!(!self.edit.is_empty(), "nothing is changed"),
            (Some(_), None) => ensure!(self.edit.is_empty(), "it is said not to apply"),
            (None, None) => bail!("no finder, and no reason why there is none"),
            (Some(_), Some(_)) => bail!("it is said not to apply, and has a finder"),
        }
        Ok(())
    }

    /// The edits that do not fit the tree.
    fn stale(&self, root: &Path) -> Vec<String> {
        let wrong = |edit: &&Edit| {
            let text = fs::read_to_string(root.join(&edit.file)).unwrap_or_default();
            text.matches(&edit.text).count() != 1 || edit.text == edit.with
        };
        self.edit.iter().filter(wrong).map(|edit| edit.file.clone()).collect()
    }
}

impl Edit {
    /// The file with the change.
    pub(super) fn apply(&self, text: &str) -> Result<String> {
        let count = text.matches(&self.text).count();
        ensure!(count == 1, "{}: what is to be replaced is there {count} times", self.file);
        Ok(text.replacen(&self.text, &self.with, 1))
    }
}

impl Finder {
    /// What is built before it runs.
    pub(super) fn build(&self) -> Vec<String> {
        let (build, _) = self.run.split_once(" -- ").unwrap_or((&self.run, ""));
        let words: &[&str] = match self.kind {
            Kind::Test | Kind::FuzzReplay => &["cargo", "test", "--locked", "--no-run"],
            Kind::Sim => {
                return owned(&["cargo", "build", "--locked", "--package", "ringpost-sim"]);
            }
            Kind::Loom => {
                let words = ["--lib", "--profile", "loom", "--no-run"];
                return owned(&[&LOOM[..], &words[..]].concat());
            }
        };
        let mut words = owned(words);
        words.extend(build.split_whitespace().map(str::to_owned));
        words
    }

    pub(super) fn command(&self) -> Vec<String> {
        let words: &[&str] = match self.kind {
            Kind::Test | Kind::FuzzReplay => &["cargo", "test", "--locked"],
            Kind::Sim => {
                let words = ["--package", "ringpost-sim", "--", "--failures-max", "1"];
                &[&["cargo", "run", "--locked"][..], &words[..]].concat()
            }
            Kind::Loom => {
                let words = ["--lib", "--profile", "loom", "--", "--test-threads=1"];
                let mut words = owned(&[&LOOM[..], &words[..]].concat());
                words.extend(
                    self.run.split_whitespace().map(|name| format!("models::{name}::holds")),
                );
                return words;
            }
        };
        let mut words = owned(words);
        words.extend(self.run.split_whitespace().map(str::to_owned));
        words
    }

    /// Longest time on the tree as it is.
    pub(super) fn seconds_max(&self) -> u64 {
        300
    }

    /// Everything that is run, to tell whether it was run before.
    pub(super) fn key(&self) -> String {
        format!("{} && {}", self.build().join(" "), self.command().join(" "))
    }

    /// Whether it runs a test of this name, or a run of the simulation with this label.
    pub(super) fn is_ours(&self, name: &str) -> bool {
        let words: Vec<&str> = self.run.split_whitespace().collect();
        match self.kind {
            Kind::Test | Kind::FuzzReplay => {
                let mut filters = words.iter().skip_while(|word| **word != "--").skip(1).peekable();
                filters.peek().is_none() || filters.any(|filter| name.contains(filter))
            }
            Kind::Loom => words.iter().any(|model| name == format!("models::{model}::holds")),
            Kind::Sim => {
                let mut begins = words.windows(2).filter_map(|words| match *words {
                    ["--scenario", name] => Some(vec![format!("{name}, seed ")]),
                    ["--operation", name] => {
                        Some(vec![format!("sweep of {name}, "), format!("script {name}, ")])
                    }
                    _ => None,
                });
                begins.any(|begins| begins.iter().any(|begin| name.starts_with(begin)))
            }
        }
    }

    pub(super) fn text(&self) -> String {
        match self.kind {
            Kind::Sim => format!("cargo xtask sim {}", self.run),
            Kind::Loom => format!("cargo xtask loom --model {}", self.run),
            Kind::Test | Kind::FuzzReplay => format!("cargo test {}", self.run),
        }
    }

    /// For the name of a file.
    pub(super) fn number(&self) -> u32 {
        let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        self.text().bytes().fold(0x811c_9dc5, step)
    }
}

const LOOM: [&str; 5] = ["cargo", "test", "--locked", "--package", "ringpost-sync"];

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A process to start for these words.
pub(super) fn command(words: &[String]) -> Command {
    let mut words = words.iter();
    let mut command = Command::new(words.next().map_or("cargo", String::as_str));
    command.args(words);
    command
}

/// Canaries that do not fit the tree: their name and the file, or what is wrong with the list.
pub(crate) fn check(root: &Path) -> Vec<String> {
    let list = match List::read(root) {
        Ok(list) => list,
        Err(error) => return vec![format!("{error:#}")],
    };
    let of = |canary: &Canary| -> Vec<String> {
        canary.stale(root).iter().map(|file| format!("{FILE}, {}, {file}", canary.name)).collect()
    };
    list.canary.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[canary]]
name = "a-bug"
bug = "something is wrong"
seen = "project #1"
seconds = 5
finder = { kind = "test", run = "--package a --lib -- b::c" }
[[canary.edit]]
file = "crates/a/src/b.rs"
text = '''a < b'''
with = '''a <= b'''

[[canary]]
name = "another"
bug = "something else is wrong"
not_applicable = "there is no such thing"
"#;

    #[test]
    fn reads_canaries() {
        let list = List::parse(GOOD).expect("good");
        let [canary, other] = &list.canary[..] else { panic!("two") };
        let finder = canary.finder.as_ref().expect("a finder");
        let words = |words: Vec<String>| words.join(" ");
        assert_eq!(words(finder.build()), "cargo test --locked --no-run --package a --lib");
        assert_eq!(words(finder.command()), "cargo test --locked --package a --lib -- b::c");
        assert!(other.finder.is_none());
        assert_eq!(list.choose(&["another".into()]).expect("there").len(), 1);
        assert!(list.choose(&["a".into()]).is_err());
    }

    #[test]
    fn knows_its_own() {
        let finder = |kind, run: &str| Finder { kind, run: run.to_owned() };
        let test = finder(Kind::Test, "--package a --lib -- b::c d::");
        assert!(test.is_ours("b::c_d") && test.is_ours("x::d::e"));
        assert!(!test.is_ours("b::d"));
        assert!(finder(Kind::Test, "--package a --test it").is_ours("b::d"));
        let loom = finder(Kind::Loom, "l1 l2");
        assert!(loom.is_ours("models::l2::holds"));
        assert!(!loom.is_ours("models::l12::holds") && !loom.is_ours("models::l1::take_relaxed"));
        let sim = finder(Kind::Sim, "--scenario bulk --scenario ends/ring --seeds 5");
        assert!(sim.is_ours("bulk, seed 7, after 3 enters") && sim.is_ours("ends/ring, seed 4"));
        assert!(!sim.is_ours("bulk/ring, seed 7") && !sim.is_ours("echo, seed 7"));
        let sweep = finder(Kind::Sim, "--sweep --operation handle --seed 1");
        assert!(sweep.is_ours("sweep of handle, plain, x") && sweep.is_ours("script handle, seed"));
        assert!(!sweep.is_ours("sweep of accept, plain"));
    }

    #[test]
    fn refuses_what_is_incomplete() {
        for (from, to) in [
            ("not_applicable =", "# "),
            ("file = \"crates/a/src/b.rs\"", ""),
            ("name = \"another\"", "name = \"a-bug\""),
            ("seconds", "secnods"),
            ("name = \"another\"", "name = \"an other\""),
        ] {
            assert!(List::parse(&GOOD.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn an_edit_fits_once() {
        let list = List::parse(GOOD).expect("good");
        let edit = &list.canary[0].edit[0];
        assert_eq!(edit.apply("if a < b {").expect("fits"), "if a <= b {");
        assert!(edit.apply("a < b && a < b").is_err());
        assert!(edit.apply("").is_err());
        assert_eq!(list.canary[0].stale(Path::new("/nonexistent")), ["crates/a/src/b.rs"]);
    }
}
