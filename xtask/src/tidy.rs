//! `cargo xtask tidy`: the project's own rules, which no compiler or linter checks.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};
use xshell::cmd;

use crate::reliability;
use crate::run::{root, shell};
use crate::source::{Line, contains_word, split};

/// Arguments of `cargo xtask tidy`.
#[derive(Debug, clap::Args)]
pub(crate) struct TidyArgs {}

pub(crate) fn run(_: &TidyArgs) -> Result<()> {
    check()
}

/// Checks all rules, prints each violation, and fails if there is one.
pub(crate) fn check() -> Result<()> {
    let shell = shell()?;
    let listed = cmd!(shell, "git ls-files -z --cached --others --exclude-standard").read()?;
    let root = root();
    let mut violations = Vec::new();
    let mut files = Vec::new();
    for path in listed.split_terminator('\0') {
        // Listed and removed, or not text: nothing to read.
        let Ok(text) = std::fs::read_to_string(root.join(path)) else {
            continue;
        };
        violations.extend(check_file(path, &text));
        if let Some(lines) = long(path, &text) {
            println!("{path}: {lines} lines; consider splitting it");
        }
        files.push((path, text));
    }
    let paths: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
    violations.extend(check_tree(&paths));
    let files: Vec<(&str, &str)> =
        files.iter().map(|(path, text)| (*path, text.as_str())).collect();
    if let Some((path, page)) = files.iter().find(|(path, _)| *path == reliability::PAGE) {
        violations.extend(
            reliability::check(page, &files).into_iter().map(|(line, rule)| Violation {
                path: (*path).to_owned(),
                line,
                rule: rule.into(),
            }),
        );
    }
    let stale = crate::canaries::check(&root).into_iter();
    violations.extend(stale.map(|path| Violation { path, line: 0, rule: STALE_CANARY.into() }));
    for violation in &violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => {
            println!("tidy: {} files, nothing to say", files.len());
            Ok(())
        }
        count => bail!("{count} violations of the project's rules"),
    }
}

/// A broken rule, and where.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    path: String,
    /// Counted from 1; 0 for the file as a whole.
    line: usize,
    rule: Cow<'static, str>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.rule),
            line => write!(f, "{}:{line}: {}", self.path, self.rule),
        }
    }
}

/// All rules about one file.
fn check_file(path: &str, text: &str) -> Vec<Violation> {
    let mut found = check_text(path, text);
    if path.ends_with(".rs") {
        found.extend(check_rust(path, text));
    }
    if path == "Cargo.toml" {
        found.extend(check_manifest(text));
    }
    found
        .into_iter()
        .map(|(line, rule)| Violation { path: path.into(), line, rule: rule.into() })
        .collect()
}

