//! The mappings that are paged: sorted, disjoint ranges with what the engine has to know of each.
//!
//! Changed under the mapping lock with the gate closed, read by whoever holds either.

use core::ptr::NonNull;

use vswap_core::page::PAGE_SIZE;
use vswap_core::platform::Platform;

use crate::address::{PageNumber, PageRange};
use crate::arena::Arena;

/// The kernel's default limit of mappings per process is 65530.
const REGIONS_MAX: usize = 1 << 16;

/// What is the same all over a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one of the kernel's own flags")]
pub struct Attributes {
    /// PROT_ bits.
    pub prot: u8,
    /// The program locked it: its pages stay.
    pub locked: bool,
    /// The program asked that children do not get it.
    pub dont_fork: bool,
    /// The program asked that children find it empty.
    pub wipe_on_fork: bool,
    /// Its pages refuse to move, for a reason that will not pass.
    pub immovable: bool,
}

/// A range of pages that is registered for paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its pages.
    pub range: PageRange,
    /// What holds for all of them.
    pub attributes: Attributes,
}

/// No room for one more region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many mappings")]
pub struct TooManyRegions;

/// All regions of this address space.
#[derive(Debug)]
pub struct Regions {
    slots: Option<NonNull<Region>>,
    count: usize,
}

// SAFETY: the memory belongs to the set.
unsafe impl Send for Regions {}
// SAFETY: shared references only read.
unsafe impl Sync for Regions {}

impl Regions {
    /// No region.
    pub const fn new() -> Self {
        Self { slots: None, count: 0 }
    }

    /// All regions, in ascending order.
    pub fn all(&self) -> &[Region] {
        match self.slots {
            // SAFETY: the first `count` slots have been written.
            Some(slots) => unsafe { core::slice::from_raw_parts(slots.as_ptr(), self.count) },
            None => &[],
        }
    }

    /// Ranges without a hole of regions that are wanted: one system call does for all of them.
    pub fn runs(&self, wanted: impl Fn(&Region) -> bool) -> impl Iterator<Item = PageRange> {
        let mut rest = self.all().iter().filter(move |region| wanted(region)).peekable();
        core::iter::from_fn(move || {
            let mut run = rest.next()?.range;
            while let Some(next) = rest.next_if(|next| next.range.start == run.end) {
                run.end = next.range.end;
            }
            Some(run)
        })
    }

    /// Bytes of memory taken.
    pub fn memory(&self) -> usize {
        (self.count * size_of::<Region>()).next_multiple_of(PAGE_SIZE)
    }

    /// The region of a page.
    pub fn find(&self, page: PageNumber) -> Option<&Region> {
        self.all().get(self.first_ending_behind(page)).filter(|region| region.range.start <= page)
    }

    /// First region with a page at or behind `page`.
    pub fn at_or_behind(&self, page: PageNumber) -> Option<&Region> {
        self.all().get(self.first_ending_behind(page))
    }

    /// The regions' parts that lie in `range`, in ascending order.
    pub fn within(&self, range: PageRange) -> impl Iterator<Item = Region> {
        self.all()[self.first_ending_behind(range.start)..]
            .iter()
            .take_while(move |region| region.range.start < range.end)
            .map(move |region| Region { range: region.range.intersection(range), ..*region })
            .filter(|region| !region.range.is_empty())
    }

    /// Adds a range; what it covers already is replaced. Neighbours that are alike are merged.
    ///
    /// # Errors
    /// [`TooManyRegions`]; the set is as before.
    pub fn insert(
        &mut self,
        range: PageRange,
        attributes: Attributes,
    ) -> Result<(), TooManyRegions> {
        if range.is_empty() {
            return Ok(());
        }
        self.reserve_room()?;
        self.remove(range)?;
        let at = self.first_ending_behind(range.start);
        let mut new = Region { range, attributes };
        let mut replaced = at..at;
        if let Some(next) = self.all().get(at)
            && next.range.start == range.end
            && next.attributes == attributes
        {
            new.range.end = next.range.end;
            replaced.end += 1;
        }
        if let Some(previous) = at.checked_sub(1).and_then(|index| self.all().get(index))
            && previous.range.end == range.start
            && previous.attributes == attributes
        {
            new.range.start = previous.range.start;
            replaced.start -= 1;
        }
        self.splice(replaced, &[new]);
        Ok(())
    }

    /// Takes a range out; regions that stick out on either side keep that part.
    ///
    /// # Errors
    /// [`TooManyRegions`]; the set is as before.
    pub fn remove(&mut self, range: PageRange) -> Result<(), TooManyRegions> {
        let first = self.first_ending_behind(range.start);
        let hit = self.all()[first..].iter().take_while(|r| r.range.start < range.end).count();
        if hit == 0 || range.is_empty() {
            return Ok(());
        }
        self.reserve_room()?;
        let (head, tail) = (self.all()[first], self.all()[first + hit - 1]);
        let before =
            Region { range: PageRange { start: head.range.start, end: range.start }, ..head };
        let behind = Region { range: PageRange { start: range.end, end: tail.range.end }, ..tail };
        let hit = first..first + hit;
        match (before.range.is_empty(), behind.range.is_empty()) {
            (true, true) => self.splice(hit, &[]),
            (false, true) => self.splice(hit, &[before]),
            (true, false) => self.splice(hit, &[behind]),
            (false, false) => self.splice(hit, &[before, behind]),
        }
        Ok(())
    }

