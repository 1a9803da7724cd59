//! Compaction of swap devices while programs run.
//!
//! Only whole extents go back to the run and to the file system, and what a fork left behind is of no use
//! until all of an extent is free. So when a quarter of the extents of a device would not be needed,
//! the reclaimer empties those: it walks the descriptors, and no page table is touched. A pass that
//! is done leaves the device dense, so the next one is as far away as that quarter.
//!
//! It takes a fifth of the reclaimer's time while the program faults, and half while it does not.

use core::sync::atomic::{AtomicU64, Ordering};

use vswap_core::Cursor;
use vswap_core::device::space::Fragmentation;

use crate::context::Context;
use crate::engine::Engine;
use crate::lock::SpinLock;
use crate::run_page::Counter;
use crate::swap::{Refusal, SWAP_DEVICES, SwapDevice};
use crate::sys::task;

/// Part of the extents that would not be needed when a pass begins.
const SURPLUS_PART: u32 = 4;

/// Bytes that are moved before the reclaimer looks at what else there is to do.
const STEP_BYTES: usize = 128 << 10;

/// Entries that are looked at meanwhile.
const STEP_LOOKS: usize = 16 << 10;

/// Between two looks at how fragmented devices are.
const LOOK_NS: u64 = 1_000_000_000;

/// After a pass that left as much as there was.
const VAIN_NS: u64 = 30_000_000_000;

/// With no fault for this long nobody waits for the device.
const QUIET_NS: u64 = 20_000_000;

/// Rests between two steps, in times that the step took.
const RESTS: u64 = 4;
const RESTS_WHILE_QUIET: u64 = 1;

/// Nothing is moved before this moment.
static DUE_NS: AtomicU64 = AtomicU64::new(0);

static STATE: SpinLock<State> = SpinLock::new(State::START);

#[derive(Clone, Copy, Debug)]
struct State {
    pass: Option<Pass>,
    /// The device that is looked at next.
    next: usize,
    faults: u64,
    faulted_ns: u64,
}

impl State {
    const START: Self = Self { pass: None, next: 0, faults: 0, faulted_ns: 0 };
}

/// A walk over the descriptors.
#[derive(Clone, Copy, Debug)]
struct Pass {
    number: usize,
    cursor: Cursor,
}

/// In the child of a fork, whose devices forget what was chosen when they are sealed.
pub fn reset_after_fork() {
    STATE.reset_after_fork();
    *STATE.lock() = State::START;
    DUE_NS.store(0, Ordering::Relaxed);
}

/// Milliseconds until there is something to do, at most `limit`.
pub fn due_in_ms(limit: i64) -> i64 {
    let left = DUE_NS.load(Ordering::Relaxed).saturating_sub(task::now_ns());
    if STATE.lock().pass.is_some() { limit.min((left / 1_000_000) as i64 + 1) } else { limit }
}

/// Looks whether a device is to be compacted, or goes on with that for a while. On the reclaimer.
pub fn step(engine: &Engine, context: &mut Context) {
    let now = task::now_ns();
    if now < DUE_NS.load(Ordering::Relaxed) {
        return;
    }
    let mut state = *STATE.lock();
    let rest = match state.pass {
        None => begin(&mut state),
        Some(pass) => {
            state.pass = go_on(engine, context, pass);
            state.rest(engine, pass, task::now_ns() - now)
        }
    };
    DUE_NS.store(task::now_ns() + rest, Ordering::Relaxed);
    *STATE.lock() = state;
}

impl State {
    /// How long nothing is done after a step that took so long.
    fn rest(&mut self, engine: &Engine, pass: Pass, took: u64) -> u64 {
        let is_vain = |device: &SwapDevice| is_worth_a_pass(device.fragmentation());
        if self.pass.is_none() && SWAP_DEVICES.get(pass.number).is_some_and(is_vain) {
            VAIN_NS
        } else if self.is_quiet(engine) {
            took * RESTS_WHILE_QUIET
        } else {
            took * RESTS
        }
    }

    fn is_quiet(&mut self, engine: &Engine) -> bool {
        let (faults, now) = (engine.counted(Counter::Faults), task::now_ns());
        if faults != self.faults {
            (self.faults, self.faulted_ns) = (faults, now);
        }
        now - self.faulted_ns > QUIET_NS
    }
}

fn is_worth_a_pass(found: Fragmentation) -> bool {
    found.surplus > 0 && found.surplus * SURPLUS_PART >= found.extents
}

/// Whether objects of a device may move.
fn is_usable(device: &SwapDevice) -> bool {
    device.is_attached()
        && !device.is_draining()
        && !matches!(device.refusal(), Some(Refusal::Failed(_)))
}

/// Begins a pass on the first device that needs one. Gives the time to rest.
fn begin(state: &mut State) -> u64 {
    let first = state.next;
    let mut devices = SWAP_DEVICES.all().filter(|(_, device)| is_usable(device));
    let found = devices
        .find(|(number, device)| *number >= first && is_worth_a_pass(device.fragmentation()));
    let Some((number, device)) = found else {
        state.next = 0;
        return LOOK_NS;
    };
    state.next = number + 1;
    if device.begin_compaction().objects > 0 {
        state.pass = Some(Pass { number, cursor: Cursor::START });
    }
    0
}

/// Moves some objects; gives where the pass goes on.
fn go_on(engine: &Engine, context: &mut Context, pass: Pass) -> Option<Pass> {
    let device = SWAP_DEVICES.get(pass.number)?;
    let _passage = engine.gate.pass();
    if !is_usable(device) || !device.is_compacting() {
        device.end_compaction();
        return None;
    }
    let (worker, window) = context.worker_and_window();
    let buffer = &mut window[..STEP_BYTES];
    let moving = (device.backing(), device as _);
    let done = engine.space.relocate(worker, moving, pass.cursor, STEP_LOOKS, buffer);
    let next = done.ok().filter(|done| done.refused.is_none()).and_then(|done| done.next);
    if next.is_none() {
        device.end_compaction();
    }
    next.map(|cursor| Pass { cursor, ..pass })
}
