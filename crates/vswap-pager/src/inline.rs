//! Inline faults: the faulting thread resolves its own, in a SIGBUS handler.
//!
//! Fastest, since nobody is woken; but a system call on a swapped-out buffer returns EFAULT, so it
//! is for callers that ask. It is refused where the program handles or blocks SIGBUS itself. Stacks
//! and control blocks are never covered: the signal frame needs them.

use core::sync::atomic::Ordering;

use linux_raw_sys::general as k;

use crate::address::PageNumber;
use crate::engine::{Engine, Phase, engine};
use crate::fault::Served;
use crate::handler;
use crate::run_page::Counter;
use crate::sys::{arch, result, task};
use crate::{hook_stack, syscall};

const SIGBUS: usize = 7;
const SIGNAL_SET_BYTES: usize = 8;
const WAIT_US: u64 = 50;
/// The longest wait for others of the run to give way.
const PATIENCE_NS: u64 = 1_000_000_000;

/// The kernel's `struct sigaction` (x86-64 and AArch64).
#[repr(C)]
#[derive(Clone, Copy)]
struct SignalAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Why faults cannot be resolved inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The program has a handler.
    #[error("the program handles SIGBUS itself")]
    Handled,
    /// The calling thread blocks it.
    #[error("the program blocks SIGBUS")]
    Blocked,
    /// The kernel refuses the handler.
    #[error("SIGBUS cannot be handled")]
    Kernel,
}

/// Takes over SIGBUS. `mask` is the signal mask of the calling thread.
///
/// # Errors
/// [`Refused`].
pub fn install(mask: u64) -> Result<(), Refused> {
    if mask >> (SIGBUS - 1) & 1 != 0 {
        return Err(Refused::Blocked);
    }
    let mut current = SignalAction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    // No SA_ONSTACK: an alternate stack may be too small for one more frame, and stacks are not
    // paged.
    let ours = SignalAction {
        handler: on_sigbus as *const () as usize,
        flags: u64::from(k::SA_SIGINFO | arch::SA_RESTORER),
        restorer: arch::signal_restorer(),
        mask: u64::MAX,
    };
    // SAFETY: both structures live across the calls; the handler keeps to what a signal handler
    // may do.
    unsafe {
        let old = syscall!(k::__NR_rt_sigaction, SIGBUS, 0, &raw mut current, SIGNAL_SET_BYTES);
        result(old).map_err(|_| Refused::Kernel)?;
        // Ours is inherited by the child of a fork.
        if current.handler != 0 && current.handler != ours.handler {
            return Err(Refused::Handled);
        }
        let new = syscall!(k::__NR_rt_sigaction, SIGBUS, &raw const ours, 0, SIGNAL_SET_BYTES);
        result(new).map_err(|_| Refused::Kernel)?;
    }
    Ok(())
}

struct Fault {
    page: PageNumber,
    ours: bool,
}

extern "C" fn on_sigbus(_signal: i32, info: *const k::siginfo_t, _context: *mut u8) {
    // SAFETY: the kernel passes a valid siginfo; the address is what SIGBUS fills in.
    let address = unsafe { (*info).__bindgen_anon_1.__bindgen_anon_1._sifields._sigfault._addr };
    let mut fault = Fault { page: PageNumber::containing(address as usize), ours: false };
    hook_stack::run(&mut fault, resolve);
    if !fault.ours {
        // A fault of the program's own: without our handler it ends as it would have.
        let default = SignalAction { handler: 0, flags: 0, restorer: 0, mask: 0 };
        // SAFETY: the structure lives across the call; returning repeats the access.
        unsafe {
            syscall!(k::__NR_rt_sigaction, SIGBUS, &raw const default, 0, SIGNAL_SET_BYTES);
        }
    }
}

fn resolve(fault: &mut Fault) {
    let engine = engine();
    if engine.phase() != Phase::Active {
        return;
    }
    let started = arch::ticks();
    wait_for_room(engine);
    fault.ours = loop {
        let served = match engine.contexts.borrow() {
            Ok(mut context) => context.as_mut().map(|context| {
                let served =
                    engine.with_program_uffd(|uffd| engine.serve(context, uffd, fault.page));
                context.returned.flush();
                served
            }),
            Err(_) => None,
        };
        match served {
            Some(Served::Done) => break !is_poisoned(engine, fault.page),
            Some(Served::Unknown) => break false,
            // The pager applies the events that are pending.
            Some(Served::Retry) | None => task::yield_now(),
        }
    };
    handler::ring_if_low(engine);
    engine.count(Counter::Faults, 1);
    let ns = crate::watcher::ticks_to_ns(arch::ticks().wrapping_sub(started));
    engine.count(Counter::FaultNs, ns);
}

fn is_poisoned(engine: &Engine, page: PageNumber) -> bool {
    engine
        .table
        .lock(page)
        .is_some_and(|leaf| leaf.state(page.offset_in_leaf()) == crate::table::PageState::Poisoned)
}

/// The reclaimer makes room; it also is who ends the program when there is none to make.
fn wait_for_room(engine: &Engine) {
    if engine.budget.free() >= engine.budget.min_watermark() {
        return;
    }
    let started = task::now_ns();
    engine.starved.fetch_add(1, Ordering::Relaxed);
    while engine.budget.free() < engine.budget.min_watermark() {
        if engine.is_one_of_many() && task::now_ns() - started > PATIENCE_NS {
            break;
        }
        engine.mailbox.ring();
        task::sleep_us(WAIT_US);
    }
    engine.starved.fetch_sub(1, Ordering::Relaxed);
    engine.count(Counter::StallNs, task::now_ns() - started);
}
