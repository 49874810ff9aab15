//! Sends and receives performed with ordinary system calls: by the epoll engine always, by the
//! io_uring engine while it spins with few connections, and for connections that pass descriptors with
//! either.
//!
//! # Invariants
//!
//! * **H1** Memory and descriptors named by a [`Pending`] are owned by the caller's op slot until the
//!   terminal completion (contract of [`Engine::push`](crate::engine::Engine::push)).
//! * **H2** An [`OwnBlock`] belongs to the engine or receiver that holds it; bytes behind `written` have not been
//!   delivered, so no lease covers them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::ancillary::{self, Control, Descriptors};
use crate::chunk::Chunk;
use crate::engine::Received;
use crate::outbound::{SendMemory, SendView};
use crate::pool::{BlockId, Pool, PoolShared};

/// A block with less room than this is finished, so that receives stay large.
const BLOCK_ROOM_MIN: u32 = 4096;

/// A descriptor that the caller's op slot keeps open (H1).
pub(crate) fn borrow<'fd>(fd: RawFd) -> BorrowedFd<'fd> {
    // SAFETY: descriptors in requests stay open until the terminal completion (H1), and engines use
    // them only for requests that have not completed.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// A count as a completion reports it.
pub(crate) fn count_of(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// What became of an attempt to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Everything was taken: the total.
    Whole(i32),
    /// Some or nothing was taken and the socket is full: the count or -EAGAIN.
    Short(i32),
    /// It can't go on by itself: the count so far, or a negated error.
    Failed(i32),
}

/// A send and how far it has got.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pending {
    Plain { data: *const u8, len: u32, done: u32 },
    Gathered { header: *const libc::msghdr },
}

impl Pending {
    pub(crate) fn new(data: *const u8, len: u32) -> Self {
        Self::Plain { data, len, done: 0 }
    }

    pub(crate) fn gathered(header: *const libc::msghdr) -> Self {
        Self::Gathered { header }
    }

    /// Bytes of a plain send that were taken by earlier attempts.
    pub(crate) fn done(&self) -> u32 {
        match self {
            Self::Plain { done, .. } => *done,
            Self::Gathered { .. } => 0,
        }
    }

    /// Sends what fits, without waiting.
    ///
    /// # Safety
    ///
    /// The memory that the request named is still alive and unchanged (H1).
    pub(crate) unsafe fn attempt(&mut self, fd: RawFd, system_calls: &mut u64) -> Attempt {
        loop {
            *system_calls += 1;
            match self {
                Self::Plain { data, len, done } => {
                    // SAFETY: `done <= len`, so this stays within the bytes the request names.
                    let start = unsafe { data.add(*done as usize) };
                    // SAFETY: alive and unchanged by contract.
                    let rest =
                        unsafe { std::slice::from_raw_parts(start, (*len - *done) as usize) };
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    match rustix::net::send(borrow(fd), rest, flags) {
                        Ok(count) => {
                            *done += u32::try_from(count).unwrap_or(*len - *done);
                            if done == len {
                                return Attempt::Whole(count_of(*len));
                            }
                        }
                        Err(Errno::INTR) => {}
                        Err(Errno::AGAIN) if *done > 0 => return Attempt::Short(count_of(*done)),
                        Err(Errno::AGAIN) => return Attempt::Short(-libc::EAGAIN),
                        Err(_) if *done > 0 => return Attempt::Failed(count_of(*done)),
                        Err(errno) => return Attempt::Failed(-errno.raw_os_error()),
                    }
                }
                Self::Gathered { header } => {
                    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                    // SAFETY: the header and what it points to are alive by contract.
                    let result = unsafe { libc::sendmsg(fd, *header, flags) };
                    if let Ok(count) = usize::try_from(result) {
                        // SAFETY: as above.
                        let total = unsafe { gathered_bytes(*header) };
                        let result = i32::try_from(count).unwrap_or(i32::MAX);
                        // The rest of a short gathered send is offered again by the caller, who
                        // adjusts the vector.
                        return if count == total {
                            Attempt::Whole(result)
                        } else {
                            Attempt::Failed(result)
                        };
                    }
                    match io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                        libc::EINTR => {}
                        libc::EAGAIN => return Attempt::Short(-libc::EAGAIN),
                        errno => return Attempt::Failed(-errno),
                    }
                }
            }
        }
    }
}

