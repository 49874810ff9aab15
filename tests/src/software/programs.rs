//! Finding programs, and saying which package has those that are missing.

use std::path::{Path, PathBuf};

use ringpost_testkit::child::skip;

/// A program, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Needed {
    /// Its file name.
    pub program: &'static str,
    /// The package.
    pub package: &'static str,
}

/// Whether all of these programs are here; if not, reports the test as skipped and names the packages.
pub fn here_or_skip(test: &str, needed: &[Needed]) -> bool {
    let missing: Vec<&Needed> =
        needed.iter().filter(|needed| find(needed.program).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    let programs: Vec<&str> = missing.iter().map(|needed| needed.program).collect();
    let mut packages: Vec<&str> = missing.iter().map(|needed| needed.package).collect();
    packages.dedup();
    let (programs, packages) = (programs.join(", "), packages.join(" "));
    skip(test, &format!("no {programs}; on Debian: apt-get install {packages}"));
    false
}

/// Where a program is: in `PATH`, or where Debian keeps servers.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join(program)).find(|path| is_executable(path))
}

/// Where a program is that [`here_or_skip`] has found.
///
/// # Panics
///
/// If it is not there.
pub fn path(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| panic!("{program} is not installed"))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}