type Findings = Vec<(usize, &'static str)>;

/// Rules for every text file, but what programs wrote.
fn check_text(path: &str, text: &str) -> Findings {
    let mut found = Findings::new();
    if GENERATED.iter().any(|part| path.contains(part)) {
        return found;
    }
    for (line, content) in numbered(text.lines()) {
        if content.ends_with([' ', '\t', '\r']) {
            found.push((line, TRAILING_SPACE));
        }
        if has_private_path(content) {
            found.push((line, PRIVATE_PATH));
        }
        let comment = match Path::new(path).extension().and_then(|extension| extension.to_str()) {
            Some("toml" | "py" | "sh" | "yml") | None => content.split_once('#'),
            _ => None,
        };
        if comment.is_some_and(|(_, comment)| has_unfinished(comment)) {
            found.push((line, UNFINISHED));
        }
    }
    found
}

fn check_rust(path: &str, text: &str) -> Findings {
    let lines = split(text);
    let mut found = Findings::new();
    if !starts_with_docs(text) {
        found.push((1, MODULE_DOCS));
    }
    if text.lines().count() > LINES_MAX {
        found.push((0, TOO_LONG));
    }
    if FORBIDS_UNSAFE.contains(&path) && !lines.iter().any(is_forbid_unsafe) {
        found.push((0, FORBID_MISSING));
    }
    let may_be_unsafe = MAY_BE_UNSAFE.iter().any(|pattern| matches(pattern, path));
    for (line, content) in numbered(&lines) {
        if has_unfinished(&content.comment) || has_unfinished(&content.code) {
            found.push((line, UNFINISHED));
        }
        if content.code.contains("todo!") {
            found.push((line, UNFINISHED));
        }
        if content.code.contains("#[ignore]") {
            found.push((line, IGNORE_REASON));
        }
        if content.has_word("unsafe") {
            if !may_be_unsafe {
                found.push((line, UNSAFE_PLACE));
            }
            if takes_proof(&content.code) && !is_proven(&lines, line - 1) {
                found.push((line, UNSAFE_PROOF));
            }
        }
    }
    found
}

/// Rules for the root manifest: each dependency says what it is for.
fn check_manifest(text: &str) -> Findings {
    let mut found = Findings::new();
    let mut inside = false;
    for (line, content) in numbered(text.lines()) {
        if content.starts_with('[') {
            inside = content.trim() == "[workspace.dependencies]";
            continue;
        }
        let is_dependency = content.contains('=') && !content.trim_start().starts_with('#');
        let is_ours = content.contains("path = ");
        if inside && is_dependency && !is_ours {
            let reason = content.rsplit_once("# ").map_or("", |(_, reason)| reason);
            if reason.trim().is_empty() {
                found.push((line, DEPENDENCY_REASON));
            }
        }
    }
    found
}

/// Rules about which files there are.
fn check_tree(paths: &[&str]) -> Vec<Violation> {
    let violation = |path: &str, rule: &'static str| Violation {
        path: path.to_owned(),
        line: 0,
        rule: rule.into(),
    };
    let mut found = Vec::new();
    let mut folders: Vec<&str> =
        paths.iter().filter_map(|path| path.split_once('/')).map(|(folder, _)| folder).collect();
    folders.sort_unstable();
    folders.dedup();
    for folder in folders {
        if !folder.starts_with('.') && !FOLDERS.contains(&folder) {
            found.push(violation(folder, FOLDER));
        }
    }
    for document in DOCUMENTS {
        if !paths.contains(document) {
            found.push(violation(document, DOCUMENT_MISSING));
        }
    }
    found
}

fn numbered<T>(lines: impl IntoIterator<Item = T>) -> impl Iterator<Item = (usize, T)> {
    lines.into_iter().enumerate().map(|(index, line)| (index + 1, line))
}

/// How many lines a source file has, if it is time to think about it.
fn long(path: &str, text: &str) -> Option<usize> {
    let lines = text.lines().count();
    (path.ends_with(".rs") && lines > LINES_LONG).then_some(lines)
}

/// Whether the first thing in the file, attributes aside, is its documentation.
fn starts_with_docs(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_start);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with("#!["));
    first.is_some_and(|line| line.starts_with("//!"))
}

fn has_unfinished(text: &str) -> bool {
    UNFINISHED_WORDS.iter().any(|word| contains_word(text, word))
}

/// Whether the line has a path that exists only on somebody's machine.
fn has_private_path(line: &str) -> bool {
    PRIVATE_ROOTS.iter().any(|root| {
        line.match_indices(root).any(|(start, _)| {
            // Part of a longer path, or of a web address, it is something else.
            !line[..start].ends_with(|c: char| c.is_alphanumeric() || "._-}*/".contains(c))
        })
    })
}

fn is_forbid_unsafe(line: &Line) -> bool {
    line.code.contains("#![forbid(unsafe_code")
}

/// Whether the line opens an unsafe block or implementation, which someone must have proven sound. A
/// function or trait states what its callers must prove; the compiler sees to its documentation.
fn takes_proof(code: &str) -> bool {
    code.match_indices("unsafe").any(|(start, word)| {
        let rest = code[start + word.len()..].trim_start();
        let opens_block = rest.is_empty() || rest.starts_with('{');
        contains_word(&code[start..], word) && (opens_block || contains_word(rest, "impl"))
    })
}

