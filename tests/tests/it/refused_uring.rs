//! Hosts that refuse io_uring: epoll takes over and says why, or the demand fails with that reason.

use ringpost::{
    BuildError, ConnectionOptions, EngineChoice, EngineKind, EngineReason, Runtime,
    UringUnavailable,
};
use ringpost_testkit::child::{isolated, isolated_through, skip};
use ringpost_tests::privileges::{
    NOBODY, become_user, limit_locked_memory, refuse_calls, root_or_skip,
};
use ringpost_tests::rig::{ask, echo, pair, run};

const SETUP: &[i64] = &[libc::SYS_io_uring_setup];
const ALL: &[i64] =
    &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
const LATE: &[&[i64]] = &[&[libc::SYS_io_uring_enter], &[libc::SYS_io_uring_register]];

fn echo_works(runtime: &Runtime) {
    run(runtime, async {
        let (mut client, server) = pair(ConnectionOptions::new());
        let server = ringpost::spawn(echo(server));
        for len in [0, 100, 200_000] {
            ask(&mut client, len as u64, len).await;
        }
        client.shutdown().await.expect("open");
        server.await.expect("no panic");
    });
}

fn falls_back(reason: &UringUnavailable) {
    let runtime = Runtime::new().expect("a fallback");
    let report = runtime.engine();
    assert_eq!(report.kind, EngineKind::Epoll);
    assert_eq!(report.reason, EngineReason::Fallback(reason.clone()));
    assert_eq!(report.to_string(), format!("epoll (io_uring can't be used: {reason})"));
    echo_works(&runtime);
    let demanded = Runtime::builder().engine(EngineChoice::Uring).build().expect_err("refused");
    let BuildError::Uring(refusal) = &demanded else { panic!("{demanded}") };
    assert_eq!(refusal, reason);
    let text = format!("io_uring was demanded but can't be used: {reason}");
    assert_eq!(demanded.to_string(), text);
}

#[test]
fn not_permitted() {
    isolated(concat!(module_path!(), "::not_permitted"), &[], || {
        refuse_calls(ALL, libc::EPERM);
        falls_back(&UringUnavailable::NotPermitted);
    });
}

#[test]
fn not_permitted_to_set_up() {
    isolated(concat!(module_path!(), "::not_permitted_to_set_up"), &[], || {
        refuse_calls(SETUP, libc::EPERM);
        falls_back(&UringUnavailable::NotPermitted);
    });
}

#[test]
fn not_implemented() {
    isolated(concat!(module_path!(), "::not_implemented"), &[], || {
        refuse_calls(ALL, libc::ENOSYS);
        falls_back(&UringUnavailable::NotImplemented);
    });
}

/// A filter that lets a ring be set up but not used.
#[test]
fn refused_after_set_up() {
    for (index, calls) in LATE.iter().enumerate() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let test = concat!(module_path!(), "::refused_after_set_up");
            let case = format!("{index} {errno}");
            isolated(test, &[("RINGPOST_TEST_CASE", &case)], || {
                // In the child the loops start anew; it runs the case it was given.
                if std::env::var("RINGPOST_TEST_CASE").is_ok_and(|wanted| wanted != case) {
                    return;
                }
                refuse_calls(calls, errno);
                let runtime = Runtime::new().expect("a fallback");
                println!("{}", runtime.engine());
                if index == 0 {
                    assert_eq!(runtime.engine().kind, EngineKind::Epoll);
                }
                echo_works(&runtime);
            });
        }
    }
}

#[test]
fn chosen_by_the_environment() {
    for (value, outcome) in
        [("epoll", "epoll"), ("uring", "uring"), ("auto", "auto"), ("", "auto"), ("bogus", "error")]
    {
        let test = concat!(module_path!(), "::chosen_by_the_environment");
        isolated(test, &[("RINGPOST_ENGINE", value)], || {
            if std::env::var("RINGPOST_ENGINE").is_ok_and(|own| own != value) {
                return;
            }
            match (Runtime::new(), outcome) {
                (Ok(runtime), "epoll") => {
                    assert_eq!(runtime.engine().kind, EngineKind::Epoll);
                    assert_eq!(runtime.engine().reason, EngineReason::ForcedByEnvironment);
                    echo_works(&runtime);
                }
                (Ok(runtime), "uring") => {
                    assert_eq!(runtime.engine().kind, EngineKind::Uring);
                    assert_eq!(runtime.engine().reason, EngineReason::ForcedByEnvironment);
                    echo_works(&runtime);
                }
                (Err(BuildError::Uring(_)), "uring") => {}
                (Ok(runtime), "auto") => {
                    let reason = &runtime.engine().reason;
                    let automatic =
                        matches!(reason, EngineReason::Works | EngineReason::Fallback(_));
                    assert!(automatic, "{reason}");
                }
                (Err(error @ BuildError::Environment { .. }), "error") => {
                    let text = "RINGPOST_ENGINE is \"bogus\"; it may be uring, epoll or auto";
                    assert_eq!(error.to_string(), text);
                }
                (result, _) => panic!("RINGPOST_ENGINE={value}: {result:?}"),
            }
            // Only `Auto` asks the environment.
            let forced = Runtime::builder().engine(EngineChoice::Epoll).build().expect("epoll");
            assert_eq!(forced.engine().reason, EngineReason::ForcedByBuilder);
        });
    }
}

/// Rings count against the locked memory of a user without CAP_IPC_LOCK.
#[test]
fn little_locked_memory() {
    if !root_or_skip("refused_uring::little_locked_memory") {
        return;
    }
    isolated(concat!(module_path!(), "::little_locked_memory"), &[], || {
        limit_locked_memory(64 << 10);
        become_user(NOBODY);
        let runtime = Runtime::new().expect("a fallback");
        println!("{}", runtime.engine());
        match &runtime.engine().reason {
            EngineReason::Works => {}
            EngineReason::Fallback(UringUnavailable::NoMemory { limit }) => {
                assert_eq!(limit, "65536 bytes");
            }
            other => panic!("{other}"),
        }
        echo_works(&runtime);
    });
}

/// The setting itself is the whole host's, so the test shows the process another file in its place.
#[test]
fn disabled_by_sysctl() {
    let test = concat!(module_path!(), "::disabled_by_sysctl");
    let probe = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return skip("refused_uring::disabled_by_sysctl", "`unshare --mount` is not allowed");
    }
    let setting = "/proc/sys/kernel/io_uring_disabled";
    if !std::path::Path::new(setting).exists() {
        return skip("refused_uring::disabled_by_sysctl", "this kernel has no such setting");
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "2\n").expect("write");
    let script =
        format!("mount --bind '{}' {setting} && exec \"$0\" \"$@\"", file.path().display());
    isolated_through(&["unshare", "--mount", "sh", "-c", &script], test, &[], || {
        refuse_calls(ALL, libc::EPERM);
        falls_back(&UringUnavailable::DisabledBySysctl { value: 2 });
    });
}
