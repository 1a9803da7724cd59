//! Signals: the program gets those that are meant for it, once, and vswap stops and dies as it does.
//!
//! vswap and the program share a process group, so the terminal's signals (^C, ^Z, hang-up, window
//! size) reach both, and are not passed on. Signals sent to vswap alone are. From a plain `kill` of
//! the whole group the program gets a signal twice, as from `timeout`: the two cannot be told
//! apart. All signals but those of faults are blocked here and read from a descriptor.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::Context as _;
use rustix::process::{Pid, getpid, getsid};

/// Signals that a fault in vswap itself raises: blocked, they would only hide it.
const FAULTS: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
];

/// Signals that the terminal sends to a whole process group.
const TERMINAL: [libc::c_int; 8] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGWINCH,
    libc::SIGHUP,
    libc::SIGCONT,
];

/// A signal that arrived.
pub type Info = libc::signalfd_siginfo;

/// The blocked signals, as they arrive.
pub struct Signals {
    /// Readable when one has arrived.
    pub fd: OwnedFd,
}

impl Signals {
    /// Blocks all signals, and makes sure that the end of a child is reported.
    pub fn block() -> anyhow::Result<Self> {
        // SAFETY: the set is filled before it is used; the calls only read it. SIG_DFL is a valid
        // disposition. This process has one thread.
        unsafe {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            for signal in FAULTS {
                libc::sigdelset(&raw mut all, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            let fd = libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd == -1 {
                return Err(std::io::Error::last_os_error()).context("signalfd");
            }
            Ok(Self { fd: OwnedFd::from_raw_fd(fd) })
        }
    }

    /// The next signal that has arrived.
    pub fn next(&self) -> Option<Info> {
        // SAFETY: the read fills the whole structure, which is plain data, or is not used.
        unsafe {
            let mut info: Info = std::mem::zeroed();
            let size = size_of::<Info>();
            let read = libc::read(self.fd.as_raw_fd(), (&raw mut info).cast(), size);
            (read == size as isize).then_some(info)
        }
    }
}

/// Gives the program a signal that vswap got, if it is meant for it and did not reach it already.
pub fn forward(info: &Info, program: Pid) {
    let signal = info.ssi_signo as libc::c_int;
    if !is_meant_for(info, program) {
        return;
    }
    let pid = program.as_raw_nonzero().get();
    // SAFETY: plain integers. The program was not waited for yet, so the ID is still its own.
    unsafe {
        if info.ssi_code == libc::SI_QUEUE {
            let value = libc::sigval { sival_ptr: info.ssi_ptr as *mut libc::c_void };
            libc::sigqueue(pid, signal, value);
        } else {
            libc::kill(pid, signal);
        }
    }
}

fn is_meant_for(info: &Info, program: Pid) -> bool {
    let signal = info.ssi_signo as libc::c_int;
    if info.ssi_code == libc::SI_KERNEL && TERMINAL.contains(&signal) {
        // Hang-up goes to the leader of the session alone, and that would be the program.
        let leads_session = getsid(None).is_ok_and(|session| session == getpid());
        return leads_session && [libc::SIGHUP, libc::SIGCONT].contains(&signal);
    }
    let sender = Pid::from_raw(info.ssi_pid as i32);
    // The program and its children mean their group when they signal us (`kill 0`).
    sender.is_none_or(|sender| sender != getpid() && !is_within(sender, program))
}

/// Whether a process is `ancestor` or a descendant of it, as far as that can still be seen.
fn is_within(mut process: Pid, ancestor: Pid) -> bool {
    // The tree changes while it is walked; a bound keeps that from mattering.
    for _ in 0..64 {
        if process == ancestor {
            return true;
        }
        match parent_of(process) {
            Some(parent) => process = parent,
            None => return false,
        }
    }
    false
}

fn parent_of(process: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).ok()?;
    // The name, in parentheses, may hold anything; the state and the parent follow the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    Pid::from_raw(rest.split_whitespace().nth(1)?.parse().ok()?)
}

/// Stops vswap as the program was stopped, so that the shell sees its job stop. Comes back when the
/// shell continues it.
pub fn stop_like(signal: libc::c_int) {
    // A SIGSTOP meant for the program alone is followed by a SIGCONT for it alone, which would
    // leave vswap stopped for ever. At a terminal the shell continues both.
    if signal == libc::SIGSTOP && !in_foreground() {
        return;
    }
    raise_default(signal);
}

fn in_foreground() -> bool {
    let terminal = std::fs::File::open("/dev/tty");
    terminal.is_ok_and(|terminal| {
        // SAFETY: plain integers.
        unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) == libc::getpgrp() }
    })
}

/// Dies by a signal, without a core dump: the program has left one if it should.
pub fn die_like(signal: libc::c_int) -> ! {
    // SAFETY: plain integers and a structure that is only read.
    unsafe {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
    }
    raise_default(signal);
    // The signal did not end us; say what a shell would have said.
    std::process::exit(128 + signal);
}

/// Raises a signal with its default disposition, and unblocked for the moment. Another one of its
/// kind, sent to vswap alone in the microseconds before it is blocked again, does not get to the
/// program; SIGSTOP would have no such gap, but shells tell these stops apart.
fn raise_default(signal: libc::c_int) {
    // SAFETY: sets and dispositions are valid and live across the calls; this process has one
    // thread, and no handlers.
    unsafe {
        let old = libc::signal(signal, libc::SIG_DFL);
        let mut one: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut one);
        libc::sigaddset(&raw mut one, signal);
        libc::raise(signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const one, std::ptr::null_mut());
        libc::sigprocmask(libc::SIG_BLOCK, &raw const one, std::ptr::null_mut());
        if old != libc::SIG_ERR {
            libc::signal(signal, old);
        }
    }
}
