//! Descriptors in control messages: sendmsg(2) and recvmsg(2) by hand, and the layout of what comes along
//! (cmsg(3), unix(7)).
//!
//! # Invariant
//!
//! * **A1** Descriptor numbers in a control buffer that recvmsg(2) has just filled are new descriptors of
//!   this process that nothing else owns: each becomes an `OwnedFd` exactly once, at once.

use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Most descriptors that one message carries (SCM_MAX_FD, unix(7)).
pub const DESCRIPTORS_PER_MESSAGE_MAX: usize = 253;

/// Bytes of a control buffer to receive into. The most descriptors take 1032; the rest is for what
/// somebody may have switched on for the socket: credentials, a security label, a pidfd.
const CONTROL_BYTES: usize = 4096;
/// Bytes of a control buffer with the most descriptors.
const RIGHTS_BYTES: usize = HEADER_BYTES + aligned(DESCRIPTORS_PER_MESSAGE_MAX * NUMBER_BYTES);
/// Bytes of the header of a control message: length, level and kind (cmsg(3)).
const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
const WORD_BYTES: usize = size_of::<usize>();
const NUMBER_BYTES: usize = size_of::<RawFd>();
/// `SCM_PIDFD` (include/linux/socket.h, Linux 6.5): comes with each message if SO_PASSPIDFD is set, and
/// is a descriptor as well.
const SCM_PIDFD: i32 = 0x04;
/// `SO_PASSRIGHTS` (include/uapi/asm-generic/socket.h, Linux 6.16; SPARC has numbers of its own).
const SO_PASSRIGHTS: i32 =
    if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) { 0x5c } else { 83 };

/// Memory for control messages. Reused: nothing is read but what the kernel has just written.
#[derive(Debug)]
pub(crate) struct Control(Box<[usize; CONTROL_BYTES / WORD_BYTES]>);

impl Control {
    pub(crate) fn new() -> Self {
        Self(Box::new([0; CONTROL_BYTES / WORD_BYTES]))
    }
}

/// What a receive brought.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Bytes at the front of the target; zero at the end of the stream.
    pub(crate) bytes: usize,
    pub(crate) descriptors: Descriptors,
}

/// Descriptors that came along with bytes.
#[derive(Debug)]
pub(crate) enum Descriptors {
    None,
    /// All that were sent.
    Whole(Vec<OwnedFd>),
    /// The kernel could not give us all of them (MSG_CTRUNC); those it gave are closed.
    Lost,
}

/// Receives what is there, without waiting. Descriptors are close-on-exec.
///
/// A receive on a stream ends with the bytes that descriptors came with (unix(7), "Sockets API"), so it
/// brings the descriptors of one message at most. Several arrays in it, which no kernel makes, count as
/// one.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    target: &mut [MaybeUninit<u8>],
    control: &mut Control,
    system_calls: &mut u64,
) -> Result<Arrival, Errno> {
    let mut part = libc::iovec { iov_base: target.as_mut_ptr().cast(), iov_len: target.len() };
    // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    let count = loop {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES as _;
        *system_calls += 1;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: the header names one part, `target`, and a control buffer of the length it states;
        // both are exclusively borrowed for the call, and bytes of any value are valid in them.
        let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        match usize::try_from(count).map_err(|_| last_error()) {
            Ok(count) => break count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    let written = (header.msg_controllen as usize).min(CONTROL_BYTES);
    let mut descriptors = Vec::new();
    each_descriptor(&control.0[..], written, |kind, number| {
        // SAFETY: a number that the kernel has just installed for us, taken once (A1).
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        if kind == Kind::Passed {
            descriptors.push(descriptor);
        }
    });
    let descriptors = if header.msg_flags & libc::MSG_CTRUNC != 0 {
        Descriptors::Lost
    } else if descriptors.is_empty() {
        Descriptors::None
    } else {
        Descriptors::Whole(descriptors)
    };
    Ok(Arrival { bytes: count, descriptors })
}

/// Descriptors that are to be sent, which stay open here.
#[derive(Debug)]
pub(crate) struct Rights<'a> {
    control: [usize; RIGHTS_BYTES / WORD_BYTES],
    written: usize,
    descriptors: PhantomData<BorrowedFd<'a>>,
}

impl<'a> Rights<'a> {
    /// At most [`DESCRIPTORS_PER_MESSAGE_MAX`] of them; EINVAL otherwise. Runs code of others, `AsFd` of each.
    pub(crate) fn of(descriptors: &'a [impl AsFd]) -> Result<Self, Errno> {
        let mut control = [0_usize; RIGHTS_BYTES / WORD_BYTES];
        let numbers = descriptors.iter().map(|descriptor| descriptor.as_fd().as_raw_fd());
        let written = write_rights(&mut control, numbers).ok_or(Errno::INVAL)?;
        Ok(Self { control, written, descriptors: PhantomData })
    }
}

