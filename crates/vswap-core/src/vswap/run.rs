//! Runs: contiguous, naturally aligned slots, as the kernel uses them for a large folio.
//!
//! A run starts in the swap cache with the resident pages as its only copy; its places are found
//! when it is stored. Each of its entries has a place of its own, so a run can mix all backings,
//! and an error concerns one page.

use super::store::Owner;
use super::{Keep, Origin, VirtualSwap};
use crate::counters::Counter;
use crate::descriptor::{Descriptor, Place};
use crate::entry::{CLUSTER_SLOTS, GroupId, SwapEntry};
use crate::error::{LoadError, StoreError};
use crate::page::Page;
use crate::platform::Platform;
use crate::worker::Worker;

impl<P: Platform> VirtualSwap<P> {
    /// Allocates `n` contiguous entries at a multiple of `n`, in the swap cache, not counted, with
    /// the resident page as their only copy.
    ///
    /// # Errors
    /// If there are no slots, or no memory for them.
    ///
    /// # Panics
    /// If `n` is not a power of two up to the size of a cluster.
    pub fn alloc_run(
        &self,
        worker: &mut Worker,
        group: GroupId,
        n: usize,
    ) -> Result<SwapEntry, StoreError> {
        assert!(n.is_power_of_two() && n <= CLUSTER_SLOTS, "a run has 1 to 512 slots, 2^k of them");
        let (platform, limit) = (self.platform(), self.clusters_max);
        let owned = if n == 1 { &mut worker.single } else { &mut worker.runs };
        let found = match n {
            1 => self.slots.next(platform, owned, limit),
            n => self.slots.next_run(platform, owned, limit, n),
        };
        let first = match (found, owned) {
            (Ok(first), Some(owned)) => {
                let word = Descriptor::new(Place::Page, group).with_cached(true);
                self.slots.fill(owned, first, n, word);
                first
            }
            (Ok(_), None) => unreachable!("slots are found in an owned cluster"),
            (Err(refusal), _) => return Err(self.refused(worker, refusal)),
        };
        self.groups.add_entries(group, n);
        self.counters.add(&worker.record, Counter::SlotsAllocated, n as u64);
        Ok(first)
    }

    /// Stores the pages of a run that is in the swap cache, all or none. What was stored for these
    /// entries before is released: the resident pages are newer.
    ///
    /// # Errors
    /// See [`StoreError`]. No copy of any page is left then, old or new, and the resident pages
    /// are the only data.
    pub fn store_run(
        &self,
        worker: &mut Worker,
        first: SwapEntry,
        pages: &[&Page],
    ) -> Result<(), StoreError> {
        let entries = (0..pages.len()).map(|index| first.nth(index));
        for (entry, page) in entries.clone().zip(pages) {
            if let Err(error) = self.store(worker, entry, page) {
                for entry in entries {
                    self.drop_copy(entry);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Stores one page of the swap cache.
    ///
    /// # Errors
    /// As for [`Self::store_run`].
    pub fn store(
        &self,
        worker: &mut Worker,
        entry: SwapEntry,
        page: &Page,
    ) -> Result<(), StoreError> {
        let slot = self.descriptor(entry).ok_or(StoreError::NotCached)?;
        let word = slot.lock(self.platform()).map_err(|_| StoreError::NotCached)?;
        if !word.is_cached() {
            self.unlock(entry, slot);
            return Err(StoreError::NotCached);
        }
        // The old copy goes first: its memory and its charge may be what the new one needs.
        slot.replace(Place::Page);
        if let Some(place) = word.place() {
            self.release_place(entry, word.group(), place);
        }
        let placed = self.place_page(worker, Owner { entry, group: word.group() }, page);
        if let Some(dead) = slot.unlock_at(placed.unwrap_or(Place::Page)) {
            self.finish_free(entry, dead);
        }
        placed.map(|_| ())
    }

    /// Makes the resident page of an entry in the swap cache its only copy, because the page was
    /// written. Entries outside the cache are left alone.
    pub fn drop_copy(&self, entry: SwapEntry) {
        let Some(slot) = self.descriptor(entry) else { return };
        let Ok(word) = slot.lock(self.platform()) else { return };
        if word.is_cached() {
            self.move_to(entry, slot, word, Place::Page);
        } else {
            self.unlock(entry, slot);
        }
    }

    /// Reads the entries of a run into `pages` and reports each one by its index. An error
    /// concerns its page only.
    pub fn load_run(
        &self,
        worker: &mut Worker,
        first: SwapEntry,
        pages: &mut [Page],
        keep: Keep,
        mut report: impl FnMut(usize, Result<Origin, LoadError>),
    ) {
        for (index, page) in pages.iter_mut().enumerate() {
            let entry = first.nth(index);
            report(
                index,
                match keep {
                    Keep::Backing => self.load(worker, entry, page),
                    Keep::Page => self.load_erasing(worker, entry, page),
                },
            );
        }
    }
}
