//! Giving entries up, one by one and in batches.

use super::store::backing_charge;
use super::{FREED_SHARDS, VirtualSwap};
use crate::descriptor::{Descriptor, Encoding, Place, Put};
use crate::entry::{CLUSTER_SLOTS, ClusterId, GroupId, SwapEntry};
use crate::group::Resource;
use crate::platform::Platform;
use crate::sync::Ordering;

/// Freed slots of one cluster that its header has not been told of.
#[derive(Default)]
struct Batch {
    cluster: Option<ClusterId>,
    slots: usize,
}

impl<P: Platform> VirtualSwap<P> {
    /// Takes back one reference to an entry; the last one frees it, unless it is in the swap cache.
    /// Never waits: an entry that another thread is reading is freed by that thread.
    ///
    /// An entry without references is left alone.
    #[inline]
    pub fn free(&self, entry: SwapEntry) {
        if let Put::Freed(word) = self.slots.put(self.platform(), entry) {
            self.finish_free(entry, word);
        }
    }

    /// [`Self::free`] of many entries, cheaper when neighbours in the slice are so in the space.
    pub fn free_many(&self, entries: &[SwapEntry]) {
        let mut batch = Batch::default();
        for &entry in entries {
            self.free_into(&mut batch, entry);
        }
        self.settle(&batch);
    }

    /// [`Self::free`] of `n` contiguous entries.
    pub fn free_run(&self, first: SwapEntry, n: usize) {
        let mut batch = Batch::default();
        for index in 0..n {
            self.free_into(&mut batch, first.nth(index));
        }
        self.settle(&batch);
    }

    fn free_into(&self, batch: &mut Batch, entry: SwapEntry) {
        if let Put::Freed(word) = self.slots.put(self.platform(), entry) {
            if batch.cluster != Some(entry.cluster()) || batch.slots == CLUSTER_SLOTS {
                self.settle(batch);
                *batch = Batch { cluster: Some(entry.cluster()), slots: 0 };
            }
            self.release_word(entry, word);
            batch.slots += 1;
        }
    }

    fn settle(&self, batch: &Batch) {
        if let Some(cluster) = batch.cluster {
            self.count_freed(cluster, batch.slots);
        }
    }

    /// The rest of freeing an entry whose descriptor was just set free.
    #[inline]
    pub(super) fn finish_free(&self, entry: SwapEntry, word: Descriptor) {
        self.release_word(entry, word);
        self.count_freed(entry.cluster(), 1);
    }

    fn count_freed(&self, cluster: ClusterId, slots: usize) {
        let freed = &self.freed[cluster.0 as usize % FREED_SHARDS].0;
        freed.slots.fetch_add(slots as u64, Ordering::Relaxed);
        // Last, since it may give the cluster away.
        self.slots.release(self.platform(), cluster, slots);
    }

    /// Releases what a freed slot's old descriptor names.
    #[inline]
    fn release_word(&self, entry: SwapEntry, word: Descriptor) {
        if let Some(place) = word.place() {
            self.release_place(entry, word.group(), place);
        }
        self.groups.remove_entries(word.group(), 1);
    }

    /// Releases a place that no descriptor names any more: its object and its charge.
    #[inline]
    pub(super) fn release_place(&self, entry: SwapEntry, group: GroupId, place: Place) {
        match place {
            Place::Page | Place::Zero | Place::SameFilled(_) | Place::Poisoned => {}
            Place::SameFilledInPool(object) | Place::Compressed { object, .. } => {
                if group != GroupId::ROOT {
                    let length = self.pool.len(object) as u64;
                    self.groups.uncharge(group, Resource::Zswap, length);
                }
                if matches!(place, Place::Compressed { encoding: Encoding::Raw, .. }) {
                    let freed = &self.freed[entry.cluster().0 as usize % FREED_SHARDS].0;
                    freed.incompressible.fetch_add(1, Ordering::Relaxed);
                }
                self.pool.free(object);
            }
            Place::Backing { device, id, handle, length, .. } => {
                let (resource, amount) = backing_charge(device, usize::from(length));
                self.groups.uncharge(group, resource, amount);
                self.backings.free(self.platform(), id, handle, usize::from(length));
            }
        }
    }
}