/// Bytes named by a message header.
///
/// # Safety
///
/// The header and its I/O vector are valid.
unsafe fn gathered_bytes(header: *const libc::msghdr) -> usize {
    // SAFETY: valid by contract.
    let header = unsafe { &*header };
    // SAFETY: the vector has `msg_iovlen` entries.
    let vector = unsafe { std::slice::from_raw_parts(header.msg_iov, header.msg_iovlen) };
    vector.iter().map(|part| part.iov_len).sum()
}

/// A block that an engine fills itself.
#[derive(Debug)]
pub(crate) struct OwnBlock {
    block: BlockId,
    written: u32,
}

impl OwnBlock {
    pub(crate) fn new(block: BlockId) -> Self {
        Self { block, written: 0 }
    }

    pub(crate) fn id(&self) -> BlockId {
        self.block
    }

    /// Bytes delivered from it.
    pub(crate) fn written(&self) -> u32 {
        self.written
    }

    /// Receives what is there behind what was delivered before; `None` at the end of the stream.
    ///
    /// # Safety
    ///
    /// The block belongs to the calling engine (H2).
    #[inline]
    pub(crate) unsafe fn receive(
        &mut self,
        fd: RawFd,
        pool: &PoolShared,
        system_calls: &mut u64,
    ) -> Result<Option<Received>, Errno> {
        let receive = |target: &mut [MaybeUninit<u8>]| loop {
            *system_calls += 1;
            match rustix::net::recv(borrow(fd), &mut *target, RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok((_, count)) => return Ok(count),
            }
        };
        // SAFETY: the block is the caller's, by contract.
        unsafe { self.fill(pool, receive) }
    }

    /// Lets `receive` fill the bytes behind what was delivered before; it says how many it has filled.
    /// `None` if it was none.
    ///
    /// # Safety
    ///
    /// The block belongs to the caller (H2), and `receive` does not claim more than it has filled.
    #[inline]
    pub(crate) unsafe fn fill(
        &mut self,
        pool: &PoolShared,
        receive: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<usize, Errno>,
    ) -> Result<Option<Received>, Errno> {
        let Self { block, written: offset } = *self;
        let room = pool.block_bytes() - offset;
        let start = pool.offset_of(block) + offset as usize;
        // SAFETY: bytes of the block from `offset` on are the caller's alone (H2).
        let mut target = unsafe { pool.region().writable(start, room as usize) };
        let count = receive(&mut target)?;
        target.end();
        if count == 0 {
            return Ok(None);
        }
        let len = u32::try_from(count).unwrap_or(room).min(room);
        self.written = offset + len;
        let last = pool.block_bytes() - self.written < BLOCK_ROOM_MIN.min(pool.block_bytes());
        Ok(Some(Received { block, offset, len, last }))
    }
}

/// Sends what fits of a send's memory now.
pub(crate) fn send_now(
    socket: BorrowedFd<'_>,
    memory: &mut SendMemory,
    system_calls: &mut u64,
) -> Attempt {
    let mut pending = match memory.view() {
        SendView::Plain { data, len } => Pending::new(data, len),
        SendView::Gathered { header } => Pending::gathered(header),
    };
    // SAFETY: `memory` is borrowed for the whole call and owns what its view names (S1).
    unsafe { pending.attempt(socket.as_raw_fd(), system_calls) }
}

/// Received bytes, and what came with them.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) chunk: Chunk,
    pub(crate) descriptors: Descriptors,
}

/// Receives bytes with descriptors into a block of its own, whatever the engine. One for all sockets of a
/// reactor.
#[derive(Debug, Default)]
pub(crate) struct HandReceiver {
    /// H2; taken from the pool when it is first needed.
    block: Option<OwnBlock>,
    control: Option<Control>,
    pub(crate) system_calls: u64,
}

/// Bytes received at once while the pool has no block to spare.
const SCRATCH_BYTES: usize = 16 << 10;

impl HandReceiver {
    /// True once something has been received.
    pub(crate) fn is_used(&self) -> bool {
        self.control.is_some()
    }

    /// Blocks of the pool that are held here.
    pub(crate) fn blocks(&self) -> usize {
        usize::from(self.block.is_some())
    }

    /// Blocks held here that nothing is lent from: they are of no use to the engine.
    pub(crate) fn unlent_blocks(&self, pool: &Pool) -> usize {
        usize::from(self.block.as_ref().is_some_and(|block| !pool.is_lent(block.id())))
    }

    /// The block that is held here, for shutdown.
    pub(crate) fn surrender_block(&mut self) -> Option<BlockId> {
        self.block.take().map(|block| block.id())
    }

