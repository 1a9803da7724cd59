//! Tasks: starting, ending, waiting, signals, time, CPU.

use core::sync::atomic::AtomicU32;

use linux_raw_sys::general as k;

use super::fd::Fd;
use super::{Errno, result};
use crate::syscall;

/// All signals, as the kernel's 64-bit mask.
pub const ALL_SIGNALS: u64 = u64::MAX;

/// Sets the calling thread's signal mask and gives the previous one.
pub fn set_signal_mask(mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: both masks live across the call; 8 is the size of the kernel's mask.
    unsafe {
        syscall!(k::__NR_rt_sigprocmask, k::SIG_SETMASK, &raw const mask, &raw mut old, 8);
    }
    old
}

/// Waits while `word` holds `expected`, for at most `timeout_ms` (-1: for ever). Wakes spuriously.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout_ms: i64) {
    futex_wait_with(word, expected, timeout_ms, k::FUTEX_WAIT | k::FUTEX_PRIVATE_FLAG);
}

/// As [`futex_wait`], for words that other processes map, or that the kernel wakes itself
/// (clear_child_tid), which it does on the shared key.
pub fn futex_wait_shared(word: &AtomicU32, expected: u32, timeout_ms: i64) {
    futex_wait_with(word, expected, timeout_ms, k::FUTEX_WAIT);
}

fn futex_wait_with(word: &AtomicU32, expected: u32, timeout_ms: i64, operation: u32) {
    let timeout = k::__kernel_timespec {
        tv_sec: timeout_ms / 1000,
        tv_nsec: (timeout_ms % 1000) * 1_000_000,
    };
    let timeout = if timeout_ms < 0 { core::ptr::null() } else { &raw const timeout };
    // SAFETY: the word and the timespec live across the call.
    unsafe { syscall!(k::__NR_futex, word.as_ptr(), operation, expected, timeout) };
}

/// Wakes up to `count` waiters of `word`.
pub fn futex_wake(word: &AtomicU32, count: u32) {
    futex_wake_with(word, count, k::FUTEX_WAKE | k::FUTEX_PRIVATE_FLAG);
}

/// As [`futex_wake`], for waiters of other processes that map the word.
pub fn futex_wake_shared(word: &AtomicU32, count: u32) {
    futex_wake_with(word, count, k::FUTEX_WAKE);
}

fn futex_wake_with(word: &AtomicU32, count: u32, operation: u32) {
    // SAFETY: the word is only used as an address.
    unsafe { syscall!(k::__NR_futex, word.as_ptr(), operation, count) };
}

/// Fills a buffer with random bytes; `false` where the kernel has none yet.
pub fn random(buffer: &mut [u8]) -> bool {
    // SAFETY: the buffer is valid for writes of its length.
    let got =
        unsafe { syscall!(k::__NR_getrandom, buffer.as_mut_ptr(), buffer.len(), k::GRND_NONBLOCK) };
    result(got) == Ok(buffer.len())
}

/// Lets another task run.
pub fn yield_now() {
    // SAFETY: no memory is passed.
    unsafe { syscall!(k::__NR_sched_yield) };
}

/// Sleeps.
pub fn sleep_us(microseconds: u64) {
    let time = k::__kernel_timespec {
        tv_sec: (microseconds / 1_000_000) as i64,
        tv_nsec: (microseconds % 1_000_000) as i64 * 1000,
    };
    // SAFETY: the timespec lives across the call.
    unsafe { syscall!(k::__NR_nanosleep, &raw const time, 0) };
}

/// Nanoseconds of the monotonic clock.
pub fn now_ns() -> u64 {
    clock_ns(k::CLOCK_MONOTONIC)
}

/// Nanoseconds of CPU time of the calling thread.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(k::CLOCK_THREAD_CPUTIME_ID)
}

