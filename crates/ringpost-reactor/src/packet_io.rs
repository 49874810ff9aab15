//! Packets in and out with ordinary system calls: recvmmsg(2) into pool memory, sendmmsg(2) from where the
//! packets lie. One call moves many packets; both engines use the same code.
//!
//! A packet that is received has a slot in a pool block. What does not fit its slot goes to an overflow area
//! and is put together by a copy. Without a block, all of it goes there.
//!
//! # Invariants
//!
//! * **K1** A [`PacketBlock`] belongs to whoever holds it, as far as no engine fills it: bytes from `written`
//!   on have been lent to nobody, and only [`PacketIo::receive`] writes them, within its call.
//! * **K2** The pointers in the arrays of a [`PacketIo`] are set before a system call and used by nothing
//!   after it. What they point to is borrowed for the call, or the `PacketIo`'s own.
//! * **K3** The overflow area belongs to its [`PacketIo`] and is lent only as a borrow of that.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::memory::{Region, shadow};
use crate::pool::{BlockId, Lease, Pool, PoolShared};

/// Packets received with one call at most.
pub(crate) const RECEIVE_PACKETS_MAX: usize = 64;
/// Packets sent with one call at most.
pub(crate) const SEND_PACKETS_MAX: usize = 64;
/// Parts of a packet: a slot and what overflows it, or a header and a payload.
const PARTS: usize = 2;
/// Memory for what does not fit its slot. Virtual until touched.
pub(crate) const OVERFLOW_BYTES: usize = RECEIVE_PACKETS_MAX << 20;

/// The name of a Unix-domain socket as the kernel has it (unix(7)): a path of at most 107 bytes, a name in the
/// abstract namespace, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct SocketName {
    family: libc::sa_family_t,
    /// Zero from `len` on.
    path: [u8; Self::BYTES_MAX + 1],
    /// Bytes of `path` that count, without a terminating zero byte.
    len: u8,
}

impl SocketName {
    /// The longest path or abstract name, bytes.
    pub const BYTES_MAX: usize = 107;

    /// No name: the socket is not bound.
    #[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
    pub const UNNAMED: Self =
        Self { family: libc::AF_UNIX as libc::sa_family_t, path: [0; Self::BYTES_MAX + 1], len: 0 };

    /// The name of a socket at a path of 1 to 107 bytes, none of them zero.
    pub fn from_path(path: &[u8]) -> Option<Self> {
        if path.is_empty() || path.contains(&0) {
            return None;
        }
        Self::copied(0, path)
    }

    /// A name of 1 to 107 bytes in the abstract namespace, without the leading zero byte.
    pub fn from_abstract(name: &[u8]) -> Option<Self> {
        if name.is_empty() { None } else { Self::copied(1, name) }
    }

    fn copied(start: usize, bytes: &[u8]) -> Option<Self> {
        if bytes.len() > Self::BYTES_MAX {
            return None;
        }
        let mut name = Self::UNNAMED;
        name.path.get_mut(start..start + bytes.len())?.copy_from_slice(bytes);
        name.len = u8::try_from(start + bytes.len()).ok()?;
        Some(name)
    }

    /// True if the socket has no name.
    pub const fn is_unnamed(&self) -> bool {
        self.len == 0
    }

    /// The path, if it is one.
    pub fn as_path(&self) -> Option<&[u8]> {
        self.bytes().first().is_some_and(|first| *first != 0).then(|| self.bytes())
    }

    /// The name in the abstract namespace, without the leading zero byte, if it is one.
    pub fn as_abstract(&self) -> Option<&[u8]> {
        self.bytes().strip_prefix(&[0])
    }

