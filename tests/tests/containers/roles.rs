//! What this program does in a container: each role is a function, chosen by the first word.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use ringpost::{
    AccessPolicy, Connection, ConnectionOptions, EngineChoice, Listener, ListenerBuilder, Runtime,
    spawn,
};
use ringpost_testkit::child::{self, say, told};
use ringpost_testkit::pattern;
use ringpost_tests::privileges::refuse_calls;
use ringpost_tests::rig;

/// The container's side. As a test of its own it does nothing.
#[test]
fn play() {
    let Some(words) = child::role() else { return };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    enter(&words);
}

fn enter(words: &[&str]) {
    match words {
        ["under-dockers-profile", rest @ ..] => {
            confine(URING);
            enter(rest);
        }
        ["under-dockers-profile-but", allowed, rest @ ..] => {
            let allowed: Vec<&str> = allowed.split(',').collect();
            let refused = URING.iter().filter(|(name, _)| !allowed.contains(name));
            confine(&refused.copied().collect::<Vec<_>>());
            enter(rest);
        }
        ["exec", program, arguments @ ..] => {
            // Set for the process, but lost: a signal for the death of the parent is a thread's own.
            let killed = Some(rustix::process::Signal::KILL);
            rustix::process::set_parent_process_death_signal(killed).expect("a signal");
            panic!("can't execute {program}: {}", Command::new(program).args(arguments).exec());
        }
        ["client", engine] => Client::new(engine).obey(),
        ["server", engine, path, mode, rules @ ..] => serve(engine, path, mode, rules),
        _ => panic!("no such role: {words:?}"),
    }
}

/// Refuses what Docker's default profile refuses, and these calls.
fn confine(uring: &[(&str, i64)]) {
    // This one alone is "not implemented".
    refuse_calls(&[libc::SYS_clone3], libc::ENOSYS);
    refuse_calls(REFUSED_BY_DOCKER, libc::EPERM);
    refuse_calls(&uring.iter().map(|(_, call)| *call).collect::<Vec<_>>(), libc::EPERM);
}

/// Obeys commands until its input ends; each has an answer of one line.
struct Client {
    runtime: Runtime,
    connection: Option<Connection>,
}

impl Client {
    fn new(engine: &str) -> Self {
        Self { runtime: build(engine), connection: None }
    }

    fn obey(mut self) {
        while let Some(command) = told() {
            let words: Vec<&str> = command.split(' ').collect();
            let answer = match words[..] {
                // What this process sees.
                ["exists", path] => Path::new(path).exists().to_string(),
                ["names", path] => names(path).join(" "),
                ["link", path] => {
                    std::fs::read_link(path).expect("a link").to_string_lossy().into_owned()
                }
                ["write", path] => outcome(std::fs::write(path, "text")),
                ["run", program, ref arguments @ ..] => {
                    let status = Command::new(program).args(arguments).status();
                    let failed = std::io::Error::other("it says why");
                    outcome(status.and_then(|status| status.success().then_some(()).ok_or(failed)))
                }
                ["engine"] => self.runtime.engine().to_string(),
                // Talking to a server.
                ["connect", path] => self.connect(path),
                ["check", path, limit_ms] => self.check(path, limit_ms.parse().expect("a number")),
                ["plain-connect", path] => outcome(UnixStream::connect(path).map(drop)),
                ["hello"] => self.hello(),
                ["process"] => self.process(),
                ["talk", longest] => self.talk(longest.parse().expect("a number")),
                _ => panic!("no such command: {command}"),
            };
            say(&answer);
        }
    }

    /// Tells who the server is.
    fn connect(&mut self, path: &str) -> String {
        self.connection = None;
        match rig::run(&self.runtime, Connection::connect(path)) {
            Ok(connection) => {
                let peer = connection.peer_credentials().expect("a Unix socket");
                self.connection = Some(connection);
                format!("connected to {peer}")
            }
            Err(error) => format!("failed: {error}"),
        }
    }

    /// What is known of the server's process.
    fn process(&self) -> String {
        let connection = self.connection.as_ref().expect("connected before");
        let held = match connection.peer_process() {
            Ok(held) => held,
            Err(error) => return error.to_string(),
        };
        match held.inspect(|directory| Ok(directory.to_owned())) {
            Ok(directory) => format!("it is {}", directory.display()),
            Err(error) => error.to_string(),
        }
    }

    /// What a health check does: connects and waits a moment for the greeting.
    fn check(&self, path: &str, limit_ms: u64) -> String {
        let options = ConnectionOptions::new().handshake_ms_max(limit_ms);
        match rig::run(&self.runtime, Connection::connect_with(path, options)) {
            Ok(_) => "healthy".to_owned(),
            Err(error) => format!("failed: {error}"),
        }
    }

    /// Sends a word and waits for it to come back.
    fn hello(&mut self) -> String {
        let connection = self.connection.as_mut().expect("connected before");
        rig::run(&self.runtime, async {
            // The server may have closed; receiving says why.
            let _ = connection.send(b"hello").await;
            match connection.recv().await {
                Ok(Some(answer)) => String::from_utf8_lossy(&answer).into_owned(),
                Ok(None) => "ended".to_owned(),
                Err(error) => format!("failed: {error}"),
            }
        })
    }

