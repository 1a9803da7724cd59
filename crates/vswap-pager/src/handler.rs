//! Handlers: threads of the pager that serve faults.
//!
//! Waking an idle CPU costs tens of microseconds, so a handler follows the thread that faults and
//! runs on its CPU: the faulting thread goes to sleep there just as the handler wakes.

use core::sync::atomic::Ordering;

use vswap_core::page::PAGE_SIZE;

use crate::context::Context;
use crate::credentials::FOLLOWED;
use crate::engine::{Engine, Phase, Side, engine};
use crate::events::{self, FAULTS, Fault};
use crate::fault::Served;
use crate::pressure::Pressure;
use crate::run_page::Counter;
use crate::swap::SWAP_DEVICES;
use crate::sys::{arch, fd, task};
use crate::text::{self, Line};
use crate::{link, start};

/// Milliseconds after which a handler looks up from an idle wait.
const LOOK_UP_MS: i64 = 250;

/// A fault's thread is asked for its CPU once in so many faults.
const FOLLOW_ONE_IN: u32 = 32;

/// Tries before a fault that keeps meeting mapping events gives way to others.
const TRIES: usize = 64;

/// Number of handlers.
pub fn count() -> usize {
    1
}

/// The body of a handler.
pub extern "C" fn main(index: usize) -> ! {
    let engine = engine();
    let mut context = engine.contexts.of_pager(index);
    let Ok(Some(context)) = context.as_deref_mut().map(Option::as_mut) else {
        link::die(engine, "no memory for a fault handler")
    };
    let mut handler = Handler { cpu: usize::MAX, faults: 0, credentials: 0 };
    loop {
        FOLLOWED.follow(&mut handler.credentials);
        let uffd = engine.pager_fds.uffd.load(Ordering::Relaxed);
        // A poll that fails has nothing to say that the read does not say too.
        if !matches!(fd::wait_readable([uffd], LOOK_UP_MS), Ok([true])) {
            context.idle();
            SWAP_DEVICES.settle();
        }
        events::drain(engine, &mut engine.lock_maps(), Side::Pager);
        serve_queue(engine, context, Some(&mut handler));
    }
}

/// Serves what has been read and not served yet. Without a `handler` the caller is the reclaimer,
/// which cannot wait for itself.
pub fn serve_queue(engine: &Engine, context: &mut Context, mut handler: Option<&mut Handler>) {
    while let Some(fault) = FAULTS.pop() {
        let started = arch::ticks();
        let in_reclaimer = handler.is_none();
        if let Some(handler) = handler.as_deref_mut() {
            handler.follow(engine, fault);
            engine.move_out_ahead(Side::Pager, || Some(()));
        }
        // While the program is only watched, there is nothing to reclaim.
        if engine.phase() == Phase::Active {
            make_room(engine, context, in_reclaimer);
        }
        serve(engine, context, fault);
        engine.count(Counter::Faults, 1);
        engine.count(Counter::FaultNs, watcher_ns(arch::ticks().wrapping_sub(started)));
    }
}

fn watcher_ns(ticks: u64) -> u64 {
    crate::watcher::ticks_to_ns(ticks)
}

fn serve(engine: &Engine, context: &mut Context, fault: Fault) {
    for _ in 0..TRIES {
        match engine
            .with_uffd(Side::Pager, |uffd| engine.serve(context, uffd, fault.page, fault.access))
        {
            Served::Done => return,
            Served::Unknown => return start::adopt_unknown(engine, fault.page.address()),
            Served::Retry => {
                let applied = events::drain(engine, &mut engine.lock_maps(), Side::Pager);
                if applied == 0 {
                    task::yield_now();
                }
            }
        }
    }
    // The thread faults again, behind all others.
    engine.with_uffd(Side::Pager, |uffd| uffd.wake(fault.page.address(), PAGE_SIZE));
}

/// Wakes the reclaimer when little is free.
pub fn ring_if_low(engine: &Engine) {
    if engine.budget.free() < engine.budget.low_watermark() {
        engine.mailbox.ring();
    }
}

/// Reclaims until there is room for a page: the budget holds, however fast the program allocates.
fn make_room(engine: &Engine, context: &mut Context, in_reclaimer: bool) {
    if engine.budget.free() >= engine.budget.min_watermark() {
        return;
    }
    engine.mailbox.ring();
    let started = task::now_ns();
    let mut pressure = Pressure::new();
    while engine.budget.free() < engine.budget.min_watermark() {
        engine.count(Counter::DirectReclaim, 1);
        if !in_reclaimer && engine.wait_for_reclaimer() {
            continue;
        }
        if !pressure.step(engine, context) {
            break;
        }
    }
    engine.count(Counter::StallNs, task::now_ns() - started);
}

/// Where a handler runs.
#[derive(Debug)]
pub struct Handler {
    cpu: usize,
    faults: u32,
    credentials: u32,
}

impl Handler {
    fn follow(&mut self, engine: &Engine, fault: Fault) {
        self.faults = self.faults.wrapping_add(1);
        if fault.thread == 0 || self.faults % FOLLOW_ONE_IN != 1 {
            return;
        }
        if let Some(cpu) = cpu_of(engine.program.load(Ordering::Relaxed), fault.thread)
            && cpu != self.cpu
        {
            task::run_on_cpu(cpu);
            self.cpu = cpu;
        }
    }
}

/// CPU that a thread last ran on: field 39 of its stat file, proc(5).
fn cpu_of(process: u32, thread: u32) -> Option<usize> {
    const FIELDS_BEHIND_NAME: usize = 36;
    let mut path = Line::<48>::format(format_args!("/proc/{process}/task/{thread}/stat"));
    let file = fd::open(path.as_c_str(), linux_raw_sys::general::O_RDONLY).ok()?;
    let mut buffer = [0; 512];
    let len = fd::read(file.raw(), &mut buffer).ok()?;
    // The name may hold anything, but it is the last thing in parentheses.
    let name_end = buffer[..len].iter().rposition(|&byte| byte == b')')?;
    let field = buffer[name_end..len].split(|&byte| byte == b' ').nth(FIELDS_BEHIND_NAME + 1)?;
    text::number(field).map(|(cpu, _)| cpu as usize)
}