    fn bytes(&self) -> &[u8] {
        self.path.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Bytes of the address for the kernel.
    pub(crate) fn address_bytes(&self) -> libc::socklen_t {
        // A path ends with a zero byte, but for one of 108 bytes, which others may have bound.
        let end = u32::from(self.as_path().is_some());
        FAMILY_BYTES + (u32::from(self.len) + end).min(PATH_BYTES)
    }

    /// The name in an address that the kernel has written.
    #[cfg(feature = "fuzz")]
    pub(crate) fn received(
        path: &[u8; Self::BYTES_MAX + 1],
        address_bytes: libc::socklen_t,
    ) -> Self {
        let mut name = Self { path: *path, ..Self::UNNAMED };
        name.settle(address_bytes);
        name
    }

    /// Takes what the kernel wrote: `address_bytes` of family and path.
    fn settle(&mut self, address_bytes: libc::socklen_t) {
        let len = usize::try_from(address_bytes.saturating_sub(FAMILY_BYTES)).unwrap_or(0);
        let len = len.min(self.path.len());
        let bytes = &self.path[..len];
        let len = match bytes.first() {
            Some(0) | None => len,
            // A path ends at its first zero byte.
            Some(_) => bytes.iter().position(|byte| *byte == 0).unwrap_or(len),
        };
        self.path[len..].fill(0);
        self.family = Self::UNNAMED.family;
        self.len = u8::try_from(len).unwrap_or(0);
    }
}

/// Size of the family in front of the path.
const FAMILY_BYTES: libc::socklen_t = 2;
/// Size of the path behind it.
const PATH_BYTES: libc::socklen_t = 108;
const _: () = assert!(std::mem::offset_of!(SocketName, path) == FAMILY_BYTES as usize);
const _: () = assert!(size_of::<libc::sockaddr_un>() == FAMILY_BYTES as usize + 108);

impl Hash for SocketName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

impl fmt::Debug for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.as_path(), self.as_abstract()) {
            (Some(path), _) => write!(f, "\"{}\"", path.escape_ascii()),
            (_, Some(name)) => write!(f, "\"@{}\"", name.escape_ascii()),
            _ => f.write_str("unnamed"),
        }
    }
}

/// Who sent a packet (SCM_CREDENTIALS, unix(7)): what the kernel checked when it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// The process; 0 if it has no number in this pid namespace.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Room for one SCM_CREDENTIALS message and no other: descriptors that come along find none, and the
/// kernel closes them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    credentials: libc::ucred,
}

impl Control {
    const EMPTY: Self = Self {
        header: libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 },
        credentials: libc::ucred { pid: 0, uid: 0, gid: 0 },
    };

    fn read(&self) -> Option<Credentials> {
        let Self { header, credentials } = self;
        let whole = header.cmsg_len >= size_of::<libc::cmsghdr>() + size_of::<libc::ucred>();
        if !whole || (header.cmsg_level, header.cmsg_type) != CREDENTIALS {
            return None;
        }
        let pid = u32::try_from(credentials.pid).unwrap_or(0);
        Some(Credentials { pid, uid: credentials.uid, gid: credentials.gid })
    }
}

const CREDENTIALS: (i32, i32) = (libc::SOL_SOCKET, libc::SCM_CREDENTIALS);

/// A pool block that packets are received into (K1).
#[derive(Debug)]
pub(crate) struct PacketBlock {
    block: BlockId,
    written: u32,
}

impl PacketBlock {
    /// Takes a free block; `None` if the pool has none, or only its last quarter, which is the engine's.
    /// `reserved` blocks are held elsewhere.
    pub(crate) fn take(pool: &mut Pool, reserved: usize) -> Option<Self> {
        if !pool.may_use(reserved) {
            return None;
        }
        Some(Self { block: pool.take_free()?, written: 0 })
    }

    /// Bytes that nothing has been received into.
    pub(crate) fn room(&self, pool: &Pool) -> u32 {
        pool.shared().block_bytes() - self.written
    }

    /// True if nothing has been lent from it.
    pub(crate) fn is_unlent(&self, pool: &Pool) -> bool {
        !pool.is_lent(self.block)
    }

    /// The block is finished: it becomes free once its last lease is gone.
    pub(crate) fn retire(self, pool: &mut Pool) {
        pool.retire(self.block);
    }

    /// True if bytes of it may be lent, see [`Pool::may_lend`].
    pub(crate) fn may_lend(&self, pool: &Pool, reserved: usize) -> bool {
        pool.may_lend(self.block, |_| reserved)
    }

