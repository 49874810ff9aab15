//! A short soak of each engine: everything runs at once, nothing is lost, and nothing is left.
//!
//! It is too short for trends; what it asserts holds on any machine, however busy.

use std::{
    io::Write as _,
    process::{Command, Output},
    sync::Mutex,
};

/// One at a time: each is fifteen processes.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_short_soak_on_uring() {
    if ringpost::Runtime::builder().engine(ringpost::EngineChoice::Uring).build().is_err() {
        // Past the capture of what passing tests print.
        let _ = std::io::stderr()
            .write_all(b"SKIPPED a_short_soak_on_uring: io_uring is refused here\n");
        return;
    }
    soak("uring");
}

#[test]
fn a_short_soak_on_epoll() {
    soak("epoll");
}

fn soak(engine: &str) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("soak.jsonl");
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_ringpost-bench"))
        .args(["soak", "--minutes", "0.1", "--seed", "7", "--engine", engine, "--json"])
        .arg(&json)
        // Where sockets and their directory are, to see that they are gone.
        .env("TMPDIR", directory.path())
        .output()
        .expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    assert!(status.success(), "{status}\n{stdout}\n{stderr}");
    assert!(stdout.contains("seed 7"), "{stdout}");

    let lines = std::fs::read_to_string(&json).expect("JSON lines");
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    assert!(of("failure").is_empty());
    let verdicts = of("verdict");
    assert!(verdicts.iter().any(|verdict| verdict["what"] == "left when the load has ended"));
    for verdict in verdicts {
        assert!(verdict["complaint"].is_null(), "{verdict}");
    }
    let server: Vec<_> =
        of("sample").into_iter().filter(|sample| sample["process"] == "server").collect();
    let last = server.last().expect("samples of the server");
    assert!(last["messages"].as_u64() > Some(1000), "{last}");
    assert_eq!(last["engine"], engine);

    let left: Vec<_> = std::fs::read_dir(directory.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name != "soak.jsonl" && name != "soak.html")
        .collect();
    assert!(left.is_empty(), "left: {left:?}");
}
