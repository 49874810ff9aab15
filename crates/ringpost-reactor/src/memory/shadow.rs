//! What AddressSanitizer is told about memory that is recycled without its allocator.
//!
//! AddressSanitizer finds the use of memory that was freed. The reactor frees hardly any: blocks go round
//! between pools, the kernel and readers, and a use at the wrong time finds valid memory with other
//! bytes in it. So with `--cfg ringpost_asan`, which `cargo xtask san` sets, the owners of blocks say
//! here which bytes nobody may touch, and a touch ends the program with a report:
//!
//! * receive blocks: everything that is not lent, be it free or the engine's; a block that nothing is
//!   lent from any more from the moment its last lease is gone;
//! * outbound blocks: those that are kept for reuse, and those of a send in flight whenever the engine is
//!   not running.
//!
//! Ranges that are taken over are checked first: what is lent, received into or taken from a free list
//! was forbidden until then, else two have it, and the program panics.
//!
//! Without that cfg every function here is empty and no type has a destructor.
//!
//! # What it cannot see
//!
//! The kernel writes and reads without looking at the shadow. A block with several leases is forbidden
//! after the last of them, not one range after the other. The shadow has a grain of eight bytes: up to
//! seven bytes in front of a lent range may stay allowed.

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// Memory to receive into, for as long as somebody receives into it; forbidden before and after.
#[derive(Debug)]
pub(crate) struct Writable<'memory> {
    bytes: &'memory mut [MaybeUninit<u8>],
}

impl<'memory> Writable<'memory> {
    pub(super) fn new(bytes: &'memory mut [MaybeUninit<u8>]) -> Self {
        imp::assert_forbidden(bytes.as_ptr().cast(), bytes.len(), "received into");
        imp::allow(bytes.as_ptr().cast(), bytes.len());
        Self { bytes }
    }

    /// Nothing more is received into it.
    #[inline(always)]
    pub(crate) fn end(self) {}
}

impl Deref for Writable<'_> {
    type Target = [MaybeUninit<u8>];

    fn deref(&self) -> &[MaybeUninit<u8>] {
        self.bytes
    }
}

impl DerefMut for Writable<'_> {
    fn deref_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        self.bytes
    }
}

#[cfg(ringpost_asan)]
impl Drop for Writable<'_> {
    fn drop(&mut self) {
        imp::forbid(self.bytes.as_ptr().cast(), self.bytes.len());
    }
}

/// Nobody may touch these bytes.
#[inline(always)]
pub(crate) fn forbid(start: *const u8, len: usize) {
    imp::forbid(start, len);
}

/// These bytes may be touched.
#[inline(always)]
pub(crate) fn allow(start: *const u8, len: usize) {
    imp::allow(start, len);
}

/// These bytes get a new holder, and may be touched.
///
/// # Panics
///
/// With AddressSanitizer, if somebody has them already.
#[inline(always)]
pub(crate) fn hand_out(start: *const u8, len: usize) {
    imp::assert_forbidden(start, len, "handed out");
    imp::allow(start, len);
}

/// These bytes are given back: nobody may touch them.
///
/// # Panics
///
/// With AddressSanitizer, if they were given back before.
#[inline(always)]
pub(crate) fn take_back(start: *const u8, len: usize) {
    imp::assert_allowed(start, len);
    imp::forbid(start, len);
}

/// The kernel has these bytes of a send: nobody may touch them but while an [`EngineRuns`] exists.
#[inline(always)]
pub(super) fn seal(start: *const u8, len: usize) {
    imp::seal(start, len);
}

/// The kernel is done with the send that starts there; nothing if there is none.
#[inline(always)]
pub(super) fn unseal(start: *const u8) {
    imp::unseal(start);
}

/// What `object` points to is leaked on purpose, with everything it holds.
#[inline(always)]
pub(crate) fn leak<T>(object: *const T) {
    imp::leak(object.cast());
}

/// The engine runs, and may look at the memory of sends: engines that perform them themselves must.
#[derive(Debug)]
pub(crate) struct EngineRuns(());

impl EngineRuns {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        imp::allow_sealed();
        Self(())
    }
}

#[cfg(ringpost_asan)]
impl Drop for EngineRuns {
    fn drop(&mut self) {
        imp::forbid_sealed();
    }
}

#[cfg(not(ringpost_asan))]
mod imp {
    #[inline(always)]
    pub(super) fn forbid(_start: *const u8, _len: usize) {}