    /// Lends the next `len` bytes; from then on they are nobody's to write.
    pub(crate) fn lend(&mut self, pool: &mut Pool, len: u32) -> Lease {
        self.hide(pool.shared());
        let lease = pool.lease(self.block, self.written, len);
        // The next packet starts aligned; at most the end of the block.
        self.written =
            (self.written + len).next_multiple_of(ALIGN).min(pool.shared().block_bytes());
        lease
    }

    /// What [`PacketBlock::received`] has shown is nobody's to look at any more.
    fn hide(&self, pool: &PoolShared) {
        let start = pool.region().at(pool.offset_of(self.block) + self.written as usize);
        shadow::forbid(start.as_ptr(), (pool.block_bytes() - self.written) as usize);
    }

    /// Received bytes that have not been lent, `start` counted from the first such.
    pub(crate) fn received<'block>(
        &'block self,
        pool: &'block Pool,
        start: u32,
        len: u32,
    ) -> &'block [u8] {
        assert!(start <= self.room(pool) && len <= self.room(pool) - start, "beyond the block");
        let shared = pool.shared();
        let first = shared.offset_of(self.block) + (self.written + start) as usize;
        let data = shared.region().at(first);
        shadow::allow(data.as_ptr(), len as usize);
        // SAFETY: the range lies in the block (asserted), which is mapped while the pool lives, and is
        // initialised (zeroed mapping). Nobody writes it while `self` is borrowed (K1).
        unsafe { std::slice::from_raw_parts(data.as_ptr(), len as usize) }
    }
}

/// Alignment of a packet in a block, bytes.
const ALIGN: u32 = 8;

/// Where the packets of one receive go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slots {
    /// Packets to receive at most.
    pub(crate) count: usize,
    /// Bytes of a slot; slots lie behind each other. Zero without a block.
    pub(crate) slot_bytes: u32,
    /// What each packet may have beyond its slot, bytes.
    pub(crate) overflow_bytes: usize,
}

/// A packet as the kernel delivered it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    /// Its real length, even if it did not fit.
    pub(crate) len: usize,
    /// It did not fit: the rest is lost.
    pub(crate) truncated: bool,
    /// Who sent it.
    pub(crate) sender: SocketName,
    pub(crate) credentials: Option<Credentials>,
}

/// A packet to send, in parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'packet> {
    /// Where to; `None`: to the connected peer.
    pub(crate) to: Option<&'packet SocketName>,
    /// Header and payload; either may be empty.
    pub(crate) parts: [&'packet [u8]; PARTS],
}

/// The arrays that recvmmsg(2) and sendmmsg(2) take.
pub(crate) struct PacketIo {
    headers: Box<[libc::mmsghdr]>,
    vector: Box<[[libc::iovec; PARTS]]>,
    names: Box<[SocketName]>,
    controls: Box<[Control]>,
    overflow: Region,
    /// Bytes of overflow of each packet of the last receive.
    overflow_bytes: usize,
}

impl PacketIo {
    pub(crate) fn new() -> io::Result<Self> {
        const PACKETS: usize = if SEND_PACKETS_MAX > RECEIVE_PACKETS_MAX {
            SEND_PACKETS_MAX
        } else {
            RECEIVE_PACKETS_MAX
        };
        let part = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Ok(Self {
            headers: vec![empty_header(); PACKETS].into(),
            vector: vec![[part; PARTS]; PACKETS].into(),
            names: vec![SocketName::UNNAMED; RECEIVE_PACKETS_MAX].into(),
            controls: vec![Control::EMPTY; RECEIVE_PACKETS_MAX].into(),
            overflow: Region::new(OVERFLOW_BYTES, false)?,
            overflow_bytes: 0,
        })
    }

