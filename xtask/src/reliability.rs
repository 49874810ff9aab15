//! Checks RELIABILITY.md against the tree: each row of its fault matrix names something that exists, and
//! its count of unsafe blocks is the count.
//!
//! A row's last cell holds references in backquotes, or starts with `Not applicable:` and a reason:
//!
//! | reference | what must exist |
//! |---|---|
//! | `module::test` | a source file of that module with a function of that name |
//! | `sim NAME` | a scenario of the simulated kernel |
//! | `fault NAME` | a fault that the simulated kernel injects |
//! | `loom NAME` | a model, checked in every interleaving |
//! | `fuzz NAME` | a fuzz target |
//! | `canary NAME` | a bug that is put back in and must be found |

use crate::source::{Line, contains_word, split};

/// The page.
pub(crate) const PAGE: &str = "RELIABILITY.md";

/// The heading under which the matrix stands; it ends at the next heading of the same level.
const MATRIX: &str = "## Fault matrix";

/// How a row begins its last cell if nothing can show it.
const NOT_APPLICABLE: &str = "Not applicable:";

/// Fewest rows that a matrix of a finished project has: an empty one must not pass.
const ROWS_MIN: usize = 60;

/// Line, counted from 1 (0 for the page as a whole), and what is wrong there.
pub(crate) type Finding = (usize, String);

/// Checks the page. `files` are all files of the tree, path and text.
pub(crate) fn check(page: &str, files: &[(&str, &str)]) -> Vec<Finding> {
    let mut found = check_matrix(page, files);
    found.extend(check_unsafe_blocks(page, files));
    found
}

fn check_matrix(page: &str, files: &[(&str, &str)]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut inside = false;
    let mut rows = 0;
    for (index, line) in page.lines().enumerate() {
        if line.starts_with("## ") {
            inside = line.trim() == MATRIX;
        }
        let Some(cells) = row(line).filter(|_| inside) else { continue };
        // The head of a table, and the line below it.
        let below = page.lines().nth(index + 1).unwrap_or_default();
        if is_rule(line) || is_rule(below) {
            continue;
        }
        rows += 1;
        let evidence = cells.last().copied().unwrap_or_default();
        if let Some(reason) = evidence.strip_prefix(NOT_APPLICABLE) {
            if reason.trim().is_empty() {
                found.push((index + 1, "not applicable, but why?".into()));
            }
            continue;
        }
        let references: Vec<&str> = evidence.split('`').skip(1).step_by(2).collect();
        if references.is_empty() {
            found.push((index + 1, "nothing shows this fault to be survived".into()));
        }
        for reference in references {
            if !exists(reference, files) {
                found.push((index + 1, format!("`{reference}` does not exist")));
            }
        }
    }
    if rows < ROWS_MIN {
        found
            .push((0, format!("the fault matrix has {rows} rows; at least {ROWS_MIN} are needed")));
    }
    found
}

