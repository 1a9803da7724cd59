//! What differs on AArch64: the system call instruction, and starting a thread on a new stack.

use core::arch::asm;

/// A raw system call.
///
/// # Safety
/// As for the system call `number`.
#[inline]
pub unsafe fn syscall(number: usize, args: [usize; 6]) -> isize {
    let value;
    // SAFETY: the caller vouches for the call; the kernel changes x0 only.
    unsafe {
        asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") args[0] as isize => value,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack),
        );
    }
    value
}

/// Starts a task that shares this memory and runs `entry(argument)` on the stack that ends at
/// `stack_top`, with its TLS register at `tls`. Returns its ID, or a negated error number.
///
/// # Safety
/// `flags` must hold CLONE_VM and CLONE_SETTLS; the stack must be large enough and used by nobody
/// else; `tls` must stay valid; `entry` must never return.
pub unsafe fn clone_task(
    flags: usize,
    stack_top: *mut u8,
    tls: *mut u8,
    entry: extern "C" fn(usize) -> !,
    argument: usize,
) -> isize {
    let value: isize;
    // SAFETY: the parent falls through with all registers intact. The child has its own stack and
    // goes to `entry`, which never returns, so no frame of this function is used by both.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk #1",
            "2:",
            in("x8") linux_raw_sys::general::__NR_clone as usize,
            inlateout("x0") flags as isize => value,
            in("x1") stack_top,
            in("x2") 0,
            in("x3") tls,
            in("x4") 0,
            in("x20") entry,
            in("x21") argument,
        );
    }
    value
}

/// Calls `function(argument)` on the stack that ends at `stack_top`.
///
/// # Safety
/// The stack must be large enough and used by nobody else until this returns.
pub unsafe fn call_on_stack(
    stack_top: *mut u8,
    function: extern "C" fn(*mut u8),
    argument: *mut u8,
) {
    // SAFETY: sp is kept in a callee-saved register, and everything that the C convention lets
    // the callee change is declared.
    unsafe {
        asm!(
            "mov x20, sp",
            "mov sp, {stack}",
            "blr {function}",
            "mov sp, x20",
            stack = in(reg) stack_top,
            function = in(reg) function,
            in("x0") argument,
            out("x20") _,
            clobber_abi("C"),
        );
    }
}

/// Address of the calling thread's control block.
pub fn thread_pointer() -> usize {
    let value;
    // SAFETY: reading the TLS register has no side effect.
    unsafe { asm!("mrs {}, tpidr_el0", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

/// Ticks of the constant-rate counter; their length is found by comparing with a clock.
pub fn ticks() -> u64 {
    let value;
    // SAFETY: reading the counter has no side effect.
    unsafe { asm!("mrs {}, cntvct_el0", out(reg) value, options(nostack, nomem, preserves_flags)) };
    value
}

/// The kernel returns from signal handlers through its own vDSO.
pub const SA_RESTORER: u32 = 0;

/// Where a signal handler's context holds the mask of the interrupted thread.
pub const CONTEXT_MASK_OFFSET: usize = 40;

/// Whether the access that a signal is about is known to be a write: never, since the context has
/// the syndrome only in an optional record.
///
/// # Safety
/// None is needed on this machine.
pub unsafe fn fault_was_write(_context: *const u8) -> bool {
    false
}

/// Not used on this machine.
pub fn signal_restorer() -> usize {
    0
}