    /// Receives what is there, at most `slots.count` packets, without waiting. The number of packets.
    pub(crate) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        block: Option<&mut PacketBlock>,
        pool: &PoolShared,
        slots: Slots,
        credentials: bool,
        system_calls: &mut u64,
    ) -> Result<usize, Errno> {
        let Slots { count, slot_bytes, overflow_bytes } = slots;
        assert!(count <= self.names.len(), "more packets than there is room for");
        let (start, room) = match &block {
            Some(block) => {
                let start = pool.offset_of(block.block) + block.written as usize;
                (start, (pool.block_bytes() - block.written) as usize)
            }
            None => (0, 0),
        };
        assert!(count * slot_bytes as usize <= room, "slots beyond the block");
        assert!(count * overflow_bytes <= self.overflow.len(), "overflow beyond its area");
        self.overflow_bytes = overflow_bytes;
        if let Some(block) = &block {
            block.hide(pool);
        }
        // SAFETY: bytes of the block from `written` on are ours alone (K1), and borrowed for this call;
        // without a block there are none.
        let mut writable = unsafe { pool.region().writable(start, room) };
        let target = writable.as_mut_ptr();
        for index in 0..count {
            // SAFETY: `count` slots lie within the room (asserted).
            let slot = unsafe { target.add(index * slot_bytes as usize) };
            let spill = self.overflow.at(index * overflow_bytes);
            self.vector[index] = [
                libc::iovec { iov_base: slot.cast(), iov_len: slot_bytes as usize },
                libc::iovec { iov_base: spill.as_ptr().cast(), iov_len: overflow_bytes },
            ];
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = FAMILY_BYTES + PATH_BYTES;
            header.msg_iov = self.vector[index].as_mut_ptr();
            header.msg_iovlen = PARTS;
            header.msg_flags = 0;
            if credentials {
                self.controls[index] = Control::EMPTY;
                header.msg_control = (&raw mut self.controls[index]).cast();
                header.msg_controllen = size_of::<Control>();
            } else {
                header.msg_control = std::ptr::null_mut();
                header.msg_controllen = 0;
            }
        }
        let received = self.call(system_calls, |headers| {
            let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
            let count = libc::c_uint::try_from(count).unwrap_or(0);
            // SAFETY: `count` headers describe slots of a block that is ours (K1), our own overflow area
            // (K3), names and controls; all of it stays for the call (K2).
            unsafe { libc::recvmmsg(fd.as_raw_fd(), headers, count, flags, std::ptr::null_mut()) }
        })?;
        writable.end();
        for index in 0..received.min(count) {
            let name_bytes = self.headers[index].msg_hdr.msg_namelen;
            self.names[index].settle(name_bytes);
        }
        Ok(received)
    }

    /// Packet `index` of the last receive.
    pub(crate) fn arrival(&self, index: usize) -> Arrival {
        let header = &self.headers[index];
        let credentials = match header.msg_hdr.msg_controllen {
            0 => None,
            _ => self.controls[index].read(),
        };
        Arrival {
            len: header.msg_len as usize,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            sender: self.names[index],
            credentials,
        }
    }

    /// The first `len` bytes that packet `index` of the last receive had beyond its slot.
    pub(crate) fn overflow(&self, index: usize, len: usize) -> &[u8] {
        assert!(len <= self.overflow_bytes, "more than a packet may overflow");
        assert!(index < RECEIVE_PACKETS_MAX);
        let data = self.overflow.at(index * self.overflow_bytes);
        // SAFETY: inside the area, which is checked when the area is divided; initialised (zeroed mapping);
        // written only by `receive`, which takes `&mut self` (K3).
        unsafe { std::slice::from_raw_parts(data.as_ptr(), len) }
    }

    /// Sends packets without waiting, in order, until one is refused. The number offered; and the number
    /// taken, or why the first was refused.
    pub(crate) fn send<'packet>(
        &mut self,
        fd: BorrowedFd<'_>,
        packets: impl Iterator<Item = Outgoing<'packet>>,
        system_calls: &mut u64,
    ) -> (usize, Result<usize, Errno>) {
        let mut offered = 0;
        for packet in packets.take(SEND_PACKETS_MAX) {
            self.vector[offered] = packet.parts.map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            let header = &mut self.headers[offered].msg_hdr;
            let to = packet.to.map_or((std::ptr::null(), 0), |name| {
                (std::ptr::from_ref(name), name.address_bytes())
            });
            header.msg_name = to.0.cast_mut().cast();
            header.msg_namelen = to.1;
            header.msg_iov = self.vector[offered].as_mut_ptr();
            header.msg_iovlen = PARTS;
            header.msg_control = std::ptr::null_mut();
            header.msg_controllen = 0;
            header.msg_flags = 0;
            offered += 1;
        }
        if offered == 0 {
            return (0, Ok(0));
        }
        let taken = self.call(system_calls, |headers| {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let count = libc::c_uint::try_from(offered).unwrap_or(0);
            // SAFETY: `offered` headers describe names and parts that are borrowed for `'packet`, which
            // outlives this function, and that the kernel only reads (K2).
            unsafe { libc::sendmmsg(fd.as_raw_fd(), headers, count, flags) }
        });
        (offered, taken)
    }

    /// Makes a call until no signal interrupts it. Its result as a count.
    fn call(
        &mut self,
        system_calls: &mut u64,
        mut make: impl FnMut(*mut libc::mmsghdr) -> libc::c_int,
    ) -> Result<usize, Errno> {
        loop {
            *system_calls += 1;
            let result = make(self.headers.as_mut_ptr());
            if let Ok(count) = usize::try_from(result) {
                return Ok(count);
            }
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            if errno != libc::EINTR {
                return Err(Errno::from_raw_os_error(errno));
            }
        }
    }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: all-zero is a valid `mmsghdr`: null pointers and zero lengths.
    unsafe { std::mem::zeroed() }
}

