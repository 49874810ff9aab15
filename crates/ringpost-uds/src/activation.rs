//! Sockets that a service manager made and left open for this process: the `LISTEN_FDS` protocol of
//! sd_listen_fds(3).
//!
//! # How numbers become owned descriptors
//!
//! The environment says "3, and the next two". Making an [`OwnedFd`] of a number is unsafe for a reason:
//! if the number belongs to other code of this process, closing it closes that code's file under its
//! hands. A wrong environment must not lead there, so nothing here believes it:
//!
//! 1. Each number is looked up in `/proc/thread-self/fdinfo`. One that is close-on-exec can't have come through
//!    the `exec` that started this program: other code has opened it, or has taken it. It is refused.
//! 2. Each is duplicated: sent by its number over a socket pair and received as a new descriptor, owned
//!    and close-on-exec from its birth (SCM_RIGHTS, unix(7)). `pidfd_getfd(2)` would do the same with
//!    fewer words, but container runtimes refuse it to processes without CAP_SYS_PTRACE. Opening
//!    `/proc/self/fd/N` can't open sockets.
//! 3. Only when all are there, the inherited ones are closed. Left open they would be handed to every
//!    child, because they are not close-on-exec, and the socket would go on taking connections after
//!    its last user has dropped it. Their numbers stay occupied by empty pipes: a second library that
//!    reads the same variables finds something that is no socket, and not whatever this process
//!    opened next.
//!
//! A failure on the way leaves everything as it was.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::activation_error::ActivationError;
use crate::descriptor::{AdoptError, Descriptor, adopt_connection, adopt_datagram, adopt_listener};
use crate::options::SocketKind;

/// The descriptors that the service manager passed to this process.
///
/// They are owned and close-on-exec; their paths are never removed, for they are the manager's. What
/// is not asked for by name comes out of [`into_iter`](Self::into_iter), or is closed when this is dropped.
///
/// # Example
///
/// ```
/// use ringpost_uds::{Activation, Address, BindOptions, SocketKind, bind};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let address = Address::from(directory.path().join("app.sock"));
/// // First thing in main.
/// let socket = match Activation::take() {
///     Ok(mut activation) => activation.listener("app", SocketKind::Stream)?,
///     Err(error) if error.is_not_activated() => {
///         let (socket, guard) = bind(&address, &BindOptions::new())?.into_parts();
///         // Keep the guard as long as the socket accepts.
/// #       drop(guard);
///         socket
///     }
///     Err(error) => return Err(error.into()),
/// };
/// # drop(socket);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "dropping it closes the sockets"]
pub struct Activation {
    inherited: Vec<Inherited>,
}

/// A descriptor that the service manager passed.
#[non_exhaustive]
#[derive(Debug)]
pub struct Inherited {
    /// Its name in `LISTEN_FDNAMES`, or `unknown`. Names need not be unique.
    pub name: String,
    /// The number under which it came, for messages.
    pub number: i32,
    /// What it is.
    pub found: Descriptor,
    /// The descriptor itself, close-on-exec, with a number of its own.
    pub descriptor: OwnedFd,
}

impl Activation {
    /// As many descriptors as are taken. A service has a few.
    pub const DESCRIPTORS_MAX: usize = 1024;

