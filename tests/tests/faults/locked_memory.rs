//! Little locked memory (RLIMIT_MEMLOCK) and no CAP_IPC_LOCK: rings count against it, and the kernel takes
//! its time to give back what a closed ring had. (A limit that no ring fits: `it::refused_uring`.)

use ringpost::{EngineChoice, EngineKind, Runtime};
use ringpost_testkit::child::{isolated, skip};
use ringpost_testkit::process;
use ringpost_tests::privileges::{become_user, limit_locked_memory, root_or_skip};
use ringpost_tests::rig::{ask, echo, pair, run};

/// A thousand rings one after the other under a limit that a few fit at once: each gets io_uring, as large
/// as the first.
#[test]
fn a_thousand_rings_in_a_row() {
    if !root_or_skip("locked_memory::a_thousand_rings_in_a_row") {
        return;
    }
    isolated(concat!(module_path!(), "::a_thousand_rings_in_a_row"), &[], || {
        limit_locked_memory(LIMIT_BYTES);
        // Its own, as the kernel counts per user.
        become_user(61_234);
        let first = Runtime::builder().engine(EngineChoice::Uring).build();
        let first = match first {
            Ok(runtime) => runtime,
            Err(error) => {
                return skip("locked_memory::a_thousand_rings_in_a_row", &error.to_string());
            }
        };
        drop(first);
        let before = process::descriptors();
        let mut refused = 0;
        for round in 0..1000 {
            let runtime = loop {
                let runtime =
                    Runtime::new().unwrap_or_else(|error| panic!("ring {round}: {error}"));
                let engine = runtime.engine();
                if engine.kind == EngineKind::Uring {
                    break runtime;
                }
                // On a machine that does not get round to it the kernel may take longer than a runtime waits.
                refused += 1;
                assert!(refused <= REFUSED_MAX, "ring {round}: {engine}");
            };
            if round % 100 == 0 {
                run(&runtime, async {
                    let (mut client, server) = pair(ringpost::ConnectionOptions::new());
                    ringpost::spawn(echo(server));
                    ask(&mut client, round, 3000).await;
                });
            }
        }
        assert_eq!(process::descriptors(), before);
    });
}

const LIMIT_BYTES: u64 = 1 << 20;
/// Without waiting, it is every seventh ring.
const REFUSED_MAX: u32 = 10;
