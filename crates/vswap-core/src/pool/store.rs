//! Storing: which slot an object gets.
//!
//! Unused slots on pages that the segment has come first, since they cost nothing. Only if there
//! is none does the segment take a page, for its first unused slot.

use super::budget::Shard;
use super::class::Class;
use super::segment::SLOT_BITS;
use super::space::Segment;
use super::{Pool, PoolFull, PoolLocal, Stored};
use crate::page::PAGE_SIZE;
use crate::platform::Platform;

/// Segments that a store at the limit tries to do without before it gives up.
const ATTEMPTS_AT_LIMIT: u32 = 3;

/// Why a segment takes no more objects.
enum Full {
    /// All slots are used.
    Slots,
    /// The unused slots are on victims.
    Victims,
    /// The limit allows no page for the unused ones.
    Pages,
}

impl<P: Platform> Pool<P> {
    /// Copies an object into the pool.
    ///
    /// # Errors
    /// [`PoolFull`] at the limit, and when the platform has no address space left.
    ///
    /// # Panics
    /// If the object is longer than a page.
    #[inline]
    pub fn store(&self, local: &mut PoolLocal, bytes: &[u8]) -> Result<Stored, PoolFull> {
        assert!(bytes.len() <= PAGE_SIZE, "an object is at most a page");
        let class = Class::of(bytes.len());
        if let Some(number) = local.current[class.number()].checked_sub(1) {
            let segment = self.space.segment(number);
            if let Some(index) = segment.header.unused_slot(0)
                && class.pages(index, bytes.len()) & !segment.header.usable() == 0
                && let Some(stored) = Self::put(segment, class, index, bytes)
            {
                return Ok(stored);
            }
        }
        self.store_elsewhere(local, class, bytes)
    }

    /// The rest of `store`: the slot at hand would take a page, or there is none.
    #[cold]
    fn store_elsewhere(
        &self,
        local: &mut PoolLocal,
        class: Class,
        bytes: &[u8],
    ) -> Result<Stored, PoolFull> {
        let mut attempts = ATTEMPTS_AT_LIMIT;
        let mut owned = local.current[class.number()].checked_sub(1).map(|n| self.space.segment(n));
        loop {
            let segment = match owned {
                Some(segment) => segment,
                None => self.acquire(class).ok_or(PoolFull)?,
            };
            local.current[class.number()] = segment.number + 1;
            let full = match self.store_in(segment, class, local.shard, bytes) {
                Ok(stored) => return Ok(stored),
                Err(full) => full,
            };
            local.current[class.number()] = 0;
            self.settle(segment.number);
            owned = match full {
                Full::Slots => None,
                // It may well be first on its list again.
                Full::Victims => Some(self.begin(class).ok_or(PoolFull)?),
                Full::Pages if attempts == 0 => return Err(PoolFull),
                Full::Pages => {
                    attempts -= 1;
                    None
                }
            };
        }
    }

    /// Stores in an owned segment, on the pages that it has if possible.
    fn store_in(
        &self,
        segment: Segment<'_>,
        class: Class,
        shard: Shard,
        bytes: &[u8],
    ) -> Result<Stored, Full> {
        let header = segment.header;
        let mut from = 0;
        while let Some(index) = header.unused_slot(from) {
            let missing = class.pages(index, bytes.len()) & !header.usable();
            if missing == 0 {
                if let Some(stored) = Self::put(segment, class, index, bytes) {
                    return Ok(stored);
                }
                from = index + 1;
                continue;
            }
            // On to the slots that begin on the next page which is there.
            let beyond = header.usable() & (u64::MAX << missing.ilog2());
            if beyond == 0 {
                break;
            }
            from = class.first_slot(beyond.trailing_zeros()).max(index + 1);
        }
        self.store_on_new_page(segment, class, shard, bytes)
    }

    /// Stores in the first unused slot of an owned segment that is on no victim.
    fn store_on_new_page(
        &self,
        segment: Segment<'_>,
        class: Class,
        shard: Shard,
        bytes: &[u8],
    ) -> Result<Stored, Full> {
        let header = segment.header;
        let slack = class.slack(bytes.len());
        let mut full = Full::Slots;
        let mut from = 0;
        while let Some(index) = header.unused_slot(from) {
            from = index + 1;
            full = Full::Victims;
            if header.is_victim(index) || !header.fill(index, slack) {
                continue;
            }
            let missing = class.pages(index, bytes.len()) & !header.taken();
            if !self.budget.take(shard, missing.count_ones() as usize) {
                header.empty(index, slack);
                return Err(Full::Pages);
            }
            header.take_pages(missing);
            return Ok(Self::copy(segment, class, index, bytes));
        }
        Err(full)
    }

    /// Stores in an unused slot on pages that an owned segment has, or had a moment ago.
    #[inline]
    fn put(segment: Segment<'_>, class: Class, index: u32, bytes: &[u8]) -> Option<Stored> {
        let (header, slack) = (segment.header, class.slack(bytes.len()));
        // Before the copy: an atomic operation after it would wait for all its lines to arrive.
        if !header.fill(index, slack) {
            return None;
        }
        // The compactor may have come and gone since the caller looked.
        if class.pages(index, bytes.len()) & !header.taken() != 0 {
            header.empty(index, slack);
            return None;
        }
        Some(Self::copy(segment, class, index, bytes))
    }

    /// Copies to a slot that was just filled and that nobody was told of yet.
    #[inline]
    fn copy(segment: Segment<'_>, class: Class, index: u32, bytes: &[u8]) -> Stored {
        // SAFETY: we own the segment, so nobody else reads or writes the slot before our caller
        // tells where it is; the class is the segment's, so the slot lies in it and is this long.
        unsafe {
            let slot = segment.data.add(index as usize * class.size()).as_ptr();
            slot.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        let location = (segment.number as u64) << SLOT_BITS | index as u64;
        Stored { location, slack: class.slack(bytes.len()) }
    }
}
