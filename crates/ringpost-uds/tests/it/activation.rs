//! Sockets passed by a service manager, to a process that is started as one does it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringpost_uds::{Activation, ActivationError, SocketKind};
use rustix::io::FdFlags;

use crate::child::eventually;
use crate::support::{directory, is_socket, names, skip};

/// Starts the service, this program in the role of [`service`], with the first socket as descriptor 3
/// and the second as 4 and 5.
fn start(act: &str, variables: &str, sockets: [OwnedFd; 2]) -> Child {
    let script = format!(
        "exec 3<&0 4<&2 5<&2 6<&- 0</dev/null 2>&1; {variables} exec \"$0\" --exact \
         activation::service --nocapture --quiet"
    );
    let [first, second] = sockets;
    Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().expect("own path"))
        .env(ROLE, act)
        .stdin(Stdio::from(first))
        .stderr(Stdio::from(second))
        .stdout(Stdio::piped())
        .spawn()
        .expect("start a service")
}

/// What a service says, line by line, once it has ended well.
fn said(mut child: Child) -> Vec<String> {
    let mut text = String::new();
    let end = Instant::now() + LIMIT;
    let mut output = child.stdout.take().expect("piped");
    let reader = std::thread::spawn(move || output.read_to_string(&mut text).map(|_| text));
    let status = loop {
        match child.try_wait().expect("ours") {
            Some(status) => break status,
            None if Instant::now() > end => {
                child.kill().expect("it runs");
                break child.wait().expect("ours");
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let text = reader.join().expect("no panic").expect("text");
    assert!(status.success(), "{status}: {text}");
    text.lines().filter_map(|line| line.split_once(MARK)).map(|(_, said)| said.to_owned()).collect()
}

fn listener(path: &Path) -> OwnedFd {
    UnixListener::bind(path).expect("bind").into()
}

const OWN: &str = "LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=web:talk:talk";

#[test]
fn sockets_are_taken_once_and_served() {
    let directory = directory();
    let (web, talk) = (directory.path().join("web"), directory.path().join("talk"));
    let service = start("serve", OWN, [listener(&web), listener(&talk)]);
    for path in [&web, &talk] {
        let mut client = UnixStream::connect(path).expect("it listens all the time");
        client.write_all(b"hello").expect("room");
        client.set_read_timeout(Some(LIMIT)).expect("set");
        let mut answer = [0; 5];
        client.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HELLO");
    }
    let said = said(service);
    assert_eq!(
        said,
        [
            "web 3 a listening Unix-domain stream socket",
            "talk 4 a listening Unix-domain stream socket",
            "talk 5 a listening Unix-domain stream socket",
            "close-on-exec true true true",
            "numbers 3 4 5 lead to pipe pipe pipe",
            "again: the sockets of LISTEN_FDS were taken before; take them once and pass them on",
            "served web",
            "served talk",
            "left: talk 5",
            "a child has 0 sockets",
        ]
    );
    // Paths of inherited sockets are the manager's.
    assert_eq!(names(directory.path()), ["talk", "web"]);
    assert!(is_socket(&web) && is_socket(&talk));
    nobody_listens(&web);
}

/// A child that another test has just forked may hold any descriptor of this process until it
/// executes, so this may take a moment.
fn nobody_listens(path: &Path) {
    eventually("the socket is closed", || match UnixStream::connect(path) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            true
        }
    });
}

/// Once the sockets are dropped nothing in the service keeps them open.
#[test]
fn dropping_them_closes_them() {
    let directory = directory();
    let (web, talk) = (directory.path().join("web"), directory.path().join("talk"));
    let mut service = start("drop", OWN, [listener(&web), listener(&talk)]);
    let mut output = BufReader::new(service.stdout.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("dropped") {
        line.clear();
        assert_ne!(output.read_line(&mut line).expect("text"), 0, "the service has ended");
    }
    for path in [&web, &talk] {
        nobody_listens(path);
        assert!(is_socket(path), "and yet the path stays");
    }
    service.kill().expect("it waits to be killed");
    service.wait().expect("ours");
}

#[test]
fn wrong_variables_take_nothing() {
    let check = |variables: &str, expected: &str| {
        let directory = directory();
        let sockets =
            [listener(&directory.path().join("a")), listener(&directory.path().join("b"))];
        let said = said(start("fail", variables, sockets));
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains(expected), "{said:?}");
        assert_eq!(said[0], said[1], "trying again answers the same");
        assert_eq!(said[2], "numbers 3 4 5 lead to socket socket socket", "as they were");
    };
    check("", "not activated: no service manager passed sockets");
    check("LISTEN_PID=1 LISTEN_FDS=3", "not activated: LISTEN_PID is 1, and this is process");
    check("LISTEN_PID=$$ LISTEN_FDS=0", "not activated: no service manager");
    check("LISTEN_PID=x LISTEN_FDS=3", "error: LISTEN_PID is \"x\"");
    check("LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=a", "error: LISTEN_FDNAMES has 1 names for 3");
    check("LISTEN_PID=$$ LISTEN_FDS=2000", "error: LISTEN_FDS promises 2000 descriptors");
    // Behind the inherited ones there are none, or those that the program opened itself.
    check("LISTEN_PID=$$ LISTEN_FDS=1000", ", which LISTEN_FDS promises, ");
}

/// A descriptor of this process, which the variables claim by a wrong count, is not taken.
#[test]
fn own_descriptors_are_not_taken() {
    let directory = directory();
    let sockets = [listener(&directory.path().join("a")), listener(&directory.path().join("b"))];
    let said = said(start("claim", "LISTEN_PID=$$ LISTEN_FDS=4", sockets));
    assert_eq!(said, ["not taken", "the file can be read"]);
}

#[test]
fn other_things_than_sockets_come_through() {
    let directory = directory();
    let file = directory.path().join("file");
    std::fs::write(&file, "contents").expect("write");
    let first = File::open(&file).expect("open").into();
    let (connected, mut client) = UnixStream::pair().expect("pair");
    let variables = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=stored:connection";
    let service = start("mixed", variables, [first, connected.into()]);
    let mut greeting = [0; 5];
    client.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"hello");
    assert_eq!(
        said(service),
        [
            "descriptor 3 with the name \"stored\" does not fit: the descriptor is a regular file; this \
             takes a listening Unix-domain stream socket",
            "descriptor 4 with the name \"connection\" does not fit: the descriptor is a connected \
             Unix-domain stream socket; this takes a listening Unix-domain stream socket",
            "descriptor 4 with the name \"connection\" does not fit: the descriptor is a connected \
             Unix-domain stream socket; this takes a connected Unix-domain packet socket",
            "no descriptor has the name \"web\"; there are \"stored\", \"connection\"",
            "no descriptor has the name \"connection\"; there are \"stored\"",
            "contents",
        ]
    );
}

