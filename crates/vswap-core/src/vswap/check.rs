//! The invariants of the whole space, checked while no operation is under way.

use super::VirtualSwap;
use super::store::backing_charge;
use crate::descriptor::{COUNT_OVERFLOW, Descriptor, Encoding, GROUPS_MAX, Place};
use crate::entry::{CLUSTER_SLOTS, ClusterId, GroupId, SwapEntry};
use crate::group::Resource;
use crate::page::PAGE_SIZE;
use crate::platform::Platform;
use crate::slots::State;

/// A broken invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({place})")]
pub struct Violation {
    /// The rule.
    pub what: &'static str,
    /// The entry, cluster or group where it is broken, or 0.
    pub place: u32,
}

fn ensure(holds: bool, what: &'static str, place: u32) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { what, place }) }
}

/// Sums over all descriptors, to be compared with what was counted.
struct Sums {
    live: u64,
    incompressible: u64,
    pool_bytes: usize,
    entries: [u64; GROUPS_MAX],
    charges: [[u64; 2]; GROUPS_MAX],
}

impl<P: Platform> VirtualSwap<P> {
    /// Asserts every invariant of the space, its pool and its groups. For tests, while no
    /// operation is under way; workers may exist.
    ///
    /// # Panics
    /// If one is broken.
    pub fn check(&self) {
        if let Err(violation) = self.verify() {
            panic!("the virtual swap space is inconsistent: {violation}");
        }
        if let Err(violation) = self.pool.check() {
            panic!("the pool is inconsistent: {violation}");
        }
    }

    fn verify(&self) -> Result<(), Violation> {
        let mut sums = Sums {
            live: 0,
            incompressible: 0,
            pool_bytes: 0,
            entries: [0; GROUPS_MAX],
            charges: [[0; 2]; GROUPS_MAX],
        };
        for cluster in self.slots.clusters() {
            self.verify_cluster(cluster, &mut sums)?;
        }
        self.slots
            .verify_lists(self.platform())
            .map_err(|(what, place)| Violation { what, place })?;
        let usage = self.usage();
        ensure(usage.live_slots == sums.live, "live slots are those counted", 0)?;
        ensure(usage.payload == sums.pool_bytes, "the pool's objects are those named", 0)?;
        let incompressible = usage.stored_incompressible_pages;
        ensure(incompressible == sums.incompressible, "raw pages are those counted", 0)?;
        self.verify_groups(&sums)
    }

    fn verify_cluster(&self, cluster: ClusterId, sums: &mut Sums) -> Result<(), Violation> {
        let now = self.slots.header(cluster).now();
        let mut used = 0;
        for (index, slot) in self.slots.row(cluster).iter().enumerate() {
            let (entry, word) = (cluster.entry(index), slot.peek());
            word.verify().map_err(|what| Violation { what, place: entry.raw() })?;
            if word != Descriptor::FREE {
                used += 1;
                self.add_entry(entry, word, sums)?;
            }
        }
        sums.live += used as u64;
        let owned = now.state == State::Owned;
        ensure(now.used <= CLUSTER_SLOTS, "a cluster has 512 slots", cluster.0)?;
        ensure(used == now.used || owned && used < now.used, "slots are those counted", cluster.0)?;
        ensure(owned || !now.needs_settling(), "a cluster is where it belongs", cluster.0)
    }

    fn add_entry(
        &self,
        entry: SwapEntry,
        word: Descriptor,
        sums: &mut Sums,
    ) -> Result<(), Violation> {
        let group = word.group();
        ensure(self.groups.exists(group), "an entry's group exists", entry.raw())?;
        let small = word.count() < COUNT_OVERFLOW;
        let count = self.slots.count(entry);
        ensure(
            !small || count == u64::from(word.count()),
            "small counts have no excess",
            entry.raw(),
        )?;
        sums.entries[group.0 as usize] += 1;
        let (resource, amount) = match word.place() {
            Some(Place::Compressed { object, encoding }) => {
                let length = self.pool.len(object);
                ensure(length <= PAGE_SIZE, "an object is at most a page", entry.raw())?;
                sums.pool_bytes += length;
                let raw = encoding == Encoding::Raw;
                sums.incompressible += u64::from(raw);
                (Resource::Zswap, length as u64)
            }
            Some(Place::SameFilledInPool(object)) => {
                let length = self.pool.len(object);
                ensure(length == size_of::<u64>(), "a same-filled object is a word", entry.raw())?;
                sums.pool_bytes += length;
                (Resource::Zswap, length as u64)
            }
            Some(Place::Backing { device, id, length, .. }) => {
                let known = self.backings.get(self.platform(), id).is_some();
                ensure(known, "an entry's backing exists", entry.raw())?;
                backing_charge(device, usize::from(length))
            }
            _ => return Ok(()),
        };
        let mut charged = Some(group).filter(|&group| group != GroupId::ROOT);
        while let Some(group) = charged {
            sums.charges[group.0 as usize][resource as usize] += amount;
            charged = self.groups.parent(group).filter(|&parent| parent != GroupId::ROOT);
        }
        Ok(())
    }

    fn verify_groups(&self, sums: &Sums) -> Result<(), Violation> {
        for group in self.groups.ids() {
            let (number, place) = (group.0 as usize, u32::from(group.0));
            let usage = self.group_usage(group).unwrap_or_default();
            ensure(usage.entries == sums.entries[number], "entries are those counted", place)?;
            let charges = [usage.zswap, usage.swap];
            ensure(charges == sums.charges[number], "charges are those of the entries", place)?;
        }
        Ok(())
    }
}
