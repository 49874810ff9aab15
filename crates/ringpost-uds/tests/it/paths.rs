//! Paths of all lengths, and paths that lead nowhere.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ringpost_uds::{Address, AddressError, BindError, BindOptions, ConnectErrorKind};

use crate::child::Peer;
use crate::support::{bind, connect, directory, leave_stale, names, path_of_length};

fn works(path: &Path) {
    let bound = bind(path).expect("free");
    connect(path).expect("listens");
    assert!(bind(path).expect_err("in use").is_address_in_use());
    drop(bound);
    let directory = path.parent().expect("has one");
    assert!(names(directory).is_empty(), "{:?}", names(directory));
}

#[test]
fn lengths_from_100_to_300() {
    for length in 100..=300 {
        let directory = directory();
        works(&path_of_length(directory.path(), length, 8));
    }
}

#[test]
fn long_names() {
    for name in [90, 91, 100, 107, 108, 200, 230, 236, 237, 241, 242, 249, 250] {
        let directory = directory();
        works(&directory.path().join("n".repeat(name)));
    }
}

#[test]
fn the_longest_path() {
    let directory = directory();
    works(&path_of_length(directory.path(), 4085, 8));
}

#[test]
fn long_stale_socket_is_replaced() {
    let directory = directory();
    let path = path_of_length(directory.path(), 200, 8);
    let mut child = Peer::start();
    assert_eq!(child.ask(&format!("bind 600 {}", path.display())), "won");
    child.kill();
    drop(bind(&path).expect("stale"));
}

#[test]
fn names_beyond_the_limits() {
    let directory = directory();
    let check = |length: usize, limit: usize| {
        let path = directory.path().join("n".repeat(length));
        let error = bind(&path).expect_err("too long");
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains(&format!("has {length} bytes, and at most {limit}")), "{text}");
        match error {
            BindError::Address(AddressError::NameTooLong { length: l, limit: m, .. }) => {
                assert_eq!((l, m), (length, limit));
            }
            other => panic!("{other}"),
        }
    };
    check(251, 250);
    check(255, 250);
    check(256, 255);
    check(3000, 255);
    assert!(names(directory.path()).is_empty());

    let error = bind(&directory.path().join("d".repeat(300)).join("app")).expect_err("too long");
    assert!(error.to_string().contains("a name of 300 bytes, and at most 255"), "{error}");
    let error = bind(&PathBuf::from("d/".repeat(3000)).join("app")).expect_err("too long");
    assert!(error.to_string().contains("has 6003 bytes, and at most 4095"), "{error}");
    let error = connect(&directory.path().join("n".repeat(256))).expect_err("too long");
    assert_eq!(error.kind(), ConnectErrorKind::PathTooLong);
    assert!(error.to_string().contains("has 256 bytes, and at most 255"), "{error}");
}

#[test]
fn relative_paths() {
    // Relative to the package directory, where cargo runs the tests.
    let directory = tempfile::Builder::new().prefix("uds-").tempdir_in("tests").expect("directory");
    let name = directory.path().file_name().expect("has one");
    works(&Path::new("tests").join(name).join("app.sock"));
    works(&Path::new("./tests/../tests").join(name).join("app.sock"));
}

#[test]
fn directories_through_links() {
    let directory = directory();
    let real = directory.path().join("real");
    std::fs::create_dir(&real).expect("make");
    symlink("real", directory.path().join("link")).expect("link");
    works(&directory.path().join("link/app.sock"));
}

#[test]
fn missing_directory() {
    let directory = directory();
    let missing = directory.path().join("missing");
    let error = bind(&missing.join("app.sock")).expect_err("nowhere");
    let expected =
        format!("the directory {} for the socket does not exist; create it", missing.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    std::fs::write(&missing, "").expect("write");
    let error = bind(&missing.join("app.sock")).expect_err("not a directory");
    assert!(error.to_string().contains("not a directory"), "{error}");
}

#[test]
fn addresses_are_checked() {
    for path in ["", "app/", "/", ".."] {
        let address = Address::Path(path.into());
        let error = ringpost_uds::bind(&address, &BindOptions::new()).expect_err("senseless");
        assert!(matches!(error, BindError::Address(_)), "{error}");
        let error = ringpost_uds::connect(&address).expect_err("senseless");
        assert_eq!(error.kind(), ConnectErrorKind::InvalidAddress);
    }
}

#[test]
fn long_path_to_a_stale_socket_or_none() {
    let directory = directory();
    let path = path_of_length(directory.path(), 200, 8);
    assert_eq!(connect(&path).expect_err("none").kind(), ConnectErrorKind::Missing);
    let short = directory.path().join("s");
    leave_stale(&short);
    std::fs::rename(&short, &path).expect("move");
    assert_eq!(connect(&path).expect_err("stale").kind(), ConnectErrorKind::Refused);
}
