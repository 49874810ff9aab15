//! Owning a path in the place of another process.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ringpost_uds::handover::{DESCRIPTORS_PER_SEND_MAX, GuardParts, HandoverError, receive, send};
use ringpost_uds::{Address, BindOptions, PathGuard, bind, connect};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::support::{directory, names};

#[test]
fn the_new_owner_removes_the_path_and_the_old_one_does_not() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let address = Address::from(path.as_path());
    let (mut socket, mut guard) = bind(&address, &BindOptions::new()).expect("free").into_parts();
    for _ in 0..3 {
        let parts = guard.parts().expect("descriptors").expect("a path");
        assert_eq!(parts.to_string(), path.display().to_string());
        parts.check().expect("a guard's");
        let next = PathGuard::from_parts(parts).expect("a guard's");
        guard.release();
        socket = socket.try_clone().expect("a descriptor");
        guard = next;
        assert!(guard.is_in_place());
        connect(&address).expect("listens");
        // One of the two has the lock, whoever lives.
        let error = bind(&address, &BindOptions::new()).expect_err("in use");
        assert!(error.is_address_in_use(), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    }
    // Parts that are not used change nothing when they go.
    drop(guard.parts().expect("descriptors"));
    assert_eq!(names(directory.path()), ["app.sock", "app.sock.lock"]);
    drop(guard);
    assert!(names(directory.path()).is_empty());
    drop(socket);
    drop(bind(&address, &BindOptions::new()).expect("free again"));
}

#[test]
fn an_abstract_address_has_no_parts() {
    let name = format!("@ringpost-handover-{}", std::process::id());
    let bound = bind(&Address::from(name), &BindOptions::new()).expect("free");
    assert!(bound.guard().parts().expect("no error").is_none());
}

#[test]
fn what_is_no_guard_is_refused() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let bound = bind(&Address::from(path.as_path()), &BindOptions::new()).expect("free");
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().expect("a descriptor");
    for wrong in 0..3 {
        let parts = bound.guard().parts().expect("descriptors").expect("a path");
        let file = OwnedFd::from(std::fs::File::open("/dev/null").expect("there"));
        let fds = parts.descriptors().map(copy);
        let mut fds = Vec::from(fds);
        fds[wrong] = file;
        let fds: [OwnedFd; 3] = fds.try_into().expect("three");
        let parts = GuardParts::new(fds, directory.path().into(), "app.sock".into());
        let error = PathGuard::from_parts(parts).expect_err("refused");
        assert!(matches!(error, HandoverError::Parts { .. }), "{error}");
        assert!(error.to_string().contains("app.sock"), "{error}");
    }
    // Another process's lock, by a descriptor that does not hold it.
    let parts = bound.guard().parts().expect("descriptors").expect("a path");
    let [dir, pin, _] = parts.descriptors().map(copy);
    let lock = std::fs::File::open(directory.path().join("app.sock.lock")).expect("there");
    let parts =
        GuardParts::new([dir, pin, lock.into()], directory.path().into(), "app.sock".into());
    assert!(matches!(parts.check(), Err(HandoverError::Parts { what: "lock", .. })));
    assert!(bound.guard().is_in_place());
}

#[test]
fn descriptors_come_with_the_bytes_they_were_sent_with() {
    let (left, right) = UnixStream::pair().expect("a pair");
    let (mut near, far) = UnixStream::pair().expect("a pair");
    assert_eq!(send(&left, b"no", &[]).expect("room"), 2);
    assert_eq!(send(&left, b"two", &[far.as_fd(), near.as_fd()]).expect("room"), 3);
    drop(far);
    let (mut bytes, mut descriptors) = ([0; 16], VecDeque::new());
    let mut all = Vec::new();
    while all.len() < 5 {
        let count = receive(&right, &mut bytes, &mut descriptors).expect("there");
        all.extend_from_slice(&bytes[..count]);
    }
    assert_eq!(all, b"notwo");
    assert_eq!(descriptors.len(), 2);
    let mut far = UnixStream::from(descriptors.pop_front().expect("two"));
    far.write_all(b"x").expect("connected");
    near.read_exact(&mut bytes[..1]).expect("connected");
    let error = receive(&right, &mut bytes, &mut descriptors).expect_err("nothing there");
    assert!(error.is_would_block(), "{error}");
    drop(left);
    assert_eq!(receive(&right, &mut bytes, &mut descriptors).expect("the end"), 0);
}

#[test]
fn what_can_not_be_sent_or_taken_is_an_error() {
    let (left, right) = UnixStream::pair().expect("a pair");
    let many = [left.as_fd(); DESCRIPTORS_PER_SEND_MAX + 1];
    assert_eq!(
        send(&left, b"x", &many).expect_err("too many").kind(),
        std::io::ErrorKind::InvalidInput
    );
    assert_eq!(
        send(&left, b"", &many[..1]).expect_err("no bytes").kind(),
        std::io::ErrorKind::InvalidInput
    );
    // More than there is room for: some are lost, and that is not passed over.
    let many = [left.as_fd(); 2 * DESCRIPTORS_PER_SEND_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    let bytes = [std::io::IoSlice::new(b"x")];
    rustix::net::sendmsg(&left, &bytes, &mut control, SendFlags::empty()).expect("room");
    let error = receive(&right, &mut [0; 8], &mut VecDeque::new()).expect_err("lost");
    assert!(matches!(error, HandoverError::DescriptorsLost), "{error}");
}
