//! What the core has counted, published where the coordinator sees it.
//!
//! The child of a fork has its parent's core, counters included, and publishes what came after.

use core::sync::atomic::{AtomicU64, Ordering};

use vswap_core::{Counter as Core, Usage};

use crate::engine::Engine;
use crate::run_page::{Counter, Member};

/// The core's counters that a member shows; it counts the others itself.
const PUBLISHED: [(Core, Counter); 13] = [
    (Core::Zswpout, Counter::Zswpout),
    (Core::Zswpin, Counter::Zswpin),
    (Core::SameFilledOut, Counter::SameFilledOut),
    (Core::Pswpout, Counter::Pswpout),
    (Core::Pswpin, Counter::Pswpin),
    (Core::WrittenBackPages, Counter::WrittenBack),
    (Core::Recompressed, Counter::Recompressed),
    (Core::Relocated, Counter::SwapCompacted),
    (Core::RelocatedBytes, Counter::SwapCompactedBytes),
    (Core::PoolLimitHit, Counter::PoolLimitHit),
    (Core::RejectCompressPoor, Counter::RejectCompressPoor),
    (Core::DecompressFail, Counter::DecompressFail),
    (Core::SwpinZero, Counter::SwpinZero),
];

static BEFORE: [AtomicU64; PUBLISHED.len()] = [const { AtomicU64::new(0) }; PUBLISHED.len()];

/// Starts counting from here.
pub fn start(engine: &Engine) {
    let usage = engine.space.usage();
    for ((core, _), before) in PUBLISHED.iter().zip(&BEFORE) {
        before.store(usage.counter(*core), Ordering::Relaxed);
    }
}

/// Copies the core's counters to the member.
pub fn publish(member: &Member, usage: &Usage) {
    for ((core, counter), before) in PUBLISHED.iter().zip(&BEFORE) {
        let since = usage.counter(*core).saturating_sub(before.load(Ordering::Relaxed));
        member.set_counter(*counter, since);
    }
}
