//! The supplementary groups of a peer: `getsockopt(SO_PEERGROUPS)`, which no crate wraps.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// As many groups as a process can have on Linux (`NGROUPS_MAX`, getgroups(2)).
const GROUPS_MAX: usize = 65_536;

/// Room for the first attempt. Few processes have more groups.
const GROUPS_TYPICAL: usize = 64;

/// The supplementary groups that the process on the other side of a Unix-domain socket had when it
/// connected, listened or made the socket pair (`SO_PEERGROUPS`, Linux 4.13). At most 65,536. The
/// primary group is among them only if the process listed it. A group without a number in this user
/// namespace shows as the overflow group, 65534 by default.
///
/// # Errors
///
/// `NotConnected` if the socket has no peer that the kernel knows, else what `getsockopt` answers.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let socket = socket.as_fd();
    let mut groups: Vec<libc::gid_t> = vec![0; GROUPS_TYPICAL];
    loop {
        let room = size_of_val(groups.as_slice());
        let mut bytes = libc::socklen_t::try_from(room).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: the pointer is to `bytes` bytes that are ours alone, initialised, and alive during
        // the call; the kernel writes at most that many, and the length of what it has.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).unwrap_or(0) / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // The kernel says how much room it takes.
            Some(libc::ERANGE) if count > groups.len() && count <= GROUPS_MAX => {
                groups.resize(count, 0);
            }
            Some(libc::EINTR) => {}
            Some(libc::ENODATA) => return Err(io::ErrorKind::NotConnected.into()),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Runs in a thread of its own, whose groups are its own.
    fn seen_with(own: Vec<u32>) -> Vec<u32> {
        let thread = std::thread::spawn(move || {
            let ids: Vec<_> = own.iter().map(|&id| rustix::process::Gid::from_raw(id)).collect();
            rustix::thread::set_thread_groups(&ids).expect("root may");
            let (one, _other) = UnixStream::pair().expect("pair");
            peer_groups(&one).expect("connected")
        });
        thread.join().expect("no panic")
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets of a kernel")]
    fn as_many_as_there_are() {
        if !rustix::process::geteuid().is_root() {
            // Past libtest's capture.
            let line = b"SKIPPED peer_groups::as_many_as_there_are: needs root\n";
            return io::stderr().write_all(line).expect("standard error is open");
        }
        for count in [0, 1, 63, 64, 65, 1000, 65_536] {
            let own: Vec<u32> = (1..=count).collect();
            assert_eq!(seen_with(own.clone()), own, "{count}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets of a kernel")]
    fn nobody_there() {
        let family = rustix::net::AddressFamily::UNIX;
        let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None);
        let error = peer_groups(socket.expect("a socket")).expect_err("nobody");
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        let error = peer_groups(reader).expect_err("no socket");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }
}