    /// Takes the descriptors that `LISTEN_FDS` promises, if `LISTEN_PID` says that they are for this
    /// process. Works once per process.
    ///
    /// Call it first thing in `main`, before there are other threads: what another thread opens or
    /// closes at the same moment can change which file a number means.
    ///
    /// The variables stay in the environment, because changing it is unsound while other threads read it.
    /// A child of this process inherits them and finds its own number not in `LISTEN_PID`, so a correct
    /// one ignores them; to be sure, remove them where it is started:
    ///
    /// ```
    /// let mut command = std::process::Command::new("true");
    /// for variable in ringpost_uds::Activation::VARIABLES {
    ///     command.env_remove(variable);
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ActivationError`]. For [`is_not_activated`](ActivationError::is_not_activated) a program that
    /// also starts by itself binds its own socket. After any error nothing is taken or closed.
    pub fn take() -> Result<Self, ActivationError> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.is_some() {
            return Err(ActivationError::AlreadyTaken);
        }
        let names = promised(|name| std::env::var_os(name).map(|text| text.into_encoded_bytes()))?;
        let mut inherited = Vec::with_capacity(names.len());
        for (name, number) in names.into_iter().zip(FIRST..) {
            check_inherited(number)?;
            let failed = |source| ActivationError::System { number, source };
            let descriptor = duplicate(number).map_err(failed)?;
            let found = Descriptor::of(&descriptor).map_err(failed)?;
            inherited.push(Inherited { name, number, found, descriptor });
        }
        *taken = Some(retire(inherited.iter().map(|one| one.number)));
        Ok(Self { inherited })
    }

    /// The variables of the protocol.
    pub const VARIABLES: [&str; 3] = [LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES];

    /// What is there and was not taken yet, in the order of the manager.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Inherited> {
        self.inherited.iter()
    }

    /// How many are there and were not taken yet.
    pub fn len(&self) -> usize {
        self.inherited.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.inherited.is_empty()
    }

    /// Takes the first listening Unix-domain socket of this kind with this name, and makes it
    /// non-blocking.
    ///
    /// # Errors
    ///
    /// [`ActivationError::Unfit`] says what has the name instead, [`ActivationError::NoSuchName`] which
    /// names there are. Nothing is taken then.
    pub fn listener(&mut self, name: &str, kind: SocketKind) -> Result<OwnedFd, ActivationError> {
        self.adopt(name, |descriptor| adopt_listener(descriptor, kind))
    }

    /// As [`listener`](Self::listener), for a connected socket. With `Accept=yes` in its socket unit,
    /// systemd starts a service for each connection and calls it `connection`.
    ///
    /// # Errors
    ///
    /// As [`listener`](Self::listener).
    pub fn connection(&mut self, name: &str, kind: SocketKind) -> Result<OwnedFd, ActivationError> {
        self.adopt(name, |descriptor| adopt_connection(descriptor, kind))
    }

    /// As [`listener`](Self::listener), for a datagram socket (`ListenDatagram=` in a systemd socket unit).
    ///
    /// # Errors
    ///
    /// As [`listener`](Self::listener).
    pub fn datagram(&mut self, name: &str) -> Result<OwnedFd, ActivationError> {
        self.adopt(name, adopt_datagram)
    }

    fn adopt(
        &mut self,
        name: &str,
        adopt: impl Fn(OwnedFd) -> Result<OwnedFd, AdoptError>,
    ) -> Result<OwnedFd, ActivationError> {
        let mut unfit = None;
        for position in 0..self.inherited.len() {
            if self.inherited[position].name != name {
                continue;
            }
            let Inherited { name, number, found, descriptor } = self.inherited.remove(position);
            match adopt(descriptor) {
                Ok(descriptor) => return Ok(descriptor),
                Err(error) => {
                    unfit.get_or_insert_with(|| ActivationError::Unfit {
                        name: name.clone(),
                        number,
                        reason: error.to_string(),
                    });
                    let descriptor = error.into_socket();
                    let back = Inherited { name, number, found, descriptor };
                    self.inherited.insert(position, back);
                }
            }
        }
        Err(unfit.unwrap_or_else(|| ActivationError::NoSuchName {
            name: name.to_owned(),
            known: self.inherited.iter().map(|one| one.name.clone()).collect(),
        }))
    }
}

impl IntoIterator for Activation {
    type Item = Inherited;
    type IntoIter = std::vec::IntoIter<Inherited>;

    fn into_iter(self) -> Self::IntoIter {
        self.inherited.into_iter()
    }
}

/// The names of the promised descriptors.
pub(crate) fn promised(
    variable: impl Fn(&'static str) -> Option<Vec<u8>>,
) -> Result<Vec<String>, ActivationError> {
    let number = |name| match variable(name) {
        None => Err(ActivationError::NotActivated),
        Some(value) => match str::from_utf8(&value).ok().and_then(|text| text.parse().ok()) {
            Some(number) => Ok(number),
            None => Err(malformed(name, &value, "a number")),
        },
    };
    let (listed, own) = (number(LISTEN_PID)?, std::process::id());
    if listed != own {
        return Err(ActivationError::OtherProcess { listed, own });
    }
    let count = number(LISTEN_FDS)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count == 0 {
        return Err(ActivationError::NotActivated);
    }
    if count > Activation::DESCRIPTORS_MAX {
        let limit = Activation::DESCRIPTORS_MAX;
        return Err(ActivationError::TooMany { count, limit });
    }
    let Some(value) = variable(LISTEN_FDNAMES) else {
        return Ok(vec![UNKNOWN.to_owned(); count]);
    };
    let Ok(text) = str::from_utf8(&value) else {
        return Err(malformed(LISTEN_FDNAMES, &value, "names in ASCII, with colons between them"));
    };
    let names: Vec<String> = text.split(':').map(str::to_owned).collect();
    match names.len() == count {
        true => Ok(names),
        false => Err(ActivationError::NamesMismatch { names: names.len(), descriptors: count }),
    }
}

fn malformed(variable: &'static str, value: &[u8], expected: &'static str) -> ActivationError {
    let value = String::from_utf8_lossy(&value[..value.len().min(VALUE_BYTES_SHOWN)]).into_owned();
    ActivationError::Malformed { variable, value, expected }
}

/// Refuses a number that is not open, or that this process opened itself.
fn check_inherited(number: RawFd) -> Result<(), ActivationError> {
    let text = match std::fs::read_to_string(format!("{FDINFO}/{number}")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(match Path::new(FDINFO).exists() {
                true => ActivationError::Missing { number },
                false => ActivationError::NoProc,
            });
        }
        Err(source) => return Err(ActivationError::System { number, source }),
    };
    // Octal; O_CLOEXEC among the flags is the descriptor's close-on-exec (proc_pid_fdinfo(5)).
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
    let flags = flags.and_then(|flags| u32::from_str_radix(flags, 8).ok());
    match flags.map(|flags| flags & rustix::fs::OFlags::CLOEXEC.bits()) {
        Some(0) => Ok(()),
        Some(_) => Err(ActivationError::NotInherited { number }),
        None => Err(ActivationError::System { number, source: io::ErrorKind::InvalidData.into() }),
    }
}

/// A descriptor of our own for what is at `number`.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (sender, receiver) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let rights = [number];
    nix::sys::socket::sendmsg::<UnixAddr>(
        sender.as_raw_fd(),
        &[IoSlice::new(&[0])],
        &[ControlMessage::ScmRights(&rights)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(&receiver, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    // The kernel leaves out what the process has no free number for, or may not have.
    received.ok_or_else(|| {
        io::Error::other(
            "the kernel kept it back; the process has no free descriptor (ulimit -n), or a security \
             module forbids it",
        )
    })
}

/// Closes the inherited descriptors and keeps their numbers occupied.
fn retire(numbers: impl Iterator<Item = RawFd>) -> Vec<OwnedFd> {
    // Reading finds the end, all else fails, and there is no way from it to anything.
    let blank = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map(|(reader, _)| reader);
    let mut placeholders = Vec::new();
    for number in numbers {
        // Linux frees the number even if it reports an error (close(2)).
        if let Err(errno) = nix::unistd::close(number) {
            tracing::warn!(number, %errno, "closing an inherited descriptor");
        }
        // Only a convenience for others: it is left out if there is nothing to fill the place with, or
        // if another thread was quicker.
        if let Ok(blank) = &blank
            && let Ok(placeholder) = rustix::io::fcntl_dupfd_cloexec(blank, number)
            && placeholder.as_raw_fd() == number
        {
            placeholders.push(placeholder);
        }
    }
    placeholders
}

/// What occupies the numbers of the descriptors, once they are taken. Held until the process ends.
static TAKEN: Mutex<Option<Vec<OwnedFd>>> = Mutex::new(None);

const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";

/// The number of the first descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// The name of a descriptor without one, as in sd_listen_fds_with_names(3).
const UNKNOWN: &str = "unknown";

/// This thread's descriptors. All threads of a Rust program share them.
const FDINFO: &str = "/proc/thread-self/fdinfo";

/// How much of a senseless value an error shows, in bytes.
const VALUE_BYTES_SHOWN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pid: Option<&str>, fds: Option<&str>, names: Option<&[u8]>) -> String {
        let own = std::process::id().to_string();
        let text = |value: &str| value.replace("OWN", &own).into_bytes();
        let result = promised(|name| match name {
            LISTEN_PID => pid.map(text),
            LISTEN_FDS => fds.map(text),
            _ => names.map(<[u8]>::to_vec),
        });
        match result {
            Ok(names) => names.join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn reads_the_variables() {
        let check = |pid, fds, names, expected: &str| {
            let answer = with(pid, fds, names);
            assert!(answer.contains(expected), "{answer:?} does not contain {expected:?}");
        };
        let own = Some("OWN");
        check(own, Some("1"), None, "unknown");
        check(own, Some("2"), Some(b"web:"), "web ");
        check(own, Some("3"), Some(b"a:b:a"), "a b a");
        check(None, None, None, "no service manager");
        check(own, None, None, "no service manager");
        check(None, Some("1"), None, "no service manager");
        check(own, Some("0"), None, "no service manager");
        check(Some("1"), Some("1"), None, "LISTEN_PID is 1, and this is process");
        check(Some("4294967296"), Some("1"), None, "LISTEN_PID is \"4294967296\", and should be");
        check(Some(" OWN"), Some("1"), None, "LISTEN_PID is \" ");
        check(own, Some("-1"), None, "LISTEN_FDS is \"-1\", and should be a number");
        check(own, Some(""), None, "LISTEN_FDS is \"\"");
        check(own, Some("1025"), None, "promises 1025 descriptors, and at most 1024");
        check(Some("1"), Some("x"), None, "LISTEN_PID is 1, and this is process");
        check(own, Some("2"), Some(b"a"), "has 1 names for 2 descriptors");
        check(own, Some("1"), Some(b"a:b"), "has 2 names for 1 descriptors");
        check(own, Some("1"), Some(b"\xff"), "LISTEN_FDNAMES is");
        check(own, Some(&"9".repeat(1000)), None, "and should be a number");
        assert!(with(own, Some(&"9".repeat(1000)), None).len() < 200);
    }

    #[test]
    fn what_this_process_opened_is_not_inherited() {
        let (reader, _writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("pipe");
        let number = reader.as_raw_fd();
        let error = check_inherited(number).expect_err("close-on-exec");
        assert!(matches!(error, ActivationError::NotInherited { number: n } if n == number));
        rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::empty()).expect("ours");
        check_inherited(number).expect("as if it had come through exec");
        let error = check_inherited(1_000_000_000).expect_err("not open");
        assert!(matches!(error, ActivationError::Missing { number: 1_000_000_000 }), "{error}");
    }

    #[test]
    fn a_duplicate_is_the_same_socket() {
        let (one, other) = std::os::unix::net::UnixStream::pair().expect("pair");
        let copy = duplicate(one.as_raw_fd()).expect("open");
        assert_ne!(copy.as_raw_fd(), one.as_raw_fd());
        assert!(
            rustix::io::fcntl_getfd(&copy).expect("open").contains(rustix::io::FdFlags::CLOEXEC)
        );
        drop(one);
        rustix::io::write(&other, b"x").expect("the copy reads");
        assert_eq!(rustix::io::read(&copy, &mut [0; 8]), Ok(1));
        assert!(duplicate(1_000_000_000).is_err());
    }
}
