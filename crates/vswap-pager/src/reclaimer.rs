//! The reclaimer: a thread of the pager that keeps memory free ahead of need, and does what the
//! program's threads ask for.

use core::sync::atomic::Ordering;

use crate::address::{LEAF_PAGES, PageRange};
use crate::cold;
use crate::context::{Context, RECLAIMER_CONTEXT};
use crate::credentials::FOLLOWED;
use crate::engine::{Engine, Phase, Side, engine};
use crate::fault::Access;
use crate::handler;
use crate::link;
use crate::mailbox::Request;
use crate::pressure::Pressure;
use crate::proactive::{self, Proactive};
use crate::reclaim::{Progress, Take};
use crate::run_page::Counter;
use crate::swap::{SWAP_DEVICES, compaction, draining, idle_age, tiers, writeback};
use crate::swap_in::{self, SwapIn};
use crate::sys::task;
use crate::table::PageState;

/// Milliseconds after which the reclaimer looks up from its sleep.
const LOOK_UP_MS: i64 = 250;

/// Steps of reclaim between two looks at what else there is to do.
pub const STEPS_MAX: usize = 256;

/// Without a fault for this long, the reclaimer leaves its CPU.
const LINGERING_NS: u64 = 100_000;

/// A yield that takes longer has let somebody else run.
const YIELDED_NS: u64 = 10_000;

/// Without a fault for this long, nobody but the reclaimer moves pages.
const FAULT_PAUSE_NS: u64 = 5_000_000;

/// A pool below this size is not worth compacting, in bytes.
const SPARSE_MIN: usize = 4 << 20;

/// Bytes that compaction moves at a time.
const CONDENSED_AT_ONCE: usize = 256 << 10;

/// The body of the thread.
pub extern "C" fn main(_argument: usize) -> ! {
    let engine = engine();
    let mut context = engine.contexts.of_pager(RECLAIMER_CONTEXT);
    let Ok(Some(context)) = context.as_deref_mut().map(Option::as_mut) else {
        link::die(engine, "no memory for reclaim")
    };
    let mut credentials = 0;
    let mut faults = FaultClock::default();
    let mut proactive = Proactive::default();
    let mut swap_in = SwapIn::default();
    loop {
        FOLLOWED.follow(&mut credentials);
        let bell = engine.mailbox.bell();
        if let Some((request, range)) = engine.mailbox.waiting() {
            match request {
                Request::PageOut => engine.move_out_range(context, range),
                _ => prefetch(engine, context, range),
            }
            engine.mailbox.done();
        }
        handler::serve_queue(engine, context, None);
        if engine.phase() == Phase::Active {
            reclaim(engine, context, &mut faults);
            proactive.reclaim(engine, context);
        }
        swap_in.advance(engine, context);
        condense(engine, context);
        draining::drop_kept(engine, context);
        tiers::step(engine, context);
        // A step of each: a program that keeps the pool full would hold up a swapoff for ever.
        let mut moved = writeback::write_back(engine, context);
        moved |= idle_age::write_back(engine, context);
        moved |= draining::step(engine, context);
        if moved {
            continue;
        }
        SWAP_DEVICES.settle();
        while engine.mailbox.waiting().is_none() && discard(engine) {}
        compaction::step(engine, context);
        while engine.mailbox.waiting().is_none()
            && engine.mailbox.bell() == bell
            && cold::recompress(engine, context)
        {}
        let idle = engine.mailbox.waiting().is_none()
            && proactive::requested(engine) == 0
            && !(engine.budget.is_held() && swap_in::is_wanted(engine));
        if idle && !linger(engine, bell) {
            context.idle();
            engine.mailbox.sleep(bell, compaction::due_in_ms(tiers::due_in_ms(LOOK_UP_MS)));
        }
    }
}

/// Stays on the CPU while faults come fast. Gives whether there is work.
///
/// The kernel wakes a thread on an idle CPU if there is one. With this CPU idle, a program that
/// faults would wander between it and the handler's, and each fault wake an idle CPU twice, 20 to
/// 50 µs a time in a guest.
fn linger(engine: &Engine, bell: u32) -> bool {
    if engine.inline.load(Ordering::Relaxed) {
        // Nobody is woken.
        return false;
    }
    let mut served = engine.counted(Counter::Faults);
    let mut since = task::now_ns();
    engine.mailbox.linger(bell, || {
        let before = task::now_ns();
        task::yield_now();
        let now = task::now_ns();
        let faults = engine.counted(Counter::Faults);
        if faults != served {
            (served, since) = (faults, now);
        }
        // A long yield: somebody else has use for the CPU.
        now - since < LINGERING_NS && now - before < YIELDED_NS
    })
}

/// When the last fault was seen.
#[derive(Default)]
struct FaultClock {
    served: u64,
    since_ns: u64,
}

impl FaultClock {
    /// Whether no fault has been served for a while.
    fn paused(&mut self, engine: &Engine) -> bool {
        let (served, now) = (engine.counted(Counter::Faults), task::now_ns());
        if served != self.served {
            *self = Self { served, since_ns: now };
        }
        now - self.since_ns > FAULT_PAUSE_NS
    }
}

/// Reclaims up to the high watermark, if less than the low one is free.
fn reclaim(engine: &Engine, context: &mut Context, faults: &mut FaultClock) {
    // Who serves a fault moves scattered batches; while no fault is served nobody else does.
    let take = if faults.paused(engine) { Take::Any } else { Take::Contiguous };
    if engine.budget.free() >= engine.budget.low_watermark() {
        return;
    }
    let started = task::thread_cpu_ns();
    let mut pressure = Pressure::new();
    for _ in 0..STEPS_MAX {
        let gets_on = if engine.starved.load(Ordering::Relaxed) > 0 {
            pressure.step(engine, context)
        } else {
            engine.reclaim_ahead(context, take) == Progress::Some
        };
        // Moving pages out reads what is pending, faults included.
        handler::serve_queue(engine, context, None);
        let enough = engine.budget.free() >= engine.budget.high_watermark();
        if enough || !gets_on || engine.mailbox.waiting().is_some() {
            break;
        }
    }
    engine.count(Counter::ReclaimNs, task::thread_cpu_ns() - started);
}

/// Compacts the pool while a good part of it holds nothing.
fn condense(engine: &Engine, context: &mut Context) {
    let passage = engine.gate.pass();
    let usage = engine.space.usage();
    if usage.pool_memory > SPARSE_MIN && usage.payload * 10 < usage.pool_memory * 9 {
        engine.compact_pool(context, CONDENSED_AT_ONCE);
    }
    drop(passage);
    engine.update_engine_bytes();
}

/// Gives freed space of the devices back; whether there is more.
fn discard(engine: &Engine) -> bool {
    let _passage = engine.gate.pass();
    SWAP_DEVICES.all().any(|(_, device)| device.discard())
}

/// Brings the swapped-out pages of a range back, as far as there is room.
fn prefetch(engine: &Engine, context: &mut Context, range: PageRange) {
    for part in range.by_leaf() {
        for page in part.iter() {
            if engine.budget.free() < engine.budget.low_watermark() {
                return context.returned.flush();
            }
            let swapped = engine.table.lock(page).is_some_and(|leaf| {
                matches!(leaf.state(page.0 % LEAF_PAGES), PageState::Swapped(_))
            });
            if swapped {
                engine
                    .with_uffd(Side::Pager, |uffd| engine.serve(context, uffd, page, Access::Read));
            }
        }
    }
    context.returned.flush();
}