    /// Changes the attributes of what lies in `range`.
    ///
    /// # Errors
    /// [`TooManyRegions`]; a part may have been changed.
    pub fn change(
        &mut self,
        range: PageRange,
        change: impl Fn(&mut Attributes),
    ) -> Result<(), TooManyRegions> {
        let mut from = range.start;
        loop {
            let part = self.within(PageRange { start: from, end: range.end }).next();
            let Some(part) = part else { return Ok(()) };
            let mut attributes = part.attributes;
            change(&mut attributes);
            if attributes != part.attributes {
                self.insert(part.range, attributes)?;
            }
            from = part.range.end;
        }
    }

    fn first_ending_behind(&self, page: PageNumber) -> usize {
        self.all().partition_point(|region| region.range.end <= page)
    }

    /// Makes sure that two more slots exist: the most that one change adds.
    fn reserve_room(&mut self) -> Result<(), TooManyRegions> {
        if self.count + 2 > REGIONS_MAX {
            return Err(TooManyRegions);
        }
        if self.slots.is_none() {
            let memory = Arena
                .reserve((REGIONS_MAX * size_of::<Region>()).next_multiple_of(PAGE_SIZE), PAGE_SIZE)
                .ok_or(TooManyRegions)?;
            self.slots = Some(memory.cast());
        }
        Ok(())
    }

    fn splice(&mut self, replaced: core::ops::Range<usize>, by: &[Region]) {
        let Some(slots) = self.slots else { return };
        let tail = self.count - replaced.end;
        let count = replaced.start + by.len() + tail;
        assert!(count <= REGIONS_MAX, "room was reserved");
        // SAFETY: all indices are within the reserved slots; the ranges may overlap, so the tail
        // is moved with `copy`.
        unsafe {
            let base = slots.as_ptr();
            core::ptr::copy(base.add(replaced.end), base.add(replaced.start + by.len()), tail);
            core::ptr::copy_nonoverlapping(by.as_ptr(), base.add(replaced.start), by.len());
        }
        self.count = count;
    }
}

impl Default for Regions {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn range(start: usize, end: usize) -> PageRange {
        PageRange { start: PageNumber(start), end: PageNumber(end) }
    }

    #[test]
    fn runs_have_neither_holes_nor_what_is_not_wanted() {
        let mut regions = Regions::new();
        for (prot, start, end) in [(1, 0, 4), (2, 4, 8), (1, 8, 12), (1, 20, 24), (2, 24, 25)] {
            let attributes = Attributes { prot, ..Attributes::default() };
            regions.insert(range(start, end), attributes).unwrap();
        }
        let all: Vec<_> = regions.runs(|_| true).collect();
        assert_eq!(all, [range(0, 12), range(20, 25)]);
        let some: Vec<_> = regions.runs(|region| region.attributes.prot == 1).collect();
        assert_eq!(some, [range(0, 4), range(8, 12), range(20, 24)]);
    }

    /// Random changes, compared with one attribute per page.
    #[test]
    fn regions_agree_with_a_flat_map() {
        const PAGES: usize = 200;
        let mut model = [None::<Attributes>; PAGES];
        let mut regions = Regions::new();
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        };
        for step in 0..20_000 {
            let (a, b) = (random(PAGES), random(PAGES));
            let (start, end) = (a.min(b), a.max(b));
            let attributes = Attributes { prot: random(3) as u8, ..Attributes::default() };
            match random(3) {
                0 => {
                    regions.insert(range(start, end), attributes).unwrap();
                    model[start..end].fill(Some(attributes));
                }
                1 => {
                    regions.remove(range(start, end)).unwrap();
                    model[start..end].fill(None);
                }
                _ => {
                    regions.change(range(start, end), |a| a.locked = !a.locked).unwrap();
                    model[start..end].iter_mut().flatten().for_each(|a| a.locked = !a.locked);
                }
            }
            for (page, expected) in model.iter().enumerate() {
                let found = regions.find(PageNumber(page)).map(|region| region.attributes);
                assert_eq!(found, *expected, "page {page} after step {step}");
            }
            let bounds: Vec<_> =
                regions.all().iter().flat_map(|r| [r.range.start, r.range.end]).collect();
            assert!(bounds.is_sorted(), "step {step}: {bounds:?}");
        }
    }

    #[test]
    fn equal_neighbours_merge() {
        let mut regions = Regions::new();
        regions.insert(range(0, 10), Attributes::default()).unwrap();
        regions.insert(range(20, 30), Attributes::default()).unwrap();
        regions.insert(range(10, 20), Attributes::default()).unwrap();
        assert_eq!(regions.all().len(), 1);
        assert_eq!(regions.within(range(5, 7)).count(), 1);
    }
}