/// Whether the statement that line `index` belongs to has a proof in it or directly above it.
fn is_proven(lines: &[Line], index: usize) -> bool {
    let has_proof = |line: &Line| line.comment.contains("SAFETY:");
    if has_proof(&lines[index]) {
        return true;
    }
    for line in lines[..index].iter().rev() {
        if has_proof(line) {
            return true;
        }
        let code = line.code.trim_end();
        let is_attribute = code.trim_start().starts_with("#[");
        if line.is_blank() || (!is_attribute && code.ends_with([';', '{', '}'])) {
            return false;
        }
    }
    false
}

/// Matches a path against a pattern, in which a `*` at the end stands for anything.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == pattern,
    }
}

/// Where unsafe code may be. Everything else is checked by the compiler alone.
const MAY_BE_UNSAFE: &[&str] = &[
    // The promise that every engine relies on: memory stays as long as the kernel may touch it. These
    // files state it, pass it on, or make it.
    "crates/ringpost-reactor/src/engine.rs",
    "crates/ringpost-reactor/src/any_engine.rs",
    "crates/ringpost-reactor/src/ops.rs",
    // System calls, and memory that the kernel writes to.
    "crates/ringpost-reactor/src/epoll*",
    "crates/ringpost-reactor/src/by_hand.rs",
    "crates/ringpost-reactor/src/leakable.rs",
    "crates/ringpost-reactor/src/ancillary.rs",
    "crates/ringpost-reactor/src/listener.rs",
    "crates/ringpost-reactor/src/outbound.rs",
    "crates/ringpost-reactor/src/packet_io.rs",
    "crates/ringpost-reactor/src/peer_groups.rs",
    "crates/ringpost-reactor/src/pool.rs",
    "crates/ringpost-reactor/src/uring*",
    "crates/ringpost-reactor/src/sim/mod.rs",
    "crates/ringpost-reactor/src/sim/kernel.rs",
    "crates/ringpost-reactor/src/sim/entry.rs",
    "crates/ringpost-reactor/src/sim/group.rs",
    "crates/ringpost-reactor/src/sim/ring*",
    "crates/ringpost-reactor/src/memory*",
    "benches/*",
    "tests/*",
];

/// The roots of crates that must not have unsafe code at all.
const FORBIDS_UNSAFE: &[&str] = &[
    "crates/ringpost/src/lib.rs",
    "crates/ringpost-frame/src/lib.rs",
    "crates/ringpost-sync/src/lib.rs",
    "crates/ringpost-testkit/src/lib.rs",
    "crates/ringpost-uds/src/lib.rs",
    "crates/ringpost-sim/src/lib.rs",
    "crates/ringpost-sim/src/main.rs",
    "xtask/src/main.rs",
];

const FOLDERS: &[&str] = &["benches", "crates", "docs", "fuzz", "tests", "xtask"];

const DOCUMENTS: &[&str] = &["ARCHITECTURE.md", "CHANGELOG.md", "README.md", reliability::PAGE];

/// Files that nobody writes by hand.
const GENERATED: &[&str] = &["Cargo.lock", "fuzz/corpus/", "/record/", "/results/", ".svg"];

const UNFINISHED_WORDS: &[&str] = &["TODO", "FIXME", "XXX"];

// In two parts, so that this file keeps the rule itself.
const PRIVATE_ROOTS: &[&str] =
    &[concat!("/", "home/"), concat!("/", "root/"), concat!("/", "work/"), concat!("/", "Users/")];

/// A file with more lines does two things.
const LINES_MAX: usize = 1000;

/// A file with more lines is worth a thought.
const LINES_LONG: usize = 600;

