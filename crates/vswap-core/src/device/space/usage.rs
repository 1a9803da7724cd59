//! How full and how fragmented a device is. All of it walks the clusters.

use core::ops::Range;

use super::Space;
use super::cluster::{State, Use};
use super::extents::ExtentSource;
use super::geometry::{Block, OBJECT_BLOCKS_MAX};
use super::lists::Headers;
use crate::platform::Platform;
use crate::sync::Ordering;

/// The clusters of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassUse {
    /// Clusters.
    pub clusters: u32,
    /// Objects in them, smaller ones included.
    pub objects: u32,
    /// Slots that can be filled.
    pub free_slots: u32,
}

/// What the clusters of a device hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// By class: index 0 is for objects of one block.
    pub classes: [ClassUse; OBJECT_BLOCKS_MAX],
    /// Blocks of all objects.
    pub used_blocks: u32,
    /// Blocks of the clusters that have a class. What part of them is used is the density.
    pub cluster_blocks: u32,
    /// Clusters that are free to be used, discarded or not.
    pub free_clusters: u32,
}

/// A cluster that holds little.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Where its objects are.
    pub blocks: Range<u32>,
    /// How many there are.
    pub objects: u32,
    /// How many there could be.
    pub slots: u32,
}

impl<P: Platform, S: ExtentSource> Space<P, S> {
    /// Blocks of all objects. Unlike the rest, this is a counter.
    pub fn used_blocks(&self) -> u32 {
        self.used.0.load(Ordering::Relaxed)
    }

    /// Use and fragmentation.
    pub fn occupancy(&self) -> Occupancy {
        let mut sum = Occupancy { used_blocks: self.used_blocks(), ..Occupancy::default() };
        for cluster in self.leased() {
            let now = self.header(cluster).now();
            if matches!(now.state, State::Free | State::Dirty) {
                sum.free_clusters += 1;
            }
            if now.state.in_use() {
                let class = &mut sum.classes[usize::from(now.class) - 1];
                class.clusters += 1;
                class.objects += now.objects;
                class.free_slots += self.fillable(now);
                sum.cluster_blocks += self.geometry.cluster_blocks();
            }
        }
        sum
    }

    fn fillable(&self, now: Use) -> u32 {
        match now.state {
            State::Foreign | State::Draining => 0,
            _ => now.free_slots(self.geometry),
        }
    }

    /// The cluster of a class that holds the fewest objects, of those that no worker owns and
    /// that are not draining. Full ones do not count.
    pub fn sparsest(&self, class: u8) -> Option<Sparse> {
        let clusters = self.leased().map(|cluster| (cluster, self.header(cluster).now()));
        let movable = |now: &Use| match now.state {
            State::Partial | State::Scattered | State::Foreign => true,
            // All that is free here was freed after a seal.
            State::Full => now.sealed && now.objects < self.geometry.slots(class),
            _ => false,
        };
        let (cluster, now) = clusters
            .filter(|(_, now)| now.class == class && now.objects > 0 && movable(now))
            .min_by_key(|(_, now)| now.objects)?;
        Some(Sparse {
            blocks: self.geometry.cluster_range(cluster),
            objects: now.objects,
            slots: self.geometry.slots(class),
        })
    }

    /// Keeps new objects out of a cluster that is being emptied, or lets them in again; says
    /// whether that is so now. A cluster that a worker owns, or that is empty, is left alone.
    pub fn set_draining(&self, block: Block, draining: bool) -> bool {
        let cluster = self.geometry.cluster_of(block);
        if !self.is_leased(cluster) {
            return false;
        }
        let mut lists = self.lists.lock(&self.platform);
        match (self.header(cluster).now().state, draining) {
            (State::Full | State::Scattered | State::Partial, true) => {
                lists.set_state(self, cluster, State::Draining);
            }
            (State::Draining, false) => lists.set_state(self, cluster, State::Full),
            (State::Draining, true) => return true,
            _ => return false,
        }
        let surplus = self.settle_locked(&mut lists, cluster);
        drop(lists);
        self.return_surplus(surplus);
        true
    }
}
