//! Which calls are hooked, and what happens before and after them.

use core::sync::atomic::Ordering;

use linux_raw_sys::general as k;
use linux_raw_sys::ioctl::UFFDIO_REGISTER;
use vswap_pager::engine::{Phase, engine};
use vswap_pager::mapping::{self, Call};
use vswap_pager::{exclude, exec, fork, hook_stack, signals, start};

use crate::futex;

/// The old call for a plain child, where the machine has it.
#[cfg(target_arch = "x86_64")]
const FORK: u32 = k::__NR_fork;
#[cfg(not(target_arch = "x86_64"))]
const FORK: u32 = k::__NR_clone;

/// What a stub does after its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Next {
    /// Returns the result to the program.
    Return = 0,
    /// Makes the system call itself: its child, or its new thread, goes on elsewhere.
    Call = 1,
}

/// Puts the hooks into libc; those of signal calls only for inline faults.
pub fn install(inline: bool) {
    #[cfg(target_arch = "x86_64")]
    crate::patch::install(inline);
    if inline {
        signals::unblock();
    }
}

/// Called by a stub, on the program's stack.
pub fn on_call(call: Call, result: &mut isize) -> Next {
    match call.number as u32 {
        k::__NR_clone | k::__NR_clone3 | FORK => on_clone(call, result),
        k::__NR_execve => {
            *result = exec::on_exec(engine(), &call);
            Next::Return
        }
        k::__NR_ioctl => {
            if call.args[1] as u32 == UFFDIO_REGISTER {
                // SAFETY: the kernel is about to read this structure, which begins with a range.
                let mut range = unsafe { *(call.args[2] as *const [u64; 2]) };
                hook_stack::run(&mut range, |&mut [start, len]| {
                    exclude::own_userfaultfd(engine(), start as usize, len as usize);
                });
            }
            Next::Call
        }
        _ if futex::cannot_fault(&call) => {
            *result = futex::on_call(&call);
            Next::Return
        }
        _ if signals::is_signal_call(&call) && engine().inline.load(Ordering::Relaxed) => {
            *result = signals::on_call(engine(), call);
            if start::is_watch_wanted(engine()) && !signals::blocks_sigbus(signals::mask()) {
                hook_stack::run(&mut (), |()| start::watch_if_wanted(engine()));
            }
            Next::Return
        }
        // What else goes through libc's function `syscall`.
        _ if !mapping::is_mapping_call(&call) => Next::Call,
        _ => {
            *result = if start::is_simple(engine(), &call) {
                call.pass()
            } else {
                let mut work = (call, 0);
                hook_stack::run(&mut work, |work| work.1 = mapping::on_call(engine(), work.0));
                work.1
            };
            Next::Return
        }
    }
}

fn on_clone(call: Call, result: &mut isize) -> Next {
    let Some(new) = NewTask::read(&call) else { return Next::Call };
    if new.flags & u64::from(k::CLONE_VM) != 0 {
        if new.flags & u64::from(k::CLONE_THREAD) != 0 {
            let mut new = new;
            hook_stack::run(&mut new, |new| {
                // Runtimes with threads of their own (Go) map memory past libc, where no hook
                // counts it. Inline faults would be refused here: libc blocks all signals, and
                // sets the mask back when the thread is made.
                if engine().inline.load(Ordering::Relaxed) {
                    start::want_to_watch();
                } else {
                    start::watch(engine());
                }
                exclude::new_thread(engine(), new.tls, new.stack, new.stack_size);
            });
        }
        return Next::Call;
    }
    // A child on a stack of its own cannot return through this frame. Where memory is paged it is
    // not covered, and does not get that memory.
    // Nor does a child need us where nothing is kept for it.
    let kept = matches!(engine().phase(), Phase::Active | Phase::Watching)
        || engine().inline.load(Ordering::Relaxed);
    if new.stack != 0 || !kept {
        return Next::Call;
    }
    let mut work = (call, 0);
    hook_stack::run(&mut work, |work| work.1 = fork::fork(engine(), work.0));
    *result = work.1;
    Next::Return
}

/// What a clone call asks for.
struct NewTask {
    flags: u64,
    stack: usize,
    stack_size: usize,
    tls: usize,
}

impl NewTask {
    fn read(call: &Call) -> Option<Self> {
        if call.number as u32 == FORK {
            return Some(Self { flags: 0, stack: 0, stack_size: 0, tls: 0 });
        }
        if call.number as u32 == k::__NR_clone {
            let [flags, stack, _, _, tls, _] = call.args;
            return Some(Self { flags: flags as u64, stack, stack_size: 0, tls });
        }
        let arguments = call.args[0] as *const k::clone_args;
        if arguments.is_null() || call.args[1] < size_of::<[u64; 8]>() {
            return None;
        }
        // SAFETY: the caller passes its arguments to the kernel through this pointer, and their
        // first version has eight fields.
        let [flags, _, _, _, _, stack, stack_size, tls] = unsafe { *arguments.cast::<[u64; 8]>() };
        Some(Self {
            flags,
            stack: stack as usize,
            stack_size: stack_size as usize,
            tls: tls as usize,
        })
    }
}
