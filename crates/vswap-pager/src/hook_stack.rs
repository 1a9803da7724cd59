//! Stacks for hooks. A program may call from a stack that is paged itself (a coroutine's); a hook
//! holds locks that the pager needs to serve a fault, so it must not fault, so it runs elsewhere.
//!
//! Below each stack lies a page without access: an overrun ends the program by SIGSEGV, which is
//! blocked, instead of changing what a neighbour does. Such a page costs a mapping, so it is made
//! when its stack is first used; most programs use one or two.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::arena::Arena;
use crate::lock;
use crate::sys::{arch, memory, task};

const STACKS: u32 = 32;
const STACK_BYTES: usize = 64 << 10;
/// A stack with the guard page below it.
const STRIDE: usize = STACK_BYTES + PAGE_SIZE;

static BASE: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicU64 = AtomicU64::new(0);
/// Stacks whose guard pages have been made.
static GUARDED: AtomicU64 = AtomicU64::new(0);
/// Signal masks of the callers, by stack.
static MASKS: [AtomicU64; STACKS as usize] = [const { AtomicU64::new(0) }; STACKS as usize];

/// Runs `hook(argument)` on a stack of the engine's, with all signals blocked.
pub fn run<T>(argument: &mut T, hook: fn(&mut T)) {
    let mask = task::set_signal_mask(task::ALL_SIGNALS);
    run_on_stack(argument, hook, mask);
    task::set_signal_mask(mask);
}

/// The same for a signal handler that runs with all signals blocked already.
pub fn run_in_handler<T>(argument: &mut T, hook: fn(&mut T)) {
    run_on_stack(argument, hook, task::ALL_SIGNALS);
}

fn run_on_stack<T>(argument: &mut T, hook: fn(&mut T), mask: u64) {
    let index = acquire();
    guard(index);
    MASKS[index as usize].store(mask, Ordering::Relaxed);
    let mut frame = Frame { argument, hook };
    let top = BASE.load(Ordering::Acquire) + (index as usize + 1) * STRIDE;
    // SAFETY: the stack was acquired, so it is ours, and 16-byte aligned.
    unsafe {
        arch::call_on_stack(top as *mut u8, trampoline::<T>, (&raw mut frame).cast());
    }
    USED.fetch_and(!(1 << index), Ordering::Release);
}

struct Frame<'a, T> {
    argument: &'a mut T,
    hook: fn(&mut T),
}

extern "C" fn trampoline<T>(frame: *mut u8) {
    // SAFETY: `run` passes a frame that lives across the call.
    let frame = unsafe { &mut *frame.cast::<Frame<'_, T>>() };
    (frame.hook)(frame.argument);
}

fn acquire() -> u32 {
    reserve();
    let mut spins = 0;
    loop {
        let used = USED.load(Ordering::Relaxed);
        let free = (!used).trailing_zeros();
        if free < STACKS {
            let taken = used | 1 << free;
            if USED.compare_exchange(used, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return free;
            }
        }
        lock::relax(spins);
        spins += 1;
    }
}

/// Makes the guard page of a stack that the caller has acquired.
fn guard(index: u32) {
    if GUARDED.load(Ordering::Relaxed) >> index & 1 != 0 {
        return;
    }
    let page = BASE.load(Ordering::Acquire) + index as usize * STRIDE;
    // SAFETY: the page is ours, and no stack reaches it unless it overruns.
    let made = unsafe { memory::protect(page, PAGE_SIZE, linux_raw_sys::general::PROT_NONE) };
    // A program at its limit of mappings goes on without, and it is tried again.
    if made.is_ok() {
        GUARDED.fetch_or(1 << index, Ordering::Relaxed);
    }
}

fn reserve() {
    if BASE.load(Ordering::Acquire) != 0 {
        return;
    }
    let len = STACKS as usize * STRIDE;
    let Some(memory) = Arena.reserve(len, PAGE_SIZE) else {
        // Not even the stacks fit: nothing of the engine will.
        task::exit_process(137)
    };
    let base = memory.as_ptr() as usize;
    if BASE.compare_exchange(0, base, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: the reservation was never published.
        unsafe { Arena.unreserve(memory, len) };
    }
}

/// The signal mask that the program had when it called; for hooks.
pub fn caller_signal_mask() -> Option<u64> {
    current().map(|index| MASKS[index].load(Ordering::Relaxed))
}

/// The stack that the caller runs on.
fn current() -> Option<usize> {
    let here = 0u8;
    let base = BASE.load(Ordering::Relaxed);
    let index = (core::ptr::from_ref(&here) as usize).wrapping_sub(base) / STRIDE;
    (index < STACKS as usize).then_some(index)
}

/// In the child of a fork only the caller's stack is in use.
pub fn reset_after_fork() {
    USED.store(current().map_or(0, |index| 1 << index), Ordering::Release);
}

#[cfg(test)]
mod tests {
    use linux_raw_sys::general as k;

    use super::*;
    use crate::syscall;

    const SIGCHLD: u32 = 17;
    const SIGSEGV: i32 = 11;

    /// Goes on until the stack has been used down to an address.
    #[inline(never)]
    fn dig(floor: usize) -> u8 {
        let frame = core::hint::black_box([1u8; 256]);
        let below = if frame.as_ptr() as usize > floor { dig(floor) } else { 0 };
        frame[floor % 256] ^ below
    }

    /// How a child ends in which a hook inside another one, so on the second stack, uses `bytes`.
    fn end_of_child_using(mut bytes: usize) -> i32 {
        // The stacks are reserved under a lock that another thread could hold just when the child is made.
        run(&mut bytes, |_| ());
        // SAFETY: the child takes no lock that another thread could have held, and ends here.
        let child = unsafe { syscall!(k::__NR_clone, SIGCHLD, 0, 0, 0, 0) };
        if child == 0 {
            run(&mut bytes, |bytes| {
                run(bytes, |bytes| {
                    let top = BASE.load(Ordering::Relaxed) + 2 * STRIDE;
                    core::hint::black_box(dig(top - *bytes));
                });
            });
            task::exit_process(0);
        }
        let mut status = -1;
        // SAFETY: the word lives across the call.
        unsafe { syscall!(k::__NR_wait4, child, &raw mut status, 0, 0) };
        status
    }

    #[test]
    fn an_overrun_dies_before_it_reaches_a_neighbour() {
        assert_eq!(end_of_child_using(STACK_BYTES - PAGE_SIZE), 0);
        // Not so far that it would die of what it overwrites.
        assert_eq!(end_of_child_using(STACK_BYTES + PAGE_SIZE / 2) & 0x7f, SIGSEGV);
    }
}
