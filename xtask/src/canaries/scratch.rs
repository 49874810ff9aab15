//! Copies of the tree in which bugs may be.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use xshell::cmd;

use super::list::{Canary, FILE, command};
use crate::run::{compiler_flags, kill_tree, root, shell};

/// A copy of the tree, and what is built from it.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: PathBuf,
    /// Of everything that a finder may depend on: the tree, the machine and who runs it.
    pub(super) fingerprint: u64,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Success,
    Failure {
        /// It was ended by this signal.
        signal: Option<i32>,
    },
    /// It took too long and was killed.
    Late,
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match status.success() {
            true => Self::Success,
            false => Self::Failure { signal: status.signal() },
        }
    }
}

/// Keeps others from the copies as long as it is held. Fails if somebody else does.
pub(super) fn lock() -> Result<File> {
    lock_in(&root().join(FOLDER))
}

fn lock_in(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("lock");
    let file = File::options().append(true).create(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another `cargo xtask canaries` works in {}: wait for it, or end it",
            folder.display()
        ),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

impl Scratch {
    /// Brings copy `number` up to date. What is as it was is left alone, so that it need not be built again.
    pub(super) fn new(number: usize) -> Result<Self> {
        let root = root();
        let folder = root.join(FOLDER).join(number.to_string());
        let mut scratch = Self { folder, fingerprint: 0 };
        let shell = shell()?;
        let listed = cmd!(shell, "git ls-files -z --cached --others --exclude-standard").quiet();
        let listed = listed.read()?;
        let listed: Vec<&str> = listed.split_terminator('\0').collect();
        let tree = scratch.tree();
        scratch.remove_others(&tree, &listed)?;
        let mut hasher = DefaultHasher::new();
        environment()?.hash(&mut hasher);
        for path in listed {
            // Listed and removed: nothing to copy.
            let Ok(bytes) = fs::read(root.join(path)) else { continue };
            if !path.starts_with("xtask/") && path != FILE {
                (path, &bytes).hash(&mut hasher);
            }
            let target = tree.join(path);
            if fs::read(&target).is_ok_and(|old| old == bytes) {
                continue;
            }
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            }
            fs::copy(root.join(path), &target).with_context(|| target.display().to_string())?;
            touch(&target)?;
        }
        scratch.fingerprint = hasher.finish();
        Ok(scratch)
    }

    fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// Removes files that are not listed any more.
    fn remove_others(&self, folder: &Path, listed: &[&str]) -> Result<()> {
        let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.remove_others(&path, listed)?;
            } else if let Ok(name) = path.strip_prefix(self.tree())
                && !listed.iter().any(|listed| Path::new(listed) == name)
            {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Puts a bug in, until what is returned is dropped.
    pub(super) fn mutate(&self, canary: &Canary) -> Result<Mutated> {
        let mut mutated = Mutated { originals: Vec::new() };
        for edit in &canary.edit {
            let path = self.tree().join(&edit.file);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let changed = edit.apply(&text)?;
            mutated.originals.push((path.clone(), text));
            fs::write(&path, changed)?;
        }
        Ok(mutated)
    }

    /// Runs a command in the copy, at most this long, with its output behind what is in `log`.
    pub(super) fn run(&self, words: Vec<String>, log: &Path, limit: Duration) -> Result<Ended> {
        let mut command = command(&words);
        let is_loom = words.iter().any(|word| word == "loom");
        self.prepare(&mut command, is_loom);
        let file = File::options().append(true).create(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let start = Instant::now();
        let mut child = command.spawn().with_context(|| words.join(" "))?;
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Ended::from(status);
            }
            if start.elapsed() > limit {
                kill_tree(child.id());
                child.wait()?;
                break Ended::Late;
            }
            thread::sleep(Duration::from_millis(5));
        };
        self.kill_left_over();
        Ok(ended)
    }

    fn prepare(&self, command: &mut Command, is_loom: bool) {
        command.current_dir(self.tree());
        let target = if is_loom { "target-loom" } else { "target" };
        command.env("CARGO_TARGET_DIR", self.folder.join(target));
        if is_loom {
            let (variable, flags) = compiler_flags("--cfg loom");
            command.env(variable, flags).env("LOOM_MAX_PREEMPTIONS", "3");
        }
        // Small to write, and only what has changed is built.
        command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "1");
        command.env("CARGO_BUILD_JOBS", "2").env("CARGO_TERM_COLOR", "never");
        command.env("RUST_BACKTRACE", "0");
    }

    /// Ends programs of this copy whose parents ended without them.
    fn kill_left_over(&self) {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let ours = fs::read_link(process.path().join("exe"))
                .is_ok_and(|program| program.starts_with(&self.folder));
            let id = process.file_name().to_str().and_then(|name| name.parse().ok());
            if ours && let Some(pid) = id.and_then(Pid::from_raw) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// A file for what commands print, empty.
    pub(super) fn log(&self, name: &str) -> Result<PathBuf> {
        let folder = root().join(LOG_FOLDER);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let log = folder.join(name).with_extension("txt");
        File::create(&log).with_context(|| log.display().to_string())?;
        Ok(log)
    }
}

