//! Evicting a page whose entry was kept when it came back.
//!
//! A client that loads a page may keep the entry for as long as it likes. If the page still is what
//! the entry holds when it is evicted again, nothing has to be compressed or written.

use super::VirtualSwap;
use crate::counters::Counter;
use crate::descriptor::{Descriptor, Place};
use crate::entry::SwapEntry;
use crate::page::Page;
use crate::platform::Platform;
use crate::worker::Worker;

impl<P: Platform> VirtualSwap<P> {
    /// Whether an entry holds exactly this page. What cannot be read holds nothing.
    pub fn holds(&self, worker: &mut Worker, entry: SwapEntry, page: &Page) -> bool {
        let Some(slot) = self.descriptor(entry) else { return false };
        let Ok(word) = slot.lock(self.platform()) else { return false };
        let Worker { coder, record, page: copy, .. } = worker;
        let same = word
            .place()
            .is_some_and(|place| self.decode_place(coder, record, (entry, place), copy).is_ok())
            && copy.0 == page.0;
        self.unlock(entry, slot);
        same
    }

    /// Gives the data of `kept` a new entry and frees the old one, so that slots go on to be in the
    /// order of eviction. `kept` must be the caller's alone; an entry that has other references or an
    /// object in a backing, or for which there is no new slot, stays as it is and is given back.
    pub fn renew(&self, worker: &mut Worker, kept: SwapEntry) -> SwapEntry {
        let Some(slot) = self.descriptor(kept) else { return kept };
        let Ok(word) = slot.lock(self.platform()) else { return kept };
        let is_alone = word.count() == 1 && !word.is_cached();
        let place = word.place().filter(|place| {
            // An object in a backing is known there by its entry.
            is_alone && !matches!(place, Place::Poisoned | Place::Backing { .. })
        });
        let found = place.and_then(|place| {
            let entry = self.slots.next(self.platform(), &mut worker.single, self.clusters_max);
            Some((place, entry.ok()?))
        });
        let (Some((place, entry)), Some(owned)) = (found, &mut worker.single) else {
            self.unlock(kept, slot);
            return kept;
        };
        // Never do two words name one object: who frees or moves it would free it twice.
        slot.replace(Place::Poisoned);
        self.slots.fill(owned, entry, 1, Descriptor::new(place, word.group()).with_count(1));
        self.groups.add_entries(word.group(), 1);
        self.counters.add(&worker.record, Counter::SlotsAllocated, 1);
        self.unlock(kept, slot);
        self.free(kept);
        entry
    }
}
