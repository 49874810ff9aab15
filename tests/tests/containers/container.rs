//! A container as an engine makes one: namespaces of its own, a read-only root of its own, and mounted
//! into it what it shares with others.
//!
//! Made with the commands of util-linux. Outside the new namespaces a shell script mounts the root
//! together, as root, because the users inside may not see the files; inside, a second one mounts `/proc`
//! and makes the root the only one. Then the program takes its place, as process 1, with the capabilities
//! that Docker leaves by default. Each container mounts in a mount namespace of its own, so that nothing
//! of it is seen outside and all of it ends with the last process.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use ringpost_testkit::child::{Child, LIMIT, skip};
use ringpost_testkit::patience::eventually;
use ringpost_tests::privileges::root_or_skip;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

/// Whether this host lets us have containers; if not, says so.
pub(crate) fn containers_or_skip(test: &str) -> bool {
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    if !root_or_skip(test) {
        return false;
    }
    let refusal = REFUSAL.get_or_init(|| {
        let tools = ["unshare", "nsenter", "setpriv", "prlimit", "pivot_root", "mount", "umount"];
        if let Some(tool) = tools.iter().find(|tool| !succeeds(&[tool, "--version"])) {
            return Some(format!("there is no `{tool}` (package util-linux)"));
        }
        let mut probe = vec!["unshare"];
        probe.extend(NAMESPACES);
        probe.extend(["sh", "-c", "mount -t tmpfs tmpfs /proc && mount -t proc proc /proc"]);
        (!succeeds(&probe)).then(|| "new namespaces and mounts in them are not allowed".to_owned())
    });
    if let Some(reason) = refusal {
        skip(test, reason);
    }
    refusal.is_none()
}

/// Whether this host lets us have user namespaces as well; if not, says so.
pub(crate) fn user_namespaces_or_skip(test: &str) -> bool {
    if !containers_or_skip(test) {
        return false;
    }
    let allowed = succeeds(&["unshare", "--user", "true"]);
    if !allowed {
        skip(test, "new user namespaces are not allowed");
    }
    allowed
}

fn succeeds(words: &[&str]) -> bool {
    let output = Command::new(words[0]).args(&words[1..]).output();
    output.is_ok_and(|output| output.status.success())
}

/// Directories on the host: one to mount roots on, and what containers share.
#[derive(Debug)]
pub(crate) struct Host {
    directory: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("ringpost-").tempdir();
        let directory = directory.expect("a directory");
        // Users of the containers must be able to come through.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("ours");
        std::fs::create_dir(directory.path().join(ROOT)).expect("a directory");
        Self { directory }
    }

    /// A directory to share, of mode 0755, owned by root.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::create_dir(&path).expect("a directory");
        set(&path, 0, 0o755);
        path
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join(ROOT)
    }
}

/// Gives a directory to a user and their group, with this mode.
pub(crate) fn set(path: &Path, owner: u32, mode: u32) {
    std::os::unix::fs::chown(path, Some(owner), Some(owner)).expect("root may");
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("root may");
}

/// A user namespace in which the ids from 0 on are the host's ids from `first` on, as with `userns-remap`.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    holder: std::process::Child,
}

/// How many ids a user namespace has.
const IDS: u32 = 65_536;

impl UserNamespace {
    pub(crate) fn new(first: u32) -> Self {
        // Ends with its input, so also with this process.
        let holder = Command::new("unshare").args(["--user", "cat"]).stdin(Stdio::piped()).spawn();
        let namespace = Self { holder: holder.expect("start a program") };
        let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user")).ok();
        let id = namespace.holder.id().to_string();
        eventually("the holder is in its namespace", LIMIT, || of(&id) != of("self"));
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{id}/{map}");
            std::fs::write(path, format!("0 {first} {IDS}\n")).expect("root may");
        }
        namespace
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A container that is not running yet.
#[derive(Debug, Clone)]
pub(crate) struct Container<'a> {
    host: &'a Host,
    mounts: Vec<String>,
    user_namespace: Option<u32>,
    network_of: Option<u32>,
    user: u32,
    group: u32,
    groups: Vec<u32>,
    capabilities: &'static str,
    has_proc: bool,
    locked_bytes: Option<u64>,
    umask: &'static str,
}

impl<'a> Container<'a> {
    /// With nothing mounted, and root as its user.
    pub(crate) fn new(host: &'a Host) -> Self {
        Self {
            host,
            mounts: Vec::new(),
            user_namespace: None,
            network_of: None,
            user: 0,
            group: 0,
            groups: Vec::new(),
            capabilities: DOCKERS_CAPABILITIES,
            has_proc: true,
            locked_bytes: None,
            umask: "022",
        }
    }

