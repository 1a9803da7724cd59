//! io_uring: the three system calls and the structures they share with the kernel.

use linux_raw_sys::{general as k, io_uring as u};

use super::fd::Fd;
use super::{Errno, result};
use crate::syscall;

pub use linux_raw_sys::io_uring::{
    IORING_FEAT_EXT_ARG, IORING_FEAT_NODROP, IORING_FEAT_SINGLE_MMAP, IORING_OFF_SQ_RING,
    IORING_OFF_SQES, IORING_SETUP_CLAMP, IORING_SETUP_COOP_TASKRUN, IORING_SETUP_DEFER_TASKRUN,
    IORING_SETUP_SINGLE_ISSUER, io_uring_cqe as Cqe, io_uring_params as Params,
    io_uring_sqe as Sqe,
};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// As pread.
    Read = u::io_uring_op::IORING_OP_READ as u8,
    /// As pwrite.
    Write = u::io_uring_op::IORING_OP_WRITE as u8,
}

/// Makes a ring with room for `entries` requests. `params` holds the wanted flags, and afterwards
/// what the kernel made.
///
/// # Errors
/// As io_uring_setup(2): EPERM or EACCES where it is forbidden, ENOSYS where it is not built in,
/// EINVAL for flags that the kernel does not know.
pub fn setup(entries: u32, params: &mut Params) -> Result<Fd, Errno> {
    // SAFETY: the kernel reads and writes one Params.
    let fd = unsafe { syscall!(k::__NR_io_uring_setup, entries, &raw mut *params) };
    result(fd).map(|fd| Fd::new(fd as i32))
}

/// Maps `len` bytes of a ring at one of the IORING_OFF_ offsets. A child of a fork does not get
/// the mapping.
///
/// # Errors
/// As mmap(2).
pub fn map(ring: &Fd, len: usize, offset: u32) -> Result<core::ptr::NonNull<u8>, Errno> {
    let prot = k::PROT_READ | k::PROT_WRITE;
    let flags = k::MAP_SHARED | k::MAP_POPULATE;
    // SAFETY: the kernel chooses the place, so no existing mapping changes.
    let address =
        result(unsafe { syscall!(k::__NR_mmap, 0, len, prot, flags, ring.raw(), offset) })?;
    // SAFETY: the range was just mapped, and the advice does not change what it holds here.
    let advised = unsafe { super::memory::advise(address, len, k::MADV_DONTFORK) };
    if let Err(error) = advised {
        // SAFETY: nobody knows the mapping.
        unsafe { super::memory::unmap(address, len) };
        return Err(error);
    }
    core::ptr::NonNull::new(address as *mut u8).ok_or(Errno::ENOMEM)
}

/// Submits `submit` requests and waits until `complete` are done, or for `timeout_ns`. Returns how
/// many the kernel took; if it took any, it does not say how the wait ended.
///
/// # Safety
/// The buffers of the requests that lie in the submission queue must stay valid, and unused by
/// others, until their completions are seen.
///
/// # Errors
/// As io_uring_enter(2); ETIME if the time passed.
pub unsafe fn enter(ring: &Fd, submit: u32, complete: u32, timeout_ns: u64) -> Result<u32, Errno> {
    let time = k::__kernel_timespec {
        tv_sec: (timeout_ns / 1_000_000_000) as i64,
        tv_nsec: (timeout_ns % 1_000_000_000) as i64,
    };
    let argument = u::io_uring_getevents_arg {
        sigmask: 0,
        sigmask_sz: 0,
        min_wait_usec: 0,
        ts: &raw const time as u64,
    };
    let flags = u::IORING_ENTER_GETEVENTS | u::IORING_ENTER_EXT_ARG;
    // SAFETY: the argument and the time live across the call; the caller vouches for the requests.
    let taken = result(unsafe {
        syscall!(
            k::__NR_io_uring_enter,
            ring.raw(),
            submit,
            complete,
            flags,
            &raw const argument,
            size_of_val(&argument),
        )
    })?;
    Ok(taken as u32)
}

/// Whether a filter restricts the system calls of this thread. One that kills for what it does not
/// know would kill the caller of io_uring_setup.
pub fn calls_are_filtered() -> bool {
    // SAFETY: no memory is passed.
    let mode = unsafe { syscall!(k::__NR_prctl, linux_raw_sys::prctl::PR_GET_SECCOMP) };
    mode != 0 && result(mode) != Err(Errno::EINVAL)
}
