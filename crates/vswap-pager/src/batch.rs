//! Which pages of a leaf go out together.
//!
//! A move of present pages ends with a TLB flush wherever a run of them ends. Where the program's
//! memory is live on another CPU that is an interrupt there, 10 to 30 µs in a guest; elsewhere half
//! a microsecond. So a batch knows how many runs it has, and who moves it decides by that.

use vswap_core::SwapEntry;

use crate::address::{PageNumber, PageRange};
use crate::staging::Bitmap;
use crate::table::{Leaf, PageState};

/// Runs of one batch: what who waits for the move of a scattered one can be asked for.
const RUNS_MAX: usize = 128;

/// A batch with fewer pages in each of its runs, on average, is scattered.
const CONTIGUOUS_RUN: usize = 16;

/// Up to a number of pages of one leaf.
#[derive(Debug)]
pub struct Batch {
    /// From the first to the last of them.
    pub span: PageRange,
    /// Where to look next.
    pub next: PageNumber,
    /// Resident pages up to there that stay because of their age.
    protected: Bitmap,
    pages: usize,
    runs: usize,
}

impl Batch {
    /// Chooses up to `limit` pages of `part`. With `all`, age does not count.
    pub fn choose(leaf: &Leaf<'_>, part: PageRange, limit: usize, all: bool) -> Self {
        let mut batch = Self {
            span: PageRange { start: part.end, end: part.end },
            next: part.end,
            protected: Bitmap::default(),
            pages: 0,
            runs: 0,
        };
        for page in part.iter() {
            let word = leaf.word(page.offset_in_leaf());
            if !word.is_resident() {
                continue;
            }
            if !all && !word.is_reclaimable() {
                batch.protected.insert(page.offset_in_leaf());
                continue;
            }
            let starts_run = batch.pages == 0 || page > batch.span.end;
            if batch.pages == limit || starts_run && batch.runs == RUNS_MAX {
                batch.next = page;
                break;
            }
            if batch.pages == 0 {
                batch.span.start = page;
            }
            batch.span.end = PageNumber(page.0 + 1);
            batch.pages += 1;
            batch.runs += usize::from(starts_run);
        }
        batch
    }

    /// Whether its move flushes TLBs about as often as it moves a page.
    pub fn is_scattered(&self) -> bool {
        self.runs * CONTIGUOUS_RUN > self.pages + CONTIGUOUS_RUN
    }

    /// Takes a sweep off the age of the protected pages: the clock's hand has passed them. They stay
    /// for so long that their copies are worth less than the memory, so `forget` gets those; it says whether it
    /// took them.
    pub fn age_protected(&self, leaf: &mut Leaf<'_>, mut forget: impl FnMut(SwapEntry) -> bool) {
        for offset in self.protected.iter() {
            let state = leaf.state(offset);
            if let PageState::Cached { entry, protected } = state {
                let age = if forget(entry) {
                    PageState::resident(protected)
                } else {
                    PageState::Cached { entry, protected: false }
                };
                leaf.set(offset, age);
            }
            if let PageState::Resident { age } = leaf.state(offset) {
                leaf.set(offset, PageState::Resident { age: age.saturating_sub(1) });
            }
        }
    }

