//! Out of descriptors: accepting rests without spinning, and goes on by itself.

use std::time::Duration;

use ringpost::{EngineChoice, Listener, Spin, sleep, timeout};
use ringpost_testkit::process;
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::privileges::limit_descriptors;
use ringpost_tests::rig::{Bystander, blocking, builder, place, run};

use crate::roles;

on_both_engines_alone!(accepting_rests);

fn accepting_rests(engine: EngineChoice) {
    const CLIENTS: usize = 30;
    const FREE: usize = 10;
    let (_directory, path) = place();
    // A spin asks epoll again and again.
    let runtime = builder(engine).spin(Spin::Never).build().expect("a runtime");
    run(&runtime, async {
        let mut bystander = Bystander::new();
        bystander.check().await;
        let mut listener = Listener::bind(&path).expect("bind");
        let words = [path.to_str().expect("text"), &CLIENTS.to_string()];
        let mut child = roles::start("clients", &words);
        // Highest number in use, not count: the limit is on numbers.
        limit_descriptors((process::descriptors() + FREE) as u64);
        child.tell("start");

        let mut open = Vec::new();
        while let Ok(accepted) = timeout(Duration::from_millis(300), listener.accept()).await {
            open.push(accepted.expect("no failure"));
        }
        assert!(open.len().abs_diff(FREE) <= 2, "{} accepted", open.len());
        let before = ringpost::stats();
        assert!(before.accepts_deferred > 0, "{before:?}");
        sleep(Duration::from_secs(1)).await;
        let calls = ringpost::stats().system_calls - before.system_calls;
        assert!(calls < 40, "{calls} system calls in a second of rest");
        bystander.check().await;

        // Each that is served and let go makes room for another.
        let mut served = 0;
        while served < CLIENTS {
            for mut connection in std::mem::take(&mut open) {
                let message = connection.recv().await.expect("a message").expect("no end");
                connection.send_message(message).await.expect("open");
                connection.flush().await.expect("open");
                served += 1;
            }
            while open.len() + served < CLIENTS {
                let next = timeout(Duration::from_millis(700), listener.accept()).await;
                let Ok(accepted) = next else { break };
                open.push(accepted.expect("no failure"));
            }
            assert!(served == CLIENTS || !open.is_empty(), "stuck with {served} served");
        }
        limit_descriptors(256);
        child.tell("close");
        let child = blocking(move || {
            assert_eq!(child.hear(), "closed");
            child
        })
        .await;
        drop(child);
    });
}