    #[inline(always)]
    pub(super) fn allow(_start: *const u8, _len: usize) {}

    #[inline(always)]
    pub(super) fn assert_forbidden(_start: *const u8, _len: usize, _what: &str) {}

    #[inline(always)]
    pub(super) fn assert_allowed(_start: *const u8, _len: usize) {}

    #[inline(always)]
    pub(super) fn seal(_start: *const u8, _len: usize) {}

    #[inline(always)]
    pub(super) fn unseal(_start: *const u8) {}

    #[inline(always)]
    pub(super) fn allow_sealed() {}

    #[inline(always)]
    pub(super) fn leak(_object: *const u8) {}
}

#[cfg(ringpost_asan)]
mod imp {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::ffi::{c_int, c_void};
    use std::iter;

    /// Bytes that share a byte of the shadow: allowed up to one of them, forbidden from there on.
    const GRAIN_BYTES: usize = 8;
    /// Bytes that are looked at to see whether a range is forbidden.
    const LOOKS_MAX: usize = 256;

    // sanitizer/asan_interface.h and sanitizer/lsan_interface.h. None of them reads or writes the memory
    // itself; they take any address of the application's memory.
    unsafe extern "C" {
        fn __asan_poison_memory_region(start: *const c_void, len: usize);
        fn __asan_unpoison_memory_region(start: *const c_void, len: usize);
        safe fn __asan_address_is_poisoned(address: *const c_void) -> c_int;
        safe fn __lsan_ignore_object(object: *const c_void);
    }

    thread_local! {
        /// Blocks of sends in flight: where they start, and their lengths. A reactor and its sends stay
        /// on one thread.
        static SEALED: RefCell<BTreeMap<*const u8, usize>> = const { RefCell::new(BTreeMap::new()) };
    }

    pub(super) fn forbid(start: *const u8, len: usize) {
        // SAFETY: callers own the range, which is mapped.
        unsafe { __asan_poison_memory_region(start.cast(), len) };
    }

    pub(super) fn allow(start: *const u8, len: usize) {
        // SAFETY: as above.
        unsafe { __asan_unpoison_memory_region(start.cast(), len) };
    }

    /// Looks at one byte of each grain; of long ranges at [`LOOKS_MAX`] places, as this is done for each
    /// receive. Not at the last grain if the range ends in it: what follows may have been lent before, and
    /// with it all of that grain.
    #[track_caller]
    pub(super) fn assert_forbidden(start: *const u8, len: usize, what: &str) {
        let step = (len / LOOKS_MAX).next_multiple_of(GRAIN_BYTES).max(GRAIN_BYTES);
        let first = start.wrapping_add(start.align_offset(GRAIN_BYTES)).addr() - start.addr();
        let whole = (start.addr() + len) / GRAIN_BYTES * GRAIN_BYTES;
        let held = iter::once(0)
            .chain((first..len).step_by(step))
            .take_while(|&at| start.addr() + at < whole)
            .find(|&at| __asan_address_is_poisoned(start.wrapping_add(at).cast()) == 0);
        if let Some(at) = held {
            panic!("{len} bytes at {start:p} are {what}, but somebody has those from {at} on");
        }
    }

    #[track_caller]
    pub(super) fn assert_allowed(start: *const u8, len: usize) {
        let last = start.wrapping_add(len.saturating_sub(1));
        for at in [start, last] {
            let is_forbidden = __asan_address_is_poisoned(at.cast()) != 0;
            assert!(!is_forbidden, "{len} bytes at {start:p} were given back before");
        }
    }

    pub(super) fn seal(start: *const u8, len: usize) {
        let before = SEALED.with_borrow_mut(|sealed| sealed.insert(start, len));
        assert!(before.is_none(), "the block at {start:p} is in two sends");
        forbid(start, len);
    }

    pub(super) fn unseal(start: *const u8) {
        // Blocks may be dropped when the thread ends.
        let sealed = SEALED.try_with(|sealed| sealed.borrow_mut().remove(&start));
        if let Ok(Some(len)) = sealed {
            allow(start, len);
        }
    }

    pub(super) fn allow_sealed() {
        SEALED.with_borrow(|sealed| sealed.iter().for_each(|(&start, &len)| allow(start, len)));
    }

    pub(super) fn forbid_sealed() {
        SEALED.with_borrow(|sealed| sealed.iter().for_each(|(&start, &len)| forbid(start, len)));
    }

    pub(super) fn leak(object: *const u8) {
        __lsan_ignore_object(object.cast());
    }
}