    /// Sends messages of all sizes, checks that they come back whole and in order, and ends. The server
    /// has to send while it receives: not all of them fit what is buffered on the way.
    fn talk(&mut self, longest: usize) -> String {
        let (mut sender, mut receiver) = self.connection.take().expect("connected before").split();
        let sizes =
            move || (0_u64..).zip(SIZES.iter().copied().filter(move |&size| size <= longest));
        rig::run(&self.runtime, async {
            let sending = spawn(async move {
                for (sequence, len) in sizes() {
                    let fill = |bytes: &mut [u8]| pattern::fill(sequence, bytes);
                    sender.send_with(len, fill).await.expect("the server reads");
                }
                sender.shutdown().await.expect("the server reads");
            });
            for (sequence, len) in sizes() {
                let message = receiver.recv().await.expect("a message").expect("a message");
                pattern::check(sequence, len, &message);
            }
            assert!(receiver.recv().await.expect("an end").is_none(), "a clean end");
            sending.await.expect("no panic");
        });
        TALKED.to_owned()
    }
}

/// Sends back what comes on every connection, and tells of each; ends when it is killed.
fn serve(engine: &str, path: &str, mode: &str, rules: &[&str]) {
    let runtime = build(engine);
    runtime.block_on(async {
        let mode = u32::from_str_radix(mode, 8).expect("octal");
        let builder = Listener::builder().mode(mode);
        let mut listener = match with_rules(builder, rules).bind(path) {
            Ok(listener) => listener,
            Err(error) => return say(&format!("failed: {error}")),
        };
        say(&format!("ready: {}", runtime.engine()));
        loop {
            let mut connection = listener.accept().await.expect("a connection");
            let peer = connection.peer_credentials().expect("a Unix socket");
            say(&format!("accepted {peer} overflow={}", peer.is_overflow()));
            spawn(async move {
                // A client may be killed at any moment.
                while let Ok(Some(message)) = connection.recv().await {
                    if connection.send_message(message).await.is_err() {
                        return;
                    }
                }
                let _ = connection.shutdown().await;
            });
        }
    });
}

/// Lets in the users `uid=`, the groups `gid=` and `supplementary=`, or anyone; gives the socket to a group,
/// `owner=`.
fn with_rules(mut builder: ListenerBuilder, rules: &[&str]) -> ListenerBuilder {
    let mut policy = AccessPolicy::anyone();
    for rule in rules {
        let (kind, id) = rule.split_once('=').expect("a rule");
        let id = id.parse().expect("a number");
        match kind {
            "uid" => policy = policy.allow_uid(id),
            "gid" => policy = policy.allow_gid(id),
            "supplementary" => policy = policy.allow_supplementary_gid(id),
            "owner" => builder = builder.owner(None, Some(id)),
            _ => panic!("no such rule: {rule}"),
        }
    }
    builder.policy(policy)
}

fn build(engine: &str) -> Runtime {
    let choice = match engine {
        "uring" => EngineChoice::Uring,
        "epoll" => EngineChoice::Epoll,
        "auto" => EngineChoice::Auto,
        _ => panic!("no such engine: {engine}"),
    };
    Runtime::builder().engine(choice).build().expect("the engine works here")
}

/// The word for an engine, as roles and examples take it.
pub(crate) fn word(engine: EngineChoice) -> &'static str {
    match engine {
        EngineChoice::Uring => "uring",
        EngineChoice::Epoll => "epoll",
        _ => "auto",
    }
}

fn names(path: &str) -> Vec<String> {
    let entries = std::fs::read_dir(path).expect("readable");
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("readable").file_name();
    let mut names: Vec<String> =
        entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn outcome(result: std::io::Result<()>) -> String {
    result.map_or_else(|error| format!("failed: {error}"), |()| "done".to_owned())
}

/// The command to send messages of all sizes on the connection, the same without long ones, and the answer
/// once they came back.
pub(crate) const TALK: &str = "talk 16777216";
pub(crate) const TALK_BRIEFLY: &str = "talk 65537";
pub(crate) const TALKED: &str = "all messages came back";

/// Around every boundary inside the library, and the longest that both sides take by default.
const SIZES: &[usize] = &[
    0, 1, 7, 8, 9, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 4087, 4088, 4089, 4096, 8184,
    8192, 8193, 65_527, 65_528, 65_529, 65_536, 65_537, 131_063, 131_064, 131_072, 131_073,
    262_144, 1_048_576, 16_777_216,
];

/// The calls that io_uring consists of; Docker's default profile refuses them since Engine 25.0.
const URING: &[(&str, i64)] = &[
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
];

/// The other calls that Docker's default profile of June 2026 (moby/profiles) does not let a process make
/// that has Docker's default capabilities, as far as there are such calls on x86-64 and on ARM.
const REFUSED_BY_DOCKER: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];
