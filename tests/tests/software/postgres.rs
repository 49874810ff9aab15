//! The PostgreSQL of our own.

use std::sync::Arc;
use std::thread;

use ringpost_testkit::child::skip;
use ringpost_tests::software::postgres::{NOT_HERE, programs};

pub(crate) use ringpost_tests::software::postgres::{DATABASE, Server, USER};

#[test]
fn starts_answers_and_ends() {
    let test = "postgres::starts_answers_and_ends";
    let Some(server) = Server::start(test, &[("application_name", "own")]) else { return };
    let mut psql = server.program("psql", server.directory());
    psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", "show fsync"]);
    let answer = psql.output().expect("psql starts");
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "off\n", "{}", server.log());
    assert!(server.socket().exists());
    let (directory, pid) = (server.directory().to_owned(), server.pid());
    drop(server);
    assert!(!directory.exists());
    assert!(rustix::process::test_kill_process(pid).is_err(), "the server has ended");
}

#[test]
fn is_shared() {
    let test = "postgres::is_shared";
    let Some(first) = Server::shared(test) else { return };
    let second = Server::shared(test).expect("it is installed");
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn one_that_ends_early_is_seen() {
    let test = "postgres::one_that_ends_early_is_seen";
    if programs().is_none() {
        return skip(test, NOT_HERE);
    }
    let wrong = || Server::start(test, &[("no_such_parameter", "1")]);
    let panic = thread::spawn(wrong).join().expect_err("it does not start");
    let text = panic.downcast_ref::<String>().expect("a message");
    assert!(text.contains("no_such_parameter"), "{text}");
}
