//! What the program has to get exactly as `vswap` got it, recorded before anything changes it.
//!
//! Rust's start-up code ignores SIGPIPE and opens /dev/null on standard streams that are closed;
//! the program must see neither. So one function runs ahead of it, from `.init_array`: it records
//! what SIGPIPE was, and fills closed standard streams with a /dev/null that `exec` closes again.

use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_getfd};

static SIGPIPE_IGNORED: AtomicBool = AtomicBool::new(false);

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_RUST: extern "C" fn() = before_rust;

extern "C" fn before_rust() {
    SIGPIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    for fd in 0..=2 {
        // SAFETY: both calls take plain integers and a constant string. `open` gives the lowest
        // free descriptor, which is `fd`, since all below it are open by now.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            }
        }
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is a valid one, and the call only reads the disposition.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action);
        action.sa_sigaction == libc::SIG_IGN
    }
}

/// Signal mask, dispositions and descriptors that came from our own parent.
pub struct Inherited {
    /// Blocked signals.
    pub mask: libc::sigset_t,
    /// Signals whose disposition this process changes, and whether they were ignored.
    pub ignored: [(libc::c_int, bool); 2],
    /// Open descriptors other than the standard streams.
    descriptors: Vec<RawFd>,
}

impl Inherited {
    /// Records the state. To be called before anything else is opened.
    pub fn record() -> Self {
        // SAFETY: an all-zero set is a valid one, which the call overwrites.
        let mask = unsafe {
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
            mask
        };
        let ignored = [
            (libc::SIGPIPE, SIGPIPE_IGNORED.load(Ordering::Relaxed)),
            (libc::SIGCHLD, is_ignored(libc::SIGCHLD)),
        ];
        Self { mask, ignored, descriptors: open_descriptors() }
    }

    /// Lets go of everything that only the program should hold now, except stderr. A pipe held open
    /// here would keep its other end from seeing end of file when the program closes it.
    pub fn release(&mut self) {
        for fd in self.descriptors.drain(..) {
            // SAFETY: the descriptor came with the process, and nothing here has adopted it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
            // std hands out descriptors 0 and 1 for the life of the process, so they are replaced,
            // never closed.
            let _ = rustix::stdio::dup2_stdin(&null);
            let _ = rustix::stdio::dup2_stdout(&null);
        }
    }
}

/// Descriptors above the standard streams. Those of this process are all close-on-exec, and those
/// that survived our own exec are not.
fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd: &RawFd| fd > 2)
        .filter(|&fd| {
            // SAFETY: only asked whether it is open; the directory's own may be closed by now.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl_getfd(borrowed).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC))
        })
        .collect()
}