fn clock_ns(clock: u32) -> u64 {
    let mut time = k::__kernel_timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the timespec lives across the call.
    unsafe { syscall!(k::__NR_clock_gettime, clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Process ID of the caller.
pub fn process_id() -> u32 {
    // SAFETY: no memory is passed.
    unsafe { syscall!(k::__NR_getpid) as u32 }
}

/// Thread ID of the caller.
pub fn thread_id() -> u32 {
    // SAFETY: no memory is passed.
    unsafe { syscall!(k::__NR_gettid) as u32 }
}

/// Ends the calling process with all its threads.
pub fn exit_process(code: i32) -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { syscall!(k::__NR_exit_group, code) };
    }
}

/// Waits for a child to end, whatever its exit signal.
pub fn reap(child: u32) {
    // SAFETY: no memory is passed.
    while result(unsafe { syscall!(k::__NR_wait4, child, 0, k::__WALL, 0) }) == Err(Errno::EINTR) {}
}

/// Whether a process that was made as a child of the caller has ended. It can be waited for as
/// before.
pub fn has_ended(child: u32) -> bool {
    let mut info = [0u32; SIGINFO_WORDS];
    let options = k::WEXITED | k::WNOHANG | k::WNOWAIT | k::__WALL;
    // SAFETY: the words live across the call and are as large as the kernel's siginfo.
    let found = unsafe { syscall!(k::__NR_waitid, k::P_PID, child, info.as_mut_ptr(), options, 0) };
    match result(found) {
        Ok(_) => info[0] != 0,
        // Reaped by somebody else, or (CLONE_PARENT) somebody else's from the start.
        // SAFETY: no memory is passed, and signal 0 is none.
        Err(_) => result(unsafe { syscall!(k::__NR_kill, child, 0) }) == Err(Errno::ESRCH),
    }
}

/// A siginfo_t as words: signal, errno, code, padding, then what depends on the signal.
const SIGINFO_WORDS: usize = 32;

/// Takes back the SIGCHLD of a child that was reaped, from a process whose callers block it. Those
/// of other children are left: one may stand for several, and is given back then.
pub fn take_sigchld(child: u32) {
    const SIGNAL: usize = 0;
    const PID: usize = 4;
    let set = 1u64 << (k::SIGCHLD - 1);
    let mut info = [0u32; SIGINFO_WORDS];
    let at_once = k::__kernel_timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: set, words and timespec live across the call; 8 is the size of the kernel's mask.
    let taken = result(unsafe {
        syscall!(k::__NR_rt_sigtimedwait, &raw const set, info.as_mut_ptr(), &raw const at_once, 8)
    });
    if taken.is_err() {
        return;
    }
    if info[PID] == child {
        // The kernel queues one SIGCHLD: another child that ended meanwhile has sent none.
        let options = k::WEXITED | k::WSTOPPED | k::WCONTINUED | k::WNOHANG | k::WNOWAIT;
        info = [0; SIGINFO_WORDS];
        // SAFETY: as in `has_ended`.
        unsafe { syscall!(k::__NR_waitid, k::P_ALL, 0, info.as_mut_ptr(), options, 0) };
    }
    if info[SIGNAL] != 0 {
        // SAFETY: the words live across the call.
        unsafe {
            syscall!(k::__NR_rt_sigqueueinfo, process_id(), k::SIGCHLD, info.as_ptr());
        }
    }
}

/// Sends a signal to a process.
pub fn kill(pid: u32, signal: u32) {
    // SAFETY: no memory is passed.
    unsafe { syscall!(k::__NR_kill, pid, signal) };
}

/// Sends a signal to one thread of a process.
pub fn signal_thread(process: u32, thread: u32, signal: u32) {
    // SAFETY: no memory is passed.
    unsafe { syscall!(k::__NR_tgkill, process, thread, signal) };
}

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// As pidfd_open(2).
pub fn pidfd(pid: u32) -> Result<Fd, Errno> {
    // SAFETY: no memory is passed.
    result(unsafe { syscall!(k::__NR_pidfd_open, pid, 0) }).map(|fd| Fd::new(fd as i32))
}

/// Whether two processes share their memory. `None` if the kernel does not tell us.
pub fn same_memory(one: u32, other: u32) -> Option<bool> {
    const KCMP_VM: u32 = 1;
    // SAFETY: no memory is passed.
    match result(unsafe { syscall!(k::__NR_kcmp, one, other, KCMP_VM, 0, 0) }) {
        Ok(order) => Some(order == 0),
        Err(_) => None,
    }
}

/// Binds the calling thread to one CPU.
pub fn run_on_cpu(cpu: usize) {
    let mut mask = [0u64; 16];
    if let Some(word) = mask.get_mut(cpu / 64) {
        *word = 1 << (cpu % 64);
        // SAFETY: the mask lives across the call.
        unsafe { syscall!(k::__NR_sched_setaffinity, 0, size_of_val(&mask), mask.as_ptr()) };
    }
}

/// The CPUs that the calling thread may use, as a bit mask of the first 1024.
pub fn allowed_cpus() -> [u64; 16] {
    let mut mask = [0u64; 16];
    // SAFETY: the mask lives across the call and is as long as stated.
    unsafe { syscall!(k::__NR_sched_getaffinity, 0, size_of_val(&mask), mask.as_mut_ptr()) };
    mask
}

/// CPU that the caller runs on.
pub fn current_cpu() -> usize {
    let mut cpu = 0u32;
    // SAFETY: the word lives across the call.
    unsafe { syscall!(k::__NR_getcpu, &raw mut cpu, 0, 0) };
    cpu as usize
}

/// Names the calling thread, as `ps` shows it.
pub fn set_name(name: &core::ffi::CStr) {
    // SAFETY: the name is NUL-terminated and outlives the call.
    unsafe { syscall!(k::__NR_prctl, linux_raw_sys::prctl::PR_SET_NAME, name.as_ptr()) };
}
