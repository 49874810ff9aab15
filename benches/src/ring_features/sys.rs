//! System calls and raw memory that neither std nor the `io-uring` crate offers.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use io_uring::squeue;
use io_uring::types::SubmitArgs;

pub(super) const ENTER_GETEVENTS: u32 = 1;
const ENTER_EXT_ARG: u32 = 1 << 3;
pub(super) const ENTER_REGISTERED_RING: u32 = 1 << 4;
pub(super) const ENTER_NO_IOWAIT: u32 = 1 << 7;
/// `IOU_PBUF_RING_INC`, Linux 6.12.
pub(super) const BUFFER_RING_INCREMENTAL: u16 = 2;
/// `IORING_RECVSEND_POLL_FIRST`, Linux 5.19.
pub(super) const POLL_FIRST: u16 = 1;
const REGISTER_RING_FDS: u32 = 20;
const UNREGISTER_RING_FDS: u32 = 21;
/// Linux 6.13.
const REGISTER_SEND_MSG_RING: u32 = 31;
/// `FUTEX2_SIZE_U32 | FUTEX2_PRIVATE`.
pub(super) const FUTEX_PRIVATE_U32: u32 = 2 | 128;

/// Page-aligned memory that the kernel may read or write; only ever reached through raw pointers.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    layout: Layout,
}

impl Region {
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(len.max(PAGE_BYTES), PAGE_BYTES)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the layout has a size of at least one page.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Ok(Self { base, layout })
    }

    /// Pointer to the byte at `offset`.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.layout.size(), "offset beyond the region");
        // SAFETY: the offset lies inside the allocation (asserted).
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// `len` bytes at `offset`.
    ///
    /// # Safety
    ///
    /// Nothing, the kernel included, writes to the range while the result is alive.
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(len <= self.layout.size() - offset.min(self.layout.size()), "range beyond region");
        // SAFETY: the range is allocated (asserted), was zeroed at first, and is not written to by
        // this function's contract.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().wrapping_add(offset), len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

const PAGE_BYTES: usize = 4096;

// SAFETY: a region exclusively owns plain memory, wherever the value is.
unsafe impl Send for Region {}

fn checked(result: libc::c_long) -> io::Result<u32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(u32::try_from(result).unwrap_or(0))
    }
}

/// `io_uring_enter` without arguments. What the entries point to is the business of whoever pushed
/// them.
#[inline]
pub(super) fn enter(ring: RawFd, submit: u32, want: u32, flags: u32) -> io::Result<u32> {
    // SAFETY: no pointer is passed, and the kernel checks the descriptor.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            libc::c_long::from(ring),
            libc::c_long::from(submit),
            libc::c_long::from(want),
            libc::c_long::from(flags),
            std::ptr::null::<libc::c_void>(),
            0_usize,
        )
    };
    checked(result)
}

/// `io_uring_enter` that waits for `want` completions, or for one once `min_wait_us` have passed.
#[inline]
pub(super) fn enter_min_wait(
    ring: RawFd,
    submit: u32,
    want: u32,
    flags: u32,
    min_wait_us: u32,
) -> io::Result<u32> {
    let arguments = SubmitArgs::new().min_wait_usec(min_wait_us);
    // SAFETY: the arguments live until the call returns, point to nothing else, and have the size of
    // `struct io_uring_getevents_arg`, of which they are a transparent form.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            libc::c_long::from(ring),
            libc::c_long::from(submit),
            libc::c_long::from(want),
            libc::c_long::from(flags | ENTER_EXT_ARG),
            &raw const arguments,
            size_of::<SubmitArgs<'_, '_>>(),
        )
    };
    checked(result)
}

/// `struct io_uring_rsrc_update` as `IORING_REGISTER_RING_FDS` takes it.
#[repr(C)]
struct RingFdUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

fn update_ring_fd(ring: RawFd, operation: u32, update: &mut RingFdUpdate) -> io::Result<()> {
    let update: *mut RingFdUpdate = update;
    // SAFETY: one live update is passed, as the count says; the kernel is done with it on return.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            libc::c_long::from(ring),
            libc::c_long::from(operation),
            update,
            1 as libc::c_long,
        )
    };
    checked(result).map(drop)
}

/// Registers the ring with the calling thread and returns its index.
pub(super) fn register_ring_fd(ring: RawFd) -> io::Result<u32> {
    let data = u64::try_from(ring).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let mut update = RingFdUpdate { offset: u32::MAX, reserved: 0, data };
    update_ring_fd(ring, REGISTER_RING_FDS, &mut update)?;
    Ok(update.offset)
}

pub(super) fn unregister_ring_fd(ring: RawFd, index: u32) -> io::Result<()> {
    let mut update = RingFdUpdate { offset: index, reserved: 0, data: 0 };
    update_ring_fd(ring, UNREGISTER_RING_FDS, &mut update)
}

/// Performs one `MSG_RING` entry without a ring of one's own.
#[inline]
pub(super) fn send_msg_ring(entry: &squeue::Entry) -> io::Result<()> {
    let entry: *const squeue::Entry = entry;
    // SAFETY: `Entry` is a C-layout wrapper of one `struct io_uring_sqe`, and one is what the count
    // says; a data message points to no memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            libc::c_long::from(-1),
            libc::c_long::from(REGISTER_SEND_MSG_RING),
            entry,
            1 as libc::c_long,
        )
    };
    checked(result).map(drop)
}

pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Wakes one waiter of `word`.
#[inline]
pub(super) fn futex_wake(word: &AtomicU32) -> io::Result<()> {
    // SAFETY: the word is alive for the call; waking reads nothing from it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1 as libc::c_int,
        )
    };
    checked(result).map(drop)
}

/// Non-blocking send; the number of bytes taken.
#[inline]
pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the call reads `len` bytes at the pointer, which are a live slice.
    let result = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Non-blocking receive; the number of bytes got.
#[inline]
pub(super) fn receive(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<usize> {
    let pointer = bytes.as_mut_ptr().cast();
    // SAFETY: the call writes at most `len` bytes at the pointer, which are a live exclusive slice.
    let result = unsafe { libc::recv(fd.as_raw_fd(), pointer, bytes.len(), libc::MSG_DONTWAIT) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Nanoseconds on a CPU clock.
#[inline]
pub(super) fn cpu_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec to the place given, which is a live local.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "every Linux has the CPU clocks");
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    positive(time.tv_sec) * 1_000_000_000 + positive(time.tv_nsec)
}

/// The CPUs that the calling thread may run on.
pub(super) fn allowed_cpus() -> Vec<usize> {
    // SAFETY: a CPU set is an array of integers, for which zero is a value.
    let mut set = unsafe { std::mem::zeroed::<libc::cpu_set_t>() };
    // SAFETY: the call writes at most the size given to the live set.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result != 0 {
        return Vec::new();
    }
    let cpus = 0..usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    cpus.filter(|&cpu| {
        // SAFETY: the index is below CPU_SETSIZE.
        unsafe { libc::CPU_ISSET(cpu, &set) }
    })
    .collect()
}

/// Lets the calling thread run on `cpus` only. A refusal leaves it where it is.
pub(super) fn run_on(cpus: &[usize]) {
    // SAFETY: a CPU set is an array of integers, for which zero is a value.
    let mut set = unsafe { std::mem::zeroed::<libc::cpu_set_t>() };
    for &cpu in cpus {
        // SAFETY: the set is live; an index beyond it would panic, not write elsewhere.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the call reads the size given from the live set.
    let _ = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}
