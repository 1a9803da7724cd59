//! What needs a process of its own: forks, and system-call filters.

extern crate std;

use std::eprintln;

use linux_raw_sys::general as k;

use super::*;
use crate::sys::{self, io_uring, task};
use crate::syscall;

/// Runs `child` in a forked process, which may make system calls only; whether it said yes.
fn in_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child makes system calls and touches memory of its own, and never returns.
    let pid = sys::result(unsafe { syscall!(k::__NR_clone, k::SIGCHLD, 0, 0, 0, 0) }).unwrap();
    if pid == 0 {
        task::exit_process(i32::from(!child()));
    }
    let mut status = 0i32;
    // SAFETY: the status lives across the call.
    let waited = unsafe { syscall!(k::__NR_wait4, pid, &raw mut status, 0, 0) };
    assert_eq!(waited as usize, pid);
    status == 0
}

#[test]
fn a_child_makes_its_own_ring() {
    let place = &Place::all()[0];
    place.file.set_len(LEN).unwrap();
    let pool = buffers();
    let mut io = ThreadIo::new(pool, Choice::Ring, TIMEOUT_NS);
    if !io.start() {
        eprintln!("skipped: no io_uring here");
        return;
    }
    let device = place.device();
    let mut request = [Request::new(&device, 0, filled(pool, 0, PAGE))];
    io.write_many(&mut request);
    let expected = pattern(0, PAGE);
    let mut out = [0; PAGE];
    assert!(in_child(|| {
        pool.reset_after_fork();
        io.reset_after_fork();
        // The parent's contents are not here, and its ring's memory neither.
        let wiped = pool.take(PAGE).is_some_and(|buffer| buffer.iter().all(|&byte| byte == 0));
        let read = io.read(&device, 0, &mut out).is_ok();
        wiped && read && out[..] == expected[..] && io.can_time_out()
    }));
    // The parent's is as it was.
    assert!(request[0].bytes().unwrap() == pattern(0, PAGE));
    io.read(&device, 0, &mut out).unwrap();
    assert!(out[..] == pattern(0, PAGE));
}

#[repr(C)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    operand: u32,
}

#[repr(C)]
struct Program {
    len: u16,
    code: *const Instruction,
}

const RET_KILL: u32 = 0x8000_0000;
const RET_EPERM: u32 = 0x0005_0000 | 1;
const RET_ALLOW: u32 = 0x7fff_0000;

/// Lets io_uring_setup end as `action` says, for this process.
fn filter_ring_setup(action: u32) -> bool {
    let instruction =
        |code, jump_false, operand| Instruction { code, jump_true: 0, jump_false, operand };
    let code = [
        // Load the number of the call; compare; return.
        instruction(0x20, 0, 0),
        instruction(0x15, 1, k::__NR_io_uring_setup),
        instruction(0x06, 0, action),
        instruction(0x06, 0, RET_ALLOW),
    ];
    let program = Program { len: code.len() as u16, code: code.as_ptr() };
    let (no_new_privileges, set_seccomp, filter) =
        (linux_raw_sys::prctl::PR_SET_NO_NEW_PRIVS, linux_raw_sys::prctl::PR_SET_SECCOMP, 2);
    // SAFETY: the program lives across the calls.
    unsafe {
        syscall!(k::__NR_prctl, no_new_privileges, 1, 0, 0, 0) == 0
            && syscall!(k::__NR_prctl, set_seccomp, filter, &raw const program) == 0
    }
}

#[test]
fn where_io_uring_is_refused_the_plain_engine_is_taken() {
    let place = &Place::all()[0];
    let (pool, device) = (buffers(), place.device());
    for action in [RET_EPERM, RET_KILL] {
        assert!(in_child(|| {
            let filtered = filter_ring_setup(action) && io_uring::calls_are_filtered();
            let mut io = ThreadIo::new(pool, Choice::Best, TIMEOUT_NS);
            let read = io.read(&device, 0, &mut [0; PAGE]).is_ok();
            filtered && read && !io.can_time_out()
        }));
    }
    assert!(in_child(|| {
        let filtered = filter_ring_setup(RET_EPERM);
        let mut io = ThreadIo::new(pool, Choice::Ring, TIMEOUT_NS);
        let refused = io.read(&device, 0, &mut [0; PAGE]);
        filtered && refused == Err(IoError::Failed(Errno::EPERM))
    }));
}

#[test]
fn where_nothing_is_refused_the_ring_is_taken() {
    let possible = RingIo::new(buffers(), TIMEOUT_NS).is_ok() && !io_uring::calls_are_filtered();
    assert_eq!(ThreadIo::new(buffers(), Choice::Best, TIMEOUT_NS).start(), possible);
    assert!(!ThreadIo::new(buffers(), Choice::Plain, TIMEOUT_NS).start());
}
