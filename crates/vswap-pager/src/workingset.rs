//! Refault distance: how soon after its eviction a page came back.
//!
//! Slots are handed out in the order of time, so one stamp for each cluster of 512 slots tells when
//! its pages were evicted: no shadow entry is needed. The stamp counts evicted pages. A page whose
//! distance is below the number of resident pages would have stayed with that much more memory,
//! and is protected, as in the kernel's mm/workingset.c.

use core::sync::atomic::{AtomicU32, Ordering};

use vswap_core::{CLUSTER_SLOTS, SwapEntry};

use crate::engine::Engine;
use crate::run_page::Counter;
use crate::slot_table::SlotTable;

static EVICTED: AtomicU32 = AtomicU32::new(0);
/// One more than the highest number of a cluster with a stamp.
static CLUSTERS: AtomicU32 = AtomicU32::new(0);
/// By cluster; a piece is for 2^23 slots.
static STAMPS: SlotTable<AtomicU32, { 1 << 14 }, 256> = SlotTable::new();

fn number_of(entry: SwapEntry) -> usize {
    entry.raw() as usize / CLUSTER_SLOTS
}

/// Notes that a page was evicted to this entry.
pub fn note_evicted(_engine: &Engine, entry: SwapEntry) {
    let now = EVICTED.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    if let Some(stamp) = STAMPS.make(number_of(entry)) {
        stamp.store(now, Ordering::Relaxed);
        let clusters = number_of(entry) as u32 + 1;
        if CLUSTERS.load(Ordering::Relaxed) < clusters {
            CLUSTERS.fetch_max(clusters, Ordering::Relaxed);
        }
    }
}

/// A cluster of slots, and when its last one was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Its first slot.
    pub first: SwapEntry,
    /// The stamp.
    pub stamp: u32,
}

/// The cluster that was filled next after this stamp; a look at all stamps, 4 bytes for 2 MiB.
pub fn filled_after(after: u32) -> Option<Filled> {
    let clusters = CLUSTERS.load(Ordering::Relaxed) as usize;
    let later = (1..clusters).filter_map(|cluster| {
        let stamp = STAMPS.get(cluster)?.load(Ordering::Relaxed);
        let ahead = stamp.wrapping_sub(after).cast_signed();
        (stamp != 0 && ahead > 0).then_some((ahead, cluster, stamp))
    });
    let (_, cluster, stamp) = later.min()?;
    let first = SwapEntry::from_raw((cluster * CLUSTER_SLOTS) as u32)?;
    Some(Filled { first, stamp })
}

/// Pages that were ever evicted.
pub fn evicted() -> u32 {
    EVICTED.load(Ordering::Relaxed)
}

/// Pages that were evicted since a cluster was filled.
pub fn evicted_since(stamp: u32) -> u32 {
    evicted().wrapping_sub(stamp)
}

/// A stamp older than all others.
pub fn before_all() -> u32 {
    EVICTED.load(Ordering::Relaxed).wrapping_sub(i32::MAX.cast_unsigned())
}

/// Notes that the page came back; gives whether it is protected.
pub fn note_refault(engine: &Engine, entry: SwapEntry) -> bool {
    engine.count(Counter::Refaults, 1);
    let Some(stamp) = STAMPS.get(number_of(entry)) else { return false };
    let distance = EVICTED.load(Ordering::Relaxed).wrapping_sub(stamp.load(Ordering::Relaxed));
    let protected = u64::from(distance) < engine.budget.resident_pages() / 2;
    engine.count(Counter::Activations, u64::from(protected));
    protected
}