const TRAILING_SPACE: &str = "white space at the end of the line";
const PRIVATE_PATH: &str = "a path that exists only on one machine";
const UNFINISHED: &str = "unfinished work; finish it, or say what is so and why";
const MODULE_DOCS: &str = "no documentation (//!) at the top";
const TOO_LONG: &str = "more than 1000 lines; split it";
const FORBID_MISSING: &str = "this crate needs #![forbid(unsafe_code)]";
const IGNORE_REASON: &str = "an ignored test needs a reason: #[ignore = \"...\"]";
const UNSAFE_PLACE: &str = "unsafe code outside of the files that may have it (see tidy.rs)";
const UNSAFE_PROOF: &str = "no SAFETY comment directly above";
const DEPENDENCY_REASON: &str = "a dependency needs a comment that says what it is for";
const FOLDER: &str = "a top-level folder that the layout does not have";
const DOCUMENT_MISSING: &str = "missing";
const STALE_CANARY: &str = "what a canary replaces must be there exactly once";

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules that fire on a file, in order.
    fn fires(path: &str, text: &str) -> Vec<(usize, Cow<'static, str>)> {
        check_file(path, text).into_iter().map(|found| (found.line, found.rule)).collect()
    }

    #[track_caller]
    fn check(path: &str, text: &str, expected: &[(usize, &'static str)]) {
        let expected: Vec<_> =
            expected.iter().map(|&(line, rule)| (line, Cow::Borrowed(rule))).collect();
        assert_eq!(fires(path, text), expected, "{path}: {text:?}");
    }

    #[test]
    fn a_good_file() {
        check("crates/a/src/b.rs", "//! Docs.\n\nfn a() {}\n", &[]);
        check("fuzz/fuzz_targets/a.rs", "#![no_main]\n//! Docs.\n", &[]);
    }

    #[test]
    fn module_docs() {
        check("a/b.rs", "fn a() {}\n", &[(1, MODULE_DOCS)]);
        check("a/b.rs", "// Docs.\n", &[(1, MODULE_DOCS)]);
        check("a/b.rs", "", &[(1, MODULE_DOCS)]);
    }

    #[test]
    fn unfinished_work() {
        for word in UNFINISHED_WORDS {
            check("a/b.rs", &format!("//! D.\n// {word}: later\n"), &[(2, UNFINISHED)]);
            check("a/b.rs", &format!("//! D.\n/* {word} */\n"), &[(2, UNFINISHED)]);
            check("a/b.toml", &format!("a = 1 # {word}\n"), &[(1, UNFINISHED)]);
            check("a/b.rs", &format!("//! D.\nconst A: &str = \"{word}\";\n"), &[]);
        }
        check("a/b.rs", &format!("//! D.\nfn a() {{ {}!() }}\n", "todo"), &[(2, UNFINISHED)]);
        check("a/b.rs", "//! D.\n// app.XXXXXXXX\n", &[]);
    }

    #[test]
    fn ignored_tests() {
        check("a/b.rs", "//! D.\n#[ignore]\nfn a() {}\n", &[(2, IGNORE_REASON)]);
        check("a/b.rs", "//! D.\n#[ignore = \"slow\"]\nfn a() {}\n", &[]);
    }

    #[test]
    fn unsafe_places() {
        let text = "//! D.\n// SAFETY: proven.\nlet a = unsafe { b() };\n";
        check("crates/ringpost-uds/src/bind.rs", text, &[(3, UNSAFE_PLACE)]);
        check("crates/ringpost-reactor/src/uring/sys.rs", text, &[]);
        check("crates/ringpost-reactor/src/memory.rs", text, &[]);
        check("benches/src/sys.rs", text, &[]);
        let text = "//! D.\n#![deny(unsafe_op_in_unsafe_fn)]\n// unsafe\nlet a = \"unsafe\";\n";
        check("crates/a/src/b.rs", text, &[]);
    }

    #[test]
    fn unsafe_proofs() {
        let proven = |text: &str| check("tests/a.rs", &format!("//! D.\n{text}\n"), &[]);
        proven("// SAFETY: b holds.\nunsafe { b() }");
        proven("unsafe { b() } // SAFETY: b holds.");
        proven("// SAFETY: b holds,\n// for c.\nunsafe impl Send for B {}");
        proven("// SAFETY: b holds.\n#[inline]\nunsafe impl Send for B {}");
        proven("// SAFETY: b holds.\nlet a =\n    unsafe { b() };");
        proven("/// # Safety\n///\n/// b holds.\npub unsafe fn b() {}");
        proven("type F = unsafe extern \"C\" fn();");

        let not = |text: &str, line| {
            check("tests/a.rs", &format!("//! D.\n{text}\n"), &[(line, UNSAFE_PROOF)]);
        };
        not("unsafe { b() }", 2);
        not("// b holds.\nunsafe { b() }", 3);
        not("// SAFETY: b holds.\n\nunsafe { b() }", 4);
        not("// SAFETY: b holds.\nlet a = 1;\nunsafe { b() }", 4);
        not("unsafe impl Send for B {}", 2);
        not("unsafe impl<T: Send> Send for B<T> {}", 2);
        not("let a = unsafe\n{ b() };", 2);
    }

    #[test]
    fn crates_without_unsafe_code() {
        check("crates/ringpost-uds/src/lib.rs", "//! D.\n", &[(0, FORBID_MISSING)]);
        check("xtask/src/main.rs", "//! D.\n// #![forbid(unsafe_code)]\n", &[(0, FORBID_MISSING)]);
        check("xtask/src/main.rs", "//! D.\n#![forbid(unsafe_code)]\n", &[]);
    }

    #[test]
    fn white_space() {
        check("README.md", "a \nb\t\nc\n", &[(1, TRAILING_SPACE), (2, TRAILING_SPACE)]);
        check("README.md", "a\r\nb\n", &[]);
        check("fuzz/corpus/a/1", "a \n", &[]);
    }

    #[test]
    fn private_paths() {
        for root in PRIVATE_ROOTS {
            check("README.md", &format!("see {root}me/file\n"), &[(1, PRIVATE_PATH)]);
            check("a/b.sh", &format!("cd '{root}me'\n"), &[(1, PRIVATE_PATH)]);
            check("README.md", &format!("see src{root}mod.rs\n"), &[]);
        }
    }

    #[test]
    fn long_files() {
        let file = |lines: usize| "//! D.\n".repeat(lines);
        check("a/b.rs", &file(1001), &[(0, TOO_LONG)]);
        check("a/b.rs", &file(1000), &[]);
        assert_eq!(long("a/b.rs", &file(601)), Some(601));
        assert_eq!(long("a/b.rs", &file(600)), None);
        assert_eq!(long("a/b.md", &file(601)), None);
    }

    #[test]
    fn dependency_reasons() {
        let manifest =
            |line: &str| format!("[workspace.dependencies]\n{line}\n\n[profile.a]\nb = 1\n");
        check("Cargo.toml", &manifest("slab = \"1\" # tables"), &[]);
        check("Cargo.toml", &manifest("ours = { path = \"crates/ours\" }"), &[]);
        check("Cargo.toml", &manifest("# A comment = fine."), &[]);
        check("Cargo.toml", &manifest("slab = \"1\""), &[(2, DEPENDENCY_REASON)]);
        check(
            "Cargo.toml",
            &manifest("slab = \"1\" # "),
            &[(2, TRAILING_SPACE), (2, DEPENDENCY_REASON)],
        );
        check("crates/a/Cargo.toml", &manifest("slab = \"1\""), &[]);
    }

    #[test]
    fn layout() {
        let documents = ["ARCHITECTURE.md", "CHANGELOG.md", "README.md", "RELIABILITY.md"];
        let rules = |paths: &[&str]| -> Vec<(String, Cow<'static, str>)> {
            check_tree(paths).into_iter().map(|found| (found.path, found.rule)).collect()
        };
        let with = |path| [documents.as_slice(), &[path]].concat();
        assert_eq!(rules(&with("crates/a/b.rs")), []);
        assert_eq!(rules(&with(".ci/run")), []);
        assert_eq!(rules(&with("Cargo.toml")), []);
        assert_eq!(rules(&with("scripts/a.sh")), [("scripts".to_owned(), FOLDER.into())]);
        for missing in documents {
            let rest: Vec<&str> = documents.into_iter().filter(|&name| name != missing).collect();
            assert_eq!(rules(&rest), [(missing.to_owned(), DOCUMENT_MISSING.into())]);
        }
    }
}
