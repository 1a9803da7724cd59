//! What the kernel tells of a process that has ended: whether it left a core dump.

use linux_raw_sys::general as k;

use super::{fd, memory, result};
use crate::syscall;
use crate::text::{self, Line};

/// In a status as wait(2) has it: a core was written.
const DUMPED: u32 = 0x80;

/// The signals that write one, a bit each: SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV,
/// SIGXCPU, SIGXFSZ, SIGSYS.
const DUMPING: u32 =
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 24 | 1 << 25 | 1 << 31;

/// Whether a process that has ended left a core dump; `pidfd` is its own.
pub fn left_core(pidfd: i32, pid: u32) -> bool {
    // As long as nobody has waited for it, /proc knows; afterwards its pidfd does. That may happen
    // between two questions.
    match reaped(pidfd).map_or_else(|| zombie(pid).map(Ok), |status| Some(Err(status))) {
        Some(Ok(status)) => status & DUMPED != 0,
        Some(Err(status)) => may_have_left_core(status),
        None => reaped(pidfd).is_some_and(may_have_left_core),
    }
}

/// The same by the status of the process's first thread, which does not say that a core was written if it
/// was another thread that did.
fn may_have_left_core(status: u32) -> bool {
    let signal = status & !DUMPED;
    status & DUMPED != 0 || (signal < u32::BITS && DUMPING >> signal & 1 != 0 && core_limit() > 0)
}

/// The status of a process that nobody has waited for yet: the last field of its stat file, proc(5).
fn zombie(pid: u32) -> Option<u32> {
    let mut path = Line::<32>::format(format_args!("/proc/{pid}/stat"));
    let file = fd::open(path.as_c_str(), k::O_RDONLY).ok()?;
    let mut buffer = [0; 512];
    let len = fd::read(file.raw(), &mut buffer).ok()?;
    let last = buffer[..len].trim_ascii_end().rsplit(|&byte| byte == b' ').next()?;
    text::number(last).map(|(status, _)| status as u32)
}

/// The status of a process that somebody has waited for (Linux 6.15).
fn reaped(pidfd: i32) -> Option<u32> {
    /// `PIDFD_GET_INFO` with the first version of its structure, include/uapi/linux/pidfd.h.
    const GET_INFO: u32 = 0xc040_ff0b;
    const INFO_EXIT: u64 = 1 << 3;
    #[repr(C)]
    struct Info {
        mask: u64,
        ids: [u64; 6],
        last_id: u32,
        exit_code: i32,
    }
    const _: () = assert!(size_of::<Info>() == 64);
    let mut info = Info { mask: INFO_EXIT, ids: [0; 6], last_id: 0, exit_code: 0 };
    // SAFETY: the structure lives across the call and is as large as the request says.
    result(unsafe { syscall!(k::__NR_ioctl, pidfd, GET_INFO, &raw mut info) }).ok()?;
    (info.mask & INFO_EXIT != 0).then_some(info.exit_code as u32)
}

/// How large a core the kernel writes for processes like the calling one, which has the limits that the
/// program had when its pager was made.
pub fn core_limit() -> u64 {
    let mut pattern = [0; 1];
    let pipe = fd::open(c"/proc/sys/kernel/core_pattern", k::O_RDONLY)
        .and_then(|file| fd::read(file.raw(), &mut pattern));
    // To a program, or a socket, it gives all of it: core(5).
    if pipe.is_ok() && matches!(pattern, [b'|' | b'@']) {
        return u64::MAX;
    }
    let mut limit = k::rlimit64 { rlim_cur: u64::MAX, rlim_max: u64::MAX };
    // SAFETY: the structure lives across the call.
    unsafe { syscall!(k::__NR_prlimit64, 0, k::RLIMIT_CORE, 0, &raw mut limit) };
    limit.rlim_cur
}

/// The random bytes that the kernel gave this address space at exec (AT_RANDOM): getauxval(3).
pub fn random_of_exec() -> Option<[u8; 16]> {
    const AT_RANDOM: usize = 25;
    let mut words = [0usize; 128];
    let file = fd::open(c"/proc/self/auxv", k::O_RDONLY).ok()?;
    // SAFETY: the words are valid for writes of their size, and any bytes are valid in them.
    let bytes = unsafe {
        core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), size_of_val(&words))
    };
    fd::read(file.raw(), bytes).ok()?;
    let (pairs, _) = words.as_chunks::<2>();
    let &[_, address] = pairs.iter().find(|[kind, _]| *kind == AT_RANDOM)?;
    let mut random = [0; 16];
    memory::peek(address, &mut random).ok()?;
    Some(random)
}
