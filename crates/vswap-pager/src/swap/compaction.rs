//! Compaction of swap devices while programs run.
//!
//! Only whole extents go back to the run and to the file system, and what a fork left behind is of no use
//! until all of an extent is free. So when a quarter of the extents of a device would not be needed,
//! the reclaimer empties those: it walks the descriptors, and no page table is touched. A pass that
//! is done leaves the device dense, so the next one is as far away as that quarter.
//!
//! It has a [share](crate::swap::share) of the reclaimer's time.

use core::sync::atomic::{AtomicU64, Ordering};

use vswap_core::Cursor;
use vswap_core::device::space::Fragmentation;

use crate::context::Context;
use crate::engine::Engine;
use crate::lock::SpinLock;
use crate::swap::share::Share;
use crate::swap::{Refusal, SWAP_DEVICES, SwapDevice};

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

/// Nothing is moved before this moment.
static DUE_NS: AtomicU64 = AtomicU64::new(0);

static STATE: SpinLock<State> = SpinLock::new(State::START);

#[derive(Clone, Copy, Debug)]
struct State {
    pass: Option<Pass>,
    /// The device that is looked at next.
    next: usize,
    share: Share,
}

impl State {
    const START: Self = Self { pass: None, next: 0, share: Share::START };
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
    let goes_on = STATE.lock().pass.is_some();
    if goes_on { Share::due_in_ms(&DUE_NS).min(limit) } else { limit }
}

/// Looks whether a device is to be compacted, or goes on with that for a while. On the reclaimer.
pub fn step(engine: &Engine, context: &mut Context) {
    if !Share::is_due(&DUE_NS) {
        return;
    }
    let began = Share::begin();
    let mut state = *STATE.lock();
    let rest = match state.pass {
        None => begin(&mut state),
        Some(pass) => {
            state.pass = go_on(engine, context, pass);
            let is_vain = |device: &SwapDevice| is_worth_a_pass(device.fragmentation());
            if state.pass.is_none() && SWAP_DEVICES.get(pass.number).is_some_and(is_vain) {
                VAIN_NS
            } else {
                state.share.rest(engine, began)
            }
        }
    };
    Share::set_due(&DUE_NS, rest);
    *STATE.lock() = state;
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
