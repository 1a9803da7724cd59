//! Writeback: what was stored first goes from the pool to a swap device, before the pool is full.
//!
//! Slots are handed out in the order of time, so the cluster whose last slot was filled longest ago holds
//! the oldest objects; one that came back and left again has a newer slot, which is its second chance.
//! Nothing is kept per object.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vswap_core::{CLUSTER_SLOTS, Cursor};

use crate::context::Context;
use crate::engine::Engine;
use crate::swap::SWAP_DEVICES;
use crate::workingset;

/// Batches between two looks at what else there is to do.
const BATCHES: usize = 8;

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
    let limit = engine.pool_limit();
    let part = if UNDER_WAY.load(Ordering::Relaxed) { END } else { BEGIN };
    let is_above = || engine.space.usage().pool_memory >= limit / 32 * part;
    let mut goes_on = is_above();
    for _ in 0..BATCHES {
        goes_on = goes_on && write_batch(engine, context) && is_above();
    }
    UNDER_WAY.store(goes_on, Ordering::Relaxed);
    goes_on
}

/// Writes one batch of the cluster that is next; `false` if there is none, or nothing takes it.
pub fn write_batch(engine: &Engine, context: &mut Context) -> bool {
    let _passage = engine.gate.pass();
    let Some(device) = SWAP_DEVICES.next(engine, BATCH_BLOCKS) else { return false };
    let Some(cluster) = workingset::filled_after(WRITTEN_UP_TO.load(Ordering::Relaxed)) else {
        // Every cluster has been seen, and what was passed over has its turn again.
        WRITTEN_UP_TO.store(workingset::before_all(), Ordering::Relaxed);
        return false;
    };
    let mut from = Some(Cursor::at(cluster.first));
    let end = Cursor::behind(cluster.first.nth(CLUSTER_SLOTS - 1));
    while let Some(cursor) = from {
        let (worker, buffer) = context.worker_and_window();
        let written =
            engine.space.write_back(worker, device.backing(), cursor..end, buffer, |_| true);
        match written {
            Ok(done) if done.refused.is_none() => from = done.next,
            _ => return false,
        }
    }
    WRITTEN_UP_TO.store(cluster.stamp, Ordering::Relaxed);
    true
}
