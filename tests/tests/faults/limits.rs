//! Limits of the process: descriptors, address space, file size, memory of a control group. (Accepting
//! without descriptors: `it::descriptors`; receiving them: `it::passing_bounds::none_left_to_receive_with`;
//! a limit on locked memory that no ring fits: `it::refused_uring::little_locked_memory`.)

use std::io;
use std::path::Path;
use std::time::Duration;

use ringpost::{
    BindError, BuildError, Closed, ConnectError, ConnectErrorKind, Connection, ConnectionOptions,
    EngineChoice, Listener, RecvError, Runtime, UringUnavailable, spawn,
};
use ringpost_testkit::child::{self, isolated, skip};
use ringpost_testkit::process::{self, names};
use ringpost_tests::on_both_engines_alone;
use ringpost_tests::privileges::{limit_descriptors, spare_descriptors};
use ringpost_tests::rig::{
    Bystander, ask, block_on, blocking, builder, echo, pair, place, run, runtime, until,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::roles;

on_both_engines_alone!(
    descriptors_for_a_runtime,
    descriptors_for_each_step,
    no_address_space,
    no_file_size,
    a_peer_without_memory
);

/// Descriptors that are more than anything here takes.
const PLENTY: u64 = 1024;

/// Builds runtimes with ever more descriptors to spare: a typed error that leaves nothing, until there are
/// enough. What failed for want of them works once there are some again.
fn descriptors_for_a_runtime(engine: EngineChoice) {
    let (mut failures, mut fallbacks) = (0, 0);
    let before = process::descriptors();
    for spare in 0..12 {
        for choice in [engine, EngineChoice::Auto] {
            spare_descriptors(spare);
            let built = Runtime::builder().engine(choice).build();
            limit_descriptors(PLENTY);
            match built {
                Ok(runtime) => {
                    fallbacks += u32::from(choice == EngineChoice::Auto);
                    echo_works(&runtime);
                }
                Err(BuildError::Resource { source, .. }) => {
                    failures += 1;
                    assert_eq!(source.raw_os_error(), Some(libc::EMFILE), "{source}");
                }
                Err(BuildError::Uring(reason)) => {
                    failures += 1;
                    assert_eq!(reason, UringUnavailable::Errno { errno: libc::EMFILE });
                }
                Err(other) => panic!("{other}"),
            }
            assert_eq!(process::descriptors(), before, "{spare} to spare");
        }
    }
    assert!(failures > 0 && fallbacks > 0, "{failures} failures, {fallbacks} runtimes");
    let runtime = Runtime::builder().engine(engine).build().expect("descriptors are there again");
    echo_works(&runtime);
    // What refused it has passed, and is not remembered.
    let report = Runtime::new().expect("a runtime").engine().to_string();
    assert!(!report.contains("error 24"), "{report}");
}

fn echo_works(runtime: &Runtime) {
    run(runtime, async {
        let (mut client, server) = pair(ConnectionOptions::new());
        let server = spawn(echo(server));
        ask(&mut client, 0, 3000).await;
        client.shutdown().await.expect("open");
        server.await.expect("no panic");
    });
}

/// Binds and connects with ever more descriptors to spare: the error names the path, and nothing is left.
fn descriptors_for_each_step(engine: EngineChoice) {
    let (directory, path) = place();
    let directory = directory.path();
    let runtime = runtime(engine);
    run(&runtime, async {
        let mut bystander = Bystander::new();
        bystander.check().await;
        let before = process::descriptors();
        let mut refused = 0;
        let listener = loop {
            assert!(refused < 10, "binding takes {refused} descriptors");
            spare_descriptors(refused);
            let bound = Listener::bind(&path);
            limit_descriptors(PLENTY);
            match bound {
                Ok(listener) => break listener,
                Err(error) => check_bind(&error, &path, "24"),
            }
            assert_eq!(process::descriptors(), before);
            assert!(names(directory).is_empty(), "{:?}", names(directory));
            refused += 1;
        };
        assert!(refused > 0, "binding takes no descriptor");
        drop(listener);
        until("descriptors are back", || process::descriptors() == before).await;

        let _listener = Listener::bind(&path).expect("descriptors are there again");
        let listening = process::descriptors();
        spare_descriptors(0);
        let error = Connection::connect(&path).await.expect_err("no descriptor");
        limit_descriptors(PLENTY);
        let ConnectError::Socket(error) = error else { panic!("{error}") };
        assert_eq!(error.kind(), ConnectErrorKind::NoDescriptor);
        assert!(error.to_string().contains(path.to_str().expect("text")), "{error}");
        assert_eq!(process::descriptors(), listening);
        bystander.check().await;
    });
}

/// The error names the path, and has this error number.
#[track_caller]
fn check_bind(error: &BindError, path: &Path, errno: &str) {
    let text = error.to_string();
    let directory = path.parent().expect("it has one").to_str().expect("text");
    assert!(text.contains(directory), "without the path: {text}");
    assert!(text.contains(&format!("errno {errno}")), "not error {errno}: {text}");
}

/// Runtimes whose memory can't be mapped, at ever larger limits: typed errors, and no abort.
fn no_address_space(engine: EngineChoice) {
    // What the process has by now; a failed allocation of the test's own would end it.
    let reserve: Vec<u8> = vec![1; 4 << 20];
    drop(reserve);
    let before = process::descriptors();
    let mut failures = 0;
    for pool_bytes in [64 << 20, 256 << 20] {
        let used = address_space();
        let maximum = getrlimit(Resource::As).maximum;
        let limit = Rlimit { current: Some(used + pool_bytes as u64 / 2), maximum };
        setrlimit(Resource::As, limit).expect("lowering is allowed");
        let built = builder(engine).pool_bytes(pool_bytes).build();
        setrlimit(Resource::As, Rlimit { current: maximum, maximum })
            .expect("back to where it was");
        match built {
            Err(BuildError::Resource { what, source }) => {
                failures += 1;
                assert_eq!(what, "the receive pool");
                assert_eq!(source.kind(), io::ErrorKind::OutOfMemory, "{source}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(process::descriptors(), before);
    }
    assert_eq!(failures, 2);
    echo_works(&builder(engine).pool_bytes(64 << 20).build().expect("there is memory again"));
}

/// Address space of this process, bytes.
fn address_space() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages: u64 = text.split(' ').next().expect("a number").parse().expect("a number");
    pages * 4096
}

/// A limit of no bytes for files: the lock file stays empty, which is no loss, and there is no SIGXFSZ for
/// sockets.
fn no_file_size(engine: EngineChoice) {
    let (directory, path) = place();
    // SAFETY: ignoring a signal touches no memory; the process is the test's own.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: Some(0), maximum }).expect("lowering is allowed");
    block_on(engine, async {
        let mut listener = Listener::bind(&path).expect("a lock needs no bytes");
        let serving = spawn(async move { echo(listener.accept().await.expect("accept")).await });
        let mut client = Connection::connect(&path).await.expect("connect");
        ask(&mut client, 0, 200_000).await;
        client.shutdown().await.expect("open");
        serving.await.expect("no panic");
    });
    setrlimit(Resource::Fsize, Rlimit { current: maximum, maximum }).expect("back to where it was");
    assert!(names(directory.path()).is_empty());
}

/// A peer that runs out of memory in the middle of receiving, and is ended for it by the allocator: this side
/// sees an end.
fn a_peer_without_memory(engine: EngineChoice) {
    let (_directory, path) = place();
    let runtime = runtime(engine);
    run(&runtime, async {
        let mut bystander = Bystander::new();
        let mut listener = Listener::bind(&path).expect("bind");
        let child = roles::start("hoarder", engine, &path, &[]);
        let mut connection = listener.accept().await.expect("accept");
        let end = loop {
            match connection.send(&[7; 100_000]).await {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(end, ringpost::SendError::Closed(Closed::Aborted));
        let end = connection.recv().await.map(|_| ());
        assert_eq!(end, Err(RecvError::Closed(Closed::Aborted)));
        let status = blocking(move || {
            let mut child = child;
            child.wait(child::LIMIT)
        });
        assert!(!status.await.success(), "it has run out of memory");
        bystander.check().await;
    });
}

/// The hoarder's side: keeps every message, with little address space.
pub(crate) fn hoard(engine: EngineChoice, path: &str) {
    let runtime = runtime(engine);
    let limit = Rlimit { current: Some(address_space() + (64 << 20)), maximum: None };
    setrlimit(Resource::As, limit).expect("lowering is allowed");
    runtime.block_on(async {
        let mut connection = Connection::connect(path).await.expect("connect");
        let mut kept = Vec::new();
        while let Some(message) = connection.recv().await.expect("messages") {
            kept.push(message.into_owned());
        }
    });
}

/// A peer that is ended by its control group's limit (cgroups(7), version 2): this side sees an end.
#[test]
fn a_control_group() {
    let test = concat!(module_path!(), "::a_control_group");
    let Some(group) = ControlGroup::new() else {
        return skip(test, "there is no writable cgroup version 2 with the memory controller");
    };
    isolated(test, &[], || {
        let (_directory, path) = place();
        block_on(EngineChoice::Auto, async {
            let mut listener = Listener::bind(&path).expect("bind");
            let child = roles::start("glutton", EngineChoice::Auto, &path, &[]);
            group.limit(child.id(), 32 << 20);
            let mut connection = listener.accept().await.expect("accept");
            while connection.send(&[7; 100_000]).await.is_ok() {}
            let end = connection.recv().await.map(|_| ());
            assert_eq!(end, Err(RecvError::Closed(Closed::Aborted)));
            let mut child = child;
            assert!(!blocking(move || child.wait(child::LIMIT)).await.success());
        });
    });
}

/// A control group that goes with this value.
struct ControlGroup {
    path: std::path::PathBuf,
}

impl ControlGroup {
    fn new() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let parent = Path::new(mount.split(' ').nth(1)?).join(own);
        let controllers = std::fs::read_to_string(parent.join("cgroup.subtree_control")).ok()?;
        if !controllers.split_whitespace().any(|name| name == "memory") {
            return None;
        }
        let path = parent.join(format!("ringpost-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        Some(Self { path })
    }

    fn limit(&self, pid: u32, bytes: u64) {
        std::fs::write(self.path.join("memory.max"), bytes.to_string()).expect("ours");
        // There may be no swap to limit.
        let _ = std::fs::write(self.path.join("memory.swap.max"), "0");
        std::fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("our child");
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // It is busy until the kernel has let go of its last process.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The glutton's side: touches memory without end, once it is connected.
pub(crate) fn gorge(engine: EngineChoice, path: &str) {
    block_on(engine, async {
        let mut connection = Connection::connect(path).await.expect("connect");
        let mut kept = Vec::new();
        while let Some(message) = connection.recv().await.expect("messages") {
            kept.push(message.into_owned());
        }
    });
}
