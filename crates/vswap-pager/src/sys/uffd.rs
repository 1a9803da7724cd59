//! userfaultfd: opening it, asking what it can do, and its operations.
//!
//! Errors are translated once, here. The kernel reports the progress of a fill in the argument
//! and `EAGAIN` there when mapping events are pending, so a count is only taken when positive.

use linux_raw_sys::{general as k, ioctl};
use vswap_core::page::PAGE_SIZE;

use super::fd::{self, Fd};
use super::{Errno, result};
use crate::syscall;

/// `_IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)`, include/uapi/linux/userfaultfd.h.
const UFFDIO_MOVE: u32 = 0xc028_aa05;
/// `_IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)`.
const UFFDIO_POISON: u32 = 0xc020_aa08;
/// `_IO(USERFAULTFD_IOC, 0)` on /dev/userfaultfd.
const USERFAULTFD_IOC_NEW: u32 = 0xaa00;
const UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: u64 = 2;
const _: () = assert!(size_of::<k::uffdio_move>() == 0x28);
const _: () = assert!(size_of::<k::uffdio_poison>() == 0x20);

/// Size of a message.
pub const MESSAGE_SIZE: usize = size_of::<k::uffd_msg>();

/// Features of the main descriptor: mapping events and who faulted.
pub const FEATURES_EVENTS: u64 = (k::UFFD_FEATURE_EVENT_REMAP
    | k::UFFD_FEATURE_EVENT_REMOVE
    | k::UFFD_FEATURE_EVENT_UNMAP) as u64;
/// Tell the thread that faulted.
pub const FEATURE_THREAD_ID: u64 = k::UFFD_FEATURE_THREAD_ID as u64;
/// Raise SIGBUS in the faulting thread instead of queueing a message.
pub const FEATURE_SIGBUS: u64 = k::UFFD_FEATURE_SIGBUS as u64;
/// UFFDIO_MOVE works.
pub const FEATURE_MOVE: u64 = k::UFFD_FEATURE_MOVE as u64;
/// UFFDIO_POISON works.
pub const FEATURE_POISON: u64 = k::UFFD_FEATURE_POISON as u64;

/// An open userfaultfd.
#[derive(Debug)]
pub struct Uffd(Fd);

/// One message of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A thread waits for this page.
    Fault {
        /// Faulting address.
        address: usize,
        /// Whether it writes.
        write: bool,
        /// Thread ID, 0 if the feature is off.
        thread: u32,
    },
    /// Pages were dropped by madvise.
    Remove {
        /// First address.
        start: usize,
        /// First address behind.
        end: usize,
    },
    /// A range was unmapped.
    Unmap {
        /// First address.
        start: usize,
        /// First address behind.
        end: usize,
    },
    /// A range was moved by mremap; the source range gets an unmap of its own.
    Remap {
        /// Old address.
        from: usize,
        /// New address.
        to: usize,
        /// Old length.
        len: usize,
    },
    /// Something that was not asked for.
    Other,
}

impl Uffd {
    /// Opens a userfaultfd for this process's memory with exactly these features:
    /// /dev/userfaultfd first, then the system call, which needs a privilege or
    /// vm.unprivileged_userfaultfd for faults taken in the kernel.
    ///
    /// # Errors
    /// As userfaultfd(2); `EINVAL` if the kernel lacks a feature.
    pub fn open(features: u64) -> Result<Self, Errno> {
        let uffd = Self(Self::open_raw()?);
        let mut api = k::uffdio_api { api: 0xaa, features, ioctls: 0 };
        uffd.ioctl(ioctl::UFFDIO_API, &raw mut api)?;
        Ok(uffd)
    }

    fn open_raw() -> Result<Fd, Errno> {
        let flags = k::O_CLOEXEC | k::O_NONBLOCK;
        if let Ok(device) = fd::open(c"/dev/userfaultfd", k::O_RDWR) {
            // SAFETY: the argument is an integer.
            let made = unsafe { syscall!(k::__NR_ioctl, device.raw(), USERFAULTFD_IOC_NEW, flags) };
            if let Ok(made) = result(made) {
                return Ok(Fd::new(made as i32));
            }
        }
        // SAFETY: no memory is passed.
        let made = unsafe { syscall!(k::__NR_userfaultfd, flags) };
        result(made).map(|fd| Fd::new(fd as i32))
    }