    /// Receives what is there, without waiting; `None` at the end of the stream. Bytes are copied while
    /// three quarters of the pool or more are lent. `reserved` blocks are held elsewhere.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        pool: &mut Pool,
        reserved: usize,
    ) -> Result<Option<Delivery>, Errno> {
        let Self { block, control, system_calls } = self;
        let control = control.get_or_insert_with(Control::new);
        // The last quarter of the pool is neither lent nor taken here: it is the engine's.
        if block.is_none() && pool.may_use(reserved) {
            *block = pool.take_free().map(OwnBlock::new);
        }
        let mut descriptors = Descriptors::None;
        let Some(own) = block else {
            let mut scratch = Vec::with_capacity(SCRATCH_BYTES);
            let room = scratch.spare_capacity_mut();
            let arrival = ancillary::receive(socket, room, control, system_calls)?;
            // SAFETY: the kernel has filled as many bytes of the capacity.
            unsafe { scratch.set_len(arrival.bytes) };
            if scratch.is_empty() {
                return Ok(None);
            }
            let chunk = Chunk::Copied(Bytes::copy_from_slice(&scratch));
            return Ok(Some(Delivery { chunk, descriptors: arrival.descriptors }));
        };
        let receive = |target: &mut [MaybeUninit<u8>]| {
            let arrival = ancillary::receive(socket, target, control, system_calls)?;
            descriptors = arrival.descriptors;
            Ok(arrival.bytes)
        };
        // SAFETY: the block was taken from the pool for this receiver, which alone has it (H2); what is
        // claimed was filled by the kernel.
        let received = unsafe { own.fill(pool.shared(), receive) }?;
        let Some(Received { block: id, offset, len, last }) = received else { return Ok(None) };
        let chunk = if pool.may_lend(id, |_| reserved) {
            Chunk::Leased(pool.lease(id, offset, len))
        } else {
            Chunk::Copied(pool.copy(id, offset, len))
        };
        if last {
            *block = None;
            pool.retire(id);
        }
        Ok(Some(Delivery { chunk, descriptors }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::*;
    use crate::wake::Inbox;

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets of a kernel")]
    fn the_last_quarter_of_the_pool_is_left_to_the_engine() {
        let mut pool = Pool::new(4, 4096, Arc::new(Inbox::for_test())).unwrap();
        let mut lend = || {
            let block = pool.take_free().unwrap();
            let lease = pool.lease(block, 0, 1);
            pool.retire(block);
            lease
        };
        let lent = [lend(), lend(), lend()];
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"bytes").unwrap();
        let mut hands = HandReceiver::default();
        let delivery = hands.receive(ours.as_fd(), &mut pool, 0).unwrap().unwrap();
        assert_eq!(delivery.chunk.as_slice(), b"bytes");
        assert_eq!((hands.blocks(), pool.free_blocks()), (0, 1));
        drop(lent);
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets of a kernel")]
    fn a_block_that_nothing_is_lent_from_is_told_apart() {
        let mut pool = Pool::new(4, 16 << 10, Arc::new(Inbox::for_test())).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut hands = HandReceiver::default();
        assert_eq!((hands.blocks(), hands.unlent_blocks(&pool)), (0, 0));
        assert_eq!(hands.receive(ours.as_fd(), &mut pool, 0).err(), Some(Errno::AGAIN));
        assert_eq!((hands.blocks(), hands.unlent_blocks(&pool)), (1, 1));
        theirs.write_all(b"bytes").unwrap();
        let delivery = hands.receive(ours.as_fd(), &mut pool, 0).unwrap();
        assert_eq!((hands.blocks(), hands.unlent_blocks(&pool)), (1, 0));
        drop(delivery);
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs sockets of a kernel")]
    fn what_is_lent_stays_as_it_was() {
        let mut pool = Pool::new(4, 16 << 10, Arc::new(Inbox::for_test())).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut hands = HandReceiver::default();
        let mut kept = Vec::new();
        for byte in 1..=200_u8 {
            theirs.write_all(&[byte; 100]).unwrap();
            kept.push((byte, hands.receive(ours.as_fd(), &mut pool, 0).unwrap().unwrap()));
        }
        for (byte, delivery) in &kept {
            assert_eq!(delivery.chunk.as_slice(), [*byte; 100]);
        }
        assert!(pool.leased_blocks() > 0, "a block has been filled");
        drop(kept);
        assert!(pool.collect_returns());
        let held = hands.blocks();
        assert_eq!((held, pool.free_blocks(), pool.leased_blocks()), (1, 3, 0));
    }
}
