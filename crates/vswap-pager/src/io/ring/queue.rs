//! The two queues of a ring: memory that the kernel and one thread share.
//!
//! Each queue has one writer for its tail and one for its head. We write the submission tail and
//! the completion head; the kernel writes the others. A tail is written with Release after the
//! entry, and read with Acquire before it; a head is written with Release after the entry was read.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::sys::fd::Fd;
use crate::sys::io_uring::{self, Cqe, Opcode, Params, Sqe};
use crate::sys::{Errno, memory};

/// What the engine cannot do without: waits with a timeout (Linux 5.11, the newest of the three).
const FEATURES: u32 = io_uring::IORING_FEAT_SINGLE_MMAP
    | io_uring::IORING_FEAT_NODROP
    | io_uring::IORING_FEAT_EXT_ARG;

/// Flags in order of preference; the kernel answers EINVAL for those that it does not know. With
/// the first, completions are worked off when the thread asks for them, so nothing interrupts it
/// (Linux 6.1).
const FLAGS: [u32; 2] = [
    io_uring::IORING_SETUP_CLAMP
        | io_uring::IORING_SETUP_SINGLE_ISSUER
        | io_uring::IORING_SETUP_DEFER_TASKRUN,
    io_uring::IORING_SETUP_CLAMP,
];

/// What a completion says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// The number that was submitted with it.
    pub(super) token: u64,
    /// Bytes, or the error number.
    pub(super) result: Result<u32, Errno>,
}

/// One transfer, as it is put into the submission queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Submission {
    pub(super) opcode: Opcode,
    pub(super) fd: i32,
    pub(super) offset: u64,
    pub(super) address: *mut u8,
    pub(super) len: u32,
    pub(super) token: u64,
}

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(ring: &Fd, len: usize, offset: u32) -> Result<Self, Errno> {
        Ok(Self { start: io_uring::map(ring, len, offset)?, len })
    }

    /// A word that the kernel shares with us.
    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the offsets are the kernel's own, within the mapping, aligned, and both sides
        // use these words atomically.
        unsafe { self.start.add(offset as usize).cast().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its users go with it.
        unsafe { memory::unmap(self.start.as_ptr() as usize, self.len) };
    }
}

/// A ring. Belongs to the thread that made it.
#[derive(Debug)]
pub(super) struct Queue {
    rings: Mapping,
    entries: Mapping,
    params: Params,
    /// Our submission tail. The kernel reads it only inside [`enter`](Self::enter).
    tail: u32,
    fd: Fd,
}

// SAFETY: the mappings belong to the queue; nothing in it is bound to a thread but the kernel's own
// check, which answers EEXIST.
unsafe impl Send for Queue {}

impl Queue {
    /// Makes a ring with room for `room` submissions, and twice as many completions.
    pub(super) fn new(room: u32) -> Result<Self, Errno> {
        let (fd, params) = Self::setup(room)?;
        if params.features & FEATURES != FEATURES || params.sq_entries < room {
            return Err(Errno::ENOSYS);
        }
        let submissions = params.sq_off.array as usize + params.sq_entries as usize * 4;
        let completions =
            params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<Cqe>();
        let rings = Mapping::new(&fd, submissions.max(completions), io_uring::IORING_OFF_SQ_RING)?;
        let bytes = params.sq_entries as usize * size_of::<Sqe>();
        let entries = Mapping::new(&fd, bytes, io_uring::IORING_OFF_SQES)?;
        for index in 0..params.sq_entries {
            rings.word(params.sq_off.array + index * 4).store(index, Ordering::Relaxed);
        }
        Ok(Self { rings, entries, params, tail: 0, fd })
    }

    fn setup(room: u32) -> Result<(Fd, Params), Errno> {
        let mut refused = Errno::EINVAL;
        for flags in FLAGS {
            // SAFETY: a Params is integers only.
            let mut params: Params = unsafe { core::mem::zeroed() };
            params.flags = flags;
            match io_uring::setup(room, &mut params) {
                Ok(fd) => return Ok((fd, params)),
                Err(Errno::EINVAL) => {}
                Err(error) => {
                    refused = error;
                    break;
                }
            }
        }
        Err(refused)
    }

    /// Submissions that the kernel has not taken.
    pub(super) fn unsubmitted(&self) -> u32 {
        let head = self.rings.word(self.params.sq_off.head).load(Ordering::Acquire);
        self.tail.wrapping_sub(head)
    }

    fn entry(&self, position: u32) -> NonNull<Sqe> {
        let index = position & (self.params.sq_entries - 1);
        // SAFETY: the index lies within the mapped entries.
        unsafe { self.entries.start.cast::<Sqe>().add(index as usize) }
    }

    /// Adds a submission. Its buffer is the kernel's from the next [`enter`](Self::enter) on.
    pub(super) fn push(&mut self, submission: &Submission) {
        assert!(self.unsubmitted() < self.params.sq_entries, "one entry for each slot");
        // SAFETY: a submission is integers only, and zero is the kernel's "not used" in each.
        let mut entry: Sqe = unsafe { core::mem::zeroed() };
        entry.opcode = submission.opcode as u8;
        entry.fd = submission.fd;
        entry.__bindgen_anon_1.off = submission.offset;
        entry.__bindgen_anon_2.addr = submission.address as u64;
        entry.len = submission.len;
        entry.user_data = submission.token;
        // SAFETY: the kernel has done with this entry, since fewer than all are unsubmitted.
        unsafe { self.entry(self.tail).write(entry) };
        self.tail = self.tail.wrapping_add(1);
        self.rings.word(self.params.sq_off.tail).store(self.tail, Ordering::Release);
    }

    /// Takes the newest submission back that the kernel has not taken; its token.
    pub(super) fn take_back(&mut self) -> Option<u64> {
        if self.unsubmitted() == 0 {
            return None;
        }
        self.tail = self.tail.wrapping_sub(1);
        self.rings.word(self.params.sq_off.tail).store(self.tail, Ordering::Release);
        // SAFETY: the kernel reads entries inside `enter` only, and we are the only thread.
        Some(unsafe { self.entry(self.tail).as_ref() }.user_data)
    }

    /// Submits everything and waits for `complete` completions, or for `timeout_ns`.
    ///
    /// # Safety
    /// The buffers of everything pushed must stay valid, and unused by others, until their
    /// completions are seen.
    pub(super) unsafe fn enter(&mut self, complete: u32, timeout_ns: u64) -> Result<(), Errno> {
        // SAFETY: the caller vouches for the buffers.
        unsafe { io_uring::enter(&self.fd, self.unsubmitted(), complete, timeout_ns) }.map(drop)
    }

    /// The next completion, if there is one.
    pub(super) fn pop(&mut self) -> Option<Completion> {
        let offsets = &self.params.cq_off;
        let head_word = self.rings.word(offsets.head);
        // We are the only writer.
        let head = head_word.load(Ordering::Relaxed);
        if head == self.rings.word(offsets.tail).load(Ordering::Acquire) {
            return None;
        }
        let index = head & (self.params.cq_entries - 1);
        let place = offsets.cqes as usize + index as usize * size_of::<Cqe>();
        // SAFETY: the entry lies within the mapping, and the kernel wrote it before the tail.
        let entry = unsafe { self.rings.start.add(place).cast::<Cqe>().as_ref() };
        let result = match entry.res {
            error @ ..0 => Err(Errno(-error)),
            bytes => Ok(bytes as u32),
        };
        let completion = Completion { token: entry.user_data, result };
        head_word.store(head.wrapping_add(1), Ordering::Release);
        Some(completion)
    }
}
