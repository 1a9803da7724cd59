//! Chaos mode, for tests: after every mapping call, evict pages at random, sometimes all of them.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::address::PageRange;
use crate::engine::Engine;
use crate::mailbox::Request;

static RANDOM: AtomicU64 = AtomicU64::new(0);

/// One call in this many evicts every page.
const EVICT_ALL_ONE_IN: u64 = 16;
const PAGES_AT_ONCE: u64 = 256;

/// Evicts something, if the run asks for chaos.
pub fn after_mapping_call(engine: &Engine) {
    let Some(seed) = engine.config().and_then(|config| config.chaos) else { return };
    let _ = RANDOM.compare_exchange(0, seed | 1, Ordering::Relaxed, Ordering::Relaxed);
    let random = next();
    let ranges = {
        let maps = engine.lock_maps();
        let regions = engine.regions(&maps).all();
        let Some(last) = regions.len().checked_sub(1) else { return };
        if random.is_multiple_of(EVICT_ALL_ONE_IN) {
            PageRange { start: regions[0].range.start, end: regions[last].range.end }
        } else {
            let region = regions[(random >> 8) as usize % regions.len()].range;
            let skip = (random >> 24) as usize % region.pages().max(1);
            let start = crate::address::PageNumber(region.start.0 + skip);
            let end = start.0 + (next() % PAGES_AT_ONCE) as usize + 1;
            PageRange { start, end: crate::address::PageNumber(end).min(region.end) }
        }
    };
    engine.mailbox.ask(Request::PageOut, ranges);
}

/// The next number of a 64-bit linear congruential generator, its better half.
fn next() -> u64 {
    let step =
        |x: u64| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    RANDOM
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |x| Some(step(x)))
        .map_or(0, |x| step(x) >> 20)
}
