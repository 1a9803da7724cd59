//! Files as storage: several buffers at once, how direct I/O has to be aligned.

use linux_raw_sys::general as k;

use super::{Errno, result};
use crate::syscall;

/// A piece of memory, as the calls with several of them take it.
pub type IoVec = k::iovec;

/// Reads at `offset` into several buffers, one behind the other; returns the bytes read.
///
/// # Safety
/// The buffers must be valid for writes, and nobody else may use them meanwhile.
///
/// # Errors
/// As preadv(2).
pub unsafe fn preadv(fd: i32, buffers: &[IoVec], offset: u64) -> Result<usize, Errno> {
    // SAFETY: the caller vouches for the buffers. The high half of the offset is ignored where a
    // word has 64 bits.
    result(unsafe { syscall!(k::__NR_preadv, fd, buffers.as_ptr(), buffers.len(), offset, 0) })
}

/// Writes several buffers at `offset`, one behind the other; returns the bytes written.
///
/// # Safety
/// The buffers must be valid for reads.
///
/// # Errors
/// As pwritev(2).
pub unsafe fn pwritev(fd: i32, buffers: &[IoVec], offset: u64) -> Result<usize, Errno> {
    // SAFETY: as in `preadv`.
    result(unsafe { syscall!(k::__NR_pwritev, fd, buffers.as_ptr(), buffers.len(), offset, 0) })
}

/// The status flags of an open file (O_DIRECT, O_APPEND …), which all its descriptors share.
///
/// # Errors
/// As fcntl(F_GETFL).
pub fn status_flags(fd: i32) -> Result<u32, Errno> {
    // SAFETY: no memory is passed.
    result(unsafe { syscall!(k::__NR_fcntl, fd, k::F_GETFL) }).map(|flags| flags as u32)
}

/// Sets the status flags of an open file.
///
/// # Errors
/// As fcntl(F_SETFL): EINVAL for O_DIRECT where the file system has none.
pub fn set_status_flags(fd: i32, flags: u32) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    result(unsafe { syscall!(k::__NR_fcntl, fd, k::F_SETFL, flags) }).map(drop)
}

/// What a file asks of direct I/O, as statx tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectIo {
    /// Buffers, and offsets with lengths, are multiples of these.
    Aligned {
        /// Of the address of a buffer.
        memory: u32,
        /// Of offset and length.
        offset: u32,
    },
    /// The file has no direct I/O.
    None,
    /// The kernel or the file system does not say.
    Unknown,
}

/// How direct I/O on an open file has to be aligned (Linux 6.1, and few file systems).
pub fn direct_io(fd: i32) -> DirectIo {
    let found = statx(fd, k::STATX_DIOALIGN).ok();
    let Some(found) = found.filter(|found| found.stx_mask & k::STATX_DIOALIGN != 0) else {
        return DirectIo::Unknown;
    };
    match (found.stx_dio_mem_align, found.stx_dio_offset_align) {
        (0, _) | (_, 0) => DirectIo::None,
        (memory, offset) => DirectIo::Aligned { memory, offset },
    }
}

fn statx(fd: i32, mask: u32) -> Result<k::statx, Errno> {
    // SAFETY: a statx is integers only.
    let mut found: k::statx = unsafe { core::mem::zeroed() };
    let empty = c"";
    // SAFETY: the empty path and the buffer live across the call.
    result(unsafe {
        syscall!(k::__NR_statx, fd, empty.as_ptr(), k::AT_EMPTY_PATH, mask, &raw mut found)
    })?;
    Ok(found)
}

/// Which file it is, whatever its name: file system, inode, and the device that it stands for.
pub type Identity = [u64; 3];

/// The file that is open; `None` if none is.
pub fn identity(fd: i32) -> Option<Identity> {
    let found = statx(fd, k::STATX_INO).ok()?;
    let number = |major: u32, minor: u32| u64::from(major) << 32 | u64::from(minor);
    Some([
        number(found.stx_dev_major, found.stx_dev_minor),
        found.stx_ino,
        number(found.stx_rdev_major, found.stx_rdev_minor),
    ])
}

/// The logical block size of a block device; `None` for what is none.
pub fn logical_block(fd: i32) -> Option<u32> {
    let mut bytes = 0u32;
    // SAFETY: the kernel writes an int.
    let called =
        unsafe { syscall!(k::__NR_ioctl, fd, linux_raw_sys::ioctl::BLKSSZGET, &raw mut bytes) };
    result(called).ok().map(|_| bytes)
}

/// Gives a part of a file back to its file system; it reads as zeros from then on.
///
/// # Errors
/// As fallocate(2).
pub fn punch_hole(fd: i32, start: u64, len: u64) -> Result<(), Errno> {
    /// `FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE`, include/uapi/linux/falloc.h.
    const HOLE: u32 = 0x01 | 0x02;
    // SAFETY: no memory is passed.
    result(unsafe { syscall!(k::__NR_fallocate, fd, HOLE, start, len) }).map(drop)
}

/// Tells a block device that a part of it is not used any more.
///
/// # Errors
/// As ioctl(BLKDISCARD).
pub fn discard(fd: i32, start: u64, len: u64) -> Result<(), Errno> {
    /// `_IO(0x12, 119)`, include/uapi/linux/fs.h.
    const BLKDISCARD: u32 = 0x1277;
    let range = [start, len];
    // SAFETY: the two words live across the call.
    result(unsafe { syscall!(k::__NR_ioctl, fd, BLKDISCARD, range.as_ptr()) }).map(drop)
}
