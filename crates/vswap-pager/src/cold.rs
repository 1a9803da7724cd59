//! Codes cold objects of the pool again with a stronger codec (`--cold-codec`), while nothing else is to
//! be done.
//!
//! Cold is what was evicted so long ago that all that is resident was evicted once since, or anything when
//! nothing has been evicted or faulted for a while. Clusters of virtual slots are taken in the order
//! in which they were filled, each once: what comes back and leaves again has a newer slot.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vswap_core::{CLUSTER_SLOTS, CodecKind, Cursor, SwapEntry};

use crate::context::{self, Context};
use crate::engine::Engine;
use crate::run_page::Counter;
use crate::sys::task;
use crate::workingset;

/// Objects that are tried before the reclaimer looks at what else there is to do.
const STEP: usize = 32;

/// With no fault for this long nothing is in use.
const IDLE_NS: u64 = 1_000_000_000;

/// With no fault for this long nobody waits for the CPU that coding takes.
const PAUSE_NS: u64 = 20_000_000;

/// When the cluster was filled that was coded last.
static CODED_UP_TO: AtomicU32 = AtomicU32::new(0);

/// Where in the cluster after it to go on, as the number of a slot, or 0.
static GO_ON_AT: AtomicU32 = AtomicU32::new(0);

static FAULTS: AtomicU64 = AtomicU64::new(0);
static LAST_FAULT_NS: AtomicU64 = AtomicU64::new(0);

/// How long there has been no fault, in nanoseconds, as far as calls of this tell.
fn quiet_ns(engine: &Engine) -> u64 {
    let (faults, now) = (engine.counted(Counter::Faults), task::now_ns());
    if FAULTS.swap(faults, Ordering::Relaxed) != faults {
        LAST_FAULT_NS.store(now, Ordering::Relaxed);
    }
    now - LAST_FAULT_NS.load(Ordering::Relaxed)
}

/// Codes some objects again; gives whether there are more to be tried now.
pub fn recompress(engine: &Engine, context: &mut Context) -> bool {
    let Some(codec) = engine.config().and_then(|config| config.cold_codec) else { return false };
    let quiet = quiet_ns(engine);
    if quiet < PAUSE_NS {
        return false;
    }
    let Some(cluster) = workingset::filled_after(CODED_UP_TO.load(Ordering::Relaxed)) else {
        return false;
    };
    let age = u64::from(workingset::evicted_since(cluster.stamp));
    if quiet < IDLE_NS && age < engine.budget.resident_pages() {
        return false;
    }
    let end = cluster.first.nth(CLUSTER_SLOTS - 1);
    let from = SwapEntry::from_raw(GO_ON_AT.load(Ordering::Relaxed))
        .filter(|at| (cluster.first..=end).contains(at))
        .unwrap_or(cluster.first);
    match step(engine, context, from, context::codec_kind(codec)) {
        Some(next) if next <= end => GO_ON_AT.store(next.raw(), Ordering::Relaxed),
        _ => CODED_UP_TO.store(cluster.stamp, Ordering::Relaxed),
    }
    true
}

/// The slot to go on at; `None` behind the last one, or without memory for the codec.
fn step(
    engine: &Engine,
    context: &mut Context,
    from: SwapEntry,
    codec: CodecKind,
) -> Option<SwapEntry> {
    let passage = engine.gate.pass();
    let done = engine.with_room_in_pool(|space| {
        space.recompress(&mut context.worker, Cursor::at(from), STEP, codec)
    });
    drop(passage);
    engine.update_engine_bytes();
    done.ok()?.next?.entry()
}
