//! The same test on both engines, each under its own name.

use std::sync::OnceLock;
use std::time::Duration;

use ringpost::{EngineChoice, Runtime};
use ringpost_testkit::{child, patience};

/// Longest run of one test.
pub const LIMIT: Duration =
    Duration::from_secs(if cfg!(any(ringpost_asan, ringpost_tsan)) { 200 } else { 40 });

/// Makes two tests, `name::uring` and `name::epoll`, of each function from an [`EngineChoice`].
#[macro_export]
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                #[test]
                fn uring() {
                    let test = concat!(module_path!(), "::uring");
                    $crate::engines::run(test, $crate::engines::URING, super::$name);
                }

                #[test]
                fn epoll() {
                    let test = concat!(module_path!(), "::epoll");
                    $crate::engines::run(test, $crate::engines::EPOLL, super::$name);
                }
            }
        )*
    };
}

/// Like [`on_both_engines`], each in a process of its own.
#[macro_export]
macro_rules! on_both_engines_alone {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                #[test]
                fn uring() {
                    let test = concat!(module_path!(), "::uring");
                    $crate::engines::run_alone(test, $crate::engines::URING, super::$name);
                }

                #[test]
                fn epoll() {
                    let test = concat!(module_path!(), "::epoll");
                    $crate::engines::run_alone(test, $crate::engines::EPOLL, super::$name);
                }
            }
        )*
    };
}

/// io_uring.
pub const URING: EngineChoice = EngineChoice::Uring;
/// epoll.
pub const EPOLL: EngineChoice = EngineChoice::Epoll;

/// Runs a test, bounded in time; skips it if the host refuses the engine.
pub fn run(test: &'static str, engine: EngineChoice, body: fn(EngineChoice)) {
    match refusal(engine) {
        Some(reason) => child::skip(test, reason),
        None => patience::bounded(test, LIMIT, move || body(engine)),
    }
}

/// Like [`run`], in a process of its own.
pub fn run_alone(test: &'static str, engine: EngineChoice, body: fn(EngineChoice)) {
    child::isolated(test, &[], || run(test, engine, body));
}

/// Why this host can't run the engine.
fn refusal(engine: EngineChoice) -> Option<&'static str> {
    static URING_REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    if engine != URING {
        return None;
    }
    let try_it = || Runtime::builder().engine(URING).build().err().map(|error| error.to_string());
    URING_REFUSAL.get_or_init(try_it).as_deref()
}