    /// Takes over a descriptor that is a userfaultfd with its handshake done.
    pub const fn from_fd(fd: Fd) -> Self {
        Self(fd)
    }

    /// Number of the descriptor.
    pub const fn raw(&self) -> i32 {
        self.0.raw()
    }

    fn ioctl<T>(&self, request: u32, argument: *mut T) -> Result<(), Errno> {
        // SAFETY: each caller passes the request's own argument type, alive across the call. The
        // requests that change memory say so at their public face.
        result(unsafe { syscall!(k::__NR_ioctl, self.raw(), request, argument) }).map(drop)
    }

    /// Starts reporting accesses to missing pages of the range.
    ///
    /// # Errors
    /// As ioctl(UFFDIO_REGISTER).
    pub fn register(&self, start: usize, len: usize) -> Result<(), Errno> {
        let mut register = k::uffdio_register {
            range: range(start, len),
            mode: u64::from(k::UFFDIO_REGISTER_MODE_MISSING),
            ioctls: 0,
        };
        self.ioctl(ioctl::UFFDIO_REGISTER, &raw mut register)
    }

    /// Stops it, and wakes who waits there.
    ///
    /// # Errors
    /// As ioctl(UFFDIO_UNREGISTER).
    pub fn unregister(&self, start: usize, len: usize) -> Result<(), Errno> {
        let mut range = range(start, len);
        self.ioctl(ioctl::UFFDIO_UNREGISTER, &raw mut range)
    }

    /// Wakes the threads that wait in the range.
    pub fn wake(&self, start: usize, len: usize) {
        let mut range = range(start, len);
        // A range that is gone has no waiters.
        let _ = self.ioctl(ioctl::UFFDIO_WAKE, &raw mut range);
    }

    /// Fills missing pages with copies and wakes their waiters; gives the bytes filled when it
    /// stops early.
    ///
    /// # Safety
    /// `source` must be readable for `len` bytes.
    ///
    /// # Errors
    /// The bytes filled before it stopped, and why: `EEXIST` a page is there, `EAGAIN` events are
    /// pending, `ENOENT` the range is not registered, `ESRCH` the program is exiting.
    pub unsafe fn copy(
        &self,
        to: usize,
        source: *const u8,
        len: usize,
    ) -> Result<(), (usize, Errno)> {
        let mut copy = k::uffdio_copy {
            dst: to as u64,
            src: source as u64,
            len: len as u64,
            mode: 0,
            copy: 0,
        };
        self.ioctl(ioctl::UFFDIO_COPY, &raw mut copy).map_err(|error| progress(copy.copy, error))
    }

