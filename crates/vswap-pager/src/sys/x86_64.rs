//! What differs on x86-64: the system call instruction, and starting a thread on a new stack.

use core::arch::asm;

/// A raw system call.
///
/// # Safety
/// As for the system call `number`.
#[inline]
pub unsafe fn syscall(number: usize, args: [usize; 6]) -> isize {
    let value;
    // SAFETY: the caller vouches for the call; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => value,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
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
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") linux_raw_sys::general::__NR_clone as isize => value,
            in("rdi") flags,
            in("rsi") stack_top,
            in("rdx") 0,
            in("r10") 0,
            in("r8") tls,
            in("r12") entry,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
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
    // SAFETY: rsp is kept in a callee-saved register, and everything that the C convention lets
    // the callee change is declared.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {stack}",
            "call {function}",
            "mov rsp, r12",
            stack = in(reg) stack_top,
            function = in(reg) function,
            in("rdi") argument,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}

/// Address of the calling thread's control block.
pub fn thread_pointer() -> usize {
    let value;
    // SAFETY: on x86-64 the first word of the control block is its own address; reading it has no
    // side effect.
    unsafe { asm!("mov {}, fs:0", out(reg) value, options(nostack, readonly, preserves_flags)) };
    value
}

/// Ticks of the constant-rate counter; their length is found by comparing with a clock.
pub fn ticks() -> u64 {
    // SAFETY: reading the counter has no side effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The kernel wants to be told how a signal handler returns.
pub const SA_RESTORER: u32 = 0x0400_0000;

/// Where a signal handler's context holds the mask of the interrupted thread.
pub const CONTEXT_MASK_OFFSET: usize = 296;

/// Whether the access that a signal is about was a write: bit 1 of the page fault's error code, the
/// twentieth of the registers behind 40 bytes of the context.
///
/// # Safety
/// `context` must be what the kernel gave to a handler of SIGBUS or SIGSEGV.
pub unsafe fn fault_was_write(context: *const u8) -> bool {
    const ERROR_CODE_OFFSET: usize = 40 + 19 * 8;
    // SAFETY: the context of a handler is larger than this, and aligned.
    unsafe { *context.add(ERROR_CODE_OFFSET).cast::<u64>() & 2 != 0 }
}

/// Address of the code that returns from a signal handler.
pub fn signal_restorer() -> usize {
    restore as *const () as usize
}

#[unsafe(naked)]
extern "C" fn restore() {
    core::arch::naked_asm!("mov eax, {}", "syscall", const linux_raw_sys::general::__NR_rt_sigreturn)
}