/// As systemd itself does it.
#[test]
fn started_by_systemd_socket_activate() {
    let test = "activation::started_by_systemd_socket_activate";
    let program = "systemd-socket-activate";
    if Command::new(program).arg("--version").output().is_err() {
        return skip(test, "systemd-socket-activate is not installed");
    }
    let directory = directory();
    let path = directory.path().join("web");
    let service = Command::new(program)
        .arg(format!("--listen={}", path.display()))
        .args(["--fdname=web", "--setenv"])
        .arg(format!("{ROLE}=one"))
        .arg(std::env::current_exe().expect("own path"))
        .args(["--exact", "activation::service", "--nocapture", "--quiet"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("just seen");
    // It starts the service when somebody connects. The path appears before the manager listens.
    let mut client = None;
    eventually("the manager listens", || {
        client = UnixStream::connect(&path).ok();
        client.is_some()
    });
    let mut client = client.expect("just checked");
    client.write_all(b"hello").expect("room");
    client.set_read_timeout(Some(LIMIT)).expect("set");
    let mut answer = [0; 5];
    client.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HELLO");
    let said = said(service);
    assert_eq!(said, ["web 3 a listening Unix-domain stream socket", "served web"]);
    assert!(is_socket(&path), "the path is the manager's");
}

/// The service's side. As a test of its own it does nothing.
#[test]
fn service() {
    let Ok(act) = std::env::var(ROLE) else { return };
    match act.as_str() {
        "serve" => act_serve(),
        "one" => act_one(),
        "drop" => act_drop(),
        "fail" => act_fail(),
        "claim" => act_claim(),
        "mixed" => act_mixed(),
        other => panic!("no such act: {other}"),
    }
}

fn act_serve() {
    let mut activation = Activation::take().expect("activated");
    tell(&activation);
    let cloexec = |fd: &OwnedFd| {
        rustix::io::fcntl_getfd(fd).expect("open").contains(FdFlags::CLOEXEC).to_string()
    };
    let flags: Vec<String> = activation.iter().map(|one| cloexec(&one.descriptor)).collect();
    say(&format!("close-on-exec {}", flags.join(" ")));
    tell_numbers();
    say(&format!("again: {}", Activation::take().expect_err("taken")));
    for name in ["web", "talk"] {
        let socket = activation.listener(name, SocketKind::Stream).expect("it is there");
        serve(&socket, name);
    }
    assert_eq!(activation.len(), 1);
    for left in activation {
        say(&format!("left: {} {}", left.name, left.number));
        let output = Command::new("ls").args(["-l", "/proc/self/fd/"]).output().expect("start");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        say(&format!("a child has {} sockets", text.matches("socket:").count()));
    }
}

fn act_one() {
    let mut activation = Activation::take().expect("activated");
    tell(&activation);
    serve(&activation.listener("web", SocketKind::Stream).expect("it is there"), "web");
}

fn act_drop() {
    drop(Activation::take().expect("activated"));
    say("dropped");
    std::thread::sleep(LIMIT);
}

fn act_fail() {
    for _ in 0..2 {
        let error = Activation::take().expect_err("wrong");
        let sort = if error.is_not_activated() { "not activated" } else { "error" };
        say(&format!("{sort}: {error}"));
    }
    tell_numbers();
}

fn act_claim() {
    // The shell has closed 6, so whatever is there was opened by this program.
    let file = File::open("/proc/self/cmdline").expect("open");
    assert!(file.as_raw_fd() >= 6);
    match Activation::take() {
        Err(ActivationError::NotInherited { number: 6 }) => say("not taken"),
        other => say(&format!("{other:?}")),
    }
    let mut text = Vec::new();
    (&file).read_to_end(&mut text).expect("still ours");
    assert!(!text.is_empty());
    say("the file can be read");
}

fn act_mixed() {
    let mut activation = Activation::take().expect("activated");
    for name in ["stored", "connection"] {
        say(&activation.listener(name, SocketKind::Stream).expect_err("no listener").to_string());
    }
    let packets = activation.connection("connection", SocketKind::SeqPacket);
    say(&packets.expect_err("a stream").to_string());
    say(&activation.listener("web", SocketKind::Stream).expect_err("nothing").to_string());
    let socket = activation.connection("connection", SocketKind::Stream).expect("it is one");
    rustix::io::write(&socket, b"hello").expect("room");
    let taken = activation.connection("connection", SocketKind::Stream).expect_err("taken");
    say(&taken.to_string());
    let stored = activation.into_iter().next().expect("one is left");
    say(&std::io::read_to_string(File::from(stored.descriptor)).expect("text"));
}

/// Accepts one connection and answers in capitals.
fn serve(socket: &OwnedFd, name: &str) {
    let mut accepted = None;
    eventually("a connection arrives", || {
        accepted = rustix::net::accept(socket).ok();
        accepted.is_some()
    });
    let mut stream = UnixStream::from(accepted.expect("just checked"));
    let mut question = [0; 5];
    stream.read_exact(&mut question).expect("a question");
    stream.write_all(&question.to_ascii_uppercase()).expect("room");
    say(&format!("served {name}"));
}

fn tell(activation: &Activation) {
    for one in activation.iter() {
        say(&format!("{} {} {}", one.name, one.number, one.found));
    }
}

/// What is at the numbers under which the sockets came.
fn tell_numbers() {
    let kind = |number| {
        let link = std::fs::read_link(format!("/proc/self/fd/{number}")).expect("occupied");
        let text = link.to_string_lossy().into_owned();
        text.split(':').next().expect("a kind").to_owned()
    };
    say(&format!("numbers 3 4 5 lead to {}", [3, 4, 5].map(kind).join(" ")));
}

fn say(text: &str) {
    let output = std::io::stdout().as_fd().try_clone_to_owned().expect("a free descriptor");
    File::from(output).write_all(format!("{MARK}{text}\n").as_bytes()).expect("the parent reads");
}

const ROLE: &str = "RINGPOST_UDS_ACT";
const MARK: &str = "says: ";
const LIMIT: Duration = Duration::from_secs(20);
