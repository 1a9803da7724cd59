//! Ordered access: where the next page of each stream is expected.
//!
//! A program reads several arrays at a time, so what is remembered is not a place per thread or per
//! mapping but a small table of *expected pages*: the page behind each window that was filled, with
//! the window's size. A fault there, or a little behind, goes on with the stream; a fault anywhere
//! else starts one with a single page. The table is a hint: entries are overwritten and read
//! without a lock.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::address::PageNumber;

const ENTRIES: usize = 512;
/// Neighbouring pages share a place in the table, so that a stream that skips some is found.
const GRANULE_SHIFT: u32 = 3;
/// A stream may skip this part of its last window. One that has just begun skips nothing: in a
/// small memory a random fault often lies a little behind some window.
const SKIPPED_PART: usize = 8;
const WINDOW_BITS: u32 = 16;

/// The table of expected pages.
#[derive(Debug)]
pub struct Streams([AtomicU64; ENTRIES]);

impl Streams {
    /// Nothing is expected.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }

    /// Size in pages of the window that ended just before `page`; `None` if none did. Forgets it.
    pub fn take(&self, page: PageNumber) -> Option<usize> {
        let granule = page.0 >> GRANULE_SHIFT;
        [granule, granule.wrapping_sub(1)].into_iter().find_map(|granule| {
            let entry = &self.0[granule % ENTRIES];
            let packed = entry.load(Ordering::Relaxed);
            let (next, window) = unpack(packed);
            let skipped = page.0.checked_sub(next)?;
            if packed == 0 || skipped > window / SKIPPED_PART {
                return None;
            }
            entry.store(0, Ordering::Relaxed);
            Some(window)
        })
    }

    /// Expects the stream to go on at `next`.
    pub fn expect(&self, next: PageNumber, window: usize) {
        let entry = &self.0[(next.0 >> GRANULE_SHIFT) % ENTRIES];
        entry.store((next.0 as u64) << WINDOW_BITS | window as u64, Ordering::Relaxed);
    }
}

impl Default for Streams {
    fn default() -> Self {
        Self::new()
    }
}

fn unpack(packed: u64) -> (usize, usize) {
    ((packed >> WINDOW_BITS) as usize, packed as usize & ((1 << WINDOW_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_on_where_its_window_ended() {
        let streams = Streams::new();
        streams.expect(PageNumber(1000), 32);
        streams.expect(PageNumber(70_000), 4);
        assert_eq!(streams.take(PageNumber(999)), None);
        assert_eq!(streams.take(PageNumber(1004)), Some(32));
        assert_eq!(streams.take(PageNumber(1004)), None);
        assert_eq!(streams.take(PageNumber(70_001)), None);
        assert_eq!(streams.take(PageNumber(70_000)), Some(4));
    }

    #[test]
    fn random_faults_in_a_small_memory_find_no_stream() {
        const PAGES: usize = 1 << 16;
        let streams = Streams::new();
        let mut page = 12_345_usize;
        let mut around = 0;
        for _ in 0..10_000 {
            page = page.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let place = PageNumber((page >> 20) % PAGES);
            let window = streams.take(place).map_or(1, |window| window * 2);
            around += window - 1;
            streams.expect(PageNumber(place.0 + window), window);
        }
        assert!(around < 200, "{around} pages in vain for 10000");
    }
}
