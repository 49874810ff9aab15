//! The peer's process, held by a pidfd.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::libc;
use ringpost_uds::{PeerProcessError, peer_credentials, peer_process};
use rustix::io::FdFlags;
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};

use crate::child::{Peer, eventually};
use crate::support::{bind, connect, directory, namespace_or_skip, refuse_call};

#[test]
fn own_process() {
    let (one, _other) = UnixStream::pair().expect("pair");
    let process = peer_process(&one).expect("Linux 6.5");
    assert_eq!(process.pid_for_logs(), Some(std::process::id()));
    assert!(process.is_alive().expect("poll"));
    let own = std::fs::read_link("/proc/self/exe").expect("own program");
    let theirs = process.inspect(|directory| std::fs::read_link(directory.join("exe")));
    assert_eq!(theirs.expect("alive"), own);
    assert!(rustix::io::fcntl_getfd(process.as_fd()).expect("open").contains(FdFlags::CLOEXEC));
}

#[test]
fn a_killed_process_is_not_alive() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    let mut child = Peer::start();
    child.ask(&format!("connect {}", path.display()));
    let socket = rustix::net::accept(&bound).expect("one waits");
    let process = peer_process(&socket).expect("Linux 6.5");
    assert_eq!(process.pid_for_logs(), Some(child.id()));
    assert!(process.is_alive().expect("poll"));
    let program = |directory: &std::path::Path| std::fs::read_link(directory.join("exe"));
    assert_eq!(process.inspect(program).expect("alive"), std::env::current_exe().expect("path"));

    // It ends after the look and before the answer.
    let error = process.inspect(|directory| {
        let seen = program(directory);
        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL)?;
        eventually("the process ends", || !process.is_alive().expect("poll"));
        seen
    });
    assert!(matches!(error, Err(PeerProcessError::Ended)), "{error:?}");
    child.kill();
    assert!(!process.is_alive().expect("poll"), "waited for");
    let error = process.inspect(|_| Ok(())).expect_err("ended");
    assert_eq!(error.to_string(), "the peer's process has ended");
    drop(process);

    // Asked too late, the kernel may or may not know it any more; it is not alive in any case.
    match peer_process(&socket) {
        Ok(process) => assert!(!process.is_alive().expect("poll")),
        Err(error) => assert!(matches!(error, PeerProcessError::Ended), "{error}"),
    }
}

#[test]
fn an_ended_process_that_nobody_waited_for_is_not_alive() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&path).expect("free");
    let mut child = Peer::start();
    child.ask(&format!("connect {}", path.display()));
    let socket = rustix::net::accept(&bound).expect("one waits");
    let process = peer_process(&socket).expect("Linux 6.5");
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).expect("ours");
    eventually("the process ends", || !process.is_alive().expect("poll"));
    let status = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("a zombie");
    assert!(status.contains(") Z "), "{status}");
    assert!(matches!(process.inspect(|_| Ok(())), Err(PeerProcessError::Ended)));
}

/// The number of an ended process goes to another one, which is not taken for it.
#[test]
fn a_reused_number_is_not_the_process() {
    let test = "process::a_reused_number_is_not_the_process";
    let options = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !namespace_or_skip(test, &options) {
        return;
    }
    let directory = directory();
    let mut server = Peer::start_with(&[&["unshare"], &options[..]].concat());
    let answer = server.ask(&format!("reuse {}", directory.path().join("app.sock").display()));
    assert_eq!(answer, "exists true alive Ok(false) Err(\"the peer's process has ended\")");
}

#[test]
fn a_process_outside_the_pid_namespace_is_held_and_not_seen() {
    let test = "process::a_process_outside_the_pid_namespace_is_held_and_not_seen";
    let options = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !namespace_or_skip(test, &options) {
        return;
    }
    let directory = directory();
    let path = directory.path().join("app.sock");
    let mut server = Peer::start_with(&[&["unshare"], &options[..]].concat());
    assert_eq!(server.ask(&format!("bind 600 {}", path.display())), "won");
    let client = connect(&path).expect("listens");
    let answer = server.ask("accept");
    let expected = "pid None alive Ok(true) Err(\"the peer's process is outside the pid namespace";
    assert!(answer.contains(expected), "{answer}");
    drop(client);
}

/// A kernel or sandbox without the option: no guess from the number, though it could be opened.
#[test]
fn without_the_option_nothing_is_guessed() {
    let (one, _other) = UnixStream::pair().expect("pair");
    let thread = std::thread::spawn(move || {
        let before = peer_process(&one);
        refuse_peer_pidfd();
        (before, peer_process(&one), peer_credentials(&one))
    });
    let (before, refused, credentials) = thread.join().expect("no panic");
    before.expect("the kernel has it");
    let error = refused.expect_err("the filter refuses");
    assert!(matches!(error, PeerProcessError::Unsupported), "{error}");
    assert!(error.to_string().contains("Linux 6.5"), "{error}");
    assert_eq!(credentials.expect("goes on").pid, Some(std::process::id()));
}

#[test]
fn no_process_without_a_peer() {
    let family = rustix::net::AddressFamily::UNIX;
    let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).expect("fd");
    assert!(matches!(peer_process(&socket), Err(PeerProcessError::NotConnected)));
    let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let client =
        std::net::TcpStream::connect(server.local_addr().expect("bound")).expect("connect");
    assert!(matches!(peer_process(&client), Err(PeerProcessError::NotConnected)));
    let file = std::fs::File::open("/dev/null").expect("open");
    assert!(matches!(peer_process(&file), Err(PeerProcessError::System(_))));
}

/// Makes SO_PEERPIDFD answer as a kernel before 6.5 does, on this thread, for good.
fn refuse_peer_pidfd() {
    let option = u64::from(libc::SO_PEERPIDFD.unsigned_abs());
    let condition =
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, option).expect("valid");
    refuse_call(libc::SYS_getsockopt, vec![condition], libc::ENOPROTOOPT);
}
