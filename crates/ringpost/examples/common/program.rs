//! What every program here does around its own work.

use std::io;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Does `work`. If it fails, prints one line that says why, and ends with a code that says so too.
///
/// Warnings go to standard error; `RUST_LOG=debug` shows more.
pub(crate) fn run(name: &str, work: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_thread_names(true)
        .init();
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without its chain of sources: ringpost's errors have the reason in their text.
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}
