//! Submission queue entries as the kernel reads them.
//!
//! Only what ringpost builds is understood, down to the last flag: everything else ends the run.

use std::ptr;

use io_uring::squeue::Entry;

use crate::engine::{Request, Token};

/// `struct io_uring_sqe` (io_uring_enter(2)).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Raw {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    offset: u64,
    address: u64,
    len: u32,
    /// Flags of the operation, or what is polled for.
    how: u32,
    user_data: u64,
    buffer_group: u16,
    personality: u16,
    file_index: u32,
    rest: [u64; 2],
}

const _: () = assert!(size_of::<Raw>() == 64 && size_of::<Entry>() == 64);

const POLL_ADD: u8 = 6;
const SENDMSG: u8 = 9;
const TIMEOUT: u8 = 11;
const ACCEPT: u8 = 13;
const ASYNC_CANCEL: u8 = 14;
const SEND: u8 = 26;
const RECV: u8 = 27;

/// `IOSQE_BUFFER_SELECT`.
const BUFFER_SELECT: u8 = 1 << 5;
/// `IOSQE_CQE_SKIP_SUCCESS`.
const SKIP_SUCCESS: u8 = 1 << 6;
/// `IORING_POLL_ADD_MULTI`.
const POLL_MULTI: u32 = 1;
/// `IORING_ACCEPT_MULTISHOT`.
const ACCEPT_MULTISHOT: u16 = 1;
/// `IORING_RECV_MULTISHOT`.
const RECEIVE_MULTISHOT: u16 = 2;

/// Stands for the target of a timeout, which the simulated kernel treats as a cancel: it is over at once,
/// because a pause is nothing that a simulation has to take time for.
pub(super) const PAUSE: Token = Token(u64::MAX - 1);

/// Stands for the target of a poll that wakes the engine early, which the simulated kernel treats as a cancel as well:
/// it does not see when a peer reads, so that it says so when it likes.
pub(super) const WATCH: Token = Token(u64::MAX - 2);

/// What an entry asks for; `Err` says what about it is not understood.
pub(super) fn decode(entry: &Entry, group: u16) -> Result<(Token, Request), &'static str> {
    let raw = ptr::from_ref(entry).cast::<Raw>();
    // SAFETY: `Entry` is a transparent `struct io_uring_sqe`, as `Raw` is; both have 64 bytes, and every
    // pattern of bits is a `Raw`.
    let raw = unsafe { raw.read_unaligned() };
    let Raw { opcode, flags, ioprio, fd, offset, address, len, how, user_data, .. } = raw;
    if offset != 0 || raw.personality != 0 || raw.file_index != 0 || raw.rest != [0; 2] {
        return Err("an entry has fields that it should not have");
    }
    if opcode != RECV && raw.buffer_group != 0 {
        return Err("an entry that takes no buffer names a group");
    }
    let request = match (opcode, flags, ioprio) {
        (RECV, BUFFER_SELECT, RECEIVE_MULTISHOT) if (address, len, how) == (0, 0, 0) => {
            if raw.buffer_group != group {
                return Err("a receive names a group of buffers that is not registered");
            }
            Request::Receive { fd }
        }
        (SEND, 0 | SKIP_SUCCESS, 0) => {
            let silent = is_silent(flags, how)?;
            let data = ptr::with_exposed_provenance(at(address));
            Request::Send { fd, data, len, silent }
        }
        (SENDMSG, 0 | SKIP_SUCCESS, 0) if len == 1 => {
            let silent = is_silent(flags, how)?;
            let header = ptr::with_exposed_provenance(at(address));
            Request::SendMessage { fd, header, silent }
        }
        (ACCEPT, 0, ACCEPT_MULTISHOT) if (address, len) == (0, 0) => {
            if how != (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).cast_unsigned() {
                return Err("an accept has other flags");
            }
            Request::Accept { fd }
        }
        (POLL_ADD, 0, 0) if address == 0 => polled(fd, len, how)?,
        (TIMEOUT, 0, 0) if (fd, len, how) == (-1, 1, 0) && address != 0 => {
            Request::Cancel { target: PAUSE, fd }
        }
        (ASYNC_CANCEL, 0, 0) if (len, how) == (0, 0) => {
            Request::Cancel { target: Token(address), fd }
        }
        _ => return Err("an entry has another form"),
    };
    Ok((Token(user_data), request))
}

fn polled(fd: i32, len: u32, how: u32) -> Result<Request, &'static str> {
    const BELL: u32 = (libc::EPOLLIN | libc::EPOLLET).cast_unsigned();
    const HANGUP: u32 = libc::EPOLLRDHUP.cast_unsigned();
    const READABLE: u32 = libc::EPOLLIN.cast_unsigned();
    const WRITABLE: u32 = libc::EPOLLOUT.cast_unsigned();
    const ROOM: u32 = (libc::EPOLLOUT | libc::EPOLLET).cast_unsigned();
    match (len, how) {
        (POLL_MULTI, ROOM) => Ok(Request::Cancel { target: WATCH, fd }),
        (POLL_MULTI, BELL) => Ok(Request::Doorbell { fd }),
        (0, HANGUP) => Ok(Request::Hangup { fd }),
        (0, READABLE) => Ok(Request::Readable { fd }),
        (0, WRITABLE) => Ok(Request::Writable { fd }),
        _ => Err("a poll waits for something else"),
    }
}

/// Whether a send is silent: one that may wait must be told of.
fn is_silent(flags: u8, how: u32) -> Result<bool, &'static str> {
    const TRACKED: u32 = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned();
    const SILENT: u32 = TRACKED | libc::MSG_DONTWAIT.cast_unsigned();
    match (flags, how) {
        (0, TRACKED) => Ok(false),
        (SKIP_SUCCESS, SILENT) => Ok(true),
        _ => Err("a send has other flags"),
    }
}

fn at(address: u64) -> usize {
    usize::try_from(address).unwrap_or(0)
}