/// A bug that is in a copy. Dropping it takes the bug out.
#[derive(Debug)]
#[must_use = "the bug is taken out when this is dropped"]
pub(super) struct Mutated {
    originals: Vec<(PathBuf, String)>,
}

impl Drop for Mutated {
    fn drop(&mut self) {
        // The oldest text of a file is the last one written.
        for (path, text) in self.originals.iter().rev() {
            if let Err(error) = fs::write(path, text) {
                // The next run copies the file again.
                eprintln!("{} keeps a bug: {error}", path.display());
            }
        }
    }
}

/// What finders depend on besides the tree: the compiler and what it is told, the kernel and who asks it.
fn environment() -> Result<String> {
    let shell = shell()?;
    let mut text = cmd!(shell, "rustc -vV").quiet().read()?;
    let kernel = "/proc/sys/kernel/osrelease";
    text += &fs::read_to_string(kernel).context(kernel)?;
    text += &format!("user {}\n", rustix::process::geteuid().as_raw());
    // In the order of their names.
    let variables: BTreeMap<_, _> = env::vars_os().collect();
    for (name, value) in variables {
        if name.to_str().is_some_and(counts) {
            text += &format!("{}={}\n", name.display(), value.display());
        }
    }
    Ok(text)
}

/// Whether a variable may change what a finder finds.
fn counts(variable: &str) -> bool {
    ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"].contains(&variable)
        || ["CARGO_PROFILE_", "LOOM_", "PROPTEST_", "RINGPOST_", "RUST_TEST_"]
            .iter()
            .any(|begin| variable.starts_with(begin))
}

/// The finders that have passed on this very tree, and how long they took, so that trying some canaries again does
/// not begin with what is known.
pub(super) fn known_to_pass(fingerprint: u64) -> BTreeMap<String, Duration> {
    parse_known(&fs::read_to_string(root().join(KNOWN_FILE)).unwrap_or_default(), fingerprint)
}

fn parse_known(text: &str, fingerprint: u64) -> BTreeMap<String, Duration> {
    let mut lines = text.lines();
    if lines.next() != Some(fingerprint.to_string().as_str()) {
        return BTreeMap::new();
    }
    let known = |line: &str| {
        let (milliseconds, finder) = line.split_once('\t')?;
        Some((finder.to_owned(), Duration::from_millis(milliseconds.parse().ok()?)))
    };
    lines.filter_map(known).collect()
}

/// Keeps them for the next time.
pub(super) fn keep_known(fingerprint: u64, finders: &BTreeMap<String, Duration>) -> Result<()> {
    fs::write(root().join(KNOWN_FILE), format_known(fingerprint, finders)).context(KNOWN_FILE)
}

fn format_known(fingerprint: u64, finders: &BTreeMap<String, Duration>) -> String {
    let mut text = fingerprint.to_string();
    for (finder, took) in finders {
        text += &format!("\n{}\t{finder}", took.as_millis());
    }
    text
}

/// Makes a file look changed to cargo: a copy may carry the time of its original.
fn touch(path: &Path) -> Result<()> {
    let file = File::options().append(true).open(path)?;
    file.set_modified(std::time::SystemTime::now())?;
    Ok(())
}

/// What was printed behind the first `from` bytes.
pub(super) fn read(log: &Path, from: u64) -> Result<String> {
    let bytes = fs::read(log).with_context(|| log.display().to_string())?;
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
}

/// How much was printed.
pub(super) fn length(log: &Path) -> Result<u64> {
    Ok(fs::metadata(log).with_context(|| log.display().to_string())?.len())
}

const FOLDER: &str = "target/canaries";
const KNOWN_FILE: &str = "target/canaries/known.txt";
pub(super) const LOG_FOLDER: &str = "target/canaries/log";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_works_at_a_time() {
        let name = format!("ringpost-xtask-lock-{}", std::process::id());
        let folder = env::temp_dir().join(name);
        let first = lock_in(&folder).expect("nobody has it");
        let error = lock_in(&folder).expect_err("taken").to_string();
        assert!(error.starts_with("another `cargo xtask canaries` works in "), "{error}");
        drop(first);
        // What another test starts at this moment has a copy of the lock until it is a program of its own.
        let start = Instant::now();
        while let Err(error) = lock_in(&folder) {
            assert!(start.elapsed() < Duration::from_secs(30), "{error}");
            thread::sleep(Duration::from_millis(1));
        }
        fs::remove_dir_all(&folder).expect("it is ours");
    }

    #[test]
    fn what_is_known_holds_for_one_tree_and_one_machine() {
        let finders = [("cargo test a", 1500), ("cargo test b", 0)];
        let finders = finders.map(|(name, took)| (name.to_owned(), Duration::from_millis(took)));
        let finders = BTreeMap::from(finders);
        let text = format_known(7, &finders);
        assert_eq!(parse_known(&text, 7), finders);
        assert!(parse_known(&text, 8).is_empty());

        let environment = environment().expect("there is a compiler");
        for part in ["rustc ", "host: ", "\nuser "] {
            assert!(environment.contains(part), "{part}: {environment}");
        }
        assert!(counts("RUSTFLAGS") && counts("PROPTEST_CASES") && !counts("CARGO_PKG_NAME"));
    }
}
