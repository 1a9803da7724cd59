//! Stacks for hooks. A program may call from a stack that is paged itself (a coroutine's); a hook
//! holds locks that the pager needs to serve a fault, so it must not fault, so it runs elsewhere.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::arena::Arena;
use crate::lock;
use crate::sys::{arch, task};

const STACKS: u32 = 32;
const STACK_BYTES: usize = 64 << 10;
/// A page without access would cost a mapping each; a gap that is never touched does as well,
/// since a hook's frames are small and bounded.
const STRIDE: usize = STACK_BYTES;

static BASE: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicU64 = AtomicU64::new(0);
/// Signal masks of the callers, by stack.
static MASKS: [AtomicU64; STACKS as usize] = [const { AtomicU64::new(0) }; STACKS as usize];

/// Runs `hook(argument)` on a stack of the engine's, with all signals blocked.
pub fn run<T>(argument: &mut T, hook: fn(&mut T)) {
    let mask = task::set_signal_mask(task::ALL_SIGNALS);
    let index = acquire();
    MASKS[index as usize].store(mask, Ordering::Relaxed);
    let mut frame = Frame { argument, hook };
    let top = BASE.load(Ordering::Acquire) + (index as usize + 1) * STRIDE;
    // SAFETY: the stack was acquired, so it is ours, and 16-byte aligned.
    unsafe {
        arch::call_on_stack(top as *mut u8, trampoline::<T>, (&raw mut frame).cast());
    }
    USED.fetch_and(!(1 << index), Ordering::Release);
    task::set_signal_mask(mask);
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