/// The cells of a table's row.
fn row(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

fn is_rule(line: &str) -> bool {
    row(line).is_some_and(|cells| {
        cells.iter().all(|cell| !cell.is_empty() && cell.trim_matches([':', '-']).is_empty())
    })
}

fn exists(reference: &str, files: &[(&str, &str)]) -> bool {
    let in_files = |holds: &dyn Fn(&str, &str) -> bool| files.iter().any(|(p, t)| holds(p, t));
    if let Some((path, test)) = reference.rsplit_once("::") {
        let module = path.rsplit("::").next().unwrap_or(path);
        let function = format!("fn {test}(");
        return in_files(&|path, text| is_module(path, module) && text.contains(&function));
    }
    let Some((kind, name)) = reference.split_once(' ') else { return false };
    let quoted = format!("\"{name}\"");
    match kind {
        "sim" => in_files(&|path, text| {
            path.starts_with("crates/ringpost-sim/src/")
                && text.lines().any(|line| line.trim_start().starts_with(&format!("{quoted} ")))
        }),
        "fault" => in_files(&|path, text| {
            path == "crates/ringpost-reactor/src/sim/faults.rs" && text.contains(&quoted)
        }),
        "loom" => in_files(&|path, text| {
            path.starts_with("crates/ringpost-sync/src/models/")
                && text.lines().any(|line| line.trim_start().starts_with(&format!("{name}: ")))
        }),
        "fuzz" => in_files(&|path, _| path == format!("fuzz/fuzz_targets/{name}.rs")),
        "canary" => in_files(&|path, text| {
            path == "tests/canaries.toml"
                && text.lines().any(|line| line.trim() == format!("name = {quoted}"))
        }),
        _ => false,
    }
}

/// Whether a file is the module, or has it inside as its `tests`.
fn is_module(path: &str, module: &str) -> bool {
    let Some(path) = path.strip_suffix(".rs") else { return false };
    let path = path.strip_suffix("/mod").or_else(|| path.strip_suffix("/main")).unwrap_or(path);
    path.rsplit('/').next() == Some(module)
}

/// The page says how many unsafe blocks the published crates have: `**N unsafe blocks**`.
fn check_unsafe_blocks(page: &str, files: &[(&str, &str)]) -> Vec<Finding> {
    let count: usize = files
        .iter()
        .filter(|(path, _)| path.starts_with("crates/") && path.contains("/src/"))
        .filter(|(path, _)| path.ends_with(".rs"))
        .map(|(_, text)| split(text).iter().filter(|line| opens_unsafe_block(line)).count())
        .sum();
    let claim = format!("**{count} unsafe blocks**");
    if page.contains(&claim) {
        return Vec::new();
    }
    vec![(0, format!("the page does not say that there are {claim}"))]
}

fn opens_unsafe_block(line: &Line) -> bool {
    line.code.match_indices("unsafe").any(|(start, word)| {
        line.code[start + word.len()..].trim_start().starts_with('{')
            && contains_word(&line.code[start..], word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &[(&str, &str)] = &[
        ("tests/tests/it/ends.rs", "fn half_close(engine: EngineChoice) {}"),
        ("crates/a/src/ops/mod.rs", "fn stale() {}\nlet a = unsafe { b() };\nunsafe fn c() {}"),
        ("crates/ringpost-sim/src/scenarios/mod.rs", "    \"echo\" traffic::echo, true;"),
        ("crates/ringpost-reactor/src/sim/faults.rs", "Held \"held\" \"Held back.\";"),
        ("crates/ringpost-sync/src/models/mod.rs", "    wake_one: wake::one, \"no lost wake\" {"),
        ("fuzz/fuzz_targets/decoder.rs", ""),
        ("tests/canaries.toml", "[[canary]]\nname = \"stale token\"\n"),
    ];

    fn matrix(cells: &[&str]) -> Vec<Finding> {
        let mut page =
            format!("# R\n**1 unsafe blocks**\n{MATRIX}\n| fault | shown by |\n|---|---|\n");
        for cell in cells {
            page.push_str(&format!("| f | {cell} |\n"));
        }
        for _ in cells.len()..ROWS_MIN {
            page.push_str("| f | `sim echo` |\n");
        }
        page.push_str("## Other\n| a | b |\n|---|---|\n| f | none |\n");
        check(&page, FILES)
    }

    #[test]
    fn what_exists_is_found() {
        let cells = [
            "`ends::half_close`",
            "`it::ends::half_close`, and `ops::stale`",
            "`sim echo`",
            "`fault held`",
            "`loom wake_one`",
            "`fuzz decoder`",
            "`canary stale token`",
            "Not applicable: there is none.",
        ];
        assert_eq!(matrix(&cells), []);
    }

    #[test]
    fn what_is_gone_is_told() {
        let cells = [
            "`ends::full_close`",
            "`begins::half_close`",
            "`sim ech`",
            "`fault echo`",
            "`loom wake`",
            "`fuzz encoder`",
            "`canary stale`",
            "`half_close`",
            "by thought",
            "Not applicable:",
        ];
        let found = matrix(&cells);
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, (6..16).collect::<Vec<_>>(), "{found:?}");
    }

    #[test]
    fn an_empty_matrix_is_none() {
        let found = check(&format!("**1 unsafe blocks**\n{MATRIX}\n"), FILES);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn unsafe_blocks_are_counted() {
        let page = |count| format!("**{count} unsafe blocks**");
        assert_eq!(check_unsafe_blocks(&page(1), FILES), []);
        assert_eq!(check_unsafe_blocks(&page(2), FILES).len(), 1);
    }
}
