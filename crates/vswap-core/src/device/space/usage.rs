//! How full and how fragmented a device is. All of it walks the clusters.

use super::Space;
use super::cluster::{State, Use};
use super::extents::ExtentSource;
use super::geometry::OBJECT_BLOCKS_MAX;
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

impl Occupancy {
    /// Hundredths of the clusters with objects that objects fill; 100 without any.
    pub fn density(&self) -> u32 {
        let (used, all) = (u64::from(self.used_blocks), u64::from(self.cluster_blocks));
        (used * 100).checked_div(all).map_or(100, |density| density as u32)
    }
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

    pub(super) fn fillable(&self, now: Use) -> u32 {
        match now.state {
            State::Foreign | State::Draining | State::ForeignDraining => 0,
            _ => now.free_slots(self.geometry),
        }
    }
}
