//! Writeback: what was stored first goes from the pool to a swap device, before the pool is full.
//!
//! Slots are handed out in the order of time, so the cluster whose last slot was filled longest ago holds
//! the oldest objects; one that came back and left again has a newer slot, which is its second chance.
//! Nothing is kept per object.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vswap_core::{CLUSTER_SLOTS, Cursor, Pooled, SwapEntry};

use crate::context::Context;
use crate::engine::Engine;
use crate::swap::{Refusal, SWAP_DEVICES};
use crate::workingset::{self, Filled};

/// Clusters between two looks at what else there is to do.
const CLUSTERS: usize = 4;

/// Blocks of one batch, by rule of thumb: which device has its turn does not depend on it.
const BATCH_BLOCKS: u32 = 256;

/// Parts of the pool's limit, in 32nds, at which writeback begins and ends. The kernel's zswap takes
/// pages again at 90 % (accept_threshold_percent).
const BEGIN: usize = 31;
const END: usize = 29;

/// When the cluster was filled that was written back last.
static WRITTEN_UP_TO: AtomicU32 = AtomicU32::new(0);

/// Writeback has begun and has not reached its end.
static UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// Writes some of the oldest objects back if the pool is nearly full; gives whether there is more to
/// do. Without a device that takes anything, nothing is begun.
pub fn write_back(engine: &Engine, context: &mut Context) -> bool {
    let part = if UNDER_WAY.load(Ordering::Relaxed) { END } else { BEGIN };
    let mut goes_on = is_above(engine, part);
    for _ in 0..CLUSTERS {
        goes_on = goes_on && write_oldest(engine, context) && is_above(engine, END);
    }
    UNDER_WAY.store(goes_on, Ordering::Relaxed);
    goes_on
}

/// Makes room in the pool for a tray of pages, before any of them has to go to a device by itself.
pub fn make_room(engine: &Engine, context: &mut Context) {
    for _ in 0..CLUSTERS {
        if !is_above(engine, BEGIN) || !write_oldest(engine, context) {
            break;
        }
    }
    // With what the other members of its groups have given up, and before the pages take it.
    engine.limit_pool();
}

fn is_above(engine: &Engine, part: usize) -> bool {
    if !SWAP_DEVICES.any() {
        return false;
    }
    let pool = engine.space.usage().pool_memory;
    pool > 0 && pool >= engine.pool_limit() / 32 * part
}

/// Writes back the cluster that was filled next; `false` if there is none, or nothing takes it.
fn write_oldest(engine: &Engine, context: &mut Context) -> bool {
    let Some(cluster) = workingset::filled_after(WRITTEN_UP_TO.load(Ordering::Relaxed)) else {
        // Every cluster has been seen, and what was passed over has its turn again.
        WRITTEN_UP_TO.store(workingset::before_all(), Ordering::Relaxed);
        return false;
    };
    let written = write_cluster(engine, context, cluster);
    if written {
        WRITTEN_UP_TO.store(cluster.stamp, Ordering::Relaxed);
    }
    written
}

/// Writes back what a cluster has in the pool; `false` if nothing takes it.
pub fn write_cluster(engine: &Engine, context: &mut Context, cluster: Filled) -> bool {
    let all = Cursor::at(cluster.first)..Cursor::behind(cluster.first.nth(CLUSTER_SLOTS - 1));
    write_range(engine, context, all, |_| true)
}

/// The entries that pages of one tray were stored under: next to each other, all but always.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entries(Option<(SwapEntry, SwapEntry)>);

impl Entries {
    /// Adds one, if there is one.
    pub fn add(&mut self, entry: Option<SwapEntry>) {
        let Some(entry) = entry else { return };
        let (first, last) = self.0.unwrap_or((entry, entry));
        self.0 = Some((first.min(entry), last.max(entry)));
    }
}

/// Writes pages that do not compress: in the pool they save nothing.
pub fn write_incompressible(engine: &Engine, context: &mut Context, stored: Entries) {
    if let Some((first, last)) = stored.0
        && SWAP_DEVICES.any()
        && engine.space.usage().stored_incompressible_pages > 0
    {
        let range = Cursor::at(first)..Cursor::behind(last);
        write_range(engine, context, range, |object| object.is_raw);
    }
}

/// Frees the slots that resident pages have kept; `false` if there are none.
fn drops_kept(engine: &Engine) -> bool {
    SWAP_DEVICES.refusal() == Some(Refusal::Full) && engine.free_kept()
}

/// Writes what is wanted of a range, a batch at a time; `false` if nothing takes it.
fn write_range(
    engine: &Engine,
    context: &mut Context,
    range: Range<Cursor>,
    wanted: fn(Pooled) -> bool,
) -> bool {
    let mut from = Some(range.start);
    while let Some(cursor) = from {
        let _passage = engine.gate.pass();
        let Some(device) = SWAP_DEVICES.next(engine, BATCH_BLOCKS) else { return false };
        let (worker, buffer) = context.worker_and_window();
        let batch = cursor..range.end;
        match engine.space.write_back(worker, device.backing(), batch, buffer, wanted) {
            Ok(done) if done.refused.is_none() => from = done.next,
            // Slots that resident pages have kept are as good as free ones.
            Ok(_) if drops_kept(engine) => {}
            _ => return false,
        }
    }
    true
}
