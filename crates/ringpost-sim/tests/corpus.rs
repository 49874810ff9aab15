//! Every input that fuzzing has found worth keeping, replayed without a fuzzer.

use std::time::Duration;

use ringpost_sim::fuzz;
use ringpost_testkit::corpus::replay;
use ringpost_testkit::{child, patience};

/// Longest replay of one target.
const LIMIT: Duration =
    Duration::from_secs(if cfg!(any(ringpost_asan, ringpost_tsan)) { 140 } else { 28 });

/// Replays in a process of its own, because descriptors are counted.
macro_rules! replay {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            let test = concat!(module_path!(), "::", stringify!($target));
            child::isolated(test, &[], || {
                patience::bounded(stringify!($target), LIMIT, || {
                    replay(stringify!($target), fuzz::$target);
                });
            });
        })*
    };
}

mod corpus {
    use super::*;

    replay!(addresses connection control_messages reactor restart_records);
}
