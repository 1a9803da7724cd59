//! The boundary to the kernel: raw system calls, typed.
//!
//! Fault-side code runs on threads whose TLS register does not belong to them, so nothing here may
//! touch libc: no `errno`, no vDSO, no cancellation points. Errors come back as [`Errno`].

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
pub mod arch;
pub mod elf;
pub mod exit_status;
pub mod fd;
pub mod file;
pub mod io_uring;
pub mod memory;
pub mod pagemap;
pub mod proc_maps;
pub mod socket;
pub mod task;
pub mod uffd;

/// An error number of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("errno {0}")]
pub struct Errno(pub i32);

macro_rules! errno_names {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("The kernel's ", stringify!($name), ".")]
                pub const $name: Self = Self(linux_raw_sys::errno::$name as i32);
            )*
        }
    };
}

errno_names!(EPERM ENOENT ESRCH EINTR EIO EBADF EAGAIN ENOMEM EFAULT EBUSY EEXIST ENODEV EINVAL ENFILE EMFILE ENOSPC ENOSYS EILSEQ ETIME EFBIG);

impl Errno {
    /// As a system call returns it.
    pub fn as_value(self) -> isize {
        -(self.0 as isize)
    }
}

/// Largest error number that a system call can return, negated.
const ERRNO_MAX: isize = 4095;

/// Splits the return value of a raw system call.
///
/// # Errors
/// The [`Errno`] that the value encodes.
pub fn result(value: isize) -> Result<usize, Errno> {
    if (-ERRNO_MAX..0).contains(&value) { Err(Errno(-value as i32)) } else { Ok(value as usize) }
}

/// Fills the arguments of a system call up with zeros.
pub fn arguments<const N: usize>(given: [usize; N]) -> [usize; 6] {
    core::array::from_fn(|index| given.get(index).copied().unwrap_or(0))
}

/// A system call with up to six arguments; missing ones are zero.
///
/// # Safety
/// As for the system call: pointers must be valid for what it does with them, and it must not
/// change memory that Rust code relies on.
#[macro_export]
macro_rules! syscall {
    ($number:expr $(, $arg:expr)* $(,)?) => {
        $crate::sys::arch::syscall($number as usize, $crate::sys::arguments([$($arg as usize),*]))
    };
}