    /// The parts of the span between protected pages: chosen ones and holes.
    pub fn segments(&self) -> impl Iterator<Item = PageRange> {
        let mut rest = self.span;
        core::iter::from_fn(move || {
            let is_protected = |page: &PageNumber| self.protected.contains(page.offset_in_leaf());
            let start = rest.iter().find(|page| !is_protected(page))?;
            let end = PageRange { start, ..rest }.iter().find(is_protected).unwrap_or(rest.end);
            rest.start = end;
            Some(PageRange { start, end })
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;
    use crate::address::LEAF_PAGES;
    use crate::table::Table;

    fn range(start: usize, end: usize) -> PageRange {
        PageRange { start: PageNumber(start), end: PageNumber(end) }
    }

    fn leaf_with(table: &Table, resident: impl Iterator<Item = (usize, u8)>) -> Leaf<'_> {
        let mut leaf = table.lock_or_make(PageNumber(0)).unwrap();
        resident.for_each(|(page, age)| leaf.set(page, PageState::Resident { age }));
        leaf
    }

    #[test]
    fn protected_pages_split_the_span_and_age() {
        let table = Table::new();
        let ages = [(10, 0), (11, 1), (12, 0), (14, 2), (15, 2), (20, 0), (30, 1)];
        let mut leaf = leaf_with(&table, ages.into_iter());
        let batch = Batch::choose(&leaf, range(0, LEAF_PAGES), 100, false);
        assert_eq!((batch.span, batch.next), (range(10, 21), PageNumber(LEAF_PAGES)));
        let segments: Vec<_> = batch.segments().collect();
        assert_eq!(segments, [range(10, 11), range(12, 14), range(16, 21)]);
        batch.age_protected(&mut leaf, |entry| panic!("{entry:?} was never kept"));
        assert_eq!(leaf.state(11), PageState::Resident { age: 0 });
        assert_eq!(leaf.state(15), PageState::Resident { age: 1 });
    }

    #[test]
    fn a_protected_page_loses_its_copy_to_the_hand() {
        let table = Table::new();
        let mut leaf = leaf_with(&table, core::iter::empty());
        let entry = |raw| SwapEntry::from_raw(raw).unwrap();
        leaf.set(7, PageState::Cached { entry: entry(1), protected: false });
        leaf.set(8, PageState::Cached { entry: entry(2), protected: true });
        let batch = Batch::choose(&leaf, range(0, LEAF_PAGES), 100, false);
        assert_eq!(batch.span, range(7, 8));
        batch.age_protected(&mut leaf, |_| false);
        assert_eq!(leaf.state(8), PageState::Cached { entry: entry(2), protected: false });
        leaf.set(8, PageState::Cached { entry: entry(2), protected: true });
        let mut forgotten = Vec::new();
        batch.age_protected(&mut leaf, |entry| {
            forgotten.push(entry);
            true
        });
        assert_eq!(forgotten, [entry(2)]);
        assert_eq!(leaf.state(7), PageState::Cached { entry: entry(1), protected: false });
        assert_eq!(leaf.state(8), PageState::Resident { age: 1 });
    }

    /// The hand goes round a leaf of hot pages and of pages that have kept their copies, whose protection is
    /// drawn at random. When it takes the first hot page no copy is left that was there when it began.
    #[test]
    fn copies_go_before_any_hot_page_does() {
        let mut random = 0x5EED_u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for limit in [1, 7, 64, LEAF_PAGES] {
            let table = Table::new();
            let mut leaf = leaf_with(&table, core::iter::empty());
            let mut hot = Bitmap::default();
            for page in 0..LEAF_PAGES {
                let kept = SwapEntry::from_raw(page as u32 + 1).unwrap();
                let state = match draw(4) {
                    0 => PageState::Cached { entry: kept, protected: false },
                    1 => PageState::Cached { entry: kept, protected: true },
                    2 => {
                        hot.insert(page);
                        PageState::Resident { age: 1 + draw(2) as u8 }
                    }
                    _ => continue,
                };
                leaf.set(page, state);
            }
            assert!(hot.count() > 0);
            let mut copies = (0..LEAF_PAGES)
                .filter(|&page| matches!(leaf.state(page), PageState::Cached { .. }))
                .count();
            let mut from = PageNumber(0);
            'hand: loop {
                let part = range(from.0, LEAF_PAGES);
                let batch = Batch::choose(&leaf, part, limit, false);
                batch.age_protected(&mut leaf, |_| {
                    copies -= 1;
                    true
                });
                for page in batch.segments().flat_map(PageRange::iter) {
                    let state = leaf.state(page.offset_in_leaf());
                    if hot.contains(page.offset_in_leaf()) && state != PageState::Missing {
                        break 'hand;
                    }
                    copies -= usize::from(matches!(state, PageState::Cached { .. }));
                    leaf.set(page.offset_in_leaf(), PageState::Missing);
                }
                from = if batch.next.0 < LEAF_PAGES { batch.next } else { PageNumber(0) };
            }
            assert_eq!(copies, 0, "batches of {limit}");
        }
    }

    #[test]
    fn a_batch_ends_at_its_limits() {
        let table = Table::new();
        let leaf = leaf_with(&table, (0..LEAF_PAGES).map(|page| (page, 0)));
        let batch = Batch::choose(&leaf, range(3, LEAF_PAGES), 64, false);
        assert_eq!((batch.span, batch.next), (range(3, 67), PageNumber(67)));
        assert!(!batch.is_scattered());
    }

    #[test]
    fn a_scattered_batch_ends_with_its_runs() {
        let table = Table::new();
        let leaf = leaf_with(&table, (0..LEAF_PAGES).step_by(3).map(|page| (page, 0)));
        let batch = Batch::choose(&leaf, range(0, LEAF_PAGES), LEAF_PAGES, false);
        assert_eq!(batch.span, range(0, 3 * (RUNS_MAX - 1) + 1));
        assert_eq!(batch.next, PageNumber(3 * RUNS_MAX));
        assert!(batch.is_scattered());
    }
}
