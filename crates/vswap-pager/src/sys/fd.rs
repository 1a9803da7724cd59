//! File descriptors: an owned one, and the calls on them that the engine needs.

use linux_raw_sys::general as k;

use super::{Errno, result};
use crate::syscall;

/// A file descriptor that is closed when dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct Fd(i32);

impl Fd {
    /// Takes over a descriptor.
    pub const fn new(raw: i32) -> Self {
        Self(raw)
    }

    /// The number.
    pub const fn raw(&self) -> i32 {
        self.0
    }

    /// Gives up ownership without closing.
    pub fn into_raw(self) -> i32 {
        let raw = self.0;
        core::mem::forget(self);
        raw
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours, so closing it takes it from nobody.
        unsafe { syscall!(k::__NR_close, self.0) };
    }
}

/// Opens a file by a NUL-terminated path, close-on-exec.
///
/// # Errors
/// As open(2).
pub fn open(path: &core::ffi::CStr, flags: u32) -> Result<Fd, Errno> {
    // SAFETY: the path is NUL-terminated; no other memory is passed.
    let fd = unsafe { syscall!(k::__NR_openat, k::AT_FDCWD, path.as_ptr(), flags | k::O_CLOEXEC) };
    result(fd).map(|fd| Fd(fd as i32))
}

/// The same with a pointer that may be bad.
///
/// # Errors
/// As open(2).
///
/// # Safety
/// None of memory: the kernel checks the pointer. If it succeeds, it has read a C string there.
pub unsafe fn open_at(path: *const core::ffi::c_char, flags: u32) -> Result<Fd, Errno> {
    // SAFETY: the kernel checks the pointer; no other memory is passed.
    let fd = unsafe { syscall!(k::__NR_openat, k::AT_FDCWD, path, flags | k::O_CLOEXEC) };
    result(fd).map(|fd| Fd(fd as i32))
}

/// Whether a program in this file would get rights that this process does not have.
pub fn changes_credentials(fd: i32) -> bool {
    const CAPABILITIES: &core::ffi::CStr = c"security.capability";
    // SAFETY: all-zero bytes are a valid stat.
    let mut found: k::stat = unsafe { core::mem::zeroed() };
    // SAFETY: the structure is valid for writes; the other calls take numbers, or a constant.
    let (status, user, group, kept) = unsafe {
        (
            syscall!(k::__NR_fstat, fd, &raw mut found),
            syscall!(k::__NR_geteuid) as u32,
            syscall!(k::__NR_getegid) as u32,
            syscall!(k::__NR_prctl, linux_raw_sys::prctl::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1,
        )
    };
    if status != 0 || kept {
        return false;
    }
    // As the kernel has it: without the group's execute bit, setgid means something else.
    let setgid = k::S_ISGID | k::S_IXGRP;
    let mode = found.st_mode;
    let changes_user = mode & k::S_ISUID != 0 && found.st_uid != user;
    let changes_group = mode & setgid == setgid && found.st_gid != group;
    // SAFETY: a constant name, and no room for a value.
    let has_capabilities =
        || unsafe { syscall!(k::__NR_fgetxattr, fd, CAPABILITIES.as_ptr(), 0, 0) > 0 };
    changes_user || changes_group || (user != 0 && has_capabilities())
}

/// Reads at the file's position; returns the bytes read.
///
/// # Errors
/// As read(2).
pub fn read(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for writes of its length.
    result(unsafe { syscall!(k::__NR_read, fd, buffer.as_mut_ptr(), buffer.len()) })
}

/// Reads at `offset`; returns the bytes read.
///
/// # Errors
/// As pread(2).
pub fn pread(fd: i32, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for writes of its length.
    result(unsafe { syscall!(k::__NR_pread64, fd, buffer.as_mut_ptr(), buffer.len(), offset) })
}

/// Writes at `offset`; returns the bytes written.
///
/// # Errors
/// As pwrite(2).
pub fn pwrite(fd: i32, buffer: &[u8], offset: u64) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for reads of its length.
    result(unsafe { syscall!(k::__NR_pwrite64, fd, buffer.as_ptr(), buffer.len(), offset) })
}

/// Duplicates a descriptor to a number of at least `at_least`, close-on-exec.
///
/// # Errors
/// As fcntl(F_DUPFD_CLOEXEC).
pub fn duplicate(fd: i32, at_least: i32) -> Result<Fd, Errno> {
    // SAFETY: no memory is passed.
    let copy = unsafe { syscall!(k::__NR_fcntl, fd, k::F_DUPFD_CLOEXEC, at_least) };
    result(copy).map(|fd| Fd(fd as i32))
}

/// Closes all descriptors from `first` to `last`.
pub fn close_range(first: u32, last: u32) {
    if first <= last {
        // SAFETY: no memory is passed; the callers close in a descriptor table of their own.
        unsafe { syscall!(k::__NR_close_range, first, last, 0) };
    }
}

/// Waits until one of the descriptors is readable or `timeout_ms` has passed (-1: for ever);
/// `ready` tells which. An interrupted wait counts as a timeout.
///
/// # Errors
/// As ppoll(2).
pub fn wait_readable<const N: usize>(fds: [i32; N], timeout_ms: i64) -> Result<[bool; N], Errno> {
    let mut polls = fds.map(|fd| k::pollfd { fd, events: (k::POLLIN) as i16, revents: 0 });
    let timeout = k::__kernel_timespec {
        tv_sec: timeout_ms / 1000,
        tv_nsec: (timeout_ms % 1000) * 1_000_000,
    };
    let timeout = if timeout_ms < 0 { core::ptr::null() } else { &raw const timeout };
    // SAFETY: the array and the timespec live across the call.
    let value = unsafe { syscall!(k::__NR_ppoll, polls.as_mut_ptr(), N, timeout, 0usize, 0usize) };
    match result(value) {
        Ok(_) => Ok(polls.map(|poll| poll.revents != 0)),
        Err(Errno::EINTR) => Ok([false; N]),
        Err(error) => Err(error),
    }
}

/// A counter that can be polled for.
///
/// # Errors
/// As eventfd(2).
pub fn eventfd() -> Result<Fd, Errno> {
    // SAFETY: no memory is passed.
    let fd = unsafe { syscall!(k::__NR_eventfd2, 0, k::O_CLOEXEC | k::O_NONBLOCK) };
    result(fd).map(|fd| Fd(fd as i32))
}

/// Writes to a descriptor; returns the bytes written.
///
/// # Errors
/// As write(2).
pub fn write(fd: i32, buffer: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for reads of its length.
    result(unsafe { syscall!(k::__NR_write, fd, buffer.as_ptr(), buffer.len()) })
}
