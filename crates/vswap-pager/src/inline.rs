//! Inline faults: the faulting thread resolves its own, in a SIGBUS handler.
//!
//! Fastest, since nobody is woken; but a system call on a swapped-out buffer returns EFAULT, so it
//! is for callers that ask. Stacks and control blocks are never covered: the signal frame needs
//! them. What the program itself does with SIGBUS goes on, by way of [`signals`].

use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as k;

use crate::address::{PageNumber, PageRange};
use crate::adopt::{self, Known};
use crate::context::Context;
use crate::engine::{Engine, Phase, Side, engine};
use crate::fault::{Access, Served};
use crate::hook_stack;
use crate::mailbox::Request;
use crate::mapping;
use crate::reclaim::Progress;
use crate::rendezvous;
use crate::run_page::Counter;
use crate::signals::{self, Action, SIGBUS};
use crate::sys::{arch, task};

/// Steps of reclaim that a faulting thread makes itself.
const OWN_STEPS: usize = 64;
/// The longest wait for others of the run to give way.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Looks for the mapping of a page before its fault is somebody else's: while other threads map and
/// unmap, one that is there can be missing from what is read.
const LOOKS: u32 = 2;

/// Why faults cannot be resolved inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The calling thread blocks it, in a way that no hook saw.
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
    if signals::blocks_sigbus(mask) {
        return Err(Refused::Blocked);
    }
    // No SA_ONSTACK: an alternate stack may be too small for one more frame, and stacks are not
    // paged.
    let ours = Action {
        handler: on_sigbus as *const () as usize,
        flags: u64::from(k::SA_SIGINFO | arch::SA_RESTORER),
        restorer: arch::signal_restorer(),
        mask: u64::MAX,
    };
    signals::take_over(&ours).map_err(|_| Refused::Kernel)
}

/// The `si_code` of a fault that userfaultfd turned into a signal.
const BUS_ADRERR: i32 = 2;

/// The page of the last fault of any thread.
static LAST_PAGE: AtomicUsize = AtomicUsize::new(0);

struct Fault {
    page: PageNumber,
    access: Access,
    ours: bool,
}

type Handler = extern "C" fn(i32, *const k::siginfo_t, *mut u8);

extern "C" fn on_sigbus(signal: i32, info: *const k::siginfo_t, context: *mut u8) {
    // SAFETY: the kernel passes a valid siginfo; the address is read only where it was filled in.
    let (code, address) = unsafe {
        let info = &(*info).__bindgen_anon_1.__bindgen_anon_1;
        (info.si_code, info._sifields._sigfault._addr)
    };
    // SAFETY: the context is what the kernel passed.
    let access = Access::from_write(unsafe { arch::fault_was_write(context) });
    let page = PageNumber::containing(address as usize);
    let mut fault = Fault { page, access, ours: false };
    if code == BUS_ADRERR {
        hook_stack::run_in_handler(&mut fault, resolve);
    }
    if !fault.ours {
        deliver(code, signal, info, context);
    }
}

/// Does what the program's own action for SIGBUS says, as the kernel would have.
fn deliver(code: i32, signal: i32, info: *const k::siginfo_t, context: *mut u8) {
    let action = signals::action_for_delivery();
    let sent = code <= 0;
    match action.handler {
        Action::IGNORE if sent => {}
        Action::DEFAULT | Action::IGNORE => {
            signals::give_up();
            if sent {
                // It is blocked until this handler returns.
                task::signal_thread(task::process_id(), task::thread_id(), SIGBUS as u32);
            }
            // Otherwise the access is repeated, and ends the program where it is.
        }
        handler => {
            // SAFETY: the context is what the kernel passed.
            let before = unsafe { *context.add(arch::CONTEXT_MASK_OFFSET).cast::<u64>() };
            task::set_signal_mask(action.mask_during(before));
            // SAFETY: the program gave this address as that of its handler; one that asked for no
            // siginfo does not look at the other arguments.
            let handler = unsafe { core::mem::transmute::<usize, Handler>(handler) };
            // Nothing is held here: the handler may leave by siglongjmp.
            handler(signal, info, context);
        }
    }
}

fn resolve(fault: &mut Fault) {
    let engine = engine();
    if engine.phase() != Phase::Active {
        return;
    }
    let started = arch::ticks();
    let thread = arch::thread_pointer();
    rendezvous::pass(thread);
    engine.move_out_ahead(Side::Program, || rendezvous::gather(thread));
    make_room(engine, thread);
    let mut unknown = 0;
    fault.ours = loop {
        let served = with_context(engine, |context| {
            let served = engine.with_uffd(Side::Program, |uffd| {
                engine.serve(context, uffd, fault.page, fault.access)
            });
            context.returned.flush();
            served
        });
        match served {
            Some(Served::Done) => break !is_poisoned(engine, fault.page),
            // Perhaps a mapping grew in place by a raw trap: then it is registered.
            Some(Served::Unknown) => match adopt::mapping_of(engine, fault.page) {
                Known::Yes => {}
                Known::No if unknown == LOOKS => break false,
                Known::No => unknown += 1,
                Known::NotYet => task::yield_now(),
            },
            // The pager applies the events that are pending.
            Some(Served::Retry) | None => task::yield_now(),
        }
    };
    // A page that faults again at once was perhaps never filled: the program can close the
    // descriptor, and would fault for ever.
    if LAST_PAGE.swap(fault.page.0, Ordering::Relaxed) == fault.page.0
        && mapping::program_lost_uffd(engine)
    {
        let pages = PageRange { start: fault.page, end: fault.page };
        engine.registrar.ask(Request::Stranded, pages);
    }
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

fn with_context<T>(engine: &Engine, call: impl FnOnce(&mut Context) -> T) -> Option<T> {
    let mut context = engine.contexts.borrow().ok()?;
    context.as_mut().map(call)
}

/// Reclaims until there is room for a page.
fn make_room(engine: &Engine, thread: usize) {
    if engine.budget.free() >= engine.budget.min_watermark() {
        return;
    }
    let started = task::now_ns();
    for _ in 0..OWN_STEPS {
        engine.count(Counter::DirectReclaim, 1);
        let gather = || rendezvous::gather(thread);
        let gets_on = engine.wait_for_reclaimer()
            || with_context(engine, |context| engine.reclaim_step(context, Side::Program, gather))
                == Some(Progress::Some);
        rendezvous::pass(thread);
        if !gets_on || engine.budget.free() >= engine.budget.min_watermark() {
            break;
        }
    }
    wait_for_room(engine);
    engine.count(Counter::StallNs, task::now_ns() - started);
}

/// The reclaimer takes harder measures; it also is who ends the program when nothing helps.
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
        engine.relief.wait();
    }
    engine.starved.fetch_sub(1, Ordering::Relaxed);
}