    /// Mounts a directory or file of the host.
    pub(crate) fn mount(mut self, source: &Path, target: &str) -> Self {
        self.mounts.push(format!("rw:{}:{target}", source.display()));
        self
    }

    pub(crate) fn mount_read_only(mut self, source: &Path, target: &str) -> Self {
        self.mounts.push(format!("ro:{}:{target}", source.display()));
        self
    }

    /// Runs in this user namespace instead of the host's.
    pub(crate) fn user_namespace(mut self, namespace: &UserNamespace) -> Self {
        self.user_namespace = Some(namespace.holder.id());
        self
    }

    /// Shares the network namespace of another container, as the containers of a pod do.
    pub(crate) fn network_of(mut self, other: &Running) -> Self {
        self.network_of = Some(other.id());
        self
    }

    /// Runs as this user and this primary group.
    pub(crate) fn user(mut self, user: u32, group: u32) -> Self {
        (self.user, self.group) = (user, group);
        self
    }

    /// With these supplementary groups.
    pub(crate) fn groups(mut self, groups: &[u32]) -> Self {
        self.groups = groups.to_vec();
        self
    }

    pub(crate) fn without_capabilities(mut self) -> Self {
        self.capabilities = "-all";
        self
    }

    /// With an empty directory in the place of `/proc`.
    pub(crate) fn without_proc(mut self) -> Self {
        self.has_proc = false;
        self
    }

    /// With this RLIMIT_MEMLOCK.
    pub(crate) fn locked_memory(mut self, bytes: u64) -> Self {
        self.locked_bytes = Some(bytes);
        self
    }

    pub(crate) fn umask(mut self, mask: &'static str) -> Self {
        self.umask = mask;
        self
    }

    /// Starts this test program in it, in a role (see `roles`).
    pub(crate) fn start(&self, words: &[&str]) -> Running {
        let wrapper = self.command();
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let play = concat!(module_path!(), "::play").replace("container::", "roles::");
        Running { child: Child::start_through(&wrapper, &play, words) }
    }

    /// Starts an example in it.
    pub(crate) fn run(&self, example: &str, arguments: &[&str]) -> Running {
        let words = self.command();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg(executable(example))
            .args(arguments)
            .env_remove("RINGPOST_ENGINE")
            .env_remove("RUST_LOG");
        Running { child: Child::spawn(command) }
    }

    /// The command that makes the container and executes in it the words that follow.
    fn command(&self) -> Vec<String> {
        let mut words = Words::default();
        let root = self.host.root().display().to_string();
        words.add(&["unshare", "--mount", "--propagation", "private", "--"]);
        words.add(&["sh", "-c", ASSEMBLE, "assemble", &root]);
        // The programs are where they are outside.
        words.add(&[&format!("ro:{0}:{0}", programs().display())]);
        self.mounts.iter().for_each(|mount| words.add(&[mount]));
        words.add(&["--"]);
        if let Some(id) = self.network_of {
            words.add(&["nsenter", &format!("--net=/proc/{id}/ns/net"), "--"]);
        }
        if let Some(id) = self.user_namespace {
            words.add(&["nsenter", &format!("--user=/proc/{id}/ns/user"), "--"]);
        }
        // Ends with the test that started it, however that ends. Entering a user namespace would lose it.
        words.add(&["setpriv", "--pdeathsig", "KILL", "--", "unshare"]);
        let own = |option: &&&str| self.network_of.is_none() || **option != "--net";
        NAMESPACES.iter().filter(own).for_each(|option| words.add(&[option]));
        let proc = if self.has_proc { "with-proc" } else { "without-proc" };
        words.add(&["--", "sh", "-c", ENTER, "enter", &root, proc, self.umask]);
        if let Some(bytes) = self.locked_bytes {
            words.add(&["prlimit", &format!("--memlock={bytes}"), "--"]);
        }
        // Ends with the process that waits for it, also as another user.
        words.add(&["setpriv", "--pdeathsig", "KILL"]);
        words.add(&["--reuid", &self.user.to_string(), "--regid", &self.group.to_string()]);
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        match &groups[..] {
            [] => words.add(&["--clear-groups"]),
            groups => words.add(&["--groups", &groups.join(",")]),
        }
        words.add(&["--inh-caps=-all", &format!("--bounding-set={}", self.capabilities), "--"]);
        words.0
    }
}

#[derive(Debug, Default)]
struct Words(Vec<String>);

impl Words {
    fn add(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(|&word| word.to_owned()));
    }
}