/// Sends what fits of `parts`, without waiting, and with its first byte the descriptors. Some bytes taken means all
/// descriptors taken. There is at least one byte.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    rights: &Rights<'_>,
    system_calls: &mut u64,
) -> Result<usize, Errno> {
    send_with_control(socket, parts, &rights.control, rights.written, system_calls)
}

fn send_with_control(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    control: &[usize],
    written: usize,
    system_calls: &mut u64,
) -> Result<usize, Errno> {
    assert!(written <= size_of_val(control), "more control bytes than there are");
    // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    // `IoSlice` has the layout of `iovec` on Unix (std::io::IoSlice).
    header.msg_iov = parts.as_ptr().cast_mut().cast();
    header.msg_iovlen = parts.len() as _;
    if written > 0 {
        header.msg_control = control.as_ptr().cast_mut().cast();
        header.msg_controllen = written as _;
    }
    loop {
        *system_calls += 1;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the header names borrowed parts and `written` bytes of a control buffer, which the
        // call only reads.
        let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, flags) };
        match usize::try_from(count).map_err(|_| last_error()) {
            Ok(count) => return Ok(count),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Lets descriptors be sent to this socket, or makes whoever tries get EPERM (SO_PASSRIGHTS, Linux 6.16;
/// sockets accepted from it inherit it). Kernels that don't know it, and sockets of other families, pass
/// them or don't as they always did: a plain receive closes them.
pub fn let_descriptors_pass(socket: BorrowedFd<'_>, pass: bool) {
    // ENOPROTOOPT before Linux 6.16, EOPNOTSUPP on other families.
    if let Err(error) = set_option(socket, SO_PASSRIGHTS, pass) {
        tracing::trace!(%error, "SO_PASSRIGHTS is not known here");
    }
}

/// Lets no packet come with a time (socket(7), systemd.socket(5) `Timestamping=`): a socket from elsewhere may have been
/// set up so, and then the time takes the room of the credentials.
pub(crate) fn refuse_timestamps(socket: BorrowedFd<'_>) {
    for option in [libc::SO_TIMESTAMP, libc::SO_TIMESTAMPNS, libc::SO_TIMESTAMPING] {
        if let Err(error) = set_option(socket, option, false) {
            tracing::trace!(%error, option, "a kind of time that is not known here");
        }
    }
}

/// Sets an option of the socket level that is on or off.
fn set_option(socket: BorrowedFd<'_>, option: libc::c_int, on: bool) -> Result<(), Errno> {
    const LEN: libc::socklen_t = 4;
    const _: () = assert!(size_of::<libc::c_int>() == LEN as usize);
    let value = libc::c_int::from(on);
    // SAFETY: the option value is an int that lives through the call, of the length stated.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            LEN,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Bytes rounded up to the alignment of control messages.
const fn aligned(bytes: usize) -> usize {
    bytes.div_ceil(WORD_BYTES) * WORD_BYTES
}

/// What a descriptor in a control buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The peer passed it (SCM_RIGHTS).
    Passed,
    /// The kernel added it (SCM_PIDFD).
    Added,
}

/// Calls `found` for each descriptor number in the first `written` bytes of a control buffer. Other kinds
/// of control messages are skipped, and what makes no sense ends the walk.
pub(crate) fn each_descriptor(
    control: &[usize],
    written: usize,
    mut found: impl FnMut(Kind, RawFd),
) {
    const HEADER_WORDS: usize = HEADER_BYTES / WORD_BYTES;
    const _: () = assert!(HEADER_BYTES == WORD_BYTES + 2 * size_of::<i32>());
    let mut rest = control.get(..written / WORD_BYTES).unwrap_or(control);
    while let Some((header, body)) = rest.split_at_checked(HEADER_WORDS) {
        // The kernel's layout: a size_t, then level and kind.
        let len = header[0];
        let mut ints = header[1..].iter().flat_map(|word| numbers_of(*word));
        let (level, kind) = (ints.next(), ints.next());
        let Some(body_bytes) = len.checked_sub(HEADER_BYTES) else { return };
        if body_bytes > size_of_val(body) {
            return;
        }
        let kind = match (level, kind) {
            (Some(libc::SOL_SOCKET), Some(libc::SCM_RIGHTS)) => Some(Kind::Passed),
            (Some(libc::SOL_SOCKET), Some(SCM_PIDFD)) => Some(Kind::Added),
            _ => None,
        };
        let (body, after) = body.split_at(body_bytes.div_ceil(WORD_BYTES));
        if let Some(kind) = kind {
            let numbers = body.iter().flat_map(|word| numbers_of(*word));
            numbers
                .take(body_bytes / NUMBER_BYTES)
                .filter(|number| *number >= 0)
                .for_each(|number| found(kind, number));
        }
        rest = after;
    }
}

/// The ints in a word, in the order in which they lie in memory.
fn numbers_of(word: usize) -> impl Iterator<Item = i32> {
    let bytes = word.to_ne_bytes();
    (0..WORD_BYTES / NUMBER_BYTES).map(move |index| {
        let mut number = [0; NUMBER_BYTES];
        number.copy_from_slice(&bytes[index * NUMBER_BYTES..][..NUMBER_BYTES]);
        i32::from_ne_bytes(number)
    })
}

/// Writes a control message with these descriptors; the bytes of it, or `None` if they don't fit.
pub(crate) fn write_rights(
    control: &mut [usize],
    numbers: impl ExactSizeIterator<Item = RawFd>,
) -> Option<usize> {
    let count = numbers.len();
    if count == 0 {
        return Some(0);
    }
    let len = HEADER_BYTES + count * NUMBER_BYTES;
    let written = aligned(len);
    if written > size_of_val(control) {
        return None;
    }
    let head = [libc::SOL_SOCKET, libc::SCM_RIGHTS];
    let mut ints = head.into_iter().chain(numbers);
    control[0] = len;
    for word in control[1..written / WORD_BYTES].iter_mut() {
        let mut bytes = [0; WORD_BYTES];
        for target in bytes.chunks_exact_mut(NUMBER_BYTES) {
            target.copy_from_slice(&ints.next().unwrap_or(0).to_ne_bytes());
        }
        *word = usize::from_ne_bytes(bytes);
    }
    Some(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(control: &[usize], written: usize) -> Vec<(Kind, RawFd)> {
        let mut all = Vec::new();
        each_descriptor(control, written, |kind, number| all.push((kind, number)));
        all
    }

    /// A control message as the kernel lays it out.
    fn message(level: i32, kind: i32, body: &[u8]) -> Vec<usize> {
        let mut bytes = (HEADER_BYTES + body.len()).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&level.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes.resize(aligned(bytes.len()), 0xEE);
        let words = bytes.chunks_exact(WORD_BYTES);
        words.map(|word| usize::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    fn numbers(numbers: &[i32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    #[test]
    fn what_is_written_is_found() {
        for count in [0, 1, 2, 3, 252, 253] {
            let mut control = [usize::MAX; RIGHTS_BYTES / WORD_BYTES];
            let written = write_rights(&mut control, (0..count).collect::<Vec<_>>().into_iter());
            let expected: Vec<_> = (0..count).map(|number| (Kind::Passed, number)).collect();
            assert_eq!(found(&control, written.unwrap()), expected);
        }
        let mut control = [0; RIGHTS_BYTES / WORD_BYTES];
        assert_eq!(write_rights(&mut control, vec![1; 255].into_iter()), None);
    }

    #[test]
    fn other_kinds_are_skipped_and_arrays_are_put_together() {
        const CREDENTIALS: i32 = 2;
        const INQ: i32 = 84;
        let rights = |list: &[i32]| message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &numbers(list));
        let control = [
            message(libc::SOL_SOCKET, CREDENTIALS, &[7; 12]),
            rights(&[3, 4, 5]),
            message(libc::SOL_SOCKET, INQ, &[9; 4]),
            message(libc::SOL_SOCKET, SCM_PIDFD, &numbers(&[6])),
            message(libc::SOL_TCP, libc::SCM_RIGHTS, &numbers(&[70, 71])),
            rights(&[]),
            rights(&[8]),
        ]
        .concat();
        let passed = |number| (Kind::Passed, number);
        let expected = [passed(3), passed(4), passed(5), (Kind::Added, 6), passed(8)];
        assert_eq!(found(&control, size_of_val(&control[..])), expected);
    }

    #[test]
    fn malformed_control_bytes_yield_nothing_that_is_not_there() {
        let rights = message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &numbers(&[3, 4]));
        let whole = size_of_val(&rights[..]);
        for written in 0..whole {
            assert_eq!(found(&rights, written), [], "{written} bytes");
        }
        assert_eq!(found(&rights, whole).len(), 2);
        assert_eq!(found(&rights, usize::MAX).len(), 2, "no more than there is");
        for len in [0, 1, HEADER_BYTES - 1, whole + 1, usize::MAX, usize::MAX - 7] {
            let mut spoiled = rights.clone();
            spoiled[0] = len;
            assert_eq!(found(&spoiled, whole), [], "length {len}");
        }
        let negative = message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &numbers(&[-1, 5, i32::MIN]));
        assert_eq!(found(&negative, size_of_val(&negative[..])), [(Kind::Passed, 5)]);
        // Half a number is none.
        let half = message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &[1, 0, 0, 0, 2, 0]);
        assert_eq!(found(&half, size_of_val(&half[..])).len(), 1);
        assert_eq!(found(&[0; 64], 512), []);
        assert_eq!(found(&[usize::MAX; 64], 512), []);
    }
}
