//! Tiers of swap devices: the devices of one priority.
//!
//! What is written goes to the fastest tier that has room. When a tier is nearly full and there is a slower
//! one, the reclaimer moves its oldest objects there, in the order in which their clusters of virtual
//! slots were filled, as writeback does. What is read from a slower tier loses its slot there while a faster
//! one has room: it leaves for the pool the next time, and from there to the fastest tier.
//!
//! Demotion begins and ends at stated fills, and promotion stops at the lower of these, so that neither
//! causes the other. Demotion has a [share](crate::swap::share) of the reclaimer's time.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vswap_core::device::set::DEVICES_MAX;
use vswap_core::{BackingId, CLUSTER_SLOTS, SwapEntry, Target, Transfer, TransferError};

use crate::context::Context;
use crate::engine::Engine;
use crate::lock::SpinLock;
use crate::run_page::{Counter, Member, RunPage};
use crate::swap::share::Share;
use crate::swap::{SWAP_DEVICES, SwapDevice};
use crate::workingset;

/// Parts of a tier, in 16ths, at which demotion begins and ends.
const BEGIN: u64 = 15;
const END: u64 = 14;

/// Objects that are moved before the reclaimer looks at what else there is to do.
const STEP: usize = 16;

/// Clusters of virtual slots that are looked through meanwhile.
const STEP_CLUSTERS: usize = 64;

/// Between two looks at how full the tiers are, while nothing is to be moved.
const LOOK_NS: u64 = 100_000_000;

/// Backings from which pages are promoted, one bit each.
static PROMOTES: AtomicU32 = AtomicU32::new(0);

/// Nothing is moved before this moment.
static DUE_NS: AtomicU64 = AtomicU64::new(0);

static STATE: SpinLock<State> = SpinLock::new(State::START);

#[derive(Clone, Copy, Debug)]
struct State {
    walks: [Walk; DEVICES_MAX],
    share: Share,
}

impl State {
    const START: Self = Self { walks: [Walk::START; DEVICES_MAX], share: Share::START };
}

/// Where the demotion of a device is.
#[derive(Clone, Copy, Debug)]
struct Walk {
    is_under_way: bool,
    /// When the cluster was filled that was emptied last.
    done_up_to: u32,
    /// Where in the cluster after it to go on.
    at: Option<SwapEntry>,
}

impl Walk {
    const START: Self = Self { is_under_way: false, done_up_to: 0, at: None };
}

/// In the child of a fork.
pub fn reset_after_fork() {
    STATE.reset_after_fork();
    *STATE.lock() = State::START;
    DUE_NS.store(0, Ordering::Relaxed);
}

/// Whether a page that was read from here gives up its slot; counts it if so.
pub fn promotes(engine: &Engine, from: BackingId) -> bool {
    let promotes = PROMOTES.load(Ordering::Relaxed) & 1 << from.raw() != 0;
    engine.count(Counter::SwapPromoted, u64::from(promotes));
    promotes
}

/// Whether a tier with this in use of so much is filled to so many 16ths.
fn is_filled((used, limit): (u64, u64), part: u64) -> bool {
    limit > 0 && used * 16 >= limit * part
}

/// Looks how full the tiers are, and moves some objects down. On the reclaimer.
pub fn step(engine: &Engine, context: &mut Context) {
    let (Some(run), Some(member)) = (engine.run_page(), engine.member()) else { return };
    if !Share::is_due(&DUE_NS) {
        return;
    }
    let began = Share::begin();
    let mut state = *STATE.lock();
    look(run, member);
    let mut moved = 0;
    for (number, device) in SWAP_DEVICES.all().filter(|(_, device)| !device.is_draining()) {
        let Some(described) = SWAP_DEVICES.described(run, number) else { continue };
        let walk = &mut state.walks[number];
        let part = if walk.is_under_way { END } else { BEGIN };
        walk.is_under_way = is_filled(run.fill_of_tier(described), part)
            && has_room_below(run, member, number)
            && demote(engine, context, (number, device), (walk, &mut moved));
    }
    let goes_on = state.walks.iter().any(|walk| walk.is_under_way);
    let rest = if goes_on { state.share.rest(engine, began) } else { LOOK_NS };
    Share::set_due(&DUE_NS, rest);
    *STATE.lock() = state;
}

/// Milliseconds until there is something to move, at most `limit`.
pub fn due_in_ms(limit: i64) -> i64 {
    let goes_on = STATE.lock().walks.iter().any(|walk| walk.is_under_way);
    if goes_on { Share::due_in_ms(&DUE_NS).min(limit) } else { limit }
}

/// Finds out which tiers have room for what comes from slower ones.
fn look(run: &RunPage, member: &Member) {
    let mut promotes = 0;
    let priority = |number| Some(SWAP_DEVICES.described(run, number)?.description()?.priority);
    for (number, device) in SWAP_DEVICES.all() {
        let Some(own) = priority(number) else { continue };
        let mut others = SWAP_DEVICES.all().filter(|(_, other)| !other.is_draining());
        let has_room = others.any(|(other, faster)| {
            priority(other) > Some(own)
                && run.devices.get(other).is_some_and(|it| !is_filled(run.fill_of_tier(it), END))
                && run.has_room_on(other, member, faster.used())
        });
        if has_room {
            promotes |= 1 << device.backing().raw();
        }
    }
    PROMOTES.store(promotes, Ordering::Relaxed);
}

/// Whether the groups of a member let it have something on a slower tier.
fn has_room_below(run: &RunPage, member: &Member, number: usize) -> bool {
    SWAP_DEVICES
        .next_below(number)
        .is_some_and(|(number, slower)| run.has_room_on(number, member, slower.used()))
}

/// Moves some of the oldest objects of a device down; `false` if there is no more to do now.
fn demote(
    engine: &Engine,
    context: &mut Context,
    (number, device): (usize, &SwapDevice),
    (walk, moved): (&mut Walk, &mut usize),
) -> bool {
    for _ in 0..STEP_CLUSTERS {
        let Some((_, target)) = SWAP_DEVICES.next_below(number) else { return false };
        let Some(cluster) = workingset::filled_after(walk.done_up_to) else {
            // Every cluster has been seen, and what was passed over has its turn again.
            walk.done_up_to = workingset::before_all();
            return false;
        };
        let end = cluster.first.nth(CLUSTER_SLOTS - 1);
        let is_there = |at: &SwapEntry| (cluster.first..=end).contains(at);
        let first = walk.at.filter(is_there).unwrap_or(cluster.first);
        for raw in first.raw()..=end.raw() {
            let Some(entry) = SwapEntry::from_raw(raw) else { continue };
            if !engine.space.peek(entry).is_in(device.backing()) {
                continue;
            }
            if *moved == STEP {
                walk.at = Some(entry);
                return true;
            }
            let _passage = engine.gate.pass();
            let target = Target::Backing(target.backing());
            match engine.space.transfer(&mut context.worker, entry, target) {
                Ok(Transfer::Moved) => engine.count(Counter::SwapDemoted, 1),
                Err(TransferError::Store(_)) => return false,
                // It is gone, or cannot be read: who asks for it learns of that.
                Ok(Transfer::Nothing) | Err(_) => {}
            }
            *moved += 1;
        }
        (walk.done_up_to, walk.at) = (cluster.stamp, None);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demotion_begins_later_than_it_ends() {
        let used = |used| (used, 1600);
        assert!(!is_filled(used(1499), BEGIN) && is_filled(used(1500), BEGIN));
        assert!(!is_filled(used(1399), END) && is_filled(used(1400), END));
        assert!(!is_filled((0, 0), END), "there is no such tier");
    }
}
