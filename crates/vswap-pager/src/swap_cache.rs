//! The swap cache: entries of resident pages, kept because the page may leave again as it came.
//!
//! To evict a page again that was only read, its entry is enough: no codec, no new object. User space
//! sees no dirty bits, so the entry is read and compared with the page, which takes a quarter to a
//! third of what compressing takes and cannot be wrong, whoever wrote to the page by whatever way.
//!
//! A kept copy takes memory that a resident page could have. So copies are kept for a part of what
//! is in the pool: where nearly all fits, memory is worth more than the codec's time. They are
//! kept only as long as they prove right, and go before any page that is protected does, and before
//! harder measures are taken for want of memory.

use core::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use vswap_core::SwapEntry;

use crate::address::{LEAF_PAGES, PageNumber};
use crate::engine::Engine;
use crate::staging::TRAYS;
use crate::table::PageState;

/// Copies are kept of one in so many of the pages that are in the pool.
const SHARE: i64 = 8;

/// The most credit that copies can earn by proving right.
const CREDIT_MAX: u32 = 512;
/// What a copy that proved right earns: compressing costs about three times what comparing does.
const RIGHT: u32 = 2;
/// What a comparison in vain costs.
const WRONG: u32 = 1;
/// With less credit copies are kept for a sample of the windows only.
const CREDIT_NEEDED: u32 = CREDIT_MAX / 4;
/// One window in so many is the sample.
const SAMPLE: u32 = 32;

/// Which resident pages have a copy is in the page table; here is the rest.
#[derive(Debug)]
pub struct SwapCache {
    pages: AtomicI64,
    pages_max: AtomicI64,
    credit: AtomicU32,
    windows: AtomicU32,
}

/// Entries of the pages in the trays, or 0, by tray and offset in the leaf. Each belongs to who holds
/// the leaf's lock, and means something while the page's word says staged.
static STAGED: [[AtomicU32; LEAF_PAGES]; TRAYS] =
    [const { [const { AtomicU32::new(0) }; LEAF_PAGES] }; TRAYS];

impl SwapCache {
    /// Nothing is kept.
    pub const fn new() -> Self {
        Self {
            pages: AtomicI64::new(0),
            pages_max: AtomicI64::new(0),
            credit: AtomicU32::new(CREDIT_MAX / 2),
            windows: AtomicU32::new(0),
        }
    }

    /// Takes the number of entries that are in the pool, or need no place, into the limit.
    pub fn set_pooled(&self, entries: u64) {
        self.pages_max.store(entries as i64 / SHARE, Ordering::Relaxed);
    }

    /// Whether the copies of a window that comes in for a read may be kept.
    pub fn admits(&self) -> bool {
        if self.pages.load(Ordering::Relaxed) >= self.pages_max.load(Ordering::Relaxed) {
            return false;
        }
        self.credit.load(Ordering::Relaxed) >= CREDIT_NEEDED
            || self.windows.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE)
    }

    /// Notes that a copy was kept, or that one is a resident page's no more.
    pub fn add(&self, pages: i64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// Resident and staged pages that have a copy.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed).max(0) as u64
    }

    /// Bytes of memory taken.
    pub fn memory(&self) -> usize {
        if self.pages_max.load(Ordering::Relaxed) > 0 { size_of_val(&STAGED) } else { 0 }
    }

    /// Learns from a comparison. A hint, so two threads may forget one of two.
    pub fn note_compared(&self, same: bool) {
        let credit = self.credit.load(Ordering::Relaxed);
        let credit = if same { credit + RIGHT } else { credit.saturating_sub(WRONG) };
        self.credit.store(credit.min(CREDIT_MAX), Ordering::Relaxed);
    }

    /// Notes the entry of a page that went to a tray, or that it has none. The leaf is locked.
    pub fn stage(&self, tray: u8, offset: usize, entry: Option<SwapEntry>) {
        let raw = entry.map_or(0, SwapEntry::raw);
        STAGED[usize::from(tray)][offset].store(raw, Ordering::Relaxed);
    }

    /// The entry of a page that is in a tray. The leaf is locked.
    pub fn staged(&self, tray: u8, offset: usize) -> Option<SwapEntry> {
        SwapEntry::from_raw(STAGED[usize::from(tray)][offset].load(Ordering::Relaxed))
    }
}

impl Default for SwapCache {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// Whether pages of this run keep their copies at all.
    pub fn keeps_copies(&self) -> bool {
        self.config().is_none_or(|config| config.swap_cache)
    }

    /// Forgets the copy of a page that is not resident any more, or was written, or is short of
    /// memory.
    pub fn forget_copy(&self, entry: SwapEntry) {
        self.space.free(entry);
        self.swap_cache.add(-1);
    }

    /// Frees the copies of all resident pages, and keeps no more until some prove right; `false` if
    /// there were none.
    pub fn shrink_swap_cache(&self) -> bool {
        if self.swap_cache.pages() == 0 {
            return false;
        }
        self.swap_cache.credit.store(0, Ordering::Relaxed);
        let _passage = self.gate.pass();
        self.free_kept()
    }

    /// Frees the copies of all resident pages; `false` if there were none. With a passage through the gate.
    pub fn free_kept(&self) -> bool {
        if self.swap_cache.pages() == 0 {
            return false;
        }
        let mut freed = false;
        let mut from = 0;
        while let Some(number) = self.table.next_leaf(from, usize::MAX) {
            from = number + 1;
            let Some(mut leaf) = self.table.lock(PageNumber(number * LEAF_PAGES)) else { continue };
            for offset in 0..LEAF_PAGES {
                if let PageState::Cached { entry, protected } = leaf.state(offset) {
                    leaf.set(offset, PageState::resident(protected));
                    self.forget_copy(entry);
                    freed = true;
                }
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_kept_for_a_part_of_what_is_in_the_pool() {
        let cache = SwapCache::new();
        assert!(!cache.admits());
        cache.set_pooled(80);
        cache.add(9);
        assert!(cache.admits());
        cache.add(1);
        assert!(!cache.admits());
    }

    #[test]
    fn copies_that_prove_wrong_are_kept_for_a_sample_only() {
        let cache = SwapCache::new();
        cache.set_pooled(8000);
        let admitted = || (0..SAMPLE).filter(|_| cache.admits()).count();
        assert_eq!(admitted(), SAMPLE as usize);
        (0..CREDIT_MAX).for_each(|_| cache.note_compared(false));
        assert_eq!(admitted(), 1);
        (0..CREDIT_NEEDED / RIGHT).for_each(|_| cache.note_compared(true));
        assert_eq!(admitted(), SAMPLE as usize);
    }
}
