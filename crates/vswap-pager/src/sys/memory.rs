//! Address space of the engine itself, and advice on the program's.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general as k;

use super::{Errno, result, task};
use crate::syscall;

/// Protection of a mapping: the PROT_ bits.
pub const READ_WRITE: u32 = k::PROT_READ | k::PROT_WRITE;

/// The process that has the kernel lock all memory that it maps from now on, or 0. Its children do
/// not inherit that, but this word.
static LOCKS_NEW: AtomicU32 = AtomicU32::new(0);

/// Whether new memory is locked (MCL_FUTURE).
pub fn new_is_locked() -> bool {
    // Relaxed: a mapping that another thread makes during the program's mlockall may come before it
    // or after it.
    let process = LOCKS_NEW.load(Ordering::Relaxed);
    process != 0 && process == task::process_id()
}

/// Notes whether new memory is locked.
pub fn set_new_is_locked(locked: bool) {
    LOCKS_NEW.store(if locked { task::process_id() } else { 0 }, Ordering::Relaxed);
}

/// Maps private anonymous memory, which is not locked: it is the engine's, and its pages are moved
/// and dropped.
///
/// # Errors
/// As mmap(2).
pub fn map_anonymous(len: usize, prot: u32) -> Result<NonNull<u8>, Errno> {
    let flags = k::MAP_PRIVATE | k::MAP_ANONYMOUS | k::MAP_NORESERVE;
    // SAFETY: the kernel chooses the place, so no existing mapping changes.
    let address = result(unsafe { syscall!(k::__NR_mmap, 0, len, prot, flags, -1isize, 0) })?;
    if new_is_locked() {
        // SAFETY: nobody knows the range yet.
        unsafe { syscall!(k::__NR_munlock, address, len) };
    }
    NonNull::new(address as *mut u8).ok_or(Errno::ENOMEM)
}

/// Maps memory that children of a fork share.
///
/// # Errors
/// As mmap(2).
pub fn map_shared_anonymous(len: usize) -> Result<NonNull<u8>, Errno> {
    let flags = k::MAP_SHARED | k::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses the place, so no existing mapping changes.
    let address = result(unsafe { syscall!(k::__NR_mmap, 0, len, READ_WRITE, flags, -1isize, 0) })?;
    NonNull::new(address as *mut u8).ok_or(Errno::ENOMEM)
}

/// Maps `len` bytes of a file, shared.
///
/// # Errors
/// As mmap(2).
pub fn map_shared(fd: i32, len: usize) -> Result<NonNull<u8>, Errno> {
    // SAFETY: the kernel chooses the place, so no existing mapping changes.
    let address =
        result(unsafe { syscall!(k::__NR_mmap, 0, len, READ_WRITE, k::MAP_SHARED, fd, 0) })?;
    NonNull::new(address as *mut u8).ok_or(Errno::ENOMEM)
}

/// Changes the protection of a range.
///
/// # Safety
/// The range must belong to the engine, and no reference may rely on the access that is taken.
///
/// # Errors
/// As mprotect(2).
pub unsafe fn protect(start: usize, len: usize, prot: u32) -> Result<(), Errno> {
    // SAFETY: the caller owns the range.
    result(unsafe { syscall!(k::__NR_mprotect, start, len, prot) }).map(drop)
}

/// Unmaps a range.
///
/// # Safety
/// The range must belong to the engine, and nothing may use it any more.
pub unsafe fn unmap(start: usize, len: usize) {
    // SAFETY: the caller owns the range.
    unsafe { syscall!(k::__NR_munmap, start, len) };
}

/// Whether every page of a range is mapped.
pub fn is_mapped(start: usize, len: usize) -> bool {
    // SAFETY: with MS_ASYNC the kernel looks at the mappings of the range and changes nothing.
    result(unsafe { syscall!(k::__NR_msync, start, len, k::MS_ASYNC) }).is_ok()
}

/// Gives advice about a range.
///
/// # Safety
/// The advice must not change memory that Rust code relies on; MADV_DONTNEED turns it to zeros.
///
/// # Errors
/// As madvise(2).
pub unsafe fn advise(start: usize, len: usize, advice: u32) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the range and the advice.
    result(unsafe { syscall!(k::__NR_madvise, start, len, advice) }).map(drop)
}

/// Copies what is at an address of this address space, which may not be there.
///
/// # Errors
/// As process_vm_readv(2); `EFAULT` also for a page that would have to be brought in.
pub fn peek(address: usize, into: &mut [u8]) -> Result<(), Errno> {
    let local = k::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() as _ };
    let remote = k::iovec { iov_base: address as *mut _, iov_len: into.len() as _ };
    let own = task::process_id();
    // SAFETY: the buffer is valid for writes of its length, and the kernel checks the other address.
    let read = result(unsafe {
        syscall!(k::__NR_process_vm_readv, own, &raw const local, 1, &raw const remote, 1, 0)
    })?;
    if read == into.len() { Ok(()) } else { Err(Errno::EFAULT) }
}
