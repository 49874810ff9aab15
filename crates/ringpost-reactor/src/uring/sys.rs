//! The io_uring calls that the `io-uring` crate has no direct form for.
//!
//! The crate keeps a registered ring index in a short-lived `Submitter`, and leaves out
//! `GETEVENTS` when it sees nothing to do; a ring with deferred task work needs both under control.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};

pub(super) const ENTER_GETEVENTS: u32 = 1;
pub(super) const ENTER_EXT_ARG: u32 = 1 << 3;
pub(super) const ENTER_REGISTERED_RING: u32 = 1 << 4;
pub(super) const ENTER_NO_IOWAIT: u32 = 1 << 7;
const REGISTER_RING_FDS: libc::c_long = 20;
const UNREGISTER_RING_FDS: libc::c_long = 21;
/// `IOU_PBUF_RING_INC`, Linux 6.12.
pub(super) const BUFFER_RING_INCREMENTAL: u16 = 2;

/// `struct io_uring_rsrc_update` as `IORING_REGISTER_RING_FDS` takes it.
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

fn update_ring_fd(ring: RawFd, call: libc::c_long, update: &mut RingFdUpdate) -> io::Result<()> {
    let update: *mut RingFdUpdate = update;
    // SAFETY: `update` is a live `struct io_uring_rsrc_update`, and one is what the count says; the
    // kernel is done with it when the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            libc::c_long::from(ring),
            call,
            update,
            1 as libc::c_long,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers the ring with the calling thread and returns its index (Linux 5.18).
pub(super) fn register_ring_fd(ring: RawFd) -> io::Result<u32> {
    let data = u64::try_from(ring).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let mut update = RingFdUpdate { offset: u32::MAX, reserved: 0, data };
    update_ring_fd(ring, REGISTER_RING_FDS, &mut update)?;
    Ok(update.offset)
}

/// Takes the registration back; without it the ring would live until the thread ends.
pub(super) fn unregister_ring_fd(ring: RawFd, index: u32) -> io::Result<()> {
    update_ring_fd(
        ring,
        UNREGISTER_RING_FDS,
        &mut RingFdUpdate { offset: index, reserved: 0, data: 0 },
    )
}

/// `io_uring_enter` with an optional relative timeout.
///
/// Memory safety of what the submitted entries point to is the contract of whoever pushed them.
#[inline]
pub(super) fn enter(
    ring: RawFd,
    submit: u32,
    want: u32,
    flags: u32,
    timeout: Option<Duration>,
) -> Result<u32, i32> {
    let result = match timeout {
        None => {
            // SAFETY: no pointer is passed; the kernel checks the descriptor.
            unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    libc::c_long::from(ring),
                    libc::c_long::from(submit),
                    libc::c_long::from(want),
                    libc::c_long::from(flags),
                    std::ptr::null::<libc::c_void>(),
                    0_usize,
                )
            }
        }
        Some(timeout) => {
            let timespec = Timespec::from(timeout);
            let args = SubmitArgs::new().timespec(&timespec);
            // SAFETY: `args` and the timespec it points to live until the call returns, and the size
            // is that of `struct io_uring_getevents_arg`, which `SubmitArgs` is a transparent form of.
            unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    libc::c_long::from(ring),
                    libc::c_long::from(submit),
                    libc::c_long::from(want),
                    libc::c_long::from(flags | ENTER_EXT_ARG),
                    &raw const args,
                    size_of::<SubmitArgs<'_, '_>>(),
                )
            }
        }
    };
    if result >= 0 {
        Ok(u32::try_from(result).unwrap_or(u32::MAX))
    } else {
        Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}
