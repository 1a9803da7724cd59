//! Refault distance: how soon after its eviction a page came back.
//!
//! Slots are handed out in the order of time, so one stamp for each cluster of 512 slots tells when
//! its pages were evicted: no shadow entry is needed. The stamp counts evicted pages. A page whose
//! distance is below the number of resident pages would have stayed with that much more memory,
//! and is protected, as in the kernel's mm/workingset.c.

use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use vswap_core::SwapEntry;
use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::arena::Arena;
use crate::engine::Engine;
use crate::run_page::Counter;

const CLUSTER_SLOTS: u32 = 512;
/// Clusters of one piece of the stamp table: 2^23 slots.
const CLUSTERS_PER_PIECE: usize = 1 << 14;
const PIECES: usize = 256;

static EVICTED: AtomicU32 = AtomicU32::new(0);
static STAMPS: [AtomicPtr<AtomicU32>; PIECES] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; PIECES];

fn stamp(entry: SwapEntry, make: bool) -> Option<&'static AtomicU32> {
    let cluster = (entry.raw() / CLUSTER_SLOTS) as usize;
    let piece = STAMPS.get(cluster / CLUSTERS_PER_PIECE)?;
    if piece.load(Ordering::Acquire).is_null() && make {
        let len = CLUSTERS_PER_PIECE * size_of::<AtomicU32>();
        let memory = Arena.reserve(len, PAGE_SIZE)?;
        let won = piece.compare_exchange(
            core::ptr::null_mut(),
            memory.as_ptr().cast(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if won.is_err() {
            // SAFETY: the reservation was never published.
            unsafe { Arena.unreserve(memory, len) };
        }
    }
    let stamps = piece.load(Ordering::Acquire);
    if stamps.is_null() {
        return None;
    }
    // SAFETY: a piece is never freed, zeros are valid stamps, and the index is within it.
    unsafe { stamps.add(cluster % CLUSTERS_PER_PIECE).as_ref() }
}

/// Notes that a page was evicted to this entry.
pub fn note_evicted(_engine: &Engine, entry: SwapEntry) {
    let now = EVICTED.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    if let Some(stamp) = stamp(entry, true) {
        stamp.store(now, Ordering::Relaxed);
    }
}

/// Notes that the page came back; gives whether it is protected.
pub fn note_refault(engine: &Engine, entry: SwapEntry) -> bool {
    engine.count(Counter::Refaults, 1);
    let Some(stamp) = stamp(entry, false) else { return false };
    let distance = EVICTED.load(Ordering::Relaxed).wrapping_sub(stamp.load(Ordering::Relaxed));
    let protected = u64::from(distance) < engine.budget.resident_pages() / 2;
    engine.count(Counter::Activations, u64::from(protected));
    protected
}