/// A container that runs. Killed on drop.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Sends a command to the role, and returns its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.child.tell(command);
        self.child.hear()
    }

    pub(crate) fn tell(&mut self, command: &str) {
        self.child.tell(command);
    }

    /// What the role says next.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> String {
        self.child.hear()
    }

    /// The next line of output or errors that starts so.
    #[track_caller]
    pub(crate) fn line(&mut self, start: &str) -> String {
        self.child.line(start)
    }

    /// The number that process 1 has outside. Only once the program runs, which is so when it has said
    /// something: before, there are other processes.
    pub(crate) fn id(&self) -> u32 {
        let wanted = format!("PPid:\t{}\n", self.child.id());
        let processes = std::fs::read_dir("/proc").expect("/proc is mounted");
        let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut children = numbers.filter(|id: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{id}/status"));
            status.is_ok_and(|status| status.contains(&wanted))
        });
        children.next().expect("process 1 of the container")
    }

    /// Sends a signal to process 1.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw).expect("a process id");
        let process = pidfd_open(id, PidfdFlags::empty()).expect("it runs");
        pidfd_send_signal(process, signal).expect("it is ours");
    }

    /// Kills process 1, and with it the container, as an engine does that has lost its patience.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        assert!(!self.child.wait(LIMIT).success(), "killed");
    }

    /// Stops it as engines do, with SIGTERM, and expects an orderly end.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.child.wait(LIMIT);
        assert!(status.success(), "an orderly end: {status}");
    }
}

/// Also of a program that took the place of a role, and in a user namespace: no test leaves one behind.
#[test]
fn a_dropped_container_ends() {
    if !user_namespaces_or_skip("container::a_dropped_container_ends") {
        return;
    }
    let host = Host::new();
    let namespace = UserNamespace::new(400_000);
    let echo = executable("echo");
    for container in [Container::new(&host), Container::new(&host).user_namespace(&namespace)] {
        let mut all = [
            container.start(&["exec", &echo, "--path", "@echo"]),
            container.user(1000, 1000).run("echo", &["--path", "@echo"]),
        ];
        all.iter_mut().for_each(|running| drop(running.line("ready: ")));
        let processes = all.each_ref().map(|running| format!("/proc/{}", running.id()));
        drop(all);
        let exists = |path: &String| Path::new(path).exists();
        eventually("they end", LIMIT, || !processes.iter().any(exists));
    }
}

/// The directory of this program and the examples.
fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    own.ancestors().nth(2).expect("target/PROFILE/deps/test").to_owned()
}

/// Where an example is, inside and outside.
pub(crate) fn executable(example: &str) -> String {
    let path = programs().join("examples").join(example);
    assert!(
        path.exists(),
        "{} is missing; run `cargo xtask test`, or `cargo build --examples` first",
        path.display()
    );
    path.to_str().expect("text").to_owned()
}

/// What a container has of its own. Its processes end with `unshare`.
const NAMESPACES: [&str; 7] =
    ["--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "--kill-child"];

/// What Docker leaves to root in a container unless told otherwise.
const DOCKERS_CAPABILITIES: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,\
     +setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// Below a host's directory.
const ROOT: &str = "root";

/// Mounts a root together: arguments are its place, mounts as `rw:source:target` up to `--`, and the
/// command to go on with.
const ASSEMBLE: &str = r#"
set -e
root=$1
shift
mount -t tmpfs -o mode=755 tmpfs "$root"
for name in bin sbin lib lib32 lib64 libx32 usr; do
    if [ -L "/$name" ]; then
        cp -P "/$name" "$root/$name"
    elif [ -d "/$name" ]; then
        mkdir "$root/$name"
        mount --bind "/$name" "$root/$name"
        mount -o remount,bind,ro "$root/$name"
    fi
done
mkdir "$root/proc" "$root/outside"
while [ "$1" != -- ]; do
    mode=${1%%:*}
    paths=${1#*:}
    source=${paths%%:*}
    target=$root${paths#*:}
    if [ -d "$source" ]; then
        mkdir -p "$target"
    else
        mkdir -p "${target%/*}"
        : > "$target"
    fi
    mount --bind "$source" "$target"
    if [ "$mode" = ro ]; then mount -o remount,bind,ro "$target"; fi
    shift
done
shift
mount -o remount,bind,ro "$root"
exec "$@"
"#;

/// Makes the root the only one: arguments are its place, whether to have `/proc`, the umask, and the
/// program to go on with. A mount that came from another user namespace can't be pivoted to, hence the
/// first bind. `umount` looks into `/proc`, hence it goes last.
const ENTER: &str = r#"
set -e
root=$1
proc=$2
umask "$3"
shift 3
mount --rbind "$root" "$root"
mount -t proc proc "$root/proc"
cd "$root"
pivot_root . outside
umount -l /outside
if [ "$proc" = without-proc ]; then umount -l /proc; fi
exec "$@"
"#;