impl fmt::Debug for PacketIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketIo").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::wake::Inbox;

    #[test]
    fn the_last_quarter_of_the_pool_is_left_to_the_engine() {
        let mut pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
        let lent = [lend_one(&mut pool), lend_one(&mut pool)];
        assert!(PacketBlock::take(&mut pool, 1).is_none(), "another holds one of the two");
        let block = PacketBlock::take(&mut pool, 0).unwrap();
        assert!(block.may_lend(&pool, 0) && !block.may_lend(&pool, 1));
        block.retire(&mut pool);
        pool.collect_returns();
        let lent = (lent, lend_one(&mut pool));
        assert!(PacketBlock::take(&mut pool, 0).is_none());
        drop(lent);
    }

    fn lend_one(pool: &mut Pool) -> Lease {
        let block = pool.take_free().unwrap();
        let lease = pool.lease(block, 0, 1);
        pool.retire(block);
        lease
    }

    #[test]
    fn names_are_what_the_kernel_takes_and_gives() {
        let path = SocketName::from_path(b"/run/x.sock").unwrap();
        assert_eq!((path.as_path(), path.as_abstract()), (Some(&b"/run/x.sock"[..]), None));
        assert_eq!(path.address_bytes(), 2 + 11 + 1);
        let name = SocketName::from_abstract(b"a\0b").unwrap();
        assert_eq!((name.as_path(), name.as_abstract()), (None, Some(&b"a\0b"[..])));
        assert_eq!(name.address_bytes(), 2 + 4);
        assert_eq!(SocketName::UNNAMED.address_bytes(), 2);
        assert!(
            SocketName::UNNAMED.as_path().is_none() && SocketName::UNNAMED.as_abstract().is_none()
        );
        for (bytes, fits) in [(0, false), (1, true), (107, true), (108, false)] {
            assert_eq!(SocketName::from_path(&vec![b'x'; bytes]).is_some(), fits);
            assert_eq!(SocketName::from_abstract(&vec![0; bytes]).is_some(), fits);
        }
        assert!(SocketName::from_path(b"a\0").is_none());
        assert_ne!(SocketName::from_abstract(b"x\0"), SocketName::from_abstract(b"x"));
    }

    #[test]
    fn what_the_kernel_wrote_is_brought_into_form() {
        // Whatever it says it wrote, over whatever was there.
        for address_bytes in 0..=300 {
            for fill in [0, b'x'] {
                let mut name = SocketName { path: [fill; 108], len: 200, ..SocketName::UNNAMED };
                name.settle(address_bytes);
                let len = usize::try_from(address_bytes).unwrap().saturating_sub(2).min(108);
                assert_eq!(name.bytes().len(), len);
                assert_eq!(name.is_unnamed(), len == 0);
            }
        }
        let mut name = SocketName::UNNAMED;
        name.path[..9].copy_from_slice(b"/a/b\0rest");
        name.settle(2 + 9);
        assert_eq!(Some(name), SocketName::from_path(b"/a/b"));
    }
}