    /// Fills missing pages with zeros and wakes their waiters.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    pub fn zero(&self, start: usize, len: usize) -> Result<(), (usize, Errno)> {
        let mut zero = k::uffdio_zeropage { range: range(start, len), mode: 0, zeropage: 0 };
        self.ioctl(ioctl::UFFDIO_ZEROPAGE, &raw mut zero)
            .map_err(|error| progress(zero.zeropage, error))
    }

    /// Whether an event of this descriptor waits to be read, or who caused one that was read has not
    /// gone on yet: pages are neither filled nor moved meanwhile.
    pub fn is_changing(&self) -> bool {
        // The kernel asks itself this first, and refuses an empty range then.
        self.zero(0, 0) == Err((0, Errno::EAGAIN))
    }

    /// Whether a page of anonymous memory is registered with this descriptor.
    pub fn reports_on(&self, page: usize) -> bool {
        let mut resume = k::uffdio_continue { range: range(page, PAGE_SIZE), mode: 0, mapped: 0 };
        // Anonymous memory has no page to continue with. The kernel says so if the page is
        // registered, and ENOENT otherwise.
        self.ioctl(ioctl::UFFDIO_CONTINUE, &raw mut resume) == Err(Errno::EINVAL)
    }

    /// Moves the pages that are present in `[from, from + len)` to the same offsets at `to`, which
    /// is registered with this descriptor; holes stay holes.
    ///
    /// # Safety
    /// The source pages vanish from under whoever uses them, and must be the program's.
    ///
    /// # Errors
    /// The bytes walked before it stopped, and why: `EBUSY` a page is pinned or shared with
    /// another process, `EINVAL` the protections differ, `EAGAIN` events of this descriptor are
    /// pending, or a page is locked just now.
    pub unsafe fn move_pages(
        &self,
        to: usize,
        from: usize,
        len: usize,
    ) -> Result<(), (usize, Errno)> {
        let mut moved = k::uffdio_move {
            dst: to as u64,
            src: from as u64,
            len: len as u64,
            mode: UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
            move_: 0,
        };
        self.ioctl(UFFDIO_MOVE, &raw mut moved).map_err(|error| progress(moved.move_, error))
    }

    /// Makes accesses to a missing page raise SIGBUS from now on.
    ///
    /// # Errors
    /// As ioctl(UFFDIO_POISON).
    pub fn poison(&self, start: usize, len: usize) -> Result<(), Errno> {
        let mut poison = k::uffdio_poison { range: range(start, len), mode: 0, updated: 0 };
        self.ioctl(UFFDIO_POISON, &raw mut poison)
    }

    /// Reads pending messages without waiting; calls `take` for each, and gives their number.
    ///
    /// # Errors
    /// As read(2), except that nothing to read is no error.
    pub fn read(
        &self,
        buffer: &mut MessageBuffer,
        mut take: impl FnMut(Message),
    ) -> Result<usize, Errno> {
        let size = size_of_val(&buffer.0);
        // SAFETY: the buffer is valid for writes of its size, and any bytes are a valid message.
        let got = unsafe { syscall!(k::__NR_read, self.raw(), buffer.0.as_mut_ptr(), size) };
        let count = match result(got) {
            Ok(bytes) => bytes / MESSAGE_SIZE,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(error) => return Err(error),
        };
        for raw in &buffer.0[..count] {
            take(Message::from_raw(raw));
        }
        Ok(count)
    }
}

/// Room for the messages of one read.
pub struct MessageBuffer([k::uffd_msg; 16]);

impl MessageBuffer {
    /// An empty buffer.
    pub const fn new() -> Self {
        // SAFETY: the message is a plain C struct of integers, for which zeros are valid.
        Self(unsafe { core::mem::zeroed() })
    }
}

impl Default for MessageBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for MessageBuffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("MessageBuffer")
    }
}

impl Message {
    fn from_raw(raw: &k::uffd_msg) -> Self {
        // SAFETY: the event says which member of the union the kernel filled; all are integers.
        unsafe {
            match u32::from(raw.event) {
                k::UFFD_EVENT_PAGEFAULT => Self::Fault {
                    address: raw.arg.pagefault.address as usize,
                    write: raw.arg.pagefault.flags & u64::from(k::UFFD_PAGEFAULT_FLAG_WRITE) != 0,
                    thread: raw.arg.pagefault.feat.ptid,
                },
                k::UFFD_EVENT_REMOVE => Self::Remove {
                    start: raw.arg.remove.start as usize,
                    end: raw.arg.remove.end as usize,
                },
                k::UFFD_EVENT_UNMAP => Self::Unmap {
                    start: raw.arg.remove.start as usize,
                    end: raw.arg.remove.end as usize,
                },
                k::UFFD_EVENT_REMAP => Self::Remap {
                    from: raw.arg.remap.from as usize,
                    to: raw.arg.remap.to as usize,
                    len: raw.arg.remap.len as usize,
                },
                _ => Self::Other,
            }
        }
    }
}

fn range(start: usize, len: usize) -> k::uffdio_range {
    k::uffdio_range { start: start as u64, len: len as u64 }
}

fn progress(done: i64, error: Errno) -> (usize, Errno) {
    (usize::try_from(done).unwrap_or(0), error)
}
